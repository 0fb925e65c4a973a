"""Open-vocabulary segmentation of one image, many, or a folder (Seg4Diff, Fig 7), and its result."""

import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
import xarray as xr
from diffusers import DiffusionPipeline
from jaxtyping import Int, UInt8
from tqdm.auto import tqdm

from seg4diff_tools._runs import as_path
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checkpoints import MINI, read_card
from seg4diff_tools.backbones.checks import check_heads, check_layers
from seg4diff_tools.backbones.loading import as_backbone
from seg4diff_tools.errors import InputError
from seg4diff_tools.images import ImageLike, open_images
from seg4diff_tools.scenes.drawings import COLORS
from seg4diff_tools.segmentation import masks
from seg4diff_tools.segmentation.attribution import PROBABILITIES
from seg4diff_tools.segmentation.engine import image_maps, layer_list
from seg4diff_tools.segmentation.options import BACKGROUND, OpenVocabulary, option_settings
from seg4diff_tools.segmentation.results import shares, thumbnails
from seg4diff_tools.segmentation.workbench import Workbench, label_frame, token_centers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT, FORMAT_VERSION = "seg4diff_tools segmentation", 1
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
"""Files of a folder that are images."""
_warned: set[tuple[str, str]] = set()


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
            attrs={
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "maps": str(self.class_maps.name),
                "json": json.dumps(settings),
            },
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        encoding = {str(name): {"zlib": True, "complevel": 1, "shuffle": True} for name in dataset.data_vars}
        # written beside its place and moved there: a killed run leaves no half file under this name
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            dataset.to_netcdf(Path(folder, "file.nc"), engine="h5netcdf", encoding=encoding)
            Path(folder, "file.nc").replace(path)
        return path

    @staticmethod
    def open(path: str | os.PathLike[str]) -> "Segmentation":
        """Read a segmentation that `save` wrote, as `open_segmentation`."""
        return open_segmentation(path)

    def index_png(self) -> bytes:
        """Return the label map as an indexed PNG file: value i is class_names[i], colored as in `plot`."""
        from seg4diff_tools.plotting.static import class_colors

        if len(self.class_names) > 256:
            raise InputError(f"expected at most 256 classes in an indexed PNG, got {len(self.class_names)}: use save")
        picture = PIL.Image.fromarray(self.label_map.astype(np.uint8)).convert("P")
        picture.putpalette(class_colors(len(self.class_names)).tobytes())
        file = BytesIO()
        picture.save(file, "png", optimize=False)
        return file.getvalue()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Segmentation):
            return NotImplemented
        return (
            self.class_names == other.class_names
            and self.settings == other.settings
            and self.class_maps.identical(other.class_maps)
            and np.array_equal(self.label_map, other.label_map)
            and np.array_equal(self.image, other.image)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        height, width = self.label_map.shape
        found = sorted(self.shares().items(), key=lambda item: -item[1])
        listed = ", ".join(f"{name} {share:.0%}" for name, share in found[:6]) + (", ..." if len(found) > 6 else "")
        return f"Segmentation({self.settings['model']}, {height} x {width} px: {listed})"

    def _repr_html_(self) -> str:
        return thumbnails(self.image, self.label_map, self.class_names, repr(self))


def segment(
    model: Backbone | DiffusionPipeline | str,
    images: ImageLike | Sequence[ImageLike],
    class_names: Sequence[str],
    options: OpenVocabulary = OpenVocabulary(),  # noqa: B008 - frozen
    *,
    latents: torch.Tensor | None = None,
    progress: bool = True,
) -> Any:
    """Segment images into named classes with the attention between image and text tokens.

    The prompt is the class names joined by a space, over several prompts where one does not hold them all (each with a
    softmax of its own). The forward stops inside the last wanted layer.

    Args:
        model: a backbone, a diffusers pipeline, or the name or folder of a model.
        images: one image of any size (path, PIL image, uint8 array [y x 3] or float tensor [3 y x] in 0..1), several (a
            list, or an array or tensor with one axis more), or a folder of image files.
        class_names: the classes to choose from at every pixel. The paper's evaluation gives those that the image shows;
            a whole vocabulary is harder.
        options: everything else; `OpenVocabulary(**paper.RELEASED["segment"])` are the choices of the released code.
        latents: of the images, from `Backbone.encode_image` with the same fit and size, so that they are not encoded
            again.
        progress: show a progress bar for several images.

    Returns:
        One `Segmentation` for one image; a list for several, of a folder in the order of the file names.

    Raises:
        InputError: an unreadable image, no class, a class twice, or a layer, step or head out of range.
        PromptError: a class name that is too long for a prompt.

    Example:
        >>> result = segment("mini", scene.image, ["cat", "grass"], OpenVocabulary(layers=(4, 5), tiles=2))

    Source: Seg4Diff, arXiv 2509.18096, equations 9 to 12, Fig 7; the token grid is upsampled after the mean over heads
    and tokens, which is the same as before it.
    """
    names = _check_names(class_names)
    if not isinstance(options, OpenVocabulary):
        raise InputError(
            f"expected options, an OpenVocabulary, got {options!r}: pass options such as OpenVocabulary(layers=4)"
        )
    sources, single = image_list(images)
    backbone = as_backbone(model)
    check_options(backbone, options)
    if latents is not None and (options.tiles > 1 or len(latents) != len(sources)):
        raise InputError(
            f"expected latents of {len(sources)} images and tiles=1, got {len(latents)} with tiles={options.tiles}: "
            "leave latents out"
        )
    warn_of_unseen(backbone, names, options)
    with tqdm(sources, unit="image", disable=not progress or single, desc=f"{backbone.name} segment") as bar:
        results = list(_segmented(backbone, bar, names, options, latents))
    return results[0] if single else results


def _segmented(
    backbone: Backbone, images: Any, names: Sequence[str], options: OpenVocabulary, latents: torch.Tensor | None
) -> Iterator[Segmentation]:
    work = Workbench(backbone)
    for index, image in enumerate(images):
        (picture,) = open_images(image)
        work.forget()
        if latents is not None:
            work.picture(picture).latents[options.fit, options.size] = latents[index : index + 1]
        yield segment_picture(work, picture, names, options)


def segment_picture(
    work: Workbench, picture: PIL.Image.Image, names: Sequence[str], options: OpenVocabulary
) -> Segmentation:
    """Segment one opened image with checked options."""
    (found,) = image_maps(work, [picture], [names], options)
    backbone, frame = work.backbone, work.frame(picture, options).image
    centers = token_centers(frame, found.maps.shape[1:])
    box = label_frame(backbone, (picture.height, picture.width), options.fit, options.size)
    settings = {
        "model": backbone.name,
        **option_settings(options),
        "layers": check_options(backbone, options),
        "frame": list(box),
        "prompts": list(found.prompts),
        "protocol": "open-vocabulary, argmax over the given classes (Seg4Diff, Eq 9-12)",
    }
    maps = found.maps.cpu().numpy()
    return Segmentation(
        class_maps=xr.DataArray(
            maps,
            {"class": list(names), **centers},
            ("class", "y", "x"),
            name=f"{options.direction} {options.normalize}",
        ),
        label_map=found.labels.cpu().numpy(),
        class_names=tuple(names),
        settings=settings,
        image=np.array(frame),
    )


def open_segmentation(path: str | os.PathLike[str]) -> Segmentation:
    """Read a segmentation that `Segmentation.save` wrote.

    Args:
        path: of the file.

    Raises:
        InputError: no such file, a damaged one, or one of another kind.
    """
    path = as_path(path)
    if not path.is_file():
        raise InputError(f"expected path of a file that Segmentation.save wrote, got {str(path)!r}: check the path")
    try:
        dataset = xr.load_dataset(path, engine="h5netcdf")
    except Exception as error:  # each damage of the file has its own error in HDF5
        raise InputError(
            f"expected a readable netCDF file, got {str(path)!r} ({error}): save the segmentation again"
        ) from error
    if (kind := (dataset.attrs.get("format"), dataset.attrs.get("format_version"))) != (FORMAT, FORMAT_VERSION):
        raise InputError(
            f"expected {FORMAT} version {FORMAT_VERSION} in {path}, got {kind[0]} version {kind[1]}: check the path"
        )
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


def image_list(images: Any) -> tuple[list[Any], bool]:
    """Return images one by one, the files of a folder in the order of their names, and whether it was a single image.

    Raises:
        InputError: an empty list, or a folder without images.
    """
    if isinstance(images, (str, os.PathLike)) and (folder := as_path(images, "images")).is_dir():
        files = sorted(
            path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        )
        if not files:
            raise InputError(f"expected images in {folder}, got no {', '.join(sorted(SUFFIXES))}: check the folder")
        return list(files), False
    if isinstance(images, (list, tuple)):
        if not images:
            raise InputError("expected images, at least one, got an empty list: pass one image or several")
        return list(images), False
    if not isinstance(images, (str, os.PathLike, PIL.Image.Image, np.ndarray, torch.Tensor)):
        raise InputError(
            f"expected images (a path, a PIL image, an array, a tensor or a list), got {type(images).__name__}: "
            "pass one of them"
        )
    if getattr(images, "ndim", 0) == 4:
        return list(open_images(images)), False
    return [images], True


def check_options(backbone: Backbone, options: OpenVocabulary) -> list[int] | None:
    """Check layers and heads against a model.

    Returns:
        The resolved layers; None where the method chooses its own.

    Raises:
        InputError: a layer or head that the model does not have, or an expert layer that is unknown.
    """
    if options.heads != "mean":
        check_heads(backbone, options.heads)  # type: ignore[arg-type]  # normalized to a tuple
    if options.layers is None:
        if options.method not in PROBABILITIES:
            return None
        return check_layers(backbone, ["expert"] if options.method == "layer" else None)
    return check_layers(backbone, layer_list(options))


def warn_of_unseen(backbone: Backbone, names: Sequence[str], options: OpenVocabulary) -> None:
    """Warn once of each word that the model never saw in training, as far as its card says so."""
    source = MINI if backbone.name == "mini" else Path(backbone.name)
    data = read_card(source).get("data", {}) if source.is_dir() else {}
    known = {*data.get("concepts", ()), *data.get("backgrounds", ())}
    if not known:
        return
    words = [word for name in names for word in options.synonyms.get(name, (name,)) if word != BACKGROUND]
    unseen = [w for w in words if " ".join(part for part in w.lower().split() if part not in COLORS) not in known]
    new = [word for word in unseen if (backbone.name, word) not in _warned]
    if new:
        _warned.update((backbone.name, word) for word in new)
        warnings.warn(
            f"{backbone.name} never saw {', '.join(map(repr, new))} in training: their masks mean nothing. It knows "
            f"{len(known)} words, such as {', '.join(sorted(known)[:5])}.",
            stacklevel=3,
        )


def _check_names(class_names: Any) -> list[str]:
    if isinstance(class_names, (str, bytes, Mapping)) or not hasattr(class_names, "__iter__"):
        raise InputError(f"expected class_names as a list, got {class_names!r}: pass a list such as ['cat', 'grass']")
    names = list(class_names)
    if not names or any(not isinstance(name, str) for name in names):
        raise InputError(f"expected class_names, at least one class as text, got {names!r}: pass ['cat', 'grass']")
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"expected class_names, each one once, got {sorted(twice)} given twice: leave one out")
    return names
