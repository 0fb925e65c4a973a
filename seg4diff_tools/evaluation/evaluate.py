"""How well methods segment a data set, side by side: resumable, on one process or many, with the protocol in every row."""

import json
import platform
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Int
from tqdm.auto import tqdm

from seg4diff_tools._runs import open_run, processes, read_settings, replace_file
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.caching import model_fingerprint
from seg4diff_tools.datasets import background_of
from seg4diff_tools.datasets.labels import renumber, true_classes
from seg4diff_tools.datasets.opened import OpenedSample
from seg4diff_tools.errors import CheckpointError, InputError
from seg4diff_tools.evaluation import metrics
from seg4diff_tools.evaluation.counts import (
    ImageCounts,
    Shard,
    TotalCounts,
    count_images,
    own_groups,
    placed,
    stored_shards,
)
from seg4diff_tools.evaluation.grouping_scores import pad_confusion
from seg4diff_tools.segmentation.engine import Workbench, label_maps, pad_groups
from seg4diff_tools.segmentation.options import OpenVocabulary, Options, Unsupervised, option_settings
from seg4diff_tools.segmentation.segment import label_frame

Protocol = Literal["present", "full"]
UNMATCHED = "(no class)"
"""What pixels of a group without a name are predicted to be."""
SIZES = {"under 1 %": 0.01, "1 to 5 %": 0.05, "5 to 20 %": 0.2, "over 20 %": 1.0}
"""Sizes of objects: the largest share of the image's pixels that each one goes up to."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of methods on a data set.

    Attributes:
        pixels: for each image, row (method and protocol), class and count ("hits", "true", "predicted") a number of pixels.
        background: names of the classes that are stuff.
        totals: pACC, mACC, mIoU, object_mIoU and background_mIoU of each row, from the confusion matrix of the whole set.
        settings: all that decides the result.
        skipped: index and message of each sample that could not be read.
        done: how many images this process did anew.
        seconds: what they took, by kind of work.
        pace: seconds for an image of each row, from encoded image and prompts to the label map, of these images.
    """

    pixels: xr.DataArray
    background: tuple[str, ...]
    totals: pd.DataFrame
    settings: Mapping[str, Any]
    skipped: Mapping[int, str]
    done: int
    seconds: Mapping[str, float]
    pace: Mapping[tuple[str, str], float]

    def table(self, draws: int = 2000) -> pd.DataFrame:
        """One row for each method and protocol.

        Args:
            draws: of the bootstrap, which draws images with replacement, the same ones for each row.

        Returns:
            Columns model, method, protocol, mIoU with low and high (95 % interval), gain (mIoU minus that of the first method
            under the same protocol) with gain_low and gain_high, object_mIoU, background_mIoU, mACC, pACC (0..1), images and
            skipped.
        """
        hits, true, predicted = (
            torch.from_numpy(self.pixels.sel(count=c).values) for c in ("hits", "true", "predicted")
        )
        of_rows = (metrics.bootstrap(hits[:, i], true[:, i], predicted[:, i], draws) for i in range(len(self.totals)))
        drawn = torch.stack(list(of_rows)).numpy()
        rows = self.pixels["row"].to_index().to_frame(index=False)
        first = [rows.index[rows["protocol"] == protocol][0] for protocol in rows["protocol"]]
        scores = self.totals["mIoU"].to_numpy()
        low, high = metrics.interval(scores, drawn)
        gain_low, gain_high = metrics.interval(scores - scores[first], drawn - drawn[first])
        return pd.DataFrame(
            {
                "model": self.settings["model"],
                "method": rows["method"],
                "protocol": rows["protocol"],
                "mIoU": scores,
                "low": low,
                "high": high,
                "gain": scores - scores[first],
                "gain_low": gain_low,
                "gain_high": gain_high,
                **{name: self.totals[name] for name in ("object_mIoU", "background_mIoU", "mACC", "pACC")},
                "images": self.pixels.sizes["image"],
                "skipped": len(self.skipped),
            }
        )

    def by_class(self) -> pd.DataFrame:
        """IoU and accuracy (0..1) of every class that occurs: columns method, protocol, class, IoU, accuracy, pixels, images."""
        total = self.pixels.sum("image")
        hits, true, predicted = (total.sel(count=name, drop=True) for name in ("hits", "true", "predicted"))
        shown = (self.pixels.sel(count="true", drop=True) > 0).sum("image")
        columns = {"IoU": hits / (true + predicted - hits), "accuracy": hits / true, "pixels": true, "images": shown}
        return (
            xr.Dataset(columns)
            .to_dataframe()
            .query("pixels > 0")
            .reset_index()[["method", "protocol", "class", *columns]]
        )

    def by_size(self) -> pd.DataFrame:
        """IoU of objects by the share of the image that they cover.

        Returns:
            Columns method, protocol, size (`SIZES`), IoU (0..1, mean over objects), objects. An object is what an image shows of
            a class that is not stuff.
        """
        things = [name for name in self.pixels["class"].values if name not in self.background]
        hits, true, predicted = (
            self.pixels.sel({"class": things, "count": c}, drop=True) for c in ("hits", "true", "predicted")
        )
        # the share of the pixels that count: what is to be ignored is no part of the image
        share = true / self.pixels.sel(count="true", drop=True).sum("class")
        objects = xr.Dataset({"IoU": hits / (true + predicted - hits), "share": share.where(true > 0)})
        table = objects.to_dataframe().dropna(subset=["share"])
        table["size"] = pd.cut(table["share"], [0, *SIZES.values()], labels=list(SIZES))
        found = table.groupby(["method", "protocol", "size"], observed=True)["IoU"].agg(IoU="mean", objects="size")
        order = [(*row, size) for row in self.pixels["row"].values for size in SIZES]
        return (
            found.reindex(pd.MultiIndex.from_tuples(order, names=found.index.names))
            .fillna({"objects": 0})
            .reset_index()
        )

    def of_images(self) -> pd.DataFrame:
        """mIoU (0..1) of each image on its own: columns image, method, protocol, mIoU."""
        hits, true, predicted = (self.pixels.sel(count=c, drop=True) for c in ("hits", "true", "predicted"))
        scores = (hits / (true + predicted - hits)).where(true > 0).mean("class")
        return scores.rename("mIoU").to_dataframe().reset_index()[["image", "method", "protocol", "mIoU"]]

    def throughput(self) -> str:
        """Images a second, and what share of the time each kind of work took."""
        total = sum(self.seconds.values())
        if not self.done or not total:
            return "all images were done before"
        shares = ", ".join(f"{work} {seconds / total:.0%}" for work, seconds in sorted(self.seconds.items()))
        return f"{self.done} images at {self.done / total:.2f} a second: {shares}"


