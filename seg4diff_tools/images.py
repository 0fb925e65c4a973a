"""Images: read any kind as RGB PIL images, check and change sizes, encode as files."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from jaxtyping import Float
from torch import Tensor

from seg4diff_tools._runs import as_path
from seg4diff_tools.errors import InputError, one_of
from seg4diff_tools.indices import as_int

ImageLike: TypeAlias = str | Path | PIL.Image.Image | np.ndarray | Tensor
Fit = Literal["resize", "crop"]
Size = int | tuple[int, ...]
"""Side of a square or (height, width) in pixels; of a video also (frames, height, width)."""


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Video:
    """Frames that a model of videos reads as one sample; wrapped, so that they are not taken for several images.

    Args:
        frames: images of one size, in order: a list of what `open_images` takes, a uint8 array [frame y x 3] or a float
            tensor [frame 3 y x] from 0 to 1. One image is a video of one frame: Video([image]).

    Raises:
        InputError: no frame, one that cannot be read, or frames of several sizes.
    """

    frames: tuple[PIL.Image.Image, ...]

    def __init__(self, frames: Any) -> None:
        opened = tuple(open_images(frames))
        sizes = {frame.size for frame in opened}
        if len(sizes) > 1:
            raise InputError(f"expected frames of one size, got {sorted(sizes)} (width, height): resize them first")
        object.__setattr__(self, "frames", opened)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.frames[0].size

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.size[0]

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.size[1]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, frame: int) -> PIL.Image.Image:
        return self.frames[frame]

    def __iter__(self) -> Iterator[PIL.Image.Image]:
        return iter(self.frames)

    def __repr__(self) -> str:
        return f"Video({len(self)} frame{'s' * (len(self) > 1)} of {self.height} x {self.width} px)"

    def crop(self, box: tuple[int, int, int, int]) -> "Video":
        """Return a part of every frame: left, top, right, bottom in pixels."""
        return Video([frame.crop(box) for frame in self])


def open_images(images: ImageLike | Sequence[ImageLike]) -> list[PIL.Image.Image]:
    """Open one image, a batch or a list of them.

    Args:
        images: a path, a PIL image of any 8-bit mode (or 16-bit grey), a uint8 array [y x 3] (grey [y x] and alpha
            [y x 4] too) or a float tensor [3 y x] from 0 to 1; or an array or tensor with one axis more; or a list.
            Tensors are rounded to 8 bits. Transparent pixels show white.

    Returns:
        RGB images. A photograph opened from a path stands upright (its EXIF orientation is applied).

    Raises:
        InputError: no such file, not a whole image, or an array of another type, shape or range.
    """
    return [open_image(image) for image in as_images(images)]


def as_images(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    """Return one image, a batch or a list of them as a list, without opening files: see `open_images`."""
    if isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4:
        images = list(images)
    elif isinstance(images, (str, Path, PIL.Image.Image, np.ndarray, Tensor)):
        images = [images]
    if isinstance(images, Video):
        raise InputError("expected images, got a Video, which models of videos read: pass list(video) for its frames")
    if not isinstance(images, (list, tuple)):
        raise InputError(
            f"expected images, one or a list, got {type(images).__name__}: pass a path, a PIL image, an array, a tensor"
        )
    if not images:
        raise InputError("expected at least one image, got an empty list: pass images=['photo.jpg']")
    return list(images)


def open_image(image: ImageLike, upright: bool = True) -> PIL.Image.Image:
    """Open one image: see `open_images`.

    Args:
        image: the image.
        upright: apply the EXIF orientation of a photograph on disk.
    """
    if isinstance(image, Tensor):
        image = _from_tensor(image)
    elif isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[-1] not in (3, 4)):
            raise InputError(
                f"expected a uint8 array [y x 3] with values from 0 to 255, got {image.dtype} of shape {image.shape}"
            )
        image = PIL.Image.fromarray(image)
    elif not isinstance(image, (str, Path, PIL.Image.Image)):
        raise InputError(
            f"expected an image, got {type(image).__name__}: pass a path, a PIL image, an array or a tensor"
        )
    name = f"'{image}'" if isinstance(image, (str, Path)) else "the image"
    try:
        if isinstance(image, (str, Path)):
            with PIL.Image.open(as_path(image, "image")) as file:
                return _rgb(PIL.ImageOps.exif_transpose(file) if upright else file)
        return _rgb(image)
    except FileNotFoundError:
        raise InputError(f"no image file {name}: check the path") from None
    except PIL.UnidentifiedImageError:
        raise InputError(f"{name} is not an image that PIL can read") from None
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} is damaged or cannot be read as an image: {error}") from error


def check_size(size: Size, token_px: int, most: int | None = None) -> tuple[int, int]:
    """Return height and width in pixels, if a model can take them.

    Args:
        size: (height, width), or the side of a square.
        token_px: side of an image token in pixels.
        most: largest number of tokens along a side; None for any.

    Raises:
        InputError: no multiples of token_px, or too large; the message names the nearest size that will do.
    """
    sides = as_size(size)
    height, width = sides
    for side in sides:
        if side < 1 or side % token_px or (most and side > most * token_px):
            tokens = max(round(side / token_px), 1)
            near = token_px * (min(tokens, most) if most else tokens)
            limit = f" up to {most * token_px}" if most else ""
            raise InputError(
                f"expected a size in multiples of {token_px} pixels{limit}, "
                f"got {height} x {width}: try {near} instead of {side}"
            )
    return height, width


def as_size(size: Any) -> tuple[int, int]:
    """Return height and width of a size, given as both or as the side of a square; raise an InputError otherwise."""
    sides = list(size) if isinstance(size, (list, tuple, np.ndarray)) else [size, size]
    if len(sides) != 2:
        raise InputError(f"expected size, (height, width) or the side of a square, got {size!r}: pass size=512")
    height, width = (as_int(side, "size", 1) for side in sides)
    return height, width


def crop_box(image_size: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the largest centered part of an image with the shape of `size`, both (height, width), as PIL's box."""
    (height, width), (rows, columns) = image_size, size
    scale = min(height / rows, width / columns)
    left, top = (width - columns * scale) / 2, (height - rows * scale) / 2
    return left, top, left + columns * scale, top + rows * scale


