"""One error tree: every error that this package raises on purpose is a `Seg4DiffError`; checks of kinds and names."""

import reprlib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

_EXTRAS = {
    "evaluate": ("kornia", "pyarrow", "pycocotools", "sklearn", "torchmetrics"),
    "explore": ("anywidget", "ipywidgets", "plotly", "seaborn"),
}


def missing_extra(error: ModuleNotFoundError) -> ModuleNotFoundError:
    """Name the extra that brings a missing package; the same error where no extra does."""
    package = (error.name or "").partition(".")[0]
    for extra, packages in _EXTRAS.items():
        if package in packages:
            text = f"{package} is not installed: pip install 'seg4diff-tools[{extra}]'"
            return ModuleNotFoundError(text, name=error.name)
    return error


@contextmanager
def named_extra() -> Iterator[None]:
    """Import packages of an extra inside the `with`: if one is missing, the error says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error


class Seg4DiffError(Exception):
    """Base of all errors that this package raises on purpose."""


class InputError(Seg4DiffError, ValueError):
    """An argument, an image or a label map is not what the function can work with."""


class PromptError(InputError):
    """A word is missing from a prompt, or a prompt has more tokens than the text encoder holds."""


class UnknownArchitectureError(Seg4DiffError, TypeError):
    """The model is of a class whose attention layout this package does not know."""


class CheckpointError(Seg4DiffError, OSError):
    """A model folder or a checkpoint is missing, half-written or of another kind."""


class RecordingError(Seg4DiffError):
    """Attention cannot be recorded as asked, or a file is not a recording that can be opened."""


class TrainingError(Seg4DiffError):
    """Training cannot go on, such as with a loss that is not a number; what was saved before is kept."""


def one_of(value: Any, name: str, allowed: Sequence[Any], way_out: str = "") -> None:
    """Check that an argument is one of a few values, of their type.

    Raises:
        InputError: another value; the message recommends `way_out`, or the first allowed value.
    """
    if not any(isinstance(value, type(each)) and value == each for each in allowed):
        listed = ", ".join(map(repr, allowed))
        raise InputError(f"expected {name}, one of {listed}, got {value!r}: pass {way_out or f'{name}={allowed[0]!r}'}")


def some_of(values: Any, name: str, allowed: Sequence[str]) -> list[Any]:
    """Return some of a few names, given as one or as a list, as a list.

    Raises:
        InputError: another name, a name twice, or none; the message recommends the first allowed name.
    """
    listed = [values] if isinstance(values, str) or not isinstance(values, Iterable) else list(values)
    if not listed or any(value not in allowed for value in listed) or len(set(listed)) < len(listed):
        raise InputError(
            f"expected {name} from {', '.join(allowed)}, each one once, got {values!r}: pass {name}={allowed[0]!r}"
        )
    return listed


def as_names(values: Any, name: str, *, empty: bool = False, example: str = "['cat', 'grass']") -> tuple[str, ...]:
    """Return distinct names as a tuple; `empty` allows none, `example` of the argument is for the error.

    Raises:
        InputError: one text in place of a list, something in it that is no text or blank, a name twice, or no name.
    """
    way_out = f"{name}={example}"
    names = tuple(list_of(values, str, name, way_out, "names", empty=True))
    if blank := [value for value in names if not value.strip()]:
        raise InputError(f"expected {name} as a list of names, got {blank[0]!r} in it: pass {way_out}")
    if not names and not empty:
        raise InputError(f"expected {name}, at least one name, got none: pass {way_out}")
    if len(set(names)) < len(names):
        twice = sorted({value for value in names if names.count(value) > 1})
        raise InputError(f"expected {name}, each one once, got {twice} given twice: name each one once")
    return names


def list_of(values: Any, kind: Any, name: str, way_out: str, items: str = "", *, empty: bool = False) -> list[Any]:
    """Return the values of an argument as a list.

    Args:
        values: of the argument.
        kind: class of each value.
        name: of the argument, for the error.
        way_out: what to pass, for the error.
        items: what the values are called, for the error; the name of the class where empty.
        empty: whether there may be none.

    Raises:
        InputError: one text or mapping in place of a list, a value of another class, or no value.
    """
    wanted = f"expected {name} as a list of {items or kind.__name__}"
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise InputError(f"{wanted}, got {shown(values)}: pass {way_out}")
    found = list(values)
    if wrong := [value for value in found if not isinstance(value, kind)]:
        raise InputError(f"{wanted}, got {shown(wrong[0])} in it: pass {way_out}")
    if not found and not empty:
        raise InputError(f"{wanted}, at least one, got none: pass {way_out}")
    return found


def instance_of(value: Any, kind: Any, name: str, way_out: str) -> None:
    """Check that an argument is of a class, or of an array type of jaxtyping, which says the axes too.

    Raises:
        InputError: a value of another class, or an array of another shape or number format; the message has `way_out`.
    """
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise InputError(f"expected {name}, {article} {kind.__name__}, got {shown(value)}: pass {way_out}")


def shown(value: Any) -> str:
    """Return a value as an error names it: short ones in full, arrays by shape and number format, others by class."""
    if getattr(value, "shape", ()) != () and hasattr(value, "dtype"):
        return f"{type(value).__name__} of {value.dtype} and shape {tuple(value.shape)}"
    plain = value is None or isinstance(value, (str, bytes, int, float, list, tuple, set, Mapping))
    return reprlib.repr(value) if plain or hasattr(value, "dtype") else type(value).__name__


def readable(size: int) -> str:
    """Return bytes as an error names them, such as "3.2 GiB"."""
    for unit, exponent in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << exponent:
            return f"{size / (1 << exponent):.1f} {unit}"
    return f"{size} bytes"


def require_columns(table: Any, columns: Any, numeric: Sequence[str] = ()) -> None:
    """Check that a table has rows and some columns, some of them `numeric`.

    Raises:
        InputError: no DataFrame, a missing column, no rows, or text where numbers are needed.
    """
    names = getattr(table, "columns", None)
    if names is None or not hasattr(table, "groupby"):
        raise InputError(f"expected a table as a pandas.DataFrame, got {type(table).__name__}: pass Evaluation.table()")
    wanted = [columns] if isinstance(columns, str) or not isinstance(columns, Iterable) else list(columns)
    if not len(table) or any(not isinstance(column, Hashable) or column not in names for column in wanted):
        raise InputError(
            f"expected a table with rows and the columns {', '.join(map(str, wanted))}; got {len(table)} rows and "
            f"{', '.join(map(str, names))}: name columns of the table"
        )
    for column in numeric:
        if table[column].dtype.kind not in "biuf":
            first = table[column].iloc[0]
            raise InputError(f"expected numbers in the column {column}, got {first!r}: choose another column")
