"""Files of annotations, each opened or named in an error: index PNGs, MATLAB's label maps, JSON, captions."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from PIL import Image
from scipy.io import loadmat

from seg4diff_tools.errors import InputError
from seg4diff_tools.images import open_image


def open_photograph(path: Path, shape: tuple[int, int], source: Path) -> Image.Image:
    """Opens the photograph that masks belong to.

    Published data sets annotate pixels as they are stored, whatever Exif says of their orientation. Where only the upright
    picture has the size of the masks, they were drawn on that.

    Args:
        path: of the photograph.
        shape: height and width of its masks.
        source: the file of the masks, for the error.

    Raises:
        InputError: an unreadable image, or one of another size.
    """
    for upright in (False, True):
        picture = open_image(path, upright)
        if (picture.height, picture.width) == shape:
            return picture
    raise InputError(
        f"expected masks of the image's size {picture.size}, got {shape[::-1]} in {source}: they do not belong to {path}"
    )


def require_folder(path: Path) -> None:
    """Raises: InputError if the path is no folder."""
    if not path.is_dir():
        raise InputError(f"expected a folder, got {path}: check the path")


def read_labels(path: Path) -> Integer[np.ndarray, "y x"]:
    """Reads a mask whose values are classes: a grey or palette PNG, or PASCAL Context's `.mat` with its `LabelMap`.

    Raises:
        InputError: missing or damaged, or no single integer for each pixel.
    """
    if path.suffix != ".mat":
        image = open_png(path, "index PNG")
        if image.mode not in ("P", "L", "I", "I;16", "1"):
            raise InputError(f"expected one class index for each pixel in {path}, got a picture of mode {image.mode}")
        # Pillow stretches grey values of 2 and 4 bits over 8
        return np.asarray(image).astype(np.int64) // {2: 85, 4: 17}.get(_grey_bits(path), 1)
    try:
        labels = np.asarray(loadmat(path)["LabelMap"])
    # what scipy raises depends on where the damage is
    except Exception as error:
        raise InputError(f"expected a readable MATLAB file with LabelMap, got {path} ({error!r})") from error
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise InputError(f"expected LabelMap as integers [y x] in {path}, got {labels.dtype} of shape {labels.shape}")
    return labels.astype(np.int64)


def _grey_bits(path: Path) -> int | None:
    """Bits of a grey value, from the header of a PNG; None for one of another kind."""
    with path.open("rb") as file:
        header = file.read(26)
    return header[24] if header[25] == 0 else None


def open_png(path: Path, kind: str) -> Image.Image:
    """Opens a PNG as it is.

    Args:
        path: the file.
        kind: what it should be, for the error.

    Raises:
        InputError: missing or damaged.
    """
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError) as error:
        raise InputError(f"expected a readable {kind}, got {path} ({error}): write the file again") from error
    return image


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        InputError: missing or damaged, or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"expected readable JSON, got {path} ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"expected a JSON object in {path}, got a {type(content).__name__}")
    return content


def read_captions(path: Path, files: Mapping[int, str]) -> dict[str, str]:
    """Caption of each file: the first of an image in COCO's format, or an object from file names to captions.

    Args:
        path: the JSON.
        files: name of each file, by COCO's number of the image.
    """
    content = read_json(path)
    if not isinstance(content.get("annotations"), list):
        return {name: text for name, text in content.items() if isinstance(text, str)}
    told: dict[str, str] = {}
    for entry in content["annotations"]:
        if entry["image_id"] in files:
            told.setdefault(files[entry["image_id"]], entry["caption"].strip())
    return told
