"""The model card of a small trained model: `model_card.json`, `README.md` and `gallery.png`."""

import csv
import io
import json
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from matplotlib.figure import Figure

from seg4diff_tools._runs import as_path
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.errors import CheckpointError, instance_of
from seg4diff_tools.images import encode
from seg4diff_tools.pretrain.config import EARLIER, RunConfig
from seg4diff_tools.pretrain.report import PAPER_STEP, Quality
from seg4diff_tools.pretrain.stages import EMPTY, PLAIN, STAGES
from seg4diff_tools.scenes import SceneConfig

GALLERY = (
    "a cat on grass",
    "a red car on road",
    "a penguin in snow",
    "a fish in water",
    "a rocket under a night sky",
    "a guitar on wood",
    "an elephant on sand",
    "a house on grass",
    "a pizza on brick",
    "a blue balloon on grass",
    "a pineapple on wood",
    "a clock on brick",
    "a dog left of a tree on grass",
    "a bus and a car on road",
    "a panda above a mushroom in snow",
    "two apples on wood",
    "a frog and a sunflower on grass",
    "a turtle, a cactus and an umbrella on sand",
)
"""Prompts of the gallery; picture i has seed i."""
GALLERY_BYTES = 400_000
LAST_ROWS = 25
"""Number of last log rows (one small batch each) over which losses are averaged."""
GOALS = {"test": 0.60, "test-style": 0.40}
"""Target object mIoU with prompts of the present classes."""

_SCORES = {"object_mIoU": "object mIoU", "background_mIoU": "background mIoU", "mIoU": "mIoU", "pACC": "pixel accuracy"}


def write_card(
    folder: str | Path,
    backbone: Backbone,
    quality: Quality,
    run: str | Path,
    *,
    guidance_scale: float,
    compute: str = "",
) -> dict[str, Any]:
    """Write `model_card.json`, `README.md` and `gallery.png` into a model folder.

    Args:
        folder: of the exported model.
        backbone: the model, for the gallery.
        quality: from `report.measure`.
        run: folder of its pretraining run, for data, sizes, steps and losses.
        guidance_scale: default of `Backbone.generate` for this model.
        compute: hardware and time of its training, such as "2 CPU cores, 3 hours".

    Returns:
        The content of `model_card.json`.

    Raises:
        CheckpointError: no run, or a part without a log.
    """
    folder, run = as_path(folder, "folder"), as_path(run, "run")
    instance_of(quality, Quality, "quality", "what report.measure returns")
    config = RunConfig.load(run)
    card = {
        "name": folder.resolve().name,
        "architecture": "StableDiffusion3Pipeline",
        "expert_layer": quality.layer,
        "expert_steps_from_end": quality.steps_from_end,
        "guidance_scale": guidance_scale,
        "image_size": config.model.scenes.size,
        "parameters": _parameters(backbone),
        "data": asdict(config.model.scenes) | {"drawings": _drawings()},
        "training": {"compute": compute} | _stages(run, config),
        "measured": quality.to_dict(),
        "limits": _limits(config.model.scenes, quality),
    }
    (folder / "gallery.png").write_bytes(gallery(backbone, guidance_scale))
    (folder / "model_card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_readme(card, quality), encoding="utf-8")
    return card


def gallery(backbone: Backbone, guidance_scale: float, *, steps: int = 28, columns: int = 6) -> bytes:
    """Return pictures for the prompts and seeds of `GALLERY`, as a PNG file of at most `GALLERY_BYTES`."""
    settings: dict[str, Any] = {"steps": steps, "guidance_scale": guidance_scale, "batch": columns, "progress": False}
    pictures = backbone.generate(GALLERY, seed=list(range(len(GALLERY))), **settings)
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(1.75 * columns, 2.1 * rows), dpi=80, layout="constrained")
    for axes, picture, prompt in zip(figure.subplots(rows, columns).flat, pictures, GALLERY, strict=False):
        axes.imshow(picture, interpolation="bicubic")
        axes.set_title(textwrap.fill(prompt, 24), fontsize=8)
    for axes in figure.axes:
        axes.set_axis_off()
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    whole = PIL.Image.open(drawn).convert("RGB")
    for colors in (256, 96, 32, 8):
        packed = encode(whole.quantize(colors), optimize=True)
        if len(packed) <= GALLERY_BYTES:
            break
    return packed


