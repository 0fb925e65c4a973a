"""Samples that are read and checked, with a fingerprint of everything that their scores depend on."""

import hashlib
from dataclasses import dataclass

import PIL.Image
import torch

from seg4diff_tools.datasets.labels import check_image_names, check_labels, label_array
from seg4diff_tools.datasets.samples import Sample, background_of
from seg4diff_tools.errors import InputError
from seg4diff_tools.images import open_image


@dataclass(frozen=True, eq=False)
class OpenedSample:
    """A sample that was read: its place in the data set, its image, and a hash of pixels, labels and class names."""

    index: int
    sample: Sample
    picture: PIL.Image.Image
    fingerprint: str


def open_sample(sample: Sample, index: int) -> OpenedSample:
    """Read and check the sample at a place in the data set.

    Raises:
        InputError: not a sample, an unreadable image, a label map of another size, or a class index out of range.
    """
    if not isinstance(sample, Sample):
        raise InputError(
            f"expected a sample with image, class_names, label_map and caption at index {index}, got "
            f"{type(sample).__name__}: make a datasets.LabeledImage"
        )
    picture = open_image(sample.image)
    labels, names = label_array(sample.label_map), check_image_names(sample.class_names)
    if labels.shape != (picture.height, picture.width):
        raise InputError(
            f"expected a label map of the image's size {(picture.height, picture.width)} for sample {index}, got "
            f"{labels.shape}: check that it belongs to this image"
        )
    check_labels(torch.from_numpy(labels), len(names))
    content = hashlib.sha256(picture.tobytes())
    content.update(labels.tobytes())
    content.update(repr((list(names), background_of(sample))).encode())
    return OpenedSample(index, sample, picture, content.hexdigest())
