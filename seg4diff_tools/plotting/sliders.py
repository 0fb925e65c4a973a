"""Maps with a slider along layers, steps or heads (plotly), which work in the built report, without Python."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from seg4diff_tools.errors import InputError, as_names, named_extra
from seg4diff_tools.images import ImageLike, data_url, open_images
from seg4diff_tools.plotting.checks import Maps, reduced_maps
from seg4diff_tools.plotting.interactive import finished

with named_extra():
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

# largest sides of maps and pictures: a figure holds many of them
MAP_SIDE, PICTURE_SIDE = 32, 160


def map_slider(
    maps: Maps,
    images: ImageLike | Sequence[ImageLike],
    slider: str = "step",
    *,
    names: Sequence[str] | None = None,
    start: Any = None,
    title: str = "",
) -> go.Figure:
    """Show an image and a map for each word beside it, with a slider along layers, steps or heads, and a play button.

    Every map is shown in percent of its own largest value, and shrunk to at most 32 cells a side, which keeps the
    figure small.

    Args:
        maps: the axes `slider` and one other, such as token or class, beside y and x; further axes of length 1 are
            dropped.
        images: one image, or one for each position of the slider; paths, PIL images, arrays or tensors.
        slider: axis that the slider moves along.
        names: labels of the slider's positions; None for the coordinate of the axis.
        start: where the slider begins, such as layer 4: a value of its axis or one of the names; None for the first.
        title: of the figure.

    Raises:
        InputError: other axes, a number of images or names that does not fit, or a start that is not on the axis.
    """
    found = isinstance(maps, xr.DataArray) and isinstance(slider, str) and slider in maps.dims
    if not found or slider in ("y", "x"):
        axes = dict(maps.sizes) if isinstance(maps, xr.DataArray) else type(maps).__name__
        raise InputError(
            f"expected a DataArray of maps with an axis {slider!r} for the slider, got {axes}: pass slider='layer'"
        )
    maps = reduced_maps(maps, 2, keep=slider)
    columns = maps.dims[0] if maps.dims[1] == slider else maps.dims[1]
    maps = _shrunk(maps.transpose(slider, columns, "y", "x"))
    several = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4
    pictures = [data_url(image, "JPEG", PICTURE_SIDE, quality=85) for image in open_images(images)]
    values = [str(value) for value in maps[slider].values]
    names = values if names is None else list(as_names(names, "names", example="['blurred', 'plain']"))
    if len(names) != len(maps) or (several and len(pictures) != len(maps)):
        raise InputError(
            f"expected {len(maps)} names and images, one for each {slider}, got {len(names)} names and {len(pictures)} "
            "images: pass one of each, or one image for all"
        )
    if start is not None and str(start) not in (*values, *names):
        raise InputError(f"expected start as a {slider} of {', '.join(names)}, got {start!r}: choose one of these")
    begin = 0 if start is None else (names if str(start) in names else values).index(str(start))
    largest = maps.max(("y", "x")).values.tolist()
    levels = (100 * maps / maps.max(("y", "x")).clip(1e-30)).clip(0, 100).fillna(0).round().astype(np.uint8).values
    words = [str(word) for word in maps[columns].values]
    figure = make_subplots(1, 1 + len(words), subplot_titles=["image", *words], horizontal_spacing=0.02)
    figure.add_trace(go.Image(source=pictures[begin if several else 0], hoverinfo="skip"), 1, 1)
    for column, word in enumerate(words):
        trace = _heatmap(levels[begin, column], word, largest[begin][column], column == len(words) - 1)
        figure.add_trace(trace, 1, 2 + column)
    # a picture that does not change is not repeated in every frame
    first = 0 if several else 1
    figure.frames = [
        go.Frame(
            name=name,
            data=[
                *([go.Image(source=pictures[position])] if several else []),
                *(
                    go.Heatmap(z=levels[position, column], hovertemplate=_hover(word, largest[position][column]))
                    for column, word in enumerate(words)
                ),
            ],
            traces=list(range(first, 1 + len(words))),
        )
        for position, name in enumerate(names)
    ]
    figure.update_xaxes(visible=False, constrain="domain")
    for column in range(1, 2 + len(words)):
        figure.update_yaxes(
            visible=False, scaleanchor=f"x{column}", autorange="reversed", constrain="domain", row=1, col=column
        )
    still = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    moving = {"frame": {"duration": 400, "redraw": True}, "transition": {"duration": 0}, "fromcurrent": True}
    stops = [{"label": name, "method": "animate", "args": [[name], still]} for name in names]
    track = {"steps": stops, "active": begin, "currentvalue": {"prefix": f"{slider} "}}
    motions = {"play": [None, moving], "stop": [[None], still]}
    buttons = [{"label": label, "method": "animate", "args": args} for label, args in motions.items()]
    menu = {"type": "buttons", "direction": "right", "showactive": False, "buttons": buttons}
    figure.update_layout(
        sliders=[track | {"x": 0.22, "len": 0.78, "pad": {"t": 10}}],
        updatemenus=[menu | {"x": 0, "xanchor": "left", "y": 0, "yanchor": "top", "pad": {"t": 30}}],
    )
    return finished(figure, title, height=340)


def _heatmap(levels: np.ndarray, word: str, largest: float, with_scale: bool) -> go.Heatmap:
    return go.Heatmap(
        z=levels,
        zmin=0,
        zmax=100,
        colorscale="Viridis",
        showscale=with_scale,
        colorbar={"title": "% of the map's largest", "title_side": "right", "thickness": 12},
        hovertemplate=_hover(word, largest),
    )


def _hover(word: str, largest: float) -> str:
    return f"{word}: %{{z}} % of {largest:.2g}<extra></extra>"


def _shrunk(maps: xr.DataArray) -> xr.DataArray:
    rows, columns = (max(1, -(-maps.sizes[axis] // MAP_SIDE)) for axis in ("y", "x"))
    return maps.coarsen(y=rows, x=columns, boundary="trim").mean()
