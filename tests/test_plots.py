import base64
import io

import numpy as np
import pandas as pd
import PIL.Image
import plotly.graph_objects as go
import pytest
import xarray as xr
from matplotlib.figure import Figure

from seg4diff_tools import charts, paper, plots
from seg4diff_tools.errors import InputError

IMAGE = np.random.default_rng(0).integers(0, 256, (29, 23, 3), dtype=np.uint8)
NAMES = ("cat", "tree", "grass")


def maps(**sizes):
    """Maps of 5 x 7 cells with a coordinate along every axis."""
    values = np.random.default_rng(1).random((*sizes.values(), 5, 7), dtype=np.float32)
    words = ("cat", "tree", "grass", "a", "on")
    coords = {name: list(words[:size]) if name == "token" else range(size) for name, size in sizes.items()}
    return xr.DataArray(values, coords, (*sizes, "y", "x"))


def labels():
    label_map = np.random.default_rng(2).integers(0, 3, (29, 23))
    label_map[:3] = plots.IGNORE
    return label_map


@pytest.fixture
def table():
    layers, steps = np.meshgrid(range(3), [1, 8, 20, 28])
    score = (layers.ravel() + 1) / (steps.ravel() + 2)
    columns = {"layer": layers.ravel(), "steps_from_end": steps.ravel(), "mIoU": score, "pACC": 1 - score}
    return pd.DataFrame(columns).sample(frac=1, random_state=0)


def test_overlay_has_the_colours_of_viridis():
    black = np.zeros((2, 2, 3), np.uint8)
    picture = plots.overlay(black, np.array([[0.0, 1.0], [1.0, 0.0]]), opacity=1.0)
    assert picture[0, 0].tolist() == picture[1, 1].tolist() == [68, 1, 84]
    assert picture[0, 1].tolist() == [253, 231, 37]
    assert (
        plots.overlay(black, np.array([[5.0, 6.0], [6.0, 5.0]]), limits=(6.0, 7.0), opacity=1.0) == [68, 1, 84]
    ).all()


def test_overlay_of_constant_map_and_without_opacity():
    assert np.isfinite(plots.overlay(IMAGE, np.full((5, 7), 0.3))).all()
    grey = plots.overlay(PIL.Image.fromarray(IMAGE), np.eye(4), opacity=0.0)
    assert (grey == IMAGE.mean(-1, keepdims=True).round()).all()


def test_label_overlay_leaves_ignored_pixels_grey():
    picture = plots.label_overlay(IMAGE, labels(), opacity=1.0)
    assert (picture[:3] == IMAGE[:3].mean(-1, keepdims=True).round()).all()
    assert (picture[3:] == plots.class_colours(3)[labels()[3:]]).all()
    assert (plots.label_overlay(IMAGE, np.full((29, 23), plots.IGNORE), opacity=1.0)[..., 0] == picture[..., 0]).any()


def test_label_overlay_refuses_another_size():
    with pytest.raises(InputError, match=r"size \(29, 23\), got \(28, 23\)"):
        plots.label_overlay(IMAGE, labels()[1:])


def test_class_colours_differ_and_repeat():
    colours = plots.class_colours(50)
    assert len({tuple(colour) for colour in colours[:24]}) == 24
    assert (colours[24:48] == colours[:24]).all()


def test_map_strip_has_a_panel_for_each_word():
    figure = plots.map_strip(IMAGE, maps(image=1, step=1, layer=1, token=3), columns=3, title="words")
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["image", "cat", "tree", "grass", "", ""]
    assert [bool(axis.images) for axis in figure.axes] == [True] * 4 + [False] * 2
    assert plots.map_strip(IMAGE, maps(layer=1, token=1)).axes[1].get_title() == "cat"


def test_map_strip_takes_arrays_and_numbers_layers():
    assert [axis.get_title() for axis in plots.map_strip(IMAGE, maps(layer=2)).axes] == ["image", "layer 0", "layer 1"]
    assert plots.map_strip(IMAGE, maps(layer=2).values).axes[2].get_title() == "1"


def test_map_grid_has_rows_and_columns():
    figure = plots.map_grid(IMAGE, maps(layer=2, token=1, head=3))
    assert [axis.get_ylabel() for axis in figure.axes[::3]] == ["layer 0", "layer 1"]
    assert [axis.get_title() for axis in figure.axes[:3]] == ["head 0", "head 1", "head 2"]


