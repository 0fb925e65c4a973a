"""Pairs of an image and a mask, read one by one, and the table that turns a mask's values into classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Integer
from PIL import Image

from seg4diff_tools.datasets.files import open_photograph, read_labels, require_folder
from seg4diff_tools.datasets.samples import IGNORE, LabeledImage
from seg4diff_tools.errors import InputError


@dataclass(frozen=True)
class Labels:
    """What the values of a mask mean.

    Attributes:
        class_names: the whole vocabulary, in the order in which samples name their classes.
        lookup: class of each value that a mask may have; None is left out, and several values may share a class.
        background: those of the names that are stuff.
    """

    class_names: tuple[str, ...]
    lookup: Mapping[int, str | None] = field(repr=False)
    background: tuple[str, ...] = ()

    def sample(
        self,
        photograph: Path,
        values: Integer[np.ndarray, "y x"],
        source: Path,
        masks: Bool[np.ndarray, "mask y x"] | None = None,
    ) -> LabeledImage:
        """A sample that names the classes that it shows, and numbers its label map by them.

        Args:
            photograph: the image.
            values: of each pixel, before the lookup.
            source: the file that they came from, for errors.
            masks: of single things.

        Raises:
            InputError: an unreadable image, one of another size, or a value that the lookup lacks.
        """
        picture = open_photograph(photograph, values.shape, source)
        raw, inverse = np.unique(values, return_inverse=True)
        if unknown := [int(value) for value in raw if int(value) not in self.lookup]:
            raise InputError(
                f"expected labels {_spans(self.lookup)}, got {unknown[-1]} in {source}: each label needs a class name"
            )
        meanings = [self.lookup[int(value)] for value in raw]
        names = tuple(name for name in self.class_names if name in meanings)
        numbers = np.array([IGNORE if name is None else names.index(name) for name in meanings], dtype=np.int64)
        stuff = tuple(name for name in names if name in self.background)
        label_map = numbers[inverse].reshape(values.shape)
        return LabeledImage(picture, names, label_map, " ".join(names), stuff, photograph.name, masks)


@dataclass(frozen=True)
class Labeled(Sequence):
    """A sequence of samples that knows its whole vocabulary.

    Attributes:
        labels: what the values of a mask mean.
    """

    labels: Labels

    @property
    def class_names(self) -> tuple[str, ...]:
        """The whole vocabulary."""
        return self.labels.class_names

    @property
    def background(self) -> tuple[str, ...]:
        """Those of the names that are stuff."""
        return self.labels.background


@dataclass(frozen=True)
class Folder(Labeled):
    """Samples read from files one by one, as they are asked for; made by `folder` and `published`.

    Attributes:
        pairs: path of each image and of its mask.
    """

    pairs: tuple[tuple[Path, Path], ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> LabeledImage:
        photograph, mask = self.pairs[index]
        return self.labels.sample(photograph, read_labels(mask), mask)


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
        require_folder(path)
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
    lookup = dict(enumerate(class_names)) | {ignore: None}
    return Folder(Labels(tuple(class_names), lookup, tuple(background)), pairs)


def _spans(values: Mapping[int, str | None]) -> str:
    """Numbers as a person writes them: "0 to 20 or 255"."""
    runs = [
        [value for _, value in run]
        for _, run in groupby(enumerate(sorted(values)), key=lambda numbered: numbered[1] - numbered[0])
    ]
    return " or ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
