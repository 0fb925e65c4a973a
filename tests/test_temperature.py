"""A temperature on image-text scores against a materialized softmax, in every family, and by timestep."""

from contextlib import ExitStack

import pytest
import torch
from test_attention import inputs as sd3_inputs
from test_attention import make
from tiny_models import BUILDERS, build
from torch.testing import assert_close

from seg4diff_tools.attention import (
    AttentionBias,
    AttentionRecorder,
    JointTokens,
    ablate,
    apply_edit,
    intercept,
    record_outputs,
    temperature,
)
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.attention.temperature import factors_at, tempered
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.loading import wrap_pipeline
from seg4diff_tools.caching import model_fingerprint
from seg4diff_tools.errors import RecordingError

PROMPT = "a red cars near the tree"
FACTOR = 1.7


@pytest.fixture(scope="module", params=BUILDERS)
def backbone(request) -> Backbone:
    return wrap_pipeline(build(request.param), request.param)


def latents(backbone: Backbone, images: int = 2) -> torch.Tensor:
    return torch.randn(images, *backbone.latent_shape, generator=torch.Generator().manual_seed(3))


def materialized(call: JointAttention, factors: list[float], closed: int | None = None) -> torch.Tensor:
    """The definition: the whole map, image queries' scores with text keys times a factor, before any bias."""
    scores = call.query.double() @ call.key.double().mT * call.scale
    for row, factor in zip(scores, factors, strict=True):
        row[:, call.image, call.text] *= factor
    if closed is not None:
        scores[:, :, call.image, call.text.start + closed] = -torch.inf
    return (scores if call.mask is None else scores + call.mask).softmax(-1)


def test_output_is_that_of_the_whole_softmax_in_every_family(backbone):
    seen = []

    def see(call):
        whole = materialized(call, [FACTOR] * len(call.query))
        found = tempered(call, torch.full((1,), FACTOR))
        assert_close(found.output.double(), whole @ call.value.double(), rtol=1e-4, atol=1e-4)
        assert_close(found.i2t().double(), whole[:, :, call.image, call.text], rtol=0, atol=1e-5)
        assert_close(found.i2i().double(), whole[:, :, call.image, call.image], rtol=0, atol=1e-5)
        seen.append(call.layer)
        return found.output

    noisy = latents(backbone)
    plain = backbone.predict_velocity(noisy, 980.0, PROMPT)
    with intercept(backbone.transformer, see):
        expected = backbone.predict_velocity(noisy, 980.0, PROMPT)
    assert seen == list(range(backbone.layers))
    with temperature(backbone, FACTOR):
        assert torch.equal(backbone.predict_velocity(noisy, 980.0, PROMPT), expected)
        assert torch.equal(backbone.predict_velocity(noisy, 900.0, PROMPT), without(backbone, noisy, 900.0))
    assert not torch.equal(expected, plain)
    assert torch.equal(backbone.predict_velocity(noisy, 980.0, PROMPT), plain)


def without(backbone: Backbone, noisy: torch.Tensor, time: float) -> torch.Tensor:
    with intercept(backbone.transformer, lambda call: None):
        return backbone.predict_velocity(noisy, time, PROMPT)


def test_a_bias_by_groups_is_added_after_the_factor(tiny_backbone):
    rule = AttentionBias(-torch.inf, JointTokens(image=True), JointTokens(text=[2]))
    checked = []

    def see(call):
        whole = materialized(call, [FACTOR] * len(call.query), closed=2)
        found = tempered(call, torch.full((1,), FACTOR))
        image = call.image
        wanted = (whole @ call.value.double())[:, :, image]
        assert_close(found.output[:, :, image].double(), wanted, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.output[:, :, call.text], call.output[:, :, call.text])
        assert_close(found.i2t().double(), whole[:, :, image, call.text], rtol=0, atol=1e-6)
        checked.append(call.layer)

    with intercept(tiny_backbone.transformer, see, bias=rule):
        tiny_backbone.predict_velocity(latents(tiny_backbone), 500.0, PROMPT)
    assert len(checked) == tiny_backbone.layers


def test_each_image_has_the_factor_of_its_own_timestep(tiny_backbone):
    noisy, times = latents(tiny_backbone), torch.tensor([990.0, 400.0])
    with temperature(tiny_backbone, FACTOR, above=950.0):
        both = tiny_backbone.predict_velocity(noisy, times, PROMPT)
        first = tiny_backbone.predict_velocity(noisy[:1], times[:1], PROMPT)
    second = tiny_backbone.predict_velocity(noisy[1:], times[1:], PROMPT)
    assert_close(both, torch.cat([first, second]), rtol=0, atol=1e-5)
    assert factors_at(times, FACTOR, 950.0).tolist() == pytest.approx([FACTOR, 1.0])
    # the threshold itself has the factor
    assert factors_at(torch.tensor([970.0, 969.0]), 2.0, 970.0).tolist() == [2.0, 1.0]


