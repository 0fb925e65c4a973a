"""Folders of long runs: whose they are, logs that a killed run goes on with, files that are there as a whole or not at all."""

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from seg4diff_tools.errors import CheckpointError, InputError

SETTINGS = "settings.json"


def as_path(value: str | os.PathLike[str], name: str = "path") -> Path:
    """Return a path, its `~` expanded.

    Args:
        value: text or a path.
        name: of the argument, for the error.

    Raises:
        InputError: neither, an empty text, or the `~` of an unknown user.
    """
    if not isinstance(value, (str, os.PathLike)) or value == "":
        raise InputError(f"expected {name} as text or a Path, got {value!r}: pass {name}='folder/file'")
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise InputError(f"expected {name} below the home of a known user, got {value}: write it out") from None


def processes() -> PartialState:
    """The processes that work together, and this one's place among them.

    `accelerate launch` starts one for each GPU; on CPUs, several come from `torchrun`.
    """
    return PartialState(cpu=not torch.accelerator.is_available())


def open_run(folder: Path, settings: Mapping[str, Any], kind: str) -> None:
    """Makes the folder of a new run, or checks that the run in it has the same settings; the first process goes first.

    Args:
        folder: of the run.
        settings: all that decides its results, as JSON knows it.
        kind: what to call the run, such as "a sweep".

    Raises:
        InputError: the folder holds something else, or a run with other settings.
        CheckpointError: its settings cannot be read.
    """
    with processes().main_process_first():
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / SETTINGS).exists():
            # a kill may have left a half-written settings file, and nothing else
            if any(entry.suffix != ".partial" for entry in folder.iterdir()):
                raise InputError(f"expected an empty folder or that of {kind}, got {folder}: choose another one")
            replace_file(folder / SETTINGS, json.dumps({"kind": kind, **settings}, indent=1).encode())
    before, now = read_settings(folder, kind), json.loads(json.dumps({"kind": kind, **settings}))
    if differing := [key for key in now | before if now.get(key) != before.get(key)]:
        told = "; ".join(f"{key}: {before.get(key)} there, {now.get(key)} now" for key in differing)
        raise InputError(f"expected the settings of {kind} in {folder}, got others ({told}): choose another folder")


def read_settings(folder: Path, kind: str) -> dict[str, Any]:
    """The settings of a run.

    Args:
        folder: of the run.
        kind: what to call the run.

    Raises:
        CheckpointError: the folder is not that of a run, or of a run of another kind.
    """
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        if (found := settings.get("kind")) != kind:
            raise CheckpointError(f"expected the folder of {kind}, got that of {found} in {folder}: check the path")
        return settings
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"expected the folder of {kind}, got {folder}, without readable {SETTINGS} ({error}): check the path"
        ) from error


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file that is there as a whole or not at all.

    Args:
        path: of the file.
        content: all of it.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written to; what was there before stays.
    """
    partial = path.with_suffix(".partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(
            f"expected to write {path}, got an error ({error.strerror}): what was written before is kept; make room, and "
            "run again to go on from there"
        ) from error


def append_row(path: Path, row: Mapping[str, int | float | str]) -> None:
    """Adds a row to a CSV file, after a header if the file is new.

    Args:
        path: of the log.
        row: its columns; the first one is the step.
    """
    new = not path.exists() or path.stat().st_size == 0
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


def truncate_log(path: Path, step: int) -> None:
    """Drops the rows that were logged after the checkpoint from which a run goes on.

    Args:
        path: of the log; it need not be there.
        step: of the checkpoint; 0 drops the file.
    """
    if step == 0:
        path.unlink(missing_ok=True)
    if not path.exists():
        return
    # bytes, so that line ends stay as they are; a last row without its line end is half-written
    header, *rows = path.read_bytes().splitlines(keepends=True) or [b""]
    kept = [row for row in rows if row.endswith(b"\n") and int(row.split(b",")[0]) <= step]
    path.write_bytes(header + b"".join(kept))
