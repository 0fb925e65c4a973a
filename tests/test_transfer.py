"""Recorded maps stay on the device during a forward, leave it by one copy, and no layer waits."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from tiny_models import build
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from seg4diff_tools.attention.recorder import AttentionRecorder
from seg4diff_tools.attention.transfer import Transfer
from seg4diff_tools.backbones.loading import wrap_pipeline
from seg4diff_tools.errors import InputError

WORDS = "a cat and a red car"
WAITING = {
    "cpu",
    "numpy",
    "item",
    "tolist",
    "nonzero",
    "equal",
    "allclose",
    "tensor",
    "as_tensor",
    "from_numpy",
    "pin_memory",
}
WAITING_OPERATORS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select")


class Functions(TorchFunctionMode):
    """Names of functions that would wait for a CUDA device, or copy from main memory to it, which waits too."""

    def __init__(self, seen: list[str]):
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        values = [*args[1:], *kwargs.values()]
        if name in WAITING or (name == "to" and any(isinstance(value, (torch.device, str)) for value in values)):
            self.seen.append(name)
        if name in ("__getitem__", "__setitem__"):
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            # a list of indices is copied to the device; a boolean mask is counted there
            if any(isinstance(part, (list, np.ndarray)) for part in parts) or any(
                isinstance(part, Tensor) and part.dtype == torch.bool for part in parts
            ):
                self.seen.append("indexing")
        return func(*args, **kwargs)


class Operators(TorchDispatchMode):
    """The same below the functions: what asks a device for a number."""

    def __init__(self, seen: list[str]):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in func.name() for name in WAITING_OPERATORS):
            self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def waits(backbone, run) -> list[str]:
    """What a second forward waits for between the start of its first block and the end of its last one."""
    seen: list[str] = []
    blocks = [block for name, _ in backbone.family.block_lists for block in getattr(backbone.transformer, name)]
    run()
    with ExitStack() as inside:

        def start(*_):
            for mode in (Functions(seen), Operators(seen)):
                inside.enter_context(mode)

        first = blocks[0].register_forward_pre_hook(start)
        last = blocks[-1].register_forward_hook(lambda *_: inside.close())
        run()
    first.remove()
    last.remove()
    return seen


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tokens": "words"},
        {"tokens": {"cat": "cat", "red car": "red car"}, "direction": ("i2t", "t2i", "masses")},
        {"tokens": [6, 2, 4], "heads": [0, 2]},
        {"heads": "all", "direction": ("t2i", "masses")},
    ],
    ids=["all", "words", "spans", "indices", "heads"],
)
@pytest.mark.parametrize("name", ["sd3", "flux-dev", "auraflow", "hunyuan-image"])
def test_no_layer_waits_for_the_device(name, options):
    backbone = wrap_pipeline(build(name))
    prompt = backbone.encode_prompt(WORDS)
    side = backbone.latent_shape[1]
    latents = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    assert side > 2
    needed = {"prompt": prompt} if options.get("tokens") == "words" or isinstance(options.get("tokens"), dict) else {}

    def run():
        backbone.predict_velocity(latents, torch.tensor(601.0), prompt)

    before = waits(backbone, run)
    with AttentionRecorder(backbone, **options, **needed) as recorder:
        found = waits(backbone, run)
    assert sorted(found) == sorted(before)
    assert all(np.isfinite(recorder.recording[name]).all() for name in recorder.recording.arrays)


def test_the_counter_sees_what_waits(tiny_backbone):
    prompt = tiny_backbone.encode_prompt(WORDS)
    latents = torch.randn(1, *tiny_backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    ways = {
        "item": lambda output: output.sum().item(),
        "cpu": lambda output: output.cpu(),
        "indexing": lambda output: output[..., [0, 2]],
        "to": lambda output: output.to(torch.device("cpu")),
        "tensor": lambda output: output + torch.tensor(1.0),
    }
    for name, way in ways.items():
        hook = tiny_backbone.transformer.transformer_blocks[1].register_forward_hook(
            lambda module, args, output, way=way: (way(output[1]), None)[1]
        )
        seen = waits(tiny_backbone, lambda: tiny_backbone.predict_velocity(latents, torch.tensor(601.0), prompt))
        hook.remove()
        assert name in seen


def test_maps_leave_the_device_once_a_forward(tiny_backbone, monkeypatch):
    sent = []
    send = Transfer.send
    monkeypatch.setattr(Transfer, "send", lambda self, tensors: sent.append(len(tensors)) or send(self, tensors))
    prompt = tiny_backbone.encode_prompt(WORDS)
    latents = torch.randn(2, *tiny_backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    with AttentionRecorder(tiny_backbone, direction=("i2t", "masses")) as recorder:
        for step in range(3):
            tiny_backbone.predict_velocity(latents, torch.tensor(601.0 - step), prompt)
            assert [count for count in sent if count] == [2 * tiny_backbone.layers] * (step + 1)
    assert recorder.maps.sizes["step"] == 3


def test_maps_can_stay_on_the_device_until_they_are_read(tiny_backbone):
    prompt = tiny_backbone.encode_prompt(WORDS)
    latents = torch.randn(2, *tiny_backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    with AttentionRecorder(tiny_backbone, layers=[1, 3], on_device=True) as recorder:
        for step in range(2):
            tiny_backbone.predict_velocity(latents, torch.tensor(601.0 - step), prompt)
            assert len(recorder.tensors) == 2 * (step + 1)
    kept = recorder.tensors
    assert list(kept) == [("i2t", step, "cond", layer) for step in range(2) for layer in (1, 3)]
    maps = recorder.maps
    for (_, step, branch, layer), piece in kept.items():
        np.testing.assert_array_equal(maps.sel(step=step, branch=branch, layer=layer), piece)
    assert recorder.tensors == {}


def test_on_device_is_true_or_false(tiny_backbone, unchecked):
    with pytest.raises(InputError, match="on_device, True or False, got 1"):
        AttentionRecorder(tiny_backbone, on_device=1)


def test_what_was_sent_is_received_as_it_was():
    tensors = [torch.arange(6, dtype=torch.float32).view(2, 3), torch.ones(4, dtype=torch.float32)]
    transfer = Transfer()
    assert transfer.receive() == []
    transfer.send(tensors)
    for found, expected in zip(transfer.receive(), tensors, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert transfer.receive() == []
