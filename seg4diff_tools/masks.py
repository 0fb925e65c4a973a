"""From attention maps to masks: the pure tensor steps of Seg4Diff's open-vocabulary segmentation (Eq 9 to 12)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate

from seg4diff_tools.errors import InputError


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


def label_map(
    maps: Float[Tensor, "*batch class y x"], size: tuple[int, int] | None = None
) -> Int[Tensor, "*batch y_out x_out"]:
    """Index of the class with the largest map at each pixel; the first one where several are equal.

    Args:
        maps: class maps, comparable with one another.
        size: height and width to upsample the maps to first, one class at a time; None takes the maps as they are.

    Returns:
        Class index at each pixel.

    Raises:
        InputError: maps that hold NaN, for which no class is the largest.

    Source: Seg4Diff, arXiv 2509.18096, equation 12, after equation 11 where a size is given.
    """
    if maps.isnan().any():
        raise InputError("expected class maps without NaN: run the model in float32 or bfloat16, not float16")
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
