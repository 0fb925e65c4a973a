"""Code that users read and write: notebook cells and Markdown blocks, and what mypy says of it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(?:python|\{code-block\} python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def code_cells(notebook: Path) -> list[str]:
    """The code cells of a notebook."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def python_blocks(page: Path) -> list[str]:
    """The Python blocks of a Markdown page that are whole programs or go on with the block before."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def snippets(notebook: Path) -> list[str]:
    """The Python blocks of a notebook's Markdown, which a reader runs after its cells."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    return [block for text in texts for block in BLOCK.findall(text + "\n")]


def sources() -> dict[str, str]:
    """The code of every notebook, with what its text tells the reader to run after it, by its name."""
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    return {path.name: "\n\n".join([*code_cells(path), *snippets(path)]) for path in paths}


def check_types(files: Mapping[str, str], folder: Path, *options: str) -> dict[str, list[tuple[int, str, str]]]:
    """Run mypy on files as a user's, and give the line, the code and the text of each error, by file.

    Args:
        files: content by name; a name may end otherwise than in .py.
        folder: where they are written.
        options: for mypy.
    """
    paths = {}
    for number, (name, content) in enumerate(files.items()):
        path = folder / f"user_{number}.py"
        path.write_text(content, encoding="utf-8")
        paths[path.name] = name
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--no-error-summary"]
    shown = subprocess.run(
        [*command, "--hide-error-context", "--no-pretty", *options, *(str(folder / path) for path in paths)],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode in (0, 1), shown.stdout + shown.stderr
    found: dict[str, list[tuple[int, str, str]]] = {name: [] for name in files}
    for line in shown.stdout.splitlines():
        if match := re.match(r"(?:.*/)?(user_\d+\.py):(\d+): error: (.*?)(?:  \[([a-z-]+)\])?$", line):
            found[paths[match[1]]].append((int(match[2]), match[4] or "", match[3]))
    return found
