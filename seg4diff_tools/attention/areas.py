"""Parts of a picture, as masks or boxes, on the grid of image tokens."""

from numbers import Real
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from seg4diff_tools.errors import InputError, shown
from seg4diff_tools.indices import scalar

Area = Any
"""Part of a picture: a boolean mask [y x] of any size, or a box (left, top, right, bottom) with values from 0 to 1."""


def as_area(area: Any, name: str, *, empty: bool = False) -> Bool[Tensor, "y x"] | tuple[float, ...]:
    """Return a mask as a tensor, or a box as a tuple.

    Args:
        area: a mask [y x] or a box.
        name: of the argument, for the error.
        empty: whether a mask may have no place.

    Raises:
        InputError: neither, a mask without a place, or a box without an extent or with a side outside of the picture.
    """
    way_out = f"pass {name} as a boolean array [y x], or as a box such as (0.0, 0.25, 0.5, 1.0)"
    if getattr(area, "ndim", 0) == 2 and str(area.dtype).removeprefix("torch.") == "bool":
        mask = area.detach().cpu() if isinstance(area, Tensor) else torch.from_numpy(np.array(area))
        if not empty and not mask.any():
            raise InputError(f"expected {name}, a mask with at least one place, got an empty one: {way_out}")
        return mask
    sides = [scalar(side) for side in area] if isinstance(area, (tuple, list)) else []
    if len(sides) != 4 or not all(isinstance(side, Real) and not isinstance(side, bool) for side in sides):
        raise InputError(f"expected {name}, a mask or a box, got {shown(area)}: {way_out}")
    left, top, right, bottom = (float(side) for side in sides)
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise InputError(
            f"expected {name}, a box (left, top, right, bottom) with 0 <= left < right <= 1 and 0 <= top < bottom <= "
            f"1, got {(left, top, right, bottom)}: {way_out}"
        )
    return left, top, right, bottom


def grid_mask(area: Area, grid: tuple[int, ...], *, empty: bool = False) -> Bool[Tensor, "*frame y x"]:
    """Return the image tokens of which at least half lies in an area; where there is none, those that it covers most.

    Args:
        area: a mask [y x] of any size or a box (left, top, right, bottom).
        grid: rows and columns of image tokens; of a video, frames before them, in each of which the area is the same.
        empty: whether a mask may have no place; no token is chosen then.

    Raises:
        InputError: see `as_area`.
    """
    area = as_area(area, "area", empty=empty)
    if isinstance(area, Tensor):
        share = area_means(area, (grid[-2], grid[-1]))
    else:
        left, top, right, bottom = area
        rows, columns = grid[-2:]
        share = _overlap(top * rows, bottom * rows, rows)[:, None] * _overlap(left * columns, right * columns, columns)
    return ((share > 0) & (share >= min(0.5, share.max().item()) - 1e-9)).expand(grid)


def area_means(pixels: Shaped[Tensor, "*some y x"], grid: tuple[int, int]) -> Float[Tensor, "*some row column"]:
    """Return the mean of pixels over the area of each image token, fp64; a pixel on a border counts with its parts.

    Args:
        pixels: masks or other values, on the CPU; whole numbers are added up without rounding.
        grid: rows and columns of image tokens, no divisors of the size needed.
    """
    weights = []
    for length, count in zip(pixels.shape[-2:], grid, strict=True):
        # in units in which pixels and tokens begin and end at whole numbers
        starts = torch.arange(length, dtype=torch.float64, device="cpu")[:, None] * count
        weights.append(_overlap(starts, starts + count, count, length))
    rows, columns = weights
    return rows.mT @ pixels.to(torch.float64) @ columns / (pixels.shape[-2] * pixels.shape[-1])


def _overlap(low: Any, high: Any, count: int, size: int = 1) -> Float[Tensor, "*part cell"]:
    """Length of each of `count` cells of a size, which begin at 0, between two numbers or columns of them."""
    edges = torch.arange(count + 1, dtype=torch.float64, device="cpu") * size
    return (edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)).clamp(min=0)
