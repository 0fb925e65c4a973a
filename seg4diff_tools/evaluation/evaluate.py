"""Evaluate methods of segmentation on a data set: resumable, on one process or several, with intervals."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from diffusers import DiffusionPipeline
from jaxtyping import Int
from torch import Tensor

from seg4diff_tools._runs import as_path
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.loading import as_backbone
from seg4diff_tools.caching import fingerprint
from seg4diff_tools.datasets import background_of
from seg4diff_tools.datasets.labels import renumber, true_classes
from seg4diff_tools.datasets.opened import OpenedSample
from seg4diff_tools.errors import InputError, as_names, some_of
from seg4diff_tools.evaluation import metrics as scoring
from seg4diff_tools.evaluation.counts import ImageCounts
from seg4diff_tools.evaluation.grouping_scores import pad_confusion
from seg4diff_tools.evaluation.results import SCORES, UNMATCHED, Evaluation
from seg4diff_tools.evaluation.runs import refuse_other_run, rows_of, run_counts
from seg4diff_tools.indices import as_int
from seg4diff_tools.segmentation.engine import label_maps, pad_groups
from seg4diff_tools.segmentation.options import OpenVocabulary, Options, Unsupervised, option_settings
from seg4diff_tools.segmentation.workbench import Workbench, label_frame

Protocol = Literal["present", "full"]
ImageMetric = Callable[[Int[np.ndarray, "y x"], Int[np.ndarray, "y x"]], float]


def evaluate(
    model: Backbone | DiffusionPipeline | str | Path,
    samples: Sequence,
    methods: Mapping[str, Options] | Options | None = None,
    protocol: Protocol | Sequence[Protocol] = "present",
    vocabulary: Sequence[str] | None = None,
    *,
    metrics: Mapping[str, ImageMetric] | None = None,
    out: str | Path | None = None,
    limit: int | None = None,
    shuffle_seed: int | None = None,
    about: Mapping[str, Any] | None = None,
    batch: int = 8,
    memory_budget: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Score methods of segmentation on the images of a data set, each with the same noise.

    Args:
        model: a backbone, a pipeline or a name.
        samples: images with label maps, such as `datasets.published` or `scenes.Scenes`.
        methods: options by name, or one options object; the paper's open-vocabulary segmentation if None. The first one
            is the reference of the others.
        protocol: "present" gives each image the classes of its own label map, as in the released evaluation and in
            Table 1; "full" the whole vocabulary. A list runs several. `Unsupervised` methods have none.
        vocabulary: all classes of the data set, for "full"; `samples.class_names` if None.
        metrics: further scores by name: functions of a predicted and a true label map (class indices, -1 where the
            truth is ignored; groups without a class have the largest index) that return a number for each image. An
            error on the first image stops the run; a later one gives NaN and a warning.
        out: folder for the counts of each image, in Parquet, and for the table; required with several processes
            (accelerate launch). A killed run resumes from there. With the same `memory_budget` the table is that of a
            run in one go; with None the free memory sets how many forwards run at once, and maps can differ by
            rounding, which moves a pixel only where two classes tie.
        limit: largest number of images.
        shuffle_seed: shuffle the images, so that a limit takes a random subset.
        about: further content of result.json, such as the data set's folder.
        batch: images in a group, and forwards at once.
        memory_budget: bytes beside the weights, by an estimate; None for most of what is free. Where a group does not
            fit, fewer images and forwards run at once.
        progress: show a progress bar with the mIoU of the first method so far, and the memory that is needed.

    Returns:
        Scores, with intervals, by class, by object size and by image. Unreadable samples are skipped and reported in a
        warning, in `skipped` and in the table.

    Raises:
        InputError: no samples, an unknown protocol, no vocabulary, a class outside it, an `out` folder of another run
            (refused before a model is loaded by name), a metric that fails on the first image, or more memory than
            memory_budget even for one image.
        CheckpointError: the folder's files are damaged, or the disk is full.

    Source: Seg4Diff, arXiv 2509.18096, tables 1 and 2; scores as in appendix A.4.
    """
    plan = run_settings(samples, methods, protocol, vocabulary, metrics=metrics, shuffle_seed=shuffle_seed, batch=batch)
    limit = None if limit is None else as_int(limit, "limit", 1)
    try:
        about = {"limit": limit, **json.loads(json.dumps(about or {}))}
    except TypeError:
        raise InputError(f"expected about as a dict for JSON, got {about!r}: pass about={{'data': 'folder'}}") from None
    folder = None if out is None else as_path(out, "out")
    refuse_other_run(folder, plan)
    backbone = as_backbone(model)
    indices = list(range(len(samples)))
    if shuffle_seed is not None:
        indices = np.random.default_rng(plan["shuffle_seed"]).permutation(len(samples)).tolist()
    work, options = Workbench(backbone, memory_budget), _methods(methods)
    own = _OwnMetrics(metrics or {}, indices[0])
    compute = partial(_counts, work, options, rows_of(plan), plan["vocabulary"], own, plan["batch"])
    shared = {"folder": folder, "at_once": plan["batch"], "skip": True, "progress": progress, "kind": "evaluation"}
    result = run_counts(work, samples, compute, plan, indices[:limit], about=about, **shared)
    missing = {name: int(np.isnan(values).any(1).sum()) for name, values in result.values.items()}
    for name, count in missing.items():
        if count:
            errors = [told for told in own.failed if told.startswith(f"metrics[{name!r}]")]
            warnings.warn(
                f"metrics[{name!r}] is NaN for {count} of {len(result.images)} images, and its mean leaves them out"
                + (f": {errors[0]}" if errors else ""),
                stacklevel=2,
            )
    return result


