"""Preprocessing of the released unsupervised evaluation: images resized to 640 pixels and padded, maps cropped."""

from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate, pad

from seg4diff_tools.images import open_image

SHORTEST, LONGEST, MULTIPLE = 640, 2560, 32
"""Pixels of the resized shorter side, of the longer side at most, and divisor of padded sides."""


@dataclass(frozen=True, eq=False)
class ReleasedFrame:
    """One sample as the released code reads and scores it.

    Attributes:
        image: padded with black on the right and at the bottom, then stretched to the model's size.
        label_map: of the image before padding, where maps are scored.
        file_size: height and width of the file in pixels.
    """

    image: PIL.Image.Image
    label_map: Int[Tensor, "rows columns"]
    file_size: tuple[int, int]

    def labels(self, maps: Float[Tensor, "group y x"]) -> Int[Tensor, "rows columns"]:
        """Return the number of the strongest map at each pixel of `label_map`.

        Maps of the padded image are stretched to the file's size, which shifts them. They are then cropped to the
        resized image's size, at the top left, and stretched again.
        """
        size = tuple(self.label_map.shape)
        for target in (self.file_size, size):
            cut = maps[:, : size[0], : size[1]]
            maps = interpolate(cut[None], target, mode="bilinear", align_corners=False)[0]
        return maps.argmax(0)


def released_frame(
    image: PIL.Image.Image, label_map: Int[Tensor, "height width"], size: tuple[int, int]
) -> ReleasedFrame:
    """Preprocess an RGB image and its label map as the released unsupervised evaluation does.

    Args:
        image, label_map: of one size.
        size: height and width in pixels at which the model reads images.

    Source: github.com/cvlab-kaist/Seg4Diff at commit bb500ca, `Trainer.test_unsupervised` and `Seg4DiffUnsup.forward`,
    with detectron2's `ResizeShortestEdge`, `ImageList.from_tensors` and `sem_seg_postprocess`.
    """
    height, width = image.height, image.width
    scale = min(SHORTEST / min(height, width), LONGEST / max(height, width))
    rows, columns = int(height * scale + 0.5), int(width * scale + 0.5)
    pixels = np.asarray(image.resize((columns, rows), PIL.Image.Resampling.BILINEAR))
    resized = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
    padded = pad(resized, (0, -columns % MULTIPLE, 0, -rows % MULTIPLE))
    read = interpolate(padded[None], size, mode="bilinear", align_corners=False)[0]
    labels = interpolate(label_map[None, None].double(), (rows, columns), mode="nearest-exact")[0, 0].long()
    return ReleasedFrame(open_image(read.clamp(0, 1)), labels, (height, width))
