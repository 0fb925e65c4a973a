"""Checks of the arguments of figures: maps and label maps."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor

from seg4diff_tools.errors import InputError
from seg4diff_tools.indices import as_int

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
"""Colors that the color-blind can tell apart (Okabe and Ito, 2008)."""

Maps: TypeAlias = xr.DataArray | np.ndarray | Tensor


def reduced_maps(maps: Maps, axes: int, keep: str | None = None) -> xr.DataArray:
    """Return maps with a given number of axes before y and x; axes of length 1 are dropped until that fits.

    Args:
        maps: any number of axes beside y and x.
        axes: number of axes beside y and x to return.
        keep: an axis that is never dropped.

    Raises:
        InputError: more axes than that, or fewer.
    """
    axes = as_int(axes, "axes", 0)
    if not isinstance(maps, xr.DataArray):
        array = numbers(maps)
        maps = xr.DataArray(array, dims=(*(f"axis {i}" for i in range(array.ndim - 2)), "y", "x"))
    check_maps(maps)
    leading = [dim for dim in maps.dims if dim not in ("y", "x")]
    for dim in tuple(leading):
        if len(leading) > axes and maps.sizes[dim] == 1 and dim != keep:
            maps = maps.isel({dim: 0})
            leading.remove(dim)
    if len(leading) != axes:
        raise InputError(
            f"expected maps with {axes} axes beside y and x, got {dict(maps.sizes)}: select one entry of each "
            "other axis, such as maps.sel(layer=9)"
        )
    return maps.transpose(*leading, "y", "x")


def check_maps(maps: xr.DataArray) -> None:
    """Raise an InputError unless maps are numbers with axes y and x, none of them empty."""
    if not {"y", "x"} <= set(maps.dims) or not maps.size or maps.dtype.kind not in "biuf":
        raise InputError(
            f"expected maps of numbers with axes y and x, none of them empty, got {maps.dtype} and sizes "
            f"{dict(maps.sizes)}: rename the axes or pass other maps"
        )


def numbers(values: Any, axes: int | None = None) -> np.ndarray:
    """Return numbers (array, DataArray, tensor or nested lists) as an array in double precision.

    Raises:
        InputError: not numbers, no finite number, or not `axes` axes (two or more for None).
    """
    try:
        array = np.asarray(values.detach().cpu().double() if isinstance(values, Tensor) else values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"expected numbers [y x], got {type(values).__name__}: pass an array or a DataArray") from None
    if array.ndim < 2 or (axes and array.ndim != axes) or not np.isfinite(array).any():
        raise InputError(f"expected numbers [y x], some of them finite, got shape {array.shape}: select one map first")
    return array


def check_label_maps(label_maps: Mapping[str, Any]) -> None:
    """Raise an InputError unless the argument is a dictionary from headings to label maps."""
    if not isinstance(label_maps, Mapping) or not label_maps:
        raise InputError(
            f"expected label_maps as a dictionary from headings to at least one label map, got "
            f"{type(label_maps).__name__}: pass {{'found': result.label_map}}"
        )


def closed(figure: Figure) -> Figure:
    """Close a figure in pyplot, so that a notebook does not show it a second time."""
    plt.close(figure)
    return figure
