"""Losses on attention maps and masks, and the matching of maps to masks.

MAGNET's two losses (Seg4Diff, section 3.5) read log odds; those of TokenCompose and FOCUS read the attention itself,
normalized over places. Maps and masks are flattened: one row each, one column for each place. A loss gives one number
for each mask or word, so that the caller decides how masks, images and processes are averaged.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from seg4diff_tools.errors import InputError, one_of, shown
from seg4diff_tools.indices import as_float

Focal = Literal["published", "released"]

Logits = Float[Tensor, "mask place"]
Masks = Bool[Tensor, "true_mask true_place"]
Shares = Float[Tensor, "mask place"]
"""Which share of each place belongs to a mask, 0 to 1: a mask on a coarse grid."""
TINY = 1e-12
"""Added where a sum may vanish or a logarithm be taken, as a map may be 0 in fp32."""


def focal_loss(
    logits: Logits, masks: Masks, *, alpha: float = 0.25, gamma: float = 2.0, focal: Focal = "published"
) -> Float[Tensor, " mask"]:
    """Cross-entropy in which places that are right already count less, mean over places.

    Args:
        logits: log odds that a place belongs to the mask.
        masks: the truth.
        alpha: weight of the mask's places; 1 - alpha is that of all others.
        gamma: how fast the weight falls with the probability of the truth.
        focal: "published" weighs by (1 - p)^gamma with p = sigmoid(logit); "released" takes the logit itself for p, as
            the paper's code does: its weight grows without bound the further a logit is from 0 or 1.

    Raises:
        InputError: maps or masks of another shape or type, or a weight out of range.

    Source: Lin et al., "Focal loss", ICCV 2017, equation 5; Seg4Diff, arXiv 2509.18096, equation 14, and its code.
    """
    _check(logits, masks)
    _check_focal(alpha, gamma, focal)
    truth = masks.to(logits)
    chance = logits if focal == "released" else logits.sigmoid()
    missed = torch.where(masks, 1 - chance, chance)
    entropy = binary_cross_entropy_with_logits(logits, truth, reduction="none")
    weights = torch.full_like(missed, 1 - alpha).masked_fill(masks, alpha)
    return (weights * missed**gamma * entropy).mean(-1)


def dice_loss(logits: Logits, masks: Masks) -> Float[Tensor, " mask"]:
    """One minus the Dice overlap of a soft map with its mask; 1 is added to both parts of the fraction.

    Args:
        logits: log odds that a place belongs to the mask.
        masks: the truth.

    Raises:
        InputError: maps or masks of another shape or type.

    Source: Seg4Diff, arXiv 2509.18096, equation 14; Milletari et al., "V-Net", 2016.
    """
    _check(logits, masks)
    chance, truth = logits.sigmoid(), masks.to(logits)
    return 1 - (2 * (chance * truth).sum(-1) + 1) / (chance.sum(-1) + truth.sum(-1) + 1)


def places_loss(maps: Float[Tensor, "*maps mask place"], shares: Shares) -> Float[Tensor, "*maps mask"]:
    """Square of what a map gives outside of its mask: (1 - share)^2, share = sum of A M / sum of A over places.

    Args:
        maps: attention of places to a word, 0 or more; any axes before, such as layers and heads.
        shares: the word's mask.

    Raises:
        InputError: maps or masks of another shape or type.

    Source: TokenCompose, Wang et al., CVPR 2024, the loss of tokens (weight 1e-3 there). Its code takes the mean of the
    shares of all heads before the square; this takes each map by itself.
    """
    _check_maps(maps, shares)
    inside = (maps * shares).sum(-1) / maps.sum(-1).clamp(min=TINY)
    return (1 - inside).square()


def entropy_loss(maps: Float[Tensor, "mask place"], shares: Shares) -> Float[Tensor, " mask"]:
    """Binary cross-entropy of attention with masks, mean over places.

    Args:
        maps: attention of places to a word, 0 to 1, such as the mean over heads and layers.
        shares: the word's mask.

    Raises:
        InputError: maps or masks of another shape or type.

    Source: TokenCompose, Wang et al., CVPR 2024, the loss of pixels (weight 5e-5 there).
    """
    _check_maps(maps, shares)
    chance = maps.clamp(TINY, 1 - 1e-6)
    return -(shares * chance.log() + (1 - shares) * (1 - chance).log()).mean(-1)


def divergence(maps: Float[Tensor, "*maps row place"], *, power: float = 3.0) -> Float[Tensor, "*maps"]:
    """Jensen-Shannon divergence of maps as distributions over places, divided by its largest value, log of their
    number.

    Args:
        maps: attention, 0 or more; at least two rows.
        power: of the attention before it is normalized: the many places near 0 would outweigh the few that matter.

    Returns:
        From 0, all alike, to 1, no place in common.

    Raises:
        InputError: maps of another shape or type, fewer than two, or a power out of range.

    Source: FOCUS, Bill et al., arXiv 2510.02315, and its code (power 3).
    """
    _check_maps(maps)
    as_float(power, "power")
    if maps.shape[-2] < 2:
        raise InputError(f"expected at least two maps to compare, got {maps.shape[-2]}: pass those of several words")
    # relative to the largest place, so that powers of small attention do not vanish
    relative = (maps / maps.amax(-1, keepdim=True).detach().clamp(min=TINY)) ** power
    each = relative / relative.sum(-1, keepdim=True).clamp(min=TINY)
    mean = each.mean(-2, keepdim=True)
    distance = (each * ((each + TINY).log() - (mean + TINY).log())).sum(-1)
    return distance.mean(-1) / math.log(maps.shape[-2])


def agree_loss(
    maps: Float[Tensor, "*maps token place"], words: Sequence[Sequence[int]], *, power: float = 3.0
) -> Float[Tensor, "*maps word"]:
    """How far the tokens of one word look at different places: their divergence, 0 for a word of one token.

    Args:
        maps: attention to each token, 0 or more.
        words: rows of the tokens of each word.
        power: see `divergence`.

    Raises:
        InputError: maps of another shape or type, a word without a token, or a power out of range.

    Source: FOCUS, arXiv 2510.02315: coherence within a subject.
    """
    _check_maps(maps)
    if not words or not all(words):
        raise InputError(f"expected words, rows of at least one token each, got {words!r}: pass [[0], [1, 2]]")
    several = [divergence(maps[..., list(word), :], power=power) for word in words if len(word) > 1]
    found = iter(several)
    return torch.stack([next(found) if len(word) > 1 else maps.new_zeros(maps.shape[:-2]) for word in words], -1)


def apart_loss(maps: Float[Tensor, "*maps word place"], *, power: float = 3.0) -> Float[Tensor, "*maps"]:
    """How far the maps of different words overlap: one minus their divergence, 0 for a single word.

    Args:
        maps: attention to each word, 0 or more.
        power: see `divergence`.

    Raises:
        InputError: maps of another shape or type, or a power out of range.

    Source: FOCUS, arXiv 2510.02315: separation of subjects.
    """
    _check_maps(maps)
    if maps.shape[-2] < 2:
        return maps.new_zeros(maps.shape[:-2])
    return 1 - divergence(maps, power=power)


def regions_loss(errors: Float[Tensor, " place"], shares: Shares) -> Float[Tensor, " mask"]:
    """Mean squared error of the velocity within each mask, so that a small thing counts as much as a large one.

    Args:
        errors: squared error of each place, mean over channels.
        shares: the masks.

    Raises:
        InputError: errors or masks of another shape or type.
    """
    _check_maps(shares)
    if not isinstance(errors, Tensor) or errors.shape != shares.shape[1:]:
        raise InputError(
            f"expected errors of each of {shares.shape[1]} places, got {shown(errors)}: pass their mean over channels"
        )
    return (shares * errors).sum(-1) / shares.sum(-1).clamp(min=TINY)


def matching_cost(
    logits: Float[Tensor, "candidate place"],
    masks: Masks,
    *,
    focal_weight: float = 0.02,
    dice_weight: float = 1.0,
    focal: Focal = "published",
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Tensor, "candidate true_mask"]:
    """The weighted sum of both losses of every map with every mask, without a tensor of [candidate mask place].

    Args:
        logits: the maps to choose from.
        masks: what they should show.
        focal_weight, dice_weight: 0.02 and 1 in the released configuration.
        focal, alpha, gamma: as in `focal_loss`.

    Raises:
        InputError: maps or masks of another shape or type, or a weight out of range.
    """
    _check_rows(logits, masks)
    _check_focal(alpha, gamma, focal)
    as_float(focal_weight, "focal_weight"), as_float(dice_weight, "dice_weight")
    if logits.shape[1] != masks.shape[1]:
        raise InputError(
            f"expected masks of as many places as logits have, {logits.shape[1]}, got {masks.shape[1]}: resize them"
        )
    truth, sigmoid = masks.to(logits), logits.sigmoid()
    chance = logits if focal == "released" else sigmoid
    inside = alpha * (1 - chance) ** gamma * softplus(-logits)
    outside = (1 - alpha) * chance**gamma * softplus(logits)
    focal_cost = (inside @ truth.mT + outside @ (1 - truth).mT) / logits.shape[1]
    total = sigmoid.sum(1)[:, None] + truth.sum(1)
    return focal_weight * focal_cost + dice_weight * (1 - (2 * sigmoid @ truth.mT + 1) / (total + 1))


def match_masks(cost: Float[Tensor, "candidate mask"]) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """Which map shows which mask: the pairs with the least total cost, no map and no mask twice (Hungarian algorithm).

    Args:
        cost: from `matching_cost`.

    Returns:
        Rows and columns of the pairs, as many as there are of the fewer.

    Raises:
        InputError: something else than a matrix, or a cost that is not a number.
    """
    if not isinstance(cost, Tensor) or cost.ndim != 2:
        raise InputError(f"expected cost [candidate mask], got {shown(cost)}: pass that of matching_cost")
    if not cost.isfinite().all():
        raise InputError("expected finite costs to match maps with masks, got some that are not: look at the maps")
    rows, columns = linear_sum_assignment(cost.detach().cpu().numpy())
    return torch.from_numpy(rows).to(cost.device), torch.from_numpy(columns).to(cost.device)


def _check(logits: Tensor, masks: Tensor) -> None:
    _check_rows(logits, masks)
    if logits.shape != masks.shape:
        raise InputError(
            f"expected logits for each of the masks, {shown(masks)}, got {shown(logits)}: pass a row for each mask"
        )


def _check_rows(logits: Tensor, masks: Tensor) -> None:
    for name, rows in (("logits", logits), ("masks", masks)):
        if not isinstance(rows, Tensor) or rows.ndim != 2:
            raise InputError(f"expected {name} as a tensor [mask place], got {shown(rows)}: flatten the places")
    if not logits.is_floating_point():
        raise InputError(f"expected logits as floats, got {logits.dtype}: pass log odds")
    if masks.dtype != torch.bool:
        raise InputError(f"expected masks of True and False, got {masks.dtype}: pass masks > 0.5")


def _check_maps(maps: Tensor, shares: Tensor | None = None) -> None:
    for name, rows in (("maps", maps), ("shares", shares)):
        if rows is not None and not (isinstance(rows, Tensor) and rows.ndim >= 2 and rows.is_floating_point()):
            raise InputError(f"expected {name}, floats [mask place], got {shown(rows)}: flatten the places")
    if shares is not None and maps.shape[-2:] != shares.shape:
        raise InputError(
            f"expected shares of each map's mask, {list(maps.shape[-2:])}, got {list(shares.shape)}: pass a row for "
            "each mask, on the grid of the maps"
        )


def _check_focal(alpha: float, gamma: float, focal: str) -> None:
    as_float(alpha, "alpha", 0.0, 1.0), as_float(gamma, "gamma")
    one_of(focal, "focal", get_args(Focal))
