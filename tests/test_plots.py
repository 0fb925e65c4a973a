from io import BytesIO

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
from figure_data import IMAGE, NAMES, maps, score_table
from matplotlib.figure import Figure

from seg4diff_tools import paper, plotting
from seg4diff_tools.datasets import IGNORE
from seg4diff_tools.errors import InputError


def labels():
    label_map = np.random.default_rng(2).integers(0, 3, (29, 23))
    label_map[:3] = IGNORE
    return label_map


def test_overlay_has_the_colors_of_viridis():
    black = np.zeros((2, 2, 3), np.uint8)
    picture = plotting.overlay(black, np.array([[0.0, 1.0], [1.0, 0.0]]), opacity=1.0)
    assert picture[0, 0].tolist() == picture[1, 1].tolist() == [68, 1, 84]
    assert picture[0, 1].tolist() == [253, 231, 37]
    assert (
        plotting.overlay(black, np.array([[5.0, 6.0], [6.0, 5.0]]), limits=(6.0, 7.0), opacity=1.0) == [68, 1, 84]
    ).all()


def test_overlay_of_a_map_with_a_value_that_is_not_finite():
    values = np.array([[0.0, 1.0, np.inf]])
    assert np.isfinite(plotting.overlay(IMAGE, values)).all()
    with pytest.raises(InputError, match=r"expected limits as two finite numbers, got \(0\.0, inf\)"):
        plotting.overlay(IMAGE, values, limits=(0.0, np.inf))


def test_overlay_of_constant_map_and_without_opacity():
    assert np.isfinite(plotting.overlay(IMAGE, np.full((5, 7), 0.3))).all()
    grey = plotting.overlay(PIL.Image.fromarray(IMAGE), np.eye(4), opacity=0.0)
    assert (grey == IMAGE.mean(-1, keepdims=True).round()).all()


def test_label_overlay_leaves_ignored_pixels_grey():
    picture = plotting.label_overlay(IMAGE, labels(), opacity=1.0)
    assert (picture[:3] == IMAGE[:3].mean(-1, keepdims=True).round()).all()
    assert (picture[3:] == plotting.class_colors(3)[labels()[3:]]).all()
    assert (plotting.label_overlay(IMAGE, np.full((29, 23), IGNORE), opacity=1.0)[..., 0] == picture[..., 0]).any()


def test_label_overlay_refuses_another_size():
    with pytest.raises(InputError, match=r"size \(29, 23\), got \(28, 23\)"):
        plotting.label_overlay(IMAGE, labels()[1:])


def test_class_colors_differ_and_repeat():
    colors = plotting.class_colors(50)
    assert len({tuple(color) for color in colors[:24]}) == 24
    assert (colors[24:48] == colors[:24]).all()


def test_map_strip_has_a_panel_for_each_word():
    figure = plotting.map_strip(IMAGE, maps(image=1, step=1, layer=1, token=3), columns=3, title="words")
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["image", "cat", "tree", "grass", "", ""]
    assert [bool(axis.images) for axis in figure.axes] == [True] * 4 + [False] * 2
    assert plotting.map_strip(IMAGE, maps(layer=1, token=1)).axes[1].get_title() == "cat"


def test_map_strip_takes_arrays_and_numbers_layers():
    assert [axis.get_title() for axis in plotting.map_strip(IMAGE, maps(layer=2)).axes] == [
        "image",
        "layer 0",
        "layer 1",
    ]
    assert plotting.map_strip(IMAGE, maps(layer=2).values).axes[2].get_title() == "1"


def test_map_grid_has_rows_and_columns():
    figure = plotting.map_grid(IMAGE, maps(layer=2, token=1, head=3))
    assert [axis.get_ylabel() for axis in figure.axes[::3]] == ["layer 0", "layer 1"]
    assert [axis.get_title() for axis in figure.axes[:3]] == ["head 0", "head 1", "head 2"]


def test_maps_with_other_axes_are_refused():
    with pytest.raises(InputError, match=r"1 axes beside y and x, got .*layer.*select"):
        plotting.map_strip(IMAGE, maps(layer=2, token=3))
    with pytest.raises(InputError, match="2 axes"):
        plotting.map_grid(IMAGE, maps(token=3))
    with pytest.raises(InputError, match="axes y and x"):
        plotting.map_strip(IMAGE, maps(layer=2).rename(y="row"))


def test_label_maps_name_only_what_is_shown():
    shown = {"truth": np.zeros((29, 23), int), "found": np.full((29, 23), 2)}
    figure = plotting.label_maps(IMAGE, shown, NAMES)
    assert [text.get_text() for text in figure.axes[-1].get_legend().get_texts()] == ["cat", "grass"]
    with pytest.raises(InputError, match=r"labels below 2.*got \[2\]"):
        plotting.label_maps(IMAGE, shown, NAMES[:2])


def test_a_legend_of_many_classes_leaves_room_for_the_pictures():
    found = np.minimum(np.arange(29)[:, None] * 23 + np.arange(23), 39)
    found[-1, 0] = 7
    figure = plotting.label_maps(IMAGE, {"found": found}, [f"group {number}" for number in range(41)])
    listed = [text.get_text() for text in figure.axes[-1].get_legend().get_texts()]
    # all but the last group have a pixel, the eighth has two; the largest ones are listed in the order of classes
    assert listed == [*(f"group {number}" for number in range(9)), "group 39", "and 30 more"]
    figure.savefig(BytesIO())
    assert figure.axes[-1].get_window_extent().width > 100


