"""From attention maps to masks: the pure tensor steps of Seg4Diff's open-vocabulary segmentation (Eq 9 to 12)."""

from typing import Literal, get_args

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from seg4diff_tools.errors import InputError, named_extra, one_of
from seg4diff_tools.images import as_size
from seg4diff_tools.indices import as_float, as_int

Merging = Literal["published", "released"]


def minmax(maps: Float[Tensor, "*batch y x"]) -> Float[Tensor, "*batch y x"]:
    """Scale each map on its own to the range 0 to 1; a constant map becomes 0.

    Args:
        maps: any values, one map over the last two axes.

    Returns:
        Maps whose smallest value is 0 and whose largest is 1.

    Source: Seg4Diff, arXiv 2509.18096, table 5 (the paper's best row does without).
    """
    _check(maps, "y x")
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    extent = high - low
    return (maps - low) / torch.where(extent > 0, extent, 1)


def blur(maps: Float[Tensor, "*batch y x"], kernel: int = 5) -> Float[Tensor, "*batch y x"]:
    """Blur each map by a Gaussian, edges reflected.

    Args:
        maps: at least (kernel + 1) / 2 values high and wide.
        kernel: side of the square that a value is spread over, odd. The deviation follows from it as in torchvision's
            `gaussian_blur`: 0.15 kernel + 0.35, 1.1 for 5.

    Raises:
        InputError: an even kernel, or maps that are too small for it.

    Source: GoCA, Meng et al., arXiv 2603.06178, released code (kernel 5).
    """
    _check(maps, "y x")
    kernel = as_int(kernel, "kernel", 1)
    reach = kernel // 2
    if kernel % 2 == 0 or min(maps.shape[-2:]) <= reach:
        raise InputError(
            f"expected kernel, an odd number for maps of {maps.shape[-2]} x {maps.shape[-1]} values, got {kernel}: "
            f"pass an odd one below {2 * min(maps.shape[-2:])}"
        )
    places = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
    weights = (-0.5 * (places / (0.15 * kernel + 0.35)) ** 2).softmax(0)
    flat = pad(maps.reshape(-1, 1, *maps.shape[-2:]), (reach,) * 4, mode="reflect")
    return conv2d(conv2d(flat, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1)).reshape(maps.shape)


def upsample(maps: Float[Tensor, "*batch y_in x_in"], size: tuple[int, int]) -> Float[Tensor, "*batch y_out x_out"]:
    """Upsample class maps bilinearly to the size of the image.

    Args:
        maps: maps on the grid of image tokens.
        size: height and width in pixels.

    Returns:
        Maps on pixels; corners of the two grids are not aligned, as in image resizing.

    Raises:
        InputError: no float tensor of maps, or no height and width from 1 pixel.

    Source: Seg4Diff, arXiv 2509.18096, equation 11.
    """
    size = as_size(size)
    _check(maps, "y x")
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    return interpolate(flat, size=size, mode="bilinear", align_corners=False).reshape(*maps.shape[:-2], *size)


def upsample_guided(maps: Float[Tensor, "class y_in x_in"], image: PIL.Image.Image) -> Float[Tensor, "class y x"]:
    """Upsample maps of image tokens bilinearly to an image's size, then apply a guided filter, which follows its edges.

    The filter's radius is two image tokens and its regularizer 1e-4 (of squared colors from 0 to 1), as is best on
    training scenes of the embedded model; its coefficients are computed on a coarser grid.

    Source: He and Sun, "Fast Guided Filter", arXiv 1505.00996, by kornia.
    """
    # a heavy import that nothing else needs
    with named_extra():
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
    """Return the index of the class with the largest map at each pixel, the first one where several are equal.

    Args:
        maps: class maps, comparable with one another.
        size: height and width to upsample the maps to first, one class at a time; None takes the maps as they are.

    Returns:
        Class index at each pixel. A class whose map is NaN throughout, of which no token was read, is the largest
        everywhere, as it is for argmax in the released code.

    Raises:
        InputError: no float tensor of maps, or other maps that hold NaN, for which no class is the largest.

    Source: Seg4Diff, arXiv 2509.18096, equation 12, after equation 11 where a size is given.
    """
    _check(maps, "class y x")
    nan = maps.isnan()
    if nan.any():
        unread = nan.flatten(-2).all(-1)
        if not torch.equal(nan, unread[..., None, None].expand_as(nan)) or unread.all(-1).any():
            raise InputError("expected class maps without NaN, got some: run the model in float32 or bfloat16")
        maps = maps.nan_to_num(nan=torch.finfo(maps.dtype).max)
    # Class by class this is several times faster on a CPU than argmax over a strided axis, and needs less memory.
    first, *others = maps.unbind(-3)
    best = first if size is None else upsample(first, size)
    labels = torch.zeros(best.shape, dtype=torch.int64, device=maps.device)
    for index, each in enumerate(others, start=1):
        current = each if size is None else upsample(each, size)
        labels.masked_fill_(current > best, index)
        best = torch.maximum(best, current)
    return labels


