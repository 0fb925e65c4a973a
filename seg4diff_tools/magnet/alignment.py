"""Losses on image-to-text attention: how far layers' maps of words are from masks, read from the text columns
alone."""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.attention.tokens import span_weights
from seg4diff_tools.errors import InputError
from seg4diff_tools.indices import as_int
from seg4diff_tools.magnet import losses
from seg4diff_tools.magnet.config import MASK_LOSSES, WORD_LOSSES, MagnetConfig
from seg4diff_tools.magnet.targets import Target
from seg4diff_tools.segmentation.class_maps import Normalize, span_maps

# Head-level maps that go through the convolution at once while they are matched.
MAPS_AT_ONCE = 64


class ConvHead(nn.Module):
    """Three convolutions of a map, added to it: what the paper's code trains beside the LoRA, and drops afterwards.

    Source: the released code of Seg4Diff (1-64-64-1 channels, 3 x 3, ReLU); the paper does not mention it.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        width = as_int(width, "width", 1)
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, dtype=torch.float32),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, dtype=torch.float32),
            nn.ReLU(),
            nn.Conv2d(width, 1, 3, padding=1, dtype=torch.float32),
        )

    def forward(self, maps: Float[Tensor, "map y x"]) -> Float[Tensor, "map y x"]:
        return maps + self.layers(maps[:, None])[:, 0]


def mask_logits(
    call: JointAttention, targets: Sequence[Target], config: MagnetConfig, grid: tuple[int, int], clip_tokens: int
) -> list[Float[Tensor, "_ y x"]]:
    """Log odds on the grid of image tokens: with words a map for each mask, with heads every head's map of every token.

    Args:
        call: the attention of a layer as it is computed.
        targets: one for each image of the batch.
        config: how maps are read.
        grid: rows and columns of image tokens.
        clip_tokens: how many text tokens come from CLIP; 0 where the text has none of them, and all its tokens are
            candidates.

    Returns:
        For each image its maps (with `conv_first` those of each token of its classes, in order); gradients flow to
        queries and keys.
    """
    if config.maps == "heads":
        found = _head_maps(call, config, clip_tokens)
        return [rearrange(one, "head (y x) text -> (head text) y x", y=grid[0]) for one in found]
    spans = sorted({span for one in targets for span in one.spans})
    if not spans:
        return [call.query.new_zeros(0, *grid) for _ in targets]
    columns = sorted({column for span in spans for column in span})
    weights = span_weights([[columns.index(column) for column in span] for span in spans], len(columns))
    if config.conv_first:
        # a map for each token: the mean over a class's tokens follows the convolution
        weights = torch.eye(len(columns), dtype=torch.float32)
    reading: Normalize = "scores" if config.reading == "scores" else "softmax"
    maps = span_maps(call, "i2t", reading, ["mean"], columns, weights.to(call.query.device))[:, 0]
    if config.conv_first:
        order = [[columns.index(column) for span in one.spans for column in span] for one in targets]
    else:
        order = [[spans.index(span) for span in one.spans] for one in targets]
    chosen = [one[rows] for one, rows in zip(maps, order, strict=True)]
    if config.reading != "scores":
        chosen = [_log_odds(one) if config.reading == "softmax" else _log_shares(one) for one in chosen]
    return [one.unflatten(-1, grid) for one in chosen]


def _head_maps(call: JointAttention, config: MagnetConfig, clip_tokens: int) -> Float[Tensor, "batch head image text"]:
    candidates = clip_tokens or call.text_tokens
    if config.reading == "softmax":
        return _log_odds(call.weights("i2t", text=range(candidates)))
    text = slice(call.text.start, call.text.start + candidates)
    return call.query[:, :, call.image].float() @ call.key[:, :, text].float().mT * call.scale


def _log_odds(chances: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    return chances.clamp(1e-12, 1 - 1e-6).logit()


def _log_shares(chances: Float[Tensor, "span image"]) -> Float[Tensor, "known image"]:
    """Log odds of each class's share in what an image token gives to all classes of the prompt."""
    logs = chances.clamp(min=1e-12).log()
    own = torch.eye(len(logs), dtype=torch.bool, device=logs.device)
    others = logs[None].expand(len(logs), -1, -1).masked_fill(own[:, :, None], -torch.inf)
    return logs - others.logsumexp(1) if len(logs) > 1 else logs[:0]


