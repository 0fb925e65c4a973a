"""The book, built once for all the tests that look at it."""

import functools
import os
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# The discard port: whatever asks the network during the build fails at once.
OFFLINE = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")

_folder = tempfile.TemporaryDirectory(prefix="book_")


def pages() -> list[str]:
    """The book's pages in the order of its table of contents, without suffix."""

    def below(entry: dict) -> Iterator[str]:
        if "file" in entry:
            yield entry["file"]
        for part in (*entry.get("parts", ()), *entry.get("chapters", ()), *entry.get("sections", ())):
            yield from below(part)

    toc = yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"], *below(toc)]


@functools.cache
def build() -> Path:
    """Build the stored outputs with warnings as errors; returns the folder of the HTML.

    BUILT_BOOK names one that is built already, such as book/_build/html after `make book`.
    """
    if built := os.environ.get("BUILT_BOOK"):
        return Path(built).resolve()
    command = [Path(sysconfig.get_path("scripts"), "jupyter-book"), "build", BOOK, "-W", "--keep-going"]
    result = subprocess.run(
        [*map(str, command), "--path-output", _folder.name],
        env={**os.environ, **OFFLINE},
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, f"jupyter-book failed:\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return Path(_folder.name, "_build", "html")
