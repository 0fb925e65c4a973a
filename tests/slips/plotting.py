"""Slips around figures."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from seg4diff_tools import plotting as typed

# untyped, as slips are wrong types
plotting: Any = typed

IMAGE = np.zeros((8, 6, 3), dtype=np.uint8)
LABELS = np.zeros((8, 6), dtype=np.int64)
MAPS = xr.DataArray(np.ones((2, 3, 4, 4)), {"layer": [3, 4], "token": list("abc")}, ("layer", "token", "y", "x"))
TABLE = pd.DataFrame({"layer": [0, 1], "mIoU": [0.1, 0.2], "method": ["a", "b"], "empty": [np.nan, np.nan]}).assign(
    low=0.0, high=0.3
)

SLIPS: list[tuple[str, Callable[[Any], Any], str]] = [
    ("image-path", lambda b: plotting.label_maps("nowhere.jpg", {"a": LABELS}, ["cat"]), "no image file 'nowhere.jpg'"),
    ("image-float", lambda b: plotting.map_strip(IMAGE / 255, MAPS[0]), "a uint8 array .*got float64 of shape"),
    (
        "labels-bare",
        lambda b: plotting.label_maps(IMAGE, LABELS, ["cat"]),
        "label_maps as a dictionary .*ndarray: pass",
    ),
    (
        "labels-none",
        lambda b: plotting.label_maps(IMAGE, {}, ["cat"]),
        "label_maps as a dictionary from headings to at least one",
    ),
    ("labels-float", lambda b: plotting.label_overlay(IMAGE, LABELS * 0.5), r"integers \[y x\], got float64.*: pass"),
    ("labels-size", lambda b: plotting.label_overlay(IMAGE, LABELS.T), r"image's size \(8, 6\), got \(6, 8\): pass"),
    ("labels-minus", lambda b: plotting.label_overlay(IMAGE, LABELS - 1), "labels from 0, got -1: use 255"),
    (
        "labels-names",
        lambda b: plotting.label_maps(IMAGE, {"a": LABELS + 3}, ["cat"]),
        r"below 1, .*got \[3\]: pass all",
    ),
    ("maps-text", lambda b: plotting.map_strip(IMAGE, "cat"), r"numbers \[y x\], got str: pass an array"),
    ("maps-axes", lambda b: plotting.map_strip(IMAGE, MAPS), "maps with 1 axes beside y and x, got .*: select"),
    ("maps-grid", lambda b: plotting.map_grid(IMAGE, MAPS[0]), "maps with 2 axes beside y and x, got .*: select"),
    ("maps-flat", lambda b: plotting.overlay(IMAGE, np.ones(4)), r"numbers \[y x\], .*got shape \(4,\): select"),
    ("maps-nan", lambda b: plotting.overlay(IMAGE, np.full((4, 4), np.nan)), "some of them finite, got shape"),
    (
        "opacity",
        lambda b: plotting.map_strip(IMAGE, MAPS[0], opacity=70),
        "opacity, a number from 0 to 1, got 70: pass",
    ),
    ("columns", lambda b: plotting.map_strip(IMAGE, MAPS[0], columns=0), "columns 1 or more, got 0: choose"),
    (
        "grid-labels",
        lambda b: plotting.picture_grid([IMAGE], ["a", "b"]),
        "one label for each picture, got 2 for 1 pictures: pass",
    ),
    ("table-list", lambda b: plotting.curves([1, 2], "layer", "mIoU"), "a table as a pandas.DataFrame, got list: pass"),
    ("table-column", lambda b: plotting.curves(TABLE, "layer", "miou"), "columns layer, miou; got 2 rows .*: name"),
    ("table-empty", lambda b: plotting.bars(TABLE[:0], "method"), "a table with rows .*; got 0 rows"),
    ("table-text", lambda b: plotting.bars(TABLE, "layer", "method"), "numbers in the column method, got 'a': choose"),
    ("curves-number", lambda b: plotting.curves(TABLE, "layer", 3), "y as names of columns, got 3: pass y='mIoU'"),
    ("curves-none", lambda b: plotting.curves(TABLE, "layer", []), r"y as names of columns, got \[\]: pass y="),
    ("interval", lambda b: plotting.bars(TABLE, "method", interval="low"), "interval as two columns, got 'low': pass"),
    ("score-map-empty", lambda b: plotting.score_map(TABLE, "layer", "method", "empty"), "values in the column empty"),
    ("slider-axis", lambda b: plotting.map_slider(MAPS, IMAGE), "an axis 'step' for the slider, got .*layer.*: pass"),
    (
        "slider-start",
        lambda b: plotting.map_slider(MAPS, IMAGE, "layer", start=9),
        "start as a layer of 3, 4, got 9: ch",
    ),
    (
        "slider-images",
        lambda b: plotting.map_slider(MAPS, [IMAGE] * 3, "layer"),
        "2 names and images, .*got 2 .* 3 images",
    ),
    (
        "confusion-names",
        lambda b: plotting.confusion(np.eye(2)),
        "class_names for the rows of an array, got None: pass",
    ),
    (
        "confusion-size",
        lambda b: plotting.confusion(np.eye(2), ["a"]),
        r"each of 1 class names, got shape \(2, 2\): pass",
    ),
    ("confusion-text", lambda b: plotting.confusion(np.eye(2), "ab"), "class_names as a list of names, got 'ab': pass"),
    ("cc-neg", lambda b: plotting.class_colors(-1), "count 0 or more, got -1: choose one"),
    ("cc-f", lambda b: plotting.class_colors(2.5), r"count, a whole number 0 or more, got 2\.5: pass count=0"),
    ("cc-list", lambda b: plotting.class_colors(["a"]), r"count, a whole number 0 or more, got \['a'\]: pass count=0"),
    ("cc-none", lambda b: plotting.class_colors(None), "count, a whole number 0 or more, got None: pass count=0"),
    (
        "ov-limits",
        lambda b: plotting.overlay(IMAGE, np.ones((4, 4)), limits=3),
        r"limits as two finite numbers, got 3: pass limits=\(0\.0,",
    ),
    (
        "ov-limits1",
        lambda b: plotting.overlay(IMAGE, np.ones((4, 4)), limits=(1,)),
        r"limits as two finite numbers, got \(1,\): pass limits=\(0\.0,",
    ),
    (
        "ov-limits-t",
        lambda b: plotting.overlay(IMAGE, np.ones((4, 4)), limits=("a", "b")),
        r"limits as two finite numbers, got \('a', 'b'\): pass",
    ),
    (
        "ov-limits-nan",
        lambda b: plotting.overlay(IMAGE, np.ones((4, 4)), limits=(np.nan, 1)),
        r"limits as two finite numbers, got \(nan, 1\): pass",
    ),
    (
        "ov-op",
        lambda b: plotting.overlay(IMAGE, np.ones((4, 4)), opacity="x"),
        "opacity, a number from 0 to 1, got 'x': pass a",
    ),
    (
        "ov-op-nan",
        lambda b: plotting.overlay(IMAGE, np.ones((4, 4)), opacity=float("nan")),
        "opacity, a number from 0 to 1, got nan: pass a",
    ),
    (
        "ov-op-none",
        lambda b: plotting.overlay(IMAGE, np.ones((4, 4)), opacity=None),
        "opacity, a number from 0 to 1, got None: pass a",
    ),
    (
        "ov-op-true",
        lambda b: plotting.overlay(IMAGE, np.ones((4, 4)), opacity=True),
        "opacity, a number from 0 to 1, got True: pass a",
    ),
    ("ov-img", lambda b: plotting.overlay(None, np.ones((4, 4))), "an image, got NoneType: pass a"),
    (
        "ov-none",
        lambda b: plotting.overlay(IMAGE, None),
        r"numbers \[y x\], some of them finite, got shape \(\): select one",
    ),
    (
        "ov-3d",
        lambda b: plotting.overlay(IMAGE, np.ones((2, 4, 4))),
        r"numbers \[y x\], some of them finite, got shape \(2, 4, 4\): select one",
    ),
    (
        "ov-empty",
        lambda b: plotting.overlay(IMAGE, np.ones((0, 4))),
        r"numbers \[y x\], some of them finite, got shape \(0, 4\): select one",
    ),
    ("ov-imgs", lambda b: plotting.overlay([IMAGE], np.ones((4, 4))), "an image, got list: pass a"),
    (
        "lo-op",
        lambda b: plotting.label_overlay(IMAGE, LABELS, opacity=2),
        "opacity, a number from 0 to 1, got 2: pass a",
    ),
    (
        "lo-none",
        lambda b: plotting.label_overlay(IMAGE, None),
        r"a label map of integers \[y x\], got object of shape \(\): pass class",
    ),
    (
        "lo-text",
        lambda b: plotting.label_overlay(IMAGE, "x"),
        r"a label map of integers \[y x\], got <U1 of shape \(\): pass class",
    ),
    (
        "lo-ragged",
        lambda b: plotting.label_overlay(IMAGE, [[1], [1, 2]]),
        r"a label map of integers \[y x\], got rows of other lengths: pass an",
    ),
    (
        "ms-cols",
        lambda b: plotting.map_strip(IMAGE, MAPS[0], columns="x"),
        "columns, a whole number 1 or more, got 'x': pass columns=1",
    ),
    ("ms-img", lambda b: plotting.map_strip(3, MAPS[0]), "an image, got int: pass a"),
    (
        "ms-none",
        lambda b: plotting.map_strip(IMAGE, None),
        r"numbers \[y x\], some of them finite, got shape \(\): select one",
    ),
    (
        "ms-empty",
        lambda b: plotting.map_strip(IMAGE, MAPS[0][:0]),
        "maps of numbers with axes y and x, none.*, got float64 and.*: rename the",
    ),
    (
        "ms-noyx",
        lambda b: plotting.map_strip(IMAGE, MAPS[0].rename(y="r")),
        "maps of numbers with axes y and x, none.*, got float64 and.*: rename the",
    ),
    (
        "ms-nan",
        lambda b: plotting.map_strip(IMAGE, MAPS[0].where(MAPS[0].token != "a")),
        r"numbers \[y x\], some of them finite, got shape \(4, 4\): select one",
    ),
    (
        "ms-text",
        lambda b: plotting.map_strip(IMAGE, xr.DataArray(np.full((1, 2, 2), "a"), dims=("t", "y", "x"))),
        r"maps of numbers with axes y and x, none.*, got <U1 and sizes \{'t': 1,.*: rename the",
    ),
    (
        "ms-flat",
        lambda b: plotting.map_strip(IMAGE, np.ones((4, 4))),
        r"maps with 1 axes beside y and x, got \{'y': 4, 'x': 4\}: select one",
    ),
    ("mg-op", lambda b: plotting.map_grid(IMAGE, MAPS, opacity=-1), "opacity, a number from 0 to 1, got -1: pass a"),
    (
        "mg-none",
        lambda b: plotting.map_grid(IMAGE, None),
        r"numbers \[y x\], some of them finite, got shape \(\): select one",
    ),
    (
        "lm-names",
        lambda b: plotting.label_maps(IMAGE, {"a": LABELS}, "cat"),
        r"class_names as a list of names, got 'cat': pass class_names=\['cat',",
    ),
    (
        "lm-names-n",
        lambda b: plotting.label_maps(IMAGE, {"a": LABELS}, None),
        r"class_names as a list of names, got None: pass class_names=\['cat',",
    ),
    (
        "lm-names-i",
        lambda b: plotting.label_maps(IMAGE, {"a": LABELS}, [1]),
        r"class_names as a list of names, got 1 in it: pass class_names=\['cat',",
    ),
    (
        "lm-names-e",
        lambda b: plotting.label_maps(IMAGE, {"a": LABELS}, []),
        r"labels below 0, one for each class name, got \[0\]: pass all",
    ),
    (
        "lm-none",
        lambda b: plotting.label_maps(IMAGE, {"a": None}, ["cat"]),
        r"a label map of integers \[y x\], got object of shape \(\): pass class",
    ),
    (
        "lm-size",
        lambda b: plotting.label_maps(IMAGE, {"a": LABELS.T}, ["cat"]),
        r"a label map of the image's size \(8, 6\), got \(6, 8\): pass the",
    ),
    (
        "lm-list",
        lambda b: plotting.label_maps(IMAGE, [LABELS], ["cat"]),
        "label_maps as a dictionary from headings .*, got list: pass",
    ),
    (
        "cg-len",
        lambda b: plotting.case_gallery([IMAGE], [{"a": LABELS}] * 2, [["cat"]], ["h"]),
        r"as many images as label maps, class names.*, got lengths \[1, 2\].*: pass one",
    ),
    (
        "cg-none",
        lambda b: plotting.case_gallery(None, [{"a": LABELS}], [["cat"]], ["h"]),
        "images, one or a list, got NoneType: pass a",
    ),
    (
        "cg-single",
        lambda b: plotting.case_gallery(IMAGE, {"a": LABELS}, ["cat"], "h"),
        r"headings as a list of texts, got 'h': pass headings=\['mIoU",
    ),
    (
        "cg-maps",
        lambda b: plotting.case_gallery([IMAGE], [LABELS], [["cat"]], ["h"]),
        "label_maps as a list of Mapping, got ndarray of int64",
    ),
    (
        "cg-names",
        lambda b: plotting.case_gallery([IMAGE], [{"a": LABELS}], ["cat"], ["h"]),
        r"class_names as a list of names, got 'cat': pass class_names=\['cat',",
    ),
    (
        "cg-head",
        lambda b: plotting.case_gallery([IMAGE], [{"a": LABELS}], [["cat"]], [3]),
        r"headings as a list of texts, got 3 in it: pass headings=\['mIoU",
    ),
    (
        "cg-headnone",
        lambda b: plotting.case_gallery([IMAGE], [{"a": LABELS}], [["cat"]], None),
        r"headings as a list of texts, got None: pass headings=\['mIoU",
    ),
    (
        "cg-empty",
        lambda b: plotting.case_gallery([], [], [], []),
        r"at least one image, got an empty list: pass images=\['photo\.jpg'\]",
    ),
    ("pg-none", lambda b: plotting.picture_grid(None, ["a"]), "images, one or a list, got NoneType: pass a"),
    (
        "pg-labels",
        lambda b: plotting.picture_grid([IMAGE], None),
        r"labels as a list of texts, got None: pass labels=\['a",
    ),
    (
        "pg-label-n",
        lambda b: plotting.picture_grid([IMAGE], [3]),
        r"labels as a list of texts, got 3 in it: pass labels=\['a",
    ),
    ("pg-text", lambda b: plotting.picture_grid([IMAGE], "a"), r"labels as a list of texts, got 'a': pass labels=\['a"),
    ("pg-side", lambda b: plotting.picture_grid([IMAGE], ["a"], side=0), "side, a number from 0.75, got 0: pass"),
    ("pg-cols", lambda b: plotting.picture_grid([IMAGE], ["a"], columns=0), "columns 1 or more, got 0: choose one"),
    ("rm-axes", lambda b: plotting.reduced_maps(MAPS, "a"), "axes, a whole number 0 or more, got 'a': pass axes=0"),
    (
        "rm-none",
        lambda b: plotting.reduced_maps(None, 1),
        r"numbers \[y x\], some of them finite, got shape \(\): select one",
    ),
    ("rm-neg", lambda b: plotting.reduced_maps(MAPS, -1), "axes 0 or more, got -1: choose one"),
    (
        "rc-list",
        lambda b: plotting.require_columns([1], ["a"]),
        r"a table as a pandas\.DataFrame, got list: pass Evaluation\.table\(\)",
    ),
    (
        "rc-none",
        lambda b: plotting.require_columns(TABLE, None),
        "a table with rows and the columns None; got.*: name columns",
    ),
    (
        "rc-unhash",
        lambda b: plotting.require_columns(TABLE, [["a"]]),
        r"a table with rows and the columns \['a'\];.*: name columns",
    ),
    ("cu-x", lambda b: plotting.curves(TABLE, None, "mIoU"), "a table with rows and the columns None,.*: name columns"),
    (
        "cu-x-list",
        lambda b: plotting.curves(TABLE, ["layer"], "mIoU"),
        "a table with rows and the columns.*: name columns",
    ),
    (
        "cu-by",
        lambda b: plotting.curves(TABLE, "layer", "mIoU", "nope"),
        "a table with rows and the columns layer,.*: name columns",
    ),
    (
        "cu-by-l",
        lambda b: plotting.curves(TABLE, "layer", "mIoU", ["method"]),
        "a table with rows and the columns layer,.*: name columns",
    ),
    (
        "cu-int",
        lambda b: plotting.curves(TABLE, "layer", "mIoU", interval=("low",)),
        r"interval as two columns, got \('low',\): pass interval=\('low',",
    ),
    (
        "cu-int-n",
        lambda b: plotting.curves(TABLE, "layer", "mIoU", interval=3),
        r"interval as two columns, got 3: pass interval=\('low',",
    ),
    (
        "cu-int-num",
        lambda b: plotting.curves(TABLE, "layer", "mIoU", interval=(1, 2)),
        "a table with rows and the columns layer,.*: name columns",
    ),
    (
        "cu-int-two",
        lambda b: plotting.curves(TABLE, "layer", ["mIoU", "low"], interval=("low", "high")),
        "one score for an interval, got mIoU, low: use `by`",
    ),
    (
        "cu-mixed",
        lambda b: plotting.curves(TABLE.assign(head=["mean", 2]), "head", "mIoU"),
        "numbers or words in the column head, got both: select some",
    ),
    (
        "cu-none",
        lambda b: plotting.curves(None, "layer", "mIoU"),
        r"a table as a pandas\.DataFrame, got NoneType: pass Evaluation\.table\(\)",
    ),
    (
        "cu-ev",
        lambda b: plotting.curves({"a": 1}, "layer", "mIoU"),
        r"a table as a pandas\.DataFrame, got dict: pass Evaluation\.table\(\)",
    ),
    (
        "sm-dup",
        lambda b: plotting.score_map(pd.concat([TABLE] * 2), "layer", "method"),
        "one row for each pair of layer and method, got several: select the",
    ),
    ("sm-x", lambda b: plotting.score_map(TABLE, 3, "method"), "a table with rows and the columns 3,.*: name columns"),
    (
        "sm-same",
        lambda b: plotting.score_map(TABLE, "layer", "layer"),
        "one row for each pair of layer and layer, got several: select the",
    ),
    (
        "sm-score",
        lambda b: plotting.score_map(TABLE, "layer", "method", "method"),
        "numbers in the column method, got 'a': choose another",
    ),
    (
        "sm-text",
        lambda b: plotting.score_map(TABLE, "layer", "method", 3),
        "scores as names of columns, got 3: pass scores='mIoU'",
    ),
    (
        "ba-spread",
        lambda b: plotting.bars(TABLE, "method", spread="nope"),
        "a table with rows and the columns method,.*: name columns",
    ),
    (
        "ba-spread-n",
        lambda b: plotting.bars(TABLE, "method", spread=3),
        "a table with rows and the columns method,.*: name columns",
    ),
    (
        "ba-both",
        lambda b: plotting.bars(TABLE, "method", spread="low", interval=("low", "high")),
        r"spread or interval, got both \(spread='low', .*: leave one",
    ),
    (
        "ba-y",
        lambda b: plotting.bars(TABLE, "method", ["mIoU"]),
        "a table with rows and the columns method,.*: name columns",
    ),
    (
        "ba-by",
        lambda b: plotting.bars(TABLE, "method", by=3),
        "a table with rows and the columns method,.*: name columns",
    ),
    (
        "sc-label",
        lambda b: plotting.scatter(TABLE, "mIoU", "low", label="x"),
        "a table with rows and the columns mIoU,.*: name columns",
    ),
    (
        "sc-x",
        lambda b: plotting.scatter(TABLE, "method", "low"),
        "numbers in the column method, got 'a': choose another",
    ),
    ("sc-none", lambda b: plotting.scatter(TABLE, None), "a table with rows and the columns None,.*: name columns"),
    (
        "in-low",
        lambda b: plotting.intervals(TABLE, "method", "mIoU", "lo"),
        "a table with rows and the columns method,.*: name columns",
    ),
    (
        "in-y",
        lambda b: plotting.intervals(TABLE, None, "mIoU"),
        "a table with rows and the columns None,.*: name columns",
    ),
    (
        "in-diff",
        lambda b: plotting.intervals(TABLE, "method"),
        "a table with rows and the columns method,.*: name columns",
    ),
    (
        "sh-score",
        lambda b: plotting.score_histogram(TABLE, "miou"),
        "a table with rows and the columns miou; got.*: name columns",
    ),
    (
        "sh-none",
        lambda b: plotting.score_histogram(None),
        r"a table as a pandas\.DataFrame, got NoneType: pass Evaluation\.table\(\)",
    ),
    (
        "sh-by",
        lambda b: plotting.score_histogram(TABLE, by="x"),
        "a table with rows and the columns mIoU, x;.*: name columns",
    ),
    (
        "sh-text",
        lambda b: plotting.score_histogram(TABLE, "method"),
        "numbers in the column method, got 'a': choose another",
    ),
    (
        "sh-range",
        lambda b: plotting.score_histogram(TABLE.assign(mIoU=[10, 20.0])),
        "scores from 0 to 1 in at most 8 groups, got 10 to 20 in 1: choose another",
    ),
    (
        "sh-manyby",
        lambda b: plotting.score_histogram(pd.DataFrame({"mIoU": np.linspace(0, 1, 20), "g": range(20)}), by="g"),
        "scores from 0 to 1 in at most 8 groups, got 0 to 1 in 20: choose another",
    ),
    (
        "sh-nan",
        lambda b: plotting.score_histogram(TABLE, "empty"),
        "scores from 0 to 1 in at most 8 groups, got nan to nan in 1: choose another",
    ),
    (
        "sh-list",
        lambda b: plotting.score_histogram(TABLE, ["mIoU"]),
        r"a table with rows and the columns \['mIoU'\];.*: name columns",
    ),
    (
        "co-none",
        lambda b: plotting.confusion(None),
        r"class_names for the rows of an array, got None: pass class_names=\['cat',",
    ),
    (
        "co-neg",
        lambda b: plotting.confusion(-np.eye(2), ["a", "b"]),
        r"a matrix of numbers from 0 with a row and a.*, got shape \(2, 2\).*: pass counts",
    ),
    (
        "co-names",
        lambda b: plotting.confusion(np.eye(2), ["a", "a"]),
        r"class_names, each one once, got \['a'\] given twice: name each",
    ),
    (
        "co-num",
        lambda b: plotting.confusion(np.eye(2), 3),
        r"class_names as a list of names, got 3: pass class_names=\['cat',",
    ),
    ("co-str", lambda b: plotting.confusion([["a"]], ["a"]), r"numbers \[y x\], got list: pass an"),
    (
        "co-dfrect",
        lambda b: plotting.confusion(pd.DataFrame(np.ones((2, 3)))),
        r"a matrix of numbers from 0 with a row and a.*, got shape \(2, 3\).*: pass counts",
    ),
    (
        "co-nan",
        lambda b: plotting.confusion(np.full((2, 2), np.nan), ["a", "b"]),
        r"numbers \[y x\], some of them finite, got shape \(2, 2\): select one",
    ),
    (
        "sl-maps",
        lambda b: plotting.map_slider(np.ones((2, 3, 4, 4)), IMAGE),
        "a DataArray of maps with an axis 'step' for.*, got ndarray.*: pass slider='layer'",
    ),
    (
        "sl-none",
        lambda b: plotting.map_slider(None, IMAGE),
        "a DataArray of maps with an axis 'step' for.*, got NoneType.*: pass slider='layer'",
    ),
    (
        "sl-axis-l",
        lambda b: plotting.map_slider(MAPS, IMAGE, ["layer"]),
        r"a DataArray of maps with an axis \['layer'\].*, got \{'layer': 2,.*: pass slider='layer'",
    ),
    (
        "sl-axis-n",
        lambda b: plotting.map_slider(MAPS, IMAGE, None),
        r"a DataArray of maps with an axis None for.*, got \{'layer': 2,.*: pass slider='layer'",
    ),
    (
        "sl-axis-y",
        lambda b: plotting.map_slider(MAPS, IMAGE, "y"),
        r"a DataArray of maps with an axis 'y' for.*, got \{'layer': 2,.*: pass slider='layer'",
    ),
    ("sl-img", lambda b: plotting.map_slider(MAPS, None, "layer"), "images, one or a list, got NoneType: pass a"),
    (
        "sl-names",
        lambda b: plotting.map_slider(MAPS, IMAGE, "layer", names=["a"]),
        "2 names and images, one for each layer, got 1 names and 1 images: pass one",
    ),
    (
        "sl-names-t",
        lambda b: plotting.map_slider(MAPS, IMAGE, "layer", names="ab"),
        r"names as a list of names, got 'ab': pass names=\['blurred',",
    ),
    (
        "sl-names-n",
        lambda b: plotting.map_slider(MAPS, IMAGE, "layer", names=3),
        r"names as a list of names, got 3: pass names=\['blurred',",
    ),
    (
        "sl-names-twice",
        lambda b: plotting.map_slider(MAPS, IMAGE, "layer", names=["a", "a"]),
        r"names, each one once, got \['a'\] given twice: name each",
    ),
    (
        "sl-empty",
        lambda b: plotting.map_slider(MAPS[:0], IMAGE, "layer"),
        "maps of numbers with axes y and x, none.*, got float64 and.*: rename the",
    ),
    (
        "sl-text",
        lambda b: plotting.map_slider(MAPS.astype(str), IMAGE, "layer"),
        r"maps of numbers with axes y and x, none.*, got <U32 and sizes \{'layer':.*: rename the",
    ),
    (
        "sl-axes",
        lambda b: plotting.map_slider(MAPS.expand_dims(step=[1, 2]), IMAGE, "layer"),
        r"maps with 2 axes beside y and x, got \{'step': 2,.*: select one",
    ),
]
