"""Evaluate methods of segmentation on a data set: resumable, on one process or several, with intervals."""

import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from diffusers import DiffusionPipeline
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from seg4diff_tools._runs import SETTINGS, as_path, open_run, processes, read_settings, replace_file
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.loading import as_backbone
from seg4diff_tools.caching import fingerprint, model_fingerprint
from seg4diff_tools.datasets import background_of
from seg4diff_tools.datasets.labels import renumber, true_classes
from seg4diff_tools.datasets.opened import OpenedSample
from seg4diff_tools.errors import CheckpointError, InputError
from seg4diff_tools.evaluation import metrics as scoring
from seg4diff_tools.evaluation.counts import ImageCounts, count_images, own_groups, stored_shards
from seg4diff_tools.evaluation.grouping_scores import pad_confusion
from seg4diff_tools.evaluation.results import UNMATCHED, Collected, Evaluation
from seg4diff_tools.indices import as_int
from seg4diff_tools.segmentation.engine import label_maps, pad_groups
from seg4diff_tools.segmentation.options import OpenVocabulary, Options, Unsupervised, option_settings
from seg4diff_tools.segmentation.workbench import Workbench, label_frame

Protocol = Literal["present", "full"]
ImageMetric = Callable[[Int[np.ndarray, "y x"], Int[np.ndarray, "y x"]], float]
Compute = Callable[[list[OpenedSample], Callable[[float], Any]], list[ImageCounts]]
RUN = "an evaluation"
AXES = {
    "direction": "directions",
    "normalize": "normalize",
    "steps_from_end": "steps_from_end",
    "layer": "layers",
    "head": "heads",
}
"""Columns of a sweep's rows, in the order of its loops, and the settings that hold their values."""


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
    progress: bool = True,
) -> Evaluation:
    """Score methods of segmentation on the images of a data set, each with the same noise.

    Args:
        model: a backbone, a pipeline or a name.
        samples: images with label maps, such as `datasets.published` or `scenes.Scenes`.
        methods: options by name, or one options object; the paper's way to segment by class names if None. The first
            one is the reference of the others.
        protocol: "present" gives each image the classes of its own label map, as in the released evaluation and in
            Table 1; "full" the whole vocabulary. Several are run side by side. `Unsupervised` methods have none.
        vocabulary: all classes of the data set, for "full"; `samples.class_names` if None.
        metrics: further scores by name: functions of a label map and the true one (class indices, -1 where the truth
            is to be ignored; groups without a class have the largest index) that return a number for each image.
        out: folder for the counts of each image, in Parquet, and for the table. A run that was killed goes on from
            there and ends with the identical table. More than one process (accelerate launch) needs it.
        limit: evaluate no more images than this.
        shuffle_seed: take images in the order that this seed draws, so that a limit takes a random part.
        about: what else result.json is to hold, such as the data set's folder.
        batch: images of a group, and forwards to run at once.
        progress: show a progress bar with the mIoU of the first method so far.

    Returns:
        Scores, with intervals, by class, by object size and by image. Samples that cannot be read are left out and
        named in a warning, in `skipped` and in the table.

    Raises:
        InputError: no samples, an unknown protocol, no vocabulary, a class outside it, or an `out` folder of another
            run (refused before a model is loaded by its name).
        CheckpointError: the folder's files are damaged, or the disk is full.

    Source: Seg4Diff, arXiv 2509.18096, tables 1 and 2; scores as in appendix A.4.
    """
    plan = run_settings(samples, methods, protocol, vocabulary, metrics=metrics, shuffle_seed=shuffle_seed, batch=batch)
    limit = None if limit is None else as_int(limit, "limit", 1)
    folder = None if out is None else as_path(out, "out")
    refuse_other_run(folder, plan)
    backbone = as_backbone(model)
    indices = list(range(len(samples)))
    if shuffle_seed is not None:
        indices = np.random.default_rng(plan["shuffle_seed"]).permutation(len(samples)).tolist()
    work, options = Workbench(backbone), _methods(methods)
    compute = partial(_counts, work, options, rows_of(plan), plan["vocabulary"], metrics or {}, plan["batch"])
    return run_counts(
        work,
        samples,
        compute,
        plan,
        indices[:limit],
        folder=folder,
        at_once=plan["batch"],
        skip=True,
        progress=progress,
        about={"limit": limit, **(about or {})},
        kind="evaluation",
    )


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
    """Check the arguments of `evaluate` and return the settings that need no model.

    Args:
        samples, methods, protocol, vocabulary, metrics, shuffle_seed, batch: as in `evaluate`.

    Raises:
        InputError: as `evaluate`.
    """
    check_samples(samples)
    chosen = _methods(methods)
    protocols = [protocol] if isinstance(protocol, str) else protocol
    known = ("present", "full")
    if not isinstance(protocols, Sequence) or not protocols or any(each not in known for each in protocols):
        raise InputError(
            f"expected protocol 'present' or 'full', or a list of them, got {protocol!r}: pass protocol='present'"
        )
    own = getattr(samples, "class_names", None) if vocabulary is None else vocabulary
    words = None if own is None else check_words(own, "vocabulary")
    if "full" in protocols and not words:
        raise InputError(
            "expected the vocabulary of protocol 'full', got samples without class_names: pass vocabulary=[...]"
        )
    if metrics is not None and not (isinstance(metrics, Mapping) and all(map(callable, metrics.values()))):
        raise InputError(
            f"expected metrics as a dict of functions, got {metrics!r}: pass {{'name': function(label_map, truth)}}"
        )
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


