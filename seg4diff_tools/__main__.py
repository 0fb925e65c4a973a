"""The command line for long runs: `python -m seg4diff_tools pretrain --help`."""

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from seg4diff_tools.errors import InputError, Seg4DiffError


class _Group(TyperGroup):
    """Shows an error that was raised on purpose as one line, without a trace."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Seg4DiffError as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from None


_SHARED: dict[str, Any] = {"cls": _Group, "no_args_is_help": True, "rich_markup_mode": None}
app = typer.Typer(**_SHARED, add_completion=False, pretty_exceptions_enable=False, help="Long runs of seg4diff_tools.")
pretrain = typer.Typer(
    **_SHARED,
    help="Train a small Stable Diffusion 3 on captioned scenes: clip, then vae, then transformer, then export and report. "
    "A run that was stopped goes on where it was when the same command is given again.",
)
app.add_typer(pretrain, name="pretrain")


class Preset(StrEnum):
    """Sizes and steps of a new run."""

    cpu = "cpu"
    gpu = "gpu"


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


class Layout(StrEnum):
    """Of a benchmark's folders."""

    geneval = "geneval"
    t2i_compbench = "t2i-compbench"


class Protocol(StrEnum):
    """Which classes a prompt names: those that an image shows, or the whole vocabulary."""

    present = "present"
    full = "full"


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


@app.callback()
def _main() -> None:
    # that there is no T5 and no torchvision is as it should be
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")


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
    from .pretrain import export as write

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
    from .backbones import load_backbone
    from .clipscore import load_clip
    from .model_cards import write_card
    from .pretrain import RunConfig
    from .quality import measure

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


