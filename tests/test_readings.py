"""Each reading against whole joint maps and plain loops in float64."""

from dataclasses import replace
from functools import partial

import numpy as np
import PIL.Image
import pytest
import torch
from torch.nn.functional import cosine_similarity

from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.backbones.lora import attach
from seg4diff_tools.errors import InputError
from seg4diff_tools.segmentation import attribution
from seg4diff_tools.segmentation.attribution import READINGS, image_rows, read
from seg4diff_tools.segmentation.segment import segment

NAMES = ["cat", "red car", "grass"]
MANY = [f"{color} {thing} number {i}" for i, color in enumerate(("red", "blue", "green", "grey"))
        for thing in ("fire engine", "bus", "tree", "dog", "cat")]  # fmt: skip
IMAGE = slice(0, 49)


@pytest.fixture(scope="module")
def latents(tiny_backbone):
    pixels = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    return tiny_backbone.encode_image(pixels)


class Plain:
    """All layers of one forward: whole joint maps, outputs and the layer's own projection, float64."""

    def __init__(self, backbone, latents, prompt, steps_from_end=8):
        self.maps, self.outputs, self.queries, self.keys, self.values = [], [], [], [], []

        def keep(call: JointAttention) -> None:
            query, key, value = (part[0].double() for part in (call.query, call.key, call.value))
            self.maps.append((query @ key.mT / query.shape[-1] ** 0.5).softmax(-1))
            self.outputs.append(self.maps[-1] @ value)
            self.queries.append(query)
            self.keys.append(key)

        noisy, timestep = backbone.add_noise(latents, steps_from_end)
        with intercept(backbone.transformer, keep):
            backbone.predict_velocity(noisy, timestep, prompt)
        blocks = backbone.transformer.transformer_blocks
        self.weights = [block.attn.to_out[0].weight.double() for block in blocks]
        self.spans = [[49 + token for token in span] for span in prompt.classes.values()]

    def i2t(self, layer):
        """[class image], mean over heads and tokens."""
        joint = self.maps[layer].mean(0)
        return torch.stack([torch.stack([joint[IMAGE, token] for token in span]).mean(0) for span in self.spans])

    def i2i(self, layer):
        return self.maps[layer].mean(0)[IMAGE, IMAGE]


@pytest.fixture(scope="module")
def prompt(tiny_backbone):
    (prompt,) = tiny_backbone.class_prompts(NAMES)
    return prompt


@pytest.fixture(scope="module")
def plain(tiny_backbone, latents, prompt):
    return Plain(tiny_backbone, latents, prompt)


def flat(backbone, latents, prompt, reading, layers=None, **options):
    return read(backbone, latents, [prompt], reading, layers, **options).flatten(1).double()


def test_layer_and_daam(tiny_backbone, latents, prompt, plain):
    found = flat(tiny_backbone, latents, prompt, "layer", [3])
    torch.testing.assert_close(found, plain.i2t(3), atol=1e-7, rtol=1e-5)
    every = sum(plain.i2t(layer) for layer in range(5)) / 5
    torch.testing.assert_close(flat(tiny_backbone, latents, prompt, "daam"), every, atol=1e-7, rtol=1e-5)
    steps = [Plain(tiny_backbone, latents, prompt, step) for step in (2, 8, 13)]
    mean = sum(one.i2t(layer) for one in steps for layer in (0, 4)) / 6
    found = flat(tiny_backbone, latents, prompt, "daam", [4, 0], steps_from_end=[2, 8, 13])
    torch.testing.assert_close(found, mean, atol=1e-7, rtol=1e-5)


def test_concept(tiny_backbone, latents, prompt, plain):
    found = flat(tiny_backbone, latents, prompt, "concept", [1, 4])
    scores = torch.zeros(3, 49, dtype=torch.float64)
    for index, span in enumerate(plain.spans):
        for layer in (1, 4):
            for token in span:
                for head in range(3):
                    output = plain.outputs[layer][head]
                    scores[index] += output[IMAGE] @ output[token] / len(span) / 2
    torch.testing.assert_close(found, scores.softmax(0), atol=1e-6, rtol=1e-4)
    # not a constant that any softmax would give
    assert scores.softmax(0).std() > 1e-3


