"""What other devices and modes refuse, tried on the CPU: graph capture, fp64, deterministic operators, process-wide
flags. What waits for a device is in test_transfer.py, layouts of CUDA's operators in test_trust.py."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode

from seg4diff_tools.attention import operators
from seg4diff_tools.attention.recorder import AttentionRecorder
from seg4diff_tools.errors import RecordingError

FLAGS = ("flash", "mem_efficient", "math", "cudnn")


class NoDoubles(TorchDispatchMode):
    """Refuses tensors in fp64, as Apple's GPUs do."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(each, torch.Tensor) and each.dtype == torch.float64:
                raise TypeError(f"{func} made a tensor in fp64")
        return found


def recorded(backbone, mode=None):
    """Maps and masses of one forward, the forward itself under a mode."""
    latents = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    prompt = backbone.encode_prompt("a cat and a red car")
    with AttentionRecorder(backbone, direction=("i2t", "t2i", "masses"), heads="all") as recorder:
        if mode is None:
            backbone.predict_velocity(latents, torch.tensor(601.0), prompt)
        else:
            with mode:
                backbone.predict_velocity(latents, torch.tensor(601.0), prompt)
    return recorder.recording


@pytest.fixture
def untrusted(monkeypatch):
    """Nothing was checked before, and nothing that a test does stays."""
    monkeypatch.setattr(operators, "_TRUSTED", {})
    monkeypatch.setattr(operators, "_WARNED", set())


def test_a_forward_in_a_cuda_graph_is_refused(tiny_backbone, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RecordingError, match="got one that a CUDA graph captures: capture the graph outside"):
        recorded(tiny_backbone)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert np.isfinite(recorded(tiny_backbone)["i2t"]).all()


def test_where_pytorch_tells_no_backend_nothing_is_in_fp64(tiny_backbone, monkeypatch, untrusted):
    expected = recorded(tiny_backbone)
    monkeypatch.setattr(operators, "_chosen_backend", lambda *_: SDPBackend.MATH)
    found = recorded(tiny_backbone, NoDoubles())
    for name in ("i2t", "t2i", "masses"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
    with pytest.raises(TypeError, match="in fp64"), NoDoubles():
        torch.ones(2, dtype=torch.float32).double()


def test_recording_under_deterministic_operators_gives_the_same(tiny_backbone):
    expected = recorded(tiny_backbone)
    torch.use_deterministic_algorithms(True)
    try:
        found = recorded(tiny_backbone)
    finally:
        torch.use_deterministic_algorithms(False)
    for name in ("i2t", "t2i", "masses"):
        np.testing.assert_array_equal(found[name], expected[name])


def test_the_check_of_an_operator_turns_no_flag_of_the_process(tiny_backbone, monkeypatch, untrusted):
    def flags():
        return [getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in FLAGS]

    before, during = flags(), []
    check, operate = operators.disagreement, operators._flash_cpu
    monkeypatch.setattr(operators, "disagreement", lambda *args: during.append(flags()) or check(*args))
    watched = {SDPBackend.FLASH_ATTENTION: lambda *args: during.append(flags()) or operate(*args)}
    monkeypatch.setattr(operators, "_OPERATORS", watched)
    recorded(tiny_backbone)
    assert len(during) == tiny_backbone.layers + 1
    assert all(each == before for each in during)
