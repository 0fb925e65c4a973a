"""Attention that also returns the log-sum-exp of each query's scores, bit-identical to PyTorch's own."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from seg4diff_tools.attention.shapes import JointHeads, LogSumExp
from seg4diff_tools.errors import InputError
from seg4diff_tools.families._private import sdp_choice, sdp_operator

# Bytes at once. Small pieces stay in a CPU's cache: larger ones are slower there, not faster.
WORKSPACE = {"cpu": 2 << 20}
WORKSPACE_ELSEWHERE = 256 << 20


def attention_with_lse(
    query: JointHeads,
    key: JointHeads,
    value: JointHeads,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[JointHeads, LogSumExp]:
    """The output of `scaled_dot_product_attention`, bit for bit, and the log-sum-exp of each query's scores.

    Runs the operator that PyTorch would choose, in the form that also returns the log-sum-exp. That operator is checked
    once per type and device against a materialized softmax; where there is none, or it disagrees, PyTorch's own
    attention gives the output and the log-sum-exp is computed beside it, a chunk of queries at a time.

    Args:
        query, key, value: [batch heads tokens dim], after norms and rotary embedding.
        mask: additive mask that broadcasts to [batch heads tokens tokens], or None.
        scale: factor on the scores; None means 1 / sqrt(dim).

    Returns:
        Output, and log-sum-exp in at least fp32. Both can be differentiated, once.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query, key, value, mask = autocast_inputs(query, key, value, mask)
    with torch.autocast(query.device.type, enabled=False):
        output, lse = observed_attention(query, key, value, mask, scale)
        return output, differentiable_lse(query, key, lse, mask, scale)


def observed_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the output and a log-sum-exp without a gradient: autograd saves what it saves for plain attention."""
    result = None
    backend = _chosen_backend(query, key, value, mask, scale)
    if backend in _OPERATORS and _is_trusted(backend, query.dtype, query.device, mask is not None):
        try:
            result = _OPERATORS[backend](query, key, value, mask, scale)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError) as error:
            _warn_once(f"{backend.name} on {query.device.type} refused {tuple(query.shape)}: {error}")
    if result is None:
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        result = output, _chunked_lse(query.detach(), key.detach(), None if mask is None else mask.detach(), scale)
    return result[0], result[1].detach()


def differentiable_lse(query: Tensor, key: Tensor, lse: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Return a log-sum-exp with its gradient, where autograd records; saves query, key and mask for it."""
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
        return _DifferentiableLSE.apply(query, key, lse, mask, scale)
    return lse


