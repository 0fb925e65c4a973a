"""Attention that also returns the log-sum-exp of each query's scores, bit-identical to PyTorch's own."""

import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from seg4diff_tools.attention.exact import chunked_lse
from seg4diff_tools.attention.shapes import JointHeads, LogSumExp
from seg4diff_tools.attention.trust import disagreement
from seg4diff_tools.errors import InputError
from seg4diff_tools.families._private import sdp_choice, sdp_operator

CLOSED = -65504.0
"""What stands for minus infinity where a kernel takes finite numbers alone, as PyTorch itself gives it to cuDNN."""


def attention_with_lse(
    query: JointHeads,
    key: JointHeads,
    value: JointHeads,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[JointHeads, LogSumExp]:
    """The output of `scaled_dot_product_attention`, bit for bit, and the log-sum-exp of each query's scores.

    Runs the operator that PyTorch would choose, in the form that also returns the log-sum-exp. Its first answer for
    each shape and type is checked on the data at hand, against PyTorch's own attention and against q k^T. Where there
    is no such operator, or its answer differs, PyTorch's own attention gives the output and the log-sum-exp is computed
    beside it, a chunk of queries at a time.

    Args:
        query, key, value: [batch heads tokens dim], after norms and rotary embedding.
        mask: mask that broadcasts to [batch heads tokens tokens], added to the scores or boolean (False is closed), or
            None.
        scale: factor on the scores; None means 1 / sqrt(dim).

    Returns:
        Output, and log-sum-exp in at least fp32. Both can be differentiated, once.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query, key, value, mask = autocast_inputs(query, key, value, mask)
    with without_autocast(query.device):
        output, lse, added = observed_attention(query, key, value, mask, scale)
        return output, differentiable_lse(query, key, lse, added, scale)


def observed_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, grouped: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the output, a log-sum-exp without a gradient (autograd saves what it saves for plain attention), and the
    mask as it was added.

    Args:
        query, key, value, mask, scale: see `attention_with_lse`.
        grouped: whether key and value may have fewer heads, each for a group of the query's.
    """
    backend = _chosen_backend(query, key, value, mask, scale, grouped)
    if backend in _OPERATORS:
        answer = _operated(backend, query, key, value, mask, scale, grouped)
        if answer is not None:
            return answer
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped)
    added = added_mask(mask, query.dtype)
    keys = repeated(key.detach(), query)
    return output, chunked_lse(query.detach(), keys, None if added is None else added.detach(), scale), added


def added_mask(mask: Tensor | None, dtype: torch.dtype, closed: float = -math.inf) -> Tensor | None:
    """Return a mask to be added to the scores: False in a boolean one is `closed`."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, closed)


def repeated(key: Tensor, query: Tensor) -> Tensor:
    """Return keys or values with a head for each of the query's, as grouped queries share them."""
    times = query.shape[1] // key.shape[1]
    return key if times == 1 else key.repeat_interleave(times, dim=1)


def differentiable_lse(query: Tensor, key: Tensor, lse: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Return a log-sum-exp with its gradient, where autograd records; saves query, key and mask for it."""
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
        return _DifferentiableLSE.apply(query, key, lse, mask, scale)
    return lse


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Return a context without autocast; entering autocast's own costs as much as a small operator."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()


def autocast_inputs(*tensors: Any) -> tuple[Any, ...]:
    """What `scaled_dot_product_attention` gets under autocast, which does not reach the operators below it."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x is None or x.dtype in (torch.float64, torch.bool) else x.to(dtype) for x in tensors)


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
_BACKENDS = {int(backend.value): backend for backend in _OPERATORS}


def _chosen_backend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, grouped: bool
) -> SDPBackend:
    """The backend that `scaled_dot_product_attention` takes for these inputs."""
    known = query.device.type in ("cpu", "cuda")
    number = sdp_choice(query, key, value, mask, 0.0, False, scale=scale, enable_gqa=grouped) if known else None
    if number is None:
        _warn_once(f"PyTorch {torch.__version__} does not tell its attention backend on {query.device.type}")
        return SDPBackend.MATH
    return _BACKENDS.get(number, SDPBackend.MATH)


def _operated(
    backend: SDPBackend,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    grouped: bool,
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """The answer of a backend's operator and the mask that it was given; None where it cannot be used."""
    kind = (
        *(backend, query.dtype, query.device, query.shape, key.shape),
        None if mask is None else (mask.dtype, mask.shape),
    )
    boolean = mask is not None and mask.dtype == torch.bool
    # PyTorch's releases differ in what cuDNN gets for False
    fills = _TRUSTED.get(kind, (-math.inf, CLOSED) if boolean else (-math.inf,))
    plain, reasons = None, []
    for closed in fills:
        added = added_mask(mask, query.dtype, closed)
        try:
            output, lse = _OPERATORS[backend](query, key, value, added, scale)
            if kind not in _TRUSTED:
                with torch.no_grad():
                    if plain is None:
                        plain = F.scaled_dot_product_attention(
                            query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped
                        )
                    reason = disagreement(output, lse, plain, query, key, added, scale)
                if reason is not None:
                    reasons.append(reason)
                    continue
                _TRUSTED[kind] = (closed,)
            return output, lse.detach(), added
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, AttributeError) as error:
            reasons.append(f"it refused: {error}")
    if reasons:
        _TRUSTED[kind] = ()
        _warn_once(f"{backend.name} for {query.dtype} on {query.device} failed its check: {reasons[0]}")
    return None


_TRUSTED: dict[tuple[Any, ...], tuple[float, ...]] = {}
"""What False in a boolean mask becomes, for each kind of call that was checked; empty where the operator failed."""
_WARNED: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _WARNED:
        _WARNED.add(message)
        warnings.warn(f"{message}. The log-sum-exp is computed in chunks instead: exact, but slower.", stacklevel=2)


class _DifferentiableLSE(torch.autograd.Function):
    """Gradients of a log-sum-exp that an operator returned without any, again without the N x N matrix.

    d lse_i / d q_i = scale * sum_j P_ij k_j  is attention with the keys as values;  sum_i g_i d lse_i / d k_j = scale *
    sum_i P_ij g_i q_i  is the gradient of attention with respect to its values.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, lse: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        if mask is not None and mask.requires_grad:
            raise InputError("Maps cannot be differentiated with respect to a mask or bias; detach it.")
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
