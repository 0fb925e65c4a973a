"""Slips around MAGNET's settings."""

from collections.abc import Callable
from typing import Any

from seg4diff_tools.magnet import MagnetConfig, finetune, preset

SLIPS: list[tuple[str, Callable[[Any], Any], str]] = [
    ("preset", lambda backbone: preset("coco_released"), "preset must be one of .*coco-released"),
    ("no samples", lambda backbone: finetune(backbone, [], MagnetConfig(), "run"), "at least one sample"),
    ("steps", lambda backbone: MagnetConfig(steps=0), "steps of at least 1"),
    ("conv first", lambda backbone: MagnetConfig(conv_first=True), "conv_head=True.*leave conv_first out"),
    (
        "images at once",
        lambda backbone: finetune(backbone, [None], MagnetConfig(), "run", images_at_once=0),
        "images_at_once 1 or more",
    ),
]
