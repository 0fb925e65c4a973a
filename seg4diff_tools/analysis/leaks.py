"""Leak test: how much of a word's map lies on another thing of the picture."""

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pandas as pd
import torch

from seg4diff_tools.analysis.search import sample_maps
from seg4diff_tools.attention.areas import area_means
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checks import check_layers
from seg4diff_tools.backbones.loading import as_backbone
from seg4diff_tools.datasets import Sample
from seg4diff_tools.errors import InputError
from seg4diff_tools.indices import as_int


def leakage(
    backbone: Backbone,
    samples: Sequence[Sample],
    layers: int | Sequence[int] | str | None = None,
    *,
    steps_from_end: int = 8,
    steps: int = 28,
    seed: int = 0,
    batch: int = 8,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure how much of each word's image-to-text map lies on each other class of the image.

    Args:
        backbone: the model.
        samples: images with label maps; the prompt names each one's classes.
        layers: 0-based; "double" for the double-stream blocks; None for all.
        steps_from_end: noise level; 8 of 28 is the paper's.
        steps: length of the schedule.
        seed: of the noise.
        batch: forwards to run at once.
        progress: show a progress bar.

    Returns:
        A row for each image, layer and ordered pair of its classes. Columns: image (its index), layer, word, other,
        leak (mean of the word's map over the other's places, divided by the sum of that and its mean over its own
        places: 0 is none, 0.5 a map that cannot tell them apart), share (of the whole map, what lies on the other) and
        area (share of the image that the other covers). `mean_intervals` sums it up.

    Raises:
        InputError: samples of which none shows two classes, one whose label map does not fit, or a layer or step out of
            range.

    Source: maps are those of Seg4Diff, arXiv 2509.18096, equations 9 to 12.
    """
    backbone = as_backbone(backbone)
    wanted, noise = check_layers(backbone, layers), [as_int(steps_from_end, "steps_from_end", 1)]
    read = {"layers": wanted, "steps_from_end": noise, "steps": steps, "seed": seed, "batch": batch}
    rows = []
    for image, (sample, maps) in enumerate(sample_maps(backbone, samples, "leaks", progress, True, **read)):
        labels = torch.as_tensor(np.array(sample.label_map)).long()
        masks = torch.stack([labels == index for index in range(len(sample.class_names))])
        # the share of each token that a class covers
        places = area_means(masks, tuple(maps.shape[-2:])).flatten(1)
        on = torch.einsum("lwp,op->lwo", maps[0, :, 0].flatten(2).double(), places)
        means, total = on / places.sum(1), maps[0, :, 0].double().sum((-2, -1))
        seen = [index for index, own in enumerate(places) if own.sum() > 0]
        for word, other in permutations(seen, 2):
            leak = means[:, word, other] / (means[:, word, other] + means[:, word, word])
            share, area = on[:, word, other] / total[:, word], places[other].mean().item()
            names = sample.class_names[word], sample.class_names[other]
            rows += [
                (image, layer, *names, *values, area)
                for layer, *values in zip(wanted, leak.tolist(), share.tolist(), strict=True)
            ]
    if not rows:
        raise InputError(f"expected samples that show two classes, got none among {len(samples)}: pass other images")
    return pd.DataFrame(rows, columns=["image", "layer", "word", "other", "leak", "share", "area"])
