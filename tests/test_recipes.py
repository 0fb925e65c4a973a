"""The recipes and the ten minutes of the book run as they stand, one block after another, in an empty folder."""

import ast
import linecache
import re
from typing import Any

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure
from user_files import ROOT, python_blocks

BOOK = ROOT / "book"
SCORE = re.compile(r"^\| ([a-z0-9 ]+) \| ([\d.]+) % \| ([\d.]+) to ([\d.]+) % \|$", re.MULTILINE)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the blocks of a page; gives their names, and for each block what its last line shows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEG4DIFF_CACHE", str(tmp_path / "cache"))

    def run_page(page: str) -> tuple[dict[str, Any], list[Any]]:
        names: dict[str, Any] = {"__name__": "__main__"}
        shown = []
        for number, block in enumerate(python_blocks(BOOK / page), 1):
            name = f"{page}, block {number}"
            linecache.cache[name] = (len(block), None, block.splitlines(keepends=True), name)  # for inspect.getsource
            *statements, last = ast.parse(block).body
            if isinstance(last, ast.Expr):
                exec(compile(ast.Module(statements, []), name, "exec"), names)
                shown.append(eval(compile(ast.Expression(last.value), name, "eval"), names))
            else:
                exec(compile(block, name, "exec"), names)
                shown.append(None)
            plt.close("all")
        return names, shown

    return run_page


def test_every_recipe_runs(run, tmp_path):
    names, _ = run("recipes.md")
    assert names["result"].label_map.shape == names["scene"].label_map.shape
    assert (tmp_path / "scene.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "cat.nc").exists()


def test_the_ten_minutes_run_and_show_what_the_page_shows(run):
    names, shown = run("ten_minutes.md")
    again = "run scripts/make_overview.py"
    drawn = [number for number, one in enumerate(shown, 1) if isinstance(one, Figure)]
    page = (BOOK / "ten_minutes.md").read_text(encoding="utf-8")
    assert re.findall(r"\(images/ten_minutes_(\d+)\.png\)", page) == list(map(str, drawn)), again
    for number in drawn:
        assert (BOOK / "images" / f"ten_minutes_{number}.png").is_file(), again
    told = SCORE.findall((BOOK / "ten_minutes_score.md").read_text(encoding="utf-8"))
    table = names["scores"].table()
    assert [method for method, *_ in told] == table.method.tolist()
    for (_, *numbers), row in zip(told, table.itertuples(), strict=True):
        found = [100 * row.mIoU, 100 * row.low, 100 * row.high]
        assert list(map(float, numbers)) == pytest.approx(found, abs=0.5), again
    assert shown[-1].token == "strawberry"