def mask_losses(
    logits: Sequence[Float[Tensor, "_ y x"]],
    targets: Sequence[Target],
    config: MagnetConfig,
    head: ConvHead | None = None,
    count: float | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Return the focal and dice loss of a batch, averaged as `config.average` says.

    "images": the mean over an image's masks, then over images, of which those without a mask count 0. "masks": the
    mean over all masks of the batch, as in the paper's code.

    Args:
        logits: from `mask_logits`.
        targets: the images' masks.
        config: which losses, and the matching.
        head: changes the maps first.
        count: number of masks to divide by with average="masks"; None for that of these images.

    Returns:
        "focal" and "dice", without their weights.

    Raises:
        InputError: not one entry of logits for each target.

    Source: Seg4Diff, arXiv 2509.18096, equation 14.
    """
    if not targets or len(logits) != len(targets):
        raise InputError(
            f"expected logits of each of {len(targets)} targets, got {len(logits)}: pass one for each image"
        )
    count = _count(targets, count)
    totals = {name: logits[0].new_zeros(()) for name in MASK_LOSSES}
    for maps, target in zip(logits, targets, strict=True):
        masks_of_image = target.masks.to(maps.device)
        if config.maps == "heads":
            maps, masks_of_image = _matched(maps, masks_of_image, config, head)
        maps = head(maps) if head is not None and len(maps) else maps
        if config.conv_first and config.maps == "words" and len(maps):
            maps = torch.stack([part.mean(0) for part in maps.split([len(span) for span in target.spans])])
        # with one class of its own, an image has no share to learn
        if len(maps) == 0 or len(maps) != len(masks_of_image):
            continue
        large = interpolate(maps[:, None], size=masks_of_image.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        known = target.known.to(maps.device)
        pair = large[:, known], masks_of_image[:, known]
        share = _share(len(maps), len(targets), config, count)
        totals["focal"] = totals["focal"] + losses.focal_loss(*pair, focal=config.focal).sum() * share
        totals["dice"] = totals["dice"] + losses.dice_loss(*pair).sum() * share
    return totals


def _matched(
    maps: Float[Tensor, "candidate y x"],
    true: Bool[Tensor, "mask height width"],
    config: MagnetConfig,
    head: ConvHead | None,
) -> tuple[Float[Tensor, "map y x"], Bool[Tensor, "map height width"]]:
    """The candidate that fits each mask best, and the masks in the same order."""
    with torch.no_grad():
        seen = maps.detach()
        if head is not None:
            seen = torch.cat([head(some) for some in seen.split(MAPS_AT_ONCE)])
        small = interpolate(true[:, None].float(), size=maps.shape[-2:], mode=config.match_resize)[:, 0] > 0.5
        cost = losses.matching_cost(
            seen.flatten(1),
            small.flatten(1),
            focal_weight=config.match_focal,
            dice_weight=config.match_dice,
            focal=config.focal,
        )
        rows, columns = losses.match_masks(cost)
    return maps[rows], true[columns]


def token_maps(call: JointAttention, targets: Sequence[Target]) -> list[Float[Tensor, "head _ place"]]:
    """Attention of image tokens to each token of an image's classes, class by class.

    Args:
        call: the attention of a layer as it is computed.
        targets: one for each image of the batch.

    Returns:
        For each image its maps, every head's; gradients flow to queries and keys.
    """
    columns = sorted({column for one in targets for span in one.spans for column in span})
    if not columns:
        return [call.query.new_zeros(call.query.shape[1], 0, call.image_tokens) for _ in targets]
    maps = call.i2t(text=columns).mT
    order = [[columns.index(column) for span in one.spans for column in span] for one in targets]
    return [one[:, rows] for one, rows in zip(maps, order, strict=True)]


def word_losses(
    maps: Sequence[Sequence[Float[Tensor, "head _ place"]]],
    targets: Sequence[Target],
    config: MagnetConfig,
    grid: tuple[int, int],
    weights: Float[Tensor, " layer"],
    count: float | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Return the losses of a batch that read the attention to words: places, entropy, apart and agree.

    Args:
        maps: for each layer that of each image, from `token_maps`.
        targets: the images' masks and words.
        config: which losses, and how they are averaged.
        grid: rows and columns of image tokens; masks are brought to it by the area that they cover of each.
        weights: of the layers, with sum 1.
        count: number of masks to divide by with average="masks"; None for that of these images.

    Returns:
        The losses with a weight, not yet weighted.

    Source: TokenCompose, CVPR 2024; FOCUS, arXiv 2510.02315.
    """
    count = _count(targets, count)
    totals = {name: maps[0][0].new_zeros(()) for name in config.aligned if name in WORD_LOSSES}
    for index, target in enumerate(targets):
        if not len(target.masks):
            continue
        tokens = torch.stack([layer[index] for layer in maps])
        lengths = [len(span) for span in target.spans]
        words = torch.stack([part.mean(2) for part in tokens.split(lengths, dim=2)], dim=2)
        shares, known = grid_masks(target, grid, words.device)
        # labels so sparse that no token is known
        if not known.any():
            continue
        found = {}
        if "places" in totals:
            found["places"] = weights @ losses.places_loss(words[..., known], shares).mean(1)
        if "entropy" in totals:
            mean = torch.einsum("l,lhwp->wp", weights, words) / words.shape[1]
            found["entropy"] = losses.entropy_loss(mean[:, known], shares)
        if "apart" in totals:
            found["apart"] = (weights @ losses.apart_loss(words.mean(1))).expand(len(lengths))
        if "agree" in totals:
            starts = [sum(lengths[:word]) for word in range(len(lengths))]
            rows = [range(start, start + length) for start, length in zip(starts, lengths, strict=True)]
            found["agree"] = weights @ losses.agree_loss(tokens.mean(1), rows)
        share = _share(len(target.masks), len(targets), config, count)
        for name, loss in found.items():
            totals[name] = totals[name] + loss.sum() * share
    return totals


def region_losses(
    errors: Float[Tensor, "image y x"], targets: Sequence[Target], config: MagnetConfig, count: float | None = None
) -> Float[Tensor, ""]:
    """Return the flow loss of a batch as the mean over masks of its mean within each.

    Args:
        errors: squared errors of the velocity on the grid of image tokens, mean over channels.
        targets: the images' masks.
        config: how masks are averaged.
        count: number of masks to divide by with average="masks"; None for that of these images.
    """
    count, total = _count(targets, count), errors.new_zeros(())
    for own, target in zip(errors, targets, strict=True):
        if len(target.masks):
            shares, known = grid_masks(target, (errors.shape[1], errors.shape[2]), errors.device)
            found = losses.regions_loss(own.flatten()[known], shares)
            total = total + found.sum() * _share(len(found), len(targets), config, count)
    return total


def grid_masks(
    target: Target, grid: tuple[int, int], device: torch.device
) -> tuple[Float[Tensor, "mask known"], Bool[Tensor, " place"]]:
    """Return which share of each image token belongs to each mask, and the tokens at least half of which are known.

    Args:
        target: of an image.
        grid: rows and columns of image tokens.
        device: of the result.
    """
    known, masks = target.known.to(device), target.masks.to(device)
    inside = adaptive_avg_pool2d((masks & known).float(), grid).flatten(1)
    places = adaptive_avg_pool2d(known[None].float(), grid).flatten() >= 0.5
    return inside[:, places], places


def _count(targets: Sequence[Target], count: float | None) -> float:
    return max(1.0, float(sum(len(one.masks) for one in targets)) if count is None else count)


def _share(masks: int, images: int, config: MagnetConfig, count: float) -> float:
    """What the loss of one of an image's masks counts in that of the batch."""
    return 1 / count if config.average == "masks" else 1 / (masks * images)
