"""Pixel counts image by image: resumable, on one process or many, in Parquet files that any table library opens."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import pad

from seg4diff_tools._runs import processes, replace_file
from seg4diff_tools.attention.operators import chunks
from seg4diff_tools.datasets.opened import OpenedSample, open_sample
from seg4diff_tools.errors import CheckpointError, InputError
from seg4diff_tools.evaluation import metrics

COUNTS = "counts"
"""Name of the folder of Parquet files in the folder of a run."""
SCORES = ("pACC", "mACC", "mIoU", "object_mIoU", "background_mIoU")


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """The confusion counts of one image in every configuration of a run.

    Attributes:
        index: the image's place in the data set.
        confusion: pixel counts of each configuration.
        true: names of the rows, the classes that the image shows.
        predicted: names of the columns, the classes that could be chosen.
        background: those of the true classes that are stuff.
        fingerprint: of the image, its label map and its names.
    """

    index: int
    confusion: Int[np.ndarray, "configuration true predicted"]
    true: tuple[str, ...]
    predicted: tuple[str, ...]
    background: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True, eq=False)
class Shard:
    """What one file of a run holds.

    Attributes:
        records: of a few images.
        faults: index and message of the samples among them that cannot be read.
    """

    records: list[ImageCounts]
    faults: dict[int, str]


def count_images(
    samples: Sequence,
    compute: Callable[[list[OpenedSample]], list[ImageCounts]],
    indices: Sequence[int] | None = None,
    *,
    folder: Path | None = None,
    at_once: int = 1,
    skip: bool = False,
) -> Iterator[Shard]:
    """ImageCounts of a few images at a time, from the folder where they are complete, else computed and written.

    FOLDER/counts gets one Parquet file for each group of images, with the columns image, configuration, true, predicted and
    pixels. A file is there as a whole or not at all, so that a run may be killed at any time. Of several processes each
    takes every n-th group. Which images share a group follows from `indices` alone: rounding may depend on it.

    Args:
        samples: images with label maps.
        compute: from a group of samples to their counts.
        indices: which samples, in which order; all by default.
        folder: of the run, claimed; None keeps nothing.
        at_once: images of a group.
        skip: leave out samples that cannot be read, name them in `faults`, and try them again in a later run; else the first
            one raises.

    Raises:
        InputError: a sample that cannot be read, counts of another image in the folder, several processes without a folder,
            or another run that writes to it.
        CheckpointError: a damaged file of counts, or one that cannot be written.
    """
    indices, state = range(len(samples)) if indices is None else indices, processes()
    if folder is None and state.num_processes > 1:
        raise InputError(f"expected a folder that {state.num_processes} processes share, got none: pass out=...")
    with _alone(folder, state):
        for part in own_groups(len(indices), at_once):
            group, faults = _open_group(samples, indices[part], skip)
            path = None if folder is None else folder / COUNTS / f"{part.start:06d}.parquet"
            there = path is not None and path.exists()
            stored = read_shard(path) if there else Shard([], {})
            _check_same(stored.records, group, folder)
            records = {record.index: record for record in stored.records}
            faults = {index: message for index, message in faults.items() if index not in records}
            # a group is computed as a whole or not at all
            new = [] if {each.index for each in group} <= set(records) else compute(group)
            records |= {record.index: record for record in new}
            own = [records.pop(index) for index in indices[part] if index in records]
            # of a run over more samples, the rest of the group stays as it was
            rest = {index: message for index, message in stored.faults.items() if index not in indices[part]}
            if path is not None and (not there or new or stored.faults != rest | faults):
                write_shard(path, Shard([*own, *records.values()], faults | rest))
            yield Shard(own, faults)


def own_groups(count: int, at_once: int) -> list[slice]:
    """The groups of images that this process takes: of several processes each takes every n-th."""
    state = processes()
    return chunks(count, at_once)[state.process_index :: state.num_processes]


def write_shard(path: Path, shard: Shard) -> None:
    """Writes counts of a few images as one Parquet file, empty cells left out.

    Args:
        path: of the file, which is there as a whole or not at all.
        shard: all records have the same configurations.

    Raises:
        CheckpointError: the file cannot be written.
    """
    parts = [_SCHEMA.empty_table()]
    for record in shard.records:
        configuration, row, column = np.nonzero(record.confusion)
        cells = [
            pa.array(np.full(len(row), record.index, np.int32)),
            pa.array(configuration.astype(np.int32)),
            pa.DictionaryArray.from_arrays(row.astype(np.int32), list(record.true)),
            pa.DictionaryArray.from_arrays(column.astype(np.int32), list(record.predicted)),
            pa.array(record.confusion[configuration, row, column].astype(np.int64)),
        ]
        parts.append(pa.table(cells, schema=_SCHEMA))
    images = [
        {"image": r.index, "fingerprint": r.fingerprint, "true": r.true, "background": r.background}
        for r in shard.records
    ]
    configurations = len(shard.records[0].confusion) if shard.records else 0
    told = {"configurations": configurations, "images": images, "faults": list(shard.faults.items())}
    table = pa.concat_tables(parts).unify_dictionaries().replace_schema_metadata({_TOLD: json.dumps(told)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    replace_file(path, buffer.getvalue())


_TOLD = b"seg4diff_tools"
_NAMES = pa.dictionary(pa.int32(), pa.string())
_SCHEMA = pa.schema(
    [
        ("image", pa.int32()),
        ("configuration", pa.int32()),
        ("true", _NAMES),
        ("predicted", _NAMES),
        ("pixels", pa.int64()),
    ]
)


def read_shard(path: Path) -> Shard:
    """ImageCounts of a few images; the classes that could be chosen are reduced to those that were.

    Args:
        path: of a file from `write_shard`.

    Raises:
        CheckpointError: a file that is damaged or of another kind.
    """
    try:
        table = pq.read_table(path)
        told = json.loads(table.schema.metadata[_TOLD])
        cells = table.to_pandas()
        records = []
        for image in told["images"]:
            own = cells[cells["image"] == image["image"]]
            true, predicted = tuple(image["true"]), tuple(own["predicted"].unique())
            row = pd.Index(true).get_indexer(own["true"])
            column = pd.Index(predicted).get_indexer(own["predicted"])
            confusion = np.zeros((told["configurations"], len(true), len(predicted)), np.int64)
            confusion[own["configuration"].to_numpy(), row, column] = own["pixels"].to_numpy()
            background = tuple(image["background"])
            records.append(ImageCounts(image["image"], confusion, true, predicted, background, image["fingerprint"]))
        return Shard(records, dict(told["faults"]))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise CheckpointError(f"expected counts of images, got {path} ({error}): delete it and run again") from error


def stored_shards(folder: Path) -> Iterator[Shard]:
    """All files of a run, one at a time.

    Args:
        folder: of the run.

    Raises:
        CheckpointError: there are none, or as `read_shard`.
    """
    paths = sorted((folder / COUNTS).glob("*.parquet"))
    if not paths:
        raise CheckpointError(f"expected counts of images in {folder}, got none yet: run it first")
    yield from map(read_shard, paths)


def stored_counts(folder: Path) -> Iterator[ImageCounts]:
    """ImageCounts of all images that are done: see `stored_shards`."""
    for shard in stored_shards(folder):
        yield from shard.records


class TotalCounts:
    """The sum of the counts of many images, and their scores; it does not grow with the number of images.

    Attributes:
        images: how many were added.
    """

    def __init__(self, records: Iterator[ImageCounts] | Sequence[ImageCounts] = ()) -> None:
        self.images = 0
        self._names: dict[str, int] = {}
        self._background: set[str] = set()
        self._total: Tensor | None = None
        for record in records:
            self.add(record)

    def add(self, record: ImageCounts) -> None:
        """Adds an image."""
        for name in (*record.true, *record.predicted):
            self._names.setdefault(name, len(self._names))
        if self._total is None:
            self._total = torch.zeros(len(record.confusion), 0, 0, dtype=torch.int64)
        new = len(self._names) - self._total.shape[-1]
        self._total = pad(self._total, (0, new, 0, new)) if new else self._total
        self._total += placed(record, list(self._names))
        self._background.update(record.background)
        self.images += 1

    def scores(self) -> pd.DataFrame:
        """One row for each configuration: pACC, mACC, mIoU over all classes, object_mIoU and background_mIoU, 0..1.

        Means over classes are taken in the order of their names, so that the order of the images changes no digit.
        """
        if self._total is None:
            return pd.DataFrame(columns=list(SCORES), dtype=float)
        seen = {
            name for name, place in self._names.items() if self._total[:, place].any() or self._total[..., place].any()
        }
        names = sorted(seen)
        order = [self._names[name] for name in names]
        total = self._total[:, order][:, :, order]
        things = [index for index, name in enumerate(names) if name not in self._background]
        stuff = [index for index, name in enumerate(names) if name in self._background]
        return pd.DataFrame(
            {
                "pACC": metrics.pixel_accuracy(total).numpy(),
                "mACC": metrics.mean_accuracy(total).numpy(),
                "mIoU": metrics.miou(total).numpy(),
                "object_mIoU": metrics.miou(total, things).numpy(),
                "background_mIoU": metrics.miou(total, stuff).numpy(),
            }
        )


def placed(record: ImageCounts, names: Sequence[str]) -> Int[Tensor, "configuration true predicted"]:
    """The counts of one image among the classes of all.

    Args:
        record: of the image.
        names: rows and columns of the result.
    """
    result = torch.zeros(len(record.confusion), len(names), len(names), dtype=torch.int64)
    place = {name: index for index, name in enumerate(names)}
    rows, columns = (
        torch.tensor([place[name] for name in each], dtype=torch.int64) for each in (record.true, record.predicted)
    )
    result[:, rows[:, None], columns] = torch.from_numpy(record.confusion).long()
    return result


def _open_group(samples: Sequence, indices: Sequence[int], skip: bool) -> tuple[list[OpenedSample], dict[int, str]]:
    group, faults = [], {}
    for index in indices:
        try:
            group.append(open_sample(samples[index], index))
        except InputError as error:
            if not skip:
                raise
            faults[index] = str(error)
    return group, faults


def _check_same(kept: Sequence[ImageCounts], group: Sequence[OpenedSample], folder: Path | None) -> None:
    now = {each.index: each.fingerprint for each in group}
    for record in kept:
        if now.get(record.index, record.fingerprint) != record.fingerprint:
            raise InputError(
                f"expected in {folder} counts of these samples, got those of another image as number {record.index}: "
                "choose another folder for other samples"
            )


@contextmanager
def _alone(folder: Path | None, state: PartialState) -> Iterator[None]:
    """No second run writes to the folder; the processes of one run are one."""
    if folder is None or not state.is_main_process:
        state.wait_for_everyone()
        yield
        return
    (folder / COUNTS).mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        raise InputError(
            f"expected a folder that no other run writes to, got {folder}: wait for that run, or choose another folder"
        ) from error
    try:
        # the other processes begin when the folder is theirs
        state.wait_for_everyone()
        yield
    finally:
        lock.release()
