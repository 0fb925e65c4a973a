"""Execute notebooks in place: python book/execute.py [--jobs 2] notebooks/*.ipynb

Notebooks run side by side, one for each core unless --jobs says otherwise, each on one thread, so that numbers do not
depend on how many run; a model that is not the embedded one has the machine for itself. A notebook is written only when
all of its cells ran, and without anything that differs from run to run beside the outputs.
Its metadata keep a hash of its code and of the package. With --check nothing runs: notebooks whose outputs are older
than their code are an error, those older than the package are listed.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from tqdm import tqdm

PACKAGE = Path(__file__).resolve().parents[1] / "seg4diff_tools"
STAMP = "seg4diff_tools"
"""The key of a notebook's metadata that holds its hashes."""
PROCESSOR = "ignore:bfloat16 saves memory:UserWarning"
"""A warning that depends on the processor, and no output of a chapter."""


def stamp(notebook: Mapping[str, Any]) -> dict[str, str]:
    """Hash the code cells, without comments and empty lines, and every file of the package."""
    code, package = hashlib.sha256(), hashlib.sha256()
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            lines = [line.rstrip() for line in "".join(cell["source"]).splitlines()]
            code.update("\n".join(line for line in lines if line and not line.lstrip().startswith("#")).encode())
            code.update(b"\0")
    for path in sorted(PACKAGE.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            package.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return {"code": code.hexdigest()[:16], "package": package.hexdigest()[:16]}


def outdated(path: Path) -> str | None:
    """Why the outputs of a notebook are not of today's code; None if they are."""
    notebook = nbformat.read(path, as_version=4)
    stored, now = notebook.metadata.get(STAMP, {}), stamp(notebook)
    changed = [part for part in ("code", "package") if stored.get(part) != now[part]]
    return (
        f"{path}: its outputs are older than {'its code' if 'code' in changed else 'the package'}" if changed else None
    )


def is_progress_bar(output: nbformat.NotebookNode) -> bool:
    """tqdm's notebook bar, which ignores TQDM_DISABLE and would be stored as it stood before its first step."""
    data = output.get("data", {})
    return "application/vnd.jupyter.widget-view+json" in data and data.get("text/plain", "").endswith("/s]")


def execute(path: Path, environment: Mapping[str, str]) -> None:
    """Run one notebook with this interpreter, under a progress bar."""
    notebook = nbformat.read(path, as_version=4)
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    with tqdm(total=cells, desc=path.name, unit="cell") as bar:
        client = NotebookClient(
            notebook,
            timeout=None,
            kernel_name="python3",
            resources={"metadata": {"path": str(path.parent)}},
            extra_arguments=["--log-level=ERROR"],
            record_timing=False,
            store_widget_state=False,
            on_cell_executed=lambda **_: bar.update(),
        )
        client.execute(env={**os.environ, "TQDM_DISABLE": "1", "PYTHONWARNINGS": PROCESSOR, **environment})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_progress_bar(output)]
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            STAMP: stamp(notebook),
        }
    )
    finished = path.with_suffix(".executed")
    nbformat.write(notebook, finished)
    os.replace(finished, path)


def execute_all(paths: list[Path], jobs: int, environment: Mapping[str, str]) -> list[str]:
    """Run notebooks side by side, and say which of them failed, and why."""
    with ThreadPoolExecutor(jobs) as pool:
        runs = {path: pool.submit(execute, path, environment) for path in paths}
    return [
        f"{path} is unchanged, because a cell failed.\n{error}"
        for path, run in runs.items()
        if (error := run.exception()) is not None
    ]


def main() -> None:
    """Execute notebooks, or check whether they have to be."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="run nothing; list outputs that are out of date")
    own = "SEG4DIFF_MODEL" in os.environ
    parser.add_argument("--jobs", type=int, default=1 if own else os.cpu_count(), help="notebooks at once")
    options = parser.parse_args()
    if options.check:
        reasons = [reason for path in options.notebooks if (reason := outdated(path))]
        print(*reasons, sep="\n")
        sys.exit(any(reason.endswith("its code") for reason in reasons))
    sys.exit("\n\n".join(execute_all(options.notebooks, options.jobs, {} if own else {"OMP_NUM_THREADS": "1"})) or 0)


if __name__ == "__main__":
    main()
