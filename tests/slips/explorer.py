"""Slips with the explorer: recorded and live maps, settings, pages, composed scenes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr

from seg4diff_tools import explorer as typed
from seg4diff_tools.attention import AttentionRecorder

# untyped, as slips are wrong types
explorer: Any = typed
IMAGE = np.zeros((28, 28, 3), np.uint8)
MAPS = xr.DataArray(np.ones((2, 3, 4, 4)), {"layer": [3, 4], "token": list("abc")}, ("layer", "token", "y", "x"))


def _shown(source: Any = MAPS, image: Any = None, **settings: Any) -> Callable[[Any], Any]:
    return lambda backbone: explorer.explore(source, image, **settings)


def _live(**changes: Any) -> Callable[[Any], Any]:
    asked = {"image": IMAGE, "prompt": "a cat", "steps": 1, "record": {"layers": [1]}} | changes
    return lambda backbone: explorer.explore(backbone, **asked)


def _composed(**changes: Any) -> Callable[[Any], Any]:
    return lambda backbone: explorer.compose_scene(**{"backbone": backbone, "steps": 1, "steps_from_end": 1} | changes)


def _later(name: str, value: Any) -> Callable[[Any], Any]:
    """A setting of a viewer that is there already."""
    return lambda backbone: setattr(explorer.explore(MAPS), name, value)


SLIPS: list[tuple[str, Callable[[Any], Any], str]] = [
    ("src-none", _shown(None), "source, a backbone, a recorder, a.*, got None.*: pass one"),
    ("src-num", _shown(3), "source, a backbone, a recorder, a.*, got 3.*: pass one"),
    ("src-missing", _shown("nowhere.nc"), r"a seg4diff_tools recording, got nowhere\.nc, where.*: pass the"),
    ("src-py", _shown(__file__), "a seg4diff_tools recording, got .*: save it"),
    ("src-folder", _shown("tests"), "a seg4diff_tools recording, got tests, where there.*: pass the"),
    ("src-empty", _shown({}), "recorded maps, got a recording without any: record direction='i2t'"),
    ("src-dict-bad", _shown({"a": 3}), "source, a backbone, a recorder, a.*, got 3.*: pass one"),
    ("src-list", _shown([MAPS]), r"source, a backbone, a recorder, a.*, got \[<xarray\.DataA\.\.\.rdi.*: pass one"),
    ("src-np", _shown(MAPS.values), "source, a backbone, a recorder, a.*, got ndarray of float64.*: pass one"),
    ("src-tensor", _shown(torch.ones(2, 2)), "source, a backbone, a recorder, a.*, got Tensor of.*: pass one"),
    (
        "src-noyx",
        _shown(MAPS.rename(y="r")),
        "maps of numbers with axes y and x, none.*, got float64 and.*: rename the",
    ),
    (
        "src-axis",
        _shown(MAPS.rename(layer="lay")),
        "maps with axes from image, frame, branch, layer,.*, got an axis 'lay'.*: select one",
    ),
    (
        "src-dup",
        _shown(MAPS.assign_coords(token=list("aab"))),
        r"tokens with distinct labels, got \['a', 'a', 'b'\]: assign distinct",
    ),
    ("src-zero", _shown(MAPS[:, :0]), "maps of numbers with axes y and x, none.*, got float64 and.*: rename the"),
    (
        "src-text",
        _shown(MAPS.astype(str)),
        r"maps of numbers with axes y and x, none.*, got <U32 and sizes \{'layer':.*: rename the",
    ),
    (
        "src-complex",
        _shown(MAPS.astype(complex)),
        "maps of numbers with axes y and x, none.*, got complex128 and.*: rename the",
    ),
    (
        "src-other",
        _shown({"a": MAPS, "b": MAPS.assign_coords(token=list("xyz"))}),
        "recordings of the same prompt, got other tokens in.*: record the",
    ),
    (
        "src-grid",
        _shown({"a": MAPS, "b": MAPS[..., :2]}),
        r"recordings of the same image size, got grids of \(4, 4\) and.*: record images",
    ),
    ("src-common", _shown({"a": MAPS[:1], "b": MAPS[1:]}), "recordings with a common layer, got none: record one"),
    (
        "src-recorder",
        lambda b: explorer.explore(AttentionRecorder(b)),
        "at least one wanted step with all of its.*, got none: Nothing was",
    ),
    ("src-model-name", _shown("mini"), "a seg4diff_tools recording, got mini, where there.*: pass the"),
    ("img-num", _shown(image=3), "images, one or a list, got int: pass a"),
    ("img-count", _shown(image=[IMAGE] * 3), "one picture or one for each of 1 images, got 3: pass as"),
    ("img-empty", _shown(image=[]), r"at least one image, got an empty list: pass images=\['photo\.jpg'\]"),
    ("img-float", _shown(image=IMAGE / 2), r"a uint8 array \[y x 3\] with values from 0 to.*, got float64 of shape"),
    (
        "prompt-maps",
        _shown(prompt="a cat"),
        "a backbone as source where prompt is given, got DataArray of.*: leave prompt",
    ),
    ("record-maps", _shown(record={}), "a backbone as source where record is given, got DataArray of.*: leave record"),
    ("seed-maps", _shown(seed=3), "a backbone as source where seed is given, got DataArray of.*: leave seed"),
    ("steps-maps", _shown(steps=3), "a backbone as source where steps is given, got DataArray of.*: leave steps"),
    ("set-unknown", _shown(lyer=3), "settings from recording, direction, image,.*, got lyer.*: use these"),
    ("set-layer", _shown(layer=9), r"a recorded layer \(3, 4\), got 9: choose one"),
    ("set-layer-t", _shown(layer="3"), r"a recorded layer \(3, 4\), got '3': choose one"),
    ("set-layer-l", _shown(layer=[3]), r"a recorded layer \(3, 4\), got \[3\]: choose one"),
    (
        "set-layer-arr",
        _shown(layer=np.arange(2)),
        r"a recorded layer \(3, 4\), got ndarray of int64.*: choose one",
    ),
    ("set-token", _shown(token="zebra"), r"one of the words \['a', 'b', 'c'\], got 'zebra': choose one"),
    ("set-token-n", _shown(token=3), "token, a unicode string, got 3: pass token='cat'"),
    ("set-token-none", _shown(token=None), "token, a unicode string, got None: pass token='cat'"),
    ("set-beside", _shown(beside=3), "beside, a dict, got 3: pass"),
    (
        "set-beside-two",
        _shown(beside={"layer": 3, "head": 1}),
        r"beside with at most one of recording, direction,.*, got \{'layer': 3,",
    ),
    ("set-beside-v", _shown(beside={"layer": 9}), r"a recorded layer \(3, 4\), got 9: choose one"),
    (
        "set-beside-a",
        _shown(beside={"x": 9}),
        r"beside with at most one of recording, direction,.*, got \{'x': 9\}: pass",
    ),
    ("set-mode", _shown(mode="mask"), r"mode, any of \['map', 'masks'\], got 'mask': pass mode='map'"),
    ("set-mode-n", _shown(mode=None), r"mode, any of \['map', 'masks'\], got None: pass mode='map'"),
    ("set-classes-b", _shown(classes=["zebra"]), r"one of the words \['a', 'b', 'c'\], got 'zebra': choose one"),
    ("set-classes-n", _shown(classes=[3]), r"classes, a list, got \[3\]: pass classes=\['cat',"),
    (
        "set-cell",
        _shown(cell=(9, 9)),
        r"cell as row and column of one of \(4, 4\) image tokens, got \[9, 9\].*: pass cell=\[0,",
    ),
    ("set-cell-t", _shown(cell="ab"), r"cell, a list or None, got 'ab': pass cell=\[2,"),
    ("set-cell-3", _shown(cell=[1, 2, 3]), r"cell, a list or None, got \[1, 2, 3\]: pass cell=\[2,"),
    ("set-cell-f", _shown(cell=[1.5, 2]), r"cell, a list or None, got \[1\.5, 2\]: pass cell=\[2,"),
    ("set-cell-n", _shown(cell=3), r"cell, a list or None, got 3: pass cell=\[2,"),
    ("set-colors", _shown(colors="jet"), r"colors, any of \['viridis', 'magma',.*, got 'jet'.*: pass colors='viridis'"),
    ("set-opacity", _shown(opacity=2), r"opacity, a number from 0 to 1, got 2\.0: pass a"),
    ("set-opacity-t", _shown(opacity="a"), r"opacity, a float, got 'a': pass opacity=0\.5"),
    ("set-opacity-nan", _shown(opacity=float("nan")), "opacity, a number from 0 to 1, got nan: pass a"),
    ("set-shared", _shown(shared="yes"), "shared, a boolean, got 'yes': pass shared=False"),
    ("set-pieces", _shown(pieces=None), "pieces, a boolean, got None: pass pieces=False"),
    (
        "set-multiples",
        _shown(multiples="layers"),
        "multiples from recording, direction, image,.*, got 'layers'.*: pass one,",
    ),
    ("set-multiples-n", _shown(multiples=None), "multiples, a unicode string, got None: pass multiples='layer'"),
    ("set-head", _shown(head=3), "no head, which these maps do not have, got 3: leave it"),
    ("set-step", _shown(step=3), "no step, which these maps do not have, got 3: leave it"),
    ("set-recording", _shown(recording="a"), "no recording, which these maps do not have, got 'a': leave it"),
    ("show-list", _shown(show=["a"]), r"show, a Mapping, got \['a'\]: pass"),
    ("show-unknown", _shown(show={"a": 1}), "settings from recording, direction, image,.*, got a.*: use these"),
    ("show-num", _shown(show=3), "show, a Mapping, got 3: pass"),
    ("show-key", _shown(show={3: 1}), "settings from recording, direction, image,.*, got 3.*: use these"),
    ("data-name", lambda b: explorer.explore(MAPS).data_at(lyer=3), "settings from recording, direction.*got lyer"),
    ("data-layer", lambda b: explorer.explore(MAPS).data_at(layer=9), r"a recorded layer \(3, 4\), got 9: choose"),
    (
        "data-mode",
        lambda b: explorer.explore(MAPS).data_at(mode="x"),
        "mode, one of 'map', 'masks', got 'x': pass mode",
    ),
    ("data-token", lambda b: explorer.explore(MAPS).data_at(token=3), r"one of the words \['a', .*got 3: choose"),
    (
        "data-classes",
        lambda b: explorer.explore(MAPS).data_at(classes="a"),
        "classes as a list of names, got 'a': pass",
    ),
    ("data-beside", lambda b: explorer.explore(MAPS).data_at(beside=3), "beside, a Mapping, got 3: pass beside="),
    ("phrases", _shown(phrases="night sky"), r"phrases as a list of names, got 'night sky': pass phrases=\['night"),
    ("phrases-n", _shown(phrases=[3]), r"phrases as a list of names, got 3 in it: pass phrases=\['night"),
    ("step-pictures", _live(step_pictures="yes"), "step_pictures, one of True, False, None, got 'yes': pass step_p"),
    (
        "step-maps",
        _shown(step_pictures=True),
        "a backbone as source where step_pictures is given, got DataArray.*: leave",
    ),
    ("set-under", _shown(under="end"), r"under, any of \['step', 'picture'\], got 'end': pass under='step'"),
    ("store-t", _shown(store="a"), "store, a whole number 0 or more, got 'a': pass store=0"),
    ("store-neg", _shown(store=-1), "store 0 or more, got -1: choose one"),
    ("store-none", _shown(store=None), "store, a whole number 0 or more, got None: pass store=0"),
    ("store-true", _shown(store=1.5), r"store, a whole number 0 or more, got 1\.5: pass store=0"),
    ("later-layer", _later("layer", 9), r"a recorded layer \(3, 4\), got 9: choose one"),
    ("later-mode", _later("mode", "x"), r"mode, any of \['map', 'masks'\], got 'x': pass mode='map'"),
    ("later-token", _later("token", 3), "token, a unicode string, got 3: pass token='cat'"),
    ("later-opacity", _later("opacity", 3), r"opacity, a number from 0 to 1, got 3\.0: pass a"),
    (
        "later-cell",
        _later("cell", [9, 9]),
        r"cell as row and column of one of \(4, 4\) image tokens, got \[9, 9\].*: pass cell=\[0,",
    ),
    ("later-typo", _later("lyer", 9), "settings from recording, direction, image,.*, got lyer.*: use these"),
    (
        "html-none",
        lambda b: explorer.explore(MAPS).save_html(None),
        "path as text or a Path, got None: pass path='folder/file'",
    ),
    (
        "html-num",
        lambda b: explorer.explore(MAPS).save_html(3),
        "path as text or a Path, got 3: pass path='folder/file'",
    ),
    ("html-folder", lambda b: explorer.explore(MAPS).save_html("tests"), r"to write tests, got an error \(Is a"),
    (
        "html-store",
        lambda b: explorer.explore(MAPS).save_html("nowhere.html", store="a"),
        "store, a whole number 0 or more, got 'a': pass store=0",
    ),
    (
        "stored-t",
        lambda b: explorer.explore(MAPS).stored("a"),
        "limit, a whole number 0 or more, got 'a': pass limit=0",
    ),
    (
        "live-noprompt",
        lambda b: explorer.explore(b, IMAGE),
        "prompt as text for a backbone, got None: pass prompt='a",
    ),
    ("live-nothing", explorer.explore, "prompt as text for a backbone, got None: pass prompt='a"),
    ("live-prompt-n", _live(prompt=3), "prompt as text for a backbone, got 3: pass prompt='a"),
    ("live-prompt-l", _live(prompt=["a cat"]), r"prompt as text for a backbone, got \['a cat'\]: pass prompt='a"),
    ("live-long", _live(prompt="cat " * 500), "the prompt has 500 tokens and the text"),
    ("live-img", _live(image=3), "an image, got int: pass a"),
    ("live-imgs", _live(image=[IMAGE]), "an image, got list: pass a"),
    ("live-seed", _live(seed=-1), "seed 0 or more, got -1: choose one"),
    ("live-seed-t", _live(seed="a"), "seed, a whole number 0 or more, got 'a': pass seed=0"),
    ("live-seed-l", _live(seed=[0]), r"seed, a whole number 0 or more, got \[0\]: pass seed=0"),
    ("live-steps", _live(steps=0), "steps from 1 to 1000, got 0: choose one"),
    ("live-steps-t", _live(steps="a"), "steps, a whole number from 1 to 1000, got 'a': pass steps=1"),
    ("live-steps-f", _live(steps=2.5), r"steps, a whole number from 1 to 1000, got 2\.5: pass steps=1"),
    ("live-rec", _live(record=3), "record, a Mapping, got 3: pass"),
    ("live-rec-l", _live(record=["heads"]), r"record, a Mapping, got \['heads'\]: pass"),
    ("live-rec-unknown", _live(record={"head": 1}), "keys of record, one of 'layers',.*, got 'head': pass"),
    ("live-rec-stop", _live(record={"stop_after": 1}), "keys of record, one of 'layers',.*, got 'stop_after': pass"),
    ("live-rec-steps", _live(record={"steps": [5]}), "steps of record from 0 to 0, got 5: choose one"),
    ("live-rec-stepbad", _live(record={"steps": "a"}), "steps of record as numbers, got 'a': pass steps"),
    ("live-rec-layer", _live(record={"layers": 9}), "layers from 0 to 4, got 9: choose one"),
    (
        "live-rec-prompt",
        _live(record={"prompt": "a dog"}),
        "the recorder's prompt 'a dog' for image 0, got another text in the.*: pass the",
    ),
    ("live-rec-tokens", _live(record={"tokens": ["zebra"]}), "'zebra' is not in the prompt, whose words"),
    ("live-setting", _live(layer=7), r"a recorded layer \(1\), got 7: choose one"),
    ("live-unknown", _live(lyer=7), "settings from recording, direction, image,.*, got lyer.*: use these"),
    ("live-store", _live(store="x"), "store, a whole number 0 or more, got 'x': pass store=0"),
    ("live-layer-typed", _live(layer="x"), r"a recorded layer \(1\), got 'x': choose one"),
    (
        "cs-model",
        _composed(backbone=3),
        r"a model \(a backbone, a diffusers pipeline.*, got int.*: pass load_backbone\('mini'\),",
    ),
    ("cs-obj-none", _composed(objects=None), r"objects, at least one, got None: pass objects=\[\('cat',"),
    ("cs-obj-e", _composed(objects=[]), r"objects, at least one, got \[\]: pass objects=\[\('cat',"),
    ("cs-obj-text", _composed(objects="cat"), r"objects, at least one, got 'cat': pass objects=\[\('cat',"),
    ("cs-obj-one", _composed(objects=("cat", (0.5, 0.5), 0.5)), "objects that can be drawn, got 'c': choose from"),
    (
        "cs-obj-short",
        _composed(objects=[("cat", 0.5)]),
        r"objects as \(name, \(x, y\), side\), got \('cat', 0\.5\): pass \('cat',",
    ),
    ("cs-obj-name", _composed(objects=[("zebra", (0.5, 0.5), 0.5)]), "objects that can be drawn, got 'zebra': did you"),
    (
        "cs-obj-center",
        _composed(objects=[("cat", 0.5, 0.5)]),
        r"objects, a center \(x, y\), got 0\.5: pass objects=\(0\.5,",
    ),
    (
        "cs-obj-center3",
        _composed(objects=[("cat", (0.5, 0.5, 0.5), 0.5)]),
        r"objects, a center \(x, y\), got \(0\.5, 0\.5, 0\.5\): pass objects=\(0\.5,",
    ),
    (
        "cs-obj-centert",
        _composed(objects=[("cat", ("a", 0.5), 0.5)]),
        "x of objects, a number from -10 to 10, got 'a': pass a",
    ),
    ("cs-obj-side", _composed(objects=[("cat", (0.5, 0.5), 2)]), "side, a number from 0 to 1, got 2: pass a"),
    ("cs-obj-sidet", _composed(objects=[("cat", (0.5, 0.5), "big")]), "side, a number from 0 to 1, got 'big': pass a"),
    (
        "cs-obj-dict",
        _composed(objects=[{"name": "cat"}]),
        r"objects as \(name, \(x, y\), side\), got \{'name': 'cat'\}: pass \('cat',",
    ),
    ("cs-obj-num", _composed(objects=[3]), r"objects as \(name, \(x, y\), side\), got 3: pass \('cat',"),
    ("cs-bg", _composed(background="moon"), "background that can be drawn, got 'moon': choose from"),
    ("cs-bg-n", _composed(background=3), "background that can be drawn, got 3: choose from"),
    ("cs-bg-none", _composed(background=None), "background that can be drawn, got None: choose from"),
    ("cs-steps", _composed(steps=0), "steps from 1 to 1000, got 0: choose one"),
    ("cs-steps-t", _composed(steps="a"), "steps, a whole number from 1 to 1000, got 'a': pass steps=1"),
    ("cs-sfe", _composed(steps_from_end=9), "steps_from_end from 1 to 1, got 9: choose one"),
    (
        "cs-sfe-t",
        _composed(steps_from_end="8"),
        "steps_from_end, a whole number from 1 to 1, got '8': pass steps_from_end=1",
    ),
    (
        "cs-sfe-f",
        _composed(steps_from_end=1.0),
        r"steps_from_end, a whole number from 1 to 1, got 1\.0: pass steps_from_end=1",
    ),
    (
        "cs-sfe-l",
        _composed(steps_from_end=[1]),
        r"steps_from_end, a whole number from 1 to 1, got \[1\]: pass steps_from_end=1",
    ),
    ("cs-seed", _composed(seed=-1), "seed 0 or more, got -1: choose one"),
    ("cs-seed-t", _composed(seed="a"), "seed, a whole number 0 or more, got 'a': pass seed=0"),
    ("cs-store", _composed(store="a"), "store, a whole number 0 or more, got 'a': pass store=0"),
    ("cs-unknown", _composed(lyer=3), "settings from recording, direction, image,.*, got lyer.*: use these"),
    ("cs-layer", _composed(layer=9), r"a recorded layer \(0, 1, 2, 3, 4\), got 9: choose one"),
    ("cs-image", _composed(image=IMAGE), r"a recorded image \(0\), got ndarray of uint8.*: choose one"),
    ("cs-mode", _composed(mode="x"), r"mode, any of \['map', 'masks'\], got 'x': pass mode='map'"),
]
