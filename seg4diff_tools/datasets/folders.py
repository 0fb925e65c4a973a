"""Folders of images and masks, read pair by pair, and the table from a mask's values to classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Integer
from PIL import Image

from seg4diff_tools.datasets.files import as_folder, open_photograph, read_labels, visible_files
from seg4diff_tools.datasets.labels import IGNORE, check_image_names
from seg4diff_tools.datasets.samples import LabeledImage
from seg4diff_tools.errors import InputError, as_names
from seg4diff_tools.indices import LazySequence, as_int


@dataclass(frozen=True)
class Labels:
    """What the values of a mask mean.

    Attributes:
        class_names: the whole vocabulary; samples list their classes in this order.
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
        """Make a sample with the classes that it shows, and a label map that counts in them.

        `values` of pixels come from the file `source`; `masks` are those of single things.

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
        names = check_image_names([name for name in self.class_names if name in meanings])
        numbers = np.array([IGNORE if name is None else names.index(name) for name in meanings], dtype=np.int64)
        stuff = tuple(name for name in names if name in self.background)
        label_map = numbers[inverse].reshape(values.shape)
        return LabeledImage(picture, names, label_map, " ".join(names), stuff, photograph.name, masks)


@dataclass(frozen=True)
class Labeled(LazySequence[LabeledImage]):
    """A sequence of samples with a vocabulary.

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

    def _item(self, index: int) -> LabeledImage:
        photograph, mask = self.pairs[index]
        return self.labels.sample(photograph, read_labels(mask), mask)


def folder(
    images: str | Path,
    masks: str | Path,
    class_names: Sequence[str],
    background: str | Sequence[str] = (),
    ignore: int | np.integer = IGNORE,
) -> Folder:
    """Read a data set: a folder of images and a folder of index PNGs with the same names.

    Args:
        images: folder of images in any format that Pillow reads; hidden files do not count.
        masks: folder of PNGs, grey or with a palette, whose values are class indices. Images without one are left out.
        class_names: value i of a mask means class_names[i].
        background: those of the names that are stuff (grass, sky) and not objects.
        ignore: the value of pixels to leave out, which is no class; -1 if there are none.

    Returns:
        A sequence of samples sorted by name. Each one names the classes that it shows, and numbers its label map by
        them; `class_names` of the sequence is the whole vocabulary.

    Raises:
        InputError: no such folder, no pair, two images or masks of one name, an image that is its own mask, an ignore
            value that is a class; on reading, a damaged image, a mask of another size, or a value without a name.
    """
    names = as_names(class_names, "class_names")
    stuff = as_names((background,) if isinstance(background, str) else background, "background", empty=True)
    if unknown := sorted(set(stuff) - set(names)):
        raise InputError(f"expected background among the class_names, got {unknown} outside them: add them there")
    ignore = as_int(ignore, "ignore", -(1 << 31), (1 << 31) - 1)
    if 0 <= ignore < len(names):
        raise InputError(
            f"expected an ignore value that is no class of {len(names)}, got ignore={ignore}, which is "
            f"'{names[ignore]}': pass ignore=-1 if no pixel is left out, or another value such as ignore=65535"
        )
    readable = tuple(Image.registered_extensions())
    photographs = _by_stem(as_folder(images, "images"), readable)
    annotated = _by_stem(as_folder(masks, "masks"), (".png",))
    pairs = []
    # only images with a mask count: data sets often annotate a part of their images
    for stem in sorted(photographs.keys() & annotated.keys()):
        for files in (photographs[stem], annotated[stem]):
            if len(files) > 1:
                found = " and ".join(file.name for file in files)
                raise InputError(
                    f"expected one file named {stem} in {files[0].parent}, got {found}: "
                    "keep images and masks in folders of their own, and one file of each name"
                )
        (photograph,), (mask,) = photographs[stem], annotated[stem]
        if photograph.samefile(mask):
            raise InputError(
                f"expected an image and its mask, got {mask} for both: keep masks in a folder of their own"
            )
        pairs.append((photograph, mask))
    if not pairs:
        raise InputError(
            f"expected images in {images} and index PNGs of the same names in {masks}, got no pair: "
            "name the mask of a.jpg a.png"
        )
    return Folder(Labels(names, dict(enumerate(names)) | {ignore: None}, stuff), tuple(pairs))


def _by_stem(folder: Path, endings: tuple[str, ...]) -> dict[str, list[Path]]:
    """Return the files with one of these endings by their names without it."""
    files: dict[str, list[Path]] = {}
    for path in visible_files(folder):
        if path.suffix.lower() in endings:
            files.setdefault(path.stem, []).append(path)
    return files


def _spans(values: Mapping[int, str | None]) -> str:
    """Write numbers as spans: "0 to 20 or 255"."""
    runs = [
        [value for _, value in run]
        for _, run in groupby(enumerate(sorted(values)), key=lambda numbered: numbered[1] - numbered[0])
    ]
    return " or ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
