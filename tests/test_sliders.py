"""Figures of maps with a slider: every position shows its own map, and the figure stays small."""

import base64
import io

import numpy as np
import PIL.Image
import plotly.graph_objects as go
import pytest
import xarray as xr
from figure_data import IMAGE, NAMES, maps

from seg4diff_tools.errors import InputError
from seg4diff_tools.plotting import sliders


@pytest.mark.parametrize("several", [True, False])
def test_map_slider(several):
    recorded = maps(branch=1, token=3, step=4)
    images = [PIL.Image.fromarray(IMAGE)] * 4 if several else IMAGE
    figure = sliders.map_slider(recorded, images, "step", names=["10", "20", "30", "40"])
    assert [type(trace) for trace in figure.data] == [go.Image, *[go.Heatmap] * 3]
    assert [frame.name for frame in figure.frames] == ["10", "20", "30", "40"]
    frame = figure.frames[2]
    assert frame.traces == tuple(range(4) if several else range(1, 4))
    one = recorded.sel(branch=0, token="tree", step=2).values
    assert (frame.data[-2].z == (100 * one / one.max()).round()).all()
    assert frame.data[-2].z.dtype == np.uint8
    picture = base64.b64decode(figure.data[0].source.split(",")[1])
    assert PIL.Image.open(io.BytesIO(picture)).size == (23, 29)


def test_map_slider_stays_small():
    large = xr.DataArray(
        np.random.default_rng(0).random((28, 3, 64, 64), "f4"), {"step": range(28)}, ("step", "token", "y", "x")
    )
    large = large.assign_coords(token=list(NAMES))
    image = PIL.Image.new("RGB", (1024, 1024))
    assert len(sliders.map_slider(large, image).to_json()) < 300_000
    assert sliders.map_slider(large, image).data[1].z.shape == (32, 32)


def test_map_slider_of_one_token_keeps_its_axes():
    assert len(sliders.map_slider(maps(layer=1, token=1), IMAGE, "layer").frames) == 1
    with pytest.raises(InputError, match="'step' for the slider"):
        sliders.map_slider(maps(layer=2, token=1), IMAGE, "step")
    with pytest.raises(InputError, match="4 names and images"):
        sliders.map_slider(maps(layer=4, token=1), [IMAGE] * 3, "layer")


def test_a_slider_begins_where_it_is_told():
    recorded = maps(layer=4, token=3)
    for start, names in ((2, None), (np.int64(2), None), ("third", ["first", "second", "third", "fourth"])):
        figure = sliders.map_slider(recorded, IMAGE, "layer", names=names, start=start)
        assert figure.layout.sliders[0].active == 2
        one = recorded.sel(layer=2, token="tree").values
        assert (figure.data[2].z == (100 * one / one.max()).round()).all()
    pictures = [np.full_like(IMAGE, shade) for shade in (0, 60, 120, 180)]
    figure = sliders.map_slider(recorded, pictures, "layer", start=3)
    assert figure.data[0].source == figure.frames[3].data[0].source != figure.frames[0].data[0].source


def test_a_slider_takes_whatever_segment_takes(tmp_path):
    PIL.Image.fromarray(IMAGE).save(tmp_path / "own.png")
    expected = sliders.map_slider(maps(layer=2, token=1), IMAGE, "layer").data[0].source
    for image in (PIL.Image.fromarray(IMAGE), tmp_path / "own.png", str(tmp_path / "own.png")):
        assert sliders.map_slider(maps(layer=2, token=1), image, "layer").data[0].source == expected
    assert sliders.map_slider(maps(layer=2, token=1), np.stack([IMAGE] * 2), "layer").data[0].source == expected
