"""The interception point: exact directions, an untouched model, nothing left behind."""

import math

import pytest
import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import _get_current_function_mode_stack

from seg4diff_tools.attention.bias import AttentionBias
from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.joint import DIRECTIONS, JointAttention
from seg4diff_tools.attention.operators import attention_with_lse
from seg4diff_tools.errors import InputError, RecordingError, UnknownArchitectureError

BATCH, LAYERS, HEADS, ROWS, COLUMNS, TEXT = 3, 5, 3, 7, 5, 11
IMAGE = ROWS * COLUMNS
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
MODELS = pytest.mark.parametrize(
    ("dual", "qk_norm", "dtype"),
    [
        ((), None, torch.float32),
        ((0, 1, 2), "rms_norm", torch.float32),
        ((0, 1, 2), None, torch.bfloat16),
        ((), "rms_norm", torch.bfloat16),
    ],
)


def make(dual=(), qk_norm=None, dtype=torch.float32) -> SD3Transformer2DModel:
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=22,
        patch_size=2,
        in_channels=13,
        out_channels=13,
        num_layers=LAYERS,
        attention_head_dim=20,
        num_attention_heads=HEADS,
        joint_attention_dim=17,
        caption_projection_dim=60,
        pooled_projection_dim=19,
        pos_embed_max_size=11,
        dual_attention_layers=dual,
        qk_norm=qk_norm,
    )
    # Fresh weights attend almost evenly; larger ones test the softmax.
    for block in transformer.transformer_blocks:
        for layer in (block.attn.to_q, block.attn.to_k, block.attn.add_q_proj, block.attn.add_k_proj):
            torch.nn.init.normal_(layer.weight, std=0.25)
    return transformer.to(dtype).eval()


def inputs(dtype=torch.float32, text=TEXT) -> dict:
    generator = torch.Generator().manual_seed(1)
    random = [
        torch.randn(BATCH, *shape, generator=generator) for shape in ((13, 2 * ROWS, 2 * COLUMNS), (text, 17), (19,))
    ]
    names = ("hidden_states", "encoder_hidden_states", "pooled_projections")
    return {name: x.to(dtype) for name, x in zip(names, random, strict=False)} | {
        "timestep": torch.tensor([23.0, 501.0, 997.0])
    }


def reference_maps(transformer, arguments) -> list[torch.Tensor]:
    """The joint softmax of every layer, materialized from the attention modules' inputs and weights."""
    maps = []

    def materialize(attn, args, kwargs):
        def heads(x, project, norm):
            x = project(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            return (x if norm is None else norm(x)).float()

        image, text = kwargs["hidden_states"], kwargs["encoder_hidden_states"]
        query = torch.cat(
            [heads(image, attn.to_q, attn.norm_q), heads(text, attn.add_q_proj, attn.norm_added_q)], dim=2
        )
        key = torch.cat([heads(image, attn.to_k, attn.norm_k), heads(text, attn.add_k_proj, attn.norm_added_k)], dim=2)
        maps.append((query @ key.mT / math.sqrt(20)).softmax(dim=-1))

    handles = [
        block.attn.register_forward_pre_hook(materialize, with_kwargs=True) for block in transformer.transformer_blocks
    ]
    transformer(**arguments)
    for handle in handles:
        handle.remove()
    return maps


def parts(joint: torch.Tensor) -> dict[str, torch.Tensor]:
    image, text = slice(0, IMAGE), slice(IMAGE, None)
    sides = {"i": image, "t": text}
    return {direction: joint[..., sides[direction[0]], sides[direction[2]]] for direction in DIRECTIONS}


def state(transformer) -> list:
    """Everything on a model that an interception could leave behind."""
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in transformer.modules()]
    processors = [id(processor) for processor in transformer.attn_processors.values()]
    forwards = ["forward" in vars(module) for module in transformer.modules()]
    return [hooks, processors, forwards, len(_get_current_function_mode_stack()), transformer.training]


def call_of(query, key, value, mask=None, image_first=True, image=IMAGE) -> JointAttention:
    output, lse = attention_with_lse(query, key, value, mask)
    scale = query.shape[-1] ** -0.5
    tokens = query.shape[2]
    first, second = (image, tokens) if image_first else (tokens - image, tokens)
    places = slice(0, first), slice(first, second)
    image, text = places if image_first else places[::-1]
    return JointAttention(0, image, text, query, key, value, lse, scale, mask, output)