def refuse_other_run(folder: str | os.PathLike[str] | None, settings: Mapping[str, Any]) -> None:
    """Refuse a folder of another run by the settings that need no model, before one is loaded.

    Args:
        folder: of the run; nothing is checked where it holds none.
        settings: from `run_settings`.

    Raises:
        InputError: a run with other settings.
        CheckpointError: its settings cannot be read.
    """
    if folder is None or not (as_path(folder, "out") / SETTINGS).exists():
        return
    there, now = read_settings(as_path(folder, "out"), RUN), json.loads(json.dumps(settings))
    if differing := [key for key in now if now[key] != there.get(key)]:
        told = "; ".join(f"{key}: {there.get(key)} there, {now[key]} now" for key in differing)
        raise InputError(f"expected the settings of {RUN} in {folder}, got others ({told}): choose another folder")


def run_counts(
    work: Workbench,
    samples: Sequence,
    compute: Compute,
    plan: Mapping[str, Any],
    indices: Sequence[int],
    *,
    folder: Path | None,
    at_once: int,
    skip: bool,
    progress: bool,
    kind: str,
    about: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Count the pixels of all images by `compute`, stored ones included, and collect them.

    Args:
        work: with the model.
        samples, indices, at_once, skip: as in `count_images`.
        compute: from a group of samples to their counts; calls its second argument with the part of an image that is
            done.
        plan: settings besides those of the model.
        folder: of the run.
        progress, about: as in `evaluate`.
        kind: for the progress bar.
    """
    backbone, state, began = work.backbone, processes(), time.perf_counter()
    model = {"model": backbone.name, "fingerprint": model_fingerprint(backbone), "dtype": str(backbone.dtype)}
    settings, rows = model | dict(plan), rows_of(plan)
    if folder is not None:
        open_run(folder, settings, RUN)
    found = Collected(rows, list(plan.get("metrics", ())))
    own = sum(part.stop - part.start for part in own_groups(len(indices), at_once))
    shown = progress and state.is_main_process
    with tqdm(total=own, unit="image", disable=not shown, desc=f"{backbone.name} {kind}") as bar:
        finished = 0

        def counted(group: list[OpenedSample], update: Callable = bar.update) -> list[ImageCounts]:
            return compute(group, update)

        for shard in count_images(samples, counted, indices, folder=folder, at_once=at_once, skip=skip):
            found.add(shard)
            finished += len(shard.records) + len(shard.faults)
            if shown:
                bar.set_postfix_str(f"mIoU {100 * found.running():.1f} %", refresh=False)
            bar.update(finished - bar.n)
    work.seconds["files"] = time.perf_counter() - began - sum(work.seconds.values())
    if folder is not None and state.num_processes > 1:
        state.wait_for_everyone()
        found, wanted = Collected(rows, list(plan.get("metrics", ()))), set(indices)
        for shard in stored_shards(folder):
            found.add(shard, wanted)
    if not found.images:
        raise InputError(f"expected samples that can be read, got none among {len(indices)}: {found.faults}")
    if found.faults:
        number, message = next(iter(found.faults.items()))
        warnings.warn(
            f"{len(found.faults)} of {len(indices)} samples could not be read and are left out, such as number "
            f"{number}: "
            f"{message}. They are tried again when the same run is started again.",
            stacklevel=3,
        )
    pace = {row: seconds / work.images for row, seconds in work.rows.items()} if work.images else {}
    result = found.evaluation(settings, work.images, work.seconds, pace)
    if folder is not None and state.is_main_process:
        _write_table(folder, result, {"device": str(backbone.device), **(about or {})})
    return result


def read_evaluation(out: str | Path) -> Evaluation:
    """Read an evaluation or a sweep from its folder, without the model; of an unfinished run, the images so far.

    Args:
        out: the folder that `evaluate` or `layer_step_sweep` wrote.

    Raises:
        CheckpointError: no such folder, another kind of folder, or no image that could be read.
    """
    folder = as_path(out, "out")
    settings = read_settings(folder, RUN)
    found = Collected(rows_of(settings), list(settings.get("metrics", ())))
    for shard in stored_shards(folder):
        found.add(shard)
    if not found.images:
        raise CheckpointError(f"expected counts of images in {out}, got none that could be read: {found.faults}")
    return found.evaluation({name: value for name, value in settings.items() if name != "kind"})


def rows_of(settings: Mapping[str, Any]) -> pd.MultiIndex:
    """Return the rows of an evaluation (method, protocol) or of a sweep (protocol and its axes)."""
    if "rows" in settings:
        return pd.MultiIndex.from_tuples([tuple(row) for row in settings["rows"]], names=["method", "protocol"])
    values = [[settings["protocol"]], *(settings[name] for name in AXES.values())]
    index = pd.MultiIndex.from_product(values, names=["protocol", *AXES])
    return index.reorder_levels(["protocol", "direction", "normalize", "layer", "steps_from_end", "head"])


def check_samples(samples: Any) -> None:
    """Refuse what is no sequence of samples.

    Raises:
        InputError: something else, or none.
    """
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


def check_words(words: Any, name: str) -> list[str]:
    """Return class names as a list.

    Raises:
        InputError: one string, nothing, or something that is no text.
    """
    if isinstance(words, str) or not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
        raise InputError(f"expected {name} as a list of class names, got {words!r}: pass ['cat', 'grass']")
    if not words or len(set(words)) < len(words):
        raise InputError(f"expected {name}, at least one class and none given twice, got {list(words)}: list each once")
    return list(words)


def _methods(methods: Any) -> dict[str, Options]:
    if methods is None:
        return {"Seg4Diff": OpenVocabulary()}
    if isinstance(methods, (OpenVocabulary, Unsupervised)):
        return {"Seg4Diff" if isinstance(methods, OpenVocabulary) else "pads": methods}
    right = isinstance(methods, Mapping) and all(isinstance(name, str) for name in methods)
    if (
        not right
        or not methods
        or any(not isinstance(each, (OpenVocabulary, Unsupervised)) for each in methods.values())
    ):
        raise InputError(
            f"expected methods, at least one, as options by name, got {methods!r}: pass {{'name': OpenVocabulary(...)}}"
        )
    return dict(methods)


def _counts(
    work: Workbench,
    methods: Mapping[str, Options],
    rows: pd.MultiIndex,
    vocabulary: Sequence[str] | None,
    metrics: Mapping[str, ImageMetric],
    batch: int,
    group: Sequence[OpenedSample],
    tick: Callable[[float], Any],
) -> list[ImageCounts]:
    """Count the pixels of a few images by every method under every protocol."""
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
        values = np.full((len(rows), len(metrics)), np.nan)
        if true:
            confusion = np.stack([own for own, _ in found[each.index]])
            values = np.array([own for _, own in found[each.index]], np.float64).reshape(values.shape)
        background = background_of(each.sample)
        records.append(ImageCounts(each.index, confusion, true, predicted, background, each.fingerprint, values))
    return records


def encode_images(
    work: Workbench, group: Sequence[OpenedSample], options: Options, tick: Callable[[float], Any]
) -> None:
    """Encode the images of a group one by one, half of the work at real size, and tell the progress bar."""
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
    metrics: Mapping[str, ImageMetric],
    batch: int,
    group: Sequence[OpenedSample],
) -> list[tuple[Int[np.ndarray, "true predicted"], list[float]]]:
    """Count the pixels of a few images by one method, columns as in `_known`, and compute further metrics."""
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
                named = scoring.match(labels, target, len(known) - 1, ignore=-1) if metrics else labels
                counts = pad_confusion(labels, target, len(known) - 1, method)
            values = [_value(name, metric, named, target) for name, metric in metrics.items()]
            results.append((counts[[known.index(name) for name in names]].numpy(), values))
    return results


def _value(name: str, metric: ImageMetric, labels: Tensor, target: Tensor) -> float:
    value = metric(labels.numpy(), target.numpy())
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"expected a number from metrics[{name!r}], got a {type(value).__name__}: return a float for each image"
        ) from error


def _write_table(folder: Path, result: Evaluation, about: Mapping[str, Any]) -> None:
    """Write the table, and all that determines it."""
    table = result.table()
    replace_file(folder / "table.csv", table.to_csv(index=False).encode())
    content = {
        "table": json.loads(table.to_json(orient="records", double_precision=15)),
        "settings": dict(result.settings),
        "skipped": dict(result.skipped),
        "versions": {name: version(name) for name in ("seg4diff-tools", "torch", "diffusers", "transformers")},
        "python": platform.python_version(),
        **about,
        "processes": processes().num_processes,
        "seconds": dict(result.seconds),
    }
    replace_file(folder / "result.json", json.dumps(content, indent=1).encode())