def test_only_the_wanted_layers_and_noisy_steps_change(tiny_backbone):
    asked = {"steps": 4, "seed": 1, "progress": False}

    def maps(factor: float | None, **options):
        with AttentionRecorder(tiny_backbone, layers=[0, 2], tokens=[1, 2]) as seen:
            if factor is None:
                tiny_backbone.generate(PROMPT, **asked)
            else:
                with temperature(tiny_backbone, factor, **options):
                    tiny_backbone.generate(PROMPT, **asked)
        return seen.maps

    plain, warm = maps(None), maps(FACTOR, layers=1, above=999.0)
    # a recorder sees the attention before the change: the first layers of the first step are as they were
    assert (warm.sel(layer=0).isel(step=0) == plain.sel(layer=0).isel(step=0)).all()
    assert (warm.sel(layer=2).isel(step=0) != plain.sel(layer=2).isel(step=0)).any()
    assert maps(1.0).equals(plain)
    assert maps(FACTOR, layers=4, above=1000.0).sel(layer=[0, 2]).isel(step=0).equals(plain.isel(step=0))


def test_gradients_are_those_of_a_materialized_softmax():
    transformer, arguments = make(qk_norm="rms_norm"), sd3_inputs()
    factors = torch.tensor([FACTOR, 1.0, FACTOR])

    def gradients(exact: bool):
        transformer.zero_grad()
        maps = []

        def see(call):
            if not exact:
                found = tempered(call, factors)
                maps.append(found.i2t())
                return found.output
            scores = call.query @ call.key.mT * call.scale
            factor = torch.ones_like(scores)
            factor[::2, :, call.image, call.text] = FACTOR
            whole = (scores * factor).softmax(-1)
            maps.append(whole[:, :, call.image, call.text])
            return whole @ call.value

        with intercept(transformer, see):
            output = transformer(**arguments).sample
        (output.square().mean() + maps[-1].square().sum()).backward()
        return output.detach(), [p.grad.clone() for p in transformer.parameters() if p.grad is not None]

    (found, own), (expected, wanted) = gradients(exact=False), gradients(exact=True)
    assert_close(found, expected, rtol=0, atol=1e-5)
    assert len(own) == len(wanted)
    for one, other in zip(own, wanted, strict=True):
        assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_other_numbers_of_timesteps_are_refused(tiny_backbone):
    def see(call):
        tempered(call, torch.tensor([1.0, 2.0, 1.0]))

    with (
        pytest.raises(RecordingError, match="a timestep for each of 2 rows, got 3"),
        intercept(tiny_backbone.transformer, see),
    ):
        tiny_backbone.predict_velocity(latents(tiny_backbone), 500.0, PROMPT)


def test_what_ran_inside_is_no_part_of_the_models_state(tiny_backbone):
    kept = {}
    with temperature(tiny_backbone, above=0.0):
        for name in ("before", "after"):
            kept[name] = model_fingerprint(tiny_backbone)
            tiny_backbone.predict_velocity(latents(tiny_backbone), 515.0, PROMPT)
    with temperature(tiny_backbone, above=500.0):
        kept["other"] = model_fingerprint(tiny_backbone)
    assert kept["before"] == kept["after"] != kept["other"]


def test_an_edit_of_heads_after_it_and_before_it(tiny_backbone):
    """Entered after it, heads are taken from its output; entered before it, image tokens have its own."""

    def outputs(*edits):
        with ExitStack() as stack:
            for edit in edits:
                stack.enter_context(edit())
            with record_outputs(tiny_backbone, 2, tokens=JointTokens(image=True)) as found:
                tiny_backbone.predict_velocity(latents(tiny_backbone), 515.0, PROMPT)
        return next(iter(found.values.values()))

    def warm():
        return temperature(tiny_backbone, above=0.0, layers=2)

    def without():
        return apply_edit(tiny_backbone, ablate(), 2, heads=1)

    alone = outputs(warm)
    after = outputs(warm, without)
    assert torch.equal(after[:, [0, 2]], alone[:, [0, 2]])
    assert not after[:, 1].any()
    assert torch.equal(outputs(without, warm), alone)
