"""Edits of image-to-text attention against the materialized softmax, and guidance by them."""

import numpy as np
import pytest
import torch
from tiny_models import build
from torch.testing import assert_close

from seg4diff_tools.attention.edits import apply_edit, average, blur, drop, edited_output, perturbed_guidance, swap
from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.recorder import AttentionRecorder
from seg4diff_tools.backbones.loading import wrap_pipeline
from seg4diff_tools.errors import InputError

EDITS = {
    "blur": blur(),
    "narrow blur": blur(0.7, 3),
    "drop all": drop(),
    "drop some": drop([1, 5]),
    "drop, nothing kept": drop(keep="nothing"),
    "swap": swap([1], [3, 4]),
    "average": average([2, 3, 7]),
}


def inputs(backbone, batch: int = 3):
    prompts = backbone.encode_prompt(["a cat and a dog", "a red car", "two cats near a tree"][:batch])
    generator = torch.Generator().manual_seed(7)
    latents = torch.randn(batch, *backbone.latent_shape, generator=generator)
    return latents, torch.full((batch,), 515.0), prompts


def materialized(call, edit):
    """The definition: the full softmax, its image-to-text direction times M, rows scaled as the edit says, times V."""
    query, key, value = (x.double() for x in (call.query, call.key, call.value))
    attention = (query @ key.mT * call.scale).softmax(-1)
    before = attention[:, :, call.image, call.text]
    after = before @ edit.matrix(call.text_tokens).double()
    if edit.keep == "text":
        after = after * (before.sum(-1, keepdim=True) / after.sum(-1, keepdim=True))
    edited = attention.clone()
    edited[:, :, call.image, call.text] = after
    if edit.keep == "joint":
        edited[:, :, call.image] /= edited[:, :, call.image].sum(-1, keepdim=True)
    return edited @ value


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("dual", [False, True])
def test_edit_is_exact(build_backbone, edit, dual):
    backbone = build_backbone(dual_attention_layers=(0, 1) if dual else ())
    seen = []

    def both(call):
        seen.append((edited_output(call, edit), materialized(call, edit)))

    with intercept(backbone.transformer, both):
        backbone.predict_velocity(*inputs(backbone))
    assert len(seen) == backbone.layers
    # what little an image token leaves to others is scaled up where text is dropped, and rounding with it
    tolerance = 1e-4 if edit.keep == "joint" else 1e-5
    for found, wanted in seen:
        assert_close(found.double(), wanted, rtol=0, atol=tolerance)


