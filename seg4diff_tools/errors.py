"""One error tree: every error that this package raises on purpose is a `Seg4DiffError`."""

from collections.abc import Iterator
from contextlib import contextmanager

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