def fit_image(image: PIL.Image.Image, size: tuple[int, int], fit: Fit = "resize") -> PIL.Image.Image:
    """Resize an image to (height, width) in pixels (Lanczos).

    Args:
        image: any size.
        size: (height, width).
        fit: "resize" stretches all of the image, as the paper's released code does; "crop" keeps its proportions and
            cuts off what is outside `crop_box`, as the paper's text says.

    Raises:
        InputError: another `fit`.
    """
    one_of(fit, "fit", get_args(Fit))
    height, width = size
    if image.size == (width, height):
        return image
    box = crop_box((image.height, image.width), size) if fit == "crop" else None
    return image.resize((width, height), PIL.Image.Resampling.LANCZOS, box=box)


def square_pixels(images: Sequence[PIL.Image.Image], side: int) -> Float[Tensor, "image 3 side side"]:
    """Stretch images to squares, as one batch with values from 0 to 1 on the CPU."""
    pictures = np.stack([np.asarray(fit_image(image, (side, side), "resize")) for image in images])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def encode(picture: PIL.Image.Image, kind: str = "PNG", side: int | None = None, **options: Any) -> bytes:
    """Return a picture as the bytes of a file ("PNG" or "JPEG"), shrunk to sides of at most `side` pixels."""
    content = io.BytesIO()
    if side is not None:
        picture = picture.copy()
        picture.thumbnail((side, side))
    picture.save(content, kind, **options)
    return content.getvalue()


def data_url(picture: PIL.Image.Image, kind: str = "PNG", side: int | None = None, **options: Any) -> str:
    """Return a picture as a URL that holds it: see `encode`."""
    content = base64.b64encode(encode(picture, kind, side, **options)).decode()
    return f"data:image/{kind.lower()};base64,{content}"


def _from_tensor(image: Tensor) -> PIL.Image.Image:
    shape = tuple(image.shape)
    if (
        len(shape) != 3
        or shape[0] not in (1, 3)
        or 0 in shape
        or not (image.is_floating_point() or image.dtype == torch.uint8)
    ):
        raise InputError(f"expected a float tensor [3 y x] with values from 0 to 1, got {image.dtype} of shape {shape}")
    if image.is_floating_point():
        low, high = image.min().item(), image.max().item()
        if not (low >= 0 and high <= 1):
            raise InputError(f"expected tensor values from 0 to 1, got {low:.3g} to {high:.3g}: rescale the tensor")
        image = (image.float() * 255).round()
    pixels = image.detach().cpu().to(torch.uint8).permute(1, 2, 0).numpy()
    return PIL.Image.fromarray(pixels.squeeze(-1) if shape[0] == 1 else pixels)


def _rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode.startswith("I;16"):
        return PIL.Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise InputError(f"expected an 8-bit image, got mode '{image.mode}' whose range is unknown: convert it first")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
