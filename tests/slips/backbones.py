"""Slips around models, prompts, images and run folders."""

from collections.abc import Callable
from typing import Any

from seg4diff_tools._runs import as_path
from seg4diff_tools.backbones import as_backbone

SLIPS: list[tuple[str, Callable[[Any], Any], str]] = [
    ("as_backbone-transformer", lambda b: as_backbone(b.transformer), r"expected a model .*got SD3Transf.*pass load_b"),
    ("as_backbone-none", lambda b: as_backbone(None), r"expected a model .*got NoneType.*pass load_backbone"),
    ("as_backbone-class", lambda b: as_backbone(type(b)), r"expected a model .*got type: pass load_backbone"),
    ("as_path-number", lambda b: as_path(3, "out"), r"expected out as text or a Path, got 3: pass out="),
    ("as_path-empty", lambda b: as_path("", "out"), r"expected out as text or a Path, got '': pass out="),
    ("as_path-stranger", lambda b: as_path("~no-such-user/x"), r"expected path below .* got ~no-such-user/x: write it"),
]
