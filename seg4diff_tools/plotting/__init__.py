"""Figures: matplotlib and seaborn for images, maps and matrices, plotly for charts with sliders and hover texts."""

from seg4diff_tools.errors import require_columns
from seg4diff_tools.plotting.checks import OKABE_ITO, reduced_maps
from seg4diff_tools.plotting.distributions import confusion, score_histogram
from seg4diff_tools.plotting.interactive import bars, curves, intervals, scatter, score_map
from seg4diff_tools.plotting.sliders import map_slider
from seg4diff_tools.plotting.static import (
    case_gallery,
    class_colors,
    label_maps,
    label_overlay,
    map_grid,
    map_strip,
    overlay,
    picture_grid,
)

__all__ = [
    "OKABE_ITO",
    "bars",
    "case_gallery",
    "class_colors",
    "confusion",
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
