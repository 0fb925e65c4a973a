"""Images and videos as latents: sizes that a model can take, encoding and decoding."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from seg4diff_tools.backbones.checks import check_frames, check_latents
from seg4diff_tools.backbones.inputs import at_once
from seg4diff_tools.errors import InputError
from seg4diff_tools.images import Fit, Size, Video, check_size, fit_image, open_images
from seg4diff_tools.indices import as_int

if TYPE_CHECKING:
    from seg4diff_tools.backbones.backbone import Backbone


def pixel_size(backbone: "Backbone", size: Size | None) -> tuple[int, ...]:
    """Return height and width in pixels, of a video frames before them, if the model can take them.

    Args:
        backbone: the model.
        size: None for the native size; of a video, a height and width alone take the native number of frames.

    Raises:
        InputError: another size.
    """
    native, most = backbone.native_size, backbone.family.max_tokens_per_side(backbone.transformer)
    sides: Any = native if size is None else size
    if not backbone.is_video:
        return check_size(sides, backbone.token_px, most)
    whole = isinstance(sides, (tuple, list)) and len(sides) == 3
    frames, sides = (sides[0], tuple(sides[1:])) if whole else (native[0], sides)
    return check_frames(backbone, frames), *check_size(sides, backbone.token_px, most)


def latent_size(backbone: "Backbone", size: Size | None) -> tuple[int, ...]:
    """Return channels, rows and columns of a latent, of a video frames before the rows: see `pixel_size`."""
    *frames, height, width = pixel_size(backbone, size)
    cell = backbone.family.latent_cell_px(backbone.pipe)
    latent_frames = (backbone.latent_frame(count - 1) + 1 for count in frames)
    return backbone.family.channels(backbone.pipe), *latent_frames, height // cell, width // cell


def latent_frame(backbone: "Backbone", frame: int) -> int:
    """Return the latent frame that stands for a frame of a video: see `Backbone.latent_frame`.

    Raises:
        InputError: no whole number from 0 on, or a model of images.
    """
    if not backbone.is_video:
        raise InputError(f"expected a model of videos, got {backbone.name!r}, one of images: its maps have no frames")
    return -(-as_int(frame, "frame", 0) // backbone.pipe.vae_scale_factor_temporal)


def size_of(backbone: "Backbone", latents: Tensor) -> tuple[int, ...]:
    """Return height and width in pixels of the images of these latents; of videos, frames before them."""
    *frames, rows, columns = latents.shape[2:]
    cell = backbone.family.latent_cell_px(backbone.pipe)
    return *((count - 1) * backbone.pipe.vae_scale_factor_temporal + 1 for count in frames), rows * cell, columns * cell


def encode(backbone: "Backbone", images: Any, size: Size | None, fit: Fit) -> Tensor:
    """Encode images, or videos with a model of videos: see `Backbone.encode_image`."""
    height, width = pixel_size(backbone, size)[-2:]
    if backbone.is_video:
        processor, videos = backbone.pipe.video_processor, as_videos(backbone, images)
        if isinstance(size, (tuple, list)) and len(size) == 3 and size[0] != len(videos[0]):
            raise InputError(
                f"expected a Video of size[0]={size[0]} frames, got {len(videos[0])}: pass size={(height, width)}"
            )
        frames = [[fit_image(frame, (height, width), fit) for frame in video] for video in videos]
        batches = [processor.preprocess_video(each, height, width) for each in frames]
    else:
        pictures = [fit_image(image, (height, width), fit) for image in open_images(images)]
        pixels = backbone.pipe.image_processor.preprocess(pictures, height, width)
        batches = list(pixels.split(at_once((height, width))))
    with backbone.running():
        parts = [
            backbone.family.encode(backbone.pipe, batch.to(backbone.device, backbone.pipe.vae.dtype))
            for batch in batches
        ]
        return torch.cat(parts).to(backbone.dtype)


def as_videos(backbone: "Backbone", videos: Any) -> list[Video]:
    """Return one video, or several of as many frames, as a list.

    Raises:
        InputError: an image, or a number of frames that the model cannot take.
    """
    listed = [videos] if isinstance(videos, Video) else videos
    several = isinstance(listed, (list, tuple)) and len(listed) > 0
    if wrong := [one for one in (listed if several else [videos]) if not isinstance(one, Video)]:
        raise InputError(
            f"expected a Video for {backbone.name!r}, a model of videos, got {type(wrong[0]).__name__}: pass "
            "Video(frames), Video([image]) for a single frame, or a list of videos"
        )
    counts = [check_frames(backbone, len(video)) for video in listed]
    if len(set(counts)) > 1:
        raise InputError(f"expected videos with as many frames, got {counts}: pass them one by one")
    return list(listed)


def decode(backbone: "Backbone", latents: Any) -> list[Any]:
    """Decode latents: see `Backbone.decode`."""
    pipe, family = backbone.pipe, backbone.family
    latents = check_latents(backbone, latents, "latents").to(backbone.device, pipe.vae.dtype)
    with backbone.running():
        if backbone.is_video:
            found = [
                pipe.video_processor.postprocess_video(family.decode(pipe, one), "pil") for one in latents.split(1)
            ]
            return [Video(frames) for videos in found for frames in videos]
        parts = [
            pipe.image_processor.postprocess(family.decode(pipe, part))
            for part in latents.split(at_once(size_of(backbone, latents)))
        ]
    return [image for part in parts for image in part]