def run_settings(
    samples: Sequence,
    methods: Mapping[str, Options] | Options | None = None,
    protocol: Protocol | Sequence[Protocol] = "present",
    vocabulary: Sequence[str] | None = None,
    *,
    metrics: Mapping[str, ImageMetric] | None = None,
    shuffle_seed: int | None = None,
    batch: int = 8,
) -> dict[str, Any]:
    """Check the arguments of `evaluate` and return the settings that need no model."""
    check_samples(samples)
    chosen = _methods(methods)
    protocols = some_of(protocol, "protocol", get_args(Protocol))
    own = getattr(samples, "class_names", None) if vocabulary is None else vocabulary
    words = None if own is None else list(as_names(own, "vocabulary"))
    if "full" in protocols and not words:
        raise InputError(
            "expected the vocabulary of protocol 'full', got samples without class_names: pass vocabulary=[...]"
        )
    if metrics is not None:
        if not (isinstance(metrics, Mapping) and all(map(callable, metrics.values()))):
            raise InputError(
                f"expected metrics as a dict of functions, got {metrics!r}: pass {{'name': function(label_map, truth)}}"
            )
        if taken := set(as_names(list(metrics), "keys of metrics", empty=True)) & set(SCORES):
            raise InputError(f"expected keys of metrics that are no score, got {taken}: choose another name")
    rows = [
        [name, each]
        for name, options in chosen.items()
        for each in (["matched"] if isinstance(options, Unsupervised) else protocols)
    ]
    return {
        "rows": rows,
        "methods": {name: option_settings(options) for name, options in chosen.items()},
        "vocabulary": words,
        "samples": len(samples),
        "shuffle_seed": None if shuffle_seed is None else as_int(shuffle_seed, "shuffle_seed", 0),
        "batch": as_int(batch, "batch", 1),
    } | ({"metrics": {name: fingerprint(metric) for name, metric in metrics.items()}} if metrics else {})


def check_samples(samples: Any) -> None:
    """Refuse anything but a sequence of samples, and an empty one."""
    if isinstance(samples, (str, Mapping)) or not (hasattr(samples, "__len__") and hasattr(samples, "__getitem__")):
        raise InputError(
            f"expected samples, a list or data set of images with label maps, got a {type(samples).__name__}: pass "
            "Scenes('test', 20), datasets.folder(...) or a list of LabeledImage"
        )
    if len(samples) == 0:
        raise InputError("expected at least one sample, got 0 samples: pass images with label maps")
    if isinstance(samples, (list, tuple, np.ndarray)) and not hasattr(samples[0], "label_map"):
        raise InputError(
            f"expected samples with image, label_map and class_names, got a {type(samples[0]).__name__}: pass "
            f"LabeledImage"
        )


def _methods(methods: Any) -> dict[str, Options]:
    if methods is None:
        return {"Seg4Diff": OpenVocabulary()}
    if isinstance(methods, (OpenVocabulary, Unsupervised)):
        return {"Seg4Diff" if isinstance(methods, OpenVocabulary) else "pads": methods}
    known = isinstance(methods, Mapping) and all(
        isinstance(name, str) and isinstance(each, (OpenVocabulary, Unsupervised)) for name, each in methods.items()
    )
    if not known or not methods:
        raise InputError(
            f"expected methods, at least one, as options by name, got {methods!r}: pass {{'name': OpenVocabulary(...)}}"
        )
    return dict(methods)


