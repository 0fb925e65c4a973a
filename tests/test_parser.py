"""The detector: peaks and measures worked out by hand, and the shipped weights on scenes that they never saw."""

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from seg4diff_tools.errors import CheckpointError, InputError
from seg4diff_tools.generation.detector import (
    FOLDER,
    DetectorConfig,
    DetectorNet,
    SceneDetector,
    detector_accuracy,
    load_detector,
    save_detector,
)
from seg4diff_tools.scenes import (
    BACKGROUNDS,
    BASE_CONCEPTS,
    Placement,
    SceneConfig,
    compose,
    draw_scenes,
    plan,
    visible,
)

SMALL = DetectorConfig(("cat", "car", "fish"), ("red", "blue"), ("sand", "snow"), 32, (3, 5, 7, 11), 0.5, 2.0)


@pytest.fixture(scope="module")
def detector():
    return load_detector()


def tiny(seed: int = 0) -> SceneDetector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SceneDetector(DetectorNet(SMALL).eval().requires_grad_(False), SMALL)


def placed(background: str, *placements: Placement):
    return replace(plan("test", 0), placements=placements, background=background)


def test_peaks_become_things_by_hand():
    scores, colors = torch.zeros(3, 8, 8), torch.zeros(3, 8, 8)
    scores[0, 2, 5] = 0.9  # a cat between two columns
    scores[0, 2, 6] = 0.9 - 1e-4
    scores[1, 3, 5] = 0.8  # a car on the cat: one of them is wrong
    scores[1, 6, 1] = 0.7
    colors[2, 6, 1] = 1.0
    scores[2, 7, 7] = 0.4  # below the threshold
    cat, car = tiny()._things(scores, colors)
    assert (cat.concept, cat.color, cat.score) == ("cat", None, pytest.approx(0.9))
    assert cat.center == (pytest.approx(6 / 8, abs=1e-4), pytest.approx(2.5 / 8))
    assert (car.concept, car.color, car.center) == ("car", "blue", pytest.approx((1.5 / 8, 6.5 / 8)))


def test_outputs_have_cells_of_four_pixels():
    centers, colors, backgrounds = tiny().net(torch.rand(2, 3, 32, 48))
    assert (centers.shape, colors.shape, backgrounds.shape) == ((2, 3, 8, 12), (2, 3, 8, 12), (2, 2))


def test_images_of_any_kind_and_size(detector):
    scene = compose([("cat", (0.3, 0.6), 0.5), ("tree", (0.75, 0.35), 0.4)], background="brick")
    bigger = scene.pil.resize((192, 192))
    tensor = torch.from_numpy(scene.image).permute(2, 0, 1) / 255
    for found in detector.detect([scene.image, scene.pil, bigger, tensor], batch=3):
        assert {thing.concept for thing in found.objects} == {"cat", "tree"}
        assert found.background == "brick"
        assert [thing.score for thing in found.objects] == sorted((t.score for t in found.objects), reverse=True)
        (cat,) = (thing for thing in found.objects if thing.concept == "cat")
        assert cat.color is None
        assert cat.center == pytest.approx((0.3, 0.6), abs=0.06)
    with pytest.raises(InputError, match="at least one image"):
        detector.detect([])


