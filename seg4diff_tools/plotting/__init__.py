"""Figures: matplotlib for pictures and maps, plotly for charts that a reader turns or hovers over."""

from seg4diff_tools.plotting.interactive import bars, curves, intervals, scatter, score_map
from seg4diff_tools.plotting.sliders import map_slider
from seg4diff_tools.plotting.static import (
    OKABE_ITO,
    case_gallery,
    class_colors,
    label_maps,
    label_overlay,
    map_grid,
    map_strip,
    overlay,
    picture_grid,
    reduced_maps,
    require_columns,
    score_histogram,
)

__all__ = [
    "OKABE_ITO",
    "bars",
    "case_gallery",
    "class_colors",
    "curves",
    "intervals",
    "label_maps",
    "label_overlay",
    "map_grid",
    "map_slider",
    "map_strip",
    "overlay",
    "picture_grid",
    "reduced_maps",
    "require_columns",
    "scatter",
    "score_histogram",
    "score_map",
]
