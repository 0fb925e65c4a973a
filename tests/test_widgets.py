import io

import ipywidgets
import numpy as np
import PIL.Image
import pytest
import xarray as xr

from seg4diff_tools import widgets
from seg4diff_tools.errors import InputError
from seg4diff_tools.plots import overlay

IMAGE = np.random.default_rng(0).integers(0, 256, (29, 23, 3), dtype=np.uint8)


@pytest.fixture
def maps():
    values = np.random.default_rng(1).random((1, 1, 3, 2, 5, 2, 7, 11), dtype=np.float32)
    coords = {"image": [0], "branch": ["cond"], "step": [4, 8, 20], "layer": [3, 9], "token": ["cat", "tree"]}
    return xr.DataArray(values, coords, ("image", "branch", "step", "layer", "head", "token", "y", "x"))


def shown(viewer):
    (picture,) = (child for child in viewer.children if isinstance(child, ipywidgets.Image))
    return np.asarray(PIL.Image.open(io.BytesIO(picture.value)))


def test_every_axis_has_a_labelled_control(maps):
    viewer = widgets.browse(maps, IMAGE)
    assert list(viewer.controls) == ["layer", "step", "head", "token"]
    assert [control.description for control in viewer.controls.values()] == list(viewer.controls)
    kinds = [type(control) for control in viewer.controls.values()]
    assert kinds == [ipywidgets.SelectionSlider] * 3 + [ipywidgets.Dropdown]
    assert viewer.selection == {"image": 0, "branch": "cond", "layer": 3, "step": 4, "head": 0, "token": "cat"}


def test_controls_choose_the_map(maps):
    viewer = widgets.browse(maps, IMAGE)
    viewer.controls["layer"].value = 9
    viewer.controls["step"].value = 20
    viewer.controls["head"].value = 4
    viewer.controls["token"].value = "tree"
    expected = maps.values[0, 0, 2, 1, 4, 1]
    assert (shown(viewer) == overlay(IMAGE, expected)).all()
    assert viewer.children[-1].value == f"dark {expected.min():.3g}, bright {expected.max():.3g}"


def test_opacity_leaves_the_image(maps):
    viewer = widgets.browse(maps.isel(step=0), PIL.Image.fromarray(IMAGE))
    (opacity,) = (
        child for child in viewer.children if child not in viewer.controls.values() and hasattr(child, "step")
    )
    opacity.value = 0.0
    assert (shown(viewer) == IMAGE.mean(-1, keepdims=True).round()).all()


def test_viewers_stand_side_by_side(maps):
    box = ipywidgets.HBox([widgets.browse(maps, IMAGE), widgets.browse(maps.isel(token=0), IMAGE)])
    assert "token" not in box.children[1].controls


def test_a_single_map_has_no_controls(maps):
    viewer = widgets.browse(maps.isel(step=0, layer=0, head=0, token=0), IMAGE)
    assert viewer.controls == {}
    assert shown(viewer).shape == IMAGE.shape


def test_other_arrays_are_refused(maps):
    with pytest.raises(InputError, match="axes y and x"):
        widgets.browse(maps.isel(x=0), IMAGE)
    with pytest.raises(InputError, match="nothing empty"):
        widgets.browse(maps.isel(token=slice(0)), IMAGE)