def _parameters(backbone: Backbone) -> dict[str, int]:
    parts = {name: part for name, part in backbone.pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}


def _drawings() -> list[dict[str, Any]]:
    index = files("seg4diff_tools") / "scenes" / "sprites" / "sprites.json"
    return list(json.loads(index.read_text(encoding="utf-8"))["styles"].values())


def _stages(run: Path, config: RunConfig) -> dict[str, dict[str, Any]]:
    """Return the training of each part: that of the model from which the run started, and that of the run."""
    path = run / EARLIER
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name in STAGES:
        if name in found and not _log(run, name).is_file():
            continue
        entry = name
        while entry in found:
            entry += ", further"
        found[entry] = _stage(run, name, config)
    return found


def _log(run: Path, name: str) -> Path:
    return run / name / "log.csv"


def _stage(run: Path, name: str, config: RunConfig) -> dict[str, Any]:
    """Return the settings, progress and last losses of one part's training."""
    path = _log(run, name)
    if not path.is_file():
        raise CheckpointError(f"expected the log of a finished part, got no {path}: run `pretrain {name}` first")
    with path.open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    if not rows:
        raise CheckpointError(f"expected the log of a finished part, got an empty {path}: run `pretrain {name}` again")
    settings, last = getattr(config, name), rows[-LAST_ROWS:]
    losses = [key for key in rows[-1] if key not in ("step", "images", "rate", "gradient")]
    return {
        "steps": int(rows[-1]["step"]),
        "images": int(rows[-1]["images"]),
        "batch": settings.batch,
        "learning_rate": settings.learning_rate,
        "muon_learning_rate": settings.muon_learning_rate,
        "losses": {key: round(sum(row[key] for row in last) / len(last), 4) for key in losses},
    }


def _limits(config: SceneConfig, quality: Quality) -> list[str]:
    nouns, backgrounds, side = len(config.concepts), len(config.backgrounds), config.size
    limits = [
        (
            "It is not Stable Diffusion 3 and shares no weight with it; architecture and file layout are the same, with "
            "RMS norm of queries and keys, which Stable Diffusion 3.5 has and 3 medium has not."
        ),
        f"It knows {nouns} nouns and {backgrounds} backgrounds as flat drawings of {side} x {side} pixels, no photographs.",
        "It has never seen a picture of any other word.",
        "What its attention shows need not hold for large models trained on photographs.",
        "CLIPScore is judged by the model's own CLIP, trained on such scenes: do not compare it with other models'.",
        "A prompt of the classes present tells the model what the picture shows; the whole vocabulary is the harder test.",
    ]
    for name, goal in GOALS.items():
        reached = _row(quality, name, "present", quality.steps_from_end)["object_mIoU"]
        if reached < goal:
            limits.append(
                f"Object mIoU on {name} scenes is {100 * reached:.1f}, below the {100 * goal:.0f} that was aimed at; "
                "training can go on from a run's checkpoints."
            )
    return limits


def _row(quality: Quality, scenes: str, protocol: str, step: int) -> Mapping[str, Any]:
    scores = quality.scores
    chosen = scores[
        (scores["scenes"] == scenes) & (scores["protocol"] == protocol) & (scores["steps_from_end"] == step)
    ]
    return chosen.iloc[0].to_dict()


def _table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _scores_table(quality: Quality) -> str:
    told = {"present": "the classes present", "full": "the whole vocabulary"}
    names = {"test": "unseen scenes", "test-style": "drawings of a held-out style", "novel": "things never trained on"}
    rows = [
        [names[row["scenes"]], told[row["protocol"]], row["layer"], f"{row['steps_from_end']} of 28"]
        + [f"{100 * row[score]:.1f}" for score in _SCORES]
        + [row["images"]]
        for row in quality.scores.to_dict("records")
    ]
    return _table(["scenes", "prompt names", "layer", "steps from the end", *_SCORES.values(), "images"], rows)


def _layers_table(quality: Quality) -> str:
    at = quality.layers[quality.layers["steps_from_end"] == PAPER_STEP].sort_values("layer")
    rows = [[row["layer"], *(f"{100 * row[score]:.1f}" for score in _SCORES)] for row in at.to_dict("records")]
    return _table(["layer", *_SCORES.values()], rows)


