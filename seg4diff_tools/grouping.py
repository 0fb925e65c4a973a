"""Segmentation without words: the pads of an empty prompt group the image (Seg4Diff, Fig 9b and Table 2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from seg4diff_tools import masks, metrics
from seg4diff_tools.attention import intercept
from seg4diff_tools.backbones import Backbone
from seg4diff_tools.counts import opened
from seg4diff_tools.datasets import Sample
from seg4diff_tools.errors import InputError
from seg4diff_tools.images import Fit, ImageLike
from seg4diff_tools.joint import JointAttention
from seg4diff_tools.prompts import Kind, Prompt
from seg4diff_tools.segmentation import check_layers, open_framed

THRESHOLD = 0.035
"""Of the released configuration, which the released evaluation does not read: its class sets 0.1."""

Matching = Literal["image", "rows"]


@dataclass(frozen=True, eq=False)
class Grouping:
    """Groups of image places that were found without a word.

    Attributes:
        label_map: number of the group at each pixel, in the image's own size (with fit="crop" of its centre).
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
    picture, frame, size, centres = open_framed(backbone, image, fit)
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
            proposals.cpu().numpy(), {"group": range(len(proposals)), **centres}, ("group", "y", "x"), name="proposals"
        ),
        token_maps=xr.DataArray(
            maps.cpu().numpy(), {"token": list(tokens), **centres}, ("token", "y", "x"), name="i2t"
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
        InputError: no tokens, or as in `Backbone.noised`.
    """
    if len(tokens) == 0:
        raise InputError(
            f"expected text tokens to make maps of, the prompt '{prompt.text}' has none of the wanted kinds"
        )
    found: dict[int, Tensor] = {}

    def store(call: JointAttention) -> None:
        found[call.layer] = call.head_mean("i2t", text=tokens).mT.unflatten(-1, backbone.token_grid(latents))

    noisy, timestep = backbone.noised(latents, steps_from_end, steps, seed)
    with intercept(backbone.transformer, store, layers=layers, stop_after=max(layers)):
        backbone.denoise(noisy, timestep, prompt)
    return torch.stack([found[layer] for layer in layers], dim=1).float()


def grouping_scores(
    backbone: Backbone,
    samples: Sequence[Sample],
    thresholds: Sequence[float],
    layers: Sequence[int] | None = None,
    *,
    steps_from_end: int = 8,
    steps: int = 28,
    merging: masks.Merging = "published",
    matching: Matching = "image",
    kinds: Sequence[Kind] = ("pad",),
    seed: int = 0,
    zero_tokens: int = 77,
    progress: bool = True,
) -> pd.DataFrame:
    """Scores of unsupervised grouping at several layers and thresholds.

    Each image's groups are given the names of the classes that they cover best, one group for each class; what is left
    over is wrong everywhere (`metrics.match`). `paper.RELEASED` has the choices of the paper's code.

    Args:
        backbone: the model.
        samples: images with label maps.
        thresholds: of merging.
        layers: 0-based; the expert if None.
        steps_from_end, steps, merging, kinds, seed, zero_tokens: as in `group`.
        matching: "image" matches groups and classes once for an image, as the paper says, "rows" in every row of pixels
            anew, as its released code does (`metrics.match_rows`).
        progress: show a progress bar.

    Returns:
        Columns layer, threshold, pACC, mACC, mIoU (from the confusion matrix of the whole set), groups (mean number for
        an image), images.

    Raises:
        InputError: another `merging` or `matching`, a label map that does not fit its image, or as `group`.

    Source: Seg4Diff, arXiv 2509.18096, table 2.
    """
    if matching not in ("image", "rows"):
        raise InputError(f"expected matching='image' or matching='rows', got {matching!r}")
    wanted = check_layers(backbone, ["expert"] if layers is None else list(layers))
    vocabulary = sorted({name for sample in samples for name in sample.class_names})
    classes = len(vocabulary)
    prompt = backbone.encode_prompt("", zero_tokens=zero_tokens)
    tokens = prompt.indices(*kinds)
    totals = torch.zeros(len(wanted), len(thresholds), classes + 1, classes + 1, dtype=torch.int64)
    counts = torch.zeros(len(wanted), len(thresholds))
    for index, sample in enumerate(tqdm(samples, unit="image", disable=not progress, desc=f"{backbone.name} grouping")):
        picture = opened(sample, index).picture
        target = metrics.true_classes(sample.label_map, sample.class_names, vocabulary)
        latents = backbone.encode_image(picture)
        maps = read_token_maps(backbone, latents, prompt, wanted, tokens, steps_from_end, steps, seed)[0].cpu()
        for i in range(len(wanted)):
            for j, threshold in enumerate(thresholds):
                proposals, _ = masks.merge_maps(maps[i], threshold, merging=merging)
                found = masks.label_map(proposals, tuple(target.shape))
                if matching == "image":
                    named = metrics.match(found, target, classes, ignore=-1)
                    totals[i, j] += metrics.confusion(named, target, classes + 1, ignore=-1)
                else:
                    totals[i, j] += metrics.match_rows(found, target, classes, ignore=-1)
                counts[i, j] += len(proposals)
    rows = [
        (
            layer,
            threshold,
            metrics.pixel_accuracy(totals[i, j]).item(),
            metrics.mean_accuracy(totals[i, j]).item(),
            metrics.miou(totals[i, j]).item(),
            (counts[i, j] / len(samples)).item(),
            len(samples),
        )
        for i, layer in enumerate(wanted)
        for j, threshold in enumerate(thresholds)
    ]
    return pd.DataFrame(rows, columns=["layer", "threshold", "pACC", "mACC", "mIoU", "groups", "images"])
