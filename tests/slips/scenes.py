"""Slips around scenes."""

from collections.abc import Callable
from typing import Any

from seg4diff_tools import scenes
from seg4diff_tools.scenes import SceneConfig, Scenes

CAT = ("cat", (0.5, 0.5), 0.5)

SLIPS: list[tuple[str, Callable[[Any], Any], str]] = [
    ("split", lambda b: scenes.plan("valid", 0), "split as one of train, .*got 'valid': choose"),
    ("split-of-many", lambda b: Scenes("val", 8), "split as one of train, .*got 'val': choose"),
    ("index-negative", lambda b: scenes.scene("test", -1), "index 0 or more, got -1: choose"),
    ("index-half", lambda b: scenes.scene("test", 1.5), "index, a whole number 0 or more, got 1.5: pass index=0"),
    ("config-dict", lambda b: scenes.scene("test", 0, {"size": 64}), "config as a SceneConfig, got {.*: pass config="),
    ("config-size", lambda b: scenes.gallery(64), "config as a SceneConfig, got 64: pass config=SceneConfig"),
    ("length", lambda b: Scenes("test", -3), "length 0 or more, got -3: choose"),
    ("length-words", lambda b: Scenes("test", "ten"), "length, a whole number 0 or more, got 'ten': pass length="),
    ("scenes-index", lambda b: Scenes("test", 3)["cat"], r"an index or a slice of it, got 'cat': write \[0\]"),
    ("concepts-text", lambda b: SceneConfig(concepts="cat"), "concepts as a tuple of names, got 'cat': pass concepts="),
    ("concepts-none", lambda b: SceneConfig(concepts=()), r"concepts as a tuple of names, got \(\): pass concepts="),
    ("concepts-typo", lambda b: SceneConfig(concepts=("elefant",)), "got 'elefant': did you mean 'elephant'"),
    ("backgrounds", lambda b: SceneConfig(backgrounds=("lava",)), "backgrounds .*got 'lava': choose from grass"),
    (
        "objects",
        lambda b: SceneConfig(objects=(3, 1)),
        r"objects as \(least, most\) from 1, got \(3, 1\): pass objects=",
    ),
    ("objects-one", lambda b: SceneConfig(objects=2), "objects as .*got 2: pass objects="),
    ("object-side", lambda b: SceneConfig(object_side=(0, 1)), "object_side as .*got .*: pass"),
    ("twins", lambda b: SceneConfig(twins=8), "twins from 0 to 1, got 8: pass twins=0.1"),
    ("compose-background", lambda b: scenes.compose([CAT], "sky"), "background as one of grass.*got 'sky': choose"),
    ("compose-none", lambda b: scenes.compose([]), r"objects, at least one, got \[\]: pass objects="),
    ("compose-words", lambda b: scenes.compose("cat"), "objects, at least one, got 'cat': pass objects="),
    ("compose-names", lambda b: scenes.compose(["cat", "dog"]), r"objects as \(name, .*got 'cat': pass \('cat', "),
    ("compose-typo", lambda b: scenes.compose([("kat", *CAT[1:])]), "an object that is drawn, got 'kat': did you mean"),
    ("compose-side", lambda b: scenes.compose([("cat", (0.5, 0.5), 50)]), "side .*got 50.0 for 'cat': pass 0.5"),
    ("compose-style", lambda b: scenes.compose([CAT], style="oil"), "style as one of .*for 'cat', got 'oil': choose"),
    ("compose-size", lambda b: scenes.compose([CAT], size=0), "size 8 or more, got 0: choose"),
    ("draw-none", lambda b: scenes.draw_scenes([], 64), "plans, at least one, got none: make them"),
]