@MODELS
@torch.no_grad()
def test_all_blocks_and_masses_agree_with_a_materialized_softmax(dual, qk_norm, dtype):
    transformer, arguments = make(dual, qk_norm, dtype), inputs(dtype)
    found = {}

    def observe(call):
        found[call.layer] = ({name: call.weights(name) for name in DIRECTIONS}, call.head_mean("i2t"), call.masses())

    with intercept(transformer, observe):
        transformer(**arguments)
    assert list(found) == list(range(LAYERS))
    for (directions, mean, masses), joint in zip(found.values(), reference_maps(transformer, arguments), strict=True):
        assert joint.amax() > 0.2  # not just even attention
        expected = parts(joint)
        for name in DIRECTIONS:
            assert directions[name].shape == expected[name].shape
            assert (directions[name] - expected[name]).abs().max() < TOLERANCE[dtype]
        assert (mean - expected["i2t"].mean(dim=1)).abs().max() < TOLERANCE[dtype]
        sums = torch.stack([expected[name].sum(dim=-1).mean(dim=-1) for name in DIRECTIONS], dim=-1)
        assert (masses - sums).abs().max() < TOLERANCE[dtype]


@MODELS
@torch.no_grad()
def test_the_output_is_bit_identical_and_nothing_is_left_behind(dual, qk_norm, dtype):
    transformer, arguments = make(dual, qk_norm, dtype), inputs(dtype)
    before, plain = state(transformer), transformer(**arguments).sample
    seen = []
    with intercept(transformer, lambda call: seen.append(call.i2t().shape)):
        watched = transformer(**arguments).sample
    assert torch.equal(plain, watched)
    # Dual attention is no joint attention: one call for each layer.
    assert seen == [(BATCH, HEADS, IMAGE, TEXT)] * LAYERS
    assert state(transformer) == before
    assert torch.equal(plain, transformer(**arguments).sample)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@torch.no_grad()
def test_nothing_is_left_behind_after_an_exception(error):
    transformer, arguments = make(dual=(0,)), inputs()
    before = state(transformer)

    def fail(call):
        raise error("inside the attention")

    with pytest.raises(error, match="inside the attention"), intercept(transformer, fail):
        transformer(**arguments)
    assert state(transformer) == before
    with pytest.raises(error, match="beside"), intercept(transformer, lambda call: None):
        transformer(**arguments)
        raise error("beside")
    assert state(transformer) == before


@torch.no_grad()
def test_an_exception_caught_inside_the_with_leaves_no_mode_on():
    transformer, seen = make(), []

    def fail_once(call):
        seen.append(call.layer)
        if len(seen) == 1:
            raise ValueError("once")

    with intercept(transformer, fail_once):
        with pytest.raises(ValueError, match="once"):
            transformer(**inputs())
        assert not _get_current_function_mode_stack()
        transformer(**inputs())
    assert seen == [0, *range(LAYERS)]


@torch.no_grad()
def test_only_wanted_layers_are_seen_and_others_run_without_the_mode():
    transformer, seen, modes = make(), [], []
    for block in transformer.transformer_blocks:
        block.attn.to_q.register_forward_hook(lambda *_: modes.append(len(_get_current_function_mode_stack())))
    with intercept(transformer, lambda call: seen.append(call.layer), layers=[3, 1]):
        transformer(**inputs())
    assert (seen, modes) == ([1, 3], [0, 1, 0, 1, 0])


@torch.no_grad()
def test_stop_after_ends_the_forward_inside_the_layer():
    transformer, seen, ran, after = make(), [], [], []
    for layer, block in enumerate(transformer.transformer_blocks):
        block.attn.register_forward_pre_hook(lambda *_, layer=layer: ran.append(layer))
    before = state(transformer)
    with intercept(transformer, lambda call: seen.append(call.layer), stop_after=2):
        transformer(**inputs())
        after.append("the rest of the body")
    assert (seen, ran, after) == ([0, 1, 2], [0, 1, 2], [])
    assert state(transformer) == before


@torch.no_grad()
def test_an_inner_stop_leaves_an_outer_interception_running():
    transformer, outer = make(), []
    with intercept(transformer, lambda call: outer.append(call.layer)):
        with intercept(transformer, stop_after=1):
            transformer(**inputs())
        transformer(**inputs())
    assert outer == [0, 1, *range(LAYERS)]


@torch.no_grad()
def test_an_outer_stop_also_leaves_an_inner_interception():
    transformer, after = make(), []
    before = state(transformer)
    with intercept(transformer, stop_after=1):
        with intercept(transformer, lambda call: None):
            transformer(**inputs())
        after.append("the rest of the outer body")
    assert not after
    assert state(transformer) == before


