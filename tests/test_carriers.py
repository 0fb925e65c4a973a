"""Pairs of prompts, shares of a changed word, and effects of single heads, by hand on the tiny model."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from seg4diff_tools.analysis import (
    ablated_segmentation,
    ablation_effects,
    carried_shares,
    edit_heads,
    head_class_maps,
    patch_effects,
    word_pairs,
)
from seg4diff_tools.analysis.carriers import PAIR_KINDS
from seg4diff_tools.attention import ablate, apply_edit, intercept
from seg4diff_tools.backbones.checkpoints import MINI
from seg4diff_tools.evaluation import metrics
from seg4diff_tools.generation import image_similarity, judge, load_clip, load_detector, prompts
from seg4diff_tools.generation.composition import fitting_plan
from seg4diff_tools.generation.encoders import DETECTOR
from seg4diff_tools.scenes import SceneConfig, Scenes, draw_scenes

QUIET = {"progress": False}


def test_pairs_differ_in_one_word():
    pairs = word_pairs(4, seed=1)
    assert [pair.kind for pair in pairs] == [kind for kind in PAIR_KINDS for _ in range(4)]
    for pair in pairs:
        words = [one.text.split() for one in (pair.first, pair.second)]
        assert sum(a != b for a, b in zip(*words, strict=True)) == 1
    assert [pair for kind in range(5) for pair in word_pairs(9, seed=1)[9 * kind : 9 * kind + 4]] == pairs
    assert word_pairs(4, seed=2) != pairs
    (thing,) = pairs[4].first.objects
    assert thing.color and thing.color != pairs[4].second.objects[0].color


def test_heads_of_several_layers(tiny_backbone):
    seen = {}
    with edit_heads(tiny_backbone, ablate(), [(1, 0), (3, 2), (1, 2)]):
        with intercept(tiny_backbone.transformer, lambda call: seen.update({call.layer: call.output})):
            tiny_backbone.predict_velocity(torch.ones(1, *tiny_backbone.latent_shape), 500.0, "a cat")
    silent = {(layer, head) for layer, output in seen.items() for head in range(3) if not output[:, head].any()}
    assert silent == {(1, 0), (1, 2), (3, 2)}


def test_shares_are_projections(tiny_backbone):
    pairs, depth = word_pairs(1, seed=3)[:2], tiny_backbone.layers
    table = carried_shares(tiny_backbone, pairs, steps_from_end=(5, 2), steps=6, seed=4, batch=1, **QUIET)
    assert len(table) == 2 * 2 * depth * tiny_backbone.heads
    together = carried_shares(tiny_backbone, pairs, steps_from_end=(5, 2), steps=6, seed=4, **QUIET)
    keys = ["pair", "steps_from_end", "layer", "head"]
    assert_allclose(table.sort_values(keys)["share"], together.sort_values(keys)["share"], atol=1e-4)
    # by hand: the last layer's head 1 of the second pair, at 2 of 6
    scene = draw_scenes([fitting_plan(pairs[1].first, 5)], tiny_backbone.image_size)[0]
    noisy = tiny_backbone.add_noise(tiny_backbone.encode_image(scene.image), 2, 6, 5)
    heads = []
    with intercept(tiny_backbone.transformer, lambda call: heads.append(call.output[:, 1].clone()), layers=depth - 1):
        other = tiny_backbone.predict_velocity(*noisy, pairs[1].second.text)

    def put(call):
        output = call.output.clone()
        output[:, 1] = heads[0]
        return output

    plain = tiny_backbone.predict_velocity(*noisy, pairs[1].first.text)
    with intercept(tiny_backbone.transformer, put, layers=depth - 1):
        patched = tiny_backbone.predict_velocity(*noisy, pairs[1].first.text)
    way = (other - plain).double()
    wanted = ((patched - plain) * way).sum() / way.square().sum()
    row = table.query("pair == 1 and steps_from_end == 2 and layer == @depth - 1 and head == 1")
    assert_allclose(row["share"], [wanted], atol=1e-4)
    assert abs(wanted) > 1e-4 and set(row["kind"]) == {"color"}


@pytest.mark.parametrize("edit", [None, ablate("mean")], ids=["zero", "mean"])
def test_segmentation_without_a_head(tiny_backbone, edit):
    samples = list(Scenes("test", 2, SceneConfig(size=56)))
    read = {"steps_from_end": 2, "steps": 6, "seed": 1}
    table = ablated_segmentation(tiny_backbone, samples, layer=2, edit=edit, **read, **QUIET)
    assert len(table) == (1 + 5 * 3) * 2
    plain = head_class_maps(tiny_backbone, samples, **read, **QUIET)
    with apply_edit(tiny_backbone, edit or ablate(), 1, heads=2):
        without = head_class_maps(tiny_backbone, samples, **read, **QUIET)

    def iou(maps, sample):
        names, side = sample.class_names, sample.label_map.shape
        large = torch.nn.functional.interpolate(maps[None], side, mode="bilinear")[0].argmax(0)
        truth = torch.from_numpy(np.asarray(sample.label_map))
        return metrics.miou(metrics.confusion(large, truth, len(names))).item()

    row = table.query("layer == 1 and head == 2 and image == 1").iloc[0]
    assert_allclose(row["alone"], iou(plain[1][1, 2], samples[1]), atol=0.02)
    assert_allclose(row["expert"], iou(without[1][2].mean(0), samples[1]), atol=0.02)
    assert_allclose(row["every"], iou(without[1].mean((0, 1)), samples[1]), atol=0.02)
    untouched = table[table.layer.isna()]
    assert_allclose(untouched["expert"], [iou(plain[i][2].mean(0), samples[i]) for i in range(2)], atol=0.02)
    # a head after layer 2 cannot change what layer 2 reads
    after = table[table.layer >= 2].groupby("image")["expert"].unique().str.len()
    assert (after == 1).all()


def test_pictures_without_a_head(tiny_backbone):
    asked, clip, detector = prompts(1)[:2], load_clip(MINI), load_detector()
    table = ablation_effects(
        tiny_backbone, clip, detector, asked, [(1, 2)], seed=7, steps=2, guidance_scale=3.0, **QUIET
    )
    texts, drawing = [one.text for one in asked], {"seed": [7, 8], "steps": 2, "guidance_scale": 3.0, **QUIET}
    plain = tiny_backbone.generate(texts, **drawing)
    with apply_edit(tiny_backbone, ablate(), 1, heads=2):
        without = tiny_backbone.generate(texts, **drawing)
    assert table["layer"].isna().tolist() == [True, True, False, False]
    assert_allclose(table["likeness"][2:], image_similarity(plain, without, DETECTOR), atol=1e-5)
    assert_allclose(table["likeness"][:2], 1.0, atol=1e-5)
    assert table["wrong"].tolist() == [
        *judge(detector, plain, asked)["wrong"],
        *judge(detector, without, asked)["wrong"],
    ]
    assert not (table["CLIP-T"][:2].to_numpy() == table["CLIP-T"][2:].to_numpy()).all()


def test_pictures_with_patched_heads(tiny_backbone):
    pairs = word_pairs(1)[:3]
    every = list(np.ndindex(tiny_backbone.layers, tiny_backbone.heads))
    sets, drawing = {"none": [], "one": [(2, 1)], "all": every}, {"steps": 2, "guidance_scale": 1.0}
    table, pictures = patch_effects(tiny_backbone, load_detector(), pairs, sets, seed=3, batch=2, **drawing, **QUIET)
    assert list(pictures) == ["second", "none", "one", "all"] and len(table) == 4 * 3
    arrays = {name: np.stack([np.asarray(picture) for picture in made]).astype(int) for name, made in pictures.items()}
    plain = tiny_backbone.generate([pair.first.text for pair in pairs], seed=[3, 4, 5], **drawing, **QUIET)
    assert np.abs(arrays["none"] - np.stack([np.asarray(picture) for picture in plain])).max() <= 1
    assert (arrays["one"] != arrays["none"]).any()
    # what is left of the first prompt is its pooled embedding
    apart = [np.abs(arrays[name] - arrays["second"]).mean() for name in ("all", "none")]
    assert apart[0] < apart[1]