def test_accuracy_by_hand(detector):
    cat = Placement("cat", "noto", (0.25, 0.5), 0.4)
    car = Placement("car", "noto", (0.75, 0.5), 0.4, color="blue")
    both, alone = placed("sand", cat, car), placed("snow", cat)
    exchanged = placed("sand", replace(cat, center=car.center), replace(car, center=cat.center))
    plain = placed("sand", cat, replace(car, color=None))
    twins = placed("sand", cat, replace(cat, center=(0.75, 0.5)))

    def measured(true, shown):
        images = [scene.image for scene in draw_scenes(shown, 96)]
        return detector_accuracy(detector, true, images).set_index("measure").T

    names = ["precision", "recall", "counting", "color", "relation", "background"]
    for true, shown, values, of in [
        (both, both, [1, 1, 1, 1, 1, 1], [2, 2, 1, 1, 1, 1]),
        (both, alone, [1, 0.5, 0, np.nan, 0, 0], [1, 2, 1, 0, 1, 1]),
        (alone, both, [0.5, 1, 0, np.nan, np.nan, 0], [2, 1, 1, 0, 0, 1]),
        (both, exchanged, [0, 0, 1, np.nan, 0, 1], [2, 2, 1, 0, 1, 1]),
        (both, plain, [1, 1, 1, 0, 1, 1], [2, 2, 1, 1, 1, 1]),
        (twins, twins, [1, 1, 1, np.nan, np.nan, 1], [2, 2, 1, 0, 0, 1]),
    ]:
        found = measured([true], [shown])
        assert found.columns.tolist() == names
        np.testing.assert_allclose(found.loc["value"].astype(float), values)
        assert found.loc["of"].tolist() == of
    found = measured([both, alone], [both, both])
    np.testing.assert_allclose(found.loc["value"].astype(float), [3 / 4, 1, 1 / 2, 1, 1, 1 / 2])
    np.testing.assert_allclose(detector_accuracy(detector, [both]).value, 1)  # drawn where no images are given
    with pytest.raises(InputError, match="an image for each plan, got 2 for 1 plans"):
        detector_accuracy(detector, [both], [np.zeros((96, 96, 3), np.uint8)] * 2)


@pytest.mark.parametrize("config", [SceneConfig(), SceneConfig(colored=1.0, twins=1.0)], ids=["captions'", "hard"])
def test_the_shipped_parser_reads_unseen_scenes(detector, config):
    found = detector_accuracy(detector, [plan("test", 500 + index, config) for index in range(80)])
    values = found.dropna().set_index("measure").value  # twins have no relation
    assert len(values) >= 5
    assert (values > 0.9).all(), values


def test_hidden_things_do_not_count():
    cat = Placement("cat", "noto", (0.5, 0.5), 0.3)
    over = placed("sand", cat, Placement("pizza", "noto", (0.5, 0.5), 0.6))
    owner = np.zeros((96, 96), dtype=np.int64)
    owner[:3, :20] = 1
    assert visible(over, owner) == [0]
    owner[:20] = 1
    assert visible(over, owner) == [0, 1]


def test_the_shipped_parser_is_small_and_knows_the_words(detector):
    assert sum(weight.numel() for weight in detector.net.parameters()) < 700_000
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_500_000
    assert (detector.config.concepts, detector.config.backgrounds) == (BASE_CONCEPTS, BACKGROUNDS)
    assert not detector.net.training
    assert not any(weight.requires_grad for weight in detector.net.parameters())


def test_written_and_read_again(tmp_path):
    before = tiny()
    save_detector(before, tmp_path / "new")
    after = load_detector(tmp_path / "new")
    assert after.config == SMALL
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for one, other in zip(before.net(images), after.net(images), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.02)  # half precision


def test_a_damaged_parser_is_one_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected the folder of a scene detector, got .*nowhere"):
        load_detector(tmp_path / "nowhere")
    folder = tmp_path / "detector"
    save_detector(tiny(), folder)
    config = json.loads((folder / "config.json").read_text())
    for wrong in ({"widths": [3, 5, 7, 12]}, {"wings": 2}):
        (folder / "config.json").write_text(json.dumps(config | wrong), encoding="utf-8")
        with pytest.raises(CheckpointError, match="expected the folder of a scene detector"):
            load_detector(folder)
    broken = tmp_path / "broken"
    shutil.copytree(FOLDER, broken)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match="expected the folder of a scene detector"):
        load_detector(broken)


def test_training_runs_and_repeats(tiny_backbone):
    path = Path(__file__).parents[1] / "scripts" / "train_parser.py"
    spec = importlib.util.spec_from_file_location("train_parser", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.BATCH, script.FRESH, script.REUSED = 6, 1, 2
    one, other = (script.train(2, tiny_backbone.pipe.vae).net.state_dict() for _ in range(2))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)
    # every fourth scene has two kinds at most, so that counts of three are learnt
    assert all(len({thing.concept for thing in script.training_plan(4 * k).placements}) <= 2 for k in range(20))
