"""Batched Muon: matrices of one shape are orthogonalized as a stack."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from seg4diff_tools.families._private import foreach

_COEFFICIENTS, _STEPS, _EPS = (3.4445, -4.7750, 2.0315), 5, 1e-7


class BatchedMuon(Optimizer):
    """`torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, equal to it up to rounding and several times as fast.

    Args:
        params: matrices, or groups of them. A group's `chunks` (1 by default) is the number of matrices of equal height
            into which each weight is split, such as the six of a block's modulation.
        lr: learning rate, as of AdamW.
        weight_decay: decoupled.
        momentum: of the running mean of gradients, with Nesterov's step.
        dtype: of the iteration; bf16 as in `torch.optim.Muon`, or fp32 where the hardware is slow at bf16.

    Its state is that of `torch.optim.Muon`: checkpoints are interchangeable.

    Source: https://kellerjordan.github.io/posts/muon/; scale: "Muon is Scalable for LLM Training" (arXiv 2502.16982);
    chunks: CMuon (arXiv 2608.02502).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.dtype = dtype
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "chunks": 1})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all matrices with a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            for weight in weights:
                if "momentum_buffer" not in self.state[weight]:
                    self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
            gradients = [weight.grad for weight in weights]
            means = [self.state[weight]["momentum_buffer"] for weight in weights]
            foreach("lerp_")(means, gradients, 1 - group["momentum"])
            ahead = foreach("lerp")(gradients, means, group["momentum"])
            foreach("mul_")(weights, 1 - group["lr"] * group["weight_decay"])
            self._add(weights, ahead, group["lr"], group["chunks"])

    def _add(self, weights: list[Tensor], updates: Iterable[Tensor], rate: float, chunks: int) -> None:
        stacks: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for weight, update in zip(weights, updates, strict=True):
            for target, part in zip(weight.chunk(chunks), update.chunk(chunks), strict=True):
                if part.shape[0] > part.shape[1]:
                    target, part = target.T, part.T
                stacks.setdefault((part.shape[0], part.shape[1]), []).append((target, part))
        for (_, columns), pairs in stacks.items():
            found = orthogonalize(torch.stack([part for _, part in pairs]).to(self.dtype))
            targets = [target for target, _ in pairs]
            foreach("add_")(targets, list(found.to(targets[0].dtype)), alpha=-0.2 * rate * columns**0.5)


def orthogonalize(matrices: Float[Tensor, "stack rows columns"]) -> Float[Tensor, "stack rows columns"]:
    """Orthogonalize wide matrices (singular values near 1) by five Newton-Schulz steps in their dtype, as in Muon."""
    a, b, c = _COEFFICIENTS
    x = matrices / matrices.flatten(1).norm(dim=1).clamp(min=_EPS)[:, None, None]
    for _ in range(_STEPS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
