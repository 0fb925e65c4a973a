"""Drawings of everyday objects, which scenes are made of."""

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from torch import Tensor

from seg4diff_tools.errors import one_of

COLORS = {"red": 0.0, "orange": 0.08, "yellow": 0.15, "green": 0.36, "blue": 0.6, "purple": 0.77}
"""Color word -> hue (0 to 1) that a recolored drawing gets."""

_FOLDER = files("seg4diff_tools") / "scenes" / "sprites"


@dataclass(frozen=True)
class Concept:
    """A kind of object, with a drawing in each of several styles.

    Attributes:
        name, plural, category: such as "cat", "cats" and "animal".
        recolor: whether its drawing may get another color.
        drawings: names of the styles that have a drawing of it.
    """

    name: str
    plural: str
    category: str
    recolor: bool
    drawings: tuple[str, ...]


@lru_cache(maxsize=1)
def _index() -> dict:
    return json.loads((_FOLDER / "sprites.json").read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def concepts() -> dict[str, Concept]:
    """Return all concepts by name, the most distinguishable ones first."""
    return {c["name"]: Concept(**c | {"drawings": tuple(c["drawings"])}) for c in _index()["concepts"]}


def styles(held_out: bool = False) -> tuple[str, ...]:
    """Return the names of the styles for training, or of those held out for testing."""
    one_of(held_out, "held_out", (False, True))
    return tuple(name for name, style in _index()["styles"].items() if style["held_out"] == held_out)


@lru_cache(maxsize=8)
def _atlas(style: str) -> UInt8[np.ndarray, "rows columns 4"]:
    return np.asarray(Image.open(str(_FOLDER / f"{style}.png")).convert("RGBA"))


@lru_cache(maxsize=4096)
def drawing(name: str, style: str, color: str | None = None) -> UInt8[np.ndarray, "side side 4"]:
    """Return one drawing as RGBA, 96 pixels a side; with `color`, its saturated parts take that hue."""
    cell, columns = _index()["cell"], _index()["columns"]
    row, column = divmod(list(concepts()).index(name), columns)
    rgba = _atlas(style)[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
    if color is None:
        return rgba
    hsv = rgb_to_hsv(rgba[..., :3] / 255.0)
    colored = hsv[..., 1] > 0.25
    hsv[..., 0] = np.where(colored, COLORS[color], hsv[..., 0])
    hsv[..., 1] = np.where(colored, np.maximum(hsv[..., 1], 0.75), hsv[..., 1])
    return np.concatenate([np.round(hsv_to_rgb(hsv) * 255).astype(np.uint8), rgba[..., 3:]], axis=-1)


@lru_cache(maxsize=4096)
def premultiplied(name: str, style: str, color: str | None, side: int) -> Float[Tensor, "4 side side"]:
    """Return a drawing as RGBA in 0..1 with color times alpha, so that resampling leaves no dark rim."""
    rgba = torch.tensor(drawing(name, style, color)).permute(2, 0, 1).float() / 255
    rgba = torch.cat([rgba[:3] * rgba[3:], rgba[3:]])
    return torch.nn.functional.interpolate(rgba[None], size=(side, side), mode="area")[0]
