"""Checks of what a figure shows: tables, maps, label maps."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, TypeAlias

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor

from seg4diff_tools.errors import InputError

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
"""Colors that the color-blind can tell apart (Okabe and Ito, 2008)."""

Maps: TypeAlias = xr.DataArray | np.ndarray | Tensor


def require_columns(table: pd.DataFrame, columns: Sequence[str], numeric: Sequence[str] = ()) -> None:
    """Check that a table has rows and some columns.

    Args:
        table: any table.
        columns: the names that are needed.
        numeric: those of them that must hold numbers.

    Raises:
        InputError: no DataFrame, a missing column, no rows, or text where numbers are needed.
    """
    if not isinstance(table, pd.DataFrame):
        raise InputError(f"expected a table as a pandas.DataFrame, got {type(table).__name__}: pass Evaluation.table()")
    missing = [column for column in columns if column not in table.columns]
    if missing or table.empty:
        raise InputError(
            f"expected a table with rows and the columns {', '.join(map(str, columns))}; got {len(table)} rows and "
            f"{', '.join(map(str, table.columns))}: name columns of the table"
        )
    for column in numeric:
        if not pd.api.types.is_numeric_dtype(table[column]):
            first = table[column].iloc[0]
            raise InputError(f"expected numbers in the column {column}, got {first!r}: choose another column")


def reduced_maps(maps: Maps, axes: int, keep: str | None = None) -> xr.DataArray:
    """Return maps with exactly this many axes before y and x; superfluous axes of length 1 go, the first ones first.

    Args:
        maps: any number of axes beside y and x.
        axes: how many of them to have.
        keep: an axis that must not go.

    Raises:
        InputError: more axes, or fewer.
    """
    if not isinstance(maps, xr.DataArray):
        array = numbers(maps)
        maps = xr.DataArray(array, dims=(*(f"axis {i}" for i in range(array.ndim - 2)), "y", "x"))
    if not {"y", "x"} <= set(maps.dims):
        raise InputError(f"expected maps with the axes y and x, got {dict(maps.sizes)}: rename two of them")
    leading = [dim for dim in maps.dims if dim not in ("y", "x")]
    for dim in tuple(leading):
        if len(leading) > axes and maps.sizes[dim] == 1 and dim != keep:
            maps = maps.isel({dim: 0})
            leading.remove(dim)
    if len(leading) != axes:
        raise InputError(
            f"expected maps with {axes} axes beside y and x, got {dict(maps.sizes)}: choose from the others first, "
            "for instance with maps.sel(layer=9)"
        )
    return maps.transpose(*leading, "y", "x")


def numbers(values: Any, axes: int | None = None) -> np.ndarray:
    """Return numbers as an array in double precision.

    Args:
        values: array, DataArray, tensor or nested lists.
        axes: how many axes it must have; None for two or more.

    Raises:
        InputError: no numbers, none that is finite, or other axes.
    """
    try:
        array = np.asarray(values.detach().cpu().double() if isinstance(values, Tensor) else values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"expected numbers [y x], got {type(values).__name__}: pass an array or a DataArray") from None
    if array.ndim < 2 or (axes and array.ndim != axes) or not np.isfinite(array).any():
        raise InputError(
            f"expected numbers [y x], some of them finite, got shape {array.shape}: choose one map of them first"
        )
    return array


def check_opacity(opacity: float) -> None:
    """Raise InputError for an opacity outside 0 to 1."""
    if not isinstance(opacity, Real) or not 0 <= opacity <= 1:
        raise InputError(f"expected opacity from 0 to 1, got {opacity!r}: pass opacity=0.6")


def check_label_maps(label_maps: Mapping[str, Any]) -> None:
    """Raise InputError for something else than label maps by their headings."""
    if not isinstance(label_maps, Mapping) or not label_maps:
        raise InputError(
            f"expected label_maps by their headings, at least one, got {type(label_maps).__name__}: "
            "pass {'found': result.label_map}"
        )


def closed(figure: Figure) -> Figure:
    """Close a figure in pyplot, or a notebook would show it a second time at the end of the cell."""
    plt.close(figure)
    return figure
