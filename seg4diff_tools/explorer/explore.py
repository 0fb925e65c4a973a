"""Explore the attention of image tokens by layer, step, head and word, in JupyterLab and in a page."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import PIL.Image
import xarray as xr
from diffusers import DiffusionPipeline

from seg4diff_tools.attention.recorder import AttentionRecorder
from seg4diff_tools.attention.recording import Recording, open_recording
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.loading import as_backbone
from seg4diff_tools.datasets import Sample
from seg4diff_tools.errors import InputError, as_names, instance_of, one_of, shown
from seg4diff_tools.explorer.live import STEPS, LiveExplorer, samples_straight
from seg4diff_tools.explorer.maps import MapSource
from seg4diff_tools.explorer.widget import Explorer
from seg4diff_tools.explorer.words import known_phrases, told_phrases
from seg4diff_tools.images import ImageLike, Video, open_image, open_images


@runtime_checkable
class Segmented(Protocol):
    """Interface of `segmentation.Segmentation`, which this package cannot import."""

    class_maps: xr.DataArray
    image: Any


_MODELS = (Backbone, DiffusionPipeline)
Model: TypeAlias = Backbone | DiffusionPipeline
Maps: TypeAlias = AttentionRecorder | Recording | Segmented | xr.DataArray | str | os.PathLike
Source: TypeAlias = Model | Maps | Mapping[str, Any]


def explore(
    source: Source,
    image: ImageLike | Video | Sequence[ImageLike] | Sequence[Video] | Sample | None = None,
    *,
    prompt: str | None = None,
    seed: int = 0,
    steps: int = STEPS,
    record: Mapping[str, Any] | None = None,
    step_pictures: bool | None = None,
    phrases: Sequence[str] | None = None,
    store: int = 1 << 20,
    show: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Explorer:
    """Show the attention of image tokens by layer, step, head and word, and the ranked words of a position.

    Args:
        source: recorded maps: a recorder, a recording or the path of a saved one, maps with the axes y, x and any of
            image, frame, branch, layer, step, head and token (or class, or concept); a dictionary of several, by name,
            for comparison; a segmentation, shown as masks over its image; or a model (a backbone or a pipeline; with
            `prompt`, also a name), which is recorded with `prompt`, `seed` and `image`.
        image: the picture under the maps, one for each entry of axis image; None shows the maps alone. Under maps of a
            video the `Video`, of which each latent frame shows one of the frames that it stands for. With a backbone,
            its input picture, with every step's noise; None generates one. A sample or scene brings its image, its
            caption as the prompt and its class names as phrases.
        prompt: of the backbone; may also be passed as `image`.
        seed: of the backbone's noise.
        steps: of the backbone's schedule.
        record: further arguments of `AttentionRecorder` for a backbone, such as {"heads": "all", "direction": ["i2t",
            "t2i"]}.
        step_pictures: keep the clean image that the backbone predicts at each recorded step, which is then shown under
            the maps of that step; costs one decode of the VAE a step. None keeps them for pictures that are generated
            with FlowMatchEulerDiscreteScheduler, the one whose steps tell them.
        phrases: names of several words that are shown as one, with the mean of their maps; None for the class names of
            the sample, and for those that scenes draw, such as "night sky".
        store: characters of maps that a saved notebook keeps, for display without Python; 0 for none.
        show: further settings, for names that are arguments too: show={"image": 2} starts with that image.
        settings: initial values of attributes of `Explorer`, such as layer=4, token="cat", beside={"layer": 9} or
            mode="masks".

    Returns:
        The viewer; the last line of a cell shows it. `view.layer = 9` changes a setting, `view.observe(function,
        "token")` observes one, `view.data` has the shown maps and `view.save_html("view.html")` writes a page.

    Raises:
        InputError: nothing to show, a setting that was not recorded, incompatible recordings, or words outside the
            prompt (i2c, c2i) beside those of the prompt.
        RecordingError: a file that is no recording, is damaged, or has another version.

    Example: `explore(recorder, scene.image, token="cat")`, `explore(backbone, scene)`,
    `explore(backbone, "a cat and a tree on grass")`,
    `explore({"before": first, "after": second}, image, beside={"recording": "after"})`.
    """
    for name, more in (("show", show), ("record", record)):
        if more is not None:
            instance_of(more, Mapping, name, f"{name}={{'{'image' if name == 'show' else 'heads'}': ...}}")
    settings = {**settings, **(show or {})}
    Explorer.check_names(settings)
    one_of(step_pictures, "step_pictures", (True, False, None))
    names = () if phrases is None else as_names(phrases, "phrases", empty=True, example="['night sky']")
    if phrases is None:
        own = image.class_names if isinstance(image, Sample) else ()
        names = tuple(dict.fromkeys([*known_phrases(), *(name for name in own if " " in name)]))
    if isinstance(image, Sample):
        prompt = image.caption if prompt is None and isinstance(source, _MODELS) else prompt
        image = image.image
    if isinstance(source, _MODELS) or (prompt is not None and isinstance(source, (str, Path))):
        source = as_backbone(source)
    if isinstance(source, Backbone):
        is_file = isinstance(image, str) and Path(image).suffix.lower() in PIL.Image.registered_extensions()
        if prompt is None and isinstance(image, str) and not is_file:
            image, prompt = None, image
        image = None if image is None else open_image(image)
        if not isinstance(prompt, str):
            raise InputError(f"expected prompt as text for a backbone, got {prompt!r}: pass prompt='a cat on grass'")
        kept = image is None and samples_straight(source) if step_pictures is None else step_pictures
        options = {"phrases": names, **settings}
        return LiveExplorer(source, image, prompt, seed, steps, record or {}, store, step_pictures=kept, **options)
    given = {"prompt": prompt, "record": record, "step_pictures": step_pictures, "seed": seed or None}
    given["steps"] = None if steps == STEPS else steps
    if unread := [name for name, value in given.items() if value is not None]:
        raise InputError(
            f"expected a backbone as source where {unread[0]} is given, got {shown(source)}: leave {unread[0]} out"
        )
    if isinstance(source, Segmented):
        image = source.image if image is None else image
        settings = {"mode": "masks"} | settings
    named = source if isinstance(source, Mapping) else {"": source}
    blocks = {str(name): _blocks(part) for name, part in named.items()}
    atlas = MapSource(blocks, names)
    recorded = [maps.frame for part in blocks.values() for maps in part.values() if "frame" in maps.coords]
    # of the recorded video, whose frames may have been selected from
    count = max((int(frame.attrs.get("count", frame.max() + 1)) for frame in recorded), default=0)
    pictures = _pictures(image, len(atlas.axes["image"]), atlas.axes["frame"], count)
    call = f"explore({_source_name(source)}{', image' if pictures else ''}{told_phrases(names)}"
    return Explorer(atlas, pictures, call, store, **settings)


def _pictures(image: Any, images: int, frames: list, count: int) -> list[PIL.Image.Image]:
    """Return no picture, one for all maps, or one for each image and latent frame.

    Raises:
        InputError: another number, or videos for maps without frames.
    """
    videos = [image] if isinstance(image, Video) else image
    if isinstance(videos, (list, tuple)) and videos and all(isinstance(one, Video) for one in videos):
        if frames == [None]:
            raise InputError("expected images for maps without an axis 'frame', got a Video: pass an image")
        pictures: list[Any] = [_frames_of(video, frames, count) for video in videos]
    else:
        pictures = [[one] * len(frames) for one in ([] if image is None else open_images(image))]
        if len(pictures) == 1:
            return pictures[0][:1]
    if len(pictures) not in (0, images):
        raise InputError(f"expected one picture or one for each of {images} images, got {len(pictures)}: pass as many")
    return [picture for one in pictures for picture in one]


def _frames_of(video: Video, frames: list[int], count: int) -> list[PIL.Image.Image]:
    """Return the picture of some of `count` latent frames: the first one, then the middle one of those that it stands
    for."""
    span, rest = divmod(len(video) - 1, max(1, count - 1))
    if rest or (span == 0 and count > 1):
        raise InputError(
            f"expected a Video whose frames the {count} recorded latent frames stand for, got one of {len(video)} "
            "frames: pass the recorded one"
        )
    return [video[frame and span * (frame - 1) + 1 + (span - 1) // 2] for frame in frames]


def _blocks(source: Any) -> dict[str, xr.DataArray]:
    """Return recorded maps by direction."""
    if isinstance(source, (str, os.PathLike)):
        source = open_recording(source)
    if isinstance(source, AttentionRecorder):
        source = source.recording
    if isinstance(source, Recording):
        return source.map_blocks
    if isinstance(source, Segmented):
        source = source.class_maps
    if isinstance(source, xr.DataArray):
        return {str(source.name or "maps"): source}
    raise InputError(
        f"expected source, a backbone, a recorder, a recording, its path, a segmentation or a DataArray, "
        f"got {shown(source)}: pass one of these"
    )


def _source_name(source: Source) -> str:
    """Return the variable name of the source for a line of code."""
    if isinstance(source, (str, os.PathLike)):
        return json.dumps(str(source))
    if isinstance(source, Segmented):
        return "segmentation"
    return {dict: "recordings", xr.DataArray: "maps", AttentionRecorder: "recorder"}.get(type(source), "recording")
