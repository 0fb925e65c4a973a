"""Quality of a small model trained on scenes: segmentation by its attention, pictures, VAE and CLIP.

The layer and step are chosen on separate scenes; every reported number is from other scenes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL.Image import Image

from seg4diff_tools._runs import as_path
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.caching import model_fingerprint
from seg4diff_tools.errors import instance_of, named_extra
from seg4diff_tools.evaluation import SCORES, layer_step_sweep
from seg4diff_tools.generation.clip import Clip, clip_scores, retrieval_accuracy
from seg4diff_tools.indices import as_float, as_int
from seg4diff_tools.scenes import Scene, SceneConfig, Scenes, scene
from seg4diff_tools.scenes.drawings import concepts
from seg4diff_tools.scenes.planning import check_config
from seg4diff_tools.segmentation.options import OpenVocabulary

with named_extra():
    from torchmetrics.functional.image import peak_signal_noise_ratio

PAPER_STEP = 8
"""The paper's step for segmentation, from the end of 28."""
SEARCH_STEPS = (2, 5, 8, 11, 14, 17, 20)
SEARCH_FROM = 10_000
"""Index of the first test scene for the choice of layer and step; scores are from scenes before it."""


@dataclass(frozen=True, eq=False)
class Quality:
    """Results of `measure`.

    Attributes:
        layer, steps_from_end: with the best object mIoU on the search scenes.
        search: scores at every layer and step on the search scenes.
        layers: scores at every layer on the test scenes, at the paper's step and the best one.
        scores: scores at the chosen layer, at both steps; `scenes` is "test", "test-style" (a drawing style not in
            training) or "novel" (concepts not in training); `protocol` as for `evaluate`.
        pictures: CLIPScores, retrieval accuracy of the CLIP and PSNR of the VAE, with the number of images of each.
    """

    layer: int
    steps_from_end: int
    search: pd.DataFrame
    layers: pd.DataFrame
    scores: pd.DataFrame
    pictures: dict[str, int | float]

    def to_dict(self) -> dict[str, Any]:
        """Return all results for a JSON file, scores rounded to four digits."""
        rounded = {name: getattr(self, name).drop(columns="model").round(4) for name in ("search", "layers", "scores")}
        tables = {name: table.to_dict("records") for name, table in rounded.items()}
        pictures = {name: round(value, 4) for name, value in self.pictures.items()}
        return {"layer": self.layer, "steps_from_end": self.steps_from_end, **tables, "pictures": pictures}


