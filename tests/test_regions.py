"""Second prompts and LoRAs in a part of the picture, against materialized attention and layers worked out by hand."""

import math
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from peft import LoraConfig
from tiny_models import SIDE, build

from seg4diff_tools.attention import (
    AttentionRecorder,
    JointTokens,
    ablate,
    apply_edit,
    confine_lora,
    intercept,
    patch,
    record_outputs,
    regional_prompts,
)
from seg4diff_tools.backbones.loading import wrap_pipeline
from seg4diff_tools.caching import model_fingerprint
from seg4diff_tools.errors import InputError, RecordingError

PROMPT = "a cat and a dog"
LEFT, RIGHT = (0.0, 0.0, 0.4, 1.0), (0.6, 0.0, 1.0, 1.0)
NOWHERE, EVERYWHERE = np.zeros((3, 4), bool), np.ones((3, 4), bool)
FAMILIES = ["sd3", "flux-dev"]
SAMPLING = {"steps": 2, "progress": False, "size": SIDE}


@pytest.fixture(params=FAMILIES)
def backbone(request):
    return wrap_pipeline(build(request.param), request.param)


def places(area):
    """Image tokens of an area on the grid of 5 x 5 tokens."""
    grid = np.arange(25).reshape(5, 5)
    return [] if area is None else grid[:, :2].ravel().tolist() if area == LEFT else grid[:, 3:].ravel().tolist()


def by_hand(call, reading, counts, strength=0.0, alone=False, confined=False):
    """The output of an attention with second prompts, from the full softmax in double precision.

    Args:
        call: the attention.
        reading: for each row of the batch the area that reads each second prompt; None for none.
        counts: tokens of each second prompt.
    """
    scores = call.query.double() @ call.key.double().mT * call.scale
    image, own, at = range(call.image.start, call.image.stop), [], call.concepts.start
    for count in counts:
        own.append(list(range(at, at + count)))
        at += count
    inside = [token for span in own for token in span]
    for row, areas in enumerate(reading):
        closed = torch.zeros(scores.shape[-2:], dtype=torch.bool)
        closed[:, inside] = True
        closed[inside] = True
        for span, area in zip(own, areas, strict=True):
            readers = [image[place] for place in places(area)]
            seen = readers if confined and any(areas) else list(image)
            for token in span:
                closed[token, seen + span] = False
            for place in readers:
                closed[place, span] = False
                scores[row, :, place, span] += strength
                if alone:
                    closed[place, call.text] = True
        scores[row].masked_fill_(closed, -math.inf)
    return scores.softmax(-1) @ call.value.double()


@pytest.mark.parametrize("way", [{}, {"strength": 1.5}, {"alone": True}, {"confined": True}], ids=str)
def test_second_prompts_are_those_of_a_materialized_softmax(backbone, way):
    regions = [{"two cats": LEFT, "dog": RIGHT}, {"dog": LEFT}]
    counts = [len(backbone.encode_prompt(text).indices("start", "word", "end")) for text in ("two cats", "dog")]
    errors = []

    def see(call):
        wanted = by_hand(call, [(LEFT, RIGHT), (None, LEFT)], counts, **way)
        kept = [token for token in range(wanted.shape[2]) if not call.concepts.start <= token < call.concepts.stop]
        # what image and prompt read; of the second prompts, of an image that reads them
        errors.append((call.output - wanted)[:, :, kept].abs().max())
        errors.append((call.output - wanted)[0].abs().max())

    latents = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(3))
    plain = backbone.predict_velocity(latents, 515.0, PROMPT)
    with regional_prompts(backbone, regions, **way), intercept(backbone.transformer, see):
        drawn = backbone.predict_velocity(latents, 515.0, PROMPT)
    assert len(errors) == 2 * backbone.layers
    assert max(errors) < 1e-5
    assert (drawn - plain).abs().amax((1, 2, 3)).min() > 1e-4


def test_the_branch_without_the_prompt_and_other_steps_do_not_read_them(tiny_backbone):
    counts, seen = [len(tiny_backbone.encode_prompt("cats").indices("start", "word", "end"))], []

    def see(call):
        if call.layer == 1:
            gaps = [
                (call.output - by_hand(call, reading, counts))[:, :, call.image].abs().max()
                for reading in ([(None,), (LEFT,)], [(None,), (None,)])
            ]
            seen.append([float(gap) < 1e-5 for gap in gaps])

    with regional_prompts(tiny_backbone, {"cats": LEFT}, steps=1), intercept(tiny_backbone.transformer, see):
        tiny_backbone.generate(PROMPT, seed=1, steps=2, size=40, progress=False)
    assert seen == [[False, True], [True, False]]


