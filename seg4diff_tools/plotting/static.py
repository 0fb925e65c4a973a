"""Pictures of maps and masks (matplotlib): overlays, strips and grids of maps, label maps, galleries of cases.

Curves, heat maps and everything that a reader hovers over is in `charts`.
"""

from collections.abc import Mapping, Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import xarray as xr
from jaxtyping import Float, Integer, Shaped, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from seg4diff_tools.datasets.labels import IGNORE
from seg4diff_tools.errors import InputError

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
"""Colors that the color-blind can tell apart (Okabe and Ito, 2008)."""

LEGEND = 1.4

Picture = UInt8[np.ndarray, "height width 3"] | Image.Image
Maps = xr.DataArray | Float[np.ndarray, "*leading y x"]
Limits = tuple[float, float]


def class_colors(count: int) -> UInt8[np.ndarray, "count 3"]:
    """Colors for classes: Okabe and Ito's, then lighter and darker shades of them.

    Args:
        count: how many; after 24 they repeat.

    Returns:
        RGB values.
    """
    base = np.array([to_rgb(color) for color in OKABE_ITO])
    shades = np.concatenate([base, 0.5 + base / 2, 0.55 * base + 0.1])
    return (255 * shades[np.arange(count) % len(shades)]).round().astype(np.uint8)


def overlay(
    image: Picture, values: Shaped[np.ndarray, "y x"], limits: Limits | None = None, opacity: float = 0.7
) -> UInt8[np.ndarray, "height width 3"]:
    """A map in colors (viridis: dark is low, yellow is high) over a grey copy of the image.

    Args:
        image: the picture.
        values: a map of any size; it is enlarged to that of the image, bilinearly.
        limits: values of the darkest and brightest color; by default the map's own smallest and largest.
        opacity: of the colors, 0 (image only) to 1 (map only).

    Returns:
        A picture of the image's size.
    """
    grey = np.asarray(_array(image)).mean(-1, keepdims=True)
    low, high = limits or (float(np.min(values)), float(np.max(values)))
    scaled = (np.asarray(values, dtype=np.float32) - low) / (high - low or 1)
    size = grey.shape[1], grey.shape[0]
    enlarged = np.asarray(Image.fromarray(scaled).resize(size, Image.Resampling.BILINEAR))
    colors = 255 * colormaps["viridis"](enlarged)[..., :3]
    return (opacity * colors + (1 - opacity) * grey).round().astype(np.uint8)


def label_overlay(
    image: Picture, label_map: Integer[np.ndarray, "y x"], opacity: float = 0.6
) -> UInt8[np.ndarray, "height width 3"]:
    """A label map in the colors of `class_colors` over a grey copy of the image; ignored pixels (255) stay grey.

    Args:
        image: the picture.
        label_map: class index of each pixel.
        opacity: of the colors, 0 to 1.

    Returns:
        A picture of the image's size.

    Raises:
        InputError: a label map of another size than the image.
    """
    pixels, labels = _array(image), np.asarray(label_map).astype(np.int64)
    if labels.shape != pixels.shape[:2]:
        raise InputError(f"expected a label map of the image's size {pixels.shape[:2]}, got {labels.shape}")
    grey = pixels.mean(-1, keepdims=True)
    known = labels != IGNORE
    colors = class_colors(int(labels[known].max()) + 1 if known.any() else 1)[np.where(known, labels, 0)]
    strength = opacity * known[..., None]
    return (strength * colors + (1 - strength) * grey).round().astype(np.uint8)


