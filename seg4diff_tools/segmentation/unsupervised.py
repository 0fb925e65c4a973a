"""Segmentation without words: the pads of an empty prompt group the image (Seg4Diff, Fig 9b and Table 2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checks import check_layers
from seg4diff_tools.errors import InputError
from seg4diff_tools.images import Fit, ImageLike
from seg4diff_tools.prompts import Kind, Prompt
from seg4diff_tools.segmentation import masks
from seg4diff_tools.segmentation.segment import open_framed

THRESHOLD = 0.035
"""Of the released configuration, which the released evaluation does not read: its class sets 0.1."""


@dataclass(frozen=True, eq=False)
class Grouping:
    """Groups of image places that were found without a word.

    Attributes:
        label_map: number of the group at each pixel, in the image's own size (with fit="crop" of its center).
        proposals: distribution over image tokens of each group, dims (group, y, x).
        token_maps: mean over heads of what image tokens give to each text token, dims (token, y, x).
        groups: the group of each text token.
        settings: what made it.
    """

    label_map: Int[np.ndarray, "y x"]
    proposals: xr.DataArray
    token_maps: xr.DataArray
    groups: Int[np.ndarray, " token"]
    settings: Mapping[str, Any]


def group(
    backbone: Backbone,
    image: ImageLike,
    layer: int | Literal["expert"] = "expert",
    steps_from_end: int = 8,
    steps: int = 28,
    *,
    threshold: float = THRESHOLD,
    rounds: int = 3,
    merging: masks.Merging = "published",
    prompt: str = "",
    kinds: Sequence[Kind] = ("pad",),
    fit: Fit = "resize",
    seed: int = 0,
    zero_tokens: int = 77,
) -> Grouping:
    """Groups the places of an image by the text tokens that they attend to; no class name is needed.

    Args:
        backbone: the model.
        image: one image of any size.
        layer: 0-based, or "expert".
        steps_from_end: noise level; 8 of 28 is the paper's.
        steps: length of the schedule.
        threshold: see `masks.merge_maps`.
        rounds: of merging.
        merging: "published" or "released", as the paper's code does: see `masks.merge_maps`.
        prompt: the empty one in the paper.
        kinds: text tokens whose maps are merged; pads in the paper.
        fit: "resize" or "crop", as in `segment`.
        seed: of the noise.
        zero_tokens: zero vectors that stand for T5's tokens.

    Raises:
        InputError: an unreadable image, tokens that the prompt does not have, or a layer or step out of range.

    Source: Seg4Diff, arXiv 2509.18096, section 4.3.
    """
    picture, frame, size, centers = open_framed(backbone, image, fit)
    (layer,) = check_layers(backbone, [layer])
    encoded = backbone.encode_prompt(prompt, zero_tokens=zero_tokens)
    tokens = encoded.indices(*kinds)
    latents = backbone.encode_image(picture, fit=fit)
    maps = read_token_maps(backbone, latents, encoded, [layer], tokens, steps_from_end, steps, seed)[0, 0]
    proposals, groups = masks.merge_maps(maps, threshold, rounds, merging)
    settings = {
        "model": backbone.name,
        "layer": layer,
        "steps_from_end": steps_from_end,
        "steps": steps,
        "threshold": threshold,
        "rounds": rounds,
        "merging": merging,
        "prompt": prompt,
        "kinds": tuple(kinds),
        "fit": fit,
        "frame": frame,
        "seed": seed,
        "zero_tokens": zero_tokens,
        "protocol": "unsupervised, greedy merging of token maps (Seg4Diff, Table 2)",
    }
    return Grouping(
        label_map=masks.label_map(proposals, size).cpu().numpy(),
        proposals=xr.DataArray(
            proposals.cpu().numpy(), {"group": range(len(proposals)), **centers}, ("group", "y", "x"), name="proposals"
        ),
        token_maps=xr.DataArray(
            maps.cpu().numpy(), {"token": list(tokens), **centers}, ("token", "y", "x"), name="i2t"
        ),
        groups=groups.numpy(),
        settings=MappingProxyType(settings),
    )


def read_token_maps(
    backbone: Backbone,
    latents: Float[Tensor, "image channel row column"],
    prompt: Prompt,
    layers: Sequence[int],
    tokens: Sequence[int],
    steps_from_end: int = 8,
    steps: int = 28,
    seed: int = 0,
) -> Float[Tensor, "image layer token y x"]:
    """What image tokens give to some text tokens of one prompt, mean over heads; one forward reads all layers.

    Args:
        backbone: the model.
        latents: encoded images, without noise.
        prompt: encoded, the same for all images.
        layers: 0-based; the forward stops in the last one.
        tokens: positions in the text.
        steps_from_end, steps, seed: as in `group`.

    Raises:
        InputError: no tokens, or as in `Backbone.add_noise`.
    """
    if len(tokens) == 0:
        raise InputError(
            f"expected text tokens to make maps of, the prompt '{prompt.text}' has none of the wanted kinds"
        )
    found: dict[int, Tensor] = {}

    def store(call: JointAttention) -> None:
        found[call.layer] = call.head_mean("i2t", text=tokens).mT.unflatten(-1, backbone.token_grid(latents))

    noisy, timestep = backbone.add_noise(latents, steps_from_end, steps, seed)
    with intercept(backbone.transformer, store, layers=layers, stop_after=max(layers)):
        backbone.predict_velocity(noisy, timestep, prompt)
    return torch.stack([found[layer] for layer in layers], dim=1).float()