def test_an_empty_region_leaves_the_picture_as_it_is(backbone):
    plain = backbone.generate(PROMPT, seed=[1, 2], **SAMPLING)
    with regional_prompts(backbone, {"two cats": NOWHERE}, strength=2.0, alone=True):
        same = backbone.generate(PROMPT, seed=[1, 2], **SAMPLING)
    with regional_prompts(backbone, {"two cats": EVERYWHERE}, strength=6.0):
        other = backbone.generate(PROMPT, seed=[1, 2], **SAMPLING)
    for one, two, three in zip(plain, same, other, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(two, int)).max() <= 1
        assert np.abs(np.asarray(one, int) - np.asarray(three, int)).max() > 1


def test_text_outside_the_prompt_comes_from_one_place(tiny_backbone):
    with (
        regional_prompts(tiny_backbone, {"cats": LEFT}),
        pytest.raises(RecordingError, match="from one `with`, got a second one: .*leave regional_prompts out"),
        AttentionRecorder(tiny_backbone, direction="c2i", concepts=["sky"]),
    ):
        pass
    tiny_backbone.generate(PROMPT, **SAMPLING)


def test_second_prompts_are_part_of_the_model_s_state(tiny_backbone):
    prints = {model_fingerprint(tiny_backbone)}
    for regions in ({"cats": LEFT}, {"cats": RIGHT}, {"dogs": LEFT}):
        with regional_prompts(tiny_backbone, regions):
            prints.add(model_fingerprint(tiny_backbone))
            assert model_fingerprint(tiny_backbone) in prints
    assert len(prints) == 4


LAYERS = {
    "sd3": ["to_q", "to_out.0", "add_k_proj", "ff.net.2", "ff_context.net.2", "norm1.linear", "proj_out"],
    "flux": ["to_q", "add_k_proj", "ff.net.2", "ff_context.net.2", "proj_mlp", "proj_out", "norm.linear", "x_embedder"],
}


def with_lora(backbone, *adapters):
    """The model with random LoRAs on layers of every kind."""
    for seed, adapter in enumerate(adapters):
        backbone.transformer.add_adapter(
            LoraConfig(r=3, lora_alpha=5, target_modules=LAYERS[backbone.family.name]), adapter_name=adapter
        )
        generator = torch.Generator().manual_seed(seed)
        for name, value in backbone.transformer.named_parameters():
            if f".lora_B.{adapter}." in name:
                value.data = torch.randn(value.shape, generator=generator) / 3
    backbone.transformer.set_adapters(list(adapters))
    backbone.transformer.requires_grad_(False)
    return backbone


def velocity(backbone):
    latents = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(3))
    return backbone.predict_velocity(latents, 515.0, PROMPT)


def test_a_lora_of_everything_is_whole_and_of_nothing_is_none(backbone):
    plain, whole = velocity(backbone), velocity(with_lora(backbone, "style"))
    with confine_lora(backbone, EVERYWHERE, others=True):
        assert torch.equal(velocity(backbone), whole)
    with confine_lora(backbone, NOWHERE):
        assert torch.equal(velocity(backbone), plain)
    assert (whole - plain).abs().max() > 1e-3
    with confine_lora(backbone, [NOWHERE, EVERYWHERE], others=True):
        first, second = velocity(backbone)
    assert torch.equal(second, whole[1])
    assert not torch.equal(first, plain[0])
    with confine_lora(backbone, LEFT):
        half = velocity(backbone)
    assert not torch.equal(half, plain)
    assert not torch.equal(half, whole)
    assert torch.equal(velocity(backbone), whole)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