def map_strip(image: Picture, maps: Maps, *, columns: int = 7, title: str = "", opacity: float = 0.7) -> Figure:
    """The image, then a map for each word (or layer, head, step, class) over it.

    Every map has a scale of its own, from the smallest to the largest value that stand under it.

    Args:
        image: the picture.
        maps: one axis beside y and x, such as token, class or layer; further axes of length 1 are left out.
        columns: panels in a row.
        title: above all.
        opacity: of the maps.

    Returns:
        The figure.

    Raises:
        InputError: more axes; choose from them with `.sel` first.
    """
    maps = reduced_maps(maps, 1)
    panels = [("image", None), *zip(_labels(maps, maps.dims[0]), maps.values, strict=True)]
    columns = min(columns, len(panels))
    figure, axes = _grid(-(-len(panels) // columns), columns, title)
    for axis, (label, values) in zip(axes.flat, panels, strict=False):
        axis.set_title(label, fontsize=9)
        if values is None:
            axis.imshow(_array(image))
        else:
            _show_map(axis, image, values, opacity)
    return figure


def map_grid(image: Picture, maps: Maps, *, title: str = "", opacity: float = 0.7) -> Figure:
    """Maps over the image in rows and columns, such as layers by heads (paper: Fig 9a, 17) or blocks by words (Fig 16).

    Every map has a scale of its own, from the smallest to the largest value that stand under it.

    Args:
        image: the picture.
        maps: two axes beside y and x, rows first; further axes of length 1 are left out.
        title: above all.
        opacity: of the maps.

    Returns:
        The figure.

    Raises:
        InputError: another number of axes.
    """
    maps = reduced_maps(maps, 2)
    rows, columns = _labels(maps, maps.dims[0]), _labels(maps, maps.dims[1])
    figure, axes = _grid(len(rows), len(columns), title)
    for row, name in enumerate(rows):
        axes[row, 0].set_ylabel(name, fontsize=9)
        for column, values in enumerate(maps.values[row]):
            _show_map(axes[row, column], image, values, opacity)
            if row == 0:
                axes[row, column].set_title(columns[column], fontsize=9)
    return figure


def label_maps(
    image: Picture,
    label_maps: Mapping[str, Integer[np.ndarray, "y x"]],
    class_names: Sequence[str],
    *,
    title: str = "",
) -> Figure:
    """The image, then one or several label maps of it, with one legend of class names.

    Args:
        image: the picture.
        label_maps: heading of each panel (such as "truth") and its label map; all of them number the same classes.
        class_names: value i means class_names[i].
        title: above all.

    Returns:
        The figure.

    Raises:
        InputError: a label map of another size than the image, or with a value that has no name.
    """
    figure, axes = _grid(1, 1 + len(label_maps), title, side=2.4, legend=LEGEND)
    _show_labels(axes[0], image, label_maps, class_names)
    return figure


def case_gallery(
    images: Sequence[Picture],
    label_maps: Sequence[Mapping[str, Integer[np.ndarray, "y x"]]],
    class_names: Sequence[Sequence[str]],
    headings: Sequence[str],
    *,
    title: str = "",
) -> Figure:
    """Cases one below the other: the image, its label maps, and the names of its classes.

    Args:
        images: one for each case.
        label_maps: for each case its panels' headings ("truth", "found") and label maps.
        class_names: for each case, value i means class_names[i].
        headings: for each case, such as its score; stands over the image.
        title: above all.

    Returns:
        The figure.

    Raises:
        InputError: lists of different lengths, or as in `label_maps`.
    """
    lengths = {len(images), len(label_maps), len(class_names), len(headings)}
    if len(lengths) != 1 or not images:
        raise InputError(f"expected as many images as label maps, class names and headings, got lengths {lengths}")
    figure, axes = _grid(len(images), 1 + max(map(len, label_maps)), title, legend=LEGEND)
    for row, image, labels, names, heading in zip(axes, images, label_maps, class_names, headings, strict=True):
        _show_labels(row, image, labels, names)
        row[0].set_title(heading, fontsize=9)
    return figure


def picture_grid(pictures: Sequence[Picture], labels: Sequence[str], *, columns: int = 7, title: str = "") -> Figure:
    """Pictures in rows, each with its label above, such as generated pictures with their prompts.

    Args:
        pictures: of any size.
        labels: one for each; long ones are broken into lines.
        columns: pictures in a row.
        title: above all.

    Returns:
        The figure.

    Raises:
        InputError: no pictures, or another number of labels.
    """
    if not 0 < len(pictures) == len(labels):
        raise InputError(f"expected one label for each picture, got {len(labels)} for {len(pictures)} pictures")
    columns = min(columns, len(pictures))
    figure, axes = _grid(-(-len(pictures) // columns), columns, title)
    for axis, picture, label in zip(axes.flat, pictures, labels, strict=False):
        axis.imshow(_array(picture))
        axis.set_title(fill(label, 20), fontsize=7)
    return figure


def score_histogram(table: pd.DataFrame, score: str = "mIoU", by: str | None = None, *, title: str = "") -> Figure:
    """How a score is spread over images.

    Args:
        table: one row for each image, such as `sweeps.per_image_scores` gives; scores from 0 to 1.
        score: column to count.
        by: column that tells groups of images apart; each group's bars add up to 100 %.
        title: above all.

    Returns:
        The figure.

    Raises:
        InputError: a column that is not there.
    """
    require_columns(table, [score, *([by] if by else [])])
    figure, axis = plt.subplots(figsize=(6.4, 2.8), layout="constrained")
    groups = table[by].nunique() if by else 1
    sns.histplot(
        x=100 * table[score],
        hue=table[by] if by else None,
        palette=list(OKABE_ITO[:groups]) if by else None,
        color=OKABE_ITO[0],
        bins=np.arange(0, 101, 5),
        stat="percent",
        common_norm=False,
        element="step",
        ax=axis,
    )
    axis.set(xlabel=f"{score} of an image (%)", ylabel="images (%)", xlim=(0, 100), title=title)
    sns.despine(figure)
    return _closed(figure)


def reduced_maps(maps: Maps, axes: int, keep: str | None = None) -> xr.DataArray:
    """Maps with exactly this many axes before y and x; superfluous axes of length 1 go, the first ones first.

    Args:
        maps: any number of axes beside y and x.
        axes: how many of them to have.
        keep: an axis that must not go.

    Raises:
        InputError: more axes, or fewer.
    """
    if not isinstance(maps, xr.DataArray):
        maps = xr.DataArray(maps, dims=(*(f"axis {i}" for i in range(np.ndim(maps) - 2)), "y", "x"))
    if not {"y", "x"} <= set(maps.dims):
        raise InputError(f"expected maps with the axes y and x, got {dict(maps.sizes)}")
    leading = [dim for dim in maps.dims if dim not in ("y", "x")]
    for dim in tuple(leading):
        if len(leading) > axes and maps.sizes[dim] == 1 and dim != keep:
            maps = maps.isel({dim: 0})
            leading.remove(dim)
    if len(leading) != axes:
        raise InputError(
            f"expected maps with {axes} axes beside y and x, got {dict(maps.sizes)}: choose from the others first, "
            "for instance with maps.sel(layer=9)"
        )
    return maps.transpose(*leading, "y", "x")


def require_columns(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuses a table that lacks a column or has no rows.

    Args:
        table: any table.
        columns: the names that are needed.

    Raises:
        InputError: naming what is missing and what there is.
    """
    missing = [column for column in columns if column not in table.columns]
    if missing or table.empty:
        raise InputError(
            f"expected a table with rows and the columns {', '.join(columns)}; got {len(table)} rows and "
            f"{', '.join(map(str, table.columns))}"
        )


def _array(image: Picture) -> UInt8[np.ndarray, "height width 3"]:
    return np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else image


def _labels(maps: xr.DataArray, dim: str) -> list[str]:
    """What to write over each entry of an axis: words as they are, numbers after the name of the axis."""
    if dim not in maps.coords:
        return [str(index) for index in range(maps.sizes[dim])]
    values = maps[dim].values
    return [f"{dim} {value}" if np.issubdtype(values.dtype, np.number) else str(value) for value in values]


def _grid(rows: int, columns: int, title: str, side: float = 1.7, legend: float = 0.0) -> tuple[Figure, np.ndarray]:
    """Axes for square pictures; `legend` is the width in inches that stays free beside them."""
    # a little wide, because a height that is not used up would part the title from the pictures
    size = (1.05 * side * columns + legend, side * rows + (0.25 if title else 0))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="compressed", dpi=110)
    if title:
        figure.suptitle(title, fontsize=10)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    return _closed(figure), axes


def _show_map(axis: Axes, image: Picture, values: np.ndarray, opacity: float) -> None:
    axis.imshow(overlay(image, values, opacity=opacity))
    axis.set_xlabel(f"{values.min():.2g} to {values.max():.2g}", fontsize=7, labelpad=2)


def _show_labels(
    axes: Sequence[Axes] | np.ndarray, image: Picture, label_maps: Mapping[str, np.ndarray], names: Sequence[str]
) -> None:
    axes[0].imshow(_array(image))
    axes[0].set_title("image", fontsize=9)
    for axis, (heading, labels) in zip(axes[1:], label_maps.items(), strict=False):
        unnamed = [int(value) for value in np.unique(labels) if value != IGNORE and not 0 <= value < len(names)]
        if unnamed:
            raise InputError(f"expected labels below {len(names)}, one for each class name, got {unnamed}")
        axis.imshow(label_overlay(image, labels))
        axis.set_title(heading, fontsize=9)
    shown = np.unique(np.concatenate([np.unique(labels) for labels in label_maps.values()]))
    colors = class_colors(len(names)) / 255
    patches = [Patch(color=colors[i], label=names[i]) for i in shown if i != IGNORE]
    axes[-1].legend(handles=patches, loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8, frameon=False)


def _closed(figure: Figure) -> Figure:
    """Taken from pyplot's hands, or a notebook would show it a second time at the end of the cell."""
    plt.close(figure)
    return figure
