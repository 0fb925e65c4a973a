"""Controls for JupyterLab that choose from recorded maps; they need the maps and the image only, not the model."""

import io
from functools import partial

import ipywidgets
import xarray as xr
from PIL import Image

from seg4diff_tools.errors import InputError
from seg4diff_tools.plots import Picture, overlay

# The order of the controls; words get a menu, numbers a slider.
ORDER = ("image", "branch", "layer", "step", "head", "token", "class")
SIDE = 384


class MapBrowser(ipywidgets.VBox):
    """A viewer for recorded maps, made by `browse`; a box like any other, to be put into an HBox or a tab.

    Attributes:
        controls: name of an axis (layer, step, head, token, ...) and the control that chooses from it. Axes of length 1
            have none.
        selection: what is chosen; `maps.sel(selection)` is the map that is shown.
    """

    def __init__(self, maps: xr.DataArray, image: Picture):
        leading = [dim for dim in maps.dims if dim not in ("y", "x")]
        if not {"y", "x"} <= set(maps.dims) or not all(maps.sizes.values()):
            raise InputError(f"expected maps with the axes y and x and nothing empty, got {dict(maps.sizes)}")
        # an axis without names of its own is numbered
        self._maps = maps.assign_coords({dim: range(maps.sizes[dim]) for dim in leading if dim not in maps.coords})
        self._image = image
        leading.sort(key=lambda dim: ORDER.index(dim) if dim in ORDER else len(ORDER))
        self.controls = {dim: _control(self._maps[dim]) for dim in leading if maps.sizes[dim] > 1}
        self._opacity = ipywidgets.FloatSlider(
            0.7, min=0, max=1, step=0.05, description="opacity", readout_format=".0%", continuous_update=True
        )
        self._picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(width=f"{SIDE}px"))
        self._range = ipywidgets.Label()
        for control in (*self.controls.values(), self._opacity):
            control.observe(self._draw, "value")
        super().__init__([*self.controls.values(), self._opacity, self._picture, self._range])
        self._draw()

    @property
    def selection(self) -> dict[str, object]:
        """Chosen value of every axis beside y and x."""
        single = {dim: self._maps[dim].values[0] for dim in self._maps.dims if self._maps.sizes[dim] == 1}
        single = {dim: value for dim, value in single.items() if dim not in ("y", "x")}
        return single | {dim: control.value for dim, control in self.controls.items()}

    def _draw(self, change: object = None) -> None:
        values = self._maps.sel(self.selection).transpose("y", "x").values
        content = io.BytesIO()
        Image.fromarray(overlay(self._image, values, opacity=self._opacity.value)).save(content, "PNG")
        self._picture.value = content.getvalue()
        self._range.value = f"dark {values.min():.3g}, bright {values.max():.3g}"


def browse(maps: xr.DataArray, image: Picture) -> MapBrowser:
    """Shows recorded maps over their image, with a control for every axis.

    Args:
        maps: axes y and x and any others, such as image, branch, step, layer, head, token: what
            `AttentionRecorder.maps` gives.
        image: the picture that the maps belong to.

    Returns:
        The viewer; the last line of a cell shows it.

    Raises:
        InputError: maps without y or x, or with an empty axis.

    Example: `viewer = browse(recorder.maps, scene.image)`, and from code `viewer.controls["layer"].value = 9`.
    """
    return MapBrowser(maps, image)


def _control(axis: xr.DataArray) -> ipywidgets.Widget:
    """A slider over numbers, a menu of words."""
    options = [(str(value), value) for value in axis.values.tolist()]
    style = {"description_width": "60px"}
    make = ipywidgets.Dropdown if axis.dtype.kind in "OUS" else partial(ipywidgets.SelectionSlider, readout=True)
    return make(options=options, description=str(axis.name), style=style)