def merge_maps(
    maps: Float[Tensor, "token y x"], threshold: float = 0.035, rounds: int = 3, merging: Merging = "published"
) -> tuple[Float[Tensor, "group y x"], Int[Tensor, " token"]]:
    """Merge maps of similar tokens greedily into groups, each with one map.

    Every map is scaled to 0..1 and becomes a distribution over places by a softmax. In each round, the first ungrouped
    map opens a group with all ungrouped maps within `threshold` of it; the map of the group is their mean. The next
    round merges the groups.

    Args:
        maps: attention of image tokens to some text tokens, such as the pads of an empty prompt.
        threshold: largest symmetric Kullback-Leibler divergence, (KL(p, q) + KL(q, p)) / 2 in nats, inside a group.
            Such softmax distributions are at most 0.46 apart.
        rounds: largest number of rounds; merging ends when a round merges nothing.
        merging: "published" as above. "released" as in the paper's code: values are scaled to 0..1 over the tokens at
            each place, not over the places of each token; there is one round; and a new group also takes in maps of
            earlier groups.

    Returns:
        The groups' distributions, in the order of their first tokens, and the (first) group of each token.

    Raises:
        InputError: no map, a threshold below zero, or another `merging`.

    Source: Seg4Diff, arXiv 2509.18096, section 4.3 and table 2 (0.035 in the released configuration), after DiffSeg
    (Tian et al., CVPR 2024), which starts from sampled anchors where here every map may open a group.
    """
    _check(maps, "token y x")
    if maps.isnan().any():
        raise InputError("expected maps without NaN, got some: run the model in float32 or bfloat16")
    threshold, rounds = as_float(threshold, "threshold"), as_int(rounds, "rounds", 1)
    one_of(merging, "merging", get_args(Merging))
    released = merging == "released"
    # maps that are nearly the same differ in digits that fp32 loses; Apple's GPUs have no fp64
    exact = torch.float32 if maps.device.type == "mps" else torch.float64
    maps = maps.to(exact)
    stretched = _stretched_over_tokens(maps) if released else minmax(maps)
    logs = stretched.flatten(1).log_softmax(-1)
    members = torch.eye(len(maps), dtype=torch.float32)
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


def _check(maps: Tensor, axes: str) -> None:
    """Refuse what is no tensor of floats with at least these axes, none of them empty."""
    shape = tuple(getattr(maps, "shape", ()))
    if not isinstance(maps, Tensor) or not maps.is_floating_point() or len(shape) < len(axes.split()) or 0 in shape:
        found = f"{maps.dtype} of shape {shape}" if isinstance(maps, Tensor) else type(maps).__name__
        raise InputError(f"expected maps as a float tensor [{axes}], none of them empty, got {found}: pass such maps")


def _stretched_over_tokens(maps: Float[Tensor, "token y x"]) -> Float[Tensor, "token y x"]:
    """Scale the values of each place to 0..1 over its tokens, with the released code's epsilon in the denominator."""
    above = maps - maps.amin(0)
    return above / (above.amax(0) + 1e-6)


def _divergences(logs: Float[Tensor, "map place"]) -> Float[Tensor, "map map"]:
    """Return the symmetric Kullback-Leibler divergence of each pair of distributions, from their logarithms."""
    cross = logs.exp() @ logs.mT
    own = cross.diagonal()
    return (own[:, None] + own[None] - cross - cross.mT) / 2
