"""Model cards: every number comes from the measurement or the run, and nobody takes the model for another."""

import io
import json
import shutil

import pandas as pd
import pytest
import yaml
from PIL import Image
from tiny_run import TINY

from seg4diff_tools.backbones.loading import load_backbone
from seg4diff_tools.errors import CheckpointError
from seg4diff_tools.pretrain import model_card
from seg4diff_tools.pretrain.model_card import write_card
from seg4diff_tools.pretrain.report import Quality


def quality(object_miou: float = 0.512) -> Quality:
    """Scores made up so that every number can be told from the others."""
    base = {"model": "tiny", "protocol": "present", "layer": 3, "steps_from_end": 8, "images": 7}
    base |= {"pACC": 0.61, "mACC": 0.62, "mIoU": 0.63, "object_mIoU": object_miou, "background_mIoU": 0.641}
    layers = pd.DataFrame([base | {"layer": layer, "object_mIoU": 0.1 * layer + 0.003} for layer in range(5)])
    scores = [
        base | {"scenes": "test"},
        base | {"scenes": "test-style", "object_mIoU": object_miou - 0.2},
        base | {"scenes": "test", "protocol": "full", "object_mIoU": 0.217},
        base | {"scenes": "novel", "object_mIoU": 0.119},
    ]
    pictures = {
        "generated": 64,
        "CLIPScore_generated": 1.231,
        "CLIPScore_generated_shuffled": 0.452,
        "CLIPScore_scenes": 1.763,
        "CLIPScore_scenes_shuffled": 0.394,
        "retrieval_top1": 0.875,
        "retrieval_group": 64,
        "VAE_PSNR": 27.34,
    }
    return Quality(3, 8, pd.DataFrame([base | {"images": 5}]), layers, pd.DataFrame(scores), pictures)


@pytest.fixture
def run(tmp_path):
    """A run with logs of two rows each."""
    run = tmp_path / "run"
    TINY.save(run)
    for part, loss in (("clip", "contrastive"), ("vae", "error"), ("transformer", "flow")):
        (run / part).mkdir()
        rows = ["20,160,1.0,0.5,3.0", "40,320,1.0,0.5,1.5"]
        (run / part / "log.csv").write_text("\n".join([f"step,images,rate,gradient,{loss}", *rows, ""]))
    return run


@pytest.fixture(scope="module")
def drawn(tiny_backbone):
    """The gallery, drawn once in few steps."""
    return model_card.gallery(tiny_backbone, 2.0, steps=2)


@pytest.fixture
def write(tiny_folder, tiny_backbone, tmp_path, run, drawn, monkeypatch):
    """A function that writes the card of a copy of the tiny model; it returns folder and card."""
    folder = shutil.copytree(tiny_folder, tmp_path / "toy")
    monkeypatch.setattr(model_card, "gallery", lambda backbone, scale: drawn)

    def write(measured: Quality):
        return folder, write_card(folder, tiny_backbone, measured, run, guidance_scale=2.5, compute="one core, 3 hours")

    return write


def test_the_card_for_programs(write):
    folder, card = write(quality())
    assert json.loads((folder / "model_card.json").read_text()) == json.loads(json.dumps(card))
    assert card["expert_layer"] == 3
    assert card["guidance_scale"] == 2.5
    assert card["training"]["compute"] == "one core, 3 hours"
    trained = card["training"]["transformer"]
    assert trained["steps"] == 40
    assert trained["images"] == 320
    assert trained["losses"] == {"flow": 2.25}
    assert card["data"]["concepts"] == TINY.model.scenes.concepts
    assert [drawing["held_out"] for drawing in card["data"]["drawings"]].count(True) == 1
    assert card["measured"]["pictures"]["VAE_PSNR"] == 27.34
    backbone = load_backbone(folder)
    assert backbone.expert_layer == 3
    assert backbone.guidance_scale == 2.5


def test_the_card_for_people(write):
    folder, card = write(quality())
    told = (folder / "README.md").read_text()
    _, front, body = told.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "diffusers"
    assert "It is **not**\nStable Diffusion 3" in body
    assert "Stability AI" in body
    assert body.startswith("\n# toy: ")
    assert "path/to/toy" in body
    for number in ("51.2", "31.2", "21.7", "11.9", "64.1", "40.3", "1.231", "0.452", "1.763", "87.5", "27.3", "320"):
        assert number in body, number
    for name in (*TINY.model.scenes.concepts, "Noto Emoji", "Fluent Emoji Flat", "MIT", "one core, 3 hours", "2.25"):
        assert name in body, name
    for limit in card["limits"]:
        assert limit in body
    assert "(gallery.png)" in body
    assert (folder / "gallery.png").is_file()


def test_a_goal_that_was_missed_is_told(write):
    _, missed = write(quality(0.512))
    assert any("Object mIoU on test scenes is 51.2, below the 60" in limit for limit in missed["limits"])
    assert any("on test-style scenes is 31.2, below the 40" in limit for limit in missed["limits"])
    _, reached = write(quality(0.7))
    assert not any("below" in limit for limit in reached["limits"])


def test_the_gallery_shows_every_prompt_in_a_small_file(drawn):
    picture = Image.open(io.BytesIO(drawn))
    assert picture.format == "PNG"
    assert len(drawn) <= model_card.GALLERY_BYTES
    assert picture.width > 600
    assert picture.height > 400
    assert len(set(model_card.GALLERY)) == len(model_card.GALLERY) == 18


def test_a_run_without_logs_is_refused(write, run):
    log = run / "vae" / "log.csv"
    log.write_text("step,images,rate,gradient,error\n")
    with pytest.raises(CheckpointError, match=r"empty .*vae/log\.csv: run `pretrain vae` again"):
        write(quality())
    log.unlink()
    with pytest.raises(CheckpointError, match=r"got no .*vae/log\.csv: run `pretrain vae` first"):
        write(quality())