def test_maps_with_other_axes_are_refused():
    with pytest.raises(InputError, match="1 axes beside y and x, got .*layer.*choose"):
        plots.map_strip(IMAGE, maps(layer=2, token=3))
    with pytest.raises(InputError, match="2 axes"):
        plots.map_grid(IMAGE, maps(token=3))
    with pytest.raises(InputError, match="axes y and x"):
        plots.map_strip(IMAGE, maps(layer=2).rename(y="row"))


def test_label_maps_name_only_what_is_shown():
    shown = {"truth": np.zeros((29, 23), int), "found": np.full((29, 23), 2)}
    figure = plots.label_maps(IMAGE, shown, NAMES)
    assert [text.get_text() for text in figure.axes[-1].get_legend().get_texts()] == ["cat", "grass"]
    with pytest.raises(InputError, match=r"labels below 2.*got \[2\]"):
        plots.label_maps(IMAGE, shown, NAMES[:2])


def test_case_gallery(table):
    cases = [{"truth": labels(), "found": labels()}] * 2
    figure = plots.case_gallery([IMAGE] * 2, cases, [NAMES] * 2, ["90 %", "10 %"], title="cases")
    assert len(figure.axes) == 6 and figure.axes[3].get_title() == "10 %"
    with pytest.raises(InputError, match="as many images"):
        plots.case_gallery([IMAGE], cases, [NAMES] * 2, ["90 %", "10 %"])


def test_score_histogram(table):
    figure = plots.score_histogram(table.assign(split=["a", "b"] * 6), by="split")
    assert isinstance(figure, Figure) and figure.axes[0].get_xlabel() == "mIoU of an image (%)"
    with pytest.raises(InputError, match="columns mACC; got 12 rows"):
        plots.score_histogram(table, "mACC")


def test_curves_in_percent_and_in_order(table):
    figure = charts.curves(table[table.steps_from_end == 8], "layer", ("mIoU", "pACC"), mark=2, title="layers")
    assert [line.name for line in figure.data] == ["mIoU", "pACC"]
    assert figure.data[0].x.tolist() == [0, 1, 2] and figure.data[0].y.tolist() == [10, 20, 30]
    assert figure.layout.xaxis.title.text == "layer (from 0)" and figure.layout.yaxis.title.text == "score (%)"
    assert len({(line.line.color, line.line.dash, line.marker.symbol) for line in figure.data}) == 2


def test_curves_by_group(table):
    figure = charts.curves(table, "steps_from_end", "mIoU", by="layer", percent=False)
    assert sorted(line.name for line in figure.data) == ["0", "1", "2"]
    assert figure.layout.yaxis.title.text == "mIoU"
    with pytest.raises(InputError, match="columns layer, mACC"):
        charts.curves(table, "layer", "mACC")


def test_curves_with_error_bars():
    rows = pd.DataFrame({"layer": [1, 0], "change": [-0.2, 0.1], "low": [-0.3, 0.05], "high": [0.0, 0.4]})
    figure = charts.curves(rows, "layer", "change", interval=("low", "high"), percent=False)
    (line,) = figure.data
    assert line.y.tolist() == [0.1, -0.2]
    assert line.error_y.array.tolist() == pytest.approx([0.3, 0.2])
    assert line.error_y.arrayminus.tolist() == pytest.approx([0.05, 0.1])
    with pytest.raises(InputError, match="expected one score for an interval, got change, low"):
        charts.curves(rows, "layer", ["change", "low"], interval=("low", "high"))


def test_score_map_frames_the_best_cell_of_each_score(table):
    figure = charts.score_map(table, "layer", "steps_from_end", ["mIoU", "pACC"])
    assert figure.data[0].z[0].tolist() == pytest.approx([33.3, 66.7, 100])
    best = figure.layout.shapes[0]
    assert (best.x0, best.x1, best.y0, best.y1) == (1.5, 2.5, -0.5, 0.5)
    second = figure.layout.updatemenus[0].buttons[1]
    assert second.label == "pACC" and second.args[0]["visible"] == [False, True]
    assert second.args[1]["shapes"][0]["x0"] == -0.5 and second.args[1]["shapes"][0]["y0"] == 2.5
    with pytest.raises(InputError, match="one row for each pair"):
        charts.score_map(pd.concat([table, table]), "layer", "steps_from_end")


