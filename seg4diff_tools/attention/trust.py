"""Whether an operator's answer can be used: its first one for each shape is checked on the real data."""

import torch
from torch import Tensor

from seg4diff_tools.attention.exact import mask_part, probabilities, working_dtype

ROWS = 16
"""How many random rows of the attention are checked."""


def disagreement(
    output: Tensor,
    lse: Tensor,
    plain: Tensor,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scale: float,
) -> str | None:
    """Return what is wrong with an operator's answer, in words; None if nothing is.

    The output has to be PyTorch's own, `plain`, bit for bit. On random rows, the log-sum-exp has to be that of q k^T in
    fp64, and the probabilities that follow from it, computed as maps are, have to add up to 1.

    Args:
        output, lse: the operator's, [batch heads tokens dim] and [batch heads tokens].
        plain: output of `scaled_dot_product_attention` for the same inputs.
        query, key: [batch heads tokens dim]; the key may have fewer heads, each for a group of queries.
        mask: additive mask that broadcasts to [batch heads tokens keys], or None.
        scale: factor on the scores.
    """
    if output.shape != plain.shape or not _same_bits(output, plain):
        return "its output is not that of scaled_dot_product_attention"
    if lse.shape != query.shape[:3]:
        return f"its log-sum-exp has the shape {tuple(lse.shape)}"
    close, sums = [], []
    kind, least = working_dtype(query), 1e-3 if query.dtype.itemsize <= 2 else 1e-4
    for batch, head, row in _random_rows(query.shape[:3]):
        one, keys = query[batch, head, row : row + 1], key[batch, head * key.shape[1] // query.shape[1]]
        part = query.new_zeros(1, 1, dtype=kind) if mask is None else _row(mask, batch, head, row).to(kind)
        scores = (one.double() @ keys.double().mT * scale).squeeze(0)
        found = lse[batch, head, row].double()
        expected = (scores + part.double().squeeze(0)).logsumexp(-1)
        # products in fp32 are as exact as their size lets them be
        tolerance = least * (1 + scores.abs().amax() / 16)
        # a row without any open key has no probabilities
        closed = expected.isneginf()
        close.append(closed | ((found - expected).abs() <= tolerance))
        offset = (part - found.to(kind))[None]
        weights = probabilities(one.to(kind)[None], keys.to(kind).mT[None], offset, scale)
        sums.append(closed | ((weights.sum() - 1).abs() <= tolerance))
    if not torch.stack(close).all():
        return "its log-sum-exp is not that of the scores"
    if not torch.stack(sums).all():
        return "probabilities from its log-sum-exp do not add up to 1"
    return None


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def _random_rows(shape: torch.Size) -> list[list[int]]:
    # A generator of its own: the user's random numbers must not depend on whether she records.
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = [torch.randint(size, (ROWS,), generator=generator, dtype=torch.long, device="cpu") for size in shape]
    return torch.stack(drawn, dim=1).tolist()


def _row(mask: Tensor, batch: int, head: int, row: int) -> Tensor:
    """A mask's row, [1 keys] or broadcast to it."""
    mask = mask[(None,) * (4 - mask.ndim)]
    mask = mask[batch if mask.shape[0] > 1 else 0, head if mask.shape[1] > 1 else 0]
    return mask_part(mask, slice(row, row + 1), slice(None))
