"""Run folders: paths, ownership and settings, resumable CSV logs, atomic writes."""

import csv
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from seg4diff_tools.errors import CheckpointError, InputError

SETTINGS = "settings.json"


def as_path(value: str | os.PathLike[str], name: str = "path") -> Path:
    """Return a path, its `~` expanded.

    Raises:
        InputError: neither text nor a path, an empty text, a null character in it, or the `~` of an unknown user.
    """
    if not isinstance(value, (str, os.PathLike)) or value == "" or "\0" in str(value):
        raise InputError(f"expected {name} as text or a Path, got {value!r}: pass {name}='folder/file'")
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise InputError(f"expected {name} below the home of a known user, got {value}: write it out") from None


def make_folder(folder: Path) -> Path:
    """Make a folder and its parents, and return it; raise an InputError if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"expected a folder, got {folder} ({error.strerror}): choose another one") from error
    return folder


def processes() -> PartialState:
    """Return the group of processes that share a run: `accelerate launch` (GPUs) or `torchrun` (CPUs) start several."""
    return PartialState(cpu=not torch.accelerator.is_available())


def open_run(folder: Path, settings: Mapping[str, Any], kind: str) -> None:
    """Create the folder of a new run, or check that the run in it has the same settings.

    Args:
        folder: of the run.
        settings: JSON-serializable settings that determine the results.
        kind: name of this kind of run, such as "a sweep".

    Raises:
        InputError: the folder holds something else, or a run with other settings.
        CheckpointError: its settings cannot be read.
    """
    with processes().main_process_first():
        refuse_other(folder, {}, kind)
        make_folder(folder)
        if not (folder / SETTINGS).exists():
            replace_file(folder / SETTINGS, json.dumps({"kind": kind, **settings}, indent=1).encode())
    check_settings(folder, {"kind": kind, **settings}, kind)


def refuse_other(folder: str | os.PathLike[str], settings: Mapping[str, Any], kind: str) -> None:
    """Refuse a folder that holds something else, or a run with other settings, before anything slow is done.

    Args:
        folder: of the run; it may be missing.
        settings: some of the run's, JSON-serializable.
        kind: name of this kind of run.

    Raises:
        InputError: a file, a folder with something else, or a run with other settings.
        CheckpointError: its settings cannot be read.
    """
    folder = as_path(folder, "out")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"expected a folder for {kind}, got the file {folder}: choose another one")
    # listed once: another process of the run may write its settings meanwhile
    entries = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    if SETTINGS in entries:
        check_settings(folder, {"kind": kind, **settings}, kind, whole=False)
    # a kill may have left a half-written settings file, and nothing else
    elif any(not name.endswith(".partial") for name in entries):
        raise InputError(f"expected an empty folder or that of {kind}, got {folder}: choose another one")


def check_settings(folder: Path, settings: Mapping[str, Any], kind: str, *, whole: bool = True) -> None:
    """Check that the run in a folder has these settings; `whole` says that these are all of them.

    Raises:
        InputError: others.
        CheckpointError: its settings cannot be read.
    """
    before, now = read_settings(folder, kind), json.loads(json.dumps(settings))
    names = now | before if whole else now
    if differing := [key for key in names if now.get(key) != before.get(key)]:
        changes = "; ".join(f"{key}: {before.get(key)} there, {now.get(key)} now" for key in differing)
        hint = ", since the model's weights, adapters, edits or settings changed" if "fingerprint" in differing else ""
        raise InputError(
            f"expected the settings of {kind} in {folder}, got others ({changes}){hint}: choose another folder"
        )


def read_settings(folder: Path, kind: str) -> dict[str, Any]:
    """Read the settings of a run of a kind; raise a CheckpointError if the folder holds no such run."""
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        if (found := settings.get("kind")) != kind:
            raise CheckpointError(f"expected the folder of {kind}, got that of {found} in {folder}: check the path")
        return settings
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"expected the folder of {kind}, got {folder}, without readable {SETTINGS} ({error}): check the path"
        ) from error


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Write a file atomically: the block writes to the yielded path, which takes the place of `path` at the end.

    After an error or a kill, what was there before stays.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written to.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise CheckpointError(
            f"expected to write {path}, got an error ({error.strerror or error}): earlier files are kept; make room, "
            "then run again to resume"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()


def replace_file(path: Path, content: bytes) -> None:
    """Write the whole content of a file atomically: see `written_whole`."""
    with written_whole(path) as partial:
        partial.write_bytes(content)


def append_row(path: Path, row: Mapping[str, int | float | str]) -> None:
    """Append a row, whose first column is the step, to a CSV file, after a header if the file is new."""
    new = not path.exists() or path.stat().st_size == 0
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


def truncate_log(path: Path, step: int) -> None:
    """Drop the rows that were logged after the step of the checkpoint that a run resumes from; 0 deletes the log."""
    if step == 0:
        path.unlink(missing_ok=True)
    if not path.exists():
        return
    # bytes, so that line ends stay as they are; a last row without its line end is half-written
    header, *rows = path.read_bytes().splitlines(keepends=True) or [b""]
    kept = [row for row in rows if row.endswith(b"\n") and int(row.split(b",")[0]) <= step]
    path.write_bytes(header + b"".join(kept))
