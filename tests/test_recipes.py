"""The recipes of the book run as they stand, one after another, in an empty folder."""

import linecache
from typing import Any

import matplotlib.pyplot as plt
from user_files import ROOT, python_blocks

BLOCKS = python_blocks(ROOT / "book" / "recipes.md")


def test_every_recipe_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEG4DIFF_CACHE", str(tmp_path / "cache"))
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, block in enumerate(BLOCKS, 1):
        name = f"recipe {number}"
        linecache.cache[name] = (len(block), None, block.splitlines(keepends=True), name)  # for inspect.getsource
        exec(compile(block, name, "exec"), names)
        plt.close("all")
    assert names["result"].label_map.shape == names["scene"].label_map.shape
    assert (tmp_path / "scene.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "cat.nc").exists()
