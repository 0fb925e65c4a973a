"""Features, norms and budgets against values worked out by hand and the materialized attention."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from tiny_models import build

from seg4diff_tools.analysis.features import (
    attention_budget,
    explained_variance,
    image_features,
    pca_colors,
    token_labels,
    value_norms,
)
from seg4diff_tools.analysis.streams import massive_channels, neighbor_agreement
from seg4diff_tools.attention.areas import area_means
from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.backbones.loading import wrap_pipeline
from seg4diff_tools.errors import InputError


@pytest.fixture(scope="module")
def given(tiny_backbone):
    """Three latents of 6 x 7 tokens and their prompts."""
    latents = torch.randn(3, 16, 12, 14, generator=torch.Generator().manual_seed(5))
    return latents, tiny_backbone.encode_prompt(["a cat and a dog", "a red car", "two cats near a tree"])


@pytest.fixture(scope="module")
def calls(tiny_backbone, given):
    """The attention of every layer, image by image."""
    seen = []
    latents, prompts = given
    for latent, prompt in zip(latents, prompts, strict=True):
        layers = []
        with intercept(tiny_backbone.transformer, layers.append):
            tiny_backbone.predict_velocity(*tiny_backbone.add_noise(latent[None], 8), prompt)
        seen.append(layers)
    return seen


def test_features_are_those_of_the_attention(tiny_backbone, given, calls):
    found = image_features(tiny_backbone, *given, layers=[1, 3], batch=2)
    assert found.dims == ("image", "layer", "kind", "y", "x", "channel")
    assert dict(found.sizes) == {"image": 3, "layer": 2, "kind": 3, "y": 6, "x": 7, "channel": 60}
    key = calls[2][3].key[0, :, calls[2][3].image]
    wanted = key.permute(1, 0, 2).reshape(6, 7, 60)
    assert_allclose(found.isel(image=2).sel(layer=3, kind="key"), wanted, atol=1e-5)


def test_value_norms(tiny_backbone, given, calls):
    table = value_norms(tiny_backbone, *given, batch=2).set_index(["layer", "head", "tokens"]).norm
    assert len(table) == 5 * 4 * 3
    values = torch.cat([image[2].value for image in calls])
    image, text = calls[0][2].image, calls[0][2].text
    assert_allclose(table[2, 1, "image"], values[:, 1, image].norm(dim=-1).mean(), rtol=1e-5)
    assert_allclose(
        table[2, "all", "text"], values[:, :, text].transpose(1, 2).flatten(2).norm(dim=-1).mean(), rtol=1e-5
    )
    words = torch.cat([v[1, text][list(p.indices("word"))] for v, p in zip(values, given[1], strict=True)])
    assert_allclose(table[2, 1, "words"], words.norm(dim=-1).mean(), rtol=1e-5)


def test_attention_budget(tiny_backbone, given, calls):
    table = attention_budget(tiny_backbone, *given, [8], batch=2, progress=False)
    share = table.set_index(["layer", "query", "key"]).share
    for query in ("image", "text"):
        assert_allclose([share[i, query, "image"] + share[i, query, "text"] for i in range(5)], 1, atol=1e-6)
        parts = sum(
            share.xs((query, part), level=("query", "key")) for part in ("words", "start and end", "pads", "zeros")
        )
        assert_allclose(parts, share.xs((query, "text"), level=("query", "key")), atol=1e-6)
    full = [(c.query @ c.key.mT * c.scale).softmax(-1) for c in (image[3] for image in calls)]
    call, words = calls[0][3], [list(p.indices("word")) for p in given[1]]
    wanted = [a[0, :, call.image, call.text][..., w].sum(-1).mean() for a, w in zip(full, words, strict=True)]
    assert_allclose(share[3, "image", "words"], np.mean(wanted), atol=1e-6)
    wanted = [a[0, :, call.text, call.image].sum(-1).mean() for a in full]
    assert_allclose(share[3, "text", "image"], np.mean(wanted), atol=1e-6)
    uniform = table.drop_duplicates("key").set_index("key").uniform
    assert_allclose(uniform["image"], 42 / (42 + 154))
    assert_allclose(uniform["zeros"], 77 / (42 + 154))
    assert_allclose(uniform["words"], np.mean([len(w) for w in words]) / (42 + 154))


def test_explained_variance_by_hand():
    features = np.array([[0.0], [2.0], [10.0], [12.0]])
    # between 100, within 4, total 104; adjusted for 2 groups of 4 tokens
    assert_allclose(explained_variance(features, np.array([7, 7, 1, 1])), 1 - (4 / 104) * 3 / 2)
    assert_allclose(explained_variance(features, np.array([1, 2, 1, 2])), 1 - (100 / 104) * 3 / 2)


def test_groups_that_mean_nothing_explain_nothing():
    rng = np.random.default_rng(0)
    features, groups = rng.normal(size=(3000, 11)), rng.integers(0, 300, 3000)
    assert abs(explained_variance(features, groups)) < 0.02


def test_bad_groups():
    with pytest.raises(InputError, match="fewer groups than tokens"):
        explained_variance(np.zeros((3, 2)), np.arange(3))
    with pytest.raises(InputError, match="features that vary"):
        explained_variance(np.ones((3, 2)), np.zeros(3, int))


def test_pca_colors_are_shared_by_images():
    rng = np.random.default_rng(1)
    classes = rng.integers(0, 3, size=(2, 5, 7))
    features = (np.eye(3, 13)[classes] * [5]).astype(np.float32) + rng.normal(scale=0.01, size=(2, 5, 7, 13)).astype(
        "f"
    )
    colors = pca_colors(features)
    assert colors.shape == (2, 5, 7, 3)
    assert colors.min() == 0
    assert colors.max() == 1
    first = [colors[0][classes[0] == c].mean(0) for c in range(3)]
    second = [colors[1][classes[1] == c].mean(0) for c in range(3)]
    # the third component is noise
    assert_allclose(np.array(first)[:, :2], np.array(second)[:, :2], atol=0.05)


def test_token_labels_by_hand():
    labels = torch.tensor([[0, 0, 2, 2, 1, 1], [0, 1, 2, 1, 1, 1]])
    assert token_labels(labels, (1, 3)).tolist() == [[0, 2, 1]]


def test_tokens_of_sizes_that_do_not_divide_take_parts_of_pixels():
    # 5 pixels on 3 tokens: 1 + 2/3, 1/3 + 1 + 1/3, 2/3 + 1 of them
    values = torch.tensor([[3.0, 0.0, 5.0, 10.0, 15.0]])
    assert_allclose(area_means(values, (1, 3)), [[1.8, 5.0, 13.0]])
    wide = torch.rand(2, 7, 11, generator=torch.Generator().manual_seed(0))
    whole = wide.repeat_interleave(3, 1).repeat_interleave(4, 2)  # 21 x 44 pixels, on 3 x 4 tokens of 7 x 11
    assert_allclose(area_means(wide, (3, 4)), whole.unflatten(1, (3, 7)).unflatten(3, (4, 11)).mean((2, 4)), rtol=1e-6)
    # more pixels of 1 touch the middle token, but those of 0 cover more of it
    assert token_labels(torch.tensor([[0, 1, 0, 1, 1]]), (1, 3)).tolist() == [[0, 0, 1]]


def test_prompts_have_to_fit(tiny_backbone, given):
    with pytest.raises(InputError, match="one prompt for each image, got 2 for 3"):
        value_norms(tiny_backbone, given[0], given[1][:2])


@pytest.mark.parametrize("name", ["sd3", "sd3.5", "flux-dev", "flux-kontext"])
def test_streams_are_what_the_blocks_begin_with(name):
    backbone = wrap_pipeline(build(name), name)
    latents = torch.randn(3, *backbone.latent_shape, generator=torch.Generator().manual_seed(5))
    prompts = backbone.encode_prompt(["a cat and a dog", "a red car", "two cats near a tree"])
    layers, channels = [1, 3], [4, 0]
    blocks = [block for stack, _ in backbone.family.block_lists for block in getattr(backbone.transformer, stack)]
    norms = {layer: getattr(blocks[layer], "norm1", None) or blocks[layer].norm for layer in layers}
    seen = {layer: [] for layer in layers}
    for layer, norm in norms.items():
        norm.register_forward_hook(
            lambda module, args, kwargs, output, at=layer: seen[at].append((*args, kwargs["emb"])), with_kwargs=True
        )
    kinds = ["stream", "adaln", "value"]
    plain = image_features(backbone, latents, prompts, layers=layers, kinds=kinds, batch=3)
    stream = {layer: given[0] for layer, (given, *_) in seen.items()}
    found = image_features(backbone, latents, prompts, layers=layers, kinds=kinds, discard=channels, batch=2)
    assert_allclose(found.sel(kind="value"), plain.sel(kind="value"), atol=1e-5)
    for layer in layers:
        # values are made of the features after the norm
        places = torch.from_numpy(plain.sel(layer=layer, kind="adaln").values).flatten(1, 2)
        values = blocks[layer].attn.to_v(places).detach()
        assert_allclose(values, plain.sel(layer=layer, kind="value").values.reshape(values.shape), atol=1e-5)
        joint = stream[layer].shape[1] > 25 and "single" in type(blocks[layer]).__name__.lower()
        start = stream[layer].shape[1] - 25 if joint else 0
        image = stream[layer][:, start : start + 25]
        if not joint or name != "flux-kontext":
            assert_allclose(plain.sel(layer=layer, kind="stream").values.reshape(image.shape), image, atol=1e-5)
        # by hand: zero, normalize, scale, shift
        image = torch.from_numpy(plain.sel(layer=layer, kind="stream").values).flatten(1, 2).clone()
        image[..., channels] = 0
        emb = seen[layer][0][1]
        parts = (
            norms[layer]
            .linear(torch.nn.functional.silu(emb))
            .detach()
            .chunk(norms[layer].linear.out_features // image.shape[-1], dim=1)
        )
        mean, deviation = image.mean(-1, keepdim=True), (image.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
        wanted = (image - mean) / deviation * (1 + parts[1][:, None]) + parts[0][:, None]
        got = found.sel(layer=layer, kind="adaln").values.reshape(wanted.shape)
        assert_allclose(got, wanted, atol=1e-4, rtol=1e-4)
        assert (found.sel(layer=layer, kind="stream").values[..., channels] == 0).all()


def test_streams_of_other_families_are_refused():
    backbone = wrap_pipeline(build("qwen-image"), "qwen-image")
    latents, prompts = torch.zeros(1, *backbone.latent_shape), backbone.encode_prompt(["a cat"])
    with pytest.raises(InputError, match="kinds from query, key, value with the family qwen"):
        image_features(backbone, latents, prompts, kinds=["adaln"])


def test_massive_channels_by_hand():
    features = np.ones((2, 3, 4, 7))
    features[..., 5], features[..., 2] = -30.0, 12.0
    features[0, 0, 0, 1] = 100.0
    assert massive_channels(features) == [5, 2]
    assert massive_channels(features, 20.0) == [5]


def test_nearest_tokens_of_other_images_agree_by_class():
    features, classes = np.zeros((3, 1, 2, 2)), np.array([[[0, 1]], [[0, 1]], [[1, 0]]])
    features[0, 0] = [[1.0, 0.0], [0.0, 2.0]]
    features[1, 0] = [[3.0, 0.1], [0.1, 1.0]]
    features[2, 0] = [[0.2, 1.0], [0.0, 1.0]]
    # the second tokens of the first and of the last image point at each other, whose classes differ
    assert_allclose(neighbor_agreement(features, classes), [0.5, 1.0, 0.5])
