"""Individual attention heads: preference for whole things or parts, and selection for segmentation."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from seg4diff_tools.analysis.features import token_labels
from seg4diff_tools.analysis.search import greedy, mean_confusion, sample_maps
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checks import check_layers
from seg4diff_tools.backbones.loading import as_backbone
from seg4diff_tools.datasets import Sample
from seg4diff_tools.datasets.labels import true_classes
from seg4diff_tools.errors import InputError, list_of, named_extra
from seg4diff_tools.evaluation import metrics
from seg4diff_tools.evaluation.evaluate import check_samples
from seg4diff_tools.indices import as_int
from seg4diff_tools.scenes import Scene

with named_extra():
    from sklearn.metrics import roc_auc_score

HeadMaps = Float[Tensor, "layer head _ y x"]
"""Maps [layer head class y x]; the number of classes differs between images."""
LayerAndHead = tuple[int, int]


def head_class_maps(
    backbone: Backbone,
    samples: Sequence[Sample],
    layers: int | Sequence[int] | str | None = None,
    *,
    steps_from_end: int = 8,
    steps: int = 28,
    seed: int = 0,
    progress: bool = True,
) -> list[HeadMaps]:
    """Read the image-to-text maps of every head for the classes of each image.

    Args:
        backbone: the model.
        samples: images with label maps; the prompt names each one's classes.
        layers: 0-based; "double" for the double-stream blocks; None for all.
        steps_from_end: noise level; 8 of 28 is the paper's.
        steps: length of the schedule.
        seed: of the noise.
        progress: show a progress bar.

    Returns:
        Probabilities of each image, on the CPU.

    Raises:
        InputError: no samples, one without classes or with a label map that does not fit, or a layer or step out of
            range.

    Source: Seg4Diff, arXiv 2509.18096, equations 9 to 12 without the mean over heads; figures 9a, 26 and 27.
    """
    backbone = as_backbone(backbone)
    found = sample_maps(
        backbone,
        samples,
        "heads",
        progress,
        layers=check_layers(backbone, layers),
        heads=list(range(backbone.heads)),
        steps_from_end=[as_int(steps_from_end, "steps_from_end", 1)],
        steps=steps,
        seed=seed,
    )
    return [maps[0] for _, maps in found]


def part_scores(maps: Sequence[HeadMaps], scenes: Sequence[Scene], least: int = 8) -> pd.DataFrame:
    """Score each head's preference for a whole thing, or for one half of it.

    All scores are areas under the ROC curve over image tokens: the probability that the map is higher at a token of the
    first set than at one of the second; 0.5 is no preference.

    Args:
        maps: from `head_class_maps`, of the same scenes.
        scenes: with instance masks; only things that occur once in a scene count.
        least: smallest size of a thing in tokens.

    Returns:
        A row for each layer (by position in the maps) and head: whole (inside the thing against outside), upper (its
        upper half against its lower half), left (its left against its right half), each the mean over things, and
        things.

    Raises:
        InputError: anything but scenes, another number of maps than scenes, or no large enough thing.
    """
    _check_maps(maps, scenes, "scenes")
    scenes = list_of(scenes, Scene, "scenes", "scenes.Scenes('test')", "scenes with masks of their things")
    least = as_int(least, "least", 1)
    rows = []
    for image_maps, scene in zip(maps, scenes, strict=True):
        for name, mask in zip(scene.objects, scene.masks, strict=True):
            grid = (image_maps.shape[-2], image_maps.shape[-1])
            inside = token_labels(torch.from_numpy(mask.astype(np.int64)), grid).bool().numpy()
            if scene.objects.count(name) > 1 or name not in scene.class_names or inside.sum() < least:
                continue
            class_maps = image_maps[:, :, scene.class_names.index(name)].numpy()
            ys, xs = np.nonzero(inside)
            # the middle row or column is in neither half
            vertical, horizontal = np.sign(np.median(ys) - ys), np.sign(np.median(xs) - xs)
            for layer, head in np.ndindex(class_maps.shape[:2]):
                values = class_maps[layer, head]
                whole = roc_auc_score(inside.ravel(), values.ravel())
                sides = [_preference(values[inside], side) for side in (vertical, horizontal)]
                rows.append((layer, head, whole, *sides))
    if not rows:
        raise InputError(
            f"expected scenes with a thing of at least {least} image tokens, got none in {len(scenes)}: lower least"
        )
    grouped = pd.DataFrame(rows, columns=["layer", "head", "whole", "upper", "left"]).groupby(["layer", "head"])
    return grouped.mean().assign(things=grouped.size()).reset_index()


def _preference(values: Float[np.ndarray, " token"], side: Float[np.ndarray, " token"]) -> float:
    """Return the area under the ROC curve of tokens of side 1 against those of side -1; NaN where one has none."""
    if not {1, -1} <= set(side):
        return np.nan
    return roc_auc_score(side[side != 0] > 0, values[side != 0])


def choose_heads(maps: Sequence[HeadMaps], labels: Sequence[Int[Tensor, "y x"]], count: int = 8) -> pd.DataFrame:
    """Choose heads whose mean map segments best, by greedy forward selection as in `choose_combination`.

    Args:
        maps: from `head_class_maps`.
        labels: true class of each image token, as index into the maps' classes (`features.token_labels`).
        count: largest number of heads; selection stops early where none improves the score.

    Returns:
        One row for each move: heads (pairs of layer, by position in the maps, and head, in order of selection) and
        their mIoU (0..1; the mean over images). The last row is the result.

    Raises:
        InputError: no maps, labels of another number or size, or no head to choose.
    """
    _check_maps(maps, labels, "labels")
    if wrong := [tuple(label.shape) for one, label in zip(maps, labels, strict=True) if label.shape != one.shape[-2:]]:
        raise InputError(
            f"expected labels of image tokens {tuple(maps[0].shape[-2:])}, got {wrong[0]}: bring label maps to that "
            "size with token_labels"
        )
    flat = [one.flatten(3) for one in maps]  # [layer head class token]

    def extend(chosen: tuple[LayerAndHead, ...]) -> list[tuple[LayerAndHead, ...]]:
        return [(*chosen, one) for one in np.ndindex(*maps[0].shape[:2]) if one not in chosen]

    def score(choices: Sequence[tuple[LayerAndHead, ...]]) -> list[float]:
        layers, heads = zip(*(choice[-1] for choice in choices), strict=True)
        ious = []
        for one, label in zip(flat, labels, strict=True):
            # all but the last head are those of the previous move
            before = sum((one[head] for head in choices[0][:-1]), torch.zeros_like(one[0, 0]))
            found = (one[list(layers), list(heads)] + before).argmax(1).unflatten(1, label.shape)
            ious.append(metrics.miou(metrics.confusion(found, label, one.shape[2], ignore=-1)))
        return torch.stack(ious).mean(0).tolist()

    moves = greedy(extend(()), extend, score, as_int(count, "count", 1))
    return pd.DataFrame(moves, columns=["heads", "mIoU"])


def cross_validated(
    maps: Sequence[HeadMaps], samples: Sequence[Sample], layer: int, count: int = 8, folds: int = 2
) -> tuple[pd.DataFrame, list[list[LayerAndHead]]]:
    """Score means over heads (of a layer, of all layers, of chosen ones) by cross-validation.

    Images are assigned to folds in turn. For each fold, heads are chosen on all other folds and scored on it.

    Args:
        maps: from `head_class_maps`, all layers.
        samples: the images.
        layer: of the paper's mean over heads.
        count: largest number of heads to choose.
        folds: at least 2.

    Returns:
        Columns heads ("mean of layer ...", "mean of all layers", "best head", "chosen heads"), mIoU, pACC (over all
        images); and the chosen heads of each fold.

    Raises:
        InputError: another number of maps than samples, a layer out of range, or fewer images than folds.
    """
    check_samples(samples)
    _check_maps(maps, samples, "samples")
    layers, heads, *_, rows, columns = maps[0].shape
    layer = as_int(layer, "layer", 0, layers - 1)
    if not 2 <= as_int(folds, "folds", 1) <= len(samples):
        raise InputError(f"expected from 2 to {len(samples)} folds for as many images, got {folds}: choose in between")
    vocabulary = sorted({name for sample in samples for name in sample.class_names})
    targets, labels = [], []
    for sample in samples:
        names = sample.class_names
        targets.append(true_classes(sample.label_map, names, vocabulary))
        own = true_classes(sample.label_map, names, names)
        coarse = token_labels(torch.where(own < 0, len(names), own), (rows, columns))
        # mostly ignored tokens count as the first class; they are rare
        labels.append(torch.where(coarse < len(names), coarse, 0))
    totals: dict[str, Tensor] = {}
    chosen: list[list[LayerAndHead]] = []
    for fold in range(folds):
        others = [i for i in range(len(samples)) if i % folds != fold]
        moves = choose_heads([maps[i] for i in others], [labels[i] for i in others], count)
        chosen.append(list(moves["heads"].iloc[-1]))
        means: dict[str, Iterable[LayerAndHead]] = {
            f"mean of layer {layer}": [(layer, head) for head in range(heads)],
            "mean of all layers": [*np.ndindex(layers, heads)],
            "best head": chosen[-1][:1],
            "chosen heads": chosen[-1],
        }
        for name, members in means.items():
            for i in range(fold, len(samples), folds):
                mean = torch.stack([maps[i][one] for one in members]).mean(0)
                counted = mean_confusion(mean, samples[i].class_names, targets[i], vocabulary)
                totals[name] = totals.get(name, 0) + counted
    scores = [(name, metrics.miou(c).item(), metrics.pixel_accuracy(c).item()) for name, c in totals.items()]
    return pd.DataFrame(scores, columns=["heads", "mIoU", "pACC"]), chosen


def _check_maps(maps: Any, others: Any, name: str) -> None:
    """Check that there are head maps, one for each of the other items."""
    if not isinstance(maps, (list, tuple)) or not maps or any(getattr(one, "ndim", 0) != 5 for one in maps):
        raise InputError("expected maps, a list of [layer head class y x], got others: pass those of head_class_maps")
    if not hasattr(others, "__len__") or len(others) != len(maps):
        count = len(others) if hasattr(others, "__len__") else type(others).__name__
        raise InputError(f"expected as many {name} as maps, got {count} for {len(maps)}: pass one for each image")
