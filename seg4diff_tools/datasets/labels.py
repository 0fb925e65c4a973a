"""Label maps: checks of their values, and class indices of another vocabulary."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

from seg4diff_tools.errors import InputError, as_names
from seg4diff_tools.indices import as_int

IGNORE = 255
"""Label of the pixels to leave out of a score."""


def check_image_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return the class names of one image, of which there are fewer than `IGNORE`, so that this value is no class.

    Raises:
        InputError: no list of names, each one once, or too many names.
    """
    names = as_names(class_names, "class_names", empty=True)
    if len(names) > IGNORE:
        raise InputError(
            f"expected at most {IGNORE} classes in one image, since label {IGNORE} means ignore, got {len(names)}: "
            "name the classes that the image shows, and number its label map by them"
        )
    return names


def label_array(label_map: Any) -> Integer[np.ndarray, "y x"]:
    """Return a label map as an array: from an array, a tensor, a palette image or nested lists.

    Raises:
        InputError: no whole numbers [y x].
    """
    try:
        labels = np.asarray(label_map.detach().cpu() if isinstance(label_map, Tensor) else label_map)
    except ValueError:
        raise InputError("expected a label map of integers [y x], got rows of other lengths: pass an array") from None
    if labels.dtype.kind not in "iub" or labels.ndim != 2:
        raise InputError(
            f"expected a label map of integers [y x], got {labels.dtype} of shape {labels.shape}: pass class indices"
        )
    return labels.astype(np.int64)


def renumber(
    label_map: Integer[Tensor, "y x"], names: Sequence[str], vocabulary: Sequence[str], ignore: int = IGNORE
) -> Int[Tensor, "y x"]:
    """Return a label map whose values mean `vocabulary[value]` instead of `names[value]`; `ignore` stays as it is.

    Raises:
        InputError: a class that the vocabulary lacks, a value without a name, or an ignore label that is a class.
    """
    names, vocabulary = as_names(names, "names", empty=True), as_names(vocabulary, "vocabulary", empty=True)
    ignore = as_int(ignore, "ignore", -(1 << 31), (1 << 31) - 1)
    if not isinstance(label_map, Tensor) or label_map.is_floating_point():
        label_map = torch.from_numpy(label_array(label_map))
    if missing := [name for name in names if name not in vocabulary]:
        raise InputError(f"expected every class in the vocabulary, got {missing} outside it: add them to it")
    if 0 <= ignore < len(vocabulary):
        raise InputError(
            f"expected an ignore label that is no class of {len(vocabulary)}, got {ignore}: pass ignore=-1"
        )
    numbers = [vocabulary.index(name) for name in names] + [ignore]
    table = torch.tensor(numbers, dtype=torch.int64, device=label_map.device)
    values = label_map.long()
    check_labels(values, len(names), ignore)
    return table[torch.where(values == ignore, len(names), values)]


def true_classes(
    label_map: Integer[np.ndarray, "y x"], names: Sequence[str], vocabulary: Sequence[str]
) -> Int[Tensor, "y x"]:
    """Return the label map of an image as class indices into the vocabulary of its set, -1 in place of `IGNORE`.

    Unlike 255, -1 is no class in a set of hundreds of them. `names` are the classes of this image, at most 255.

    Raises:
        InputError: more classes in the image, a class that the vocabulary lacks, or a value without a name.
    """
    labels = torch.from_numpy(label_array(label_map))
    return renumber(torch.where(labels == IGNORE, -1, labels), check_image_names(names), vocabulary, ignore=-1)


def check_labels(label_map: Integer[Tensor, "y x"], classes: int, ignore: int = IGNORE) -> None:
    """Raise an InputError unless every value of a label map is one of so many classes, or the ignore label."""
    values = label_map[label_map != ignore]
    if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < classes:
        raise InputError(
            f"expected labels from 0 to {classes - 1}, or {ignore} for pixels to ignore, got {int(values.min())} to "
            f"{int(values.max())}: give one class name for each label"
        )