def measure(
    backbone: Backbone,
    clip: Clip,
    config: SceneConfig,
    *,
    scenes: int = 500,
    search_scenes: int = 100,
    search_steps: Sequence[int] = SEARCH_STEPS,
    generated: int = 64,
    guidance_scale: float | None = None,
    steps: int = 28,
    out: str | Path | None = None,
    batch: int = 8,
    progress: bool = True,
) -> Quality:
    """Measure a model on held-out scenes.

    Args:
        backbone: the model.
        clip: its CLIP, which scores pictures.
        config: of its training scenes.
        scenes: number of test scenes of each kind.
        search_scenes: number of further test scenes for the choice of layer and step, by object mIoU.
        search_steps: steps from the end to choose from.
        generated: number of captions of test scenes to generate pictures for.
        guidance_scale: of these pictures; None for the backbone's own.
        steps: of sampling, and of the schedule for steps from the end.
        out: folder for segmentation counts, from which a killed run resumes; several models may share it.
        batch: forwards at once.
        progress: show progress bars.

    Raises:
        InputError: fewer than two scenes, more pictures than scenes, or so many that they overlap the search scenes.
    """
    instance_of(clip, Clip, "clip", "load_clip(...)")
    check_config(config)
    scenes = as_int(scenes, "scenes", 2, SEARCH_FROM)
    generated, search_scenes = as_int(generated, "generated", 2, scenes), as_int(search_scenes, "search_scenes", 1)
    guidance_scale = None if guidance_scale is None else as_float(guidance_scale, "guidance_scale")
    folder = None if out is None else as_path(out, "out") / _key(backbone, config, steps)
    shared = OpenVocabulary(steps=steps)

    def sweep(name: str, samples: Sequence[Scene], layers: Sequence[int] | None, at: Sequence[int], **options: Any):
        where = (
            None if folder is None else folder / "-".join([name, *map(str, layers or ("layers",)), "at", *map(str, at)])
        )
        swept = layer_step_sweep(
            backbone,
            samples,
            shared,
            layers=layers,
            steps_from_end=at,
            out=where,
            batch=batch,
            progress=progress,
            **options,
        )
        return swept.table()[["model", "protocol", "layer", "steps_from_end", *SCORES, "images"]]

    chosen_on = [scene("test", SEARCH_FROM + index, config) for index in range(search_scenes)]
    search = sweep("search", chosen_on, None, search_steps)
    best = search.loc[search["object_mIoU"].idxmax()]
    layer, step = int(best["layer"]), int(best["steps_from_end"])
    reported = sorted({PAPER_STEP, step})
    test = Scenes("test", scenes, config)
    layers = sweep("test", test, None, reported)
    vocabulary = [*config.concepts, *config.backgrounds]
    parts = {
        "test": layers[layers["layer"] == layer],
        "test-style": sweep("style", Scenes("test-style", scenes, config), [layer], reported),
        "test, whole vocabulary": sweep("vocabulary", test, [layer], reported, vocabulary=vocabulary),
    }
    if novel := tuple(name for name in concepts() if name not in config.concepts):
        parts["novel"] = sweep("novel", Scenes("test", scenes, replace(config, concepts=novel)), [layer], reported)
    scores = pd.concat([part.assign(scenes=name.split(",")[0]) for name, part in parts.items()], ignore_index=True)
    scores = scores[["model", "scenes", "protocol", "layer", "steps_from_end", *SCORES, "images"]]
    pictures = _pictures(backbone, clip, test, generated, guidance_scale, steps, batch, progress)
    return Quality(layer, step, search, layers, scores, pictures)


def _key(backbone: Backbone, config: SceneConfig, steps: int) -> str:
    """Return a key of the settings of a folder of counts."""
    parts = (backbone.name, model_fingerprint(backbone), backbone.dtype, config, steps)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _pictures(
    backbone: Backbone,
    clip: Clip,
    test: Sequence[Scene],
    generated: int,
    guidance_scale: float | None,
    steps: int,
    batch: int,
    progress: bool,
) -> dict[str, int | float]:
    captions = [sample.caption for sample in test]
    images = torch.cat([clip.embed_images([s.image for s in part]) for part in _batches(list(test), 64)])
    texts = torch.cat([clip.embed_texts(part) for part in _batches(captions, 64)])
    drawn: dict[str, Any] = {"steps": steps, "guidance_scale": guidance_scale, "batch": batch, "progress": progress}
    made = backbone.generate(captions[:generated], seed=list(range(generated)), **drawn)
    reals = _batches([sample.image for sample in test[:generated]], batch)
    psnr = [_psnr(backbone.decode(backbone.encode_image(real)), real) for real in reals]
    pictured = torch.cat([clip.embed_images(part) for part in _batches(made, 64)])
    real, asked, group = images[:generated], texts[:generated], min(64, len(captions))
    # every picture with the caption of the previous one
    return {
        "generated": generated,
        "CLIPScore_generated": clip_scores(pictured, asked).mean().item(),
        "CLIPScore_generated_shuffled": clip_scores(pictured, asked.roll(1, 0)).mean().item(),
        "CLIPScore_scenes": clip_scores(real, asked).mean().item(),
        "CLIPScore_scenes_shuffled": clip_scores(real, asked.roll(1, 0)).mean().item(),
        "retrieval_top1": retrieval_accuracy(images, texts, captions, group),
        "retrieval_group": group,
        "VAE_PSNR": torch.cat(psnr).mean().item(),
    }


def _batches(items: list, size: int) -> list[list]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _psnr(decoded: Sequence[Image], images: Sequence[np.ndarray]) -> torch.Tensor:
    """Return the peak signal-to-noise ratio of each image in decibels."""
    pair = [torch.from_numpy(np.stack([np.asarray(image) for image in each])).float() for each in (decoded, images)]
    return peak_signal_noise_ratio(*pair, data_range=255.0, reduction="none", dim=(1, 2, 3))
