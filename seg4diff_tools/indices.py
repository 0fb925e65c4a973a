"""Index arguments: whole numbers of any kind, alone or several, checked at the call."""

from collections.abc import Iterable
from numbers import Integral
from typing import Any

from seg4diff_tools.errors import InputError


def as_int(value: Any, name: str, low: int, high: int | None = None) -> int:
    """Return a whole number as an int: Python's own, NumPy's, or a tensor of one.

    Args:
        value: the number; True and False are none.
        name: of the argument, for the error.
        low: smallest number allowed.
        high: largest number allowed; None for no limit.

    Raises:
        InputError: not a whole number, or out of range.
    """
    number = value.item() if getattr(value, "shape", None) == () else value
    wanted = f"{low} or more" if high is None else f"from {low} to {high}"
    if isinstance(number, bool) or not isinstance(number, Integral):
        raise InputError(f"expected {name}, a whole number {wanted}, got {value!r}: pass {name}={low}")
    if int(number) < low or (high is not None and int(number) > high):
        raise InputError(f"expected {name} {wanted}, got {int(number)}: choose one in that range")
    return int(number)


def as_indices(value: Any, name: str, length: int | None = None, *, low: int = 0) -> list[int]:
    """Return indices as a list of ints: from one number, a range, an array, a tensor or any other iterable.

    Args:
        value: the indices, each one once.
        name: of the argument, for the error.
        length: the indices are below it; None for no limit.
        low: smallest index.

    Returns:
        The indices in the order in which they came.

    Raises:
        InputError: nothing, text, something that is no whole number, an index out of range or twice.
    """
    high = None if length is None else length - 1
    if isinstance(value, (str, bytes)):
        raise InputError(f"expected {name} as numbers, got {value!r}: pass {name}={low} or a list such as [{low}]")
    shape = getattr(value, "shape", None)
    if isinstance(value, Integral) or shape == () or not isinstance(value, Iterable):
        return [as_int(value, name, low, high)]
    numbers = [as_int(number, name, low, high) for number in (value.tolist() if shape is not None else value)]
    if not numbers or len(set(numbers)) < len(numbers):
        raise InputError(f"expected {name}, at least one and each one once, got {numbers}: name each one once")
    return numbers