def _counts(
    work: Workbench,
    methods: Mapping[str, Options],
    rows: pd.MultiIndex,
    vocabulary: Sequence[str] | None,
    metrics: "_OwnMetrics",
    batch: int,
    group: Sequence[OpenedSample],
    tick: Callable[[float], Any],
) -> list[ImageCounts]:
    """Count the pixels of a group of images by every method under every protocol."""
    work.forget()
    work.images += len(group)
    shown = [each for each in group if len(each.sample.class_names)]
    encode_images(work, shown, next(iter(methods.values())), tick)
    found: dict[int, list[tuple[np.ndarray, list[float]]]] = {each.index: [] for each in shown}
    for name, protocol in rows if shown else ():
        before = work.seconds["attention"] + work.seconds["labels"]
        confusions = _confusions(work, methods[name], protocol, vocabulary, metrics, batch, shown)
        work.rows[name, protocol] += work.seconds["attention"] + work.seconds["labels"] - before
        for each, own in zip(shown, confusions, strict=True):
            found[each.index].append(own)
    records = []
    for each in group:
        true, predicted = tuple(each.sample.class_names), _known(each, vocabulary)
        confusion = np.zeros((len(rows), 0, len(predicted)), np.int64)
        values = np.full((len(rows), len(metrics.functions)), np.nan)
        if true:
            confusion = np.stack([own for own, _ in found[each.index]])
            values = np.array([own for _, own in found[each.index]], np.float64).reshape(values.shape)
        background = background_of(each.sample)
        records.append(ImageCounts(each.index, confusion, true, predicted, background, each.fingerprint, values))
    return records


def encode_images(
    work: Workbench, group: Sequence[OpenedSample], options: Options, tick: Callable[[float], Any]
) -> None:
    """Encode the images of a group one by one, half of the work at full size, and update the progress bar."""
    if getattr(options, "tiles", 1) == 1:
        for each in group:
            work.latents([each.picture], options.fit, options.size)
            tick(0.5)


def _known(each: OpenedSample, vocabulary: Sequence[str] | None) -> tuple[str, ...]:
    return (*(vocabulary or each.sample.class_names), UNMATCHED)


def _confusions(
    work: Workbench,
    method: Options,
    protocol: str,
    vocabulary: Sequence[str] | None,
    metrics: "_OwnMetrics",
    batch: int,
    group: Sequence[OpenedSample],
) -> list[tuple[Int[np.ndarray, "true predicted"], list[float]]]:
    """Count the pixels of a group of images by one method, columns as in `_known`, and compute further metrics."""
    pictures = [each.picture for each in group]
    if isinstance(method, OpenVocabulary):
        asked = [(vocabulary or []) if protocol == "full" else each.sample.class_names for each in group]
        found = label_maps(work, pictures, asked, method, batch=batch)
    else:
        found = pad_groups(work, pictures, method)
    results = []
    with work.timed("scores"):
        for index, (each, labels) in enumerate(zip(group, found, strict=True)):
            known, names = _known(each, vocabulary), each.sample.class_names
            whole = true_classes(each.sample.label_map, names, known)
            height, width = whole.shape
            left, top, right, bottom = label_frame(work.backbone, (height, width), method.fit, method.size)
            target = whole[top:bottom, left:right]
            if isinstance(method, OpenVocabulary):
                named = renumber(labels, asked[index], known, ignore=-1)
                counts = scoring.confusion(named, target, len(known), ignore=-1)
            else:
                named = scoring.match(labels, target, len(known) - 1, ignore=-1) if metrics.functions else labels
                counts = pad_confusion(labels, target, len(known) - 1, method)
            values = metrics.values(each.index, named, target)
            results.append((counts[[known.index(name) for name in names]].numpy(), values))
    return results


class _OwnMetrics:
    """A user's metrics by name, and their failures; on the first image of the run, a failure raises."""

    def __init__(self, functions: Mapping[str, ImageMetric], first: int) -> None:
        self.functions, self.first = functions, first
        self.failed: list[str] = []

    def values(self, index: int, labels: Tensor, target: Tensor) -> list[float]:
        """Return the value of each metric for a sample; NaN where it fails after the first image."""
        found = []
        for name, function in self.functions.items():
            try:
                found.append(float(function(labels.numpy(), target.numpy())))
            except Exception as error:  # whatever a user's function raises
                told = f"metrics[{name!r}] for sample {index}, got {type(error).__name__}: {error}"
                if index == self.first:
                    raise InputError(f"expected a number from {told}: return a float for each image") from error
                self.failed.append(told)
                found.append(float("nan"))
        return found