def evaluate(
    backbone: Backbone,
    samples: Sequence,
    methods: Mapping[str, Options] | None = None,
    protocol: Protocol | Sequence[Protocol] = "present",
    vocabulary: Sequence[str] | None = None,
    *,
    out: str | Path | None = None,
    limit: int | None = None,
    shuffle_seed: int | None = None,
    about: Mapping[str, Any] | None = None,
    batch: int = 8,
    progress: bool = True,
) -> Evaluation:
    """Scores of methods on the images of a data set, each with the same noise.

    Args:
        backbone: the model.
        samples: images with label maps, such as `datasets.published` or `scenes.Scenes`.
        methods: by name; the paper's way to segment by class names if None. The others are compared with the first.
        protocol: "present" names to each image the classes that its own label map has, as in the released evaluation and in
            Table 1; "full" the whole vocabulary. Several are run side by side. Methods without words have none.
        vocabulary: all classes of the data set, for "full"; `samples.class_names` if None.
        out: folder for the counts of each image, in Parquet, and for the table. A run that was killed goes on from there and
            ends with the identical table. More than one process (accelerate launch) needs it.
        limit: evaluate no more images than this.
        shuffle_seed: take images in the order that this seed draws, so that a limit takes a random part.
        about: what else result.json should say, such as where the data set lies.
        batch: images of a group, and forwards to run at once.
        progress: show a progress bar with the running mIoU of the first method.

    Returns:
        Scores, with intervals, by class, by object size and by image. Samples that cannot be read are left out and told in a
        warning, in `skipped` and in the table.

    Raises:
        InputError: no samples, an unknown protocol, no vocabulary, a class outside it, or an `out` folder of another run.
        CheckpointError: the folder's files are damaged, or the disk is full.

    Source: Seg4Diff, arXiv 2509.18096, tables 1 and 2; scores as in appendix A.4.
    """
    methods = {"Seg4Diff": OpenVocabulary()} if methods is None else dict(methods)
    protocols = [protocol] if isinstance(protocol, str) else list(protocol)
    if len(samples) == 0 or not methods or not set(protocols) <= {"present", "full"} or not protocols:
        raise InputError(
            f"expected samples, methods, and protocol 'present' or 'full', got {len(samples)} samples, {len(methods)} methods and "
            f"{protocol!r}"
        )
    vocabulary = getattr(samples, "class_names", None) if vocabulary is None else vocabulary
    vocabulary = None if vocabulary is None else list(vocabulary)
    if limit is not None and limit < 1:
        raise InputError(f"expected a limit of at least one image, got {limit}")
    if "full" in protocols and not vocabulary:
        raise InputError(
            "expected the vocabulary of protocol 'full', got samples without class_names: pass vocabulary=[...]"
        )
    rows = [
        (name, own)
        for name, how in methods.items()
        for own in (["matched"] if isinstance(how, Unsupervised) else protocols)
    ]
    indices = list(range(len(samples)))
    if shuffle_seed is not None:
        indices = np.random.default_rng(shuffle_seed).permutation(len(samples)).tolist()
    indices = indices[:limit]
    settings = {
        "model": backbone.name,
        "fingerprint": model_fingerprint(backbone),
        "dtype": str(backbone.dtype),
        "rows": rows,
        "methods": {name: option_settings(how) for name, how in methods.items()},
        "vocabulary": vocabulary,
        "samples": len(samples),
        "shuffle_seed": shuffle_seed,
        "batch": batch,
    }
    folder, state = None if out is None else Path(out), processes()
    if folder is not None:
        open_run(folder, settings, "an evaluation")
    work, found = Workbench(backbone), _Collected(rows)
    compute = partial(_counts, work, methods, rows, vocabulary, batch)
    began = time.perf_counter()
    own = sum(part.stop - part.start for part in own_groups(len(indices), batch))
    shown = progress and state.is_main_process
    with tqdm(total=own, unit="image", disable=not shown, desc=f"{backbone.name} evaluation") as bar:
        for shard in count_images(samples, compute, indices, folder=folder, at_once=batch, skip=True):
            found.add(shard)
            if shown:
                bar.set_postfix_str(f"mIoU {100 * found.tally.scores()['mIoU'].get(0, np.nan):.1f} %", refresh=False)
            bar.update(len(shard.records) + len(shard.faults))
    work.seconds["files"] = time.perf_counter() - began - sum(work.seconds.values())
    if folder is not None and state.num_processes > 1:
        state.wait_for_everyone()
        found = _Collected(rows)
        wanted = set(indices)
        for shard in stored_shards(folder):
            found.add(shard, wanted)
    if not found.tally.images:
        raise InputError(f"expected samples that can be read, got none among {len(indices)}: {found.faults}")
    if found.faults:
        first = next(iter(found.faults.items()))
        warnings.warn(
            f"{len(found.faults)} of {len(indices)} samples could not be read and are left out, such as number {first[0]}: "
            f"{first[1]}. They are tried again when the same run is started again.",
            stacklevel=2,
        )
    result = found.evaluation(settings, work)
    if folder is not None and state.is_main_process:
        _write_table(folder, result, {"limit": limit, "device": str(backbone.device), **(about or {})})
    return result


