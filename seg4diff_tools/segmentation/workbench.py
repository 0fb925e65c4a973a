"""What the images of a run share: encoded prompts, crops, latents, and the time of each kind of work."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any, get_args

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor

from seg4diff_tools.attention.exact import chunks
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.memory import FORWARD, check_need, checked_budget, encode_bytes, token_bytes
from seg4diff_tools.errors import InputError, one_of
from seg4diff_tools.images import Fit, Size, Video, check_size, crop_box
from seg4diff_tools.prompts import Prompt
from seg4diff_tools.segmentation.options import OpenVocabulary, Options

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""


@dataclass(eq=False)
class Picture:
    """A PIL image, or a `Video`, with its crops and latents, so that each is made once."""

    image: Any
    crops: dict[Box, "Picture"] = field(default_factory=dict)
    latents: dict[tuple[Fit, Size | None], Tensor] = field(default_factory=dict)

    def crop(self, box: Box) -> "Picture":
        """Return a part of the image, the same object each time."""
        if box == (0, 0, *self.image.size):
            return self
        if box not in self.crops:
            self.crops[box] = Picture(self.image.crop(box))
        return self.crops[box]


class Workbench:
    """A model with what the images of a run share: encoded prompts, encoded images, and the time of each kind of work.

    Args:
        backbone: the model.
        memory_budget: bytes for all but the weights; None for most of what is free.

    Attributes:
        backbone: the model.
        budget: bytes for all but the weights.
        need: bytes that the largest part of the work so far was estimated to take.
        seconds: by kind of work.
        rows: seconds of attention and labels, by method and protocol.
        images: number of images done.
    """

    def __init__(self, backbone: Backbone, memory_budget: int | None = None) -> None:
        self.backbone = backbone
        # a pipeline looks through all of its modules for it
        self._device = backbone.device
        self.budget, self.need = checked_budget(memory_budget, self._device), 0
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.rows: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.images = 0
        self._prompts: dict[tuple, list[Prompt]] = {}
        # by identity, with the image itself, so that no other image takes its place in memory
        self._pictures: dict[int, Picture] = {}

    @contextmanager
    def timed(self, work: str) -> Iterator[None]:
        """Add the time that passes to one kind of work."""
        began = time.perf_counter()
        try:
            yield
        finally:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self.seconds[work] += time.perf_counter() - began

    def prompts(self, words: Sequence[str], options: OpenVocabulary) -> list[Prompt]:
        """Return the encoded prompts of these words; the same words are encoded once."""
        about = options.classes_per_prompt, options.zero_tokens, options.cut_prompt, options.reader, options.stop_words
        key = tuple(words), *about
        if key not in self._prompts:
            with self.timed("text"):
                if len(self._prompts) >= 256:
                    self._prompts.pop(next(iter(self._prompts)))
                self._prompts[key] = [
                    prompt
                    for part in chunks(len(words), options.classes_per_prompt or len(words))
                    for prompt in self._encoded(words[part], options)
                ]
        return self._prompts[key]

    def _encoded(self, words: Sequence[str], options: OpenVocabulary) -> list[Prompt]:
        """Encode as few prompts as hold the words; each ends in the stop words."""
        stop = set(options.stop_words)
        if common := stop & set(words):
            raise InputError(f"expected stop_words that are no class, got {min(common)!r}: leave it out")
        found = self.backbone.class_prompts(
            [*words, *options.stop_words],
            zero_tokens=options.zero_tokens,
            cut_prompt=options.cut_prompt,
            reader=options.reader,
        )
        if not stop:
            return found
        if len(found) > 1:
            if len(words) == 1:
                raise InputError(
                    f"expected stop_words that fit into a prompt beside {words[0]!r}, got {len(stop)}: pass fewer"
                )
            half = len(words) // 2
            return [prompt for part in (words[:half], words[half:]) for prompt in self._encoded(part, options)]
        (prompt,) = found
        return [replace(prompt, classes={name: span for name, span in prompt.classes.items() if name not in stop})]

    def picture(self, image: PIL.Image.Image | Video) -> Picture:
        """Return what is kept of an image until `forget`."""
        return self._pictures.setdefault(id(image), Picture(image))

    def frame(self, image: PIL.Image.Image | Video, options: Options) -> Picture:
        """Return the part of an image that its label map covers."""
        return self.picture(image).crop(
            label_frame(self.backbone, (image.height, image.width), options.fit, options.size)
        )

    def latents(
        self, pictures: Sequence[Picture | PIL.Image.Image], fit: Fit, size: Size | None = None
    ) -> Float[Tensor, "image channel *frame row column"]:
        """Return encoded images, each one encoded once until `forget`."""
        found = []
        with self.timed("latents"):
            for each in pictures:
                picture = each if isinstance(each, Picture) else self.picture(each)
                if (fit, size) not in picture.latents:
                    self.plan(encode_bytes(self.backbone, prod(read_size(self.backbone, size))), "encoding an image")
                    picture.latents[fit, size] = self.backbone.encode_image(picture.image, size, fit)
                found.append(picture.latents[fit, size])
            return torch.cat(found)

    def places(self, size: Size | None) -> int:
        """Return the number of image tokens at a size in pixels; None for the model's own."""
        return prod(read_size(self.backbone, size)) // self.backbone.token_px**2

    def forward_bytes(self, tokens: int) -> int:
        """Return the bytes that a forward of one row takes at most; the modules are looked through once."""
        return tokens * self._of_token

    @cached_property
    def _of_token(self) -> int:
        return FORWARD * token_bytes(self.backbone, 1)

    def at_once(self, images: int, rows: int, *, maps: int, row: int, tokens: int, ways: str) -> tuple[int, int]:
        """Return how many images, and how many rows of a forward, fit into the budget at once.

        Args:
            images, rows: as many as are wanted.
            maps: bytes of maps of the image that has most.
            row: bytes of maps of each row of a forward, beside the forward itself.
            tokens: of the joint sequence.
            ways: to need less, for the error.

        Raises:
            InputError: one image, or one row, does not fit.
        """
        row += self.forward_bytes(tokens)
        self.plan(maps + row, f"the maps of an image and a forward of {tokens} tokens", ways)
        images = min(images, (self.budget - row) // max(1, maps))
        rows = min(rows, (self.budget - images * maps) // row)
        self.plan(images * maps + rows * row)
        return images, rows

    def plan(self, need: int, what: str = "", ways: str = "a smaller size") -> None:
        """Note what a part of the work needs, and refuse what does not fit into the budget.

        Raises:
            InputError: it does not fit; the message says what to change.
        """
        check_need(need, self.budget, what, ways)
        self.need = max(self.need, need)

    def forget(self) -> None:
        """Drop latents and crops, when other images come."""
        self._pictures.clear()


def label_frame(backbone: Backbone, image_size: tuple[int, int], fit: Fit, size: Size | None = None) -> Box:
    """Return the part of an image that its label map covers: left, top, right, bottom in whole pixels.

    Args:
        backbone: the model, to whose size the image is brought.
        image_size: height and width of the image in pixels.
        fit: "resize" for all of the image, "crop" for the largest centered part of the model's shape.
        size: height and width in pixels at which the model reads the image; None for its own.

    Raises:
        InputError: another `fit`, or a size that the model cannot take.
    """
    one_of(fit, "fit", get_args(Fit))
    height, width = image_size
    if fit == "resize":
        return 0, 0, width, height
    target = read_size(backbone, size)
    left, top, right, bottom = crop_box(image_size, target)
    # half a pixel is cut at the left or top; what rounding of the box itself adds is not
    column, row = int(left + 1e-6), int(top + 1e-6)
    return column, row, column + round(right - left), row + round(bottom - top)


def read_size(backbone: Backbone, size: Size | None) -> tuple[int, int]:
    """Return height and width in pixels at which the model reads images; `size` is None for its own."""
    return check_size(backbone.native_size[-2:] if size is None else size, backbone.token_px)


def token_centers(frame: PIL.Image.Image, grid: Sequence[int]) -> dict[str, Float[np.ndarray, " token"]]:
    """Return the centers "y" and "x" of a grid of image tokens in pixels of the frame."""
    (rows, columns), (width, height) = grid, frame.size
    return {"y": (np.arange(rows) + 0.5) * height / rows, "x": (np.arange(columns) + 0.5) * width / columns}