@pytest.mark.parametrize("image", ["key", "query"])
def test_cosine(tiny_backbone, latents, prompt, plain, image):
    found = flat(tiny_backbone, latents, prompt, partial(attribution.cosine, image=image), [2])
    places = (plain.keys if image == "key" else plain.queries)[2]
    expected = torch.zeros(3, 49, dtype=torch.float64)
    for index, span in enumerate(plain.spans):
        for place in range(49):
            words = [plain.keys[2][:, token].flatten() for token in span]
            cosines = [cosine_similarity(places[:, place].flatten(), word, dim=0) for word in words]
            expected[index, place] = sum(cosines) / len(span)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("times", [0, 1, 4])
def test_refined(tiny_backbone, latents, prompt, plain, times):
    found = flat(tiny_backbone, latents, prompt, partial(attribution.refined, times=times), [3])
    own = plain.i2i(3) / plain.i2i(3).sum(1, keepdim=True)
    expected = (torch.linalg.matrix_power(own, times) @ plain.i2t(3).mT).mT
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(own.sum(1), torch.ones(49, dtype=torch.float64))


def plain_goca(plain, layers, reference, heads, times):
    """One head, place and token at a time, as the paper says it."""
    dense = torch.cat([output[IMAGE] for output in plain.outputs[reference]], dim=1)
    pseudo = (dense @ dense.mT / 60**0.5).softmax(-1)
    weights, maps = [], []
    for layer in layers:
        weights.append((plain.i2i(layer) * pseudo).sum())
        slices = plain.weights[layer].split(20, dim=1)
        projected = [output[IMAGE] @ part.mT for output, part in zip(plain.outputs[layer], slices, strict=True)]
        whole = sum(projected)
        own = torch.stack([(each * whole).sum(1) if heads else torch.ones(49) for each in projected]).double()
        own = own / own.sum(0)
        maps.append(sum(weight[:, None] * joint[IMAGE] for weight, joint in zip(own, plain.maps[layer], strict=True)))
    joint = sum(weight / sum(weights) * one for weight, one in zip(weights, maps, strict=True))
    joint = joint / joint[:, [token for span in plain.spans for token in span]].sum(1, keepdim=True)
    shares = torch.stack([joint[:, span].mean(1) for span in plain.spans])
    affinity = plain.i2i(reference) / plain.i2i(reference).sum(1, keepdim=True)
    for _ in range(times):
        shares = (affinity @ shares.mT).mT
    low, high = shares.amin(1, keepdim=True), shares.amax(1, keepdim=True)
    return (shares - low) / (high - low)


@pytest.mark.parametrize(
    ("layers", "reference", "heads", "times"),
    [(None, None, True, 0), ([4, 1], 3, True, 1), ([0, 2], 0, False, 0), ([3], 1, False, 0)],
)
def test_goca(tiny_backbone, latents, prompt, plain, layers, reference, heads, times):
    reading = partial(attribution.goca, reference=reference, heads=heads, times=times)
    found = flat(tiny_backbone, latents, prompt, reading, layers)
    chosen, middle = range(5) if layers is None else layers, 2 if reference is None else reference
    torch.testing.assert_close(found, plain_goca(plain, chosen, middle, heads, times), atol=2e-4, rtol=1e-3)


def test_heads_are_weighted_by_hand(tiny_backbone, latents, prompt):
    calls = []
    with intercept(tiny_backbone.transformer, calls.append, layers=[0], stop_after=0):
        tiny_backbone.predict_velocity(*tiny_backbone.add_noise(latents), prompt)
    # the first channel of three heads holds 2, 3 and 0, and is projected to (1, 2), (0, -1) and (5, 5)
    output, projection = torch.zeros_like(calls[0].output), torch.zeros(2, 60)
    output[:, :, :, 0] = torch.tensor([2.0, 3.0, 0.0])[:, None]
    projection[:, ::20] = torch.tensor([[1.0, 0.0, 5.0], [2.0, -1.0, 5.0]])
    found = attribution.head_weights(replace(calls[0], output=output), projection)
    # heads give (2, 4), (0, -3) and nothing, together (2, 1): dot products 8, -3 and 0
    torch.testing.assert_close(found, torch.tensor([8 / 5, -3 / 5, 0])[None, :, None].expand(1, 3, 49))


