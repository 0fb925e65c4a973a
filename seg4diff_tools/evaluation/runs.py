"""Run evaluations and sweeps over the images of a data set, with or without a folder, and read them."""

import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from seg4diff_tools._runs import as_path, open_run, processes, read_settings, refuse_other, replace_file
from seg4diff_tools.caching import model_settings
from seg4diff_tools.datasets.opened import OpenedSample
from seg4diff_tools.errors import CheckpointError, InputError, readable
from seg4diff_tools.evaluation.collected import Collected
from seg4diff_tools.evaluation.counts import ImageCounts, count_images, own_groups, stored_shards
from seg4diff_tools.evaluation.results import Evaluation
from seg4diff_tools.segmentation.workbench import Workbench

Compute = Callable[[list[OpenedSample], Callable[[float], Any]], list[ImageCounts]]
RUN = "an evaluation"
AXES = {
    "direction": "directions",
    "normalize": "normalize",
    "steps_from_end": "steps_from_end",
    "layer": "layers",
    "head": "heads",
}
"""Columns of a sweep's rows, in loop order, and the settings with their values."""


def refuse_other_run(folder: str | os.PathLike[str] | None, settings: Mapping[str, Any]) -> None:
    """Refuse a folder of something else or of other settings, before the model is loaded."""
    if folder is not None:
        refuse_other(folder, settings, RUN)


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

    `compute` goes from a group of samples to their counts, and calls its second argument with the finished part of an
    image. `plan` holds the settings other than the model's, `kind` labels the progress bar; for the rest see
    `count_images` and `evaluate`.
    """
    backbone, state, began = work.backbone, processes(), time.perf_counter()
    settings, rows = model_settings(backbone) | dict(plan), rows_of(plan)
    if folder is not None:
        open_run(folder, settings, RUN)
    found = Collected(rows, list(plan.get("metrics", ())))
    own = sum(part.stop - part.start for part in own_groups(len(indices), at_once))
    shown = progress and state.is_main_process
    with tqdm(total=own, unit="image", disable=not shown, desc=f"{backbone.name} {kind}") as bar:
        finished = 0

        def counted(group: list[OpenedSample]) -> list[ImageCounts]:
            return compute(group, bar.update)

        for shard in count_images(samples, counted, indices, folder=folder, at_once=at_once, skip=skip):
            found.add(shard)
            finished += len(shard.records) + len(shard.faults)
            if shown:
                told = f"mIoU {100 * found.running():.1f} %, {readable(work.need)} beside the weights"
                bar.set_postfix_str(told, refresh=False)
            bar.n = finished  # what forwards added up to may be off by rounding
            bar.update(0)
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
            f"{number}: {message}. They are tried again when the same run is started again.",
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


def _write_table(folder: Path, result: Evaluation, about: Mapping[str, Any]) -> None:
    """Write the table and its settings."""
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