@torch.no_grad()
def test_an_editor_replaces_the_output():
    transformer, arguments = make(), inputs()
    plain = transformer(**arguments).sample

    def double(call):
        return 2 * call.output if call.layer == 3 else None

    with intercept(transformer, double):
        edited = transformer(**arguments).sample
    with intercept(transformer, lambda call: call.output.clone()):
        same = transformer(**arguments).sample
    assert not torch.allclose(plain, edited, atol=1e-3)
    assert torch.equal(plain, same)


def test_key_bias_makes_one_key_stand_for_many_with_gradients():
    transformer, arguments = make(qk_norm="rms_norm"), inputs()
    seven = arguments["encoder_hidden_states"].clone()
    seven[:, -7:] = 0
    one = {**arguments, "encoder_hidden_states": seven[:, :-6]}
    many = {**arguments, "encoder_hidden_states": seven}
    bias = torch.zeros(IMAGE + TEXT - 6)
    bias[-1] = math.log(7)

    def gradients(arguments):
        transformer.zero_grad()
        output = transformer(**arguments).sample
        output.square().mean().backward()
        return output.detach(), [p.grad.clone() for p in transformer.parameters() if p.grad is not None]

    expected, expected_gradients = gradients(many)
    with intercept(transformer, bias=AttentionBias(bias)):
        found, found_gradients = gradients(one)
    assert torch.allclose(found, expected, atol=1e-5)
    for x, y in zip(found_gradients, expected_gradients, strict=True):
        assert torch.allclose(x, y, atol=1e-5, rtol=1e-3)
    assert not torch.allclose(gradients(one)[0], expected, atol=1e-3)
    transformer.enable_gradient_checkpointing()
    transformer.train()
    with intercept(transformer, bias=AttentionBias(bias)):
        checkpointed = gradients(one)[1]
    for x, y in zip(checkpointed, found_gradients, strict=True):
        assert torch.allclose(x, y, atol=1e-6)


@pytest.mark.parametrize("bias_first", [True, False])
@torch.no_grad()
def test_observers_see_the_bias_of_another_interception(bias_first):
    transformer, maps = make(), {}
    bias = torch.linspace(-3, 2, IMAGE + TEXT)

    def observe(call):
        expected = (call.query @ call.key.mT * call.scale + bias).softmax(dim=-1)
        maps[call.layer] = call.i2t() - expected[:, :, :IMAGE, IMAGE:]

    first, second = {"bias": AttentionBias(bias)}, {"on_attention": observe}
    first, second = (first, second) if bias_first else (second, first)
    with intercept(transformer, **first), intercept(transformer, **second):
        transformer(**inputs())
    assert len(maps) == LAYERS
    assert max(x.abs().max() for x in maps.values()) < 1e-5