def test_rows_are_exact_in_pieces_and_under_a_mask(tiny_backbone, latents, prompt):
    calls = []
    bias = torch.linspace(-2, 1, 49 + len(prompt.tokens))
    with intercept(tiny_backbone.transformer, calls.append, layers=[1], key_bias=bias, stop_after=1):
        tiny_backbone.predict_velocity(*tiny_backbone.add_noise(latents, [3, 9]), prompt)
    (call,) = calls
    pieces = list(image_rows(call, workspace=2 * 3 * 49 * 4 * 10))
    assert [rows.stop - rows.start for rows, _ in pieces] == [10, 10, 10, 10, 9]
    together = torch.cat([piece for _, piece in pieces], dim=1)
    joint = (call.query @ call.key.mT * call.scale + bias).softmax(-1)[:, :, IMAGE, IMAGE]
    torch.testing.assert_close(together, joint.mean(1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", READINGS)
def test_names_over_several_prompts_and_several_steps(tiny_backbone, latents, name):
    prompts = tiny_backbone.class_prompts(MANY)
    assert len(prompts) > 1
    maps = read(tiny_backbone, latents, prompts, name, [2, 3], steps_from_end=[4, 8])
    assert maps.shape == (20, 7, 7)
    assert maps.dtype == torch.float32
    assert maps.flatten(1).std(1).min() > 0
    each = [read(tiny_backbone, latents, prompts, name, [2, 3], steps_from_end=step) for step in (4, 8)]
    torch.testing.assert_close(maps, torch.stack(each).mean(0), atol=1e-4, rtol=1e-3)
    if name == "concept":
        torch.testing.assert_close(maps.sum(0), torch.ones(7, 7))
    elif name == "goca":
        torch.testing.assert_close(each[0].amax((1, 2)), torch.ones(20))
    else:
        # classes of one prompt do not depend on the others
        alone = read(tiny_backbone, latents, prompts[-1:], name, [2, 3], steps_from_end=[4, 8])
        torch.testing.assert_close(maps[-len(alone) :], alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("reading", ["daam", "concept", "goca", partial(attribution.cosine, image="query")])
def test_segment_reads_otherwise(tiny_backbone, reading):
    photograph = PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (61, 83, 3), dtype=np.uint8))
    result = segment(tiny_backbone, photograph, NAMES, [1, 3], 5, 11, reading=reading, fit="crop", seed=7)
    prompts, latents = tiny_backbone.class_prompts(NAMES), tiny_backbone.encode_image(photograph, fit="crop")
    maps = read(tiny_backbone, latents, prompts, reading, [1, 3], steps_from_end=5, steps=11, seed=7)
    np.testing.assert_array_equal(result.class_maps, maps)
    assert result.label_map.shape == (61, 61)
    assert (result.settings["reading"], result.settings["layer"]) == (reading, (1, 3))


def test_segment_averages_layers_and_steps(tiny_backbone, latents, prompt):
    picture = tiny_backbone.decode(latents)[0]
    result = segment(tiny_backbone, picture, NAMES, range(5), [3, 8])
    other = segment(tiny_backbone, picture, NAMES, steps_from_end=[3, 8], reading="daam")
    np.testing.assert_allclose(result.class_maps, other.class_maps, atol=1e-7)
    assert result.settings["layer"] == (0, 1, 2, 3, 4)
    assert other.settings["layer"] is None


def test_wrong_input_is_refused(tiny_backbone, latents, prompt):
    picture = np.zeros((56, 56, 3), np.uint8)
    with pytest.raises(InputError, match="a reading from layer, daam.*got 'dam'"):
        segment(tiny_backbone, picture, NAMES, reading="dam")
    for options in ({"head": 1}, {"direction": "t2i"}, {"normalize": "scores"}):
        with pytest.raises(InputError, match="with another reading than 'layer', got 'daam'"):
            segment(tiny_backbone, picture, NAMES, reading="daam", **options)
    for reading in ("layer", "cosine", "refined"):
        with pytest.raises(InputError, match="expert layer is known, got"):
            read(tiny_backbone, latents, [prompt], reading)
    with pytest.raises(InputError, match="No layer was chosen"):
        read(tiny_backbone, latents, [prompt], "daam", [])
    with pytest.raises(InputError, match="no layer 5"):
        read(tiny_backbone, latents, [prompt], partial(attribution.goca, reference=5))


def test_weights_hold_what_lora_adds(build_backbone):
    backbone = build_backbone()
    attach(backbone.transformer, backbone.family, rank=3, alpha=7)
    linear = backbone.transformer.transformer_blocks[2].attn.to_out[0]
    (second,) = linear.lora_B.values()
    torch.nn.init.normal_(second.weight, generator=torch.Generator().manual_seed(0))
    given = torch.randn(11, 60, generator=torch.Generator().manual_seed(1))
    expected = linear(given) - linear.bias
    torch.testing.assert_close(given @ attribution.effective_weight(linear).mT, expected, atol=1e-5, rtol=1e-5)
    assert (attribution.effective_weight(linear) - linear.weight).abs().max() > 0.1
