"""Training of a small Stable Diffusion 3."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from seg4diff_tools.cli.options import SHARED
from seg4diff_tools.errors import InputError

pretrain = typer.Typer(
    **SHARED,
    help="Train a small Stable Diffusion 3 on captioned scenes: clip, then vae, then transformer, then export and report. "
    "A run that was stopped goes on where it was when the same command is given again.",
)


class Preset(StrEnum):
    """Sizes and steps of a new run."""

    cpu = "cpu"
    gpu = "gpu"


Run = Annotated[Path, typer.Option(help="Folder of the run: configuration, checkpoints, logs.")]
ForPreset = Annotated[
    Preset | None,
    typer.Option(help="Sizes and steps of a new run; cpu by default. A run that exists keeps its own."),
]
Steps = Annotated[
    int | None,
    typer.Option(
        min=1, help="Train this part until so many steps are done, also beyond what the run asked for at first."
    ),
]
Device = Annotated[str | None, typer.Option(help="Such as cpu, cuda or cuda:1; by default the best at hand.")]
Model = Annotated[Path | None, typer.Option(help="Folder of the exported model; by default RUN/model.")]


@pretrain.command()
def clip(run: Run, preset: ForPreset = None, steps: Steps = None, device: Device = None) -> None:
    """Train text and image towers contrastively; the text tower then steers the transformer."""
    _train("clip", run, preset, steps, device)


@pretrain.command()
def vae(run: Run, preset: ForPreset = None, steps: Steps = None, device: Device = None) -> None:
    """Train the autoencoder between images and 16-channel latents."""
    _train("vae", run, preset, steps, device)


@pretrain.command()
def transformer(run: Run, preset: ForPreset = None, steps: Steps = None, device: Device = None) -> None:
    """Train the MM-DiT by flow matching; needs the finished clip and vae."""
    _train("transformer", run, preset, steps, device)


@pretrain.command()
def export(run: Run, model: Model = None) -> None:
    """Write the finished parts as a diffusers pipeline in half precision."""
    from seg4diff_tools.pretrain import export as write

    folder = model or run / "model"
    write(run, folder)
    typer.echo(f"{folder}: now measure it with `python -m seg4diff_tools pretrain report`")


@pretrain.command()
def report(
    run: Run,
    model: Model = None,
    scenes: Annotated[int, typer.Option(min=2, help="Test scenes of each kind.")] = 500,
    search_scenes: Annotated[int, typer.Option(min=1, help="Further scenes, to choose layer and step on.")] = 100,
    generated: Annotated[int, typer.Option(min=2, help="Pictures to generate for CLIPScore.")] = 64,
    guidance_scale: Annotated[float, typer.Option(min=1.0, help="Of all generated pictures, and of the card.")] = 4.0,
    compute: Annotated[str, typer.Option(help='For the card: what trained it, such as "2 CPU cores, 3 hours".')] = "",
    device: Device = None,
) -> None:
    """Measure the exported model on unseen scenes and write its model card, README and gallery."""
    from seg4diff_tools.backbones.loading import load_backbone
    from seg4diff_tools.generation.clip import load_clip
    from seg4diff_tools.pretrain import RunConfig
    from seg4diff_tools.pretrain.model_card import write_card
    from seg4diff_tools.pretrain.report import measure

    config, folder = RunConfig.load(run), model or run / "model"
    backbone = load_backbone(folder, device=_usable(device))
    quality = measure(
        backbone,
        load_clip(folder, backbone.device),
        config.model.scenes,
        scenes=scenes,
        search_scenes=search_scenes,
        generated=generated,
        guidance_scale=guidance_scale,
        out=run / "report",
    )
    write_card(folder, backbone, quality, run, guidance_scale=guidance_scale, compute=compute)
    typer.echo(quality.scores.drop(columns="model").round(3).to_string(index=False))
    typer.echo("\n".join(f"{name}: {value:.4g}" for name, value in quality.pictures.items()))
    typer.echo(f"Layer {quality.layer}, {quality.steps_from_end} steps from the end. Card: {folder / 'README.md'}")


def _train(part: str, run: Path, name: Preset | None, steps: int | None, device: str | None) -> None:
    from dataclasses import replace

    from seg4diff_tools.pretrain import RunConfig, preset, run_stage

    if (run / "config.json").exists():
        config = RunConfig.load(run)
        if name and preset(name.value).model != config.model:
            raise InputError(f"the run in {run} has other sizes than the preset {name.value!r}: leave out --preset")
    else:
        config = preset((name or Preset.cpu).value)
    if steps:
        config = replace(config, **{part: replace(getattr(config, part), steps=steps)})
    typer.echo(run_stage(part, run, config, _usable(device)))


def _usable(device: str | None) -> str | None:
    import torch

    if device:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).split("\n")[0]
            raise InputError(f"device {device!r} cannot be used here ({reason}): leave out --device") from error
    return device
