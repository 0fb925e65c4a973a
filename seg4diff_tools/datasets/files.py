"""Readers of annotation files, which name a damaged file: index PNGs, MATLAB label maps, JSON, captions, lists."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from PIL import Image
from scipy.io import loadmat

from seg4diff_tools._runs import as_path
from seg4diff_tools.errors import InputError
from seg4diff_tools.images import open_image


def open_photograph(path: Path, shape: tuple[int, int], source: Path) -> Image.Image:
    """Open the photograph that belongs to masks of this shape, height and width, in the file `source`.

    Published data sets annotate pixels as they are stored, whatever the Exif orientation is. The image is turned
    upright only if that alone fits the size of the masks.

    Raises:
        InputError: an unreadable image, or one of another size.
    """
    for upright in (False, True):
        picture = open_image(path, upright)
        if (picture.height, picture.width) == shape:
            return picture
    raise InputError(
        f"expected masks of the image's size {picture.size}, got {shape[::-1]} in {source}: "
        f"check that they belong to {path}"
    )


def as_folder(value: str | os.PathLike[str], name: str) -> Path:
    """Return the path of a folder, its `~` expanded; raise an InputError, which names the argument, without one."""
    path = as_path(value, name)
    if not path.is_dir():
        found = "a file" if path.exists() else "no such path"
        raise InputError(f"expected a folder for {name}, got {path}, {found}: check the path")
    return path


def visible_files(folder: Path, end: str = "", *, below: bool = False) -> Iterator[Path]:
    """Yield a folder's files with this ending, in either case, in the order of their names; `below` includes
    subfolders.

    Hidden files and folders, such as `._picture.png`, are left out.
    """
    for path in sorted(folder.rglob("*") if below else folder.iterdir()):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.name.lower().endswith(end.lower()) and path.is_file():
            yield path


def read_text(path: Path, kind: str) -> str:
    """Read a user's text file in UTF-8, without the byte order mark that some editors write.

    Raises:
        InputError: missing, or in another encoding; the message says what `kind` of file was expected.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"expected {kind}, got {path}, no such file: check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected {kind} in UTF-8, got {path}, which cannot be read ({error}): save it so") from error


def read_labels(path: Path) -> Integer[np.ndarray, "y x"]:
    """Read a mask whose values are classes: a grey or palette PNG, or PASCAL Context's `.mat` with its `LabelMap`.

    Raises:
        InputError: missing or damaged, or not one integer for each pixel.
    """
    if path.suffix != ".mat":
        image = open_png(path, "index PNG")
        if image.mode not in ("P", "L", "I", "I;16", "1"):
            raise InputError(f"expected one class index for each pixel in {path}, got a picture of mode {image.mode}")
        # Pillow stretches grey values of 2 and 4 bits over 8
        return np.asarray(image).astype(np.int64) // {2: 85, 4: 17}.get(_grey_bits(path) or 8, 1)
    try:
        labels = np.asarray(loadmat(path)["LabelMap"])
    # what scipy raises depends on where the damage is
    except Exception as error:
        raise InputError(f"expected a readable MATLAB file with LabelMap, got {path} ({error!r})") from error
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise InputError(f"expected LabelMap as integers [y x] in {path}, got {labels.dtype} of shape {labels.shape}")
    return labels.astype(np.int64)


def _grey_bits(path: Path) -> int | None:
    """Return the bits of a grey value from the header of a PNG; None if it is not grey."""
    with path.open("rb") as file:
        header = file.read(26)
    return header[24] if header[25] == 0 else None


def open_png(path: Path, kind: str) -> Image.Image:
    """Open a PNG as it is; raise an InputError with its `kind` if it is missing or damaged."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError) as error:
        raise InputError(f"expected a readable {kind}, got {path} ({error}): write the file again") from error
    return image


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: missing or damaged, or not a JSON object.
    """
    try:
        content = json.loads(read_text(path, "readable JSON"))
    except json.JSONDecodeError as error:
        raise InputError(f"expected readable JSON, got {path} ({error}): fetch the file again") from error
    if not isinstance(content, dict):
        raise InputError(f"expected a JSON object in {path}, got a {type(content).__name__}: check the path")
    return content


def read_captions(path: Path, files: Mapping[int, str]) -> dict[str, str]:
    """Return the caption of each file: the first one in COCO's format, or an object from file names to captions.

    Args:
        path: the JSON.
        files: name of each file, by COCO's number of the image.
    """
    content = read_json(path)
    if not isinstance(content.get("annotations"), list):
        return {name: text for name, text in content.items() if isinstance(text, str)}
    captions: dict[str, str] = {}
    try:
        for entry in content["annotations"]:
            if entry["image_id"] in files:
                captions.setdefault(files[entry["image_id"]], entry["caption"].strip())
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"expected annotations with image_id and caption in {path}, got others ({error!r}): pass COCO's captions"
        ) from error
    return captions