def read_evaluation(out: str | Path) -> Evaluation:
    """An evaluation from its folder, without the model; of an unfinished run, over the images so far.

    Args:
        out: the folder that `evaluate` wrote.

    Raises:
        CheckpointError: no such folder, none that an evaluation wrote, or no image that could be read.
    """
    settings = read_settings(Path(out), "an evaluation")
    found = _Collected([tuple(row) for row in settings["rows"]])
    for shard in stored_shards(Path(out)):
        found.add(shard)
    if not found.tally.images:
        raise CheckpointError(f"expected counts of images in {out}, got none that could be read: {found.faults}")
    return found.evaluation(settings)


class _Collected:
    """What is kept of each image: pixels of the classes that it shows or that were found in it."""

    def __init__(self, rows: Sequence[tuple[str, str]]) -> None:
        self.rows, self.tally, self.faults = rows, TotalCounts(), dict[int, str]()
        self._images: list[tuple[int, list[str], Int[np.ndarray, "row class 3"]]] = []
        self._background: set[str] = set()

    def add(self, shard: Shard, only: Collection[int] | None = None) -> None:
        """Adds the images of a shard, or those of them that are wanted."""
        self.faults |= {index: told for index, told in shard.faults.items() if only is None or index in only}
        for record in shard.records:
            if only is not None and record.index not in only:
                continue
            self.tally.add(record)
            self._background.update(record.background)
            names = list(dict.fromkeys((*record.true, *record.predicted)))
            square = placed(record, names).numpy()
            counts = np.stack([square.diagonal(axis1=1, axis2=2), square.sum(2), square.sum(1)], axis=-1)
            used = counts.any((0, 2))
            self._images.append((record.index, list(np.array(names)[used]), counts[:, used].astype(np.int32)))

    def evaluation(self, settings: Mapping[str, Any], work: Workbench | None = None) -> Evaluation:
        """All of it."""
        names = sorted({name for _, own, _ in self._images for name in own} - {UNMATCHED})
        place = {name: index for index, name in enumerate(names)}
        pixels = np.zeros((len(self._images), len(self.rows), len(names), 3), np.int64)
        for image, (_, own, counts) in enumerate(self._images):
            known = [index for index, name in enumerate(own) if name != UNMATCHED]
            pixels[image][:, [place[own[index]] for index in known]] = counts[:, known]
        coords = {
            "image": [index for index, _, _ in self._images],
            "row": pd.MultiIndex.from_tuples(self.rows, names=["method", "protocol"]),
            "class": names,
            "count": ["hits", "true", "predicted"],
        }
        return Evaluation(
            pixels=xr.DataArray(pixels, xr.Coordinates(coords), ("image", "row", "class", "count"), name="pixels"),
            background=tuple(sorted(self._background)),
            totals=self.tally.scores(),
            settings=settings,
            skipped=self.faults,
            done=work.images if work else 0,
            seconds=dict(work.seconds) if work else {},
            pace={row: seconds / work.images for row, seconds in work.rows.items()} if work else {},
        )


