"""Execute notebooks in place: python book/execute.py notebooks/*.ipynb

A notebook is written only when all of its cells ran, and without anything that differs from run to run beside the outputs.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm


def is_progress_bar(output: nbformat.NotebookNode) -> bool:
    """tqdm's notebook bar, which ignores TQDM_DISABLE and would be stored as it stood before its first step."""
    data = output.get("data", {})
    return "application/vnd.jupyter.widget-view+json" in data and data.get("text/plain", "").endswith("/s]")


def execute(path: Path) -> None:
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
        client.execute(env={**os.environ, "TQDM_DISABLE": "1"})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_progress_bar(output)]
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    finished = path.with_suffix(".executed")
    nbformat.write(notebook, finished)
    os.replace(finished, path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        try:
            execute(Path(name))
        except CellExecutionError as error:
            sys.exit(f"{name} is unchanged, because a cell failed.\n{error}")
