"""The study of mask alignments runs from end to end, goes on where it stopped, and judges on other prompts."""

import importlib.util
from dataclasses import replace

import pandas as pd
import pytest
from tiny_run import SCENES, tiny_clip
from user_files import ROOT

from seg4diff_tools.generation import load_clip
from seg4diff_tools.generation.detector import DetectorConfig, DetectorNet, SceneDetector


def script():
    spec = importlib.util.spec_from_file_location("magnet_grid", ROOT / "scripts" / "magnet_grid.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GRID = script()
TINY = GRID.Size(
    short=2, long=2, seeds=(0,), best=1, chosen_scenes=1, chosen_prompts=1, scenes=2, prompts=1, sampling=1, batch=2
)


@pytest.fixture
def study(tiny_backbone, tmp_path):
    detector = SceneDetector(DetectorNet(DetectorConfig()))
    return GRID.Study(tiny_backbone, load_clip(tiny_clip(tmp_path)), detector, SCENES, 2, tmp_path / "study", TINY)


def test_settings_are_enough_and_of_one_kind_each():
    every = GRID.settings(12, 4)
    assert len(every) >= 24
    assert len({str(config) for config in every.values()}) == len(every)
    assert {config.layers for config in every.values()} == {(4,), (4, 5, 6, 7, 8, 9), ()}


def test_prompts_that_judge_chose_nothing(study):
    many = replace(study, size=replace(TINY, prompts=34, chosen_prompts=10))
    assert len(many.judging) == 6 * 34
    assert not {one.text for one in many.judging} & {one.text for one in many.choosing}


def test_two_settings_run_from_end_to_end_and_go_on(study):
    every = dict(list(GRID.settings(5, 2).items())[:2])
    judged = GRID.run(study, every)
    found = pd.read_csv(study.out / "grid.csv")
    assert found["setting"].tolist() == ["untrained", "flow matching alone", *every]
    assert found["both"][0] == 1
    assert judged.groupby(["setting", "steps", "seed"]).ngroups == 3
    kinds = {"right", "CLIPScore", "Fréchet distance", "mIoU, pads"}
    kinds |= {f"object mIoU, {name}" for name in ("by layer", "by noise", "held-out style", "whole vocabulary")}
    assert set(judged["measure"]) == kinds
    right = judged[judged["measure"] == "right"]
    assert ((right["low"] <= right["value"]) & (right["value"] <= right["high"])).all()
    before = (study.out / "grid.csv").read_bytes()
    # one run of each table is missing
    judged[judged["setting"] != "untrained"].to_csv(study.out / "judged.csv", index=False)
    (study.out / "grid.csv").write_bytes(b"".join(before.splitlines(keepends=True)[:-1]))
    again = GRID.run(study, every)
    assert (study.out / "grid.csv").read_bytes() == before
    order = ["setting", "steps", "seed", "measure", "of"]
    pd.testing.assert_frame_equal(
        *(table.sort_values(order, kind="stable").reset_index(drop=True) for table in (judged, again))
    )
