"""Scores of unsupervised grouping at several layers and thresholds, from one forward for each image."""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checks import check_layers
from seg4diff_tools.datasets import Sample
from seg4diff_tools.datasets.labels import true_classes
from seg4diff_tools.datasets.opened import open_sample
from seg4diff_tools.errors import InputError
from seg4diff_tools.evaluation import metrics
from seg4diff_tools.prompts import Kind
from seg4diff_tools.segmentation import masks
from seg4diff_tools.segmentation.engine import Labels
from seg4diff_tools.segmentation.options import Matching, Unsupervised
from seg4diff_tools.segmentation.unsupervised import read_token_maps


def grouping_scores(
    backbone: Backbone,
    samples: Sequence[Sample],
    thresholds: Sequence[float],
    layers: Sequence[int] | None = None,
    *,
    steps_from_end: int = 8,
    steps: int = 28,
    merging: masks.Merging = "published",
    matching: Matching = "image",
    absent: metrics.Absent = "skip",
    kinds: Sequence[Kind] = ("pad",),
    seed: int = 0,
    zero_tokens: int = 77,
    progress: bool = True,
) -> pd.DataFrame:
    """Scores of unsupervised grouping at several layers and thresholds.

    Each image's groups are given the names of the classes that they cover best, one group for each class; what is left
    over is wrong everywhere (`metrics.match`). `paper.RELEASED` has the choices of the paper's code.

    Args:
        backbone: the model.
        samples: images with label maps.
        thresholds: of merging.
        layers: 0-based; the expert if None.
        steps_from_end, steps, merging, kinds, seed, zero_tokens: as in `group`.
        matching: "image" matches groups and classes once for an image, as the paper says, "rows" in every row of pixels
            anew, as its released code does (`metrics.match_rows`).
        absent: "skip" averages over the classes that occur; "zero" also counts classes without a true pixel that were
            given pixels, as the released code does (`metrics.miou`).
        progress: show a progress bar.

    Returns:
        Columns layer, threshold, pACC, mACC, mIoU (from the confusion matrix of the whole set), groups (mean number for
        an image), images.

    Raises:
        InputError: another `merging` or `matching`, a label map that does not fit its image, or as `group`.

    Source: Seg4Diff, arXiv 2509.18096, table 2.
    """
    if matching not in ("image", "rows"):
        raise InputError(f"expected matching='image' or matching='rows', got {matching!r}")
    wanted = check_layers(backbone, ["expert"] if layers is None else list(layers))
    vocabulary = sorted({name for sample in samples for name in sample.class_names})
    classes = len(vocabulary)
    prompt = backbone.encode_prompt("", zero_tokens=zero_tokens)
    tokens = prompt.indices(*kinds)
    totals = torch.zeros(len(wanted), len(thresholds), classes + 1, classes + 1, dtype=torch.int64)
    counts = torch.zeros(len(wanted), len(thresholds), dtype=torch.float32)
    for index, sample in enumerate(tqdm(samples, unit="image", disable=not progress, desc=f"{backbone.name} grouping")):
        picture = open_sample(sample, index).picture
        target = true_classes(sample.label_map, sample.class_names, vocabulary)
        latents = backbone.encode_image(picture)
        maps = read_token_maps(backbone, latents, prompt, wanted, tokens, steps_from_end, steps, seed)[0].cpu()
        for i in range(len(wanted)):
            for j, threshold in enumerate(thresholds):
                proposals, _ = masks.merge_maps(maps[i], threshold, merging=merging)
                found = masks.label_map(proposals, tuple(target.shape))
                if matching == "image":
                    named = metrics.match(found, target, classes, ignore=-1)
                    totals[i, j] += metrics.confusion(named, target, classes + 1, ignore=-1)
                else:
                    totals[i, j] += metrics.match_rows(found, target, classes, ignore=-1)
                counts[i, j] += len(proposals)
    rows = [
        (
            layer,
            threshold,
            metrics.pixel_accuracy(totals[i, j]).item(),
            metrics.mean_accuracy(totals[i, j]).item(),
            metrics.miou(totals[i, j], range(classes), absent).item(),
            (counts[i, j] / len(samples)).item(),
            len(samples),
        )
        for i, layer in enumerate(wanted)
        for j, threshold in enumerate(thresholds)
    ]
    return pd.DataFrame(rows, columns=["layer", "threshold", "pACC", "mACC", "mIoU", "groups", "images"])


def pad_confusion(groups: Labels, target: Labels, classes: int, method: Unsupervised) -> Int[Tensor, "true predicted"]:
    """Pixel counts of groups, named after the classes that they cover best; the last column is of groups without a
    name.

    Args:
        groups: number of the group at each pixel.
        target: the true class at each pixel, or -1.
        classes: how many classes there are.
        method: whose matching it is.
    """
    if method.matching == "rows":
        return metrics.match_rows(groups, target, classes, ignore=-1)
    return metrics.confusion(metrics.match(groups, target, classes, ignore=-1), target, classes + 1, ignore=-1)
