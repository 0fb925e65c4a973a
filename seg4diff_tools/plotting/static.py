"""Static figures of images (matplotlib): maps and label maps over them, grids and galleries.

Images may be anything that `segment` takes: paths, PIL images, uint8 arrays [y x 3], float tensors [3 y x].
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jaxtyping import UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from seg4diff_tools.datasets.labels import IGNORE, label_array
from seg4diff_tools.errors import InputError, as_names, list_of
from seg4diff_tools.images import ImageLike, open_image, open_images
from seg4diff_tools.indices import as_float, as_int
from seg4diff_tools.plotting.checks import OKABE_ITO, Maps, check_label_maps, closed, numbers, reduced_maps

LEGEND, LISTED = 1.4, 10
"""Width of a legend in inches, and how many names fit into one beside the lowest pictures."""

PAGE, SMALLEST, DPI = 7.1, 0.75, 110
"""Inches that fit beside each other in a page, the smallest side of a picture in inches, and pixels of an inch.

A wider figure would be shrunk by the page, and its words with it.
"""

LETTERS = 16
"""Letters of 7 points in an inch."""

Limits = tuple[float, float]


def class_colors(count: int) -> UInt8[np.ndarray, "count 3"]:
    """Return colors for classes: Okabe and Ito's, then lighter and darker shades of them.

    Args:
        count: how many; after 24 they repeat.

    Returns:
        RGB values.
    """
    count = as_int(count, "count", 0)
    base = np.array([to_rgb(color) for color in OKABE_ITO])
    shades = np.concatenate([base, 0.5 + base / 2, 0.55 * base + 0.1])
    return (255 * shades[np.arange(count) % len(shades)]).round().astype(np.uint8)


def overlay(
    image: ImageLike, values: Any, limits: Limits | None = None, opacity: float = 0.7
) -> UInt8[np.ndarray, "height width 3"]:
    """Lay a map in colors (viridis: dark is low, yellow is high) over a grey copy of the image.

    Args:
        image: a path, PIL image, array or tensor.
        values: a map [y x] of any size; it is enlarged to that of the image, bilinearly.
        limits: values of the darkest and the brightest color; None for the smallest and largest of the map.
        opacity: of the colors, 0 (image only) to 1 (map only).

    Returns:
        A picture of the image's size.

    Raises:
        InputError: an image that cannot be read, a map that is not [y x] or has no finite value, or another opacity.
    """
    opacity = as_float(opacity, "opacity", 0.0, 1.0)
    grey, shades = _array(image).mean(-1, keepdims=True), numbers(values, 2)
    finite = shades[np.isfinite(shades)]
    ends = (finite.min(), finite.max()) if limits is None else limits
    pair = isinstance(ends, (list, tuple)) and len(ends) == 2
    if not pair or not all(isinstance(end, Real) and math.isfinite(float(end)) for end in ends):
        raise InputError(f"expected limits as two finite numbers, got {limits!r}: pass limits=(0.0, 1.0)")
    low, high = map(float, ends)
    scaled = ((shades - low) / (high - low or 1)).astype(np.float32)
    size = grey.shape[1], grey.shape[0]
    enlarged = np.asarray(Image.fromarray(scaled).resize(size, Image.Resampling.BILINEAR))
    colors = 255 * colormaps["viridis"](enlarged)[..., :3]
    return (opacity * colors + (1 - opacity) * grey).round().astype(np.uint8)


def label_overlay(image: ImageLike, label_map: Any, opacity: float = 0.6) -> UInt8[np.ndarray, "height width 3"]:
    """Lay a label map in the colors of `class_colors` over a grey copy of the image; ignored pixels (255) stay grey.

    Args:
        image: a path, PIL image, array or tensor.
        label_map: class index of each pixel.
        opacity: of the colors, 0 to 1.

    Returns:
        A picture of the image's size.

    Raises:
        InputError: an image that cannot be read, no label map of its size, or another opacity.
    """
    opacity = as_float(opacity, "opacity", 0.0, 1.0)
    pixels, labels = _array(image), label_array(label_map)
    if labels.shape != pixels.shape[:2]:
        raise InputError(
            f"expected a label map of the image's size {pixels.shape[:2]}, got {labels.shape}: pass the image "
            "that it belongs to"
        )
    if labels.min() < 0:
        raise InputError(f"expected labels from 0, got {labels.min()}: use {IGNORE} for pixels without a class")
    grey = pixels.mean(-1, keepdims=True)
    known = labels != IGNORE
    colors = class_colors(int(labels[known].max()) + 1 if known.any() else 1)[np.where(known, labels, 0)]
    strength = opacity * known[..., None]
    return (strength * colors + (1 - strength) * grey).round().astype(np.uint8)


def map_strip(image: ImageLike, maps: Maps, *, columns: int = 7, title: str = "", opacity: float = 0.7) -> Figure:
    """Show the image, then a map for each word (or layer, head, step, class) over it.

    Every map has its own scale, from the smallest to the largest value, which are written below it.

    Args:
        image: a path, PIL image, array or tensor.
        maps: one axis beside y and x, such as token, class or layer; further axes of length 1 are dropped.
        columns: panels in a row.
        title: of the figure.
        opacity: of the maps.

    Raises:
        InputError: more axes than that; select from them with `.sel` first.
    """
    opacity = as_float(opacity, "opacity", 0.0, 1.0)
    maps = reduced_maps(maps, 1)
    panels = [("image", None), *zip(_labels(maps, 0), maps.values, strict=True)]
    columns = min(as_int(columns, "columns", 1), len(panels))
    figure, axes = _grid(-(-len(panels) // columns), columns, title, words=0.36)
    for axis, (label, values) in zip(axes.flat, panels, strict=False):
        axis.set_title(label, fontsize=9)
        if values is None:
            axis.imshow(_array(image))
        else:
            _show_map(axis, image, values, opacity)
    return figure


def map_grid(image: ImageLike, maps: Maps, *, title: str = "", opacity: float = 0.7) -> Figure:
    """Show maps over the image in rows and columns, such as layers by heads (paper: Fig 9a, 17).

    Every map has its own scale, from the smallest to the largest value, which are written below it.

    Args:
        image: a path, PIL image, array or tensor.
        maps: two axes beside y and x, rows first; further axes of length 1 are dropped.
        title: of the figure.
        opacity: of the maps.

    Raises:
        InputError: another number of axes.
    """
    opacity = as_float(opacity, "opacity", 0.0, 1.0)
    maps = reduced_maps(maps, 2)
    rows, columns = _labels(maps, 0), _labels(maps, 1)
    figure, axes = _grid(len(rows), len(columns), title, words=0.16)
    for row, name in enumerate(rows):
        axes[row, 0].set_ylabel(name, fontsize=9)
        for column, values in enumerate(maps.values[row]):
            _show_map(axes[row, column], image, values, opacity)
            if row == 0:
                axes[row, column].set_title(columns[column], fontsize=9)
    return figure


def label_maps(
    image: ImageLike, label_maps: Mapping[str, Any], class_names: Sequence[str], *, title: str = ""
) -> Figure:
    """Show the image, then one or several label maps of it, with one legend of class names, the ten largest if more.

    Args:
        image: a path, PIL image, array or tensor.
        label_maps: heading of each panel (such as "truth") and its label map; all of them number the same classes.
        class_names: value i means class_names[i].
        title: of the figure.

    Raises:
        InputError: a label map of another size than the image, or with a value that has no name.
    """
    check_label_maps(label_maps)
    class_names = as_names(class_names, "class_names", empty=True)
    figure, axes = _grid(1, 1 + len(label_maps), title, side=2.0, legend=LEGEND)
    _show_labels(axes[0], image, label_maps, class_names)
    return figure


def case_gallery(
    images: Sequence[ImageLike],
    label_maps: Sequence[Mapping[str, Any]],
    class_names: Sequence[Sequence[str]],
    headings: Sequence[str],
    *,
    title: str = "",
) -> Figure:
    """Show one case in each row: the image, its label maps, and the names of its classes.

    Args:
        images: one for each case.
        label_maps: for each case its panels' headings ("truth", "found") and label maps.
        class_names: for each case, value i means class_names[i].
        headings: for each case, such as its score; stands over the image.
        title: of the figure.

    Raises:
        InputError: lists of different lengths, or as in `label_maps`.
    """
    images, headings = open_images(images), list_of(headings, str, "headings", "headings=['mIoU 50 %']", "texts")
    label_maps = list_of(label_maps, Mapping, "label_maps", "label_maps=[{'found': result.label_map}]")
    listed = list_of(class_names, Iterable, "class_names", "class_names=[['cat', 'grass']]", "names of each case")
    names = [as_names(each, "class_names", empty=True) for each in listed]
    lengths = {len(images), len(label_maps), len(names), len(headings)}
    if len(lengths) != 1:
        raise InputError(
            f"expected as many images as label maps, class names and headings, got lengths {sorted(lengths)}: "
            "pass one of each for every case"
        )
    for shown in label_maps:
        check_label_maps(shown)
    figure, axes = _grid(len(images), 1 + max(map(len, label_maps)), title, legend=LEGEND)
    for row, image, labels, own, heading in zip(axes, images, label_maps, names, headings, strict=True):
        _show_labels(row, image, labels, own)
        row[0].set_title(heading, fontsize=9)
    return figure


def picture_grid(
    pictures: Sequence[ImageLike], labels: Sequence[str], *, columns: int = 7, side: float = 1.7, title: str = ""
) -> Figure:
    """Show pictures in rows, each with its label above, such as generated pictures with their prompts.

    Args:
        pictures: of any size.
        labels: one for each; long ones are broken into lines.
        columns: pictures in a row.
        side: of a picture in inches, at most; many columns make them smaller.
        title: of the figure.

    Raises:
        InputError: no pictures, or another number of labels.
    """
    pictures, labels = open_images(pictures), list_of(labels, str, "labels", "labels=['a cat']", "texts")
    if len(pictures) != len(labels):
        raise InputError(
            f"expected one label for each picture, got {len(labels)} for {len(pictures)} pictures: pass as many"
        )
    columns = min(as_int(columns, "columns", 1), len(pictures))
    side = _fitting(columns, as_float(side, "side", SMALLEST))
    labels = [fill(label, round(LETTERS * side)) for label in labels]
    starts = range(0, len(labels), columns)
    lines = sum(max(label.count("\n") + 1 for label in labels[start : start + columns]) for start in starts)
    figure, axes = _grid(len(starts), columns, title, side, words=0.08 + 0.12 * lines / len(starts))
    for axis, picture, label in zip(axes.flat, pictures, labels, strict=False):
        axis.imshow(picture)
        axis.set_title(label, fontsize=7)
    return figure


def _array(image: ImageLike) -> UInt8[np.ndarray, "height width 3"]:
    return np.asarray(open_image(image))


def _labels(maps: xr.DataArray, axis: int) -> list[str]:
    """Return a heading for each entry of an axis: words as they are, numbers after the name of the axis."""
    dim = maps.dims[axis]
    if dim not in maps.coords:
        return [str(index) for index in range(maps.sizes[dim])]
    values = maps[dim].values
    return [f"{dim} {value}" if np.issubdtype(values.dtype, np.number) else str(value) for value in values]


def _grid(
    rows: int, columns: int, title: str, side: float = 1.7, *, legend: float = 0.0, words: float = 0.2
) -> tuple[Figure, np.ndarray]:
    """Make axes for square pictures; inches stay free for a `legend` beside them, and for `words` in each row."""
    side = _fitting(columns, side, legend)
    # a little wide, because a height that is not used up would part the title from the pictures
    size = (1.05 * side * columns + legend, (side + words) * rows + (0.25 if title else 0))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="compressed", dpi=DPI)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    return closed(figure), axes


def _fitting(columns: int, side: float, legend: float = 0.0) -> float:
    """Return the side of a picture in inches with which this many fit beside each other in a page."""
    return max(SMALLEST, min(side, (PAGE - legend) / (1.05 * columns)))


def _show_map(axis: Axes, image: ImageLike, values: np.ndarray, opacity: float) -> None:
    axis.imshow(overlay(image, values, opacity=opacity))
    axis.set_xlabel(f"{np.nanmin(values):.1g} to {np.nanmax(values):.2g}", fontsize=7, labelpad=2)


def _show_labels(
    axes: Sequence[Axes] | np.ndarray, image: ImageLike, label_maps: Mapping[str, Any], names: Sequence[str]
) -> None:
    picture, arrays = _array(image), {heading: label_array(labels) for heading, labels in label_maps.items()}
    axes[0].imshow(picture)
    axes[0].set_title("image", fontsize=9)
    for axis, (heading, labels) in zip(axes[1:], arrays.items(), strict=False):
        unnamed = [int(value) for value in np.unique(labels) if value != IGNORE and not 0 <= value < len(names)]
        if unnamed:
            raise InputError(
                f"expected labels below {len(names)}, one for each class name, got {unnamed}: pass all class_names"
            )
        axis.imshow(label_overlay(picture, labels))
        axis.set_title(heading, fontsize=9)
    values = np.concatenate([labels.ravel() for labels in arrays.values()])
    shown, pixels = np.unique(values[values != IGNORE], return_counts=True)
    largest = shown[np.sort(np.argsort(-pixels, kind="stable")[:LISTED])]
    colors = class_colors(len(names)) / 255
    patches = [Patch(color=colors[i], label=names[i]) for i in largest]
    if len(shown) > len(largest):
        patches.append(Patch(color="none", label=f"and {len(shown) - len(largest)} more"))
    axes[-1].legend(handles=patches, loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8, frameon=False)
