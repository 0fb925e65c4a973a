"""Fine-tuning on masks."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from seg4diff_tools.cli.data import PUBLISHED, Classes, Ignore, Limit, Root, Split, open_samples
from seg4diff_tools.cli.options import T5, Dtype, ModelName, loaded
from seg4diff_tools.cli.segmentation_flags import numbers
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
    dataset: Annotated[str, typer.Option(help=f"scenes, {PUBLISHED}, sa1b, or folder.")] = "scenes",
    root: Root = None,
    split: Split = None,
    classes: Classes = None,
    ignore: Ignore = None,
    captions: Annotated[
        Path | None,
        typer.Option(help="For coco-panoptic and sa1b: JSON, COCO's format or from file name to caption."),
    ] = None,
    limit: Limit = None,
    model: ModelName = "mini",
    dtype: Dtype = "auto",
    t5: T5 = False,
    preset: Annotated[Magnet, typer.Option(help="Settings to start from.")] = Magnet.mini,
    steps: Annotated[int | None, typer.Option(min=1, help="Updates; the preset's by default.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images for one update, over all processes.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the LoRA.")] = None,
    layers: Annotated[
        str | None, typer.Option(help="To align, 0-based, such as 4 or 4,5 (mean); the expert by default.")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Side of training images in pixels.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    images_at_once: Annotated[int | None, typer.Option(min=1, help="On one process; the rest by accumulation.")] = None,
    mixed_precision: Annotated[Precision | None, typer.Option(help="By default as accelerate launch says.")] = None,
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory, a third more time.")] = False,
    evaluation: Annotated[int, typer.Option(min=0, help="Unseen scenes to segment while it trains.")] = 0,
    evaluate_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between evaluations; 250 by default.")
    ] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 100,
    tensorboard: Annotated[bool, typer.Option(help="Log for TensorBoard too.")] = False,
) -> None:
    """Align a layer's attention with masks by a LoRA (MAGNET); several GPUs: accelerate launch -m seg4diff_tools
    finetune.

    An interrupted run resumes when the same command is given again.
    """
    from dataclasses import replace

    from seg4diff_tools import magnet
    from seg4diff_tools._runs import processes, refuse_other
    from seg4diff_tools.magnet.loop import RUN, run_settings
    from seg4diff_tools.scenes import Scenes

    changed: dict[str, Any] = {
        "steps": steps,
        "batch": batch,
        "learning_rate": learning_rate,
        "layers": None if layers is None else numbers(layers, "--layers"),
        "size": size,
    }
    config = replace(magnet.preset(preset.value), seed=seed, **{k: v for k, v in changed.items() if v is not None})
    if captions is not None and config.text == "classes":
        raise InputError(f"expected no --captions with --preset {preset}, whose prompts are class names: leave it out")
    if evaluate_every is not None and not evaluation:
        raise InputError("expected --evaluation with --evaluate-every, got no scenes: add --evaluation 64")
    if dataset == "sa1b" and (config.maps == "words" or config.text == "classes"):
        raise InputError(
            f"expected --preset sa1b or sa1b-released with --dataset sa1b, whose masks have no names, got {preset}: "
            "pass --preset sa1b"
        )
    packaged = {"scenes": lambda: Scenes("train", limit or 100_000)}
    flags = {"root": root, "split": split, "classes": classes, "ignore": ignore, "captions": captions}
    samples = open_samples(dataset, packaged, ["sa1b"], usual_split="train", **flags)[:limit]
    # another run's folder is refused before the model is loaded
    refuse_other(out, run_settings(config, samples), RUN)
    with loaded(model, dtype, t5=t5) as backbone:
        folder = magnet.finetune(
            backbone,
            samples,
            config,
            out,
            evaluation=Scenes("test", evaluation) if evaluation else (),
            evaluate_every=evaluate_every or 250,
            save_every=save_every,
            images_at_once=images_at_once,
            mixed_precision=mixed_precision and mixed_precision.value,
            gradient_checkpointing=gradient_checkpointing,
            tensorboard=tensorboard,
        )
    if processes().is_main_process:
        typer.echo(f"{folder}: load it with pipe.load_lora_weights({str(folder)!r}), or with apply_lora(backbone, ...)")