def test_case_gallery():
    cases = [{"truth": labels(), "found": labels()}] * 2
    figure = plotting.case_gallery([IMAGE] * 2, cases, [NAMES] * 2, ["90 %", "10 %"], title="cases")
    assert len(figure.axes) == 6
    assert figure.axes[3].get_title() == "10 %"
    with pytest.raises(InputError, match="as many images"):
        plotting.case_gallery([IMAGE], cases, [NAMES] * 2, ["90 %", "10 %"])


def test_score_histogram():
    table = score_table()
    figure = plotting.score_histogram(table.assign(split=["a", "b"] * 6), by="split")
    assert isinstance(figure, Figure)
    assert figure.axes[0].get_xlabel() == "mIoU of an image (%)"
    with pytest.raises(InputError, match="columns mACC; got 12 rows"):
        plotting.score_histogram(table, "mACC")


def test_paper_tables():
    first = paper.table(1).set_index(["model", "backbone", "trained_on"])
    assert first.loc[("Seg4Diff", "SD3", ""), "VOC20"] == 0.892
    assert paper.table(2).query("model == 'DiffCut'")["PC59"].item() == 0.541
    assert paper.table(3)["mean"].tolist() == [0.271437, 0.272447, 0.27276]
    assert paper.table(4).set_index("trained_on").loc["COCO", "2D"] == 0.2301
    assert paper.table(5).set_index("normalize")["Object"].idxmax() == "softmax"
    with pytest.raises(InputError, match="expected table 1, 2, 3, 4, 5"):
        paper.table(6)


def test_picture_grid():
    pictures = [np.full((8, 9, 3), shade, np.uint8) for shade in (10, 90, 200)]
    figure = plotting.picture_grid(pictures, ["a", "b", "a label that is longer than one line"], columns=2, title="all")
    shown = [axis for axis in figure.axes if axis.images]
    assert len(figure.axes) == 4
    assert len(shown) == 3
    assert np.array_equal(shown[2].images[0].get_array(), pictures[2])
    assert "\n" in shown[2].get_title()
    with pytest.raises(InputError, match="got 1 for 3 pictures"):
        plotting.picture_grid(pictures, ["a"])


@pytest.mark.parametrize("columns", [4, 7, 8])
def test_no_figure_is_wider_than_a_page(columns):
    """A wider one would be shrunk by the page, and its words with it."""
    many = [IMAGE] * columns
    shown = {str(number): labels() for number in range(columns - 1)}
    widths = [
        plotting.map_strip(IMAGE, np.ones((columns, 5, 7))).get_figwidth(),
        plotting.map_grid(IMAGE, np.ones((2, columns, 5, 7))).get_figwidth(),
        plotting.picture_grid(many, ["a label"] * columns, columns=columns).get_figwidth(),
        plotting.case_gallery([IMAGE], [shown], [NAMES], ["50 %"]).get_figwidth(),
    ]
    assert max(widths) < 7.15 if columns < 8 else max(widths) < 7.8  # a legend beside eight pictures
    assert plotting.picture_grid(many, ["a"] * columns, columns=columns, side=0.8).get_figwidth() < 0.85 * columns


def test_figures_take_whatever_segment_takes(tmp_path):
    PIL.Image.fromarray(IMAGE).save(tmp_path / "own.png")
    tensor = torch.from_numpy(IMAGE).permute(2, 0, 1) / 255
    kinds = [IMAGE, PIL.Image.fromarray(IMAGE), tmp_path / "own.png", str(tmp_path / "own.png"), tensor]
    shown = {"found": torch.from_numpy(labels())}
    for image in kinds:
        figures = [
            plotting.label_maps(image, shown, NAMES),
            plotting.map_strip(image, torch.rand(2, 5, 7)),
            plotting.map_grid(image, np.ones((2, 3, 5, 7))),
            plotting.picture_grid([image], ["own"]),
            plotting.case_gallery([image], [shown], [NAMES], ["50 %"]),
        ]
        for figure in figures[:2] + figures[3:]:
            assert np.array_equal(figure.axes[0].images[0].get_array(), IMAGE)
        assert np.array_equal(plotting.label_overlay(image, labels().tolist()), plotting.label_overlay(IMAGE, labels()))
        assert np.array_equal(plotting.overlay(image, torch.eye(4)), plotting.overlay(IMAGE, np.eye(4)))


def test_missing_values_of_a_map_leave_the_others_as_they_are():
    values = np.array([[0.0, 1.0], [1.0, np.nan]])
    picture = plotting.overlay(np.zeros((2, 2, 3), np.uint8), values, opacity=1.0)
    assert picture[0, 0].tolist() == [68, 1, 84]
    assert picture[0, 1].tolist() == [253, 231, 37]


def test_confusion_in_percent_of_the_true_class():
    counts = np.array([[30, 10, 0], [5, 5, 10], [0, 0, 0]])
    figure = plotting.confusion(counts, ["cat", "dog", "sky"], title="taken for")
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.texts] == ["75", "25", "0", "25", "25", "50"]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["cat", "dog", "sky"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("found class", "true class")
    assert axis.get_title(loc="left") == "taken for"
    table = pd.DataFrame(counts[:2, :2], index=["cat", "dog"], columns=["cat", "dog"])
    assert [text.get_text() for text in plotting.confusion(table, percent=False).axes[0].texts] == [
        "30",
        "10",
        "5",
        "5",
    ]
