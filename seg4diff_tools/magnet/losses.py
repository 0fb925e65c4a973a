"""Mask losses and the matching of maps to masks, as MAGNET trains with them (Seg4Diff, section 3.5).

Maps and masks are flattened: one row each, one column for each place. Every loss gives one number for each mask, so
that the caller decides how masks, images and processes are averaged.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from seg4diff_tools.errors import InputError

Focal = Literal["published", "released"]

Logits = Float[Tensor, "mask place"]
Masks = Bool[Tensor, "true_mask true_place"]


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

    Source: Lin et al., "Focal loss", ICCV 2017, equation 5; Seg4Diff, arXiv 2509.18096, equation 14, and its code.
    """
    _check(logits, masks)
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

    Source: Seg4Diff, arXiv 2509.18096, equation 14; Milletari et al., "V-Net", 2016.
    """
    _check(logits, masks)
    chance, truth = logits.sigmoid(), masks.to(logits)
    return 1 - (2 * (chance * truth).sum(-1) + 1) / (chance.sum(-1) + truth.sum(-1) + 1)


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
    """
    if logits.shape[1] != masks.shape[1]:
        raise InputError(f"expected maps and masks of as many places, got {logits.shape[1]} and {masks.shape[1]}")
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
        InputError: a cost that is not a number.
    """
    if not cost.isfinite().all():
        raise InputError("expected finite costs to match maps with masks, got some that are not: look at the maps")
    rows, columns = linear_sum_assignment(cost.detach().cpu().numpy())
    return torch.from_numpy(rows).to(cost.device), torch.from_numpy(columns).to(cost.device)


def _check(logits: Tensor, masks: Tensor) -> None:
    if logits.shape != masks.shape:
        raise InputError(f"expected a map for each mask, of its size {tuple(masks.shape)}, got {tuple(logits.shape)}")
