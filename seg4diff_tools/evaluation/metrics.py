"""Segmentation scores from confusion matrices; matrices of several images simply add up.

A confusion matrix counts pixels, one row for each true class and one column for each predicted class. As in the usual
protocol (detectron2's, under the paper's released evaluation), pixels labeled `IGNORE` count nowhere, and means over
classes leave out the classes without a single true pixel in the whole set: predicting such a class still costs the
class that was really there, but the absent class itself adds no zero.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Integer, Num
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from seg4diff_tools.datasets.labels import IGNORE, check_labels
from seg4diff_tools.errors import InputError


def confusion(
    prediction: Integer[Tensor, "*batch y x"],
    target: Integer[Tensor, "y_true x_true"],
    classes: int,
    ignore: int = IGNORE,
) -> Int[Tensor, "*batch true predicted"]:
    """Pixel counts of true against predicted class, for one label map or for many predictions of it at once.

    Args:
        prediction: class indices, 0 to classes - 1.
        target: the true class indices, 0 to classes - 1, or `ignore`.
        classes: how many classes there are.
        ignore: label of the pixels to leave out.

    Returns:
        One matrix for each prediction; rows are true classes, columns predicted ones.

    Raises:
        InputError: sizes that differ, or indices out of range.
    """
    if prediction.shape[-2:] != target.shape:
        raise InputError(
            f"expected a prediction of the label map's size {tuple(target.shape)}, got {tuple(prediction.shape[-2:])}: "
            "segment the image that the label map belongs to"
        )
    check_labels(target, classes, ignore)
    kept = target != ignore
    true, predicted = target[kept].long(), prediction[..., kept].long()
    if predicted.numel() and not 0 <= int(predicted.min()) <= int(predicted.max()) < classes:
        raise InputError(
            f"expected predicted classes from 0 to {classes - 1}, got {int(predicted.min())} to "
            f"{int(predicted.max())}: predict with the same class names as the label map"
        )
    batch = prediction.shape[:-2]
    cells = (true * classes + predicted).reshape(batch.numel(), -1)
    # one bincount for all predictions: each has cells of its own
    cells += torch.arange(len(cells), device=cells.device)[:, None] * classes**2
    return torch.bincount(cells.flatten(), minlength=len(cells) * classes**2).reshape(*batch, classes, classes)


def match(
    groups: Integer[Tensor, "y x"], target: Integer[Tensor, "y x"], classes: int, ignore: int = IGNORE
) -> Int[Tensor, "y x"]:
    """Groups without names, renamed to the classes of this image that they cover best, one group for each class.

    The assignment is the one with the most pixels right (Hungarian algorithm). What is left over counts as an error:
    pixels of a group without a class get the number `classes`, so that scores are those of
    `confusion(match(...), target, classes + 1)`.

    Args:
        groups: number of the group at each pixel, from 0.
        target: the true class of each pixel, 0 to classes - 1, or `ignore`.
        classes: how many classes there are.
        ignore: label of the pixels to leave out.

    Returns:
        A class at each pixel, or `classes`.

    Raises:
        InputError: sizes that differ, or indices out of range.

    Source: Seg4Diff, arXiv 2509.18096, section 4.3 (protocol of table 2).
    """
    count = max(classes, int(groups.max()) + 1)
    overlaps = confusion(groups, target, count, ignore)
    true, found = linear_sum_assignment(overlaps.cpu().numpy(), maximize=True)
    names = torch.full((count,), classes, device=groups.device)
    for name, group in zip(true.tolist(), found.tolist(), strict=True):
        if overlaps[name, group] > 0:
            names[group] = name
    return names[groups.long()]


def match_rows(
    groups: Integer[Tensor, "y x"], target: Integer[Tensor, "y x"], classes: int, ignore: int = IGNORE
) -> Int[Tensor, "true predicted"]:
    """Pixel counts of groups without names, matched to classes in every row of pixels anew, as the released code does.

    Its function loops over a batch of label maps, and is given one label map, so that it loops over the rows. In each row
    every class gets a group, so that a group may also stand for a class that is not there. `match` is the paper's
    protocol; to match a whole image once, and else as the released code does, give it as one row.

    Args:
        groups, target, classes, ignore: as in `match`.

    Returns:
        Rows are true classes; column `classes`, past the last class, counts the pixels of groups without a class, and the
        row there is empty.

    Raises:
        InputError: as `match`.

    Source: the evaluation released with Seg4Diff, arXiv 2509.18096 (table 2).
    """
    total = torch.zeros(classes + 1, classes + 1, dtype=torch.int64)
    for row, true in zip(groups.cpu(), target.cpu(), strict=True):
        overlaps = confusion(row[None], true[None], max(classes, int(row.max()) + 1), ignore)[:classes]
        _, found = linear_sum_assignment(overlaps.numpy(), maximize=True)
        named = overlaps[:, found]
        total[:classes, :classes] += named
        total[:classes, classes] += overlaps.sum(1) - named.sum(1)
    return total


def class_iou(confusion: Int[Tensor, "*batch true predicted"]) -> Float[Tensor, "*batch class"]:
    """Intersection over union of each class; NaN for classes without a true pixel.

    Args:
        confusion: pixel counts, rows are true classes.

    Returns:
        Values from 0 to 1, or NaN.
    """
    return _iou(*_counts(confusion))


def class_accuracy(confusion: Int[Tensor, "*batch true predicted"]) -> Float[Tensor, "*batch class"]:
    """Share of each class's pixels that were found; NaN for classes without a true pixel.

    Args:
        confusion: pixel counts, rows are true classes.

    Returns:
        Values from 0 to 1, or NaN.
    """
    hits, true, _ = _counts(confusion)
    return torch.where(true > 0, hits / true, torch.nan)


def pixel_accuracy(confusion: Int[Tensor, "*batch true predicted"]) -> Float[Tensor, "*batch"]:
    """Share of pixels with the right class (pACC); NaN without any pixel.

    Args:
        confusion: pixel counts, rows are true classes.

    Returns:
        Values from 0 to 1, or NaN.
    """
    hits, true, _ = _counts(confusion)
    return hits.sum(-1) / true.sum(-1)


def mean_accuracy(
    confusion: Int[Tensor, "*batch true predicted"], classes: Sequence[int] | None = None
) -> Float[Tensor, "*batch"]:
    """Mean of the class accuracies (mACC) over classes with true pixels.

    Args:
        confusion: pixel counts, rows are true classes.
        classes: average over these only, for instance objects without background; all by default.

    Returns:
        Values from 0 to 1; NaN where none of the classes occurs.
    """
    return _select(class_accuracy(confusion), classes).nanmean(-1)


def miou(
    confusion: Int[Tensor, "*batch true predicted"], classes: Sequence[int] | None = None
) -> Float[Tensor, "*batch"]:
    """Mean intersection over union (mIoU) over classes with true pixels.

    Args:
        confusion: pixel counts, rows are true classes.
        classes: average over these only, for instance objects without background; all by default. Every pixel counts
            in either case: an object predicted on background still lowers the object's union.

    Returns:
        Values from 0 to 1; NaN where none of the classes occurs.

    Source: Seg4Diff, arXiv 2509.18096, appendix A.4 (the measure of table 1).
    """
    return _select(class_iou(confusion), classes).nanmean(-1)


def bootstrap_miou(
    confusions: Int[Tensor, "image true predicted"], draws: int = 1000, seed: int = 0
) -> Float[Tensor, " draw"]:
    """mIoU of sets drawn with replacement from the images: what chance in the choice of images does to it.

    The same seed draws the same images. So the difference between two calls is that between two methods on the same
    images; `interval` makes an interval of it.

    Args:
        confusions: pixel counts of each image.
        draws: how many sets, of as many images as there are.
        seed: of the choice.

    Source: Efron, "Bootstrap methods", Annals of Statistics 1979.
    """
    return bootstrap(*_counts(confusions), draws, seed)


def bootstrap(
    hits: Num[Tensor, "image class"],
    true: Num[Tensor, "image class"],
    predicted: Num[Tensor, "image class"],
    draws: int = 1000,
    seed: int = 0,
) -> Float[Tensor, " draw"]:
    """`bootstrap_miou` from what it needs of the confusion matrices.

    Args:
        hits: pixels of each class that were found.
        true: pixels of each class.
        predicted: pixels that were taken for each class.
        draws, seed: as for `bootstrap_miou`.
    """
    count = len(hits)
    drawn = torch.randint(count, (draws, count), generator=torch.Generator().manual_seed(seed))
    times = torch.zeros(draws, count, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())
    return _iou(*(times @ each.double() for each in (hits, true, predicted))).nanmean(-1)


def interval(
    score: Float[np.ndarray, "*batch"] | float, drawn: Float[np.ndarray, "*batch draw"], level: float = 0.95
) -> tuple[Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch"]]:
    """The basic bootstrap interval of a score: the quantiles of its draws, reflected about it.

    A draw lacks classes that few images show, which mostly are the hard ones, so that draws lie above the score. Their
    quantiles as they are would lie too high; reflected they make up for most of it. Where many classes are shown by one
    or two images alone, intervals hold the true value less often than they say.

    Args:
        score: of all images.
        drawn: scores of draws, such as from `bootstrap_miou`.
        level: share of intervals that hold the true value.

    Returns:
        Lower and upper end.

    Source: Davison and Hinkley, "Bootstrap Methods and their Application", 1997, equation 5.6.
    """
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=-1)
    return np.asarray(2 * score - high), np.asarray(2 * score - low)


def table(confusion: Int[Tensor, "true predicted"], class_names: Sequence[str]) -> pd.DataFrame:
    """One row for each class: its true pixels, predicted pixels, accuracy and IoU.

    Args:
        confusion: pixel counts of a whole set, rows are true classes.
        class_names: the name of each class.

    Returns:
        Columns class, pixels, predicted, accuracy, IoU; accuracy and IoU are NaN for classes without true pixels.

    Raises:
        InputError: another number of names than of classes.
    """
    if len(class_names) != len(confusion):
        raise InputError(f"expected {len(confusion)} class names, one for each row, got {len(class_names)}")
    _, true, predicted = _counts(confusion)
    return pd.DataFrame(
        {
            "class": list(class_names),
            "pixels": true.long().numpy(),
            "predicted": predicted.long().numpy(),
            "accuracy": class_accuracy(confusion).numpy(),
            "IoU": class_iou(confusion).numpy(),
        }
    )


def _counts(confusion: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # in float64 every count below 2^53 is exact; on the CPU because Apple's GPUs have no float64
    exact = confusion.cpu().double()
    return exact.diagonal(dim1=-2, dim2=-1), exact.sum(-1), exact.sum(-2)


def _iou(hits: Tensor, true: Tensor, predicted: Tensor) -> Tensor:
    return torch.where(true > 0, hits / (true + predicted - hits), torch.nan)


def _select(values: Tensor, classes: Sequence[int] | None) -> Tensor:
    return values if classes is None else values[..., list(classes)]
