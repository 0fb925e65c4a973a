"""Which layers and steps segment best together, chosen on images that are scored nowhere else."""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checks import check_layers
from seg4diff_tools.datasets import Sample
from seg4diff_tools.datasets.labels import renumber, true_classes
from seg4diff_tools.datasets.opened import open_sample
from seg4diff_tools.errors import InputError
from seg4diff_tools.evaluation import metrics
from seg4diff_tools.segmentation import masks
from seg4diff_tools.segmentation.class_maps import read_class_maps


def choose_combination(
    backbone: Backbone,
    samples: Sequence[Sample],
    layers: Sequence[int] | None = None,
    steps_from_end: Sequence[int] = (4, 8, 12, 16),
    *,
    steps: int = 28,
    seed: int = 0,
    batch: int = 8,
    progress: bool = True,
) -> pd.DataFrame:
    """Greedy choice of layers and steps whose mean maps segment best.

    It starts with the best single layer and step and adds, one at a time, the layer or the step that gains most, until
    nothing gains. All maps come from one forward for each image and step.

    Args:
        backbone: the model.
        samples: training images with label maps; prompts name the classes that each one shows. Each is read once.
        layers: to choose from, 0-based; all by default.
        steps_from_end: noise levels to choose from.
        steps: length of the schedule.
        seed: of the noise.
        batch: forwards to run at once.
        progress: show a progress bar.

    Returns:
        One row for each move: layers and steps_from_end (tuples, sorted) of the mean, and its mIoU (0..1) on these
            images. The
        last row is the choice: `methods.OpenVocabulary(layers=..., steps_from_end=...)`.

    Raises:
        InputError: no samples, one whose label map does not fit, or a layer or step out of range.

    Source: Seg4Diff, arXiv 2509.18096, appendix G, which names layers and steps together as future work.
    """
    if len(samples) == 0:
        raise InputError("expected at least one sample to choose on, got none")
    wanted = check_layers(backbone, layers)
    names, maps, truths = [], [], []
    for index, sample in enumerate(
        tqdm(samples, unit="image", disable=not progress, desc=f"{backbone.name} combination")
    ):
        each = open_sample(sample, index)
        if not len(sample.class_names):
            continue
        (found,) = read_class_maps(
            backbone,
            backbone.encode_image(each.picture),
            [backbone.class_prompts(sample.class_names)],
            layers=wanted,
            steps_from_end=steps_from_end,
            steps=steps,
            seed=seed,
            batch=batch,
        )
        names.append(sample.class_names)
        maps.append(found[0, :, :, 0].cpu())
        truths.append(sample.label_map)
    if not names:
        raise InputError(f"expected samples that show a class, got none among {len(samples)}")
    vocabulary = sorted({name for own in names for name in own})
    targets = [true_classes(truth, own, vocabulary) for truth, own in zip(truths, names, strict=True)]

    def score(at_steps: Sequence[int], of_layers: Sequence[int]) -> float:
        total = torch.zeros(len(vocabulary), len(vocabulary), dtype=torch.int64)
        for own, one, target in zip(names, maps, targets, strict=True):
            labels = masks.label_map(_mean(one, at_steps, of_layers), tuple(target.shape))
            named = renumber(labels, own, vocabulary, ignore=-1)
            total += metrics.confusion(named, target, len(vocabulary), ignore=-1)
        return metrics.miou(total).item()

    every_step, every_layer = range(len(steps_from_end)), range(len(wanted))
    moves: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((step,), (layer,)) for step in every_step for layer in every_layer
    ]
    rows: list[tuple] = []
    while moves:
        best, chosen = max((score(*move), move) for move in moves)
        if rows and best <= rows[-1][-1]:
            break
        at, of = chosen
        rows.append((tuple(sorted(wanted[i] for i in of)), tuple(sorted(steps_from_end[i] for i in at)), best))
        moves = [((*at, step), of) for step in every_step if step not in at]
        moves += [(at, (*of, layer)) for layer in every_layer if layer not in of]
    return pd.DataFrame(rows, columns=["layers", "steps_from_end", "mIoU"])


def _mean(
    maps: Float[Tensor, "step layer class y x"], steps: Sequence[int], layers: Sequence[int]
) -> Float[Tensor, "class y x"]:
    return maps[list(steps)][:, list(layers)].mean((0, 1))
