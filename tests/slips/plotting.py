"""Slips around figures."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from seg4diff_tools import plotting

IMAGE = np.zeros((8, 6, 3), dtype=np.uint8)
LABELS = np.zeros((8, 6), dtype=np.int64)
MAPS = xr.DataArray(np.ones((2, 3, 4, 4)), {"layer": [3, 4], "token": list("abc")}, ("layer", "token", "y", "x"))
TABLE = pd.DataFrame({"layer": [0, 1], "mIoU": [0.1, 0.2], "method": ["a", "b"], "empty": [np.nan, np.nan]})

SLIPS: list[tuple[str, Callable[[Any], Any], str]] = [
    ("image-path", lambda b: plotting.label_maps("nowhere.jpg", {"a": LABELS}, ["cat"]), "no image file 'nowhere.jpg'"),
    ("image-float", lambda b: plotting.map_strip(IMAGE / 255, MAPS[0]), "a uint8 array .*got float64 of shape"),
    (
        "labels-bare",
        lambda b: plotting.label_maps(IMAGE, LABELS, ["cat"]),
        "label_maps by their headings.*ndarray: pass",
    ),
    ("labels-none", lambda b: plotting.label_maps(IMAGE, {}, ["cat"]), "label_maps by their headings, at least one"),
    ("labels-float", lambda b: plotting.label_overlay(IMAGE, LABELS * 0.5), r"integers \[y x\], got float64.*: pass"),
    ("labels-size", lambda b: plotting.label_overlay(IMAGE, LABELS.T), r"image's size \(8, 6\), got \(6, 8\): pass"),
    ("labels-minus", lambda b: plotting.label_overlay(IMAGE, LABELS - 1), "labels from 0, got -1: use 255"),
    (
        "labels-names",
        lambda b: plotting.label_maps(IMAGE, {"a": LABELS + 3}, ["cat"]),
        r"below 1, .*got \[3\]: pass all",
    ),
    ("maps-text", lambda b: plotting.map_strip(IMAGE, "cat"), r"numbers \[y x\], got str: pass an array"),
    ("maps-axes", lambda b: plotting.map_strip(IMAGE, MAPS), "maps with 1 axes beside y and x, got .*: choose"),
    ("maps-grid", lambda b: plotting.map_grid(IMAGE, MAPS[0]), "maps with 2 axes beside y and x, got .*: choose"),
    ("maps-flat", lambda b: plotting.overlay(IMAGE, np.ones(4)), r"numbers \[y x\], .*got shape \(4,\): choose"),
    ("maps-nan", lambda b: plotting.overlay(IMAGE, np.full((4, 4), np.nan)), "some of them finite, got shape"),
    ("opacity", lambda b: plotting.map_strip(IMAGE, MAPS[0], opacity=70), "opacity, a number from 0 to 1, got 70: pass"),
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
]
