"""Samples: an image, its class names and its label map."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Integer
from torch import Tensor

from seg4diff_tools.datasets.labels import IGNORE, check_image_names, label_array
from seg4diff_tools.errors import InputError, as_names
from seg4diff_tools.indices import LazySequence


@runtime_checkable
class Sample(Protocol):
    """Interface of an annotated image: scenes, and anything else with these attributes.

    Attributes:
        image: path, PIL image, uint8 array [y x 3] or float tensor [3 y x] from 0 to 1.
        class_names: the classes of this image, at most 255.
        label_map: integers [y x]; value i means class_names[i], 255 means ignore.
        caption: what the image shows.

    A sample may also have `background`: the one name, or the names, of its classes that are stuff and not objects.
    """

    @property
    def image(self) -> Any: ...

    @property
    def class_names(self) -> Sequence[str]: ...

    @property
    def label_map(self) -> Any: ...

    @property
    def caption(self) -> str: ...


def background_of(sample: Sample) -> tuple[str, ...]:
    """Return the names of a sample's classes that are stuff and not objects; its `background` may be missing.

    Raises:
        InputError: a background that is neither one name nor several.
    """
    return _background(getattr(sample, "background", ()))


def _background(names: Any) -> tuple[str, ...]:
    return as_names((names,) if isinstance(names, str) else names, "background", empty=True)


def vocabulary_of(samples: Sequence) -> tuple[str, ...]:
    """Return the class names of a data set: its own, or all that its samples name."""
    if hasattr(samples, "class_names"):
        return tuple(samples.class_names)
    return tuple(dict.fromkeys(name for sample in samples for name in sample.class_names))


@dataclass(frozen=True)
class LabeledImage:
    """An image with its label map.

    Attributes:
        image: path, PIL image, uint8 array [y x 3] or float tensor [3 y x] from 0 to 1.
        class_names: the classes of this image, at most 255.
        label_map: value i means class_names[i], 255 means ignore.
        caption: what the image shows; may be empty.
        background: names of classes that are stuff (grass, sky) and not objects.
        name: where it came from; may be empty.
        masks: of single things, which may overlap and need no class; None where there are none.

    Raises:
        InputError: class names that are not a list of distinct names, or too many; a background that is not one name or
            several; a caption or name that is not text; or masks that are not an array [mask y x].
    """

    image: Any = field(repr=False)
    class_names: tuple[str, ...]
    label_map: Integer[np.ndarray, "y x"] = field(repr=False)
    caption: str = ""
    background: tuple[str, ...] = ()
    name: str = ""
    masks: Bool[np.ndarray, "mask y x"] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", check_image_names(self.class_names))
        object.__setattr__(self, "background", _background(self.background))
        for name in ("caption", "name"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"expected {name} as text, got {getattr(self, name)!r}: pass {name}=''")
        if self.masks is not None and getattr(self.masks, "ndim", 0) != 3:
            raise InputError(f"expected masks as an array [mask y x], got {type(self.masks).__name__}: stack them")


@dataclass(frozen=True)
class Renamed(LazySequence[LabeledImage]):
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
        return self._new(vocabulary_of(self.samples))

    @property
    def background(self) -> tuple[str, ...]:
        """Those of the names that are stuff."""
        if hasattr(self.samples, "background"):
            return self._new(self.samples.background)
        return self._new(dict.fromkeys(name for sample in self.samples for name in background_of(sample)))

    def __len__(self) -> int:
        return len(self.samples)

    def _item(self, index: int) -> LabeledImage:
        sample = self.samples[index]
        names, old = self._new(sample.class_names), label_array(sample.label_map)
        label_map = np.full(old.shape, IGNORE, dtype=np.int64)
        for value, name in enumerate(sample.class_names):
            label_map[old == value] = names.index(self.names.get(name, name))
        stuff, origin = self._new(background_of(sample)), getattr(sample, "name", "")
        masks = getattr(sample, "masks", None)
        return LabeledImage(sample.image, names, label_map, sample.caption, stuff, origin, masks)

    def _new(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.names.get(name, name) for name in names))


def renamed(samples: Sequence, names: Mapping[str, str]) -> Renamed:
    """Rename classes, for instance to those of another data set; classes with the same new name are merged.

    Args:
        samples: images with label maps, with `class_names` for their vocabulary.
        names: new name of each class that gets one.

    Returns:
        A sequence of samples, read from the old one as they are asked for; everything but the names stays.

    Raises:
        InputError: no samples, no names, or a new name for a class that the vocabulary lacks.
    """
    listed = isinstance(samples, (list, tuple, np.ndarray))
    if isinstance(samples, (str, bytes, Mapping, set, Tensor)) or not hasattr(samples, "__len__"):
        raise InputError(f"expected samples, images with label maps, got {samples!r}: pass those of datasets.folder")
    if listed and (strange := [each for each in samples if not isinstance(each, Sample)]):
        raise InputError(
            f"expected samples, images with label maps, got {type(strange[0]).__name__} in it: pass LabeledImage(...)"
        )
    pairs = names.items() if isinstance(names, Mapping) else [(None,)]
    if not all(isinstance(text, str) and text.strip() for pair in pairs for text in pair):
        raise InputError(f"expected names as old: new, got {names!r}: pass names={{'sofa': 'couch'}}")
    known = vocabulary_of(samples) if listed else getattr(samples, "class_names", tuple(names))
    if unknown := [name for name in names if name not in known]:
        near = get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise InputError(f"expected classes of the samples as keys of names, got {unknown[0]!r}: {hint}")
    return Renamed(samples, dict(names))
