"""COCO's formats: panoptic PNGs with the class of each segment, and instances as polygons in a JSON."""

from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from seg4diff_tools._runs import as_path
from seg4diff_tools.datasets.files import as_folder, open_photograph, open_png, read_captions, read_json
from seg4diff_tools.datasets.folders import Labeled, Labels
from seg4diff_tools.datasets.labels import IGNORE
from seg4diff_tools.datasets.samples import LabeledImage
from seg4diff_tools.errors import InputError, named_extra

with named_extra():
    from pycocotools.coco import COCO


@dataclass(frozen=True)
class CocoPanoptic(Labeled):
    """Images annotated in COCO's panoptic format, read one by one; made by `coco_panoptic`.

    Attributes:
        images, masks: folders of the photographs, and of the PNGs whose colors are segments.
        annotations: of each image: its file, its PNG, and the class of each segment.
    """

    images: Path
    masks: Path
    annotations: tuple[Mapping[str, Any], ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.annotations)

    def _item(self, index: int) -> LabeledImage:
        entry = self.annotations[index]
        path = self.masks / entry["mask"]
        colors = np.asarray(open_png(path, "panoptic PNG").convert("RGB")).astype(np.int64)
        segments = colors @ [1, 256, 256**2]
        picture = open_photograph(self.images / entry["image"], segments.shape, path)
        names = tuple(dict.fromkeys(name for _, name, _ in entry["segments"]))
        label_map, masks = np.full(segments.shape, IGNORE, dtype=np.int64), []
        for number, name, crowd in entry["segments"]:
            mask = segments == number
            label_map[mask] = names.index(name)
            # a crowd is many things under one mask
            masks += [] if crowd else [mask]
        stuff = tuple(name for name in names if name in self.background)
        stacked = np.stack(masks) if masks else np.zeros((0, *segments.shape), bool)
        return LabeledImage(picture, names, label_map, entry["caption"], stuff, entry["image"], stacked)


def coco_panoptic(
    images: str | Path, masks: str | Path, annotations: str | Path, captions: str | Path | None = None
) -> CocoPanoptic:
    """Read a data set in COCO's panoptic format.

    Args:
        images: folder of the photographs, such as `train2017`.
        masks: folder of the PNGs, such as `panoptic_train2017`.
        annotations: JSON, such as `panoptic_train2017.json`.
        captions: JSON in COCO's caption format, such as `captions_train2017.json`, of which each image gets its first
            one, or an object that gives each file name its caption; without it the caption is the class names.

    Returns:
        A sequence of samples; COCO's suffixes and hyphens of stuff are left out of class names ("wall-brick" is "wall
        brick", "floor-other-merged" is "floor"). `masks` of a sample are its segments, crowds excepted.

    Raises:
        InputError: no such folder, a JSON that is not in this format, and on reading a damaged image or PNG.
    """
    photographs, segmented = as_folder(images, "images"), as_folder(masks, "masks")
    content = read_json(as_path(annotations, "annotations"))
    try:
        classes = {entry["id"]: _spoken(entry["name"]) for entry in content["categories"]}
        stuff = tuple(dict.fromkeys(classes[entry["id"]] for entry in content["categories"] if not entry["isthing"]))
        files = {entry["id"]: entry["file_name"] for entry in content["images"]}
        entries = []
        texts = {} if captions is None else read_captions(as_path(captions, "captions"), files)
        for annotation in content["annotations"]:
            file = files[annotation["image_id"]]
            segments = tuple(
                (s["id"], classes[s["category_id"]], bool(s["iscrowd"])) for s in annotation["segments_info"]
            )
            caption = texts.get(file) or " ".join(dict.fromkeys(name for _, name, _ in segments))
            entries.append({"image": file, "mask": annotation["file_name"], "segments": segments, "caption": caption})
    except (KeyError, TypeError) as error:
        raise InputError(
            f"expected COCO's panoptic format in {annotations} (categories, images, annotations with segments_info), "
            f"got one without {error}: pass a file such as panoptic_train2017.json"
        ) from error
    if not entries:
        raise InputError(f"expected annotated images in {annotations}, got none: check the path")
    if same := [entry["image"] for entry in entries if photographs / entry["image"] == segmented / entry["mask"]]:
        raise InputError(f"expected an image and its mask, got {same[0]} for both: keep masks in a folder of their own")
    entries.sort(key=lambda entry: entry["image"])
    labels = Labels(tuple(dict.fromkeys(classes.values())), {}, stuff)
    return CocoPanoptic(labels, photographs, segmented, tuple(entries))