@app.command()
def finetune(
    out: Annotated[Path, typer.Option(help="Folder of the run: LoRA, log, pictures, checkpoint.")],
    model: Annotated[str, typer.Option(help="mini, a folder in diffusers' layout, or a hub name.")] = "mini",
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
    """Align a layer's attention with masks by a LoRA (MAGNET); several GPUs: accelerate launch -m seg4diff_tools finetune.

    A run that was stopped goes on where it was when the same command is given again.
    """
    from dataclasses import replace

    from . import datasets, magnet
    from .backbones import load_backbone
    from .runs import processes
    from .scenes import Scenes

    if coco and sa1b:
        raise InputError("expected one data set, got both --coco and --sa1b: choose one")
    changed = {"steps": steps, "batch": batch, "learning_rate": learning_rate, "layers": tuple(layer or ()) or None}
    config = replace(magnet.preset(preset.value), seed=seed, **{k: v for k, v in changed.items() if v is not None})
    samples: Sequence = Scenes("train", scenes)
    if coco:
        samples = _coco(coco, split, captions)
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


@app.command()
def generate(
    layout: Annotated[Layout, typer.Option(help="Benchmark whose judge is to read the pictures.")],
    prompts: Annotated[
        Path, typer.Option(help="GenEval's evaluation_metadata.jsonl, or a text file of T2I-CompBench++.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")],
    model: Annotated[str, typer.Option(help="mini, a folder in diffusers' layout, or a hub name.")] = "mini",
    lora: Annotated[str | None, typer.Option(help="Folder of a LoRA to put on, or mini-magnet.")] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Of each prompt; by default 4 for GenEval, 10 for T2I-CompBench++.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of sampling.")] = 28,
    guidance_scale: Annotated[float | None, typer.Option(help="By default the model's own.")] = None,
    seed: Annotated[int, typer.Option(help="Of each prompt's first picture; the next one has the next seed.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 8,
) -> None:
    """Write a benchmark's pictures (GenEval, T2I-CompBench++); several GPUs: accelerate launch -m seg4diff_tools generate.

    A run that was stopped goes on where it was when the same command is given again.
    """
    from contextlib import nullcontext

    from . import lora as loras
    from .backbones import load_backbone
    from .generation import generate_benchmark
    from .runs import processes

    backbone = load_backbone(model, device=processes().device)
    with loras.lora(backbone, lora) if lora else nullcontext():
        folder = generate_benchmark(
            backbone,
            layout.value,
            prompts,
            out,
            images=images,
            steps=steps,
            guidance_scale=guidance_scale,
            seed=seed,
            batch=batch,
        )
    if processes().is_main_process:
        typer.echo(f"{folder}: now judge it with the benchmark's own code")


@app.command()
def evaluate(
    out: Annotated[Path, typer.Option(help="Folder of the run: counts of each image, table.csv, result.json.")],
    dataset: Annotated[
        str,
        typer.Option(
            help="scenes, scenes-style, voc20, voc21, pc59, coco-object, coco-stuff27, ade150, cityscapes, coco-panoptic, or folder."
        ),
    ] = "scenes",
    root: Annotated[Path | None, typer.Option(help="Where the data set lies, as it was published.")] = None,
    split: Annotated[str, typer.Option(help="Of the data set.")] = "val",
    classes: Annotated[
        Path | None,
        typer.Option(help="For folder (ROOT/images, ROOT/masks): text file, line i names the mask's value i."),
    ] = None,
    model: Annotated[str, typer.Option(help="mini, a folder in diffusers' layout, or a hub name.")] = "mini",
    lora: Annotated[str | None, typer.Option(help="Folder of a LoRA to put on, or mini-magnet.")] = None,
    protocol: Annotated[
        list[Protocol] | None, typer.Option(help="Several times for several; present by default.")
    ] = None,
    layer: Annotated[
        list[int] | None, typer.Option(help="0-based; of several the mean; the expert by default.")
    ] = None,
    steps_from_end: Annotated[
        list[int] | None, typer.Option(help="Noise levels; of several the mean; 8 by default.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Length of the schedule.")] = 28,
    seed: Annotated[list[int] | None, typer.Option(help="Of the noise; of several the mean; 0 by default.")] = None,
    reading: Annotated[
        str, typer.Option(help="Of the attention: layer, daam, concept, goca, cosine, refined.")
    ] = "layer",
    background: Annotated[
        str, typer.Option(help="'word', words joined by commas, or a number of times an even share of attention.")
    ] = "word",
    synonyms: Annotated[bool, typer.Option(help="Ask for everyday words beside the names of classes.")] = False,
    classes_per_prompt: Annotated[int | None, typer.Option(min=1, help="As many as it holds by default.")] = None,
    second_pass: Annotated[
        float, typer.Option(help="Drop classes below this share of the image and prompt again.")
    ] = 0.0,
    tiles: Annotated[int, typer.Option(min=1, help="2 also reads nine windows of half the image's side.")] = 1,
    guided: Annotated[bool, typer.Option(help="Upsample along the edges of the image.")] = False,
    unsupervised: Annotated[bool, typer.Option(help="Group by the pads of an empty prompt instead (Table 2).")] = False,
    threshold: Annotated[float, typer.Option(help="Of merging pads.")] = 0.035,
    zero_tokens: Annotated[int, typer.Option(min=0, help="Zero vectors in the place of T5's tokens.")] = 77,
    limit: Annotated[int | None, typer.Option(min=1, help="Evaluate no more images than this.")] = None,
    shuffle_seed: Annotated[int | None, typer.Option(help="Take images in the order that this seed draws.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Forwards to run at once.")] = 8,
) -> None:
    """Score segmentation on a data set (Tables 1 and 2); several GPUs: accelerate launch -m seg4diff_tools evaluate.

    A run that was stopped goes on where it was when the same command is given again.
    """
    from contextlib import nullcontext

    from . import datasets, paper
    from . import lora as loras
    from .backbones import load_backbone
    from .evaluation import evaluate as run
    from .methods import Method, Pads, Words
    from .runs import processes

    samples = _samples(dataset, root, split, classes)
    at = tuple(steps_from_end or (8,))
    method: Method
    if unsupervised:
        if any(len(each or ()) > 1 for each in (layer, steps_from_end, seed)):
            raise InputError("expected one layer, step and seed with --unsupervised, got several: give each once")
        own = {"threshold": threshold, "steps": steps, "seed": (seed or [0])[0], "zero_tokens": zero_tokens}
        method = Pads(layer=layer[0] if layer else None, steps_from_end=at[0], **own)
    else:
        method = Words(
            reading=reading,
            layers=tuple(layer) if layer else None,
            steps_from_end=at,
            steps=steps,
            seeds=tuple(seed or (0,)),
            zero_tokens=zero_tokens,
            synonyms=datasets.SYNONYMS if synonyms else {},
            classes_per_prompt=classes_per_prompt,
            second_pass=second_pass,
            background=_background(background),
            tiles=tiles,
            upsampling="guided" if guided else "bilinear",
        )
    backbone = load_backbone(model, device=processes().device)
    protocols = [each.value for each in protocol or (Protocol.present,)]
    with loras.lora(backbone, lora) if lora else nullcontext():
        result = run(
            backbone,
            samples,
            {"pads" if unsupervised else "words": method},
            protocols,
            out=out,
            limit=limit,
            shuffle_seed=shuffle_seed,
            batch=batch,
        )
    if processes().is_main_process:
        typer.echo(result.table().drop(columns=["gain", "gain_low", "gain_high"]).round(3).to_string(index=False))
        typer.echo(result.throughput())
        number = 2 if unsupervised else 1
        printed = paper.scores_of(dataset, number)
        if len(printed):
            typer.echo(
                f"mIoU that the paper prints (table {number}), each with its own model:\n{printed.to_string(index=False)}"
            )
        typer.echo(f"{out}: table.csv, result.json with every setting, and counts of each image in Parquet")


def _samples(dataset: str, root: Path | None, split: str, classes: Path | None) -> Sequence:
    from . import datasets
    from .scenes import Scenes

    if dataset in ("scenes", "scenes-style"):
        return Scenes("test" if dataset == "scenes" else "test-style", 500)
    if root is None:
        raise InputError(f"expected where {dataset} lies, got no --root")
    if dataset == "coco-panoptic":
        return _coco(root, f"{split}2017")
    if dataset != "folder":
        return datasets.published(dataset, root, split)
    if classes is None or not classes.is_file():
        raise InputError(f"expected a text file with a class on each line, got --classes {classes}")
    return datasets.folder(root / "images", root / "masks", classes.read_text(encoding="utf-8").split("\n"))


def _coco(root: Path, split: str, captions: Path | None = None) -> Sequence:
    from . import datasets

    panoptic = root / f"panoptic_{split}"
    return datasets.coco_panoptic(root / split, panoptic, panoptic.with_suffix(".json"), captions)


def _background(told: str) -> Any:
    try:
        return float(told)
    except ValueError:
        return "word" if told == "word" else tuple(word.strip() for word in told.split(","))


def _train(part: str, run: Path, name: Preset | None, steps: int | None, device: str | None) -> None:
    from dataclasses import replace

    from .pretrain import RunConfig, preset, run_stage

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


if __name__ == "__main__":
    app(prog_name="python -m seg4diff_tools")
