"""From attention maps to masks: the pure tensor steps of Seg4Diff's open-vocabulary segmentation (Eq 9 to 12)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate

from seg4diff_tools.errors import InputError

Merging = Literal["published", "released"]


def span_weights(spans: Sequence[Sequence[int]], tokens: int) -> Float[Tensor, "token class"]:
    """Averaging matrix of class spans: a row of token values times this matrix is the mean over each class's tokens.

    Args:
        spans: for each class, the indices of its tokens, 0 to tokens - 1.
        tokens: how many tokens there are.

    Returns:
        Matrix whose columns sum to 1.

    Raises:
        InputError: no class, a class without tokens, or an index out of range.

    Source: Seg4Diff, arXiv 2509.18096, equation 10 (mean over the tokens of a class).
    """
    if not spans:
        raise InputError("expected the token span of at least one class, got none: pass one span for each class")
    weights = torch.zeros(tokens, len(spans))
    for column, span in enumerate(spans):
        if len(span) == 0:
            raise InputError(f"expected tokens for every class, got an empty span for class {column}: drop that class")
        if min(span) < 0 or max(span) >= tokens:
            raise InputError(
                f"expected token indices from 0 to {tokens - 1}, got {tuple(span)} for class {column}: "
                "take the span from the prompt that made these maps"
            )
        weights[list(span), column] = 1 / len(span)
    return weights


def class_maps(
    token_maps: Float[Tensor, "*batch token y x"], spans: Sequence[Sequence[int]]
) -> Float[Tensor, "*batch class y x"]:
    """Mean of the token maps over the tokens of each class.

    Args:
        token_maps: one map for each token, already averaged over heads where that is wanted.
        spans: for each class, the indices of its tokens on the token axis.

    Returns:
        One map for each class, in the order of `spans`.

    Raises:
        InputError: no class, a class without tokens, or an index out of range.

    Source: Seg4Diff, arXiv 2509.18096, equation 10.
    """
    weights = span_weights(spans, token_maps.shape[-3]).to(token_maps)
    return torch.einsum("...tyx,tc->...cyx", token_maps, weights)


def minmax(maps: Float[Tensor, "*batch y x"]) -> Float[Tensor, "*batch y x"]:
    """Each map scaled on its own to the range 0 to 1; a constant map becomes 0.

    Args:
        maps: any values, one map over the last two axes.

    Returns:
        Maps whose smallest value is 0 and whose largest is 1.

    Source: Seg4Diff, arXiv 2509.18096, table 5 (the paper's best row does without).
    """
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    extent = high - low
    return (maps - low) / torch.where(extent > 0, extent, 1)


def upsample(maps: Float[Tensor, "*batch y_in x_in"], size: tuple[int, int]) -> Float[Tensor, "*batch y_out x_out"]:
    """Bilinear upsampling of class maps to the size of the image.

    Args:
        maps: maps on the grid of image tokens.
        size: height and width in pixels.

    Returns:
        Maps on pixels; corners of the two grids are not aligned, as in image resizing.

    Source: Seg4Diff, arXiv 2509.18096, equation 11.
    """
    if min(size) < 1:
        raise InputError(f"expected a height and width of at least 1 pixel, got {size}")
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    return interpolate(flat, size=size, mode="bilinear", align_corners=False).reshape(*maps.shape[:-2], *size)


def upsample_guided(maps: Float[Tensor, "class y_in x_in"], image: PIL.Image.Image) -> Float[Tensor, "class y x"]:
    """Upsampling that follows the edges of the image: bilinear, then a guided filter.

    Args:
        maps: maps on the grid of image tokens.
        image: whose size the result has.

    Returns:
        Maps on pixels. The filter's radius is two image tokens and its regulariser 1e-4 (of squared colors from 0 to 1), as is
        best on training scenes of the embedded model; its coefficients are computed on a coarser grid.

    Source: He and Sun, "Fast Guided Filter", arXiv 1505.00996, by kornia.
    """
    # a heavy import that nothing else needs
    from kornia.filters import guided_blur

    large = upsample(maps, (image.height, image.width))
    guide = torch.from_numpy(np.array(image.convert("RGB"))).to(large).permute(2, 0, 1)[None] / 255
    # a radius reflects at the border, so that it stays below the side
    tall, wide = (
        min(max(1, round(2 * side / tokens)), side - 1)
        for side, tokens in zip(large.shape[1:], maps.shape[1:], strict=True)
    )
    if not tall or not wide:
        return large
    step = max(1, min(tall, wide) // 8)
    return guided_blur(guide, large[None], (2 * tall + 1, 2 * wide + 1), 1e-4, subsample=step)[0]


def label_map(
    maps: Float[Tensor, "*batch class y x"], size: tuple[int, int] | None = None
) -> Int[Tensor, "*batch y_out x_out"]:
    """Index of the class with the largest map at each pixel; the first one where several are equal.

    Args:
        maps: class maps, comparable with one another.
        size: height and width to upsample the maps to first, one class at a time; None takes the maps as they are.

    Returns:
        Class index at each pixel. A class whose map is NaN throughout, of which no token was read, is the largest
        everywhere, as it is for argmax in the released code.

    Raises:
        InputError: other maps that hold NaN, for which no class is the largest.

    Source: Seg4Diff, arXiv 2509.18096, equation 12, after equation 11 where a size is given.
    """
    nan = maps.isnan()
    if nan.any():
        unread = nan.flatten(-2).all(-1)
        if not torch.equal(nan, unread[..., None, None].expand_as(nan)) or unread.all(-1).any():
            raise InputError("expected class maps without NaN: run the model in float32 or bfloat16, not float16")
        maps = maps.nan_to_num(nan=torch.finfo(maps.dtype).max)
    # Class by class this is several times faster on a CPU than argmax over a strided axis, and needs less memory.
    best, labels = None, None
    for index, current in enumerate(maps.unbind(-3)):
        current = current if size is None else upsample(current, size)
        if best is None:
            best, labels = current, torch.zeros(current.shape, dtype=torch.int64, device=maps.device)
        else:
            labels.masked_fill_(current > best, index)
            best = torch.maximum(best, current)
    return labels


def merge_maps(
    maps: Float[Tensor, "token y x"], threshold: float = 0.035, rounds: int = 3, merging: Merging = "published"
) -> tuple[Float[Tensor, "group y x"], Int[Tensor, " token"]]:
    """Groups of tokens that look at the same place, merged greedily into one map each.

    Every map is stretched to 0..1 and turned into a distribution over places by a softmax. Then, in each round, the first
    map that is left takes all maps that are left within `threshold` of it into its group, whose map is their mean; the
    next round merges the groups.

    Args:
        maps: attention of image tokens to some text tokens, such as the pads of an empty prompt.
        threshold: largest symmetric Kullback-Leibler divergence, (KL(p, q) + KL(q, p)) / 2 in nats, inside a group. Such
            softmax distributions are at most 0.46 apart.
        rounds: how often to merge; ends early when nothing merges any more.
        merging: "published" as above. "released" as the paper's code for it computes: values are stretched to 0..1 over the
            tokens at each place, not over the places of each token; there is one round; and a map that is left also takes
            in maps of earlier groups.

    Returns:
        The groups' distributions, in the order of their first tokens, and the (first) group of each token.

    Raises:
        InputError: no map, a threshold below zero, or another `merging`.

    Source: Seg4Diff, arXiv 2509.18096, section 4.3 and table 2 (0.035 in the released configuration), after DiffSeg (Tian
    et al., CVPR 2024), which starts from sampled anchors where here every map may open a group.
    """
    if len(maps) == 0 or threshold < 0:
        raise InputError(f"expected at least one map and a threshold from 0, got {len(maps)} maps and {threshold}")
    if merging not in ("published", "released"):
        raise InputError(f"expected merging='published' or merging='released', got {merging!r}")
    released = merging == "released"
    # maps that are nearly the same differ in digits that fp32 loses; Apple's GPUs have no fp64
    exact = torch.float32 if maps.device.type == "mps" else torch.float64
    maps = maps.to(exact)
    stretched = _stretched_over_tokens(maps) if released else minmax(maps)
    logs = stretched.flatten(1).log_softmax(-1)
    members = torch.eye(len(maps))
    for _ in range(1 if released else rounds):
        near = _divergences(logs).cpu() <= threshold
        left = torch.ones(len(near), dtype=torch.bool)
        groups = []
        for first in range(len(near)):
            if left[first]:
                joined = near[first].clone() if released else near[first] & left
                joined[first] = True
                left &= ~joined
                groups.append(joined)
        chosen = torch.stack(groups).float()
        weights = (chosen / chosen.sum(1, keepdim=True)).to(logs)
        logs = (weights @ logs.exp()).log()
        members = chosen @ members
        if len(groups) == len(near):
            break
    return logs.exp().float().unflatten(-1, maps.shape[-2:]), members.argmax(0)


def _stretched_over_tokens(maps: Float[Tensor, "token y x"]) -> Float[Tensor, "token y x"]:
    """Values of each place scaled to 0..1 over its tokens, with the small number in the released code's denominator."""
    above = maps - maps.amin(0)
    return above / (above.amax(0) + 1e-6)


def _divergences(logs: Float[Tensor, "map place"]) -> Float[Tensor, "map map"]:
    """Symmetric Kullback-Leibler divergence of each pair of distributions, from their logarithms."""
    cross = logs.exp() @ logs.mT
    own = cross.diagonal()
    return (own[:, None] + own[None] - cross - cross.mT) / 2