def autocast_inputs(*tensors: Any) -> tuple[Any, ...]:
    """What `scaled_dot_product_attention` gets under autocast, which does not reach the operators below it."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x is None or x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def _flash_cpu(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    operator = sdp_operator("flash_attention_for_cpu")
    return operator(query, key, value, 0.0, False, attn_mask=mask, scale=scale)


def _flash_cuda(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    dim = query.shape[-1]
    # As PyTorch itself does: this kernel takes head sizes in multiples of 8.
    padded = [F.pad(x, (0, -dim % 8)) if dim % 8 else x for x in (query, key, value)]
    output, lse = sdp_operator("flash_attention")(*padded, 0.0, False, False, scale=scale)[:2]
    return output[..., :dim], lse


def _efficient_cuda(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float):
    tokens, keys = query.shape[2], key.shape[2]
    if mask is not None:
        # As PyTorch itself does: rows of the bias have to start at multiples of 16 elements.
        mask = mask.expand(*mask.shape[:-1], keys)
        mask = F.pad(mask, (0, -keys % 16))[..., :keys].expand(*query.shape[:3], keys)
    operator = sdp_operator("efficient_attention")
    output, lse = operator(query, key, value, mask, True, 0.0, False, scale=scale)[:2]
    return output, lse[..., :tokens]  # the kernel pads its log-sum-exp to a multiple of 32


def _cudnn_cuda(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float):
    operator = sdp_operator("cudnn_attention")
    output, lse = operator(query, key, value, mask, True, 0.0, False, False, scale=scale)[:2]
    return output, lse.reshape(query.shape[:3])


def _flash(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    return (_flash_cuda if query.is_cuda else _flash_cpu)(query, key, value, mask, scale)


_OPERATORS: dict[SDPBackend, Callable[..., tuple[Tensor, Tensor]]] = {
    SDPBackend.FLASH_ATTENTION: _flash,
    SDPBackend.EFFICIENT_ATTENTION: _efficient_cuda,
    SDPBackend.CUDNN_ATTENTION: _cudnn_cuda,
}


def _chosen_backend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> SDPBackend:
    """The backend that `scaled_dot_product_attention` takes for these inputs."""
    known = query.device.type in ("cpu", "cuda")
    number = sdp_choice(query, key, value, mask, 0.0, False, scale=scale) if known else None
    if number is None:
        _warn_once(f"PyTorch {torch.__version__} does not tell its attention backend on {query.device.type}")
        return SDPBackend.MATH
    return next((backend for backend in _OPERATORS if int(backend.value) == number), SDPBackend.MATH)


@functools.cache
def _is_trusted(backend: SDPBackend, dtype: torch.dtype, device: torch.device, masked: bool) -> bool:
    """Whether the operator agrees with a materialized softmax in fp64 and, bit for bit, with PyTorch's attention."""
    # A generator of its own: the user's random numbers must not depend on whether she records.
    generator = torch.Generator("cpu").manual_seed(0)
    drawn: dict[str, Any] = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
    query, key, value = torch.randn(3, 2, 3, 37, 64, **drawn).to(device, dtype)
    mask = torch.randn(37, **drawn).to(device, dtype).view(1, 1, 1, 37) if masked else None
    scores = query.double() @ key.double().mT / 8 + (0 if mask is None else mask.double())
    tolerance = 1e-4 if dtype.itemsize > 2 else 1e-2
    try:
        with torch.no_grad(), sdpa_kernel(backend):
            plain = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.125)
            output, lse = _OPERATORS[backend](query, key, value, mask, 0.125)
        agrees = torch.equal(output, plain) and torch.allclose(lse.double(), scores.logsumexp(-1), atol=tolerance)
        reason = "gives another result than a materialized softmax"
    except (RuntimeError, TypeError, AttributeError) as error:
        agrees, reason = False, str(error)
    if not agrees:
        _warn_once(f"{backend.name} for {dtype} on {device} failed its self-check: {reason}")
    return agrees


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(f"{message}. The log-sum-exp is computed in chunks instead: exact, but slower.", stacklevel=2)


def _chunked_lse(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Exact log-sum-exp, materializing the scores of a few queries at a time."""
    lse = query.new_empty(query.shape[:3], dtype=working_dtype(query))
    key = key.to(lse.dtype).mT
    row_bytes = query.shape[0] * query.shape[1] * key.shape[-1] * lse.dtype.itemsize
    for rows in chunks(query.shape[2], default_workspace(query.device) // row_bytes):
        scores = (query[:, :, rows].to(lse.dtype) * scale) @ key
        if mask is not None:
            scores += mask_part(mask, rows, slice(None))
        lse[:, :, rows] = scores.logsumexp(-1)
    return lse


class _DifferentiableLSE(torch.autograd.Function):
    """Gradients of a log-sum-exp that an operator returned without any, again without the N x N matrix.

    d lse_i / d q_i = scale * sum_j P_ij k_j  is attention with the keys as values;  sum_i g_i d lse_i / d k_j = scale *
    sum_i P_ij g_i q_i  is the gradient of attention with respect to its values.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, lse: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        if mask is not None and mask.requires_grad:
            raise InputError("Maps cannot be differentiated with respect to a mask or key_bias; detach it.")
        ctx.save_for_backward(query, key, mask)
        ctx.scale = scale
        return lse.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, mask = ctx.saved_tensors
        grad = (grad * ctx.scale).to(query.dtype).unsqueeze(-1)
        with torch.enable_grad():
            value = key.detach().requires_grad_()
            mean_key = F.scaled_dot_product_attention(
                query.detach(), key.detach(), value, attn_mask=mask, scale=ctx.scale
            )
            (grad_key,) = torch.autograd.grad(mean_key, value, grad * query)
        return grad * mean_key.detach(), grad_key, None, None, None


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


def mask_part(mask: Tensor, rows: slice | Tensor, columns: slice | Tensor) -> Tensor:
    """Rows and columns of a mask that may be broadcast along either."""
    mask = mask if mask.ndim < 2 or mask.shape[-2] == 1 else mask[..., rows, :]
    return mask if mask.shape[-1] == 1 else mask[..., columns]
