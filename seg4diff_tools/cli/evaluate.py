"""Scores of segmentation."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from seg4diff_tools.cli.options import Lora, ModelName
from seg4diff_tools.cli.options import coco as coco_panoptic
from seg4diff_tools.errors import InputError


class Protocol(StrEnum):
    """Which classes a prompt names: those that an image shows, or the whole vocabulary."""

    present = "present"
    full = "full"


def evaluate(
    out: Annotated[Path, typer.Option(help="Folder of the run: counts of each image, table.csv, result.json.")],
    dataset: Annotated[
        str,
        typer.Option(
            help="scenes, scenes-style, voc20, voc21, pc59, coco-object, coco-stuff27, ade150, cityscapes, "
            "coco-panoptic, or folder."
        ),
    ] = "scenes",
    root: Annotated[Path | None, typer.Option(help="Where the data set lies, as it was published.")] = None,
    split: Annotated[str, typer.Option(help="Of the data set.")] = "val",
    classes: Annotated[
        Path | None,
        typer.Option(help="For folder (ROOT/images, ROOT/masks): text file, line i names the mask's value i."),
    ] = None,
    model: ModelName = "mini",
    lora: Lora = None,
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

    from seg4diff_tools import datasets, paper
    from seg4diff_tools._runs import processes
    from seg4diff_tools.backbones import apply_lora
    from seg4diff_tools.backbones.loading import load_backbone
    from seg4diff_tools.evaluation.evaluate import evaluate as run
    from seg4diff_tools.evaluation.evaluate import run_settings
    from seg4diff_tools.evaluation.runs import refuse_other_run
    from seg4diff_tools.segmentation.options import OpenVocabulary, Options, Unsupervised

    samples = _samples(dataset, root, split, classes)
    at = tuple(steps_from_end or (8,))
    method: Options
    if unsupervised:
        about_words = {
            "--protocol": bool(protocol),
            "--reading": reading != "layer",
            "--background": background != "word",
            "--synonyms": synonyms,
            "--classes-per-prompt": classes_per_prompt is not None,
            "--second-pass": second_pass > 0,
            "--tiles": tiles > 1,
            "--guided": guided,
        }
        if given := [option for option, there in about_words.items() if there]:
            raise InputError(f"expected no {', '.join(given)} with --unsupervised, which reads no words: leave it out")
        own: dict[str, Any] = {"threshold": threshold, "steps": steps, "seeds": seed or [0], "zero_tokens": zero_tokens}
        method = Unsupervised(layers=layer or None, steps_from_end=at, **own)
    else:
        method = OpenVocabulary(
            method=reading,
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
    methods = {"pads" if unsupervised else "words": method}
    protocols: Any = [each.value for each in protocol or (Protocol.present,)]
    # another run's folder is refused before the model is loaded
    refuse_other_run(out, run_settings(samples, methods, protocols, shuffle_seed=shuffle_seed, batch=batch))
    backbone = load_backbone(model, device=processes().device)
    with apply_lora(backbone, lora) if lora else nullcontext():
        result = run(
            backbone,
            samples,
            methods,
            protocols,
            out=out,
            limit=limit,
            shuffle_seed=shuffle_seed,
            about={"dataset": dataset, "root": str(root) if root else None, "split": split, "lora": lora},
            batch=batch,
        )
    if processes().is_main_process:
        typer.echo(
            result.table()
            .drop(columns=["gain", "gain_low", "gain_high", "comparisons"])
            .round(3)
            .to_string(index=False)
        )
        typer.echo(result.throughput())
        number = 2 if unsupervised else 1
        printed = paper.scores_of(dataset, number)
        if len(printed):
            typer.echo(
                f"mIoU that the paper prints (table {number}{', Seg4Diff under present' if number == 1 else ''}), each "
                f"with its own "
                f"model:\n{printed.to_string(index=False)}"
            )
        typer.echo(f"{out}: table.csv, result.json with every setting, and counts of each image in Parquet")


def _samples(dataset: str, root: Path | None, split: str, classes: Path | None) -> Sequence:
    from seg4diff_tools import datasets
    from seg4diff_tools.scenes import Scenes

    if dataset in ("scenes", "scenes-style"):
        return Scenes("test" if dataset == "scenes" else "test-style", 500)
    if root is None:
        raise InputError(f"expected where {dataset} lies, got no --root")
    if dataset == "coco-panoptic":
        return coco_panoptic(root, f"{split}2017")
    if dataset != "folder":
        return datasets.published(dataset, root, split)
    if classes is None:
        raise InputError(
            "expected the names of the classes, got no --classes: pass a text file with a class on each line"
        )
    if not classes.is_file():
        raise InputError(f"expected a text file with a class on each line, got --classes {classes}, which is not there")
    try:
        names = [line.strip() for line in classes.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"expected text in UTF-8 in {classes}, got {error}: save it as UTF-8") from error
    if "" in names:
        raise InputError(f"expected a class on each line, got an empty line {names.index('') + 1} in {classes}")
    return datasets.folder(root / "images", root / "masks", names)


def _background(told: str) -> Any:
    try:
        return float(told)
    except ValueError:
        return "word" if told == "word" else tuple(word.strip() for word in told.split(","))