def _readme(card: dict[str, Any], quality: Quality) -> str:
    data, training, pictures = card["data"], card["training"], quality.pictures
    stages = [
        [
            name,
            stage["steps"],
            stage["batch"],
            f"{stage['images']:,}",
            ", ".join(f"{loss} {value:g}" for loss, value in stage["losses"].items()),
        ]
        for name, stage in training.items()
        if name != "compute"
    ]
    drawings = [
        [d["title"], d["author"], d["license"], d["source"], "testing only" if d["held_out"] else "training"]
        for d in data["drawings"]
    ]
    chosen_on = int(quality.search["images"].iloc[0])
    millions = ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in card["parameters"].items())
    size, shape = card["image_size"], "{} to {}".format(*data["objects"])
    limits = "\n".join(f"- {limit}" for limit in card["limits"])
    score = {name: f"{value:.3f}" for name, value in pictures.items() if name.startswith("CLIPScore")}
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
language: en
tags: [mm-dit, attention, segmentation, synthetic, tiny]
---

# {card["name"]}: a very small text-to-image model for looking into

A toy in the architecture of Stable Diffusion 3, trained from nothing on synthetic scenes of emoji drawings. It is **not**
Stable Diffusion 3, is not made or endorsed by Stability AI, and holds none of its weights. It exists so that the
attention of a multimodal diffusion transformer can be recorded, measured and used on a laptop. The transformer was
trained by flow matching alone, and no mask is part of any loss of its parts: what its attention segments has emerged.

![Generated pictures, one for each of {len(GALLERY)} prompts, none picked](gallery.png)

Every prompt of the gallery was drawn once, with its number as the seed and guidance {card["guidance_scale"]:g}.

```python
from diffusers import StableDiffusion3Pipeline

pipe = StableDiffusion3Pipeline.from_pretrained("path/to/{card["name"]}", text_encoder_3=None, tokenizer_3=None)
pipe("a red car on road", guidance_scale={card["guidance_scale"]:g}).images[0]
```

There is no T5, and one small CLIP text encoder serves as both of SD3's two. Images are {size} x {size} pixels. Parameters:
{millions}.
The folder `clip` holds the whole CLIP with its image tower, for CLIPScore.

## Segmentation by its attention

Image-to-text attention, mean over heads, argmax over classes, scores in percent. Layer {card["expert_layer"]} at {card["expert_steps_from_end"]} steps from the end
had the best object mIoU on {chosen_on} scenes that count in no table here. {PAPER_STEP} steps from the end is the paper's choice
(Seg4Diff, arXiv 2509.18096), whose models and images are others.

{_scores_table(quality)}

All layers on unseen scenes, classes present, {PAPER_STEP} steps from the end:

{_layers_table(quality)}

## Pictures

- CLIPScore of {pictures["generated"]} pictures generated for captions of unseen scenes: {score["CLIPScore_generated"]} with the own caption,
  {score["CLIPScore_generated_shuffled"]} with another picture's. Real scenes: {score["CLIPScore_scenes"]} and {score["CLIPScore_scenes_shuffled"]}.
- The CLIP finds the scene of a caption among {pictures["retrieval_group"]} in {100 * pictures["retrieval_top1"]:.1f} % of cases.
- The VAE restores unseen scenes with a PSNR of {pictures["VAE_PSNR"]:.1f} dB.

## Training

{_table(["part", "steps", "batch", "images", f"losses (mean of the last {LAST_ROWS} logged batches)"], stages)}

Compute: {training["compute"] or "not recorded"}. Muon for the matrices of the transformer's attention and MLPs, AdamW for all else; moving averages of
the weights. Prompts of the transformer: {1 - PLAIN - EMPTY:.0%} captions, {PLAIN:.0%} class names alone, {EMPTY:.0%} empty.

## Data

Scenes are composed on the fly and need no download: {shape} objects over a procedural texture, in {size} x {size} pixels.

- Things: {", ".join(data["concepts"])}.
- Backgrounds: {", ".join(data["backgrounds"])}.

{_table(["drawings", "author", "licence", "source", "used for"], drawings)}

## Intended use

Teaching, tests, and trying out analyses of attention before they run on a large model. Not for making pictures that
anybody needs, and not for conclusions about photographs.

## Limits

{limits}
"""
