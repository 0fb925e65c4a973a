"""What editing the attention of a layer does to the pictures: one layer at a time, and as guidance."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from PIL.Image import Image
from torch.nn.functional import cosine_similarity
from tqdm.auto import tqdm

from seg4diff_tools.attention.edits import Edit, apply_edit, perturbed_guidance
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.errors import InputError
from seg4diff_tools.generation.clip import Clip, TextVectors, clip_scores


@dataclass(frozen=True, eq=False)
class Effects:
    """What was measured, and the pictures behind it.

    Attributes:
        table: one row for each setting and prompt.
        pictures: for each setting, one picture for each prompt. The key is the layer (None for the plain pictures), or
            for guidance (layer, scale, guidance_scale).
    """

    table: pd.DataFrame
    pictures: Mapping[Any, list[Image]]


def layer_effects(
    backbone: Backbone,
    clip: Clip,
    prompts: Sequence[str],
    edit: Edit,
    layers: Sequence[int] | None = None,
    *,
    steps: int = 28,
    guidance_scale: float | None = None,
    batch: int = 8,
    progress: bool = True,
) -> Effects:
    """Generates the same pictures with one layer's image-to-text attention edited, layer by layer.

    Args:
        backbone: the model.
        clip: judges the pictures.
        prompts: a picture of each; its number is its seed.
        edit: such as `edits.blur()`.
        layers: 0-based; None for all.
        steps: of sampling.
        guidance_scale: None for the backbone's own.
        batch: pictures at once.
        progress: show a progress bar.

    Returns:
        A row for each layer and prompt, and first those of the plain pictures, whose layer is missing. Columns: layer,
        prompt (its number), CLIP-I (cosine of the picture's embedding with that of the plain picture), CLIP-T
        (CLIPScore
        with the prompt), and features (cosine with the plain picture of CLIP's patch features, mean over places).

    Source: Seg4Diff, arXiv 2509.18096, figures 5, 18, 20 and 23, there with DINO for features.
    """
    wanted = [None, *(range(backbone.layers) if layers is None else layers)]
    texts, tables, pictures = _embed(clip, prompts), [], {}
    with tqdm(total=len(wanted) * len(prompts), unit="picture", disable=not progress, desc=edit.name) as bar:
        for layer in wanted:
            with nullcontext() if layer is None else apply_edit(backbone, edit, layer):
                pictures[layer] = _generate(backbone, prompts, steps, guidance_scale, batch, bar)
            vectors, patches = clip.embed_images(pictures[layer]), clip.embed_patches(pictures[layer])
            if layer is None:
                plain = vectors, patches
            scores = {
                "layer": pd.array([layer] * len(prompts), dtype="Int64"),
                "prompt": range(len(prompts)),
                "CLIP-I": cosine_similarity(vectors, plain[0]),
                "CLIP-T": clip_scores(vectors, texts),
                "features": cosine_similarity(patches, plain[1], dim=-1).mean(dim=1),
            }
            tables.append(pd.DataFrame(scores))
    return Effects(pd.concat(tables, ignore_index=True), pictures)


def guidance_effects(
    backbone: Backbone,
    clip: Clip,
    prompts: Sequence[str],
    edit: Edit,
    layers: Sequence[int],
    scales: Sequence[float],
    guidance_scales: Sequence[float] = (1.0,),
    *,
    steps: int = 28,
    batch: int = 8,
    progress: bool = True,
) -> Effects:
    """Generates the same pictures with perturbed guidance, over layers and scales, with and without classifier-free
    guidance.

    Args:
        backbone: the model.
        clip: judges the pictures.
        prompts: a picture of each; its number is its seed.
        edit: the perturbation to guide away from.
        layers: 0-based; one is perturbed at a time.
        scales: of the perturbed guidance; 0 is none.
        guidance_scales: of classifier-free guidance; 1 is none.
        steps: of sampling.
        batch: pictures at once.
        progress: show a progress bar.

    Returns:
        Columns layer, scale, guidance_scale, forwards (of one picture, for one step), prompt (its number) and CLIP-T
        (CLIPScore with the prompt). Scale 0 is generated once, and stands in the table for every layer.

    Source: Seg4Diff, arXiv 2509.18096, figures 6 and 32.
    """
    texts, tables, pictures = _embed(clip, prompts), [], {}
    settings = list(product(guidance_scales, scales, layers))
    unguided = guidance_scales if 0 in scales else ()
    runs = len(unguided) + sum(scale > 0 for _, scale, _ in settings)
    with tqdm(total=runs * len(prompts), unit="picture", disable=not progress, desc="guidance") as bar:
        plain = {cfg: _generate(backbone, prompts, steps, cfg, batch, bar) for cfg in unguided}
        for cfg, scale, layer in settings:
            if scale == 0:
                made = plain[cfg]
            else:
                with perturbed_guidance(backbone, edit, layer, scale):
                    made = _generate(backbone, prompts, steps, cfg, batch, bar)
            scores = {
                "layer": layer,
                "scale": scale,
                "guidance_scale": cfg,
                "forwards": 1 + (cfg > 1) + (scale > 0),
                "prompt": range(len(prompts)),
                "CLIP-T": clip_scores(clip.embed_images(made), texts),
            }
            tables.append(pd.DataFrame(scores))
            pictures[layer, scale, cfg] = made
    return Effects(pd.concat(tables, ignore_index=True), pictures)


def resampled(
    table: pd.DataFrame, score: str, by: str | Sequence[str] = "layer", *, draws: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Means over prompts that are drawn anew, with replacement: how sure a mean, a difference or a ranking is
    (bootstrap).

    Args:
        table: of `layer_effects` or `guidance_effects`: a row for each setting and prompt.
        score: column of the values.
        by: column, or columns, that tell settings apart.
        draws: how often prompts are drawn.
        seed: of the draws.

    Returns:
        A row for each draw and a column for each setting. All settings of a row have the same prompts, so that columns
        can be subtracted from each other and compared.
    """
    values = table.pivot(index="prompt", columns=by, values=score)
    chosen = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    return pd.DataFrame(values.to_numpy()[chosen].mean(axis=1), columns=values.columns)


def _embed(clip: Clip, prompts: Sequence[str]) -> TextVectors:
    if isinstance(prompts, str) or not prompts:
        raise InputError(f"expected a list of prompts, got {prompts!r}")
    return clip.embed_texts(list(prompts))


def _generate(
    backbone: Backbone, prompts: Sequence[str], steps: int, guidance_scale: float | None, batch: int, bar: tqdm
) -> list[Image]:
    made: list[Image] = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        seeds = list(range(start, start + len(part)))
        made += backbone.generate(part, steps=steps, guidance_scale=guidance_scale, seed=seeds, progress=False)
        bar.update(len(part))
    return made
