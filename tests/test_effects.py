"""What edits do to pictures: the tables against single generations."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import build
from tiny_run import tiny_clip

from seg4diff_tools.analysis.perturbation import guidance_effects, layer_effects, resampled
from seg4diff_tools.attention.edits import apply_edit, blur, drop, perturbed_guidance
from seg4diff_tools.backbones.checks import check_layers
from seg4diff_tools.backbones.loading import wrap_pipeline
from seg4diff_tools.errors import InputError
from seg4diff_tools.generation.clip import clip_scores, load_clip
from seg4diff_tools.generation.encoders import DETECTOR, image_similarity, load_image_encoder

PROMPTS = ["a cat and a dog", "a red car", "two cats near a tree"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return load_clip(tiny_clip(tmp_path_factory.mktemp("model")))


def same(one, other) -> bool:
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(one, other, strict=True))


def test_layer_effects(tiny_backbone, clip):
    found = layer_effects(tiny_backbone, clip, PROMPTS, drop(), [1, 4], steps=2, batch=2, progress=False)
    assert found.table.layer.isna().tolist() == [True] * 3 + [False] * 6
    assert found.table.layer.dropna().tolist() == [1, 1, 1, 4, 4, 4]
    assert found.table.prompt.tolist() == [0, 1, 2] * 3
    asked = {"steps": 2, "progress": False}
    plain = tiny_backbone.generate(PROMPTS, seed=[0, 1, 2], **asked)
    # batches of another size may differ in the last bit
    difference = np.abs(np.asarray(found.pictures[None][2], int) - np.asarray(plain[2], int))
    assert difference.max() <= 1
    with apply_edit(tiny_backbone, drop(), 4):
        edited = tiny_backbone.generate(PROMPTS[:2], seed=[0, 1], **asked)
    assert same(found.pictures[4][:2], edited)
    first, row = found.table[:3], found.table[6:]
    np.testing.assert_allclose(first[["CLIP-I", "features"]], 1, atol=1e-5)
    vectors = [clip.embed_images(found.pictures[key]) for key in (None, 4)]
    np.testing.assert_allclose(row["CLIP-I"], (vectors[0] * vectors[1]).sum(-1), atol=1e-5)
    np.testing.assert_allclose(row["CLIP-T"], clip_scores(vectors[1], clip.embed_texts(PROMPTS)), atol=1e-6)
    patches = [clip.embed_patches(found.pictures[key]) for key in (None, 4)]
    cosines = torch.nn.functional.cosine_similarity(*patches, dim=-1)
    np.testing.assert_allclose(row["features"], cosines.mean(-1), atol=1e-5)
    assert (row["features"] < 1).all()
    assert list(found.table) == ["layer", "prompt", "CLIP-I", "CLIP-T", "features"]


def test_layer_effects_by_an_encoder(tiny_backbone, clip):
    asked = {"steps": 2, "batch": 3, "progress": False}
    found = layer_effects(tiny_backbone, clip, PROMPTS, drop(), 4, encoder=load_image_encoder(DETECTOR), **asked)
    assert list(found.table) == ["layer", "prompt", "CLIP-I", "CLIP-T", "features", DETECTOR]
    np.testing.assert_allclose(found.table[DETECTOR][:3], 1, atol=1e-5)
    wanted = image_similarity(found.pictures[None], found.pictures[4], DETECTOR)
    np.testing.assert_allclose(found.table[DETECTOR][3:], wanted, atol=1e-6)
    assert wanted.max() < 1 - 1e-6
    by_name = layer_effects(tiny_backbone, clip, PROMPTS, drop(), 4, encoder=DETECTOR, **asked)
    assert by_name.table.equals(found.table)


def test_the_first_stack_of_flux_by_name_or_by_list(clip):
    backbone = wrap_pipeline(build("flux-dev"))
    tables = [
        layer_effects(backbone, clip, PROMPTS[:1], drop(), layers, steps=1, progress=False).table
        for layers in ("double", range(2), [0, 1])
    ]
    assert tables[0].layer.tolist() == [pd.NA, 0, 1]
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])
    assert check_layers(backbone, "single") == [2, 3, 4]
    with pytest.raises(InputError, match="layers of a kind that 'pipeline' has, got 'double': pass layers=None"):
        check_layers(wrap_pipeline(build("z-image")), "double")


def test_guidance_effects(tiny_backbone, clip):
    prompts = PROMPTS[:2]
    found = guidance_effects(
        tiny_backbone, clip, prompts, blur(), [0, 3], [0.0, 2.0], [1.0, 4.0], steps=2, progress=False
    )
    assert found.table.prompt.tolist() == [0, 1] * 8
    table = found.table[::2].set_index(["layer", "scale", "guidance_scale"])
    assert table.forwards.to_dict() == {
        (layer, scale, cfg): 1 + (scale > 0) + (cfg > 1)
        for layer in (0, 3)
        for scale in (0.0, 2.0)
        for cfg in (1.0, 4.0)
    }
    assert found.pictures[0, 0.0, 4.0] is found.pictures[3, 0.0, 4.0]
    with perturbed_guidance(tiny_backbone, blur(), 3, 2.0):
        wanted = tiny_backbone.generate(prompts, seed=[0, 1], steps=2, guidance_scale=4.0, progress=False)
    assert same(found.pictures[3, 2.0, 4.0], wanted)
    assert not same(found.pictures[3, 2.0, 4.0], found.pictures[3, 0.0, 4.0])


def test_double_blocks_of_sd3_are_all(tiny_backbone):
    assert check_layers(tiny_backbone, "double") == list(range(5))


def test_prompts_are_a_list(tiny_backbone, clip):
    with pytest.raises(InputError, match="expected prompts as a list of texts, got 'a cat'"):
        layer_effects(tiny_backbone, clip, "a cat", blur())


def test_resampled_keeps_prompts_together():
    table = pd.DataFrame({"layer": [1, 1, 4, 4], "prompt": [0, 1, 0, 1], "CLIP-T": [0.0, 2.0, 1.0, 3.0]})
    draws = resampled(table, "CLIP-T", draws=400)
    assert list(draws.columns) == [1, 4]
    assert len(draws) == 400
    # two prompts out of two: both, or one of them twice
    assert set(draws[1]) == {0.0, 1.0, 2.0}
    assert (draws[4] - draws[1] == 1).all()
    assert draws[1].mean() == pytest.approx(1, abs=0.1)
    assert resampled(table, "CLIP-T", draws=400).equals(draws)
