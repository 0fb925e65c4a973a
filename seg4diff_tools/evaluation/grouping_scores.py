"""Scores of unsupervised grouping at several layers and thresholds, from one forward for each image."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from diffusers import DiffusionPipeline
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.loading import as_backbone
from seg4diff_tools.datasets import Sample
from seg4diff_tools.datasets.labels import true_classes
from seg4diff_tools.datasets.opened import open_sample
from seg4diff_tools.errors import InputError, instance_of, one_of
from seg4diff_tools.evaluation import metrics
from seg4diff_tools.evaluation.released_frame import released_frame
from seg4diff_tools.indices import as_float
from seg4diff_tools.segmentation import masks
from seg4diff_tools.segmentation.engine import Labels, model_layers, pad_maps
from seg4diff_tools.segmentation.options import Layers, Unsupervised
from seg4diff_tools.segmentation.unsupervised import PAPER
from seg4diff_tools.segmentation.workbench import Workbench, label_frame


def grouping_scores(
    model: Backbone | DiffusionPipeline | str | Path,
    samples: Sequence[Sample],
    thresholds: float | Sequence[float],
    layers: Layers = None,
    options: Unsupervised = PAPER,
    *,
    absent: metrics.Absent = "skip",
    frame: Literal["image", "released"] = "image",
    progress: bool = True,
) -> pd.DataFrame:
    """Score unsupervised grouping at several layers and thresholds.

    Each image's groups are matched one to one with its classes; unmatched groups count as errors (`metrics.match`). The
    paper's code has the settings
    `grouping_scores(model, samples, options=Unsupervised(**RELEASED["group"]), **RELEASED["grouping_scores"])`, with
    `paper.RELEASED`.

    Args:
        model: a backbone, a diffusers pipeline, or the name or folder of a model.
        samples: images with label maps.
        thresholds: of merging.
        layers: 0-based, each scored separately; those of the options if None, the expert by default.
        options: all other settings; maps of several steps or seeds are averaged.
        absent: "skip" averages over the classes that occur; "zero" also over predicted classes without a true pixel, as
            the released code does (`metrics.miou`).
        frame: "image" scores an image at its own size; "released" resizes it to 640 pixels, pads it and crops its label
            map as the released code does (`released_frame`), with fit="resize" and the model's own size.
        progress: show a progress bar.

    Returns:
        Columns layer, threshold, pACC, mACC, mIoU (from the confusion matrix of the whole set), groups (mean number per
        image), images.

    Raises:
        InputError: no samples, options of another kind, a label map that does not fit its image, or as `group`.

    Source: Seg4Diff, arXiv 2509.18096, table 2.
    """
    instance_of(options, Unsupervised, "options", "options such as Unsupervised(matching='rows')")
    options = replace(options, layers=options.layers if layers is None else layers)
    one_of(absent, "absent", ("skip", "zero"))
    one_of(frame, "frame", ("image", "released"))
    if frame == "released" and (options.fit != "resize" or options.size is not None):
        raise InputError(
            f"expected fit='resize' and size=None with frame='released', got fit={options.fit!r} and "
            f"size={options.size}: leave both out"
        )
    wanted = [as_float(each, "thresholds") for each in ([thresholds] if isinstance(thresholds, float) else thresholds)]
    if not wanted or not len(samples):
        raise InputError(
            f"expected at least one threshold and sample, got {len(wanted)} and {len(samples)}: pass thresholds=[0.035]"
        )
    backbone = as_backbone(model)
    chosen, work = model_layers(backbone, options) or [], Workbench(backbone)
    vocabulary = sorted({name for sample in samples for name in sample.class_names})
    classes = len(vocabulary)
    totals = torch.zeros(len(chosen), len(wanted), classes + 1, classes + 1, dtype=torch.int64)
    counts = torch.zeros(len(chosen), len(wanted), dtype=torch.float32)
    for index, sample in enumerate(tqdm(samples, unit="image", disable=not progress, desc=f"{backbone.name} grouping")):
        picture = open_sample(sample, index).picture
        target = true_classes(sample.label_map, sample.class_names, vocabulary)
        framed = None
        if frame == "released":
            framed = released_frame(picture, target, (backbone.image_size, backbone.image_size))
            picture, target = framed.image, framed.label_map
        else:
            left, top, right, bottom = label_frame(backbone, tuple(target.shape), options.fit, options.size)
            target = target[top:bottom, left:right]
        work.forget()
        maps = pad_maps(work, [picture], options)[0].mean(0).cpu()
        for i in range(len(chosen)):
            for j, threshold in enumerate(wanted):
                proposals, _ = masks.merge_maps(maps[i], threshold, options.rounds, options.merging)
                found = framed.labels(proposals) if framed else masks.label_map(proposals, tuple(target.shape))
                totals[i, j] += pad_confusion(found, target, classes, options)
                counts[i, j] += len(proposals)
    scores = {
        "pACC": metrics.pixel_accuracy(totals),
        "mACC": metrics.mean_accuracy(totals),
        "mIoU": metrics.miou(totals, range(classes), absent),
        "groups": (counts / len(samples)).double(),
    }
    table = pd.DataFrame([*product(chosen, wanted)], columns=["layer", "threshold"])
    return table.assign(**{name: each.flatten().numpy() for name, each in scores.items()}, images=len(samples))


def pad_confusion(groups: Labels, target: Labels, classes: int, method: Unsupervised) -> Int[Tensor, "true predicted"]:
    """Count the pixels of groups by matched class; -1 is ignored, the last column counts unmatched groups."""
    if method.matching == "rows":
        return metrics.match_rows(groups, target, classes, ignore=-1)
    return metrics.confusion(metrics.match(groups, target, classes, ignore=-1), target, classes + 1, ignore=-1)
