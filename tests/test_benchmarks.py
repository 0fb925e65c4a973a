"""The benchmarks' own arithmetic, and the run at real size on tiny models; what they measure is run by hand."""

import json
from dataclasses import replace

import pytest
import torch
from benchmarks import real_size
from benchmarks.gpu import Size, attentions, floor, map_error, model
from torch.nn.attention import SDPBackend

from seg4diff_tools.attention import operators


def test_the_counted_floor_by_hand():
    # 2 heads of 3 channels, 4 image and 5 text tokens
    counted = floor(Size(blocks=(1, 0), expert=0, heads=2, dim=3, side=2, text=5))
    # q k^T of 4 x 5 pairs over 6 channels, 2 operations each, and 2 for each of 4 x 5 x 2 exponentials
    assert counted["recording"] == 240 + 80
    # 9 tokens: 24 w^2 = 864 and 4 n w = 216 each
    assert counted["block"] == 9 * (864 + 216)
    assert counted["ratio"] == 1 + 320 / 9720
    # queries and keys of 9 tokens in 2 bytes, 4 x 2 log-sum-exps and 4 x 5 numbers of the map in 4
    assert counted["bytes"] == 108 + 32 + 80
    assert counted["map bytes"] == 2 * 2 * 81


TINY = Size(blocks=(2, 0), expert=1, heads=2, dim=8, side=5, text=7)


def test_single_attentions_name_their_backend_and_agree():
    sizes = {"SD3-medium": TINY, "FLUX.1-dev": replace(TINY, dim=16, text=11)}
    head, _, *rows = attentions("cpu", sizes, repeats=1)
    assert len(rows) == 10
    assert all(row.count("|") == head.count("|") for row in rows)
    assert all("flash_attention | yes" in row and "the same bit for bit" in row for row in rows)


def test_the_error_of_a_map_is_that_of_rounding_and_sees_a_fault(monkeypatch):
    built = model("SD3-medium", TINY, "cpu", torch.float32)
    assert 0 < map_error(*built, TINY.expert) < 1e-4
    lse = operators._flash_cpu
    shifted = {SDPBackend.FLASH_ATTENTION: lambda *args: (lse(*args)[0], lse(*args)[1] + 0.01)}
    monkeypatch.setattr(operators, "_OPERATORS", shifted)
    assert map_error(*built, TINY.expert) == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("model", ["sd3", "flux"])
def test_the_run_at_real_size_works_on_a_tiny_model_and_goes_on_where_it_stopped(model, tmp_path, capsys):
    asked = ["--model", model, "--size", "64", "--dtype", "float32", "--tiny", "--results", str(tmp_path)]
    real_size.main(asked)
    (file,) = tmp_path.glob("*.jsonl")
    rows = {row["row"]: row for row in map(json.loads, file.read_text(encoding="utf-8").splitlines())}
    more = {"segmented", "sweep", "flow matching", "fine-tuning"} if model == "sd3" else set()
    assert set(rows) == {"built", "plain", "recorded", "full map", "exactness"} | more
    assert all(row["peak"] > 0 and row["cpu"] >= 0 for row in rows.values())
    assert "the same bit for bit" in rows["recorded"]["remark"]
    assert "the same bit for bit" in rows["full map"]["remark"]
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in rows)
    # all but the last row are there: it alone is measured again
    lines = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    real_size.main(asked)
    again = [json.loads(line)["row"] for line in file.read_text(encoding="utf-8").splitlines()]
    assert again == [*rows][:-1] + ["built", [*rows][-1]]
