"""What segmentation needs to know of an image: the image, its classes, a label map."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Integer

from seg4diff_tools.datasets.labels import IGNORE


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
class LabeledImage:
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
class Renamed(Sequence):
    """Samples whose classes have other names; made by `renamed`.

    Attributes:
        samples: as they were.
        names: new name of each class that gets one.
    """

    samples: Any = field(repr=False)
    names: Mapping[str, str]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The whole vocabulary."""
        return self._new(self.samples.class_names)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> LabeledImage:
        sample = self.samples[index]
        names, old = self._new(sample.class_names), np.asarray(sample.label_map)
        label_map = np.full(old.shape, IGNORE, dtype=np.int64)
        for value, name in enumerate(sample.class_names):
            label_map[old == value] = names.index(self.names.get(name, name))
        return LabeledImage(sample.image, names, label_map, sample.caption, self._new(background_of(sample)))

    def _new(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.names.get(name, name) for name in names))


def renamed(samples: Sequence, names: Mapping[str, str]) -> Renamed:
    """Gives classes other names, such as those of another data set; classes of one name become one.

    Args:
        samples: images with label maps, with `class_names` for their vocabulary.
        names: new name of each class that gets one.

    Returns:
        A sequence of samples, read from the old one as they are asked for.
    """
    return Renamed(samples, dict(names))
