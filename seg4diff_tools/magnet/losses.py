"""Mask losses and the matching of maps to masks, as MAGNET trains with them (Seg4Diff, section 3.5).

Maps and masks are flattened: one row each, one column for each place. Every loss gives one number for each mask, so
that the caller decides how masks, images and processes are averaged.
"""

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


def _check_focal(alpha: float, gamma: float, focal: str) -> None:
    as_float(alpha, "alpha", 0.0, 1.0), as_float(gamma, "gamma")
    one_of(focal, "focal", get_args(Focal))
