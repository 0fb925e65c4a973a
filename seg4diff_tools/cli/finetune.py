"""Fine-tuning on masks."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from seg4diff_tools.cli.data import PUBLISHED, Classes, Ignore, Limit, Root, Split, open_samples
from seg4diff_tools.cli.options import T5, Dtype, ModelName, loaded
from seg4diff_tools.cli.segmentation_flags import numbers
from seg4diff_tools.errors import InputError

Preset = Literal["mini", "coco", "sa1b", "coco-released", "sa1b-released"]
Noise = Literal["logit-normal", "uniform", "early", "late"]
Levels = Literal["all", "early", "late"]
Precision = Literal["no", "bf16", "fp16"]


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
    preset: Annotated[Preset, typer.Option(help="Settings to start from.")] = "mini",
    steps: Annotated[int | None, typer.Option(min=1, help="Updates; the preset's by default.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images for one update, over all processes.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the LoRA.")] = None,
    layers: Annotated[
        str | None, typer.Option(help="To align, 0-based, such as 4 or 4,5 (mean); the expert by default.")
    ] = None,
    layer_weights: Annotated[
        str | None, typer.Option(help="Of the losses of --layers, such as 1,0.5; equal by default.")
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            help="Of a loss, such as dice=0.2, several times: flow, regions, focal, dice, places, entropy, apart or "
            "agree; 0 leaves it out."
        ),
    ] = None,
    noise: Annotated[Noise | None, typer.Option(help="Distribution of noise levels.")] = None,
    sigma_mean: Annotated[float | None, typer.Option(help="Of the logit-normal distribution.")] = None,
    sigma_std: Annotated[float | None, typer.Option(help="Of the logit-normal distribution.")] = None,
    shift: Annotated[float | None, typer.Option(help="Of noise levels; the scheduler's by default.")] = None,
    align_at: Annotated[Levels | None, typer.Option(help="Noise levels at which masks count.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Factor on the scores of image tokens with text tokens.")
    ] = None,
    temperature_above: Annotated[float | None, typer.Option(help="Timestep from which on it is, 0 to 1000.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Side of training images in pixels.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    images_at_once: Annotated[int | None, typer.Option(min=1, help="On one process; the rest by accumulation.")] = None,
    mixed_precision: Annotated[Precision | None, typer.Option(help="By default as accelerate launch says.")] = None,
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory, a third more time.")] = False,
    evaluation: Annotated[
        int, typer.Option(min=0, help="Validation scenes to segment while it trains; no table judges by them.")
    ] = 0,
    pictures: Annotated[
        int, typer.Option(min=0, max=200, help="Prompts of each of six kinds to draw and judge with --evaluation.")
    ] = 0,
    patience: Annotated[
        int | None, typer.Option(min=0, help="Evaluations without a better one of both, after which it stops.")
    ] = None,
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
    from seg4diff_tools.generation import load_detector, prompts
    from seg4diff_tools.magnet.loop import RUN, run_settings
    from seg4diff_tools.pretrain.watch import VALIDATE_FROM
    from seg4diff_tools.scenes import Scenes

    changed: dict[str, Any] = {
        "steps": steps,
        "batch": batch,
        "learning_rate": learning_rate,
        "layers": None if layers is None else numbers(layers, "--layers"),
        "layer_weights": None if layer_weights is None else tuple(decimals(layer_weights, "--layer-weights")),
        "noise": noise,
        "sigma_mean": sigma_mean,
        "sigma_std": sigma_std,
        "shift": shift,
        "align_at": align_at,
        "temperature": temperature,
        "temperature_above": temperature_above,
        "patience": patience,
        "size": size,
    }
    changed |= weights_of(weight or [])
    config = replace(magnet.preset(preset), seed=seed, **{k: v for k, v in changed.items() if v is not None})
    if captions is not None and config.text == "classes":
        raise InputError(f"expected no --captions with --preset {preset}, whose prompts are class names: leave it out")
    if (pictures or config.patience) and not evaluation:
        raise InputError("expected --evaluation with --pictures and --patience, got no scenes: add --evaluation 64")
    if config.patience and not pictures:
        raise InputError("expected --pictures with --patience, got none: add --pictures 8")
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
        judge = load_detector(device=backbone.device) if pictures else None
        folder = magnet.finetune(
            backbone,
            samples,
            config,
            out,
            evaluation=Scenes("test", VALIDATE_FROM + evaluation)[VALIDATE_FROM:] if evaluation else (),
            pictures=None if judge is None else magnet.PictureTest(prompts(pictures, seed=VALIDATE_FROM), judge),
            evaluate_every=evaluate_every or 250,
            save_every=save_every,
            images_at_once=images_at_once,
            mixed_precision=mixed_precision,
            gradient_checkpointing=gradient_checkpointing,
            tensorboard=tensorboard,
        )
    if processes().is_main_process:
        typer.echo(f"{folder}: load it with pipe.load_lora_weights({str(folder)!r}), or with apply_lora(backbone, ...)")


def weights_of(given: list[str]) -> dict[str, float]:
    """Read the weights of losses: "dice=0.2" is the setting dice_weight=0.2.

    Raises:
        InputError: another loss, or no number.
    """
    from seg4diff_tools.errors import one_of
    from seg4diff_tools.magnet.config import LOSSES

    found: dict[str, float] = {}
    for text in given:
        name, _, value = text.partition("=")
        one_of(name, "--weight", LOSSES, "--weight dice=0.2")
        (found[f"{name}_weight"],) = decimals(value, f"--weight {name}", 1)
    return found


def decimals(text: str, flag: str, count: int | None = None) -> list[float]:
    """Read numbers with commas between them.

    Raises:
        InputError: something else, or more or fewer than `count`.
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or count not in (None, len(found)):
        wanted = "a number" if count == 1 else "numbers"
        raise InputError(f"expected {flag}, {wanted}, got {text!r}: pass {'0.5' if count else '1,0.5'}")
    return found