@dataclass(frozen=True)
class CocoInstances(Labeled):
    """Images whose label maps are drawn from the polygons of single things, read one by one; made by `published`.

    A thing's value is its category's number less one, as in COCO-Stuff's pixel maps, and other pixels are 255. Crowds
    are drawn first and then things, larger before smaller, so that what lies on a table stays visible.

    Attributes:
        images, numbers: path and COCO's number of each image.
        coco: the annotations.
        source: the JSON that they came from.
    """

    images: tuple[Path, ...] = field(repr=False)
    numbers: tuple[int, ...] = field(repr=False)
    coco: COCO = field(repr=False, compare=False)
    source: Path

    def __len__(self) -> int:
        return len(self.images)

    def _item(self, index: int) -> LabeledImage:
        photograph, number = self.images[index], self.numbers[index]
        try:
            shape = self.coco.imgs[number]["height"], self.coco.imgs[number]["width"]
            things = [
                (bool(entry.get("iscrowd")), entry["category_id"] - 1, self.coco.annToMask(entry).astype(bool))
                for entry in self.coco.imgToAnns.get(number, ())
            ]
        # what pycocotools raises depends on what is wrong
        except Exception as error:
            raise InputError(
                f"expected instances in COCO's format for {photograph.name} in {self.source}, got others ({error!r}): "
                "fetch the file again"
            ) from error
        values = np.full(shape, IGNORE, dtype=np.int64)
        for _, value, mask in sorted(things, key=lambda thing: (not thing[0], -int(thing[2].sum()))):
            values[mask] = value
        single = [mask for crowd, _, mask in things if not crowd]
        masks = np.stack(single) if single else np.zeros((0, *shape), dtype=bool)
        return self.labels.sample(photograph, values, self.source, masks)


def coco_instances(images: Path, annotations: Path, labels: Labels) -> CocoInstances:
    """Read images annotated in COCO's instance format: all that the JSON lists, also those that show no thing.

    `labels` gives the meaning of each category's number, less one.

    Raises:
        InputError: another JSON, or an image that the folder lacks.
    """
    coco = COCO()
    try:
        coco.dataset = read_json(annotations)
        if missing := {"categories", "images", "annotations"} - set(coco.dataset):
            raise KeyError(*sorted(missing))
        # pycocotools reports its progress
        with redirect_stdout(StringIO()):
            coco.createIndex()
        listed = sorted((entry["file_name"], entry["id"]) for entry in coco.dataset["images"])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"expected COCO's instance format in {annotations} (categories, images, annotations), got one without "
            f"{error}: fetch the file again"
        ) from error
    present = {path.name for path in images.iterdir()}
    for name, _ in listed:
        if name not in present:
            raise InputError(
                f"expected {name} in {images}, which {annotations.name} lists, got no such file: unpack it"
            )
    if not listed:
        raise InputError(f"expected images in {annotations}, got none: fetch the file again")
    paths, numbers = tuple(images / name for name, _ in listed), tuple(number for _, number in listed)
    return CocoInstances(labels, paths, numbers, coco, annotations)


def _spoken(name: str) -> str:
    """Return a class name of COCO's stuff as words of a prompt."""
    for suffix in ("-merged", "-other", "-stuff"):
        name = name.removesuffix(suffix)
    return name.replace("-", " ")
