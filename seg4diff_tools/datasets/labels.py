"""TODO."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

from seg4diff_tools.errors import InputError

IGNORE = 255


def renumber(
    label_map: Integer[Tensor, "y x"], names: Sequence[str], vocabulary: Sequence[str], ignore: int = IGNORE
) -> Int[Tensor, "y x"]:
    """A label map whose values mean `vocabulary[value]` instead of `names[value]`.

    Args:
        label_map: class indices into `names`, or `ignore`.
        names: the classes of this image.
        vocabulary: the classes of the whole set.
        ignore: label that stays as it is.

    Returns:
        Class indices into `vocabulary`, or `ignore`.

    Raises:
        InputError: a class that the vocabulary lacks, a value without a name, or an ignore label that is a class.
    """
    if missing := [name for name in names if name not in vocabulary]:
        raise InputError(f"expected every class in the vocabulary, got {missing} outside it: add them to it")
    if 0 <= ignore < len(vocabulary):
        raise InputError(
            f"expected an ignore label that is no class of {len(vocabulary)}, got {ignore}: pass ignore=-1"
        )
    table = torch.tensor([list(vocabulary).index(name) for name in names] + [ignore], device=label_map.device)
    values = label_map.long()
    check_labels(values, len(names), ignore)
    return table[torch.where(values == ignore, len(names), values)]


def true_classes(
    label_map: Integer[np.ndarray, "y x"], names: Sequence[str], vocabulary: Sequence[str]
) -> Int[Tensor, "y x"]:
    """The label map of an image as class indices into the vocabulary of its set, -1 where it says `IGNORE`.

    Unlike 255, -1 is no class in a set of hundreds of them.

    Args:
        label_map: class indices into `names`, or `IGNORE`.
        names: the classes of this image.
        vocabulary: the classes of the whole set.

    Returns:
        Class indices into `vocabulary`, or -1.

    Raises:
        InputError: as `renumber`.
    """
    labels = torch.from_numpy(np.array(label_map)).long()
    return renumber(torch.where(labels == IGNORE, -1, labels), names, vocabulary, ignore=-1)


def check_labels(label_map: Integer[Tensor, "y x"], classes: int, ignore: int = IGNORE) -> None:
    """Refuses a label map with values that stand for no class.

    Args:
        label_map: class indices.
        classes: how many classes there are.
        ignore: the one further value that is allowed.

    Raises:
        InputError: any other value.
    """
    values = label_map[label_map != ignore]
    if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < classes:
        raise InputError(
            f"expected labels from 0 to {classes - 1}, or {ignore} for pixels to ignore, got {int(values.min())} to "
            f"{int(values.max())}: give one class name for each label"
        )
