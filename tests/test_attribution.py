"""Each attribution method against whole joint maps and plain loops in float64."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import xarray as xr
from tiny_models import build
from torch.nn.functional import cosine_similarity
from torch.overrides import TorchFunctionMode

from seg4diff_tools.attention.bias import AttentionBias
from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.backbones.loading import wrap_pipeline
from seg4diff_tools.backbones.lora import attach
from seg4diff_tools.errors import InputError
from seg4diff_tools.segmentation import attribution, masks
from seg4diff_tools.segmentation.attribution import ATTRIBUTIONS, image_rows, read
from seg4diff_tools.segmentation.concepts import RELEASED_CONCEPT, concept, concept_in_prompt
from seg4diff_tools.segmentation.options import OpenVocabulary
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
        self.maps: list[torch.Tensor] = []
        self.outputs: list[torch.Tensor] = []
        self.queries: list[torch.Tensor] = []
        self.keys: list[torch.Tensor] = []

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


def flat(backbone, latents, prompt, method, layers=None, steps_from_end=8):
    if isinstance(method, str):
        method = ATTRIBUTIONS.get(method, method)
    if callable(method):
        return read(backbone, latents, [prompt], method, layers, steps_from_end=steps_from_end).flatten(1).double()
    options = OpenVocabulary(method=method, layers=layers, steps_from_end=steps_from_end)
    maps = segment(backbone, backbone.decode(latents), NAMES, options, latents=latents)[0].class_maps
    return torch.from_numpy(maps.values).flatten(1).double()


def test_layer_and_daam(tiny_backbone, latents, prompt, plain):
    found = flat(tiny_backbone, latents, prompt, "layer", [3])
    torch.testing.assert_close(found, plain.i2t(3), atol=1e-7, rtol=1e-5)
    every = sum(plain.i2t(layer) for layer in range(5)) / 5
    torch.testing.assert_close(flat(tiny_backbone, latents, prompt, "daam"), every, atol=1e-7, rtol=1e-5)
    steps = [Plain(tiny_backbone, latents, prompt, step) for step in (2, 8, 13)]
    mean = sum(one.i2t(layer) for one in steps for layer in (0, 4)) / 6
    found = flat(tiny_backbone, latents, prompt, "daam", [4, 0], steps_from_end=[2, 8, 13])
    torch.testing.assert_close(found, mean, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("variant", [None, "sd3", "flux", "flux2"])
def test_concepts_in_the_prompt(tiny_backbone, latents, prompt, plain, variant):
    found = flat(tiny_backbone, latents, prompt, partial(concept_in_prompt, variant=variant), [1, 4])
    scores = torch.zeros(2, 3, 49, dtype=torch.float64)
    for row, layer in enumerate((1, 4)):
        output = torch.cat(list(plain.outputs[layer]), dim=1)
        for index, span in enumerate(plain.spans):
            word = output[span].mean(0)
            # the released code of Stable Diffusion 3 compares with concepts of length 1
            word = word / word.square().sum().sqrt() if variant in (None, "sd3") else word
            for place in range(49):
                scores[row, index, place] = output[place] @ word
    expected = scores.mean(0).softmax(0) if variant == "flux2" else (scores[0].softmax(0) + scores[1].softmax(0)) / 2
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    # not a constant that any softmax would give
    assert expected.std() > 1e-3


def test_concept_is_the_released_code_of_each_family(tiny_backbone, latents, prompt, plain):
    released = {"StableDiffusion3Pipeline": "sd3", "FluxPipeline": "flux", "Flux2Pipeline": "flux2"}
    assert released == RELEASED_CONCEPT
    name: str
    variant: Any
    for name, variant in released.items():
        family = replace(tiny_backbone.family, pipelines=(name,))
        found = flat(replace(tiny_backbone, family=family), latents, prompt, "concept-in-prompt", [1, 4])
        named = flat(tiny_backbone, latents, prompt, partial(concept_in_prompt, variant=variant), [1, 4])
        torch.testing.assert_close(found, named, atol=0, rtol=0)


class Outputs(TorchFunctionMode):
    """The outputs of every attention, heads side by side."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.found.append(result.transpose(1, 2).flatten(2)[0])
        return result


