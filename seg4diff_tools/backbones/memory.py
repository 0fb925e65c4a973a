"""The memory that a model needs beside its weights, estimated before it is spent."""

import os
from typing import Any

import torch

from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.errors import InputError, readable
from seg4diff_tools.indices import as_int

FORWARD = 20
"""Values for each token and channel that a forward without gradients takes at most, and
`tests/benchmarks/bench_memory.py` measures."""
ENCODE = 5.5
"""Values for each pixel and channel of its first level that a VAE takes at most to encode."""
SHARE = 0.8
"""Part of the free memory that is planned for by default."""


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a GPU, or half of the machine's memory; None where neither is known."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if hasattr(os, "sysconf") else None


def checked_budget(memory_budget: Any, device: torch.device) -> int:
    """Return the bytes that may be used beside the weights; for None, `SHARE` of the device's free memory.

    Raises:
        InputError: not a whole number from 1.
    """
    if memory_budget is not None:
        return as_int(memory_budget, "memory_budget", 1)
    free = free_memory(device)
    return 1 << 50 if free is None else int(SHARE * free)


def token_bytes(backbone: Backbone, tokens: int) -> int:
    """Return the bytes of one value for each channel of this many tokens of the joint sequence."""
    modules = backbone.transformer.named_modules()
    # the shape of a weight is no width where it is quantized
    queries = (module.out_features for name, module in modules if name.endswith(".to_q"))
    return tokens * max(queries, default=1) * backbone.dtype.itemsize


def encode_bytes(backbone: Backbone, pixels: int) -> int:
    """Estimate the bytes that encoding an image of this many pixels takes."""
    config = backbone.pipe.vae.config
    channels = config.get("block_out_channels") or (config.get("base_dim", 128),)
    return int(ENCODE * pixels * channels[0] * backbone.pipe.vae.dtype.itemsize)


def check_need(need: int, budget: int, what: str, ways: str) -> None:
    """Raise an InputError if `what` needs more bytes than the budget; it names the ways to need less."""
    if need > budget:
        raise InputError(
            f"expected work that fits into memory_budget={budget} ({readable(budget)}), got {what}, about "
            f"{readable(need)}: pass {ways}, or memory_budget={need} or more"
        )
