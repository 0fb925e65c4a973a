"""Takers of attention, the chain's stationary distribution and closed keys against the materialized joint map."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from seg4diff_tools.analysis import (
    attention_takers,
    close_keys,
    random_keys,
    top_keys,
)
from seg4diff_tools.attention import (
    AttentionBias,
    AttentionRecorder,
    JointTokens,
    apply_edit,
    drop,
    second_eigenvalue,
    token_rank,
)
from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.errors import RecordingError

TEXTS = ["a cat and a dog", "a red car"]


@pytest.fixture(scope="module")
def inputs(tiny_backbone):
    """Two noisy latents of 6 x 7 tokens, their timesteps and their prompts."""
    latents = torch.randn(2, 16, 12, 14, generator=torch.Generator().manual_seed(5))
    return *tiny_backbone.add_noise(latents, 8), tiny_backbone.encode_prompt(TEXTS)


@pytest.fixture(scope="module")
def call(tiny_backbone, inputs):
    """The attention of layer 2."""
    seen = []
    with intercept(tiny_backbone.transformer, seen.append, layers=2):
        tiny_backbone.predict_velocity(*inputs)
    return seen[0]


@pytest.fixture(scope="module")
def joint(call):
    """Its joint map, fp64."""
    return (call.query.double() @ call.key.double().mT * call.scale).softmax(-1)


@pytest.mark.parametrize("workspace", [None, 1, 5000])
def test_received_is_a_product_with_the_joint_map(call, joint, workspace):
    given = torch.rand(2, 1, 3, call.query.shape[2], generator=torch.Generator().manual_seed(1))
    found = call.received(given, workspace=workspace)
    assert_allclose(found, given.double() @ joint, atol=1e-5)
    own = torch.rand(2, call.query.shape[1], 1, call.query.shape[2], generator=torch.Generator().manual_seed(2))
    assert_allclose(call.received(own, workspace=workspace), own.double() @ joint, atol=1e-5)


def test_token_rank_is_the_eigenvector_of_the_mean_map(call, joint):
    found = token_rank(call)
    for one, mean in zip(found, joint.mean(1), strict=True):
        values, vectors = torch.linalg.eig(mean.mT)
        wanted = vectors[:, values.real.argmax()].real
        assert_allclose(one, wanted / wanted.sum(), atol=1e-5)
    assert_allclose(found.sum(-1), 1, rtol=1e-5)


def test_the_second_eigenvalue_is_that_of_each_head(call, joint):
    wanted = torch.linalg.eigvals(joint).abs().sort(-1).values[..., -2]
    assert_allclose(second_eigenvalue(call, most=200), wanted, rtol=0.05)


def test_shares_are_those_of_the_materialized_map(tiny_backbone, joint, call, inputs):
    pictures = [np.full((48, 56, 3), shade, np.uint8) for shade in (40, 200)]
    table = attention_takers(tiny_backbone, TEXTS, pictures, layers=[1, 3], steps_from_end=8, batch=1, progress=False)
    assert_allclose(table.groupby(["layer", "query"]).share.sum(), 1, rtol=1e-5)
    assert_allclose(table.groupby(["layer", "query"]).uniform.sum(), 1, rtol=1e-9)
    assert set(table[["layer", "query"]].itertuples(index=False, name=None)) == {
        (layer, query) for layer in (1, 3) for query in ("image", "text", "chain")
    }
    seen = []
    latents, prompts = tiny_backbone.encode_image(pictures), tiny_backbone.encode_prompt(TEXTS)
    with intercept(tiny_backbone.transformer, seen.append, layers=3):
        tiny_backbone.predict_velocity(*tiny_backbone.add_noise(latents, 8), prompts)
    (now,) = seen
    full = (now.query @ now.key.mT * now.scale).softmax(-1).mean(1)
    share = table[table.layer == 3].set_index(["query", "key"])
    for query, side in (("image", now.image), ("text", now.text)):
        got = full[:, side].mean(1)
        for kind in ("word", "pad", "zero", "start"):
            own = [one[now.text][list(p.indices(kind))] for one, p in zip(got, prompts, strict=True)]
            assert_allclose(share.share[query, kind], np.mean([x.sum() for x in own]), atol=1e-6)
            assert_allclose(share.largest[query, kind], np.mean([x.max() for x in own]), atol=1e-6)
            assert_allclose(share.tokens[query, kind], np.mean([len(x) for x in own]))


def test_image_sinks_are_image_tokens_far_above_the_median(tiny_backbone):
    pictures = [np.full((48, 56, 3), 90, np.uint8)]
    at = {"layers": [2], "steps_from_end": 8, "progress": False}
    few, all_above = (
        attention_takers(tiny_backbone, TEXTS[:1], pictures, sink=sink, **at).set_index(["query", "key"])
        for sink in (1e6, 1.0)
    )
    image = few.tokens["image", "image"]
    assert few.tokens["image", "image sink"] == 0
    # above the median is at most half of them
    assert 0 < all_above.tokens["image", "image sink"] <= image / 2
    both = all_above.share["image", "image"] + all_above.share["image", "image sink"]
    assert_allclose(both, few.share["image", "image"], rtol=1e-5)


def test_pictures_are_drawn_where_none_are_given(tiny_backbone):
    at = {"layers": 1, "steps_from_end": 2, "steps": 2, "progress": False}
    made = tiny_backbone.generate(TEXTS, steps=2, seed=[0, 1], batch=8, progress=False)
    drawn, given = attention_takers(tiny_backbone, TEXTS, **at), attention_takers(tiny_backbone, TEXTS, made, **at)
    assert_allclose(drawn.share, given.share, atol=1e-6)


def outputs(backbone, inputs, choose):
    """The attention of layer 2 with keys closed there, and what the model goes on with."""
    before, after = [], []
    with intercept(backbone.transformer, before.append, layers=2), close_keys(backbone, choose, layers=2):
        # called after the one that closes, sees the output that goes on
        with intercept(backbone.transformer, lambda one: after.append(one.output), layers=2):
            backbone.predict_velocity(*inputs)
    return before[0], after[0]


def closed_output(call, closed):
    """Attention without the closed keys, row by row, by taking them out."""
    rows = []
    for row, shut in enumerate(closed):
        scores = call.query[row].double() @ call.key[row][:, ~shut].double().mT * call.scale
        rows.append(scores.softmax(-1) @ call.value[row][:, ~shut].double())
    return torch.stack(rows)


@pytest.mark.parametrize("count", [1, 3])
def test_the_keys_that_get_most_are_closed(tiny_backbone, inputs, count):
    call, output = outputs(tiny_backbone, inputs, top_keys(count))
    got = (call.query @ call.key.mT * call.scale).softmax(-1).mean((1, 2))
    closed = got >= got.sort(-1).values[:, -count:][:, :1]
    assert (closed.sum(1) == count).all()
    assert_allclose(output, closed_output(call, closed), atol=2e-5)
    others = random_keys(count, seed=3)(call)
    assert (others.sum(1) == count).all() and not (others & closed).any()
    assert not torch.equal(random_keys(count, seed=4)(call), others)


def test_closing_ends_with_the_with(tiny_backbone, inputs):
    before = tiny_backbone.predict_velocity(*inputs)
    with close_keys(tiny_backbone, top_keys()):
        assert not torch.equal(tiny_backbone.predict_velocity(*inputs), before)
    assert torch.equal(tiny_backbone.predict_velocity(*inputs), before)


def first_key(call):
    closed = torch.zeros(len(call.query), call.query.shape[2], dtype=torch.bool)
    closed[:, call.image.start] = True
    return closed


def test_closed_keys_go_with_biases(tiny_backbone, inputs):
    rule = AttentionBias(-math.inf, JointTokens(image=(0.0, 0.0, 0.5, 1.0)), JointTokens(text=[1, 2]))
    with intercept(tiny_backbone.transformer, bias=rule):
        call, output = outputs(tiny_backbone, inputs, first_key)
    scores = call.query.double() @ call.key.double().mT * call.scale + call.added(slice(0, None), slice(0, None))
    scores[..., call.image.start] = -torch.inf
    assert_allclose(output, scores.softmax(-1) @ call.value.double(), atol=2e-5)
    # and as one bias with the other
    both = [rule, AttentionBias(-math.inf, keys=JointTokens(image=np.arange(42).reshape(6, 7) == 0))]
    with intercept(tiny_backbone.transformer, bias=both):
        wanted = tiny_backbone.predict_velocity(*inputs)
    with intercept(tiny_backbone.transformer, bias=rule), close_keys(tiny_backbone, first_key):
        assert_allclose(tiny_backbone.predict_velocity(*inputs), wanted, atol=1e-5)


@pytest.mark.parametrize("choose", [lambda: top_keys(3), lambda: random_keys(3)])
def test_words_outside_the_prompt_change_nothing_with_closed_keys(tiny_backbone, inputs, choose):
    with close_keys(tiny_backbone, choose()):
        alone = tiny_backbone.predict_velocity(*inputs)
    with AttentionRecorder(tiny_backbone, direction="c2i", concepts=["sky"]), close_keys(tiny_backbone, choose()):
        beside = tiny_backbone.predict_velocity(*inputs)
    assert_allclose(beside, alone, atol=1e-5)


def test_closed_keys_do_not_undo_an_edit(tiny_backbone, inputs):
    with (
        pytest.raises(RecordingError, match="own output in layer 0, .*enter close_keys first"),
        apply_edit(tiny_backbone, drop()),
        close_keys(tiny_backbone, top_keys()),
    ):
        tiny_backbone.predict_velocity(*inputs)


def test_uniform_attention_forgets_at_once(call):
    even = replace(
        call, query=torch.zeros_like(call.query), raw_lse=torch.full_like(call.lse, np.log(call.key.shape[2]))
    )
    assert second_eigenvalue(even).max() < 1e-6