def beside(backbone, latents, prompt, states, pooled=None):
    """Outputs of each block's two attentions, as in the released code: the image with the prompt, and with concepts.

    The image goes on with the prompt, the concepts with the image. Each is [token feature], in the family's order.
    """
    model, (noisy, timestep) = backbone.transformer, backbone.add_noise(latents, 8)
    text, pooled = (
        prompt.inputs["encoder_hidden_states"],
        prompt.inputs["pooled_projections"] if pooled is None else pooled,
    )
    found, extra, blocks = [], {}, model.transformer_blocks
    if backbone.family.name == "flux":
        seen: dict[str, Any] = {}
        handle = model.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
        backbone.predict_velocity(noisy, timestep, prompt)
        handle.remove()
        image = model.x_embedder(seen["hidden_states"])
        guidance = [] if seen.get("guidance") is None else [seen["guidance"] * 1000]
        temb = model.time_text_embed(seen["timestep"] * 1000, *guidance, pooled)
        both = [torch.cat([torch.zeros(count, 3), seen["img_ids"]]) for count in (text.shape[1], len(states))]
        extra = [{"image_rotary_emb": model.pos_embed(ids)} for ids in both]
    else:
        image, temb = model.pos_embed(noisy), model.time_text_embed(timestep, pooled)
        extra = [{}, {}]
    text, concepts = model.context_embedder(text), model.context_embedder(states[None])
    for block in blocks:
        with Outputs() as seen_by, torch.no_grad():
            asked, _ = block(hidden_states=image, encoder_hidden_states=concepts, temb=temb, **extra[1])
            text, image = block(hidden_states=image, encoder_hidden_states=text, temb=temb, **extra[0])
        joint = [one for one in seen_by.found if len(one) != image.shape[1]]
        concepts = asked
        found.append(joint[::-1])
    return found


@pytest.mark.parametrize("name", ["sd3", "sd3.5"])
def test_concepts_of_sd3_are_those_of_the_released_code(name):
    backbone = wrap_pipeline(build(name), name)
    pixels = np.random.default_rng(0).integers(0, 256, (backbone.image_size, backbone.image_size, 3), dtype=np.uint8)
    latents, names = backbone.encode_image(pixels), ["cat", "dog", "grass"]
    prompts, empty = backbone.class_prompts(names), backbone.encode_prompt("a tree")
    (joined,) = prompts
    assert list(joined.classes.values()) == [(1,), (2,), (3,)]
    states = joined.inputs["encoder_hidden_states"][0, :4]
    scores = []
    for _, own in beside(backbone, latents, empty, states):
        image, words = own[:-4], own[-3:]
        scores.append((words / words.norm(dim=1, keepdim=True) @ image.mT).softmax(0))
    method = partial(concept, prompt="a tree")
    found = read(backbone, latents, prompts, method).flatten(1)
    torch.testing.assert_close(found, torch.stack(scores).mean(0), atol=1e-5, rtol=1e-4)
    assert found.std() > 1e-4
    one = read(backbone, latents, prompts, method, [1]).flatten(1)
    torch.testing.assert_close(one, scores[1], atol=1e-5, rtol=1e-4)


def test_concepts_of_flux_are_those_of_the_released_code():
    backbone = wrap_pipeline(build("flux-dev"), "flux-dev")
    pixels = np.random.default_rng(0).integers(0, 256, (backbone.image_size, backbone.image_size, 3), dtype=np.uint8)
    latents, names = backbone.encode_image(pixels), ["cat", "red car", "grass"]
    prompts, empty = backbone.class_prompts(names), backbone.encode_prompt("")
    alone = [backbone.encode_prompt(name) for name in names]
    # the first token of each
    states = torch.cat([one.inputs["encoder_hidden_states"][0, :1] for one in alone])
    pooled = torch.zeros_like(empty.inputs["pooled_projections"])
    scores = [
        (own[:3] @ image[-len(own[3:]) :].mT).softmax(0)
        for image, own in beside(backbone, latents, empty, states, pooled)
    ]
    found = read(backbone, latents, prompts, "concept").flatten(1)
    torch.testing.assert_close(found, torch.stack(scores).mean(0), atol=1e-5, rtol=1e-4)
    assert found.std() > 1e-4


