"""Features of the stream of image tokens that enters a block, before and after its adaptive layer norm (AdaLN)."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.errors import InputError
from seg4diff_tools.families import model_lock
from seg4diff_tools.families._private import add_hook
from seg4diff_tools.indices import as_indices, as_positive

ADALN = ("AdaLayerNormZero", "AdaLayerNormZeroSingle", "SD35AdaLayerNormZeroX")
"""Layer norms of diffusers that scale and shift their channels by timestep and pooled text."""


class Streams:
    """What enters the blocks of the forward that runs.

    Args:
        backbone: the model.
        layers: 0-based.
        discard: channels that are zero before the norm.

    Raises:
        InputError: blocks of another kind, or a channel that they lack.
    """

    def __init__(self, backbone: Backbone, layers: Sequence[int], discard: Sequence[int]) -> None:
        self._backbone = backbone
        self._norms = dict(zip(layers, _norms(backbone, layers), strict=True))
        width = next(iter(self._norms.values())).linear.in_features
        self._discard = as_indices(discard, "discard", int(width)) if len(discard) else []
        self._found: dict[int, dict[str, Tensor]] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keep what enters the blocks of each forward inside the `with`."""
        with ExitStack() as undo:
            undo.enter_context(model_lock(self._backbone.transformer).hold("features"))
            for layer, norm in self._norms.items():

                def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any, at: int = layer) -> None:
                    stream, *others = args
                    if self._discard:
                        stream = stream.clone()
                        stream[..., self._discard] = 0
                        # not module(...): this is no forward of the model
                        output = module.forward(stream, *others, **kwargs)
                    self._found[at] = {"stream": stream, "adaln": output[0]}

                undo.callback(add_hook(norm, keep, with_kwargs=True))
            yield

    def of(self, call: JointAttention, kind: str) -> Float[Tensor, "image token channel"]:
        """Return the features of image tokens in the block whose attention runs."""
        found = self._found[call.layer][kind]
        # single-stream blocks hold text and image tokens together, double-stream blocks the image, then references
        return found[:, call.image] if found.shape[1] == call.query.shape[2] else found[:, : call.image_tokens]


def _norms(backbone: Backbone, layers: Sequence[int]) -> list[Any]:
    """Return the norm at the start of each block."""
    blocks = [block for stack, _ in backbone.family.block_lists for block in getattr(backbone.transformer, stack)]
    norms = [getattr(blocks[layer], "norm1", getattr(blocks[layer], "norm", None)) for layer in layers]
    if any(type(norm).__name__ not in ADALN for norm in norms):
        raise InputError(
            f"expected kinds from query, key, value with the family {backbone.family.name}, whose blocks do not begin "
            "with an adaptive layer norm of their own, got stream or adaln: leave them out"
        )
    return norms


def massive_channels(features: Float[np.ndarray, "*places channel"], factor: float = 10.0) -> list[int]:
    """Return the channels whose mean absolute value exceeds that of the median channel many times, largest first.

    Args:
        features: of many tokens, such as the kind "stream" of `image_features` in one layer.
        factor: how many times.

    Source: massive activations of diffusion transformers, Gan et al., arXiv 2505.18584, which names one channel in
    Stable Diffusion 3.5 and two in FLUX.1 by eye.
    """
    factor, features = as_positive(factor, "factor"), np.asarray(features)
    if features.ndim < 2 or features.size == 0:
        raise InputError(f"expected features [token channel], got {features.shape}: take those of one layer and kind")
    sizes = np.abs(features.reshape(-1, features.shape[-1])).mean(0, dtype=np.float64)
    order, least = np.argsort(-sizes, kind="stable"), factor * np.median(sizes)
    return [int(channel) for channel in order if sizes[channel] > least]


def neighbor_agreement(
    features: Float[np.ndarray, "image y x channel"], classes: Int[np.ndarray, "image y x"]
) -> Float[np.ndarray, " image"]:
    """Return for each image how many of its tokens have a nearest token in the other images that is of their class.

    Args:
        features: of one layer and kind.
        classes: a number for each token that means the same in all images, such as from `token_labels`.

    Returns:
        Shares from 0 to 1. Nearest is the largest cosine.

    Raises:
        InputError: fewer than two images, or classes of other places.

    Source: after semantic correspondence with features of diffusion models, as in arXiv 2505.18584.
    """
    features, classes = np.asarray(features), np.asarray(classes)
    if features.ndim != 4 or len(features) < 2 or classes.shape != features.shape[:3]:
        raise InputError(
            f"expected features [image y x channel] of two images or more and classes [image y x], got "
            f"{features.shape} and {classes.shape}: take one layer and kind, and the class of each token"
        )
    flat = torch.nn.functional.normalize(torch.from_numpy(features).flatten(1, 2).float(), dim=-1)
    labels = torch.from_numpy(classes.reshape(len(classes), -1))
    shares = []
    for image, own in enumerate(flat):
        others = [other for other in range(len(flat)) if other != image]
        nearest = (own @ flat[others].flatten(0, 1).mT).argmax(1)
        shares.append((labels[others].flatten()[nearest] == labels[image]).double().mean().item())
    return np.array(shares)
