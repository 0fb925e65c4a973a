"""Pixel counts of each image in Parquet files: resumable, on one process or several."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import filelock
import numpy as np
import pandas as pd
from accelerate import PartialState
from jaxtyping import Float, Int

from seg4diff_tools._runs import processes, replace_file
from seg4diff_tools.attention.exact import chunks
from seg4diff_tools.datasets.opened import OpenedSample, open_sample
from seg4diff_tools.errors import CheckpointError, InputError, named_extra

with named_extra():
    import pyarrow as pa
    import pyarrow.parquet as pq

COUNTS = "counts"
"""Name of the folder of Parquet files in a run folder."""


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """Pixel counts of one image, by its place in the data set, in every configuration of a run.

    Attributes:
        confusion: true classes of the image by candidate classes, whose names are `true` and `predicted`.
        background: the true classes that are stuff.
        fingerprint: of the image, its label map and its names.
        values: of custom metrics.
    """

    index: int
    confusion: Int[np.ndarray, "configuration true predicted"]
    true: tuple[str, ...]
    predicted: tuple[str, ...]
    background: tuple[str, ...]
    fingerprint: str
    values: Float[np.ndarray, "row metric"] = field(default_factory=lambda: np.zeros((0, 0)))


@dataclass(frozen=True, eq=False)
class Shard:
    """Content of one file of a run: counts of a group of images; index and message of its unreadable samples."""

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
    """Yield the counts of images, group by group: read from the folder where complete, else computed and written.

    FOLDER/counts gets one Parquet file for each group of images, with the columns image, configuration, true, predicted
    and pixels, written atomically, so that a run may be killed at any time. Each of n processes takes every n-th group.
    Groups follow from `indices` alone, because rounding may depend on them.

    Args:
        samples: images with label maps.
        compute: from a group of samples to their counts.
        indices: which samples, in which order; None for all.
        folder: of the run, from `open_run`; None writes nothing.
        at_once: images in a group.
        skip: list unreadable samples in `faults`, and retry them in a later run; else the first one raises.

    Raises:
        InputError: an unreadable sample, counts of another image in the folder, several processes without a folder, or
            another run that writes to it.
        CheckpointError: a damaged file of counts, or one that cannot be written.
    """
    indices, state = range(len(samples)) if indices is None else indices, processes()
    if folder is None and state.num_processes > 1:
        raise InputError(f"expected a folder that {state.num_processes} processes share, got none: pass out=...")
    with _alone(folder, state):
        for part in own_groups(len(indices), at_once):
            wanted = indices[part]
            readable, faults = _open_group(samples, wanted, skip)
            path = None if folder is None else folder / COUNTS / f"{part.start:06d}.parquet"
            stored = read_shard(path) if path is not None and path.exists() else None
            before = stored or Shard([], {})
            _check_same(before.records, readable, folder)
            counted = {record.index: record for record in before.records}
            missing = any(each.index not in counted for each in readable)
            if missing:
                # compute whole groups, because rounding may depend on the images in a forward
                counted |= {record.index: record for record in compute(readable)}
            # an image counted before its file became unreadable keeps its counts
            faults = {index: message for index, message in faults.items() if index not in counted}
            shard = Shard([counted[index] for index in wanted if index in counted], faults)
            if path is not None:
                # a run over fewer images keeps the other images of the file
                others = [record for index, record in counted.items() if index not in wanted]
                old_faults = {index: message for index, message in before.faults.items() if index not in wanted}
                if stored is None or missing or before.faults != old_faults | faults:
                    write_shard(path, Shard([*shard.records, *others], faults | old_faults))
            yield shard


def own_groups(count: int, at_once: int) -> list[slice]:
    """Return the groups of images of this process: every n-th of n processes."""
    state = processes()
    return chunks(count, at_once)[state.process_index :: state.num_processes]


def write_shard(path: Path, shard: Shard) -> None:
    """Write counts as one Parquet file, atomically and without empty cells; raise a CheckpointError if that fails."""
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
        | ({"values": r.values.tolist()} if r.values.size else {})
        for r in shard.records
    ]
    configurations = len(shard.records[0].confusion) if shard.records else 0
    metadata = {"configurations": configurations, "images": images, "faults": list(shard.faults.items())}
    table = pa.concat_tables(parts).unify_dictionaries().replace_schema_metadata({_METADATA: json.dumps(metadata)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    replace_file(path, buffer.getvalue())


_METADATA = b"seg4diff_tools"
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
    """Read a file of `write_shard`, its `predicted` without empty columns; raise a CheckpointError if it is damaged."""
    try:
        table = pq.read_table(path)
        metadata = json.loads(table.schema.metadata[_METADATA])
        cells = table.to_pandas()
        records = []
        for image in metadata["images"]:
            own = cells[cells["image"] == image["image"]]
            true, predicted = tuple(image["true"]), tuple(own["predicted"].unique())
            row = pd.Index(true).get_indexer(own["true"])
            column = pd.Index(predicted).get_indexer(own["predicted"])
            confusion = np.zeros((metadata["configurations"], len(true), len(predicted)), np.int64)
            confusion[own["configuration"].to_numpy(), row, column] = own["pixels"].to_numpy()
            background = tuple(image["background"])
            values = np.array(image.get("values", [[]]), np.float64)
            fingerprint = image["fingerprint"]
            records.append(ImageCounts(image["image"], confusion, true, predicted, background, fingerprint, values))
        return Shard(records, dict(metadata["faults"]))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise CheckpointError(f"expected counts of images, got {path} ({error}): delete it and run again") from error


def stored_shards(folder: Path) -> Iterator[Shard]:
    """Yield the files of a run, one at a time; raise a CheckpointError if there are none or one is damaged."""
    paths = sorted((folder / COUNTS).glob("*.parquet"))
    if not paths:
        raise CheckpointError(f"expected counts of images in {folder}, got none yet: run it first")
    yield from map(read_shard, paths)


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
    """Lock the folder against other runs; the processes of one run share the lock."""
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
        # the other processes start once the folder is locked
        state.wait_for_everyone()
        yield
    finally:
        lock.release()
