"""SA-1B: images with masks that have no names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seg4diff_tools._runs import as_path
from seg4diff_tools.datasets.files import as_folder, open_photograph, read_captions, read_json, visible_files
from seg4diff_tools.datasets.labels import IGNORE
from seg4diff_tools.datasets.samples import LabeledImage
from seg4diff_tools.errors import InputError, named_extra
from seg4diff_tools.indices import LazySequence

with named_extra():
    from pycocotools import mask as rle


@dataclass(frozen=True)
class Sa1b(LazySequence[LabeledImage]):
    """Images of SA-1B with masks that have no names, read one by one; made by `sa1b`.

    Attributes:
        images: path of each image; its masks are in the JSON beside it.
        captions: of each image, by file name.
    """

    images: tuple[Path, ...] = field(repr=False)
    captions: Mapping[str, str] = field(repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def _item(self, index: int) -> LabeledImage:
        photograph = self.images[index]
        path = photograph.with_suffix(".json")
        try:
            masks = rle.decode([annotation["segmentation"] for annotation in read_json(path)["annotations"]])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"expected masks in COCO's run-length encoding in {path}, got others ({error!r}): fetch the file again"
            ) from error
        picture = open_photograph(photograph, masks.shape[:2], path)
        blank = np.full(masks.shape[:2], IGNORE, dtype=np.int64)
        caption = self.captions.get(photograph.name, "")
        return LabeledImage(picture, (), blank, caption, (), photograph.name, masks.transpose(2, 0, 1).astype(bool))


def sa1b(folder: str | Path, captions: str | Path | None = None) -> Sa1b:
    """Read images of SA-1B: `sa_1.jpg` with its masks in `sa_1.json`, in one folder or in folders below it.

    Args:
        folder: where an archive of SA-1B was unpacked.
        captions: JSON object that gives each file name its caption; without it captions are empty.

    Returns:
        A sequence of samples without class names, for fine-tuning on masks (`MagnetConfig(maps="heads")`).

    Raises:
        InputError: no such folder, no image with a JSON beside it, and on reading a damaged file.
    """
    path = as_folder(folder, "folder")
    images = tuple(file for file in visible_files(path, ".jpg", below=True) if file.with_suffix(".json").is_file())
    if not images:
        raise InputError(
            f"expected images with masks in {path}, such as sa_1.jpg and sa_1.json, got no pair: "
            "unpack an archive there"
        )
    return Sa1b(images, {} if captions is None else read_captions(as_path(captions, "captions"), {}))
