"""Greedy forward selection, and its use to choose layers and steps for segmentation."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checks import check_layers
from seg4diff_tools.backbones.loading import as_backbone
from seg4diff_tools.datasets import Sample
from seg4diff_tools.datasets.labels import renumber, true_classes
from seg4diff_tools.datasets.opened import open_sample
from seg4diff_tools.errors import InputError
from seg4diff_tools.evaluation import metrics
from seg4diff_tools.evaluation.evaluate import check_samples
from seg4diff_tools.indices import as_indices
from seg4diff_tools.segmentation import masks
from seg4diff_tools.segmentation.class_maps import read_class_maps

Choice = TypeVar("Choice")
StepsAndLayers = tuple[tuple[int, ...], tuple[int, ...]]


def greedy(
    candidates: Sequence[Choice],
    extend: Callable[[Choice], Sequence[Choice]],
    score: Callable[[Sequence[Choice]], Sequence[float]],
    most: int | None = None,
) -> list[tuple[Choice, float]]:
    """Select the best candidate, then repeatedly its best extension, as long as the score grows.

    Args:
        candidates: initial choices.
        extend: from a choice to its extensions by one item.
        score: of several choices at once; higher is better, the first of equals is taken.
        most: largest number of moves; None for no limit.

    Returns:
        The choice and score of each move; the last is the result.
    """
    moves: list[tuple[Choice, float]] = []
    while candidates and (most is None or len(moves) < most):
        scores = list(score(candidates))
        best = max(scores)
        if moves and best <= moves[-1][1]:
            break
        moves.append((candidates[scores.index(best)], best))
        candidates = extend(moves[-1][0])
    return moves


def choose_combination(
    backbone: Backbone,
    samples: Sequence[Sample],
    layers: int | Sequence[int] | str | None = None,
    steps_from_end: Sequence[int] = (4, 8, 12, 16),
    *,
    steps: int = 28,
    seed: int = 0,
    batch: int = 8,
    progress: bool = True,
) -> pd.DataFrame:
    """Choose layers and steps whose mean maps segment best, by greedy forward selection.

    The search starts with the best single layer and step. Each move adds the layer or the step with the largest gain.
    All maps come from one forward for each image and step.

    Args:
        backbone: the model.
        samples: training images with label maps; prompts name each one's classes. Each is read once.
        layers: to choose from, 0-based; "double" for the double-stream blocks; None for all.
        steps_from_end: noise levels to choose from.
        steps: length of the schedule.
        seed: of the noise.
        batch: forwards to run at once.
        progress: show a progress bar.

    Returns:
        One row for each move: layers and steps_from_end (tuples, sorted) of the mean, and its mIoU (0..1) on these
        images. The last row is the result, for `OpenVocabulary(layers=..., steps_from_end=...)`.

    Raises:
        InputError: no samples, one whose label map does not fit, or a layer or step out of range.

    Source: Seg4Diff, arXiv 2509.18096, appendix G, which names layers and steps together as future work.
    """
    backbone = as_backbone(backbone)
    wanted = check_layers(backbone, layers)
    noise = as_indices(steps_from_end, "steps_from_end", low=1)
    names, maps, labels = [], [], []
    read = {"steps_from_end": noise, "steps": steps, "seed": seed, "batch": batch}
    for sample, found in sample_maps(backbone, samples, "combination", progress, True, layers=wanted, **read):
        names.append(sample.class_names)
        maps.append(found[:, :, 0])
        labels.append(sample.label_map)
    if not names:
        raise InputError(
            f"expected samples that show a class, got none among {len(samples)}: pass images with class_names"
        )
    vocabulary = sorted({name for own in names for name in own})
    targets = [true_classes(label_map, own, vocabulary) for label_map, own in zip(labels, names, strict=True)]

    def score(choice: StepsAndLayers) -> float:
        total = torch.zeros(len(vocabulary), len(vocabulary), dtype=torch.int64)
        for own, one, target in zip(names, maps, targets, strict=True):
            mean = one[list(choice[0])][:, list(choice[1])].mean((0, 1))
            total += mean_confusion(mean, own, target, vocabulary)
        return metrics.miou(total).item()

    def extend(choice: StepsAndLayers) -> list[StepsAndLayers]:
        at, of = choice
        more: list[StepsAndLayers] = [((*at, step), of) for step in range(len(noise)) if step not in at]
        return more + [(at, (*of, layer)) for layer in range(len(wanted)) if layer not in of]

    single: list[StepsAndLayers] = [((step,), (layer,)) for step in range(len(noise)) for layer in range(len(wanted))]
    moves = greedy(single, extend, lambda choices: [score(choice) for choice in choices])
    rows = [
        (tuple(sorted(wanted[i] for i in of)), tuple(sorted(noise[i] for i in at)), miou) for (at, of), miou in moves
    ]
    return pd.DataFrame(rows, columns=["layers", "steps_from_end", "mIoU"])


def sample_maps(
    backbone: Backbone, samples: Sequence[Sample], about: str, progress: bool, skip_empty: bool = False, **read: Any
) -> Iterator[tuple[Sample, Float[Tensor, "step layer head class y x"]]]:
    """Yield each sample with its class maps on the CPU.

    `about` labels the progress bar; `skip_empty` skips samples without a class, which are refused otherwise; `read`
    holds arguments of `read_class_maps`.
    """
    check_samples(samples)
    for index, sample in enumerate(tqdm(samples, unit="image", disable=not progress, desc=f"{backbone.name} {about}")):
        picture = open_sample(sample, index).picture
        if len(sample.class_names) or not skip_empty:
            prompts = [backbone.class_prompts(sample.class_names)]
            (maps,) = read_class_maps(backbone, backbone.encode_image(picture), prompts, **read)
            yield sample, maps[0].cpu()


def mean_confusion(
    mean: Float[Tensor, "class y x"], names: Sequence[str], target: Tensor, vocabulary: Sequence[str]
) -> Tensor:
    """Return the confusion matrix of one image, segmented by class maps, in the data set's vocabulary."""
    found = masks.label_map(mean, tuple(target.shape))
    return metrics.confusion(renumber(found, names, vocabulary, ignore=-1), target, len(vocabulary), ignore=-1)
