"""What results of segmentation share: shares of pixels and thumbnails for notebooks."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from io import BytesIO

import numpy as np
import PIL.Image
from jaxtyping import Int, UInt8

THUMBNAIL = 160
"""Longest side of a thumbnail in pixels."""


def shares(label_map: Int[np.ndarray, "y x"], names: Sequence[str]) -> dict[str, float]:
    """Return the share of the pixels (0..1) of each name."""
    counts = np.bincount(label_map.ravel(), minlength=len(names))
    return {name: int(count) / label_map.size for name, count in zip(names, counts, strict=True)}


def thumbnails(
    image: UInt8[np.ndarray, "y x 3"], label_map: Int[np.ndarray, "y x"], names: Sequence[str], text: str
) -> str:
    """Return HTML of the image, the label map over it and a legend of the names that it shows.

    Args:
        image: RGB.
        label_map: of the same size.
        names: of its values.
        text: a line to put above.
    """
    # matplotlib is loaded when something is shown
    from seg4diff_tools.plotting.static import class_colors, label_overlay

    colors = class_colors(len(names))
    legend = " ".join(
        f"<span style='white-space:nowrap'><span style='color:#{bytes(colors[index]).hex()}'>&#9632;</span> "
        f"{escape(name)} {share:.0%}</span>"
        for index, (name, share) in enumerate(shares(label_map, names).items())
        if share
    )
    pictures = " ".join(_tag(pixels) for pixels in (image, label_overlay(image, label_map)))
    return f"<div><div>{escape(text)}</div>{pictures}<div>{legend}</div></div>"


def _tag(pixels: UInt8[np.ndarray, "y x 3"]) -> str:
    picture, file = PIL.Image.fromarray(pixels), BytesIO()
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    picture.save(file, "png")
    return f"<img src='data:image/png;base64,{b64encode(file.getvalue()).decode()}'>"
