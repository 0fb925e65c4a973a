"""CLIPScore: the formula on vectors worked out by hand, and the towers against plain transformers."""

import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import tiny_clip
from transformers import CLIPImageProcessorPil

from seg4diff_tools.errors import CheckpointError, InputError
from seg4diff_tools.generation.clip import clip_scores, load_clip, retrieval_accuracy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("model"))


def test_the_score_is_two_and_a_half_times_the_cosine():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0], [1.0, 0.0]])
    texts = torch.tensor([[2.0, 0.0], [1.0, 1.0], [4.0, 3.0], [-1.0, 0.1]])
    expected = torch.tensor([2.5, 2.5 * math.sqrt(0.5), 2.5 * 24 / 25, 0.0])
    torch.testing.assert_close(clip_scores(images, texts), expected)
    with pytest.raises(InputError, match="one text for each image, got 1 for 4 images"):
        clip_scores(images, texts[:1])


def test_retrieval_by_hand():
    images = torch.eye(6)
    captions = [f"caption {number}" for number in range(6)]
    assert retrieval_accuracy(images, torch.eye(6), captions, group=3) == 1.0
    # 0 and 1 find each other's image, 2 to 5 their own
    texts = torch.eye(6)[[1, 0, 2, 3, 4, 5]]
    assert retrieval_accuracy(images, texts, captions, group=3) == pytest.approx(4 / 6)
    # the last group is not full and left out
    assert retrieval_accuracy(images, texts, captions, group=4) == pytest.approx(2 / 4)
    # equal captions are as good as each other
    assert retrieval_accuracy(images, texts, ["same", "same", *captions[2:]], group=3) == 1.0
    with pytest.raises(InputError, match="a group of 64, got 6 captions for 6 images"):
        retrieval_accuracy(images, texts, captions)


def test_embeddings_are_what_transformers_computes(folder):
    clip = load_clip(folder)
    texts = ["a cat on the grass", "two cats near a tree and a bus", ""]
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3), dtype=np.uint8)
    images, captions = clip.embed_images(list(pixels)), clip.embed_texts(texts)
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(3))
    inputs = clip.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        # transformers' own cosines, images in -1..1 as in training
        values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 * 2 - 1
        cosines = clip.model(**inputs, pixel_values=values).logits_per_image / clip.model.logit_scale.exp()
    torch.testing.assert_close(images @ captions.mT, cosines, rtol=0, atol=1e-5)
    torch.testing.assert_close(clip_scores(images, captions), 2.5 * cosines.diagonal().clamp(min=0), rtol=0, atol=1e-5)


def test_padding_and_batching_do_not_matter(folder):
    clip = load_clip(folder)
    alone, together = clip.embed_texts(["a cat"]), clip.embed_texts(["a cat", "a fire engine and a fire at night"])
    torch.testing.assert_close(alone[0], together[0], rtol=0, atol=1e-6)
    assert clip.embed_texts(["cat " * 200]).shape == (1, 13)


def test_images_of_any_kind_and_size(folder):
    clip = load_clip(folder)
    picture = Image.fromarray(np.full((28, 28, 3), 90, np.uint8))
    same = [picture, picture.resize((61, 33)), np.asarray(picture), torch.full((3, 28, 28), 90 / 255)]
    embedded = clip.embed_images(same)
    torch.testing.assert_close(embedded, embedded[:1].expand(4, -1), rtol=0, atol=1e-6)
    # nothing is left in training mode or with a gradient
    assert not embedded.requires_grad
    assert not clip.model.training


def test_bad_input_is_one_clear_error(folder, tmp_path):
    clip = load_clip(folder)
    for texts in ("a cat", []):
        with pytest.raises(InputError, match="expected texts as a list"):
            clip.embed_texts(texts)
    with pytest.raises(CheckpointError, match=r"with clip/config\.json, got .*pretrain export"):
        load_clip(tmp_path)
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = broken / "clip" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"clip cannot be read: .*Export the model again"):
        load_clip(broken)
    shutil.rmtree(broken / "tokenizer")
    with pytest.raises(CheckpointError, match=r"tokenizer/tokenizer\.json"):
        load_clip(broken)


def test_a_clip_of_transformers(folder, tmp_path):
    """With a mean and deviation of its own, as OpenAI's have."""
    own = load_clip(folder)
    own.model.save_pretrained(tmp_path)
    own.tokenizer.save_pretrained(tmp_path)
    CLIPImageProcessorPil(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]).save_pretrained(tmp_path)
    clip = load_clip(tmp_path)
    assert (clip.mean, clip.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), dtype=np.uint8)
    with torch.no_grad():
        values = (torch.from_numpy(pixels) / 255 - torch.tensor(clip.mean)) / torch.tensor(clip.std)
        seen = clip.model.vision_model(values.permute(0, 3, 1, 2)).last_hidden_state
    torch.testing.assert_close(clip.embed_patches(list(pixels)), seen[:, 1:], rtol=0, atol=1e-5)
    with pytest.raises(CheckpointError, match=r"cannot be read: .*name of a CLIP of transformers"):
        load_clip(str(tmp_path / "nowhere"))


def test_captions_are_cut_at_the_smaller_limit(folder):
    clip = load_clip(folder)
    positions = clip.model.config.text_config.max_position_embeddings
    long = "a cat on the grass " * positions
    expected = clip.embed_texts([long])
    clip.tokenizer.model_max_length = 10 * positions
    torch.testing.assert_close(clip.embed_texts([long]), expected, rtol=0, atol=0)
    clip.tokenizer.model_max_length = 5
    assert not torch.equal(clip.embed_texts([long]), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_of_torch_changes_no_embedding(folder, dtype):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), dtype=np.uint8)
    expected, before = load_clip(folder).embed_images(list(pixels)), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = load_clip(folder).embed_images(list(pixels))
    finally:
        torch.set_default_dtype(before)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