def test_bars_beside_the_paper():
    ours = pd.DataFrame({"normalise": ["softmax", "scores"], "mIoU": [0.5, 0.4], "model": "mini"})
    theirs = paper.table(5).rename(columns={"VOC": "mIoU"}).assign(model="SD3 medium")
    figure = charts.bars(pd.concat([ours, theirs]), "normalise", by="model")
    assert [bar.name for bar in figure.data] == ["mini", "SD3 medium"]
    assert figure.data[0].y.tolist() == [50, 40] and figure.data[1].y.tolist() == [83.2, 85.2, 89.0, 88.3]
    assert len(charts.bars(ours, "normalise").data) == 1


def test_bars_with_error_bars():
    table = pd.DataFrame({"loss": ["a", "b"], "mIoU": [0.5, 0.4], "deviation": [0.01, 0.023]})
    assert charts.bars(table, "loss", spread="deviation").data[0].error_y.array.tolist() == [1, 2.3]
    with pytest.raises(InputError, match="seeds"):
        charts.bars(table, "loss", spread="seeds")


def test_intervals():
    table = pd.DataFrame(
        {"choice": ["a", "b"], "difference": [0.01, -0.2], "low": [-0.02, -0.25], "high": [0.05, -0.19]}
    )
    (points,) = charts.intervals(table, "choice").data
    assert list(points.x) == [1, -20] and list(points.y) == ["a", "b"]
    assert list(points.error_x.array) == [4, 1] and list(points.error_x.arrayminus) == [3, 5]
    with pytest.raises(InputError, match="most"):
        charts.intervals(table, "choice", high="most")


@pytest.mark.parametrize("several", [True, False])
def test_map_slider(several):
    recorded = maps(branch=1, token=3, step=4)
    images = [PIL.Image.fromarray(IMAGE)] * 4 if several else IMAGE
    figure = charts.map_slider(recorded, images, "step", names=["10", "20", "30", "40"])
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
    large = xr.DataArray(np.random.rand(28, 3, 64, 64).astype("f4"), {"step": range(28)}, ("step", "token", "y", "x"))
    large = large.assign_coords(token=list(NAMES))
    image = PIL.Image.new("RGB", (1024, 1024))
    assert len(charts.map_slider(large, image).to_json()) < 300_000
    assert charts.map_slider(large, image).data[1].z.shape == (32, 32)


def test_map_slider_of_one_token_keeps_its_axes():
    assert len(charts.map_slider(maps(layer=1, token=1), IMAGE, "layer").frames) == 1
    with pytest.raises(InputError, match="'step' for the slider"):
        charts.map_slider(maps(layer=2, token=1), IMAGE, "step")
    with pytest.raises(InputError, match="4 names and images"):
        charts.map_slider(maps(layer=4, token=1), [IMAGE] * 3, "layer")


def test_paper_tables():
    first = paper.table(1).set_index(["model", "backbone", "trained_on"])
    assert first.loc[("Seg4Diff", "SD3", ""), "VOC20"] == 0.892
    assert paper.table(2).query("model == 'DiffCut'")["PC59"].item() == 0.541
    assert paper.table(3)["mean"].tolist() == [0.271437, 0.272447, 0.27276]
    assert paper.table(4).set_index("trained_on").loc["COCO", "2D"] == 0.2301
    assert paper.table(5).set_index("normalise")["Object"].idxmax() == "softmax"
    with pytest.raises(InputError, match="expected table 1, 2, 3, 4, 5"):
        paper.table(6)


def test_picture_grid():
    pictures = [np.full((8, 9, 3), shade, np.uint8) for shade in (10, 90, 200)]
    figure = plots.picture_grid(pictures, ["a", "b", "a label that is longer than one line"], columns=2, title="all")
    shown = [axis for axis in figure.axes if axis.images]
    assert len(figure.axes) == 4 and len(shown) == 3
    assert np.array_equal(shown[2].images[0].get_array(), pictures[2])
    assert "\n" in shown[2].get_title()
    with pytest.raises(InputError, match="got 1 for 3 pictures"):
        plots.picture_grid(pictures, ["a"])


def test_scatter():
    table = pd.DataFrame({"layer": [0, 1, 2], "norm": [1.5, 3.0, 2.0], "mIoU": [0.1, 0.5, 0.25]})
    (points,) = charts.scatter(table, "norm", title="norms").data
    assert list(points.x) == [1.5, 3.0, 2.0] and list(points.y) == [10.0, 50.0, 25.0]
    assert list(points.text) == ["0", "1", "2"]
    with pytest.raises(InputError, match="depth"):
        charts.scatter(table, "depth")
