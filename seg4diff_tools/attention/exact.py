"""Exact arithmetic on scores, a piece at a time: at least fp32, never TF32, no N x N matrix."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

# Bytes at once. Small pieces stay in a CPU's cache: larger ones are slower there, not faster.
WORKSPACE = {"cpu": 2 << 20}
WORKSPACE_ELSEWHERE = 256 << 20


def default_workspace(device: torch.device) -> int:
    """Bytes of working memory that suit a device."""
    return WORKSPACE.get(device.type, WORKSPACE_ELSEWHERE)


def working_dtype(tensor: Tensor) -> torch.dtype:
    """At least fp32: half precision would round scores before the exponential."""
    return torch.promote_types(tensor.dtype, torch.float32)


def chunks(length: int, size: int) -> list[slice]:
    """Slices that cover 0 to `length` in steps of `size` (at least 1)."""
    size = max(1, size)
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def as_slice(indices: Sequence[int]) -> slice | list[int]:
    """Return consecutive indices as a slice, because slicing a tensor copies nothing; others as a list."""
    consecutive = list(indices) == list(range(indices[0], indices[0] + len(indices)))
    return slice(indices[0], indices[0] + len(indices)) if consecutive else list(indices)


def mask_part(mask: Tensor, rows: slice | Tensor, columns: slice | Tensor) -> Tensor:
    """Rows and columns of a mask that may be broadcast along either."""
    mask = mask if mask.ndim < 2 or mask.shape[-2] == 1 else mask[..., rows, :]
    return mask if mask.shape[-1] == 1 else mask[..., columns]


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Multiply fp32 matrices in fp32, also where the user lets PyTorch round them to TF32 or bf16."""
    place = torch.backends.cuda.matmul if device.type == "cuda" else torch.backends.mkldnn.matmul
    with _PRECISION:
        inside, before = _EXACT.get(place, (0, place.fp32_precision))
        rounded = before not in ("none", "ieee")
        if rounded:
            _EXACT[place] = inside + 1, before
            place.fp32_precision = "ieee"
    try:
        yield
    finally:
        if rounded:
            with _PRECISION:
                inside, before = _EXACT.pop(place)
                if inside > 1:
                    _EXACT[place] = inside - 1, before
                else:
                    # a value that was inherited is inherited again
                    place.fp32_precision = "none"
                    if place.fp32_precision != before:
                        place.fp32_precision = before


_PRECISION = threading.Lock()
_EXACT: dict[Any, tuple[int, str]] = {}
"""Where PyTorch would round: how many threads need exact products now, and the setting before the first of them."""


@lru_cache(maxsize=256)
def index_on(indices: tuple[int, ...], device: torch.device) -> Tensor:
    """Return indices as a tensor on a device; kept, because a copy to a device waits for it."""
    # one that was made in inference mode could not be saved for a backward pass later
    with torch.inference_mode(False):
        return torch.tensor(indices, dtype=torch.long, device=device)


def probabilities(query: Tensor, key: Tensor, offset: Tensor, scale: float) -> Tensor:
    """Compute exp(scale q k^T + offset), [n query key], of a key [n dim key] in the working type.

    The offset is the mask minus the log-sum-exp, [n query key] or broadcast to it.
    """
    with exact_products(query.device):
        return torch.baddbmm(offset, query, key, alpha=scale).exp_()


def chunked_lse(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Compute the exact log-sum-exp, [batch heads tokens], materializing the scores of a few queries at a time."""
    lse = query.new_empty(query.shape[:3], dtype=working_dtype(query))
    key = key.to(lse.dtype).mT
    row_bytes = query.shape[0] * query.shape[1] * key.shape[-1] * lse.dtype.itemsize
    for rows in chunks(query.shape[2], default_workspace(query.device) // row_bytes):
        with exact_products(key.device):
            scores = (query[:, :, rows].to(lse.dtype) * scale) @ key
        if mask is not None:
            scores += mask_part(mask, rows, slice(None))
        lse[:, :, rows] = scores.logsumexp(-1)
    return lse
