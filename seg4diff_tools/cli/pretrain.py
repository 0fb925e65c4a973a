"""Train a small Stable Diffusion 3."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from seg4diff_tools.cli.options import SHARED
from seg4diff_tools.errors import InputError

pretrain = typer.Typer(
    **SHARED,
    help="Train a small Stable Diffusion 3 on captioned scenes: clip, vae, transformer, then export and report. "
    "An interrupted run resumes when the same command is given again.",
)

Preset = Literal["cpu", "gpu", "cpu-rich", "gpu-rich", "cpu-further"]
Run = Annotated[Path, typer.Option(help="Run folder: configuration, checkpoints, logs.")]
ForPreset = Annotated[
    Preset | None, typer.Option(help="Sizes and steps of a new run; cpu by default. An existing run keeps its own.")
]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Train this part up to this step, also past the run's original number.")
]
Device = Annotated[str | None, typer.Option(help="Such as cpu, cuda or cuda:1; the best available by default.")]
Model = Annotated[Path | None, typer.Option(help="Folder of the exported model; RUN/model by default.")]
Init = Annotated[
    Path | None,
    typer.Option(
        help="Start a new run from finished weights, with fresh optimizers: mini, or the folder of a model or run."
    ),
]
Cores = Annotated[
    str | None, typer.Option(help="CPU cores to run on, such as 0,1: one thread each; all, unpinned, by default.")
]
SaveEvery = Annotated[int, typer.Option(min=1, help="Steps between checkpoints, the most that a kill can lose.")]


def _stage(part: str) -> Callable[..., None]:
    def train(
        run: Run,
        preset: ForPreset = None,
        steps: Steps = None,
        device: Device = None,
        init: Init = None,
        cores: Cores = None,
        save_every: SaveEvery = 500,
    ) -> None:
        _train(part, run, preset, steps, device, cores, init=init, save_every=save_every)

    return train


pretrain.command("clip", help="Train text and image encoders contrastively; the transformer reads the text encoder.")(
    _stage("clip")
)
pretrain.command("vae", help="Train the autoencoder between images and 16-channel latents.")(_stage("vae"))


@pretrain.command()
def transformer(
    run: Run,
    preset: ForPreset = None,
    steps: Steps = None,
    device: Device = None,
    init: Init = None,
    cores: Cores = None,
    save_every: SaveEvery = 200,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Keep averaged weights at this number of images, such as 0.02M; repeatable."),
    ] = None,
    watch_every: Annotated[
        str, typer.Option(help="Images between validations: object mIoU by layer and four pictures; 0 for none.")
    ] = "50k",
    cache: Annotated[Path | None, typer.Option(help="Folder of cached latents; RUN/latents by default.")] = None,
    cache_size: Annotated[
        float | None,
        typer.Option(min=0, help="Gigabytes of latents on disk, which limit the scenes of a new run; 0 for none."),
    ] = None,
    compiled: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Where a compiler is found, by default.")
    ] = None,
) -> None:
    """Train the MM-DiT by flow matching; needs the finished clip and vae."""
    from seg4diff_tools.pretrain import images_of

    numbers = [images_of(text) for text in keep or ()]
    every = 0 if watch_every == "0" else images_of(watch_every)
    more = {"keep": numbers, "watch_every": every, "cache": cache, "init": init, "save_every": save_every}
    _train("transformer", run, preset, steps, device, cores, cache_size, compiled, **more)


@pretrain.command()
def export(run: Run, model: Model = None) -> None:
    """Export the finished parts as a diffusers pipeline in half precision."""
    from seg4diff_tools.pretrain import export as write

    folder = model or run / "model"
    write(run, folder)
    typer.echo(f"{folder}: now measure it with `python -m seg4diff_tools pretrain report`")


@pretrain.command()
def report(
    run: Run,
    model: Model = None,
    scenes: Annotated[int, typer.Option(min=2, help="Test scenes of each kind.")] = 500,
    search_scenes: Annotated[int, typer.Option(min=1, help="Further scenes, to choose layer and step.")] = 100,
    generated: Annotated[int, typer.Option(min=2, help="Pictures to generate for CLIPScore.")] = 64,
    guidance_scale: Annotated[
        float, typer.Option(min=1.0, help="Of all generated pictures; also the model's default.")
    ] = 4.0,
    compute: Annotated[str, typer.Option(help='Hardware and time for the card, such as "2 CPU cores, 3 hours".')] = "",
    device: Device = None,
) -> None:
    """Measure the exported model on unseen scenes; write its model card, README and gallery."""
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
        config.model.test_scenes,
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


def _train(
    part: str,
    run: Path,
    name: str | None,
    steps: int | None,
    device: str | None,
    cores: str | None,
    cache_size: float | None = None,
    compiled: bool | None = None,
    **options: Any,
) -> None:
    import logging
    from dataclasses import replace

    from seg4diff_tools.pretrain import RunConfig, pin, pool_size, preset, run_stage

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("seg4diff_tools.pretrain").setLevel(logging.INFO)
    if cores:
        pin(_cores(cores))
    if (run / "config.json").exists():
        config = RunConfig.load(run)
        if name and preset(name).model != replace(config.model, recipe=preset(name).model.recipe):
            raise InputError(f"the run in {run} has other sizes than the preset {name!r}: leave out --preset")
    else:
        config = preset(name or "cpu")
    if cache_size is not None:
        pool = pool_size(cache_size, config.model) if cache_size else 0
        if (run / part / "state.pt").exists() and pool != config.model.recipe.pool:
            raise InputError(f"the run in {run} trains on {config.model.recipe.pool} scenes: leave out --cache-size")
        recipe = replace(config.model.recipe, pool=pool)
        config = replace(config, model=replace(config.model, recipe=recipe))
    if steps:
        config = replace(config, **{part: replace(getattr(config, part), steps=steps)})
    typer.echo(run_stage(part, run, config, _usable(device), compiled=compiled, **options))


def _cores(text: str) -> list[int]:
    import os

    known = set(range(os.cpu_count() or 1))
    try:
        found = [int(number) for number in text.split(",")]
    except ValueError:
        found = []
    if not found or not known.issuperset(found):
        raise InputError(f"--cores takes numbers of CPU cores from 0 to {max(known)}, such as 0,1; got {text!r}")
    return found


def _usable(device: str | None) -> str | None:
    import torch

    if device:
        try:
            torch.empty(0, dtype=torch.float32, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).split("\n")[0]
            raise InputError(f"device {device!r} cannot be used here ({reason}): leave out --device") from error
    return device