def _counts(
    work: Workbench,
    methods: Mapping[str, Options],
    rows: Sequence[tuple[str, str]],
    vocabulary: Sequence[str] | None,
    batch: int,
    group: Sequence[OpenedSample],
) -> list[ImageCounts]:
    """The counts of a few images by every method under every protocol."""
    work.forget()
    work.images += len(group)
    shown = [each for each in group if len(each.sample.class_names)]
    found: dict[int, list[np.ndarray]] = {each.index: [] for each in shown}
    for name, protocol in rows if shown else ():
        before = work.seconds["attention"] + work.seconds["labels"]
        confusions = _confusions(work, methods[name], protocol, vocabulary, batch, shown)
        work.rows[name, protocol] += work.seconds["attention"] + work.seconds["labels"] - before
        for each, confusion in zip(shown, confusions, strict=True):
            found[each.index].append(confusion)
    records = []
    for each in group:
        true, predicted = tuple(each.sample.class_names), _known(each, vocabulary)
        confusion = np.stack(found[each.index]) if true else np.zeros((len(rows), 0, len(predicted)), np.int64)
        records.append(
            ImageCounts(each.index, confusion, true, predicted, background_of(each.sample), each.fingerprint)
        )
    return records


def _known(each: OpenedSample, vocabulary: Sequence[str] | None) -> tuple[str, ...]:
    return (*(vocabulary or each.sample.class_names), UNMATCHED)


def _confusions(
    work: Workbench,
    method: Options,
    protocol: str,
    vocabulary: Sequence[str] | None,
    batch: int,
    group: Sequence[OpenedSample],
) -> list[Int[np.ndarray, "true predicted"]]:
    """Pixel counts of a few images by one method, columns as in `_known`."""
    pictures = [each.picture for each in group]
    if isinstance(method, OpenVocabulary):
        asked = [vocabulary if protocol == "full" else each.sample.class_names for each in group]
        found = label_maps(work, pictures, asked, method, batch=batch)
    else:
        found = pad_groups(work, pictures, method)
    results = []
    with work.timed("scores"):
        for index, (each, labels) in enumerate(zip(group, found, strict=True)):
            known, names = _known(each, vocabulary), each.sample.class_names
            target = true_classes(each.sample.label_map, names, known)
            if isinstance(method, OpenVocabulary):
                left, top, right, bottom = label_frame(work.backbone, tuple(target.shape), method.fit)
                labels = renumber(labels, asked[index], known, ignore=-1)
                counts = metrics.confusion(labels, target[top:bottom, left:right], len(known), ignore=-1)
            else:
                counts = pad_confusion(labels, target, len(known) - 1, method)
            results.append(counts[[known.index(name) for name in names]].numpy())
    return results


def _write_table(folder: Path, result: Evaluation, about: Mapping[str, Any]) -> None:
    """The table, and beside it all that decides it."""
    table = result.table()
    replace_file(folder / "table.csv", table.to_csv(index=False).encode())
    told = {
        "table": json.loads(table.to_json(orient="records", double_precision=15)),
        "settings": dict(result.settings),
        "skipped": dict(result.skipped),
        "versions": {name: version(name) for name in ("seg4diff-tools", "torch", "diffusers", "transformers")},
        "python": platform.python_version(),
        **about,
        "processes": processes().num_processes,
        "seconds": dict(result.seconds),
    }
    replace_file(folder / "result.json", json.dumps(told, indent=1).encode())
