"""Open-vocabulary segmentation of one image, many, or a folder (Seg4Diff, Fig 7)."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias, overload

import numpy as np
import PIL.Image
import torch
import xarray as xr
from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

from seg4diff_tools._runs import as_path
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checkpoints import MINI, read_card
from seg4diff_tools.backbones.checks import check_heads, check_latents
from seg4diff_tools.backbones.loading import as_backbone
from seg4diff_tools.backbones.pictures import as_videos
from seg4diff_tools.errors import InputError, as_names, instance_of, shown
from seg4diff_tools.images import Video, open_images
from seg4diff_tools.scenes.drawings import COLORS, concepts
from seg4diff_tools.segmentation.attribution import PROBABILITIES
from seg4diff_tools.segmentation.engine import ImageMaps, image_maps, model_layers
from seg4diff_tools.segmentation.options import BACKGROUND, OpenVocabulary, option_settings
from seg4diff_tools.segmentation.results import Segmentation
from seg4diff_tools.segmentation.workbench import Workbench, label_frame, token_centers

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
"""Files of a folder that are images."""
PAPER = OpenVocabulary()
"""The paper's way."""


Model: TypeAlias = Backbone | DiffusionPipeline | str | Path
OneImage: TypeAlias = PIL.Image.Image | np.ndarray | torch.Tensor
ManyImages: TypeAlias = list[Any] | tuple[Any, ...]


@overload
def segment(
    model: Model,
    images: OneImage,
    class_names: Sequence[str],
    options: OpenVocabulary = ...,
    *,
    latents: torch.Tensor | None = ...,
    memory_budget: int | None = ...,
    progress: bool = ...,
) -> Segmentation: ...


@overload
def segment(
    model: Model,
    images: Video,
    class_names: Sequence[str],
    options: OpenVocabulary = ...,
    *,
    latents: None = ...,
    memory_budget: int | None = ...,
    progress: bool = ...,
) -> list[Segmentation]: ...


@overload
def segment(
    model: Model,
    images: ManyImages,
    class_names: Sequence[str],
    options: OpenVocabulary = ...,
    *,
    latents: torch.Tensor | None = ...,
    memory_budget: int | None = ...,
    progress: bool = ...,
) -> list[Segmentation]: ...


@overload
def segment(
    model: Model,
    images: str | Path,
    class_names: Sequence[str],
    options: OpenVocabulary = ...,
    *,
    latents: torch.Tensor | None = ...,
    memory_budget: int | None = ...,
    progress: bool = ...,
) -> Any: ...


def segment(
    model: Model,
    images: OneImage | Video | ManyImages | str | Path,
    class_names: Sequence[str],
    options: OpenVocabulary = PAPER,
    *,
    latents: torch.Tensor | None = None,
    memory_budget: int | None = None,
    progress: bool = True,
) -> Any:
    """Segment images, or videos, into named classes with the attention between image and text tokens.

    The prompt is the class names joined by a space, over several prompts where one does not hold them all (each with a
    softmax of its own). The forward stops inside the last wanted layer.

    Args:
        model: a backbone, a diffusers pipeline, or the name or folder of a model.
        images: one image of any size (path, PIL image, uint8 array [y x 3] or float tensor [3 y x] in 0..1), a list of
            images, or a folder of image files; for a model of videos a `Video`, or a list of them.
        class_names: the classes to choose from at every pixel. The paper's evaluation gives those that the image shows;
            a whole vocabulary is harder.
        options: everything else; `OpenVocabulary(**paper.RELEASED["segment"])` are the choices of the released code.
        latents: of the images, from `Backbone.encode_image` with the same fit and size, so that they are not encoded
            again.
        memory_budget: bytes that may be used beside the weights, by an estimate; None for most of what is free. It
            decides how many windows and prompts run in one forward.
        progress: show a progress bar for several images.

    Returns:
        One `Segmentation` for one image; a list for several, of a folder in the order of the file names. Of a video, a
        list with one for each frame, by the maps of the latent frame that stands for it. A warning names the words that
        the embedded model never saw: their masks mean nothing.

    Raises:
        InputError: an unreadable image, no class, a class twice, a layer, step or head out of range, an image for a
            model of videos or a video for one of images, an option that is for images alone, or one forward that needs
            more than memory_budget.
        PromptError: a class name that is too long for a prompt.

    Example:
        >>> result = segment("mini", scene.image, ["cat", "grass"], OpenVocabulary(layers=(4, 5), tiles=2))

    Source: Seg4Diff, arXiv 2509.18096, equations 9 to 12, Fig 7; the token grid is upsampled after the mean over heads
    and tokens, which is the same as before it.
    """
    names = as_names(class_names, "class_names")
    instance_of(options, OpenVocabulary, "options", "options such as OpenVocabulary(layers=4)")
    sources, single = image_list(images)
    backbone = as_backbone(model, videos=True)
    check_options(backbone, options)
    if backbone.is_video:
        check_video_options(names, options, latents)
        sources = [as_videos(backbone, [source])[0] for source in sources]
    if latents is not None and (options.tiles > 1 or len(check_latents(backbone, latents, "latents")) != len(sources)):
        raise InputError(
            f"expected latents of {len(sources)} images and tiles=1, got {len(latents)} with tiles={options.tiles}: "
            "leave latents out"
        )
    warn_of_unseen(backbone, names, options)
    work = Workbench(backbone, memory_budget)
    results: list[Any] = []
    bar = tqdm(sources, unit="image", disable=not progress or single, desc=f"{backbone.name} segment")
    for index, source in enumerate(bar):
        work.forget()
        if backbone.is_video:
            results.append(segment_video(work, source, names, options))
            continue
        (picture,) = open_images(source)
        if latents is not None:
            work.picture(picture).latents[options.fit, options.size] = latents[index : index + 1]
        results.append(segment_picture(work, picture, names, options))
    return results[0] if single else results


