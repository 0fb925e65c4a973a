"""Joint attention as a chain from query to key: where it ends, and how slowly it forgets where it began."""

import torch
from jaxtyping import Float
from torch import Tensor

from seg4diff_tools.attention.exact import working_dtype
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.indices import as_int


def token_rank(call: JointAttention, *, tolerance: float = 1e-6, most: int = 100) -> Float[Tensor, "batch key"]:
    """Return the stationary distribution of the joint attention, mean over heads, as a chain from query to key.

    Args:
        call: the attention as it is computed.
        tolerance: largest change of a share by the last step.
        most: number of steps.

    Returns:
        Shares that add up to 1: where attention ends that is followed from token to token. Found by power iteration,
        each step a pass over the joint map in pieces.

    Source: TokenRank, Erel et al., "Attention (as Discrete-Time Markov) Chains", arXiv 2507.17657.
    """
    size, dtype = call.query.shape[2], working_dtype(call.query)
    rank = torch.full((len(call.query), size), 1 / size, dtype=dtype, device=call.query.device)
    for _ in range(as_int(most, "most", 1)):
        before, rank = rank, call.received(rank[:, None, None]).mean(1)[:, 0]
        if (rank - before).abs().max() <= tolerance:
            break
    return rank


def second_eigenvalue(call: JointAttention, *, most: int = 30) -> Float[Tensor, "batch heads"]:
    """Return the size of the second eigenvalue of each head's joint attention: how slowly its chain forgets.

    Args:
        call: the attention as it is computed.
        most: number of steps of the power iteration.

    Returns:
        From 0 (each query gives the same) to 1 (groups of tokens that never look at each other).

    Source: Erel et al., arXiv 2507.17657, which weighs heads by it. Weights that add up to 0 keep doing so under the
    attention; how fast they shrink is the eigenvalue. Its mean over the later half of the steps, as pairs of complex
    eigenvalues shrink unevenly.
    """
    generator, tokens = torch.Generator().manual_seed(0), call.query.shape[2]
    moved = torch.randn(1, 1, 1, tokens, generator=generator, dtype=torch.float32, device="cpu")
    moved = moved.to(call.query.device).expand(len(call.query), -1, -1, -1)
    logs = []
    for _ in range(as_int(most, "most", 2)):
        moved = moved - moved.mean(-1, keepdim=True)
        # uniform attention leaves nothing: 0, whose logarithm is minus infinity
        moved = call.received(moved / moved.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(moved.dtype).tiny))
        logs.append(moved.norm(dim=-1)[..., 0].log())
    return torch.stack(logs[most // 2 :]).mean(0).exp()
