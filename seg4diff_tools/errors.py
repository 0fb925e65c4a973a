"""One error tree: every error that this package raises on purpose is a `Seg4DiffError`; checks of names and choices."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    """Check that an argument is one of a few values.

    Args:
        value: of the argument.
        name: of the argument, for the error.
        allowed: the values; the error recommends the first one.
        way_out: what else to pass, for the error.

    Raises:
        InputError: another value, or one of another type.
    """
    if not any(isinstance(value, type(each)) and value == each for each in allowed):
        listed = ", ".join(map(repr, allowed))
        raise InputError(f"expected {name}, one of {listed}, got {value!r}: pass {way_out or f'{name}={allowed[0]!r}'}")


def as_names(values: Any, name: str, *, empty: bool = False, example: str = "['cat', 'grass']") -> tuple[str, ...]:
    """Return names as a tuple.

    Args:
        values: the names, each one once.
        name: of the argument, for the error.
        empty: whether there may be none.
        example: of the argument, for the error.

    Raises:
        InputError: one text in place of a list, something in it that is no text or blank, a name twice, or no name.
    """
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise InputError(f"expected {name} as a list of names, got {values!r}: pass {name}={example}")
    names = tuple(values)
    if wrong := [value for value in names if not isinstance(value, str) or not value.strip()]:
        raise InputError(f"expected {name} as a list of names, got {wrong[0]!r} in it: pass {name}={example}")
    if not names and not empty:
        raise InputError(f"expected {name}, at least one name, got none: pass {name}={example}")
    if len(set(names)) < len(names):
        twice = sorted({value for value in names if names.count(value) > 1})
        raise InputError(f"expected {name}, each one once, got {twice} given twice: name each one once")
    return names
