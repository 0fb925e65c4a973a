"""Images with label maps or masks: folders of index PNGs, COCO's panoptic format, SA-1B's files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Integer
from PIL import Image
from pycocotools import mask as rle

from seg4diff_tools.errors import InputError
from seg4diff_tools.images import open_image

IGNORE = 255


@runtime_checkable
class Sample(Protocol):
    """What segmentation needs to know of an image; scenes, and anything else with these attributes, will do.

    Attributes:
        image: PIL image, path, or uint8 array [height, width, 3].
        class_names: the classes of this image.
        label_map: integers [height, width]; value i means class_names[i], 255 means ignore.
        caption: what the image shows.

    A sample may also have `background`: the one name, or the names, of its classes that are stuff and not objects.
    """

    image: Any
    class_names: Sequence[str]
    label_map: Any
    caption: str


def background_of(sample: Sample) -> tuple[str, ...]:
    """Names of a sample's classes that are stuff and not objects.

    Args:
        sample: its `background` is one name or several, or is missing.
    """
    background = getattr(sample, "background", ())
    return (background,) if isinstance(background, str) else tuple(background)


@dataclass(frozen=True)
class LabelledImage:
    """An image with its label map.

    Attributes:
        image: PIL image, path, or uint8 array [height, width, 3].
        class_names: the classes of this image.
        label_map: value i means class_names[i], 255 means ignore.
        caption: what the image shows; may be empty.
        background: names of classes that are stuff (grass, sky) and not objects.
        name: where it came from; may be empty.
        masks: of single things, which may overlap and need no class; None where there are none.
    """

    image: Any
    class_names: tuple[str, ...]
    label_map: Integer[np.ndarray, "y x"]
    caption: str = ""
    background: tuple[str, ...] = ()
    name: str = ""
    masks: Bool[np.ndarray, "mask y x"] | None = None


@dataclass(frozen=True)
class Folder(Sequence):
    """Samples read from files one by one, as they are asked for; made by `folder`.

    Attributes:
        pairs: path of each image and of its mask.
        class_names: the whole vocabulary; value i of a mask means class_names[i].
        background: those of the names that are stuff.
        ignore: the value of pixels to leave out.
    """

    pairs: tuple[tuple[Path, Path], ...]
    class_names: tuple[str, ...]
    background: tuple[str, ...]
    ignore: int

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> LabelledImage:
        photograph, mask = self.pairs[index]
        picture, indices = open_image(photograph), _read_indices(mask)
        if indices.size != picture.size:
            raise InputError(
                f"expected a label map of the image's size {picture.size}, got {indices.size} in {mask}: "
                f"it does not belong to {photograph}"
            )
        labels = np.asarray(indices).astype(np.int64)
        present = [int(value) for value in np.unique(labels) if value != self.ignore]
        if present and present[-1] >= len(self.class_names):
            raise InputError(
                f"expected labels below {len(self.class_names)} or {self.ignore} to ignore, got {present[-1]} in "
                f"{mask}: give one class name for each label"
            )
        label_map = np.full(labels.shape, IGNORE, dtype=np.int64)
        for position, value in enumerate(present):
            label_map[labels == value] = position
        names = tuple(self.class_names[value] for value in present)
        stuff = tuple(name for name in names if name in self.background)
        return LabelledImage(picture, names, label_map, " ".join(names), stuff, photograph.name)


def folder(
    images: str | Path,
    masks: str | Path,
    class_names: Sequence[str],
    background: Sequence[str] = (),
    ignore: int = IGNORE,
) -> Folder:
    """Reads a data set: a folder of images and a folder of index PNGs with the same names.

    Args:
        images: folder of images in any format that Pillow reads.
        masks: folder of PNGs, grey or with a palette, whose values are class indices. Images without one are left out.
        class_names: value i of a mask means class_names[i].
        background: those of the names that are stuff (grass, sky) and not objects.
        ignore: the value of pixels to leave out.

    Returns:
        A sequence of samples sorted by name. Each one names the classes that it shows, and numbers its label map by
        them; `class_names` of the sequence is the whole vocabulary.

    Raises:
        InputError: no such folder, no pair, and on reading an unreadable image, a mask of another size, or a value
            without a name.
    """
    if not class_names or len(set(class_names)) < len(class_names):
        raise InputError(f"expected class names, each one once, got {list(class_names)}")
    if unknown := set(background) - set(class_names):
        raise InputError(f"expected background names among the class names, got {sorted(unknown)} outside them")
    for path in (Path(images), Path(masks)):
        if not path.is_dir():
            raise InputError(f"expected a folder, got {path}: check the path")
    readable = set(Image.registered_extensions())
    photographs = {path.stem: path for path in Path(images).iterdir() if path.suffix.lower() in readable}
    # only images with a mask count: data sets often annotate a part of their images
    found = ((photographs.get(mask.stem), mask) for mask in sorted(Path(masks).glob("*.png")))
    pairs = tuple((photograph, mask) for photograph, mask in found if photograph)
    if not pairs:
        raise InputError(
            f"expected images in {images} and index PNGs of the same names in {masks}, got no pair: "
            "name the mask of a.jpg a.png"
        )
    return Folder(pairs, tuple(class_names), tuple(background), ignore)


@dataclass(frozen=True)
class CocoPanoptic(Sequence):
    """Images annotated in COCO's panoptic format, read one by one; made by `coco_panoptic`.

    Attributes:
        images: folder of the photographs.
        masks: folder of the PNGs whose colours are segments.
        annotations: of each image: its file, its PNG, and the class of each segment.
        class_names: the whole vocabulary.
        background: those of the names that are stuff.
    """

    images: Path
    masks: Path
    annotations: tuple[Mapping[str, Any], ...] = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)
    background: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> LabelledImage:
        entry = self.annotations[index]
        picture, path = open_image(self.images / entry["image"]), self.masks / entry["mask"]
        colours = np.asarray(_opened(path, "panoptic PNG").convert("RGB")).astype(np.int64)
        segments = colours @ [1, 256, 256**2]
        if segments.shape != (picture.height, picture.width):
            raise InputError(
                f"expected a panoptic PNG of the image's size {picture.size}, got {segments.shape[::-1]} in {path}: it does "
                f"not belong to {entry['image']}"
            )
        names = tuple(dict.fromkeys(name for _, name, _ in entry["segments"]))
        label_map, masks = np.full(segments.shape, IGNORE, dtype=np.int64), []
        for number, name, crowd in entry["segments"]:
            mask = segments == number
            label_map[mask] = names.index(name)
            # a crowd is many things under one mask
            masks += [] if crowd else [mask]
        stuff = tuple(name for name in names if name in self.background)
        stacked = np.stack(masks) if masks else np.zeros((0, *segments.shape), bool)
        return LabelledImage(picture, names, label_map, entry["caption"], stuff, entry["image"], stacked)


def coco_panoptic(
    images: str | Path, masks: str | Path, annotations: str | Path, captions: str | Path | None = None
) -> CocoPanoptic:
    """Reads a data set in COCO's panoptic format.

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
    for path in (Path(images), Path(masks)):
        if not path.is_dir():
            raise InputError(f"expected a folder, got {path}: check the path")
    content = _read_json(Path(annotations))
    try:
        classes = {entry["id"]: _spoken(entry["name"]) for entry in content["categories"]}
        stuff = tuple(dict.fromkeys(classes[entry["id"]] for entry in content["categories"] if not entry["isthing"]))
        files = {entry["id"]: entry["file_name"] for entry in content["images"]}
        entries = []
        told = {} if captions is None else _captions(Path(captions), files)
        for annotation in content["annotations"]:
            file = files[annotation["image_id"]]
            segments = tuple(
                (s["id"], classes[s["category_id"]], bool(s["iscrowd"])) for s in annotation["segments_info"]
            )
            caption = told.get(file) or " ".join(dict.fromkeys(name for _, name, _ in segments))
            entries.append({"image": file, "mask": annotation["file_name"], "segments": segments, "caption": caption})
    except (KeyError, TypeError) as error:
        raise InputError(
            f"expected COCO's panoptic format in {annotations} (categories, images, annotations with segments_info), got "
            f"one without {error}"
        ) from error
    if not entries:
        raise InputError(f"expected annotated images in {annotations}, got none")
    entries.sort(key=lambda entry: entry["image"])
    return CocoPanoptic(Path(images), Path(masks), tuple(entries), tuple(dict.fromkeys(classes.values())), stuff)


