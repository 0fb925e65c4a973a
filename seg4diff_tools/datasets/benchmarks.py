"""Segmentation benchmarks, read from the folders in which they are published."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seg4diff_tools.datasets import classes
from seg4diff_tools.datasets.coco import CocoInstances, coco_instances
from seg4diff_tools.datasets.files import as_folder, visible_files
from seg4diff_tools.datasets.folders import Folder, Labels
from seg4diff_tools.errors import InputError, one_of


@dataclass(frozen=True)
class Layout:
    """One of the forms in which a benchmark's annotations are published.

    Paths are relative to the benchmark's base, with "{split}" for the split; of several, the first that exists counts.

    Attributes:
        masks: folders of masks, or COCO's JSON of instances.
        lookup: class of each value of a mask; None is left out.
        mask_end: end of a mask's file name, after the part shared with its image's.
        listing: file that lists the images of the split; without one, all images count.
        listing_required: whether it must be there.
        annotated_only: whether listed images without a mask are left out.
    """

    masks: tuple[str, ...]
    lookup: Mapping[int, str | None] = field(repr=False)
    mask_end: str = ".png"
    listing: str = ""
    listing_required: bool = True
    annotated_only: bool = False


@dataclass(frozen=True)
class Benchmark:
    """The vocabulary and the files of a benchmark.

    Attributes:
        class_names, background: the whole vocabulary, and those of its names that are stuff.
        archives: the files to unpack, for errors.
        images: folders of the images, relative to the base; the first that exists counts.
        layouts: the forms of the annotations; the first that is there counts.
        bases: where, from the root, images and annotations may lie.
        image_end: end of an image's file name, after the part that it shares with its mask's.
        splits: the benchmark's own names of splits, by ours.
    """

    class_names: tuple[str, ...]
    background: tuple[str, ...]
    archives: str
    images: tuple[str, ...]
    layouts: tuple[Layout, ...]
    bases: tuple[str, ...] = ("",)
    image_end: str = ".jpg"
    splits: Mapping[str, str] = field(default_factory=dict)


def _lookup(
    numbers: Iterable[int], names: Iterable[str], rest: Iterable[int], other: str | None = None
) -> dict[int, str | None]:
    """Return the class of each number; the rest of the numbers mean `other`."""
    lookup: dict[int, str | None] = dict.fromkeys(rest, other)
    return lookup | dict(zip(numbers, names, strict=True))


def _voc(background: tuple[str, ...]) -> Benchmark:
    lookup = _lookup(range(1, 21), classes.VOC, [255]) | {0: background[0] if background else None}
    return Benchmark(
        class_names=classes.VOC + background,
        background=background,
        archives="VOCtrainval_11-May-2012.tar",
        images=("JPEGImages",),
        layouts=(Layout(("SegmentationClass",), lookup, listing="ImageSets/Segmentation/{split}.txt"),),
        bases=("", "VOC2012", "VOCdevkit/VOC2012"),
    )


# values of COCO-Stuff's pixel maps are numbers of categories less one, and 255
_PIXEL_VALUES = (*range(182), 255)
_PIXEL_MAPS = ("stuffthingmaps_trainval2017/{split}2017", "stuffthingmaps/{split}2017", "annotations/{split}2017")
_PHOTOGRAPHS = ("{split}2017", "images/{split}2017")


def _coco_object(background: tuple[str, ...]) -> Benchmark:
    values = [number - 1 for number in classes.COCO_NUMBERS]
    lookup = _lookup(values, classes.COCO_OBJECTS, _PIXEL_VALUES, background[0] if background else None)
    return Benchmark(
        class_names=background + classes.COCO_OBJECTS,
        background=background,
        archives="{split}2017.zip, and stuffthingmaps_trainval2017.zip or annotations_trainval2017.zip,",
        images=_PHOTOGRAPHS,
        layouts=(Layout(_PIXEL_MAPS, lookup), Layout(("annotations/instances_{split}2017.json",), lookup)),
    )


_COARSE = {number - 1: name for name, numbers in classes.COARSE.items() for number in numbers}

BENCHMARKS: Mapping[str, Benchmark] = {
    "voc20": _voc(()),
    "voc21": _voc(("background",)),
    "pc59": Benchmark(
        class_names=classes.CONTEXT,
        background=(),
        archives="VOCtrainval_03-May-2010.tar and PASCAL Context's trainval.tar.gz",
        images=("JPEGImages",),
        layouts=(
            Layout(
                ("SegmentationClassContext",),
                _lookup(range(1, 60), classes.CONTEXT, [0, 255]),
                listing="ImageSets/SegmentationContext/{split}.txt",
            ),
            Layout(
                ("trainval", "../trainval", "../../trainval"),
                _lookup(classes.CONTEXT_NUMBERS, classes.CONTEXT, range(460)),
                mask_end=".mat",
                listing="ImageSets/Main/{split}.txt",
                annotated_only=True,
            ),
        ),
        bases=("", "VOC2010", "VOCdevkit/VOC2010"),
    ),
    "coco-object": _coco_object(("background",)),
    "coco-object80": _coco_object(()),
    "coco-stuff27": Benchmark(
        class_names=tuple(classes.COARSE),
        background=classes.COARSE_STUFF,
        archives="{split}2017.zip and stuffthingmaps_trainval2017.zip",
        images=_PHOTOGRAPHS,
        layouts=(
            Layout(
                _PIXEL_MAPS,
                _COARSE | {255: None},
                listing="curated/{split}2017/Coco164kFull_Stuff_Coarse_7.txt",
                listing_required=False,
            ),
        ),
    ),
    "ade150": Benchmark(
        class_names=classes.ADE,
        background=classes.ADE_STUFF,
        archives="ADEChallengeData2016.zip",
        images=("images/{split}",),
        layouts=(Layout(("annotations/{split}",), _lookup(range(1, 151), classes.ADE, [0])),),
        bases=("", "ADEChallengeData2016"),
        splits={"train": "training", "val": "validation"},
    ),
    "cityscapes": Benchmark(
        class_names=classes.CITYSCAPES,
        background=classes.CITYSCAPES_STUFF,
        archives="leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip",
        images=("leftImg8bit/{split}",),
        layouts=(
            Layout(
                ("gtFine/{split}",),
                _lookup(classes.CITYSCAPES_NUMBERS, classes.CITYSCAPES, range(34)),
                mask_end="_gtFine_labelIds.png",
            ),
        ),
        image_end="_leftImg8bit.png",
    ),
}


def published(name: str, root: str | Path, split: str = "val") -> Folder | CocoInstances:
    """Read a segmentation benchmark from the folders in which it is published; nothing has to be prepared.

    Args:
        name: "voc20", "voc21": PASCAL VOC 2012 without and with the class "background".
            "pc59": PASCAL Context with 59 classes; either `trainval/*.mat` as published beside VOC 2010, of whose split
            the annotated images count, or, where `SegmentationClassContext` is there, the PNGs into which most code
            bases convert them, with their own lists.
            "coco-object", "coco-object80": COCO's 80 objects with and without the class "background". COCO-Stuff's
            pixel maps, if present, are read as by GroupViT's `convert_coco_object.py`: stuff and unlabeled pixels are
            background. Otherwise things are drawn from `annotations/instances_<split>2017.json`, crowds first, then
            larger before smaller, which comes close to it.
            "coco-stuff27": COCO-Stuff's 182 classes in its 27 coarse ones. IIC, PiCIE and STEGO evaluate a part of the
            images: those in IIC's `curated/<split>2017/Coco164kFull_Stuff_Coarse_7.txt`, if present, otherwise all.
            "ade150": ADE20K as in the scene parsing challenge of 2016; its value 0, other, is left out.
            "cityscapes": the 19 classes of Cityscapes' evaluation; other labels are left out.
        root: the folder with the benchmark's own folders, or, for VOC and ADE20K, one above (`VOC2012`, `VOCdevkit` or
            its parent). COCO's photographs may be in `val2017` or `images/val2017`, its pixel maps in
            `stuffthingmaps_trainval2017/val2017`, `stuffthingmaps/val2017` or `annotations/val2017`.
        split: "train" or "val", or another one of the benchmark's own, such as VOC's "trainval".

    Returns:
        A sequence of samples. Each one names the classes that it shows, and numbers its label map by them. Of the
        sequence, `class_names` is the whole vocabulary, and `background` the classes that are stuff: "background",
        COCO-Stuff's stuff, Cityscapes' groups flat, construction, nature and sky, and the 35 of ADE20K's own list.
        PASCAL Context's files do not say which of the 59 are stuff, so there it is empty. Only lists and names of files
        (and COCO's JSON) are read at first, images and masks as they are asked for.

    Raises:
        InputError: an unknown name, a missing folder, list, image or mask, and on reading a damaged file, a mask of
            another size, or a value that the benchmark does not have.
    """
    one_of(name, "name", list(BENCHMARKS))
    if not isinstance(split, str):
        raise InputError(f"expected split as text, got {split!r}: pass split='val'")
    benchmark, root = BENCHMARKS[name], as_folder(root, "root")
    word = benchmark.splits.get(split, split)
    remedy = f"unpack {benchmark.archives.format(split=word)} there"
    places = {str(Path(base, path)): base for base in benchmark.bases for path in benchmark.images}
    images, base = _first(root, places, word, remedy)
    forms = {path: layout for layout in benchmark.layouts for path in layout.masks}
    masks, layout = _first(root / base, forms, word, remedy)
    labels = Labels(benchmark.class_names, layout.lookup, benchmark.background)
    if masks.is_file():
        return coco_instances(images, masks, labels)
    photographs, annotated = _files(images, benchmark.image_end), _files(masks, layout.mask_end)
    listing = root / base / layout.listing.format(split=word)
    if layout.listing and (layout.listing_required or listing.is_file()):
        _first(root / base, {layout.listing: None}, word, remedy)
        lines = listing.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        # VOC's lists of a class have a second column
        keys, origin = [line.split()[0] for line in lines if line.strip()], f"which {listing} lists"
    else:
        keys, origin = sorted(photographs), f"for an image of {images}"
    if layout.annotated_only:
        keys = [key for key in keys if key in annotated]
    for files, where, end in ((photographs, images, benchmark.image_end), (annotated, masks, layout.mask_end)):
        if missing := [key for key in keys if key not in files]:
            more = f" nor {len(missing) - 1} others" if len(missing) > 1 else ""
            raise InputError(f"expected {missing[0]}{end} in {where}, {origin}, got no such file{more}: {remedy}")
    if not keys:
        raise InputError(f"expected images ending in {benchmark.image_end} with masks in {masks}, got none: {remedy}")
    return Folder(labels, tuple((photographs[key], annotated[key]) for key in keys))


def _first(base: Path, meanings: Mapping[str, Any], split: str, remedy: str) -> tuple[Path, Any]:
    """Return the first path below the base that exists, and its meaning."""
    named = {path.format(split=split): meaning for path, meaning in meanings.items()}
    for path, meaning in named.items():
        if (base / path).exists():
            return base / path, meaning
    wanted = list(named)
    parent = next(parent for parent in (base / wanted[0]).parents if parent.is_dir())
    names = sorted(entry.name for entry in parent.iterdir())
    rest = f" and {len(names) - 6} more" if len(names) > 6 else ""
    raise InputError(
        f"expected {' or '.join(wanted)} in {base}, got {', '.join(names[:6]) or 'nothing'}{rest} in {parent}: {remedy}"
    )


def _files(folder: Path, end: str) -> dict[str, Path]:
    """Return the files in and below a folder whose names end so, by the path before that end."""
    files = visible_files(folder, end, below=True)
    return {path.relative_to(folder).as_posix()[: -len(end)]: path for path in files}
