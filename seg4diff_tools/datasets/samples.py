"""What segmentation needs to know of an image: the image, its classes, a label map."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Integer

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
