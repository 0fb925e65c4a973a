"""Heads one by one: which cover a whole thing, which a part of it, and which few together segment best."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from seg4diff_tools.analysis.features import token_labels
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checks import check_layers
from seg4diff_tools.datasets import Sample
from seg4diff_tools.datasets.labels import renumber, true_classes
from seg4diff_tools.errors import InputError, named_extra
from seg4diff_tools.evaluation import metrics
from seg4diff_tools.scenes import Scene
from seg4diff_tools.segmentation import masks
from seg4diff_tools.segmentation.class_maps import read_class_maps

with named_extra():
    from sklearn.metrics import roc_auc_score

HeadMaps = Float[Tensor, "layer head class y x"]


def head_class_maps(
    backbone: Backbone,
    samples: Sequence[Sample],
    layers: Sequence[int] | None = None,
    *,
    steps_from_end: int = 8,
    steps: int = 28,
    seed: int = 0,
    progress: bool = True,
) -> list[HeadMaps]:
    """Image-to-text maps of every head for the classes of each image.

    Args:
        backbone: the model.
        samples: images; the prompt names each one's classes.
        layers: 0-based; None for all.
        steps_from_end: noise level; 8 of 28 is the paper's.
        steps: length of the schedule.
        seed: of the noise.
        progress: show a progress bar.

    Returns:
        For each image, probabilities on the CPU.

    Source: Seg4Diff, arXiv 2509.18096, equations 9 to 12 without the mean over heads; figures 9a, 26 and 27.
    """
    wanted = check_layers(backbone, layers)
    found = []
    for sample in tqdm(samples, unit="image", disable=not progress, desc=f"{backbone.name} heads"):
        (maps,) = read_class_maps(
            backbone,
            backbone.encode_image(sample.image),
            [backbone.class_prompts(sample.class_names)],
            layers=wanted,
            steps_from_end=[steps_from_end],
            steps=steps,
            heads=list(range(backbone.heads)),
            seed=seed,
        )
        found.append(maps[0, 0].cpu())
    return found


def part_scores(maps: Sequence[HeadMaps], scenes: Sequence[Scene], least: int = 8) -> pd.DataFrame:
    """Whether a head's map covers a thing as a whole, or one side of it.

    All scores are areas under the ROC curve, over image tokens: the chance that the map is higher at a token of the one
    kind than at a token of the other; 0.5 is no preference.

    Args:
        maps: from `head_class_maps`, of the same scenes.
        scenes: scenes with instance masks; things that are in a scene once are counted.
        least: tokens that a thing has to cover.

    Returns:
        A row for each layer (by position in the maps) and head: whole (inside the thing against outside), upper (its
        upper
        half against its lower half), left (its left against its right half), each the mean over things, and things.

    Raises:
        InputError: another number of maps than scenes, or no thing that is large enough.
    """
    if len(maps) != len(scenes):
        raise InputError(f"expected maps of as many scenes, got {len(maps)} for {len(scenes)} scenes")
    rows = []
    for one, scene in zip(maps, scenes, strict=True):
        for name, mask in zip(scene.objects, scene.masks, strict=True):
            inside = token_labels(torch.from_numpy(mask.astype(np.int64)), tuple(one.shape[-2:])).bool().numpy()
            if scene.objects.count(name) > 1 or name not in scene.class_names or inside.sum() < least:
                continue
            column = one[:, :, scene.class_names.index(name)].numpy()
            (ys, xs), values = np.nonzero(inside), column[:, :, inside]
            # the middle row or column belongs to neither half
            upper, left = ys < np.median(ys), xs < np.median(xs)
            lower, right = ys > np.median(ys), xs > np.median(xs)
            for layer, head in np.ndindex(column.shape[:2]):
                own = values[layer, head]
                rows.append(
                    (
                        layer,
                        head,
                        roc_auc_score(inside.ravel(), column[layer, head].ravel()),
                        _preference(own, upper, lower),
                        _preference(own, left, right),
                    )
                )
    if not rows:
        raise InputError(f"expected scenes with a thing of at least {least} image tokens, got none in {len(scenes)}")
    table = pd.DataFrame(rows, columns=["layer", "head", "whole", "upper", "left"])
    grouped = table.groupby(["layer", "head"])
    return grouped.mean().assign(things=grouped.size()).reset_index()


def _preference(
    values: Float[np.ndarray, " token"], one: Bool[np.ndarray, " token"], other: Bool[np.ndarray, " token"]
):
    if not one.any() or not other.any():
        return np.nan
    chosen = one | other
    return roc_auc_score(one[chosen], values[chosen])


def choose_heads(
    maps: Sequence[HeadMaps], labels: Sequence[Int[Tensor, "y x"]], count: int = 8
) -> list[tuple[int, int]]:
    """The heads whose mean map segments best, chosen greedily: the best one, then the one that adds most to it, and so
    on.

    Args:
        maps: from `head_class_maps`.
        labels: true class of each image token, as index into the maps' classes (`features.token_labels`).
        count: how many heads at most; fewer where a further one only hurts.

    Returns:
        Pairs (layer by position in the maps, head), in the order of the choice.
    """
    candidates = [(layer, head) for layer in range(maps[0].shape[0]) for head in range(maps[0].shape[1])]
    flat = [one.flatten(0, 1).flatten(2) for one in maps]  # [candidate class token]
    chosen: list[int] = []
    sums = [torch.zeros_like(one[:1]) for one in flat]
    best = -1.0
    while len(chosen) < count:
        scores = torch.stack(
            [_mean_iou((one + total).argmax(1), label) for one, total, label in zip(flat, sums, labels, strict=True)]
        ).mean(0)
        scores[chosen] = -1.0
        if scores.max() <= best:
            break
        best = scores.max().item()
        chosen.append(int(scores.argmax()))
        sums = [total + one[chosen[-1]] for one, total in zip(flat, sums, strict=True)]
    return [candidates[index] for index in chosen]


def _mean_iou(labels: Int[Tensor, "candidate token"], truth: Int[Tensor, "y x"]) -> Float[Tensor, " candidate"]:
    """Mean IoU over the classes of one image, for many label maps at once."""
    truth = truth.flatten()
    ious = []
    for index in truth.unique():
        found, true = labels == index, truth == index
        ious.append((found & true).sum(1, dtype=torch.float32) / (found | true).sum(1))
    return torch.stack(ious).mean(0)


def cross_validated(
    maps: Sequence[HeadMaps], samples: Sequence[Sample], layer: int, count: int = 8, folds: int = 2
) -> tuple[pd.DataFrame, list[list[tuple[int, int]]]]:
    """Scores of the mean over heads, of a layer or of all, of the best head and of chosen ones, on images that chose
    nothing.

    Images are dealt to folds in turn. For each fold, heads are chosen on all other folds and scored on it.

    Args:
        maps: from `head_class_maps`, all layers.
        samples: the images.
        layer: whose mean over heads is the paper's way.
        count: how many heads to choose at most.
        folds: at least 2.

    Returns:
        Columns heads ("mean of layer ...", "mean of all layers", "best head", "chosen heads"), mIoU, pACC (over all
        images); and the heads that were chosen for each fold.

    Raises:
        InputError: fewer images than folds.
    """
    if not 2 <= folds <= len(samples):
        raise InputError(f"expected from 2 to {len(samples)} folds for as many images, got {folds}")
    grid = tuple(maps[0].shape[-2:])
    vocabulary = sorted({name for sample in samples for name in sample.class_names})
    targets, labels = [], []
    for sample in samples:
        names = sample.class_names
        targets.append(true_classes(sample.label_map, names, vocabulary))
        own = true_classes(sample.label_map, names, names)
        coarse = token_labels(torch.where(own < 0, len(names), own), grid)
        # a token of which most is ignored counts for the first class; it is one in hundreds
        labels.append(torch.where(coarse < len(names), coarse, 0))
    totals: dict[str, Tensor] = {}
    chosen = []
    for fold in range(folds):
        others = [i for i in range(len(samples)) if i % folds != fold]
        chosen.append(choose_heads([maps[i] for i in others], [labels[i] for i in others], count))
        every = [(layer, head) for head in range(maps[0].shape[1])]
        for name, heads in (
            (f"mean of layer {layer}", every),
            ("mean of all layers", [*np.ndindex(*maps[0].shape[:2])]),
            ("best head", chosen[-1][:1]),
            ("chosen heads", chosen[-1]),
        ):
            for i in range(fold, len(samples), folds):
                mean = torch.stack([maps[i][one] for one in heads]).mean(0)
                found = masks.label_map(mean, tuple(targets[i].shape))
                found = renumber(found, samples[i].class_names, vocabulary, ignore=-1)
                totals[name] = totals.get(name, 0) + metrics.confusion(found, targets[i], len(vocabulary), ignore=-1)
    rows = [(name, metrics.miou(c).item(), metrics.pixel_accuracy(c).item()) for name, c in totals.items()]
    return pd.DataFrame(rows, columns=["heads", "mIoU", "pACC"]), chosen
