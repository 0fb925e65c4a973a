"""TODO."""

import hashlib
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch

from seg4diff_tools.datasets import Sample, background_of
from seg4diff_tools.datasets.labels import check_labels
from seg4diff_tools.errors import InputError
from seg4diff_tools.images import open_images


@dataclass(frozen=True, eq=False)
class OpenedSample:
    """A sample that was read, with its image.

    Attributes:
        index: its place in the data set.
        sample: with its label map.
        picture: the image, as large as the label map.
        fingerprint: of all that its counts depend on.
    """

    index: int
    sample: Sample
    picture: PIL.Image.Image
    fingerprint: str


def open_sample(sample: Sample, index: int) -> OpenedSample:
    """Reads a sample and checks it.

    Args:
        sample: an image with a label map.
        index: its place in the data set.

    Raises:
        InputError: an unreadable image, a label map of another size, or a class index out of range.
    """
    (picture,) = open_images(sample.image)
    labels = np.asarray(sample.label_map)
    if labels.shape != (picture.height, picture.width):
        raise InputError(
            f"expected a label map of the image's size {(picture.height, picture.width)} for sample {index}, got "
            f"{labels.shape}: check that it belongs to this image"
        )
    check_labels(torch.from_numpy(labels.astype(np.int64)), len(sample.class_names))
    content = hashlib.sha256(picture.tobytes())
    content.update(labels.astype(np.int64).tobytes())
    content.update(repr((list(sample.class_names), background_of(sample))).encode())
    return OpenedSample(index, sample, picture, content.hexdigest())
