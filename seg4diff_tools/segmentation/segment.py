"""Open-vocabulary segmentation with the attention of one layer at one step of denoising (Seg4Diff, Fig 7), or read otherwise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
import xarray as xr
from jaxtyping import Float, Int

from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checks import Head, check_layers
from seg4diff_tools.errors import InputError
from seg4diff_tools.images import Fit, ImageLike, crop_box, open_images
from seg4diff_tools.segmentation import masks
from seg4diff_tools.segmentation.attribution import Attribution, read
from seg4diff_tools.segmentation.class_maps import Direction, Normalize, read_class_maps


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Class maps and the label map that follows from them.

    Attributes:
        class_maps: one map for each class on the grid of image tokens; y and x are the tokens' centers in pixels of the
            label map.
        label_map: index into class_names for each pixel, in the image's own size; with fit="crop" in that of its
            center (`settings["frame"]` says left, top, right, bottom in pixels of the image).
        class_names: the classes in the order of the argument.
        settings: what made it: model, reading, layer, steps_from_end, steps, seed, head, direction, normalize, minmax, fit,
            frame, zero_tokens, cut_prompt, prompts, protocol.
    """

    class_maps: xr.DataArray
    label_map: Int[np.ndarray, "y x"]
    class_names: tuple[str, ...]
    settings: Mapping[str, Any]

    def upsampled(self) -> xr.DataArray:
        """The class maps at every pixel of the label map (equation 11)."""
        maps = masks.upsample(torch.from_numpy(self.class_maps.values), self.label_map.shape)
        height, width = self.label_map.shape
        coords = {"class": list(self.class_names), "y": np.arange(height) + 0.5, "x": np.arange(width) + 0.5}
        return xr.DataArray(maps.numpy(), dims=("class", "y", "x"), coords=coords, name=self.class_maps.name)


def segment(
    backbone: Backbone,
    image: ImageLike,
    class_names: Sequence[str],
    layer: int | Literal["expert"] | Sequence[int] | None = None,
    steps_from_end: int | Sequence[int] = 8,
    steps: int = 28,
    *,
    reading: str | Attribution = "layer",
    head: Head = "mean",
    direction: Direction = "i2t",
    normalize: Normalize = "softmax",
    minmax: bool = False,
    fit: Fit = "resize",
    seed: int = 0,
    zero_tokens: int = 77,
    cut_prompt: bool = False,
) -> Segmentation:
    """Segments an image into named classes with the image-to-text attention of one layer.

    The prompt is the class names joined by a space, over several prompts where one does not hold them all (each with a
    softmax of its own). The forward stops inside the wanted layer. `paper.RELEASED` has the choices of the paper's code.

    Args:
        backbone: the model.
        image: one image of any size: path, PIL image, uint8 array [y x 3] or float tensor [3 y x] in 0..1.
        class_names: the classes to choose from at every pixel. The paper's evaluation gives those that the image shows;
            a whole vocabulary is harder.
        layer: 0-based, or "expert" for the model's published best one; of several the mean is taken. None leaves it to the
            reading: the expert layer for the paper's.
        steps_from_end: noise level; 8 of 28 steps is the paper's. Of several the mean of the class maps is taken.
        steps: length of the schedule that steps_from_end counts in.
        reading: "layer" for the paper's way; "daam", "concept", "goca", "cosine" or "refined" for other published ways to read
            the same attention (`readings.READINGS`), or a function of their kind with options of its own, such as
            `functools.partial(readings.refined, times=4)`. head, direction and normalize belong to "layer" alone.
        head: "mean" over all heads (equation 9), or one head's index.
        direction: "i2t", what image tokens give to text tokens, or "t2i", the other direction (Fig 16).
        normalize: "softmax" for attention probabilities over all joint keys, "scores" for q k^T / sqrt(dim) before
            the softmax (Table 5).
        minmax: scale each class map to 0..1 before the classes are compared (Table 5).
        fit: "resize" stretches the image to the model's square, as the released code does, and the label map has the
            image's own size; "crop" takes the largest centered square, as the paper says, and so does the label map.
        seed: of the noise.
        zero_tokens: zero vectors that stand for T5's tokens; 77 in the released code.
        cut_prompt: put all names into one prompt that is cut where the text encoder stops reading, as the released code
            does. The map of a name past the cut is NaN, and the first such name gets every pixel.

    Returns:
        Class maps, label map and the settings that made them.

    Raises:
        InputError: an unreadable image, no class, a class twice, a layer, step or head out of range, or an unknown reading.
        PromptError: a class name that is too long for a prompt.

    Source: Seg4Diff, arXiv 2509.18096, equations 9 to 12, Fig 7; the token grid is upsampled after the mean over heads
    and tokens, which is the same as before it.
    """
    picture, frame, size, centers = open_framed(backbone, image, fit)
    prompts = backbone.class_prompts(class_names, zero_tokens=zero_tokens, cut_prompt=cut_prompt)
    latents = backbone.encode_image(picture, fit=fit)
    if layer is None and reading in ("layer", "daam"):
        layer = "expert" if reading == "layer" else range(backbone.layers)
    several = isinstance(layer, Sequence) and not isinstance(layer, str)
    layers = None if layer is None else check_layers(backbone, layer if several else [layer])
    if reading in ("layer", "daam"):
        (found,) = read_class_maps(
            backbone,
            latents,
            [prompts],
            layers=layers,
            steps_from_end=[steps_from_end] if isinstance(steps_from_end, int) else steps_from_end,
            steps=steps,
            heads=[head],
            kinds=[(direction, normalize)],
            seed=seed,
        )
        maps = found[0, :, :, 0].mean((0, 1))
    elif (head, direction, normalize) == ("mean", "i2t", "softmax"):
        maps = read(backbone, latents, prompts, reading, layers, steps_from_end=steps_from_end, steps=steps, seed=seed)
    else:
        raise InputError(f"expected no head, direction or normalize with another reading than 'layer', got {reading!r}")
    maps = masks.minmax(maps) if minmax else maps
    names = [name for prompt in prompts for name in prompt.classes]
    settings = {
        "model": backbone.name,
        "reading": reading,
        "layer": tuple(layers) if several else layers and layers[0],
        "steps_from_end": steps_from_end,
        "steps": steps,
        "seed": seed,
        "head": head,
        "direction": direction,
        "normalize": normalize,
        "minmax": minmax,
        "fit": fit,
        "frame": frame,
        "zero_tokens": zero_tokens,
        "cut_prompt": cut_prompt,
        "prompts": tuple(prompt.text for prompt in prompts),
        "protocol": "open-vocabulary, argmax over the given classes (Seg4Diff, Eq 9-12)",
    }
    return Segmentation(
        class_maps=xr.DataArray(
            maps.cpu().numpy(), {"class": names, **centers}, ("class", "y", "x"), name=f"{direction} {normalize}"
        ),
        label_map=masks.label_map(maps, size).cpu().numpy(),
        class_names=tuple(names),
        settings=MappingProxyType(settings),
    )