def test_blur_by_hand():
    matrix = blur(sigma=1.0, kernel=3).matrix(4).double()
    side = torch.exp(torch.tensor(-0.5, dtype=torch.float64))
    middle, side = 1 / (1 + 2 * side), side / (1 + 2 * side)
    row = torch.tensor([[0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    # the first token reads its neighbor twice, once reflected at the edge
    assert_close(row @ matrix, torch.stack([2 * side, middle, side, side * 0])[None])


def test_swap_and_average_by_hand():
    attention = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    assert_close(attention @ swap([0], [2]).matrix(4), torch.tensor([[0.3, 0.2, 0.1, 0.4]]))
    assert_close(attention @ swap([0], [2, 3]).matrix(4), torch.tensor([[0.7, 0.2, 0.05, 0.05]]))
    assert_close(attention @ average([1, 2]).matrix(4), torch.tensor([[0.1, 0.25, 0.25, 0.4]]))
    assert_close(attention @ drop([3]).matrix(4), torch.tensor([[0.1, 0.2, 0.3, 0.0]]))


def test_perturb_changes_only_what_follows_its_layer(tiny_backbone):
    given = inputs(tiny_backbone)
    with AttentionRecorder(tiny_backbone) as plain:
        before = tiny_backbone.predict_velocity(*given)
    with AttentionRecorder(tiny_backbone) as edited, apply_edit(tiny_backbone, drop(), layers=2):
        after = tiny_backbone.predict_velocity(*given)
    assert not torch.equal(before, after)
    same = [(plain.maps.sel(layer=i).values == edited.maps.sel(layer=i).values).all() for i in range(5)]
    assert same == [True, True, True, False, False]
    assert torch.equal(tiny_backbone.predict_velocity(*given), before)


def test_swapping_words_of_one_meaning_changes_nothing(tiny_backbone):
    latents, timestep, _ = inputs(tiny_backbone, 1)
    prompt = tiny_backbone.encode_prompt("a cat")
    identity = average([prompt.tokens[3].index])
    plain = tiny_backbone.predict_velocity(latents, timestep, prompt)
    with apply_edit(tiny_backbone, identity):
        assert_close(tiny_backbone.predict_velocity(latents, timestep, prompt), plain, rtol=0, atol=1e-5)


def test_guidance_of_one_forward(tiny_backbone):
    given = inputs(tiny_backbone)
    plain = tiny_backbone.predict_velocity(*given)
    with apply_edit(tiny_backbone, blur(), [1, 3]):
        worse = tiny_backbone.predict_velocity(*given)
    with perturbed_guidance(tiny_backbone, blur(), [1, 3], scale=2.5):
        guided = tiny_backbone.predict_velocity(*given)
    assert_close(guided, plain + 2.5 * (plain - worse))
    assert torch.equal(tiny_backbone.predict_velocity(*given), plain)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_guidance_inside_the_pipeline(tiny_backbone, guidance_scale):
    """One step of sampling: what the scheduler gets is the formula."""
    prompt, empty = tiny_backbone.encode_prompt("a cat and a dog"), tiny_backbone.encode_prompt("")
    asked = {"steps": 1, "guidance_scale": guidance_scale, "seed": 3}
    timestep = tiny_backbone.schedule(1)[0]
    start = torch.randn(1, *tiny_backbone.latent_shape, generator=torch.Generator().manual_seed(3))
    seen = []
    with perturbed_guidance(tiny_backbone, drop(), 2, scale=1.5), AttentionRecorder(tiny_backbone) as recorder:
        tiny_backbone.generate(prompt, **asked, progress=False, callback=lambda *step: seen.append(step[-1].clone()))
    good = tiny_backbone.predict_velocity(start, timestep, prompt)
    none = tiny_backbone.predict_velocity(start, timestep, empty)
    with apply_edit(tiny_backbone, drop(), 2):
        worse = tiny_backbone.predict_velocity(start, timestep, prompt)
    guided = (none + guidance_scale * (good - none) if guidance_scale > 1 else good) + 1.5 * (good - worse)
    assert_close(seen[0], start - guided, rtol=1e-4, atol=1e-5)
    assert recorder.maps.sizes["step"] == 1  # the further forward is no step of its own


def test_guidance_takes_the_images_from_their_own_axis():
    """One step of HiDream, whose Llama features have images on their second axis."""
    backbone = wrap_pipeline(build("hidream"))
    prompt, empty = backbone.encode_prompt("a cat and a dog"), backbone.encode_prompt("")
    start, seen = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(3)), []
    with perturbed_guidance(backbone, drop(), 2, scale=1.5):
        backbone.generate(prompt, steps=1, seed=3, progress=False, callback=lambda *step: seen.append(step[-1].clone()))
    timestep, weight = backbone.schedule(1)[0], backbone.guidance_scale
    good, none = (backbone.predict_velocity(start, timestep, text) for text in (prompt, empty))
    with apply_edit(backbone, drop(), 2):
        worse = backbone.predict_velocity(start, timestep, prompt)
    guided = none + weight * (good - none) + 1.5 * (good - worse)
    assert_close(seen[0], start - guided, rtol=1e-3, atol=1e-4)


def test_an_interrupted_call_leaves_no_branch_for_the_next_one():
    backbone, forwards = wrap_pipeline(build("cogview4")), []

    def interrupt(module, args):
        forwards.append(args)
        if len(forwards) == 2:
            raise KeyboardInterrupt

    def made():
        return np.asarray(backbone.generate("a cat", steps=1, seed=3, progress=False)[0])

    with perturbed_guidance(backbone, drop(), None, scale=20.0):
        before = made()
        handle = backbone.transformer.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            made()
        handle.remove()
        np.testing.assert_array_equal(made(), before)
    assert not np.array_equal(made(), before)


def test_nothing_is_left_behind(tiny_backbone):
    given = inputs(tiny_backbone)
    plain = tiny_backbone.predict_velocity(*given)
    wrong = perturbed_guidance(tiny_backbone, drop([154]), 0, scale=1.0)
    with pytest.raises(InputError, match="expected tokens from 0 to 153"), wrong:
        tiny_backbone.predict_velocity(*given)
    assert torch.equal(tiny_backbone.predict_velocity(*given), plain)
    assert not tiny_backbone.transformer._forward_hooks


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: blur(sigma=0.0), "expected sigma"),
        (lambda: blur(kernel=4), "odd number"),
        (lambda: blur(kernel=9).matrix(4), "reflect"),
        (lambda: swap([1, 2], [2]), "without a common token"),
        (lambda: drop([]).matrix(4), "each one once"),
        (lambda: average([1, 1]).matrix(4), "each one once"),
    ],
)
def test_bad_edits(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_bad_guidance(tiny_backbone):
    with pytest.raises(InputError, match="at least 0"), perturbed_guidance(tiny_backbone, blur(), 0, scale=-1.0):
        pass
    with pytest.raises(InputError, match="layers from 0 to 4, got 5"), apply_edit(tiny_backbone, blur(), 5):
        pass
