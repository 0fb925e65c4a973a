"""Fine-tuning on masks."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from seg4diff_tools.cli.options import ModelName
from seg4diff_tools.cli.options import coco as coco_panoptic
from seg4diff_tools.errors import InputError


class Magnet(StrEnum):
    """Settings of a fine-tuning: the paper's for its two data sets, those of its code, and the embedded model's."""

    mini = "mini"
    coco = "coco"
    sa1b = "sa1b"
    coco_released = "coco-released"
    sa1b_released = "sa1b-released"


class Precision(StrEnum):
    """Of the forward pass."""

    no = "no"
    bf16 = "bf16"
    fp16 = "fp16"


def finetune(
    out: Annotated[Path, typer.Option(help="Folder of the run: LoRA, log, pictures, checkpoint.")],
    model: ModelName = "mini",
    preset: Annotated[Magnet, typer.Option(help="Settings to start from.")] = Magnet.mini,
    scenes: Annotated[int, typer.Option(min=1, help="Scenes to train on, where no data set is given.")] = 100_000,
    coco: Annotated[
        Path | None, typer.Option(help="COCO: folder with train2017, panoptic_train2017, panoptic_train2017.json.")
    ] = None,
    sa1b: Annotated[Path | None, typer.Option(help="SA-1B: folder with images and a JSON beside each.")] = None,
    captions: Annotated[
        Path | None, typer.Option(help="JSON of captions: COCO's format, or from file name to caption.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of COCO: its part of the names of files.")] = "train2017",
    steps: Annotated[int | None, typer.Option(min=1, help="Updates; the preset's by default.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images for one update, over all processes.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the LoRA.")] = None,
    layer: Annotated[list[int] | None, typer.Option(help="To align, 0-based; several times for several.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    images_at_once: Annotated[int | None, typer.Option(min=1, help="On one process; the rest by accumulation.")] = None,
    mixed_precision: Annotated[Precision | None, typer.Option(help="By default as accelerate launch says.")] = None,
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory, a third more time.")] = False,
    evaluation: Annotated[int, typer.Option(min=0, help="Unseen scenes to segment while it trains.")] = 0,
    evaluate_every: Annotated[int, typer.Option(min=1, help="Steps between evaluations.")] = 250,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 100,
    tensorboard: Annotated[bool, typer.Option(help="Log for TensorBoard too.")] = False,
) -> None:
    """Align a layer's attention with masks by a LoRA (MAGNET); several GPUs: accelerate launch -m seg4diff_tools
    finetune.

    A run that was stopped goes on where it was when the same command is given again.
    """
    from dataclasses import replace

    from seg4diff_tools import datasets, magnet
    from seg4diff_tools._runs import processes
    from seg4diff_tools.backbones.loading import load_backbone
    from seg4diff_tools.scenes import Scenes

    if coco and sa1b:
        raise InputError("expected one data set, got both --coco and --sa1b: choose one")
    changed: dict[str, Any] = {
        "steps": steps,
        "batch": batch,
        "learning_rate": learning_rate,
        "layers": tuple(layer or ()) or None,
    }
    config = replace(magnet.preset(preset.value), seed=seed, **{k: v for k, v in changed.items() if v is not None})
    samples: Sequence = Scenes("train", scenes)
    if coco:
        samples = coco_panoptic(coco, split, captions)
    if sa1b:
        samples = datasets.sa1b(sa1b, captions)
    folder = magnet.finetune(
        load_backbone(model, device=processes().device),
        samples,
        config,
        out,
        evaluation=Scenes("test", evaluation),
        evaluate_every=evaluate_every,
        save_every=save_every,
        images_at_once=images_at_once,
        mixed_precision=mixed_precision and mixed_precision.value,
        gradient_checkpointing=gradient_checkpointing,
        tensorboard=tensorboard,
    )
    if processes().is_main_process:
        typer.echo(
            f"{folder}: load it with pipe.load_lora_weights({str(folder)!r}), or with magnet.lora(backbone, ...)"
        )
