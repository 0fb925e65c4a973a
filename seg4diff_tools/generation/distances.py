"""Distances between two sets of pictures in the feature space of a CLIP.

The formulas are those of FID and KID, but on features of the given CLIP, not of Inception: values are comparable for
the same CLIP only, never with published FIDs. Source of CLIP features: Jayasumana et al., "Rethinking FID", arXiv
2401.09603.
"""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from seg4diff_tools.errors import InputError, instance_of, named_extra
from seg4diff_tools.generation.clip import Clip, ImageVectors
from seg4diff_tools.images import ImageLike, as_images
from seg4diff_tools.indices import as_int

with named_extra():
    from torchmetrics.image.fid import FrechetInceptionDistance


def clip_features(clip: Clip, images: Sequence[ImageLike], batch: int = 64) -> ImageVectors:
    """Return CLIP's projected features of images, before normalization.

    Args:
        clip: the feature extractor.
        images: paths, PIL images, uint8 arrays [y x 3] or float tensors [3 y x] from 0 to 1.
        batch: images at once.
    """
    instance_of(clip, Clip, "clip", "load_clip(...)")
    images, batch = as_images(images), as_int(batch, "batch", 1)
    parts = [images[start : start + batch] for start in range(0, len(images), batch)]
    return torch.cat([clip.embed_images(part, normalize=False) for part in parts])


def frechet_distance(one: Float[Tensor, "one dim"], other: Float[Tensor, "other other_dim"]) -> float:
    """Return the Fréchet distance of Gaussians with the means and covariances of two sets of features.

    `|m1 - m2|^2 + trace(C1 + C2 - 2 sqrt(C1 C2))`, by torchmetrics, in double precision. It decreases with the sizes of
    the sets: compare equal sizes only, preferably with many more features than `dim`.

    Args:
        one, other: features, at least two each.

    Returns:
        0 or more, up to rounding.

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", NeurIPS 2017, equation 6.
    """
    _check(one, other)
    as_they_are = torch.nn.Identity()
    as_they_are.num_features = one.shape[1]
    metric = FrechetInceptionDistance(feature=as_they_are)
    metric.update(one.double(), real=True)
    metric.update(other.double(), real=False)
    return metric.compute().item()


def kernel_distance(one: Float[Tensor, "one dim"], other: Float[Tensor, "other other_dim"]) -> float:
    """Return the unbiased squared maximum mean discrepancy of two sets of features, kernel (x y / dim + 1)^3.

    It uses all pairs, KID the mean over random subsets. Sets of different and small sizes are comparable.

    Args:
        one, other: features, at least two each.

    Returns:
        Around 0 (possibly negative) for sets of the same distribution, larger otherwise.

    Source: Bińkowski et al., "Demystifying MMD GANs", ICLR 2018, section 4; Gretton et al., "A Kernel Two-Sample Test",
    JMLR 2012, equation 3.
    """
    _check(one, other)
    one, other = one.double(), other.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.mT / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        pairs = kernel(x, x)
        return (pairs.sum() - pairs.trace()) / (len(x) * (len(x) - 1))

    return (within(one) + within(other) - 2 * kernel(one, other).mean()).item()


def picture_distances(
    clip: Clip, images: Sequence[ImageLike], reference: Sequence[ImageLike], batch: int = 64
) -> pd.DataFrame:
    """Return both distances between pictures and reference pictures, on the features of a CLIP.

    They are only as sensitive as the CLIP: the embedded model's encodes things and colors, but hardly blur and noise.

    Args:
        clip: the feature extractor.
        images: such as a model's, at least two.
        reference: such as real ones, at least two.
        batch: images at once.

    Returns:
        One row for each distance, with the columns distance (its name), value, images and reference (numbers of both).
    """
    one, other = (clip_features(clip, each, batch) for each in (images, reference))
    values = {
        "Fréchet distance of CLIP features": frechet_distance(one, other),
        "kernel distance of CLIP features": kernel_distance(one, other),
    }
    rows = [(name, value, len(one), len(other)) for name, value in values.items()]
    return pd.DataFrame(rows, columns=["distance", "value", "images", "reference"])


def _check(one: Tensor, other: Tensor) -> None:
    for name, each in (("one", one), ("other", other)):
        instance_of(each, Float[Tensor, "_ _"], name, "features such as clip_features returns")
    if min(len(one), len(other)) < 2 or one.shape[1] != other.shape[1]:
        raise InputError(
            "expected two sets of at least two features of the same length, "
            f"got {list(one.shape)} and {list(other.shape)}: pass more pictures, seen by one CLIP"
        )
    if not (one.isfinite().all() and other.isfinite().all()):
        raise InputError("expected finite features, got some that are NaN or infinite: compute in float32")
