"""Every example runs as it stands in an empty folder, and leaves what it says; the template notebook too."""

import runpy

import matplotlib.pyplot as plt
import pytest
from user_files import ROOT, code_cells

EXAMPLES = ROOT / "examples"
# arguments that save time, and what is left behind
RUNS = {
    "edit_drawing": (["--steps", "2"], ["edited.png"]),
    "evaluate_folder": ([], ["demo/run/table.csv"]),
    "explore_page": ([], ["view.html"]),
    "finetune_lora": (["--steps", "1", "--batch", "2"], ["lora/log.csv"]),
    "own_metric": (["--limit", "4"], []),
    "plot_word": (["--steps", "4"], ["word.png", "word.nc"]),
    "segment_photo": ([], ["masks.png"]),
    "sweep_layers": (["--limit", "4"], []),
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    plt.close("all")


def test_every_example_has_a_run():
    assert sorted(RUNS) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", RUNS)
def test_an_example_runs(name, monkeypatch, capsys, empty_folder):
    arguments, left = RUNS[name]
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--model", "mini", *arguments])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed
    assert "nan" not in printed.lower()
    assert all((empty_folder / file).stat().st_size for file in left)


def test_the_template_runs():
    names: dict = {"__name__": "__main__"}
    for cell in code_cells(EXAMPLES / "your_model_your_images.ipynb"):
        exec(compile(cell, "your_model_your_images", "exec"), names)
    assert {"one layer", "all layers"} <= set(names["score"].table().method)
