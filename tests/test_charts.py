"""Interactive figures of scores: what stands where, in which unit."""

import pandas as pd
import pytest
from figure_data import score_table

from seg4diff_tools import paper
from seg4diff_tools.errors import InputError
from seg4diff_tools.plotting import interactive


def test_curves_in_percent_and_in_order():
    table = score_table()
    figure = interactive.curves(table[table.steps_from_end == 8], "layer", ("mIoU", "pACC"), mark=2, title="layers")
    assert [line.name for line in figure.data] == ["mIoU", "pACC"]
    assert figure.data[0].x.tolist() == [0, 1, 2]
    assert figure.data[0].y.tolist() == [10, 20, 30]
    assert figure.layout.xaxis.title.text == "layer (from 0)"
    assert figure.layout.yaxis.title.text == "score (%)"
    assert len({(line.line.color, line.line.dash, line.marker.symbol) for line in figure.data}) == 2


def test_small_values_keep_their_digits():
    rows = pd.DataFrame({"layer": [0, 1], "divergence": [2.3456e-6, 1.1e-5]})
    assert interactive.curves(rows, "layer", "divergence", percent=False).data[0].y.tolist() == [2.346e-6, 1.1e-5]


def test_curves_by_group():
    table = score_table()
    figure = interactive.curves(table, "steps_from_end", "mIoU", by="layer", percent=False)
    assert sorted(line.name for line in figure.data) == ["0", "1", "2"]
    assert figure.layout.yaxis.title.text == "mIoU"
    with pytest.raises(InputError, match="columns layer, mACC"):
        interactive.curves(table, "layer", "mACC")


def test_curves_with_error_bars():
    rows = pd.DataFrame({"layer": [1, 0], "change": [-0.2, 0.1], "low": [-0.3, 0.05], "high": [0.0, 0.4]})
    figure = interactive.curves(rows, "layer", "change", interval=("low", "high"), percent=False)
    (line,) = figure.data
    assert line.y.tolist() == [0.1, -0.2]
    assert line.error_y.array.tolist() == pytest.approx([0.3, 0.2])
    assert line.error_y.arrayminus.tolist() == pytest.approx([0.05, 0.1])
    with pytest.raises(InputError, match="expected one score for an interval, got change, low"):
        interactive.curves(rows, "layer", ["change", "low"], interval=("low", "high"))


def test_score_map_frames_the_best_cell_of_each_score():
    table = score_table()
    figure = interactive.score_map(table, "layer", "steps_from_end", ["mIoU", "pACC"])
    assert figure.data[0].z[0].tolist() == pytest.approx([33.3, 66.7, 100])
    best = figure.layout.shapes[0]
    assert (best.x0, best.x1, best.y0, best.y1) == (1.5, 2.5, -0.5, 0.5)
    second = figure.layout.updatemenus[0].buttons[1]
    assert second.label == "pACC"
    assert second.args[0]["visible"] == [False, True]
    assert second.args[1]["shapes"][0]["x0"] == -0.5
    assert second.args[1]["shapes"][0]["y0"] == 2.5
    with pytest.raises(InputError, match="one row for each pair"):
        interactive.score_map(pd.concat([table, table]), "layer", "steps_from_end")


def test_bars_beside_the_paper():
    ours = pd.DataFrame({"normalize": ["softmax", "scores"], "mIoU": [0.5, 0.4], "model": "mini"})
    theirs = paper.table(5).rename(columns={"VOC": "mIoU"}).assign(model="SD3 medium")
    figure = interactive.bars(pd.concat([ours, theirs]), "normalize", by="model")
    assert [bar.name for bar in figure.data] == ["mini", "SD3 medium"]
    assert figure.data[0].y.tolist() == [50, 40]
    assert figure.data[1].y.tolist() == [83.2, 85.2, 89.0, 88.3]
    assert len(interactive.bars(ours, "normalize").data) == 1


def test_names_and_numbers_of_many_bars_do_not_meet():
    ways, by = ["k-means, three groups", "pads"], [str(i // 2) for i in range(22)]
    rows = pd.DataFrame({"way": ways * 11, "by": by, "mIoU": 0.5})
    figure = interactive.bars(rows, "way", by="by")
    assert {bar.textangle for bar in figure.data} == {-90}
    assert list(figure.layout.xaxis.ticktext) == ways
    figure = interactive.bars(pd.DataFrame({"way": [ways[0], *"abcdefgh"], "mIoU": 0.5}), "way")
    assert figure.data[0].textangle == 0
    assert figure.layout.xaxis.ticktext[0] == "k-means,<br>three groups"
    ways = pd.DataFrame({"way": list("abcdefghijkl"), "mIoU": 0.5})
    assert interactive.bars(ways, "way").layout.xaxis.ticktext is None


def test_bars_with_error_bars():
    table = pd.DataFrame({"loss": ["a", "b"], "mIoU": [0.5, 0.4], "deviation": [0.01, 0.023]})
    assert interactive.bars(table, "loss", spread="deviation").data[0].error_y.array.tolist() == [1, 2.3]
    with pytest.raises(InputError, match="seeds"):
        interactive.bars(table, "loss", spread="seeds")


def test_bars_with_intervals():
    table = pd.DataFrame({"method": ["a", "b"], "mIoU": [0.5, 0.4], "low": [0.48, 0.3], "high": [0.6, 0.41]})
    error = interactive.bars(table, "method", interval=("low", "high")).data[0].error_y
    assert error.array.tolist() == [10, 1]
    assert error.arrayminus.tolist() == [2, 10]


def test_intervals():
    table = pd.DataFrame(
        {"choice": ["a", "b"], "difference": [0.01, -0.2], "low": [-0.02, -0.25], "high": [0.05, -0.19]}
    )
    (points,) = interactive.intervals(table, "choice").data
    assert list(points.x) == [1, -20]
    assert list(points.y) == ["a", "b"]
    assert list(points.error_x.array) == [4, 1]
    assert list(points.error_x.arrayminus) == [3, 5]
    with pytest.raises(InputError, match="most"):
        interactive.intervals(table, "choice", high="most")


def test_scatter():
    table = pd.DataFrame({"layer": [0, 1, 2], "norm": [1.5, 3.0, 2.0], "mIoU": [0.1, 0.5, 0.25]})
    (points,) = interactive.scatter(table, "norm", title="norms").data
    assert list(points.x) == [1.5, 3.0, 2.0]
    assert list(points.y) == [10.0, 50.0, 25.0]
    assert list(points.text) == ["0", "1", "2"]
    with pytest.raises(InputError, match="depth"):
        interactive.scatter(table, "depth")


def test_written_values_are_rounded_once():
    table = pd.DataFrame({"method": ["a", "b"], "layer": [0, 1], "mIoU": [0.763496, 0.494961]})
    (drawn,) = interactive.bars(table, "method").data
    assert list(drawn.text) == ["76.3", "49.5"]
    (cells,) = interactive.score_map(table, "layer", "method").data
    # 49.4961 is 49, though 49.5 would be 50
    assert [list(row) for row in cells.text] == [["76", ""], ["", "49"]]
