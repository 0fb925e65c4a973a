"""Images with label maps, as segmentation and its scores want them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer
from PIL import Image

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
    """

    image: Any
    class_names: tuple[str, ...]
    label_map: Integer[np.ndarray, "y x"]
    caption: str = ""
    background: tuple[str, ...] = ()
    name: str = ""


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


def _read_indices(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError) as error:
        raise InputError(f"expected a readable index PNG, got {path} ({error}): write the file again") from error
    if image.mode not in ("P", "L", "I", "I;16", "1"):
        raise InputError(f"expected one class index for each pixel in {path}, got a picture of mode {image.mode}")
    return image