@pytest.mark.parametrize("others", [False, True])
def test_rows_of_each_layer_by_hand(backbone, others):
    with_lora(backbone, "style", "color")
    areas, seen = {"style": LEFT, "color": RIGHT}, {}

    def keep(name, module, args, output):
        (given,) = args
        wanted = module.base_layer(given)
        text = given.shape[1] - 25 if name.startswith("single") else 0
        for adapter, area in areas.items():
            kept = torch.full(given.shape[:2], others)
            in_text = any(part in name for part in ("add_k_proj", "ff_context"))
            if not in_text and "norm" not in name:
                kept[:, text:] = False
                kept[:, [text + place for place in places(area)]] = True
            added = module.lora_B[adapter](module.lora_A[adapter](given)) * module.scaling[adapter]
            wanted = wanted + (added if given.ndim == 3 else others * added) * (
                kept[..., None] if given.ndim == 3 else 1
            )
        seen[name] = (output - wanted).abs().max().item()

    with confine_lora(backbone, areas, others=others), ExitStack() as undo:
        # without the hooks on the second matrices, which the test works out itself
        layers = {n: m for n, m in backbone.transformer.named_modules() if hasattr(m, "lora_B") and "norm" not in n}
        results = {}
        for name, module in layers.items():
            undo.callback(module.register_forward_hook(lambda m, a, o, n=name: results.update({n: (m, a, o)})).remove)
        velocity(backbone)
    for name, (module, args, output) in results.items():
        keep(name, module, args, output)
    assert len(seen) > 5
    assert max(seen.values()) < 1e-5


def test_a_lora_in_its_place_runs_with_guidance_and_recorders(backbone):
    with_lora(backbone, "style")
    with confine_lora(backbone, [LEFT, RIGHT]), AttentionRecorder(backbone, prompt=PROMPT) as recorder:
        pictures = backbone.generate(PROMPT, seed=[1, 2], **SAMPLING)
    assert len(pictures) == recorder.recording["i2t"].sizes["image"] == 2
    with (
        confine_lora(backbone, [LEFT, RIGHT]),
        pytest.raises(RecordingError, match="2 images or a multiple, got 3"),
    ):
        backbone.predict_velocity(torch.zeros(3, *backbone.latent_shape), 515.0, PROMPT)


def test_areas_of_a_lora_are_part_of_the_model_s_state(backbone):
    prints = {model_fingerprint(with_lora(backbone, "style"))}
    for area in (LEFT, RIGHT):
        with confine_lora(backbone, area):
            prints.add(model_fingerprint(backbone))
            assert model_fingerprint(backbone) in prints
    assert len(prints) == 3


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_confined_is_refused(backbone):
    with pytest.raises(InputError, match="a model with a LoRA, got one without: call it inside apply_lora"):
        with confine_lora(backbone, LEFT):
            pass
    with_lora(backbone, "style")
    with pytest.raises(InputError, match="adapters from style, got 'color'"), confine_lora(backbone, {"color": LEFT}):
        pass
    with pytest.raises(InputError, match=r"area\['style'\], a mask or a box"), confine_lora(backbone, "left"):
        pass
    backbone.transformer.fuse_lora()
    with pytest.raises(InputError, match="a plain LoRA in .*, got weights that are fused"):
        with confine_lora(backbone, LEFT):
            pass


def test_other_families_are_refused():
    backbone = wrap_pipeline(build("chroma"), "chroma")
    with pytest.raises(InputError, match="confine_lora with SD3 or FLUX.1, .* got one of the family chroma"):
        with confine_lora(backbone, LEFT):
            pass
    with pytest.raises(InputError, match="family chroma: use one of sd3 and flux"):
        with regional_prompts(backbone, {"a cat": LEFT}):
            pass


def test_outputs_of_heads_are_those_of_image_and_prompt_beside_second_prompts(backbone):
    """Second prompts stand between text and image of FLUX.1, and behind both of SD3."""
    latents = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(3))
    seen = {}

    def see(call):
        seen[call.layer] = call.output.clone(), call

    def velocity():
        return backbone.predict_velocity(latents, 515.0, PROMPT)

    with regional_prompts(backbone, {"two cats": LEFT}, strength=2.0):
        plain = velocity()
        for tokens, part in ((JointTokens(image=True), "image"), (JointTokens(text=True), "text")):
            with record_outputs(backbone, tokens=tokens) as outputs, intercept(backbone.transformer, see):
                velocity()
            for (_, _, layer), values in outputs.values.items():
                output, call = seen[layer]
                assert torch.equal(values, output[:, :, getattr(call, part)])
            with apply_edit(backbone, patch(outputs)):
                assert torch.equal(velocity(), plain)
            with apply_edit(backbone, ablate(), 1, tokens=tokens), record_outputs(backbone, 1) as ablated:
                velocity()
            (values,), (output, call) = ablated.values.values(), seen[1]
            gone = (values == 0).all(-1).all(1)[0]
            start = getattr(call, part).start - call.concepts.stop + call.concepts.start
            start = start if getattr(call, part).start >= call.concepts.stop else getattr(call, part).start
            length = getattr(call, part).stop - getattr(call, part).start
            assert gone.nonzero().ravel().tolist() == list(range(start, start + length))
