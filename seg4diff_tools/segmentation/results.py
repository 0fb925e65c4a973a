"""The result of segmentation by class names, and thumbnails of label maps for notebooks."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
import xarray as xr
from jaxtyping import Int, UInt8

from seg4diff_tools._netcdf import read_netcdf, write_netcdf
from seg4diff_tools._runs import as_path
from seg4diff_tools.errors import InputError
from seg4diff_tools.images import data_url, encode
from seg4diff_tools.segmentation import masks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT, FORMAT_VERSION = "seg4diff_tools segmentation", 1
THUMBNAIL = 160
"""Longest side of a thumbnail in pixels."""


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """Class maps of an image and the label map that follows from them.

    Attributes:
        class_maps: one map for each class on the grid of image tokens; y and x are the tokens' centers in pixels of the
            label map. NaN for a class that was cut off its prompt or dropped before the second pass.
        label_map: index into class_names for each pixel, in the image's own size; with fit="crop" in that of its
            center (`settings["frame"]` says left, top, right, bottom in pixels of the image).
        class_names: the classes in the order of the argument.
        settings: JSON-serializable settings that determine the result: model, every field of the options (with the
            resolved layers), size of the image, frame, prompts, protocol.
        image: the part of the image that the label map covers, RGB.
    """

    class_maps: xr.DataArray
    label_map: Int[np.ndarray, "y x"]
    class_names: tuple[str, ...]
    settings: dict[str, Any]
    image: UInt8[np.ndarray, "y x 3"]

    def upsampled(self) -> xr.DataArray:
        """Return the class maps at every pixel of the label map (equation 11)."""
        maps = masks.upsample(torch.from_numpy(self.class_maps.values), self.label_map.shape)
        height, width = self.label_map.shape
        coords = {"class": list(self.class_names), "y": np.arange(height) + 0.5, "x": np.arange(width) + 0.5}
        return xr.DataArray(maps.numpy(), dims=("class", "y", "x"), coords=coords, name=self.class_maps.name)

    def shares(self) -> dict[str, float]:
        """Return the share of the pixels (0..1) of each class."""
        return shares(self.label_map, self.class_names)

    def plot(self, truth: Int[np.ndarray, "y x"] | None = None, *, title: str = "") -> "Figure":
        """Draw the image and the label map over it.

        Args:
            truth: another label map of the same classes to draw before it.
            title: of the figure.
        """
        from seg4diff_tools.plotting import static

        panels = {} if truth is None else {"truth": truth}
        return static.label_maps(self.image, panels | {"found": self.label_map}, self.class_names, title=title)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write everything to a netCDF file, read again by `open_segmentation`; return its path.

        Args:
            path: of the file, such as "cat.nc"; what is there is replaced.
        """
        path = as_path(path)
        if path.suffix != ".nc":
            raise InputError(f"expected path ending in .nc, got {str(path)!r}: pass path='{path.stem}.nc'")
        settings = {"class_names": self.class_names, "settings": self.settings}
        dataset = xr.Dataset(
            {
                "class_maps": self.class_maps.assign_coords({"class": range(len(self.class_names))}).rename("maps"),
                "label_map": (("row", "column"), self.label_map),
                "image": (("row", "column", "rgb"), self.image),
            },
            attrs={"maps": str(self.class_maps.name), "json": json.dumps(settings)},
        )
        return write_netcdf(dataset, path, FORMAT, FORMAT_VERSION)

    @staticmethod
    def open(path: str | os.PathLike[str]) -> "Segmentation":
        """Read a segmentation that `save` wrote: see `open_segmentation`."""
        return open_segmentation(path)

    def index_png(self) -> bytes:
        """Return the label map as an indexed PNG file: value i is class_names[i], colored as in `plot`."""
        from seg4diff_tools.plotting.static import class_colors

        if len(self.class_names) > 256:
            raise InputError(f"expected at most 256 classes in an indexed PNG, got {len(self.class_names)}: use save")
        picture = PIL.Image.fromarray(self.label_map.astype(np.uint8)).convert("P")
        picture.putpalette(class_colors(len(self.class_names)).tobytes())
        return encode(picture, optimize=False)

    def __eq__(self, other: object) -> bool:
        return same_content(self, other) if isinstance(other, Segmentation) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        height, width = self.label_map.shape
        found = sorted(self.shares().items(), key=lambda item: -item[1])
        listed = ", ".join(f"{name} {share:.0%}" for name, share in found[:6]) + (", ..." if len(found) > 6 else "")
        return f"Segmentation({self.settings['model']}, {height} x {width} px: {listed})"

    def _repr_html_(self) -> str:
        return thumbnails(self.image, self.label_map, self.class_names, repr(self))


def open_segmentation(path: str | os.PathLike[str]) -> Segmentation:
    """Read a segmentation that `Segmentation.save` wrote.

    Args:
        path: of the file.

    Raises:
        InputError: no such file, a damaged one, or one of another kind.
    """
    dataset = read_netcdf(path, FORMAT, FORMAT_VERSION, InputError)
    stored = json.loads(dataset.attrs["json"])
    maps = dataset["class_maps"].assign_coords({"class": stored["class_names"]}).rename(dataset.attrs["maps"])
    maps.attrs, maps.encoding = {}, {}
    return Segmentation(
        maps,
        dataset["label_map"].values,
        tuple(stored["class_names"]),
        stored["settings"],
        dataset["image"].values,
    )


def same_content(first: Any, second: Any) -> bool:
    """Return whether two results of one class hold the same arrays, names and settings."""

    def same(one: Any, other: Any) -> bool:
        if isinstance(one, xr.DataArray):
            return one.identical(other)
        return np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other

    return all(same(getattr(first, each.name), getattr(second, each.name)) for each in fields(first))


def shares(label_map: Int[np.ndarray, "y x"], names: Sequence[str]) -> dict[str, float]:
    """Return the share of the pixels (0..1) of each name."""
    counts = np.bincount(label_map.ravel(), minlength=len(names))
    return {name: int(count) / label_map.size for name, count in zip(names, counts, strict=True)}


def thumbnails(
    image: UInt8[np.ndarray, "y x 3"], label_map: Int[np.ndarray, "y x"], names: Sequence[str], text: str
) -> str:
    """Return HTML of a line of text, the image, the label map over it and a legend of the names that it shows."""
    # matplotlib is loaded when something is shown
    from seg4diff_tools.plotting.static import class_colors, label_overlay

    colors = class_colors(len(names))
    legend = " ".join(
        f"<span style='white-space:nowrap'><span style='color:#{bytes(colors[index]).hex()}'>&#9632;</span> "
        f"{escape(name)} {share:.0%}</span>"
        for index, (name, share) in enumerate(shares(label_map, names).items())
        if share
    )
    drawn = (PIL.Image.fromarray(pixels) for pixels in (image, label_overlay(image, label_map)))
    pictures = " ".join(f"<img src='{data_url(each, side=THUMBNAIL)}'>" for each in drawn)
    return f"<div><div>{escape(text)}</div>{pictures}<div>{legend}</div></div>"
