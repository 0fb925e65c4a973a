"""Effects of edited attention on pictures: one layer at a time, and as guidance."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity
from tqdm.auto import tqdm

from seg4diff_tools.attention.edits import Edit, apply_edit, check_edit, perturbed_guidance
from seg4diff_tools.attention.patching import HeadEdit
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checks import check_layers
from seg4diff_tools.backbones.loading import as_backbone
from seg4diff_tools.backbones.sampling import as_list
from seg4diff_tools.errors import InputError, instance_of, list_of, require_columns
from seg4diff_tools.generation.clip import Clip, clip_scores
from seg4diff_tools.generation.encoders import ImageEncoder, as_encoder
from seg4diff_tools.indices import as_int


@dataclass(frozen=True, eq=False)
class Effects:
    """Scores of edited pictures, and the pictures.

    Attributes:
        table: one row for each setting and prompt.
        pictures: for each setting, one picture for each prompt. The key is the layer (None for unedited pictures), or
            for guidance (layer, scale, guidance_scale).
    """

    table: pd.DataFrame
    pictures: Mapping[Any, list[Image]]


def layer_effects(
    backbone: Backbone,
    clip: Clip,
    prompts: Sequence[str],
    edit: Edit | HeadEdit,
    layers: int | Sequence[int] | str | None = None,
    *,
    encoder: ImageEncoder | str | Path | None = None,
    steps: int = 28,
    guidance_scale: float | None = None,
    batch: int = 8,
    progress: bool = True,
) -> Effects:
    """Generate the same pictures with the attention of one layer edited, for each layer.

    Args:
        backbone: the model.
        clip: scores the pictures.
        prompts: one picture each; the prompt's index is the seed.
        edit: such as `blur()`, or `ablate()` of all heads.
        layers: 0-based; "double" for the double-stream blocks, FLUX's in the paper; None for all.
        encoder: for a further similarity: from `load_image_encoder`, or its name ("facebook/dinov2-base"); or None.
        steps: of sampling.
        guidance_scale: None for the backbone's own.
        batch: pictures at once.
        progress: show a progress bar.

    Returns:
        A row for each layer and prompt, after those of the unedited pictures, whose layer is missing. Columns: layer,
        prompt (its index), CLIP-I (cosine with the unedited picture's embedding), CLIP-T (CLIPScore with the prompt),
        features (cosine with the unedited picture's CLIP patch features, mean over patches), and with an encoder one of
        its name (cosine of its vectors).

    Raises:
        InputError: a layer out of range, or arguments of another kind.
        CheckpointError: an encoder that cannot be loaded.

    Source: Seg4Diff, arXiv 2509.18096, figures 5, 18, 20 and 23, whose third measure is DINO.
    """
    prompts = _checked(clip, prompts, edit)
    backbone, texts = as_backbone(backbone), clip.embed_texts(prompts)
    wanted = [None, *check_layers(backbone, layers)]
    judge = None if encoder is None else as_encoder(encoder)
    drawn: dict[str, Any] = {"steps": steps, "seed": list(range(len(prompts))), "batch": batch, "progress": False}
    tables, pictures = [], {}
    plain: dict[str, Tensor] = {}
    for layer in tqdm(wanted, unit="layer", disable=not progress, desc=edit.name):
        with nullcontext() if layer is None else apply_edit(backbone, edit, layer):
            made = pictures[layer] = backbone.generate(prompts, guidance_scale=guidance_scale, **drawn)
        vectors = {"CLIP-I": clip.embed_images(made), "features": clip.embed_patches(made)}
        if judge is not None:
            vectors[judge.name] = judge.embed(made)
        plain = plain or vectors
        likeness = {name: cosine_similarity(own, plain[name], dim=-1) for name, own in vectors.items()}
        scores = {
            "layer": pd.array([layer] * len(prompts), dtype="Int64"),
            "prompt": range(len(prompts)),
            "CLIP-I": likeness.pop("CLIP-I"),
            "CLIP-T": clip_scores(vectors["CLIP-I"], texts),
            "features": likeness.pop("features").mean(dim=1),
        }
        tables.append(pd.DataFrame(scores | likeness))
    return Effects(pd.concat(tables, ignore_index=True), pictures)


def guidance_effects(
    backbone: Backbone,
    clip: Clip,
    prompts: Sequence[str],
    edit: Edit | HeadEdit,
    layers: int | Sequence[int] | str | None,
    scales: Sequence[float],
    guidance_scales: Sequence[float] = (1.0,),
    *,
    steps: int = 28,
    batch: int = 8,
    progress: bool = True,
) -> Effects:
    """Generate the same pictures with perturbed attention guidance, over layers, scales and guidance scales.

    Args:
        backbone: the model.
        clip, prompts: as for `layer_effects`.
        edit: the perturbation to guide away from.
        layers: 0-based; one is perturbed at a time; "double" for the double-stream blocks; None for all.
        scales: of the perturbed guidance; 0 is none.
        guidance_scales: of classifier-free guidance; 1 is none.
        steps: of sampling.
        batch: pictures at once.
        progress: show a progress bar.

    Returns:
        Columns layer, scale, guidance_scale, forwards (per picture and step), prompt (its index) and CLIP-T (CLIPScore
        with the prompt). Scale 0 is generated once, and repeated in the table for every layer.

    Raises:
        InputError: a layer or scale out of range, or arguments of another kind.

    Source: Seg4Diff, arXiv 2509.18096, figures 6 and 32.
    """
    prompts = _checked(clip, prompts, edit)
    backbone, texts = as_backbone(backbone), clip.embed_texts(prompts)
    wanted = check_layers(backbone, layers)
    scales, guidance_scales = _scales(scales, "scales"), _scales(guidance_scales, "guidance_scales")
    drawn: dict[str, Any] = {"steps": steps, "seed": list(range(len(prompts))), "batch": batch, "progress": False}
    tables: list[pd.DataFrame] = []
    pictures: dict[Any, list[Image]] = {}
    settings = list(product(guidance_scales, scales, wanted))
    for cfg, scale, layer in tqdm(settings, unit="setting", disable=not progress, desc=edit.name):
        if scale == 0 and layer != wanted[0]:
            made = pictures[wanted[0], scale, cfg]
        else:
            with perturbed_guidance(backbone, edit, layer, scale) if scale else nullcontext():
                made = backbone.generate(prompts, guidance_scale=cfg, **drawn)
        setting = {"layer": layer, "scale": scale, "guidance_scale": cfg, "forwards": 1 + (cfg > 1) + (scale > 0)}
        scores = {"prompt": range(len(prompts)), "CLIP-T": clip_scores(clip.embed_images(made), texts)}
        tables.append(pd.DataFrame(setting | scores))
        pictures[layer, scale, cfg] = made
    return Effects(pd.concat(tables, ignore_index=True), pictures)


def resampled(
    table: pd.DataFrame, score: str, by: str | Sequence[str] = "layer", *, draws: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Return bootstrap means: averages over prompts drawn with replacement, for the uncertainty of means and rankings.

    Args:
        table: of `layer_effects` or `guidance_effects`: a row for each setting and prompt.
        score: column of the values.
        by: column, or columns, that identify a setting.
        draws: number of draws.
        seed: of the draws.

    Returns:
        A row for each draw and a column for each setting. All settings of a row have the same prompts, so that columns
        can be subtracted and compared.

    Raises:
        InputError: a missing column, or several rows for a setting and prompt.
    """
    settings = [by] if isinstance(by, str) else list_of(by, str, "by", "by=['layer']", "names of columns")
    require_columns(table, ["prompt", score, *settings], numeric=[score])
    if table.duplicated(["prompt", *settings]).any():
        raise InputError(f"expected one row for each prompt and {by!r}, got several: pass by= as all that differs")
    draws, seed = as_int(draws, "draws", 1), as_int(seed, "seed", 0)
    values = table.pivot(index="prompt", columns=by, values=score)
    chosen = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    return pd.DataFrame(values.to_numpy()[chosen].mean(axis=1), columns=values.columns)


def mean_intervals(
    table: pd.DataFrame,
    score: str,
    by: str | Sequence[str] = "layer",
    *,
    unit: str = "prompt",
    draws: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return means with 95 % bootstrap intervals over prompts or images, each drawn with all of its rows.

    Args:
        table: a row for each value.
        score: column of the values.
        by: column, or columns, that identify a setting.
        unit: column of what is drawn with replacement, such as "prompt" or "image".
        draws: number of draws.
        seed: of the draws.

    Returns:
        A row for each setting: its columns, the mean under the score's name, low, high, and units (their number). A
        mean is taken over units, and within a unit over its rows.

    Raises:
        InputError: a missing column.
    """
    settings = [by] if isinstance(by, str) else list_of(by, str, "by", "by=['layer']", "names of columns")
    require_columns(table, [unit, score, *settings], numeric=[score])
    draws, seed = as_int(draws, "draws", 1), as_int(seed, "seed", 0)
    rows = []
    for names, group in table.groupby(settings, sort=False):
        values = group.groupby(unit)[score].mean().to_numpy(float)
        chosen = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
        low, high = np.quantile(values[chosen].mean(axis=1), [0.025, 0.975])
        rows.append((*names, values.mean(), low, high, len(values)))
    return pd.DataFrame(rows, columns=[*settings, score, "low", "high", "units"])


def _checked(clip: Any, prompts: Any, edit: Any) -> list[str]:
    """Check CLIP and edit; return the prompts as a list."""
    check_edit(edit)
    instance_of(clip, Clip, "clip", "load_clip(...)")
    return list_of(prompts, str, "prompts", "prompts=['a cat']", "texts")


def _scales(scales: Any, name: str) -> list[float]:
    """Return scales as a list of numbers of 0 or more, or raise an InputError."""
    found = as_list(scales, name, "[2.0]")
    if not all(isinstance(scale, Real) and 0 <= float(scale) < np.inf for scale in found):
        raise InputError(f"expected {name} of 0 or more, got {found}: pass {name}=[2.0]")
    return found
