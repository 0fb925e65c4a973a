"""Score segmentation."""

from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from seg4diff_tools.cli.data import PUBLISHED, Classes, Ignore, Limit, Root, Split, Stuff, open_samples
from seg4diff_tools.cli.options import T5, Dtype, Lora, MemoryBudget, ModelName, loaded
from seg4diff_tools.cli.segmentation_flags import FLAGS, PAD_FLAGS, flag_of, refuse_idle, with_options
from seg4diff_tools.errors import InputError


class Protocol(StrEnum):  # typer takes no list of literals
    """Which classes a prompt names: those that an image shows, or the whole vocabulary."""

    present = "present"
    full = "full"


@with_options(FLAGS | PAD_FLAGS)
def evaluate(
    out: Annotated[Path, typer.Option(help="Run folder: counts of each image, table.csv, result.json.")],
    dataset: Annotated[str, typer.Option(help=f"scenes, scenes-style, {PUBLISHED}, or folder.")] = "scenes",
    root: Root = None,
    split: Split = None,
    classes: Classes = None,
    stuff: Stuff = None,
    ignore: Ignore = None,
    model: ModelName = "mini",
    lora: Lora = None,
    dtype: Dtype = "auto",
    t5: T5 = False,
    memory_budget: MemoryBudget = None,
    protocol: Annotated[
        list[Protocol] | None,
        typer.Option(help="Classes of each prompt: those present in the image (default), or all; repeatable."),
    ] = None,
    unsupervised: Annotated[bool, typer.Option(help="Group by the pads of an empty prompt (Table 2).")] = False,
    limit: Limit = None,
    shuffle_seed: Annotated[int | None, typer.Option(min=0, help="Shuffle the images by this seed.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Largest number of forwards at once.")] = 8,
    *,
    options: dict[str, Any],
) -> None:
    """Score segmentation on a data set (Tables 1 and 2); several GPUs: accelerate launch -m seg4diff_tools evaluate.

    An interrupted run resumes when the same command is given again.
    """
    from seg4diff_tools import paper
    from seg4diff_tools._runs import processes
    from seg4diff_tools.evaluation.evaluate import evaluate as run
    from seg4diff_tools.evaluation.evaluate import run_settings
    from seg4diff_tools.evaluation.runs import refuse_other_run
    from seg4diff_tools.scenes import Scenes
    from seg4diff_tools.segmentation.options import OpenVocabulary, Options, Unsupervised

    kind: Any = Unsupervised if unsupervised else OpenVocabulary
    given, known = [*options], {each.name for each in fields(kind)}
    if protocol and unsupervised:
        given.append("protocol")
    if wrong := [flag_of(name) for name in given if name not in known]:
        it = "it" if len(wrong) == 1 else "them"
        raise InputError(
            f"expected no {', '.join(wrong)} with --unsupervised, which reads no class names: leave {it} out"
            if unsupervised
            else f"expected --unsupervised with {', '.join(wrong)}, got segmentation by class names: add "
            f"--unsupervised, or leave {it} out"
        )
    method: Options = kind(**options)
    packaged = {name: lambda part=part: Scenes(part, 500) for name, part in _SCENES.items()}
    samples = open_samples(
        dataset, packaged, usual_split="val", root=root, split=split, classes=classes, stuff=stuff, ignore=ignore
    )
    if isinstance(method, OpenVocabulary):
        refuse_idle(method, samples.class_names)  # type: ignore[attr-defined]
    methods = {"pads" if unsupervised else "words": method}
    protocols: Any = [each.value for each in protocol or (Protocol.present,)]
    # another run's folder is refused before the model is loaded
    refuse_other_run(out, run_settings(samples, methods, protocols, shuffle_seed=shuffle_seed, batch=batch))
    about = {"dataset": dataset, "root": str(root) if root else None, "split": split, "lora": lora}
    with loaded(model, dtype, lora, t5) as backbone:
        result = run(
            backbone,
            samples,
            methods,
            protocols,
            out=out,
            limit=limit,
            shuffle_seed=shuffle_seed,
            about=about,
            batch=batch,
            memory_budget=memory_budget,
        )
    if processes().is_main_process:
        table = result.table().drop(columns=["gain", "gain_low", "gain_high", "comparisons"])
        typer.echo(table.round(3).to_string(index=False))
        typer.echo(result.throughput())
        number = 2 if unsupervised else 1
        printed = paper.scores_of(dataset, number)
        if len(printed):
            typer.echo(
                f"mIoU that the paper prints (table {number}{', Seg4Diff under present' if number == 1 else ''}), each "
                f"with its own model:\n{printed.to_string(index=False)}"
            )
        typer.echo(f"{out}: table.csv, result.json with every setting, and counts of each image in Parquet")


_SCENES = {"scenes": "test", "scenes-style": "test-style"}
