"""What only a CUDA device can show: its attention operators, and recording with offloaded parts. Run with -m gpu."""

import copy

import numpy as np
import pytest
import torch
from tiny_models import SIDE, build
from torch.nn.attention import sdpa_kernel

from seg4diff_tools.attention import operators
from seg4diff_tools.attention.operators import attention_with_lse
from seg4diff_tools.attention.recorder import AttentionRecorder
from seg4diff_tools.backbones.loading import wrap_pipeline
from seg4diff_tools.segmentation.options import OpenVocabulary
from seg4diff_tools.segmentation.segment import segment

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: its attention operators cannot run"),
]
IMAGE = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
TOLERANCE = {torch.float16: 3e-3, torch.bfloat16: 2e-2, torch.float32: 1e-4}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dim", [40, 64, 128])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("backend", operators._OPERATORS)
def test_operators_give_pytorchs_output_and_the_exact_log_sum_exp(backend, dtype, dim, masked):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, 101, dim, device="cuda", dtype=dtype)
    mask = torch.randn(2, 1, 1, 101, device="cuda", dtype=dtype) if masked else None
    scale = dim**-0.5
    with sdpa_kernel(backend):
        try:
            plain = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        except RuntimeError:
            pytest.skip(f"PyTorch itself refuses {backend.name} for {dtype}, {dim} channels, masked: {masked}")
        output, lse = operators._OPERATORS[backend](query, key, value, mask, scale)
    assert torch.equal(output, plain)
    scores = query.double() @ key.double().mT * scale + (0 if mask is None else mask.double())
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("tokens", "dim"), [(37, 64), (333, 64), (4250, 64), (4608, 128)])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("backend", operators._OPERATORS)
def test_the_operators_are_trusted_at_real_lengths(backend, dtype, tokens, dim, masked, monkeypatch):
    monkeypatch.setattr(operators, "_TRUSTED", {})
    query, key, value = torch.randn(3, 2, 3, tokens, dim, device="cuda", dtype=dtype)
    mask = torch.ones(2, 1, 1, tokens, device="cuda", dtype=torch.bool) if masked else None
    if mask is not None:
        mask[0, ..., -5:] = mask[1, ..., -3:] = False
    with sdpa_kernel(backend):
        try:
            plain = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        except RuntimeError:
            pytest.skip(f"PyTorch itself refuses {backend.name} for {dtype}, {dim} channels, masked: {masked}")
        output, _ = attention_with_lse(query, key, value, mask)
    assert torch.equal(output, plain)
    assert [len(fills) for fills in operators._TRUSTED.values()] == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["sd3", "flux-dev", "hunyuan-image"])
def test_the_output_is_bit_identical_while_it_is_recorded(name, dtype):
    backbone = wrap_pipeline(build(name).to("cuda", dtype))
    given = backbone.add_noise(backbone.encode_image(IMAGE), 8)
    plain = backbone.predict_velocity(*given, "a cat")
    with AttentionRecorder(backbone, direction=("i2t", "masses"), heads="all") as recorder:
        watched = backbone.predict_velocity(*given, "a cat")
    assert torch.equal(plain, watched)
    assert np.isfinite(recorder.recording["i2t"]).all()


@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
@pytest.mark.parametrize("name", ["sd3", "flux-dev"])
def test_recording_with_offloaded_parts(name, offload):
    whole = wrap_pipeline(build(name).to("cuda"))
    pipe = build(name)
    getattr(pipe, offload)()
    parted = wrap_pipeline(pipe)
    maps = []
    for backbone in (whole, parted):
        with AttentionRecorder(backbone) as recorder:
            backbone.generate("a cat", steps=2, progress=False)
        maps.append(recorder.maps)
    np.testing.assert_allclose(*maps, atol=1e-5)


def test_recording_under_autocast_leaves_the_output_alone():
    backbone = wrap_pipeline(build("sd3").to("cuda"))
    given = backbone.add_noise(backbone.encode_image(IMAGE), 8)
    with torch.autocast("cuda", torch.bfloat16):
        plain = backbone.predict_velocity(*given, "a cat")
        with AttentionRecorder(backbone) as recorder:
            watched = backbone.predict_velocity(*given, "a cat")
    assert torch.equal(plain, watched)
    assert recorder.maps.dtype == np.float32


@pytest.mark.parametrize("name", ["sd3", "flux-dev"])
def test_segmentation_is_that_of_the_cpu(name, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    pipe = build(name)
    found = [
        segment(
            wrap_pipeline(copy.deepcopy(pipe).to(device)), IMAGE, ["cat", "red car"], OpenVocabulary(layers=1)
        ).class_maps
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(*found, atol=1e-4)
