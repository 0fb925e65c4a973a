"""Outputs of heads, recorded, patched and ablated, against plain torch and the weights that read them."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3PAGPipeline
from tiny_models import BUILDERS, SIDE, build
from torch.testing import assert_close

from seg4diff_tools.attention import (
    JointTokens,
    ablate,
    apply_edit,
    blur,
    edited_output,
    intercept,
    patch,
    perturbed_guidance,
    record_outputs,
)
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.loading import wrap_pipeline
from seg4diff_tools.caching import model_fingerprint
from seg4diff_tools.errors import InputError, RecordingError

PROMPT = "a red cars near the tree"


@pytest.fixture(scope="module", params=BUILDERS)
def backbone(request) -> Backbone:
    return wrap_pipeline(build(request.param), request.param)


def forward(backbone: Backbone, images: int = 2, seed: int = 3, prompt: str = PROMPT, timestep: float = 515.0):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(images, *backbone.latent_shape, generator=generator)
    return backbone.predict_velocity(latents, timestep, prompt)


def recorded(backbone: Backbone, **forwarded):
    with record_outputs(backbone) as outputs:
        forward(backbone, **forwarded)
    return outputs


def test_own_outputs_change_nothing_in_every_family(backbone):
    plain, outputs = forward(backbone), recorded(backbone)
    assert outputs.layers == tuple(range(backbone.layers))
    assert sorted(outputs.values) == [(0, "cond", layer) for layer in outputs.layers]
    with apply_edit(backbone, patch(outputs)):
        assert torch.equal(forward(backbone), plain)
    with apply_edit(backbone, patch(recorded(backbone, seed=4))):
        assert not torch.equal(forward(backbone), plain)
    assert torch.equal(forward(backbone), plain)


def test_all_heads_of_a_layer_are_those_of_the_other_run(backbone):
    own, other, layer = recorded(backbone), recorded(backbone, seed=4), backbone.layers - 1
    with apply_edit(backbone, patch(other), layer), record_outputs(backbone) as seen:
        forward(backbone)
    for key, values in seen.values.items():
        assert torch.equal(values, (other if key[2] == layer else own).values[key])
    heads = [backbone.heads - 1, 0]
    with apply_edit(backbone, patch(other), layer, heads=heads), record_outputs(backbone, layer) as seen:
        forward(backbone)
    key, rest = (0, "cond", layer), list(range(1, backbone.heads - 1))
    assert torch.equal(seen.values[key][:, heads], other.values[key][:, heads])
    assert torch.equal(seen.values[key][:, rest], own.values[key][:, rest])


@pytest.mark.parametrize("to", ["zero", "mean"])
def test_ablated_heads_are_a_restatement_in_every_family(backbone, to):
    layer, head = 1, backbone.heads - 1

    def restated(call):
        scores = call.query.double() @ call.key.double().mT * call.scale
        output = (scores if call.mask is None else scores + call.mask).softmax(-1) @ call.value.double()
        kinds = torch.zeros(output.shape[2], dtype=torch.long)
        kinds[call.image], kinds[call.text] = 1, 2
        for row in range(len(output)):
            for kind in kinds.unique():
                mine = output[row, head, kinds == kind]
                output[row, head, kinds == kind] = mine.mean(0) if to == "mean" else 0 * mine
        return output.to(call.output)

    with intercept(backbone.transformer, restated, layers=layer):
        wanted = forward(backbone)
    with apply_edit(backbone, ablate(to), layer, heads=head):
        found = forward(backbone)
    assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (found - forward(backbone)).abs().max() > 1e-5


@pytest.mark.parametrize(("name", "layer"), [("sd3", 1), ("flux-dev", 0), ("flux-dev", -1)])
def test_a_head_that_is_ablated_is_a_column_block_of_the_projection(name, layer):
    """What a head puts out is what its columns of the output projection read, in fused single blocks too."""
    backbone = wrap_pipeline(build(name), name)
    layer %= backbone.layers
    (_, attention) = backbone.family.joint_attention(backbone.transformer)[layer]
    with apply_edit(backbone, ablate(), layer, heads=1):
        found = forward(backbone)
    if getattr(attention, "pre_only", False):
        projections = [backbone.transformer.single_transformer_blocks[-1].proj_out]
    else:
        projections = [attention.to_out[0], attention.to_add_out]
    width = attention.inner_dim // backbone.heads
    with torch.no_grad():
        for projection in projections:
            projection.weight[:, width : 2 * width] = 0
    assert_close(found, forward(backbone), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "guidance"),
    [("sd3", {"guidance_scale": 4.0}), ("flux-dev", {"true_cfg_scale": 4.0, "negative_prompt": ""})],
)
def test_steps_branches_and_tokens_are_selected(name, guidance):
    backbone = wrap_pipeline(build(name), name)
    asked = {"steps": 3, "seed": [1, 2], "progress": False, "size": SIDE} | guidance

    def made(text: str = PROMPT):
        return [np.asarray(picture) for picture in backbone.generate(text, **asked)]

    with record_outputs(backbone) as whole:
        plain = made()
    branches = ("uncond", "cond") if name == "sd3" else ("cond", "uncond")
    assert whole.branches == branches and list(whole.timesteps) == [0, 1, 2]
    assert whole.nbytes == sum(value.numel() * 4 for value in whole.values.values())
    assert f"{backbone.heads} heads, 3 steps, {' and '.join(branches)}" in repr(whole)
    with apply_edit(backbone, patch(whole)):
        np.testing.assert_array_equal(made(), plain)
    limits = {"heads": 1, "steps": [1], "branches": "cond", "tokens": JointTokens(image=(0.0, 0.0, 0.4, 1.0), text=[2])}
    with apply_edit(backbone, ablate(), 2, **limits), record_outputs(backbone) as seen:
        made()
    changed = {key for key in whole.values if key[2] <= 2 and not torch.equal(whole.values[key], seen.values[key])}
    # guidance carries the change to both branches of the step after it
    assert {key for key in changed if key[0] < 2} == {(1, "cond", 2)}
    before, after = whole.values[1, "cond", 2], seen.values[1, "cond", 2]
    places = (before != after).any(-1)
    assert not places[:, [0, 2]].any() and not after[:, 1][places[:, 1]].any()
    assert places[:, 1].sum(-1).tolist() == [10 + 1] * 2
    with record_outputs(backbone, 2, steps=range(2), branches="uncond", heads=[2, 0]) as part:
        made()
    assert sorted(part.values) == [(0, "uncond", 2), (1, "uncond", 2)]
    assert torch.equal(part.values[1, "uncond", 2], whole.values[1, "uncond", 2][:, [2, 0]])
    with apply_edit(backbone, patch(part)):
        np.testing.assert_array_equal(made(), plain)


def test_a_word_is_patched_onto_another_and_one_image_onto_a_batch(tiny_backbone):
    word, other = JointTokens(text=[2, 3]), JointTokens(text=[5, 1])
    with record_outputs(tiny_backbone, 2, tokens=word) as outputs:
        forward(tiny_backbone, images=1, seed=4)
    with apply_edit(tiny_backbone, patch(outputs, tokens=other)), record_outputs(tiny_backbone, 2) as seen:
        forward(tiny_backbone)
    (wanted,), (found,) = outputs.values.values(), seen.values.values()
    start = found.shape[2] - 154
    # tokens go by their order in the sequence
    assert torch.equal(found[:, :, [start + 1, start + 5]], wanted.expand(2, -1, -1, -1))
    own = recorded(tiny_backbone).values[0, "cond", 2]
    assert (found != own).any(-1).sum() == 2 * 2 * tiny_backbone.heads


def test_an_edit_of_words_is_limited_to_heads_and_places(tiny_backbone):
    seen, wanted = [], []

    def see(call):
        wanted.append(edited_output(call, blur(), heads=[2]))
        wanted.append(call.output)

    limits = {"heads": 2, "tokens": JointTokens(image=(0.0, 0.0, 0.5, 1.0))}
    with intercept(tiny_backbone.transformer, see, layers=1), apply_edit(tiny_backbone, blur(), 1, **limits):
        with intercept(tiny_backbone.transformer, lambda call: seen.append(call.output), layers=1):
            forward(tiny_backbone)
    edited, plain = wanted
    assert torch.equal(edited[:, :2], plain[:, :2]) and not torch.equal(edited[:, 2], plain[:, 2])
    changed = (seen[0] != plain).any(-1)
    assert not changed[:, :2].any()
    side = round((plain.shape[2] - 154) ** 0.5)
    left = torch.zeros(side, side, dtype=torch.bool)
    left[:, : -(-side // 2)] = True
    assert not changed[:, 2, : side * side][:, ~left.ravel()].any() and changed[:, 2].any()


def test_guidance_away_from_a_head(tiny_backbone):
    plain = forward(tiny_backbone)
    with apply_edit(tiny_backbone, ablate(), [1, 3], heads=1):
        worse = forward(tiny_backbone)
    with perturbed_guidance(tiny_backbone, ablate(), [1, 3], scale=2.5, heads=1):
        guided = forward(tiny_backbone)
    assert_close(guided, plain + 2.5 * (plain - worse))
    assert (worse - plain).abs().max() > 1e-4


def test_guidance_of_some_steps_reads_the_outputs_of_its_step(tiny_backbone):
    asked = {"steps": 3, "seed": 3, "progress": False, "guidance_scale": 4.0}
    latents = {"plain": [], "guided": []}

    def kept(name):
        return lambda *step: latents[name].append(step[-1].clone())

    with record_outputs(tiny_backbone, branches="cond") as outputs:
        tiny_backbone.generate(PROMPT, **asked, callback=kept("plain"))
    # away from what it predicts anyway: the further forward of step 2 finds the outputs of step 2
    with perturbed_guidance(tiny_backbone, patch(outputs), None, 3.0, steps=[0, 2]):
        tiny_backbone.generate(PROMPT, **asked, callback=kept("guided"))
    assert_close(latents["guided"], latents["plain"], rtol=0, atol=1e-4)
    latents["guided"].clear()
    with perturbed_guidance(tiny_backbone, ablate(), None, 3.0, steps=[1]):
        tiny_backbone.generate(PROMPT, **asked, callback=kept("guided"))
    same = [torch.equal(a, b) for a, b in zip(latents["guided"], latents["plain"], strict=True)]
    assert same == [True, False, False]


def test_the_perturbed_branch_of_pag_is_left_alone(tiny_backbone):
    parts = {name: part for name, part in tiny_backbone.pipe.components.items() if not name.startswith(("im", "fe"))}
    pipe = StableDiffusion3PAGPipeline(**parts, pag_applied_layers=["blocks.2"])
    pipe.set_progress_bar_config(disable=True)
    asked = {"num_inference_steps": 1, "height": 56, "width": 56, "output_type": "latent"}
    with record_outputs(pipe) as outputs:
        plain = pipe(PROMPT, generator=torch.Generator().manual_seed(0), **asked).images
    assert {branch for _, branch, layer in outputs.values if layer == 2} == {"uncond", "cond"}
    assert {branch for _, branch, layer in outputs.values if layer == 1} == {"uncond", "cond", "perturbed"}
    with apply_edit(pipe, patch(outputs)):
        assert torch.equal(pipe(PROMPT, generator=torch.Generator().manual_seed(0), **asked).images, plain)


def test_results_are_kept_apart_by_what_is_patched(tiny_backbone):
    def of(outputs):
        with apply_edit(tiny_backbone, patch(outputs)):
            forward(tiny_backbone)
            return model_fingerprint(tiny_backbone)

    first, again, other = (recorded(tiny_backbone, seed=seed) for seed in (3, 3, 4))
    assert of(first) == of(again) != of(other)
    assert of(first) != model_fingerprint(tiny_backbone)


def patched(backbone, outputs, **options):
    forwarded = {name: options.pop(name) for name in ("images", "timestep") if name in options}
    with apply_edit(backbone, patch(outputs, options.pop("where", None)), **options):
        forward(backbone, **forwarded)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 3}, r"layers that the outputs hold, \[1, 2\], got 3"),
        ({"heads": 2}, r"heads that the outputs hold, \[0, 1\], got 2"),
        ({"steps": 1}, r"steps that the outputs hold, \[0\], got 1"),
        ({"branches": "uncond"}, r"branches that the outputs hold, \['cond'\], got 'uncond'"),
        ({"images": 3}, "outputs of 3 images, got those of 2 for layer 1"),
        ({"where": JointTokens(text=True)}, "outputs of 154 tokens, got those of 203 for layer 1"),
        ({"timestep": 700.0}, "got timestep 700 in step 0, where the recorded one has timestep 515"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_outputs_that_do_not_fit(tiny_backbone, options, message):
    with record_outputs(tiny_backbone, [1, 2], heads=[0, 1]) as outputs:
        forward(tiny_backbone)
    with pytest.raises((InputError, RecordingError), match=message):
        patched(tiny_backbone, outputs, **options)
    assert not tiny_backbone.transformer._forward_pre_hooks


def test_outputs_of_other_models_and_runs(tiny_backbone, build_backbone):
    outputs = recorded(tiny_backbone)
    with pytest.raises(InputError, match="outputs of a model of family flux, got sd3"):
        patched(wrap_pipeline(build("flux-dev")), outputs)
    with pytest.raises(InputError, match="layers from 0 to 2, got 3"):
        patched(build_backbone(num_layers=3), outputs)
    with record_outputs(tiny_backbone) as empty:
        pass
    with pytest.raises(InputError, match="outputs of a run, got none"):
        patched(tiny_backbone, empty)
    asked = {"seed": 3, "progress": False, "guidance_scale": 1.0}
    with record_outputs(tiny_backbone, 1) as two:
        tiny_backbone.generate(PROMPT, steps=2, **asked)
    with pytest.raises(RecordingError, match="take as many steps in both"), apply_edit(tiny_backbone, patch(two)):
        tiny_backbone.generate(PROMPT, steps=3, **asked)


def test_what_cannot_be_recorded(tiny_backbone):
    with pytest.raises(RecordingError, match="expected one run inside record_outputs"), record_outputs(tiny_backbone):
        forward(tiny_backbone)
        forward(tiny_backbone)
    several = torch.tensor([515.0, 700.0])
    with pytest.raises(RecordingError, match="one timestep for all images"), record_outputs(tiny_backbone):
        forward(tiny_backbone, timestep=several)
    with pytest.raises(RecordingError, match="one timestep for all images"):
        patched(tiny_backbone, recorded(tiny_backbone), timestep=several)
    with record_outputs(tiny_backbone, [1, 2], heads=[0, 2], tokens=JointTokens(text=[2, 3])) as part:
        tiny_backbone.generate(PROMPT, steps=4, seed=3, progress=False, guidance_scale=4.0)
    asked = {"heads": [0, 2], "tokens": JointTokens(text=[2, 3])}
    with record_outputs(tiny_backbone, [1, 2], memory_budget=part.nbytes, **asked):
        tiny_backbone.generate(PROMPT, steps=4, seed=3, progress=False, guidance_scale=4.0)
    short = record_outputs(tiny_backbone, [1, 2], memory_budget=part.nbytes - 1, **asked)
    with pytest.raises(RecordingError, match=rf"4 steps x 2 branches x 2 layers.*memory_budget={part.nbytes}"), short:
        tiny_backbone.generate(PROMPT, steps=4, seed=3, progress=False, guidance_scale=4.0)