def segment_picture(
    work: Workbench, picture: PIL.Image.Image, names: Sequence[str], options: OpenVocabulary
) -> Segmentation:
    """Segment one opened image with checked options."""
    (found,) = image_maps(work, [picture], [names], options)
    return _result(work, found, work.frame(picture, options).image, (picture.height, picture.width), names, options)


def segment_video(work: Workbench, video: Video, names: Sequence[str], options: OpenVocabulary) -> list[Segmentation]:
    """Segment the frames of a video with checked options."""
    (found,) = image_maps(work, [video], [names], options)
    size, results = (video.height, video.width), []
    for at, frame in enumerate(work.frame(video, options).image):
        own = ImageMaps(found.maps[:, work.backbone.latent_frame(at)], found.labels[at], found.prompts)
        results.append(_result(work, own, frame, size, names, options, {"video_frame": at, "video_frames": len(video)}))
    return results


def _result(
    work: Workbench,
    found: ImageMaps,
    frame: PIL.Image.Image,
    size: tuple[int, int],
    names: Sequence[str],
    options: OpenVocabulary,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Segmentation:
    """Label what was found in a frame of an image of a size."""
    backbone = work.backbone
    centers = token_centers(frame, found.maps.shape[1:])
    box = label_frame(backbone, size, options.fit, options.size)
    settings = {
        "model": backbone.name,
        **option_settings(options),
        "layers": check_options(backbone, options),
        "frame": list(box),
        "prompts": list(found.prompts),
        "protocol": "open-vocabulary, argmax over the given classes (Seg4Diff, Eq 9-12)",
        **more,
    }
    return Segmentation(
        class_maps=xr.DataArray(
            found.maps.cpu().numpy(),
            {"class": list(names), **centers},
            ("class", "y", "x"),
            name=f"{options.direction} {options.normalize}",
        ),
        label_map=found.labels.cpu().numpy(),
        class_names=tuple(names),
        settings=settings,
        image=np.array(frame),
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
    if isinstance(images, Video):
        return [images], True
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
        raise InputError(f"expected several images as a list, got one {type(images).__name__}: pass list(images)")
    return [images], True


def check_options(backbone: Backbone, options: OpenVocabulary) -> list[int] | None:
    """Check layers, heads and size against a model.

    Returns:
        The resolved layers; None where the method chooses its own.

    Raises:
        InputError: a layer, head or size that the model does not have, or an expert layer that is unknown.
    """
    backbone.latent_size(options.size)
    if options.heads != "mean":
        check_heads(backbone, options.heads)  # type: ignore[arg-type]  # normalized to a tuple
    return model_layers(backbone, options)


def check_video_options(names: Sequence[str], options: OpenVocabulary, latents: Any) -> None:
    """Refuse what is for images alone.

    Raises:
        InputError: tiles, a second pass, merge_scaled, a method that reads no attention, latents, or no class beside a
            background without words.
    """
    alone = {
        "tiles": options.tiles > 1,
        "second_pass": options.second_pass > 0,
        "merge_scaled": options.merge_scaled,
        "method": options.method not in PROBABILITIES,
        "latents": latents is not None,
    }
    if refused := [name for name, given in alone.items() if given]:
        raise InputError(
            f"expected no {refused[0]} with a Video, got {shown(getattr(options, refused[0], latents))}: leave it out, "
            "or segment single frames with a model of images"
        )
    if set(names) == {BACKGROUND} and options.background != "word":
        raise InputError(
            f"expected a class beside {BACKGROUND!r} with a Video, got it alone, as {options.background!r}: name one"
        )


def warn_of_unseen(backbone: Backbone, names: Sequence[str], options: OpenVocabulary) -> None:
    """Warn of words that the embedded model, or another one whose card lists its training data, never saw."""
    source = MINI if backbone.name == "mini" else Path(backbone.name)
    data = read_card(source).get("data", {}) if source.is_dir() else {}
    known = {*data.get("concepts", ()), *data.get("backgrounds", ())}
    if not known:
        return
    spelled = known | {concepts()[name].plural for name in known if name in concepts()}
    words = [word for name in names for word in options.synonyms.get(name, (name,)) if word != BACKGROUND]
    plain = {
        word: " ".join(part for part in word.lower().split() if part not in (*COLORS, "a", "an")) for word in words
    }
    if unseen := [word for word in plain if plain[word] not in spelled]:
        places = "scenes.BASE_CONCEPTS and scenes.BACKGROUNDS" if source == MINI else f"{source}/model_card.json"
        warnings.warn(
            f"{backbone.name} never saw {', '.join(map(repr, unseen))} in training: their masks mean nothing. It knows "
            f"{len(known)} names, listed in {places}.",
            stacklevel=3,
        )
