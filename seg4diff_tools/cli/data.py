"""Data sets of `evaluate` and `finetune`: flags and readers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from seg4diff_tools.errors import InputError

PUBLISHED = "voc20, voc21, pc59, coco-object, coco-object80, coco-stuff27, ade150, cityscapes, coco-panoptic"
Root = Annotated[Path | None, typer.Option(help="Folder of the data set, laid out as published.")]
Split = Annotated[str | None, typer.Option(help="Of a published data set, such as train or val.")]
Classes = Annotated[
    Path | None,
    typer.Option(help="For folder (ROOT/images, ROOT/masks): text file; line i, from 0, names value i of a mask."),
]
Stuff = Annotated[str | None, typer.Option(help="For folder: stuff classes (not objects), such as grass,sky.")]
Ignore = Annotated[
    int | None, typer.Option(help="For folder: mask value of ignored pixels, -1 for none; 255 by default.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Largest number of images.")]

_READ = {
    "folder": ("root", "classes", "stuff", "ignore"),
    "coco-panoptic": ("root", "split", "captions"),
    "sa1b": ("root", "captions"),
}
"""Flags that a data set reads; root and split if it is not listed."""


def open_samples(
    dataset: str,
    packaged: Mapping[str, Callable[[], Sequence]],
    others: Sequence[str] = (),
    *,
    usual_split: str,
    **flags: Any,
) -> Sequence:
    """Open a data set by its flags.

    Args:
        dataset: its name.
        packaged: data sets of this package, by name.
        others: further names that the command accepts.
        usual_split: default of --split.
        flags: root, split, classes, stuff, ignore and captions; None if not given.

    Raises:
        InputError: an unknown data set, a flag that it does not read, or a missing one.
    """
    from seg4diff_tools import datasets
    from seg4diff_tools._runs import as_path

    names = [*packaged, *datasets.BENCHMARKS, "coco-panoptic", *others, "folder"]
    if dataset not in names:
        raise InputError(f"expected --dataset, one of {', '.join(names)}, got {dataset!r}: choose one of these")
    read = () if dataset in packaged else _READ.get(dataset, ("root", "split"))
    if unread := [f"--{name}" for name, value in flags.items() if value is not None and name not in read]:
        it = "it" if len(unread) == 1 else "them"
        raise InputError(
            f"expected no {', '.join(unread)} with --dataset {dataset}, which does not read {it}: leave {it} out"
        )
    if dataset in packaged:
        return packaged[dataset]()
    root, split = flags["root"], flags["split"] or usual_split
    if root is None:
        raise InputError(f"expected where {dataset} lies, got no --root: pass the folder of the data set")
    root = as_path(root, "--root")
    if dataset == "sa1b":
        return datasets.sa1b(root, flags.get("captions"))
    if dataset == "coco-panoptic":
        # the official archives unpack into a folder of their own
        where = root / "annotations" if (root / "annotations" / f"panoptic_{split}2017").is_dir() else root
        panoptic = where / f"panoptic_{split}2017"
        return datasets.coco_panoptic(
            root / f"{split}2017", panoptic, panoptic.with_suffix(".json"), flags.get("captions")
        )
    if dataset != "folder":
        return datasets.published(dataset, root, split)
    if flags["classes"] is None:
        raise InputError("expected names of classes, got no --classes: pass a text file with a class on each line")
    classes = class_list(flags["classes"])
    given = flags.get("stuff")
    stuff = () if given is None else words(given, "--stuff")
    if unknown := [name for name in stuff if name not in classes]:
        raise InputError(f"expected --stuff among the classes of {flags['classes']}, got {unknown[0]!r}: correct it")
    ignore = datasets.IGNORE if flags["ignore"] is None else flags["ignore"]
    return datasets.folder(root / "images", root / "masks", classes, stuff, ignore)


def class_list(file: Path) -> list[str]:
    """Read class names from a text file: one on each line, each once."""
    from seg4diff_tools._runs import as_path
    from seg4diff_tools.datasets.files import read_text

    text = read_text(as_path(file, "--classes"), "--classes as a text file with a class on each line")
    names = [line.strip() for line in text.rstrip().splitlines()]
    if "" in names or not names:
        raise InputError(
            f"expected a class on each line of --classes, got an empty line {names.index('') + 1 if names else 1} in "
            f"{file}: write one there"
        )
    once(names, "expected each class once in --classes")
    return names


def once(names: Sequence[str], expected: str) -> None:
    """Raise an InputError that names the classes given twice."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{expected}, got {', '.join(twice)} twice: leave one out")


def words(text: str, flag: str) -> tuple[str, ...]:
    """Split words at commas."""
    found = tuple(word.strip() for word in text.split(","))
    if not all(found) or len(set(found)) < len(found):
        raise InputError(f"expected {flag} as different words joined by commas, got {text!r}: pass {flag} grass,sky")
    return found