def test_concepts_apart_do_not_depend_on_each_other(tiny_backbone, latents, prompt):
    apart = partial(concept, variant="apart")
    both = flat(tiny_backbone, latents, prompt, apart, [2])
    (fewer,) = tiny_backbone.class_prompts(NAMES[1:])
    pair = flat(tiny_backbone, latents, fewer, apart, [2])
    torch.testing.assert_close(both[1] / both[2], pair[0] / pair[1], atol=0, rtol=1e-3)
    released = flat(tiny_backbone, latents, prompt, "concept", [2])
    assert (released - both).abs().max() > 1e-4


def test_concepts_outside_need_a_family_that_takes_them(latents):
    backbone = wrap_pipeline(build("chroma"), "chroma")
    with pytest.raises(InputError, match="family chroma: use one of sd3 and flux, or put the words into the prompt"):
        read(backbone, torch.zeros(1, *backbone.latent_shape), backbone.class_prompts(NAMES), "concept")


def test_blur_by_hand(tiny_backbone, latents, prompt):
    maps = torch.rand(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([np.exp(-0.5 * (place / 1.1) ** 2) for place in range(-2, 3)])
    weights = weights / weights.sum()
    wanted = torch.zeros_like(maps)

    def mirrored(place, count):
        place = abs(place)
        return place if place < count else 2 * (count - 1) - place

    for y in range(5):
        for x in range(7):
            for row in range(5):
                for column in range(5):
                    value = maps[:, mirrored(y + row - 2, 5), mirrored(x + column - 2, 7)]
                    wanted[:, y, x] += weights[row] * weights[column] * value
    torch.testing.assert_close(masks.blur(maps), wanted)
    plain = flat(tiny_backbone, latents, prompt, "goca").unflatten(1, (7, 7))
    blurred = flat(tiny_backbone, latents, prompt, partial(attribution.goca, blur=True)).unflatten(1, (7, 7))
    # a stretched map is a line of the shares, which the blur keeps
    torch.testing.assert_close(blurred, masks.minmax(masks.blur(plain)), atol=1e-5, rtol=1e-4)
    assert (blurred - plain).abs().max() > 0.05


def test_stop_words_stand_in_each_prompt_and_are_no_class(tiny_backbone, latents):
    picture = tiny_backbone.decode(latents)[0]
    options = OpenVocabulary(layers=2, stop_words=("and", "the"))
    result = segment(tiny_backbone, picture, NAMES, options)
    (same,) = tiny_backbone.class_prompts([*NAMES, "and", "the"])
    assert result.settings["prompts"] == ["cat red car grass and the"]
    found = torch.from_numpy(result.class_maps.values).flatten(1)
    latents = tiny_backbone.encode_image(picture)
    wanted = Plain(tiny_backbone, latents, same).i2t(2)[:3]
    torch.testing.assert_close(found.double(), wanted, atol=1e-7, rtol=1e-4)
    many = segment(tiny_backbone, picture, MANY, options)
    assert len(many.settings["prompts"]) > 1
    assert all(prompt.endswith(" and the") for prompt in many.settings["prompts"])
    assert not np.isnan(many.class_maps).any()
    with pytest.raises(InputError, match="stop_words that are no class, got 'cat'"):
        segment(tiny_backbone, picture, NAMES, replace(options, stop_words=("cat",)))
    with pytest.raises(InputError, match="stop_words that fit into a prompt beside 'cat'"):
        segment(tiny_backbone, picture, ["cat"], replace(options, stop_words=tuple(MANY)))


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
    method = partial(attribution.goca, reference=reference, heads=heads, times=times)
    found = flat(tiny_backbone, latents, prompt, method, layers)
    chosen, middle = range(5) if layers is None else layers, 2 if reference is None else reference
    torch.testing.assert_close(found, plain_goca(plain, chosen, middle, heads, times), atol=2e-4, rtol=1e-3)


def test_heads_are_weighted_by_hand(tiny_backbone, latents, prompt):
    calls: list[JointAttention] = []
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
    calls: list[JointAttention] = []
    bias = torch.linspace(-2, 1, 49 + len(prompt.tokens))
    with intercept(tiny_backbone.transformer, calls.append, layers=[1], bias=AttentionBias(bias), stop_after=1):
        tiny_backbone.predict_velocity(*tiny_backbone.add_noise(latents, [3, 9]), prompt)
    (call,) = calls
    pieces = list(image_rows(call, workspace=2 * 3 * 49 * 4 * 10))
    assert [rows.stop - rows.start for rows, _ in pieces] == [10, 10, 10, 10, 9]
    together = torch.cat([piece for _, piece in pieces], dim=1)
    joint = (call.query @ call.key.mT * call.scale + bias).softmax(-1)[:, :, IMAGE, IMAGE]
    torch.testing.assert_close(together, joint.mean(1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_names_over_several_prompts_and_several_steps(tiny_backbone, latents, name):
    prompts = tiny_backbone.class_prompts(MANY)
    assert len(prompts) > 1
    maps = read(tiny_backbone, latents, prompts, name, [2, 3], steps_from_end=[4, 8])
    assert maps.shape == (20, 7, 7)
    assert maps.dtype == torch.float32
    assert maps.flatten(1).std(1).min() > 0
    each = [read(tiny_backbone, latents, prompts, name, [2, 3], steps_from_end=step) for step in (4, 8)]
    torch.testing.assert_close(maps, torch.stack(each).mean(0), atol=1e-4, rtol=1e-3)
    if name.startswith("concept"):
        torch.testing.assert_close(maps.sum(0), torch.ones(7, 7))
    elif name == "goca":
        torch.testing.assert_close(each[0].amax((1, 2)), torch.ones(20))
    else:
        # classes of one prompt do not depend on the others
        alone = read(tiny_backbone, latents, prompts[-1:], name, [2, 3], steps_from_end=[4, 8])
        torch.testing.assert_close(maps[-len(alone) :], alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", ["concept", "goca", partial(attribution.cosine, image="query")])
def test_segment_takes_any_method(tiny_backbone, method):
    photograph = PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (61, 83, 3), dtype=np.uint8))
    options = OpenVocabulary(layers=[1, 3], steps_from_end=5, steps=11, method=method, fit="crop", seeds=7)
    result = segment(tiny_backbone, photograph, NAMES, options)
    prompts, latents = tiny_backbone.class_prompts(NAMES), tiny_backbone.encode_image(photograph, fit="crop")
    maps = read(tiny_backbone, latents, prompts, method, [1, 3], steps_from_end=5, steps=11, seed=7)
    np.testing.assert_array_equal(result.class_maps, maps)
    assert result.label_map.shape == (61, 61)
    told = (
        method
        if isinstance(method, str)
        else {"function": "seg4diff_tools.segmentation.attribution.cosine", "image": "query"}
    )
    assert (result.settings["method"], result.settings["layers"]) == (told, [1, 3])


def test_daam_is_the_mean_of_all_layers(tiny_backbone, latents):
    picture = tiny_backbone.decode(latents)[0]
    result = segment(tiny_backbone, picture, NAMES, OpenVocabulary(layers=range(5), steps_from_end=[3, 8]))
    other = segment(tiny_backbone, picture, NAMES, OpenVocabulary(steps_from_end=[3, 8], method="daam"))
    xr.testing.assert_identical(result.class_maps, other.class_maps)
    assert result.settings["layers"] == other.settings["layers"] == [0, 1, 2, 3, 4]


def test_wrong_input_is_refused(tiny_backbone, latents, prompt):
    with pytest.raises(InputError, match=r"one of 'layer', 'daam'.*got 'dam'"):
        OpenVocabulary(method="dam")
    for options in ({"heads": 1}, {"direction": "t2i"}, {"normalize": "scores"}, {"merge_scaled": True}):
        with pytest.raises(InputError, match=f"expected {next(iter(options))} with method 'layer' or 'daam' alone"):
            OpenVocabulary(method="goca", **options)
    for name in ("layer", "cosine", "refined"):
        with pytest.raises(InputError, match="expert layer is known, got"):
            flat(tiny_backbone, latents, prompt, name)
    with pytest.raises(InputError, match="expected layers, at least one"):
        read(tiny_backbone, latents, [prompt], "concept", [])
    with pytest.raises(InputError, match="from 0 to 4, got 5"):
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
