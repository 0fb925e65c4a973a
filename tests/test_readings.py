"""Readings of closed keys, of words alone and of the chain against the materialized joint map in float64."""

from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.errors import InputError
from seg4diff_tools.segmentation import OpenVocabulary, readings, segment
from seg4diff_tools.segmentation.attribution import read

NAMES = ["cat", "red car", "grass"]
IMAGE, TEXT = slice(0, 49), 49


@pytest.fixture(scope="module")
def latents(tiny_backbone):
    pixels = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    return tiny_backbone.encode_image(pixels)


@pytest.fixture(scope="module")
def prompt(tiny_backbone):
    (prompt,) = tiny_backbone.class_prompts(NAMES)
    return prompt


def joints(backbone, latents, prompt, closed=()):
    """The joint map of every layer, [head query key], where the closed keys are taken out of every attention."""
    found = []

    def see(call):
        scores = call.query[0].double() @ call.key[0].double().mT * call.scale
        scores[..., list(closed)] = -torch.inf
        found.append(scores.softmax(-1))
        return (found[-1] @ call.value[0].double()).to(call.output)[None]

    with intercept(backbone.transformer, see):
        backbone.predict_velocity(*backbone.add_noise(latents, 8), prompt)
    return found


def columns(joint, prompt):
    """Maps of the classes, [class image], from a mean joint map."""
    spans = [[TEXT + token for token in span] for span in prompt.classes.values()]
    return torch.stack([joint[IMAGE][:, span].mean(1) for span in spans]).unflatten(1, (7, 7))


@pytest.mark.parametrize("kinds", ["pad", ("pad", "zero", "end")])
def test_closed_tokens_are_missing_in_every_layer(tiny_backbone, latents, prompt, kinds):
    names = (kinds,) if isinstance(kinds, str) else kinds
    maps = joints(tiny_backbone, latents, prompt, [TEXT + token for token in prompt.indices(*names)])
    found = read(tiny_backbone, latents, [prompt], partial(readings.without, kinds=kinds), [1, 3])
    wanted = (columns(maps[1].mean(0), prompt) + columns(maps[3].mean(0), prompt)) / 2
    assert_allclose(found, wanted, rtol=1e-3, atol=1e-7)


def test_words_share_out_what_words_get(tiny_backbone, latents, prompt):
    joint = joints(tiny_backbone, latents, prompt)[2][:, IMAGE, TEXT:]
    words = sorted(token for span in prompt.classes.values() for token in span)
    shares = (joint / joint[..., words].sum(-1, keepdim=True)).mean(0)
    found = read(tiny_backbone, latents, [prompt], readings.among_words, [2])
    for one, span in zip(found, prompt.classes.values(), strict=True):
        assert_allclose(one.flatten(), shares[:, list(span)].mean(1), rtol=1e-4)


def test_a_mean_over_heads_first_would_change_no_label(tiny_backbone, latents, prompt):
    joint = joints(tiny_backbone, latents, prompt)[2].mean(0)
    maps = columns(joint, prompt)
    words = joint[IMAGE, TEXT:][:, sorted(token for span in prompt.classes.values() for token in span)].sum(1)
    assert torch.equal((maps / words.unflatten(0, (7, 7))).argmax(0), maps.argmax(0))


@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("heads", ["even", "eigenvalue"])
def test_bounces_are_powers_of_the_joint_map(tiny_backbone, latents, prompt, times, heads):
    joint = joints(tiny_backbone, latents, prompt)[3]
    weights = torch.ones(len(joint)).double()
    if heads == "eigenvalue":
        weights = torch.linalg.eigvals(joint).abs().sort(-1).values[:, -2]
    mean = torch.einsum("h,hqk->qk", weights / weights.sum(), joint)
    found = read(tiny_backbone, latents, [prompt], partial(readings.bounced, times=times, heads=heads), [3])
    wanted = columns(torch.linalg.matrix_power(mean, times), prompt)
    assert_allclose(found, wanted, rtol=1e-4 if heads == "even" else 0.02)


def test_a_kind_that_no_token_has_is_refused(tiny_backbone, latents, prompt):
    with pytest.raises(InputError, match="kinds of tokens that .* has, .*, got 'template'"):
        read(tiny_backbone, latents, [prompt], partial(readings.without, kinds="template"), [1])


def test_heads_are_alike_where_none_remembers(tiny_backbone, latents, prompt, monkeypatch):
    attention = tiny_backbone.transformer.transformer_blocks[3].attn
    for layer in (attention.to_q, attention.add_q_proj):
        monkeypatch.setattr(
            layer, "forward", lambda states, own=layer: torch.zeros_like(torch.nn.Linear.forward(own, states))
        )
    found = read(tiny_backbone, latents, [prompt], partial(readings.bounced, heads="eigenvalue"), [3])
    assert_allclose(found, 1 / (49 + 154), rtol=1e-4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("method", "pattern"),
    [
        (partial(readings.without, kinds="pads"), "kinds from start, end, pad, .*got 'pads'"),
        (partial(readings.bounced, times=0), "times 1 or more, got 0"),
        (partial(readings.bounced, heads="mean"), "heads, one of 'even', 'eigenvalue', got 'mean'"),
        (partial(readings.among_words, layers=[9]), "layers from 0 to 4, got 9"),
    ],
)
def test_slips(tiny_backbone, latents, prompt, method, pattern):
    with pytest.raises(InputError, match=pattern):
        method(tiny_backbone, *tiny_backbone.add_noise(latents, 8), [prompt])


def test_segment_takes_them(tiny_backbone):
    picture = np.zeros((56, 56, 3), np.uint8)
    found = segment(tiny_backbone, picture, NAMES, OpenVocabulary(method=readings.among_words, layers=2))
    assert found.label_map.shape == (56, 56)
