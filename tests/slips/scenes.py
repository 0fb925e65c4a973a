"""Slips around scenes: settings, plans, drawings and captions."""

from collections.abc import Callable
from typing import Any

import numpy as np

from seg4diff_tools import scenes

# untyped, as slips are wrong types
plan: Any = scenes.plan
config: Any = scenes.SceneConfig
compose: Any = scenes.compose
render: Any = scenes.render
phrase: Any = scenes.phrase
sentence: Any = scenes.sentence
describe: Any = scenes.describe
CAT = ("cat", (0.5, 0.5), 0.5)
NAN = float("nan")


def _cat(**changes: Any) -> list[Any]:
    return [tuple(({"name": "cat", "center": (0.5, 0.5), "side": 0.5} | changes).values())]


def _config(name: str, value: Any) -> Callable[[Any], Any]:
    return lambda backbone: config(**{name: value})


def _plans(call: Any, *arguments: Any) -> Callable[[Any], Any]:
    return lambda backbone: call([plan("test", 0)], *arguments)


def _described(placements: Any, rng: Any) -> Callable[[Any], Any]:
    return lambda backbone: describe(placements, "grass", rng)


SLIPS: list[tuple[str, Callable[[Any], Any], str]] = [
    ("split", lambda b: plan("valid", 0), "split, one of 'train', .*got 'valid': pass split='train'"),
    ("split-list", lambda b: plan(["test"], 0), r"split, one of 'train', .*got \['test'\]: pass"),
    ("split-of-many", lambda b: scenes.Scenes("val", 8), "split, one of 'train', .*got 'val': pass"),
    ("index-negative", lambda b: scenes.scene("test", -1), "index from 0 to .*, got -1: choose"),
    ("index-half", lambda b: scenes.scene("test", 1.5), "index, a whole number from 0 .*, got 1.5: pass index=0"),
    ("index-huge", lambda b: plan("test", 1 << 64), "index from 0 to .*, got 18446744073709551616: choose"),
    ("config-dict", lambda b: scenes.scene("test", 0, {"size": 64}), "config, a SceneConfig, got {.*: pass config="),
    ("config-size", lambda b: scenes.gallery(64), "config, a SceneConfig, got 64: pass config=SceneConfig"),
    ("config-of-many", lambda b: scenes.Scenes("test", 3, None), "config, a SceneConfig, got None: pass config="),
    ("length", lambda b: scenes.Scenes("test", -3), "length from 0 to .*, got -3: choose"),
    (
        "length-words",
        lambda b: scenes.Scenes("test", "ten"),
        "length, a whole number .*, got 'ten': pass length=",
    ),
    ("scenes-index", lambda b: scenes.Scenes("test", 3)["cat"], r"an index or a slice of it, got 'cat': write \[0\]"),
    ("size", _config("size", 7), "size from 8 to 4096, got 7: choose"),
    ("size-huge", _config("size", 10**9), "size from 8 to 4096, got 1000000000: choose"),
    ("size-pair", _config("size", (64, 64)), r"size, a whole number from 8 to 4096, got \(64, 64\): pass size=8"),
    ("concepts-text", _config("concepts", "cat"), r"concepts as a list of names, got 'cat': pass concepts=\['cat', 'd"),
    ("concepts-number", _config("concepts", 3), "concepts as a list of names, got 3: pass concepts="),
    ("concepts-none", _config("concepts", ()), "concepts, at least one name, got none: pass concepts="),
    (
        "concepts-twice",
        _config("concepts", ["cat", "cat"]),
        r"concepts, each one once, got \['cat'\] given twice",
    ),
    (
        "concepts-array",
        _config("concepts", np.zeros(3)),
        "concepts as a list .*got .*0.* in it: pass",
    ),
    (
        "concepts-typo",
        _config("concepts", ("elefant",)),
        "concepts that can be drawn, got 'elefant': did you mean 'ele",
    ),
    ("backgrounds", _config("backgrounds", ("lava",)), "backgrounds that .*got 'lava': choose from grass"),
    ("backgrounds-list", _config("backgrounds", [["sand"]]), r"backgrounds as a list .*got \['sand'\] in it: pass"),
    ("objects", _config("objects", (3, 1)), r"objects as \(smallest, largest\), got \(3, 1\): pass objects=\(1, 3\)"),
    ("objects-zero", _config("objects", (0, 1)), "objects 1 or more, got 0: choose"),
    ("objects-half", _config("objects", (1, 2.5)), "objects, a whole number 1 or more, got 2.5: pass objects=1"),
    ("objects-one", _config("objects", 2), "objects as .*got 2: pass objects="),
    ("objects-three", _config("objects", (1, 2, 3)), "objects as .*got .*: pass objects="),
    ("object-side", _config("object_side", (0, 1)), "object_side, a share above 0 .*got 0: pass object_side=0.5"),
    ("object-side-large", _config("object_side", (0.3, 30)), "object_side, a number from 0 to 1, got 30: pass"),
    ("object-side-nan", _config("object_side", (0.3, NAN)), "object_side, a number from 0 to 1, got nan: pass"),
    (
        "object-side-text",
        _config("object_side", "ab"),
        r"object_side as \(smallest, largest\), got 'ab': pass object_side=",
    ),
    ("degrees", _config("degrees", -3), "degrees, a number from 0 to 180, got -3: pass a number such as degrees=90"),
    ("degrees-nan", _config("degrees", NAN), "degrees, a number from 0 to 180, got nan: pass"),
    ("degrees-none", _config("degrees", None), "degrees, a number from 0 to 180, got None: pass"),
    *(
        (f"{name}-{value}", _config(name, value), f"{name}, a number from 0 to 1, got {value!r}: pass .*{name}=0.5")
        for name in ("twins", "colored", "related", "triples", "recolorable")
        for value in (8, -0.1, NAN, "often", None, True)
    ),
    ("captions", _config("captions", "long"), "captions, one of 'short', 'rich', got 'long': pass captions='short'"),
    ("captions-list", _config("captions", ["rich"]), r"captions, one of .*got \['rich'\]: pass captions='short'"),
    (
        "recolorable",
        lambda b: config(concepts=("cat",), recolorable=0.5),
        "can be recolored .*: add one, such",
    ),
    ("compose-background", lambda b: compose([CAT], "sky"), "background that .*got 'sky': choose from grass"),
    ("compose-backgrounds", lambda b: compose([CAT], ["sand"]), r"background that .*got \['sand'\]: choose from"),
    ("compose-none", lambda b: compose([]), r"objects, at least one, got \[\]: pass objects="),
    ("compose-words", lambda b: compose("cat"), "objects, at least one, got 'cat': pass objects="),
    ("compose-number", lambda b: compose(3), "objects, at least one, got 3: pass objects="),
    ("compose-names", lambda b: compose(["cat", "dog"]), r"objects that .*got 'c'"),
    ("compose-short", lambda b: compose([CAT[:2]]), r"objects as \(name, .*got \('cat', .*: pass \('cat', "),
    ("compose-typo", lambda b: compose(_cat(name="kat")), "objects that .*got 'kat': did you mean 'hat'"),
    ("compose-list", lambda b: compose(_cat(name=["cat"])), r"objects that .*got \['cat'\]: choose from"),
    ("compose-center", lambda b: compose(_cat(center=0.5)), r"objects, a center \(x, y\), got 0.5: pass"),
    ("compose-x", lambda b: compose(_cat(center=(NAN, 0.5))), "x of objects, a number from -10 to 10, got nan: pass"),
    ("compose-y", lambda b: compose(_cat(center=(0.5, 48))), "y of objects, a number from -10 to 10, got 48: pass"),
    ("compose-side", lambda b: compose(_cat(side=50)), "side, a number from 0 to 1, got 50: pass .*side=0.5"),
    ("compose-side-zero", lambda b: compose(_cat(side=0)), "side, a share above 0 .*got 0: pass side=0.5"),
    ("compose-side-nan", lambda b: compose(_cat(side=NAN)), "side, a number from 0 to 1, got nan: pass"),
    ("compose-style", lambda b: compose([CAT], style="oil"), "style, one of .*, got 'oil': pass style="),
    ("compose-no-style", lambda b: compose([CAT], style=""), "style, one of .*, got '': pass style="),
    ("compose-caption", lambda b: compose([CAT], caption=3), "caption as text, got 3: pass caption='a cat on grass'"),
    ("compose-size", lambda b: compose([CAT], size=0), "size from 8 to 4096, got 0: choose"),
    ("compose-seed", lambda b: compose([CAT], seed=-1), "seed 0 or more, got -1: choose"),
    ("compose-no-seed", lambda b: compose([CAT], seed=None), "seed, a whole number 0 or more, got None: pass seed=0"),
    ("draw-none", lambda b: scenes.draw_scenes([], 64), r"plans as a list of Plan, at least one, got none: pass"),
    ("draw-split", lambda b: render("test", 64), "plans as a list of Plan, got 'test': pass plans="),
    ("draw-one", lambda b: render(plan("test", 0), 64), "plans as a list of Plan, got Plan: pass plans="),
    ("draw-size", _plans(scenes.draw_scenes, 0), "size from 8 to 4096, got 0: choose"),
    ("render-size", _plans(render, 64.0), "size, a whole number from 8 to 4096, got 64.0: pass size=8"),
    ("render-device", _plans(render, 64, "gpu"), "device, one of torch's, got 'gpu': pass device='cpu'"),
    (
        "visible-plan",
        lambda b: scenes.visible(None, np.zeros((8, 8))),
        "a plan and its owners .*got NoneType and ndarray: pass",
    ),
    (
        "visible-owner",
        lambda b: scenes.visible(plan("test", 0), None),
        "a plan and its owners .*got Plan and NoneType: pass",
    ),
    ("relation", lambda b: scenes.relation(0.5, (0.5, 0.5)), r"first, a center \(x, y\), got 0.5: pass first=\(0.5"),
    ("relation-text", lambda b: scenes.relation((0.5, 0.5), ("a", "b")), "x of second, a number .*got 'a': pass"),
    ("phrase-name", lambda b: phrase("kat"), "name that can be drawn, got 'kat': did you mean 'hat'"),
    ("phrase-none", lambda b: phrase(None), "name that can be drawn, got None: choose from"),
    ("phrase-color", lambda b: phrase("car", "pink"), "color, one of None, 'red', .*got 'pink': pass color=None"),
    ("phrase-count", lambda b: phrase("car", None, 0), "count 1 or more, got 0: choose"),
    ("phrase-size", lambda b: phrase("car", size="tiny"), "size, one of None, 'small', 'large', got 'tiny': pass"),
    (
        "sentence-text",
        lambda b: sentence("a cat", "grass"),
        r"phrases as a list of texts, got 'a cat': pass",
    ),
    (
        "sentence-none",
        lambda b: sentence([], "grass"),
        r"phrases as a list of texts, at least one, got none: pass phrases=",
    ),
    (
        "sentence-ground",
        lambda b: sentence(["a cat"], "lava"),
        "background that can be drawn, got 'lava': choose from grass",
    ),
    ("sentence-relation", lambda b: sentence(["a cat"], "grass", 3), r"relation, a str, got 3: pass relation="),
    (
        "describe-none",
        _described([], np.random.default_rng(0)),
        r"placements as a list of Placement, at least one, got none: pass those",
    ),
    (
        "describe-words",
        _described(["cat"], np.random.default_rng(0)),
        r"placements as a list of Placement, got 'cat' in it: pass",
    ),
    (
        "describe-seed",
        lambda b: describe(plan("test", 0).placements, "grass", 0),
        r"rng, a Generator, got 0: pass np.random.default_rng\(0\)",
    ),
    ("styles", lambda b: scenes.styles("noto"), "held_out, one of False, True, got 'noto': pass held_out=False"),
]