@dataclass(frozen=True)
class Sa1b(Sequence):
    """Images with nameless masks as SA-1B has them, read one by one; made by `sa1b`.

    Attributes:
        images: path of each image; its masks are in the JSON beside it.
        captions: of each image, by file name.
    """

    images: tuple[Path, ...] = field(repr=False)
    captions: Mapping[str, str] = field(repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> LabelledImage:
        photograph = self.images[index]
        picture, path = open_image(photograph), photograph.with_suffix(".json")
        try:
            masks = rle.decode([annotation["segmentation"] for annotation in _read_json(path)["annotations"]])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"expected masks in COCO's run-length encoding in {path}, got others ({error!r})"
            ) from error
        if masks.shape[:2] != (picture.height, picture.width):
            raise InputError(f"expected masks of the image's size {picture.size}, got {masks.shape[1::-1]} in {path}")
        blank = np.full(masks.shape[:2], IGNORE, dtype=np.int64)
        caption = self.captions.get(photograph.name, "")
        return LabelledImage(picture, (), blank, caption, (), photograph.name, masks.transpose(2, 0, 1).astype(bool))


def sa1b(folder: str | Path, captions: str | Path | None = None) -> Sa1b:
    """Reads images of SA-1B: `sa_1.jpg` with its masks in `sa_1.json`, in one folder or in folders below it.

    Args:
        folder: where an archive of SA-1B was unpacked.
        captions: JSON object that gives each file name its caption; without it captions are empty.

    Returns:
        A sequence of samples without class names, for fine-tuning on masks (`MagnetConfig(maps="heads")`).

    Raises:
        InputError: no such folder, no image with a JSON beside it, and on reading a damaged file.
    """
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"expected a folder, got {path}: check the path")
    found = tuple(photograph for photograph in sorted(path.rglob("*.jpg")) if photograph.with_suffix(".json").is_file())
    if not found:
        raise InputError(f"expected images with masks in {path}, such as sa_1.jpg and sa_1.json, got no pair")
    return Sa1b(found, {} if captions is None else _captions(Path(captions), {}))


def _captions(path: Path, files: Mapping[int, str]) -> dict[str, str]:
    """Caption of each file: the first of an image in COCO's format, or an object from file names to captions."""
    content = _read_json(path)
    if not isinstance(content.get("annotations"), list):
        return {name: text for name, text in content.items() if isinstance(text, str)}
    told: dict[str, str] = {}
    for entry in content["annotations"]:
        if entry["image_id"] in files:
            told.setdefault(files[entry["image_id"]], entry["caption"].strip())
    return told


def _spoken(name: str) -> str:
    """A class name of COCO's stuff as a word of a prompt."""
    for suffix in ("-merged", "-other", "-stuff"):
        name = name.removesuffix(suffix)
    return name.replace("-", " ")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"expected readable JSON, got {path} ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"expected a JSON object in {path}, got a {type(content).__name__}")
    return content


def _read_indices(path: Path) -> Image.Image:
    image = _opened(path, "index PNG")
    if image.mode not in ("P", "L", "I", "I;16", "1"):
        raise InputError(f"expected one class index for each pixel in {path}, got a picture of mode {image.mode}")
    return image


def _opened(path: Path, kind: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError) as error:
        raise InputError(f"expected a readable {kind}, got {path} ({error}): write the file again") from error
    return image
