"""Which layer, step and head segments best: whole runs over a data set, which a kill does not cost."""

from collections.abc import Sequence
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from seg4diff_tools._runs import open_run, processes, read_settings
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checks import Head, check_heads, check_layers
from seg4diff_tools.caching import model_fingerprint
from seg4diff_tools.datasets import Sample, background_of
from seg4diff_tools.datasets.labels import true_classes
from seg4diff_tools.datasets.opened import OpenedSample
from seg4diff_tools.errors import InputError
from seg4diff_tools.evaluation import metrics
from seg4diff_tools.evaluation.counts import SCORES, ImageCounts, TotalCounts, count_images, placed, stored_counts
from seg4diff_tools.images import Fit
from seg4diff_tools.prompts import Prompt
from seg4diff_tools.segmentation import masks
from seg4diff_tools.segmentation.class_maps import Direction, check_kinds, read_class_maps
from seg4diff_tools.segmentation.segment import label_frame

NORMALISATIONS = ("softmax", "softmax+minmax", "scores", "scores+minmax")
CONFIGURATION = ["model", "protocol", "direction", "normalize", "layer", "steps_from_end", "head"]

# Label maps of this many pixels are made at once; more is no faster and needs more memory.
PIXELS_AT_ONCE = 1 << 22


def layer_step_sweep(
    backbone: Backbone,
    samples: Sequence[Sample],
    layers: Sequence[int] | None = None,
    steps_from_end: int | Sequence[int] = (8,),
    heads: Literal["mean", "all"] | Sequence[Head] = "mean",
    vocabulary: Sequence[str] | None = None,
    *,
    directions: Sequence[Direction] = ("i2t",),
    normalize: Sequence[str] = ("softmax",),
    steps: int = 28,
    fit: Fit = "resize",
    seed: int = 0,
    zero_tokens: int = 77,
    cut_prompt: bool = False,
    out: str | Path | None = None,
    batch: int = 8,
    progress: bool = True,
) -> pd.DataFrame:
    """Scores of open-vocabulary segmentation at many layers, steps and heads, from one forward for each image and step.

    Args:
        backbone: the model.
        samples: images with label maps, such as `scenes.Scenes` or `datasets.folder`.
        layers: 0-based; all by default.
        steps_from_end: noise levels; 8 (of 28 steps) is the paper's.
        heads: "mean" for the mean over heads, "all" for each head on its own, or a list of "mean" and indices.
        vocabulary: class names of the prompt. None names to each image the classes that it shows, as the paper's
            released evaluation does (protocol "present"); a list is given whole to each image (protocol "full").
        directions: "i2t", "t2i" or both (Fig 16).
        normalize: any of "softmax", "softmax+minmax", "scores", "scores+minmax" (Table 5).
        steps: length of the schedule.
        fit: "resize" or "crop"; with "crop" label maps are cropped alike.
        seed: of the noise, the same for all images.
        zero_tokens: zero vectors that stand for T5's tokens.
        cut_prompt: as in `segment`.
        out: folder for the counts of each image. A run that was killed goes on from there and ends with the identical
            table; a folder of other settings, another model or other images is refused. More images may be appended.
        batch: forwards to run at once (images times steps); a run in `out` keeps to its own.
        progress: show a progress bar.

    Returns:
        One row for each configuration: model, protocol, direction, normalize, layer, steps_from_end, head, then pACC, mACC,
        mIoU over all classes, object_mIoU and background_mIoU (0..1) from the confusion matrix of the whole set, and
        the number of images. `background` of the samples tells stuff from objects: without it all classes are objects.

    Raises:
        InputError: no samples, a label map of another size than its image, a class outside the vocabulary, a layer,
            step or head out of range, or an `out` folder of another run.

    Source: Seg4Diff, arXiv 2509.18096, figures 8, 15, 16, 17 and table 5; scores as in appendix A.4.
    """
    if isinstance(steps_from_end, int):
        steps_from_end = (steps_from_end,)
    if len(samples) == 0:
        raise InputError("expected at least one sample, got none")
    if wrong := set(normalize) - set(NORMALISATIONS):
        raise InputError(f"expected normalize from {', '.join(NORMALISATIONS)}, got {sorted(wrong)}")
    check_kinds([(direction, "softmax") for direction in directions])
    for name, values in (("directions", directions), ("normalize", normalize), ("steps_from_end", steps_from_end)):
        if len(values) == 0 or len(set(values)) < len(values):
            raise InputError(f"expected {name}, each one once, got {list(values)}")
    settings = {
        "model": backbone.name,
        "fingerprint": model_fingerprint(backbone),
        "protocol": "present" if vocabulary is None else "full",
        "vocabulary": None if vocabulary is None else list(vocabulary),
        "directions": list(directions),
        "normalize": list(normalize),
        "steps_from_end": list(steps_from_end),
        "layers": check_layers(backbone, layers),
        "heads": check_heads(backbone, heads),
        "steps": steps,
        "fit": fit,
        "seed": seed,
        "zero_tokens": zero_tokens,
        "cut_prompt": cut_prompt,
        "dtype": str(backbone.dtype),
        "batch": batch,
    }
    folder = None if out is None else Path(out)
    if folder is not None:
        open_run(folder, settings, "a sweep")
    wording = {"zero_tokens": zero_tokens, "cut_prompt": cut_prompt}
    whole = None if vocabulary is None else backbone.class_prompts(vocabulary, **wording)
    tally = TotalCounts()
    at_once = max(1, batch // len(steps_from_end))
    compute = partial(_counts, backbone, settings, whole, batch)
    with tqdm(total=len(samples), unit="image", disable=not progress, desc=f"{backbone.name} sweep") as bar:
        for shard in count_images(samples, compute, folder=folder, at_once=at_once):
            for record in shard.records:
                tally.add(record)
            bar.update(len(shard.records))
    if folder is not None and processes().num_processes > 1:
        processes().wait_for_everyone()
        tally = TotalCounts(record for record in stored_counts(folder) if record.index < len(samples))
    return _table(settings, tally)


def read_sweep(out: str | Path) -> pd.DataFrame:
    """The table of a sweep from its folder, without the model; of an unfinished run, over the images so far.

    Args:
        out: the folder that `layer_step_sweep` wrote.

    Returns:
        As `layer_step_sweep`.

    Raises:
        CheckpointError: no such folder, or none that a sweep wrote.
    """
    return _table(read_settings(Path(out), "a sweep"), TotalCounts(stored_counts(Path(out))))


def per_image_scores(out: str | Path) -> pd.DataFrame:
    """Scores of each image on its own, for best and worst cases.

    Args:
        out: the folder that `layer_step_sweep` wrote.

    Returns:
        One row for each image and configuration: image (its index in the samples), class_names (joined by a comma), the
        configuration and the scores as in `layer_step_sweep`, here over the classes that this image shows.

    Raises:
        CheckpointError: no such folder, or none that a sweep wrote.
    """
    settings, tables = read_settings(Path(out), "a sweep"), []
    for record in stored_counts(Path(out)):
        table = _table(settings, TotalCounts([record])).drop(columns="images")
        table.insert(0, "image", record.index)
        table.insert(1, "class_names", ", ".join(record.true))
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def per_image_counts(out: str | Path, vocabulary: Sequence[str]) -> Int[Tensor, "image configuration true predicted"]:
    """Pixel counts of each image on its own, such as `metrics.bootstrap_miou` takes them.

    Args:
        out: the folder that `layer_step_sweep` wrote.
        vocabulary: the classes of the rows and columns.

    Returns:
        Configurations in the order of the sweep's rows.

    Raises:
        CheckpointError: no such folder, or none that a sweep wrote.
        InputError: a class of the sweep that the vocabulary lacks.
    """
    read_settings(Path(out), "a sweep")
    counts = []
    for record in stored_counts(Path(out)):
        if missing := set(record.predicted) - set(vocabulary):
            raise InputError(
                f"expected every class in the vocabulary, got {sorted(missing)} outside it: add them to it"
            )
        counts.append(placed(record, vocabulary))
    return torch.stack(counts)


def _counts(
    backbone: Backbone, settings: dict[str, Any], whole: list[Prompt] | None, batch: int, group: Sequence[OpenedSample]
) -> list[ImageCounts]:
    """The counts of a few images in every configuration."""
    wording = {key: settings[key] for key in ("zero_tokens", "cut_prompt")}
    # one that shows no class has nothing to be scored, and no prompt of its own
    shown = [each for each in group if whole or len(each.sample.class_names)]
    records = [
        ImageCounts(each.index, _nothing(settings), (), (), background_of(each.sample), each.fingerprint)
        for each in group
        if each not in shown
    ]
    if not shown:
        return records
    maps = read_class_maps(
        backbone,
        torch.cat([backbone.encode_image(each.picture, fit=settings["fit"]) for each in shown]),
        [whole or backbone.class_prompts(each.sample.class_names, **wording) for each in shown],
        layers=settings["layers"],
        steps_from_end=settings["steps_from_end"],
        steps=settings["steps"],
        heads=settings["heads"],
        kinds=_kinds(settings),
        seed=settings["seed"],
        batch=batch,
    )
    for each, one in zip(shown, maps, strict=True):
        predicted = tuple(settings["vocabulary"] or each.sample.class_names)
        true = tuple(name for name in predicted if name in each.sample.class_names)
        target = true_classes(each.sample.label_map, each.sample.class_names, predicted)
        left, top, right, bottom = label_frame(backbone, target.shape, settings["fit"])
        counts = _confusion(one, target[top:bottom, left:right].to(one.device), settings)
        rows = counts[:, [predicted.index(name) for name in true]]
        records.append(ImageCounts(each.index, rows, true, predicted, background_of(each.sample), each.fingerprint))
    return records


def _nothing(settings: dict[str, Any]) -> Int[np.ndarray, "configuration 0 0"]:
    """ImageCounts of no pixels in every configuration."""
    axes = ("directions", "normalize", "steps_from_end", "layers", "heads")
    return np.zeros((prod(len(settings[axis]) for axis in axes), 0, 0), np.int64)


def _kinds(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """What the attention has to give: both rows of a min-max pair come from the same maps."""
    kinds = dict.fromkeys(variant.partition("+")[0] for variant in settings["normalize"])
    return list(product(settings["directions"], kinds))


def _confusion(
    maps: Float[Tensor, "kind step layer head class y x"], target: Int[Tensor, "height width"], settings: dict[str, Any]
) -> Int[np.ndarray, "configuration true predicted"]:
    """Confusion counts of one image, in the order direction, normalize, step, layer, head."""
    kinds, classes, parts = _kinds(settings), maps.shape[4], []
    for direction, variant in product(settings["directions"], settings["normalize"]):
        name, _, scaled = variant.partition("+")
        chosen = maps[kinds.index((direction, name))].flatten(0, 2)
        chosen = masks.minmax(chosen) if scaled else chosen
        for some in chosen.split(max(1, PIXELS_AT_ONCE // target.numel())):
            labels = masks.label_map(some, tuple(target.shape))
            parts.append(metrics.confusion(labels, target, classes, ignore=-1).cpu().numpy())
    return np.concatenate(parts)


def _table(settings: dict[str, Any], tally: TotalCounts) -> pd.DataFrame:
    """Scores of every configuration."""
    axes = ("directions", "normalize", "steps_from_end", "layers", "heads")
    table = pd.DataFrame(
        list(product(*(settings[axis] for axis in axes))),
        columns=["direction", "normalize", "steps_from_end", "layer", "head"],
    )
    common = {"model": settings["model"], "protocol": settings["protocol"], "images": tally.images}
    table = table.assign(**common).join(tally.scores())
    return table[[*CONFIGURATION, *SCORES, "images"]]