def test_maps_have_the_gradients_of_a_materialized_softmax():
    torch.manual_seed(2)
    query, key, value = (torch.randn(2, 3, 13, 5, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.randn(13, dtype=torch.float64)
    weight = torch.randn(2, 7, 6, dtype=torch.float64)
    call = call_of(query, key, value, mask.view(1, 1, 1, 13), image=7)
    for workspace in (None, 200):
        found = torch.autograd.grad(
            (call.head_mean("i2t", workspace=workspace) * weight).sum(), (query, key), retain_graph=True
        )
        joint = (query @ key.mT * 5**-0.5 + mask).softmax(dim=-1)
        expected = torch.autograd.grad((joint[:, :, :7, 7:].mean(dim=1) * weight).sum(), (query, key))
        for x, y in zip(found, expected, strict=True):
            assert torch.allclose(x, y, atol=1e-6)
    both = torch.autograd.grad(call.output.sum() + call.t2i().sum(), (query, key, value))
    joint = (query @ key.mT * 5**-0.5 + mask).softmax(dim=-1)
    expected = torch.autograd.grad((joint @ value).sum() + joint[:, :, 7:, :7].sum(), (query, key, value))
    for x, y in zip(both, expected, strict=True):
        assert torch.allclose(x, y, atol=1e-6)


@pytest.mark.parametrize("image_first", [True, False])
def test_blocks_can_be_chosen_reduced_and_cut_into_pieces(image_first):
    torch.manual_seed(3)
    query, key, value = torch.randn(3, 2, HEADS, IMAGE + TEXT, 20)
    call = call_of(query, key, value, torch.randn(2, 1, IMAGE + TEXT, IMAGE + TEXT), image_first=image_first)
    joint = (query @ key.mT * 20**-0.5 + call.mask).softmax(dim=-1)
    if not image_first:
        joint = joint.roll((-TEXT, -TEXT), dims=(-2, -1))
    expected = parts(joint)
    spans = torch.tensor([[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]])
    for workspace in (None, 1, 3000):
        chosen = call.weights("i2t", heads=[2, 0], text=[4, 1, 9], workspace=workspace)
        assert torch.allclose(chosen, expected["i2t"][:, [2, 0]][..., [4, 1, 9]], atol=1e-6)
        chosen = call.weights("t2i", heads=[1, 2], text=[4, 5, 6], workspace=workspace)
        assert torch.allclose(chosen, expected["t2i"][:, 1:, 4:7], atol=1e-6)
        for name in DIRECTIONS:
            assert torch.allclose(call.head_mean(name, workspace=workspace), expected[name].mean(dim=1), atol=1e-6)
        reduced = call.head_mean("i2t", text=[1, 4, 9], spans=spans, workspace=workspace)
        assert torch.allclose(reduced, expected["i2t"][..., [1, 4, 9]].mean(dim=1) @ spans, atol=1e-6)
        reduced = call.weights("t2i", text=[1, 4, 9], spans=spans, workspace=workspace)
        assert torch.allclose(reduced, spans.mT @ expected["t2i"][:, :, [1, 4, 9]], atol=1e-6)


MASKS = {
    "none": None,
    "keys": torch.randn(1, 1, 1, 37, generator=torch.Generator().manual_seed(5)),
    "full": torch.randn(2, 3, 37, 37, generator=torch.Generator().manual_seed(6)),
    "plane": torch.randn(37, 37, generator=torch.Generator().manual_seed(7)),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_attention_with_lse_is_pytorchs_own_attention(mask, backend, dtype):
    torch.manual_seed(4)
    query, key, value = torch.randn(3, 2, 3, 37, 11).to(dtype)
    mask = None if mask is None else mask.to(dtype)
    with sdpa_kernel(backend):
        plain = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.7)
        output, lse = attention_with_lse(query, key, value, mask, scale=0.7)
    expected = (query.double() @ key.double().mT * 0.7 + (0 if mask is None else mask.double())).logsumexp(dim=-1)
    assert torch.equal(output, plain)
    assert (lse - expected).abs().max() < (1e-3 if dtype.itemsize == 2 else 1e-5)


def test_autocast_changes_neither_the_output_nor_the_precision_of_maps():
    torch.manual_seed(8)
    query, key, value = torch.randn(3, 2, HEADS, IMAGE + TEXT, 20)
    mask = torch.randn(1, 1, 1, IMAGE + TEXT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        output, _ = attention_with_lse(query, key, value, mask)
    assert output.dtype == torch.bfloat16
    assert torch.equal(plain, output)

    transformer, arguments, found = make(qk_norm="rms_norm"), inputs(), []

    def observe(call):
        joint = (call.query.float() @ call.key.float().mT * call.scale).softmax(dim=-1)
        found.append((call.query.dtype, (call.i2t() - joint[:, :, :IMAGE, IMAGE:]).abs().max().item()))

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        plain = transformer(**arguments).sample
        with intercept(transformer, observe):
            watched = transformer(**arguments).sample
    assert torch.equal(plain, watched)
    assert all(dtype == torch.bfloat16 and error < 2e-3 for dtype, error in found)
    assert len(found) == LAYERS


def test_wrong_arguments_are_refused():
    transformer = make()
    with pytest.raises(InputError, match="layers from 0 to 4, got 5"), intercept(transformer, layers=[5]):
        pass
    with pytest.raises(InputError, match="stop_after from 0 to 4, got -1"), intercept(transformer, stop_after=-1):
        pass
    with pytest.raises(UnknownArchitectureError, match="Linear"), intercept(torch.nn.Linear(2, 3)):
        pass
    with (
        pytest.raises(InputError, match="weight for each of 46 keys, got 5"),
        intercept(transformer, bias=AttentionBias(torch.zeros(5))),
    ):
        transformer(**inputs())
    call = call_of(*torch.randn(3, 1, HEADS, IMAGE + TEXT, 20))
    with pytest.raises(InputError, match="text from 0 to 10, got 11"):
        call.i2t(text=[11])
    with pytest.raises(InputError, match="heads from 0 to 2, got 3"):
        call.t2i(heads=[3])
    with pytest.raises(InputError, match="got them with t2t"):
        call.weights("t2t", text=[1])


class OwnSoftmax:
    """An attention processor that does not use scaled_dot_product_attention."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
        return hidden_states, encoder_hidden_states


@torch.no_grad()
def test_attention_that_passes_elsewhere_is_an_error_not_an_empty_recording():
    transformer = make()
    transformer.set_attn_processor(OwnSoftmax())
    with (
        pytest.raises(RecordingError, match="layer 0.*default attention processor"),
        intercept(transformer, lambda call: None),
    ):
        transformer(**inputs())
