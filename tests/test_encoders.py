"""Image encoders: a tiny DINO of transformers against the model itself, and the scene detector's features."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BitImageProcessorPil, CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model

from seg4diff_tools.caching import fingerprint
from seg4diff_tools.errors import CheckpointError, InputError
from seg4diff_tools.generation.detector import load_detector
from seg4diff_tools.generation.encoders import DETECTOR, image_similarity, load_image_encoder
from seg4diff_tools.images import open_images
from seg4diff_tools.scenes import Scenes

TOWER = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 22, "image_size": 28, "patch_size": 7}


def tiny_dino(folder: Path) -> Dinov2Model:
    """Saves a DINOv2 with random weights, and a processor that crops the middle."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Dinov2Model(Dinov2Config(**TOWER)).eval()
    model.save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}
    BitImageProcessorPil(**sizes, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-dino"
    tiny_dino(folder)
    return folder


@pytest.fixture(scope="module")
def pictures():
    return [np.asarray(scene.image) for scene in Scenes("test", 3)]


def test_dino_is_its_class_token(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    encoder = load_image_encoder(folder)
    assert encoder.name == "tiny-dino"
    # the middle of each picture, normalized by hand
    values = (pixels[:, 2:30, 2:30] / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4]
    with torch.no_grad():
        token = Dinov2Model.from_pretrained(folder)(torch.tensor(values).permute(0, 3, 1, 2).float()).pooler_output
    expected = token / token.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(encoder.embed(list(pixels), batch=2), expected, rtol=0, atol=1e-5)
    cosines = (expected * expected.flip(0)).sum(-1)
    found = image_similarity(list(pixels), list(pixels[::-1]), str(folder))
    torch.testing.assert_close(found, cosines, rtol=0, atol=1e-5)
    assert found[1] == pytest.approx(1)
    assert found[0] < 0.9999


def test_detector_features_are_what_it_reads_backgrounds_from(pictures):
    encoder = load_image_encoder(DETECTOR)
    detector = load_detector()
    found = encoder.embed(pictures)
    logits = found @ detector.net.background.weight.T
    pixels = encoder.preprocess(open_images(pictures))["pixel_values"]
    expected = detector.net(pixels)[2] - detector.net.background.bias
    torch.testing.assert_close(
        logits / logits.norm(dim=-1, keepdim=True), expected / expected.norm(dim=-1, keepdim=True)
    )
    alike = image_similarity(pictures, pictures[1:] + pictures[:1], encoder)
    assert image_similarity(pictures, pictures, encoder).min() > 1 - 1e-6
    assert alike.max() < 0.99


@pytest.mark.parametrize("name", ["dino", DETECTOR])
def test_an_encoder_can_be_pickled_and_has_a_fingerprint(folder, pictures, name):
    encoder = load_image_encoder(folder if name == "dino" else name)
    other = pickle.loads(pickle.dumps(encoder))
    assert torch.equal(other.embed(pictures), encoder.embed(pictures))
    assert fingerprint(other) == fingerprint(encoder)
    with torch.no_grad():
        next(other.model.parameters()).add_(1)
    assert fingerprint(other) != fingerprint(encoder)


def test_what_is_no_dino_is_refused(folder, tmp_path):
    with pytest.raises(CheckpointError, match="a DINO as an image encoder, got 'facebook/dinov2-tiniest' .*: download"):
        load_image_encoder("facebook/dinov2-tiniest")
    with pytest.raises(CheckpointError, match="download it where there is a network"):
        load_image_encoder(tmp_path / "nowhere")
    CLIPVisionModel(CLIPVisionConfig(**TOWER, intermediate_size=31)).save_pretrained(tmp_path / "clip")
    with pytest.raises(CheckpointError, match="a clip_vision_model, not one of dinov2"):
        load_image_encoder(tmp_path / "clip")
    # code beside the weights is not run, and pickled weights are not read
    model = tiny_dino(tmp_path / "code")
    config = json.loads((tmp_path / "code" / "config.json").read_text())
    (tmp_path / "code" / "own.py").write_text("raise SystemExit('run')")
    changed = config | {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}}
    (tmp_path / "code" / "config.json").write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match="custom code"):
        load_image_encoder(tmp_path / "code")
    (tmp_path / "code" / "config.json").write_text(json.dumps(config))
    (tmp_path / "code" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "code" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safetensors"):
        load_image_encoder(tmp_path / "code")


def test_a_file_that_lacks_weights_is_refused(tmp_path):
    model = tiny_dino(tmp_path)
    weights = {key: value for key, value in model.state_dict().items() if not key.startswith("encoder.layer.1.")}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(CheckpointError, match="its file lacks 1. weights, such as encoder.layer.1."):
        load_image_encoder(tmp_path)


def test_as_many_pictures_after_as_before(pictures):
    with pytest.raises(InputError, match="got 1 for 3"):
        image_similarity(pictures, pictures[0], DETECTOR)