def open_framed(
    backbone: Backbone, image: ImageLike, fit: Fit
) -> tuple[PIL.Image.Image, tuple[int, int, int, int], tuple[int, int], dict[str, Float[np.ndarray, " token"]]]:
    """One image, and where its label map and the image tokens lie in it.

    Args:
        backbone: the model.
        image: one image of any size.
        fit: as for `label_frame`.

    Returns:
        The image; the `label_frame`; the label map's height and width in pixels; and the image tokens' centers "y" and
        "x" in pixels of the label map.

    Raises:
        InputError: an unreadable image, several images, or another `fit`.
    """
    pictures = open_images(image)
    if len(pictures) != 1:
        raise InputError(f"expected one image, got {len(pictures)}: pass them one by one")
    left, top, right, bottom = label_frame(backbone, (pictures[0].height, pictures[0].width), fit)
    (height, width), (rows, columns) = (bottom - top, right - left), backbone.token_grid()
    centers = {"y": (np.arange(rows) + 0.5) * height / rows, "x": (np.arange(columns) + 0.5) * width / columns}
    return pictures[0], (left, top, right, bottom), (height, width), centers


def label_frame(backbone: Backbone, image_size: tuple[int, int], fit: Fit) -> tuple[int, int, int, int]:
    """The part of an image that its label map covers: left, top, right, bottom in whole pixels.

    Args:
        backbone: the model, whose square the image is brought to.
        image_size: height and width of the image in pixels.
        fit: "resize" for all of the image, "crop" for the largest centered square.

    Raises:
        InputError: another `fit`.
    """
    if fit not in ("resize", "crop"):
        raise InputError(f"expected fit='resize' or fit='crop', got {fit!r}")
    height, width = image_size
    if fit == "resize":
        return 0, 0, width, height
    left, top, right, _ = crop_box(image_size, (backbone.image_size, backbone.image_size))
    # half a pixel is cut at the left or top; what rounding of the box itself adds is not
    column, row, side = int(left + 1e-6), int(top + 1e-6), round(right - left)
    return column, row, column + side, row + side
