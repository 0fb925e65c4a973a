"""Numbers and indices checked at the call, and sequences that make their items when indexed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Integral, Real
from typing import Any, TypeVar, overload

from seg4diff_tools.errors import InputError


def scalar(value: Any) -> Any:
    """Return the number that an array or tensor without axes holds; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () else value


def as_int(value: Any, name: str, low: int, high: int | None = None) -> int:
    """Return a whole number (Python's, NumPy's, a tensor of one) from `low` to `high` as an int; None is no limit.

    Raises:
        InputError: not a whole number (True and False are none), or out of range.
    """
    number = scalar(value)
    wanted = f"{low} or more" if high is None else f"from {low} to {high}"
    if isinstance(number, bool) or not isinstance(number, Integral):
        raise InputError(f"expected {name}, a whole number {wanted}, got {value!r}: pass {name}={low}")
    if int(number) < low or (high is not None and int(number) > high):
        raise InputError(f"expected {name} {wanted}, got {int(number)}: choose one in that range")
    return int(number)


def as_float(value: Any, name: str, low: float = 0.0, high: float | None = None) -> float:
    """Return a finite number (Python's, NumPy's, a tensor of one) from `low` to `high` as a float; None is no limit.

    Raises:
        InputError: not a finite number (True and False are none), or out of range.
    """
    number = scalar(value)
    real = isinstance(number, Real) and not isinstance(number, bool) and isfinite(number)
    if not real or number < low or (high is not None and number > high):
        wanted = f"from {low:g}" if high is None else f"from {low:g} to {high:g}"
        example = low if high is None else (low + high) / 2
        raise InputError(f"expected {name}, a number {wanted}, got {value!r}: pass a number such as {name}={example:g}")
    return float(number)


def as_positive(value: Any, name: str, *, zero: bool = False) -> float:
    """Return a number above 0, infinity among them, as a float; `zero` allows 0 too.

    Raises:
        InputError: not a number (True and False are none), or out of range.
    """
    number = scalar(value)
    if not isinstance(number, Real) or isinstance(number, bool) or not (float(number) > 0 or (zero and number == 0)):
        wanted = "at least 0" if zero else "above 0"
        raise InputError(f"expected {name}, a number {wanted}, got {value!r}: pass {name}=1.0")
    return float(number)


def as_indices(value: Any, name: str, length: int | None = None, *, low: int = 0) -> list[int]:
    """Return indices in their order as a list of ints: from one number, a range, an array, a tensor or another
    iterable.

    Args:
        value: the indices, each one once.
        name: of the argument, for the error.
        length: the indices are below it; None for no limit.
        low: smallest index.

    Raises:
        InputError: nothing, text, something that is no whole number, an index out of range or twice.
    """
    high = None if length is None else length - 1
    if isinstance(value, (str, bytes)):
        raise InputError(f"expected {name} as numbers, got {value!r}: pass {name}={low} or a list such as [{low}]")
    if isinstance(value, Integral) or getattr(value, "shape", None) == () or not isinstance(value, Iterable):
        return [as_int(value, name, low, high)]
    listed = getattr(value, "tolist", lambda: value)()
    numbers = [as_int(number, name, low, high) for number in listed]
    if not numbers or len(set(numbers)) < len(numbers):
        raise InputError(f"expected {name}, at least one and each one once, got {numbers}: name each one once")
    return numbers


Item_co = TypeVar("Item_co", covariant=True)


class PositionError(InputError, IndexError):
    """An index outside a sequence."""


class LazySequence(Sequence[Item_co]):
    """A sequence that makes an item when it is indexed; a subclass gives `__len__` and `_item`."""

    def __class_getitem__(cls, item: object) -> type:
        """Return the class itself: knowing the type of its items, run-time type checkers would read one of them."""
        return cls

    def _item(self, index: int) -> Item_co:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Item_co: ...
    @overload
    def __getitem__(self, index: slice) -> "Part[Item_co]": ...
    def __getitem__(self, index: Any) -> Any:
        """Return an item, or a lazy part of the sequence for a slice.

        Args:
            index: a whole number of any kind, negative ones count from the end; or a slice.

        Raises:
            PositionError: no such item.
            InputError: neither a whole number nor a slice.
        """
        if isinstance(index, slice):
            try:
                return Part(self, range(len(self))[index])
            except TypeError:
                raise InputError(f"expected a slice of whole numbers, got {index}: write [10:20]") from None
        number = scalar(index)
        if isinstance(number, bool) or not isinstance(number, Integral):
            raise InputError(f"expected an index or a slice of it, got {index!r}: write [0] or [:10]")
        position, length = int(number), len(self)
        if not -length <= position < length:
            raise PositionError(f"expected an index below {length}, got {position}: there are {length} items")
        return self._item(position % length)


@dataclass(frozen=True)
class Part(LazySequence[Item_co]):
    """Some items of a lazy sequence, which knows the same vocabulary.

    Attributes:
        whole: the sequence.
        positions: of the items in it.
    """

    whole: Any
    positions: range

    @property
    def class_names(self) -> tuple[str, ...]:
        """Vocabulary of the whole sequence."""
        return self.whole.class_names

    @property
    def background(self) -> tuple[str, ...]:
        """Those of the names that are stuff."""
        return self.whole.background

    def __len__(self) -> int:
        return len(self.positions)

    def _item(self, index: int) -> Item_co:
        return self.whole[self.positions[index]]
