"""The one forward loop: add noise, intercept the wanted layers, stop after the last of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.errors import InputError
from seg4diff_tools.indices import as_int
from seg4diff_tools.prompts import Prompt

Observed = TypeVar("Observed")


@dataclass(frozen=True, eq=False)
class ForwardBatch:
    """Inputs of one forward: images with one prompt each, at one or several steps.

    Attributes:
        noisy, timestep: one row for each prompt and step, steps changing fastest.
        prompts: one for each group of rows, all of one length.
        images, positions: of each prompt, the index of its image and its place among that image's prompts.
        steps: indices of the rows' steps in the requested steps.
    """

    noisy: Float[Tensor, "row channel *frames height width"]
    timestep: Float[Tensor, " row"]
    prompts: list[Prompt]
    images: list[int]
    positions: list[int]
    steps: slice

    def rows(self, index: int) -> slice:
        """Return the rows of one prompt, one for each step."""
        count = self.steps.stop - self.steps.start
        return slice(index * count, (index + 1) * count)


def forward_batches(
    backbone: Backbone,
    latents: Float[Tensor, "image channel *frames height width"],
    prompts: Sequence[Sequence[Prompt]],
    *,
    steps_from_end: Sequence[int] = (8,),
    steps: int = 28,
    seed: int = 0,
    batch: int = 8,
) -> Iterator[ForwardBatch]:
    """Yield the inputs of all forwards of several images, neighbors with prompts of one length together.

    Args:
        backbone: the model.
        latents: encoded images, without noise.
        prompts: of each image; each has a separate forward.
        steps_from_end: noise levels, counted from the end of the schedule.
        steps: length of the schedule.
        seed: of the noise, the same for all images.
        batch: largest number of rows of one forward.

    Raises:
        InputError: another number of images than of lists of prompts, a step or batch out of range.
    """
    if len(prompts) != len(latents) or len(latents) == 0:
        raise InputError(
            f"expected prompts for each image, got {len(prompts)} for {len(latents)} images: pass a list for each"
        )
    batch, wanted = as_int(batch, "batch", 1), list(steps_from_end)
    entries = [(image, position, prompt) for image, own in enumerate(prompts) for position, prompt in enumerate(own)]
    at_once = max(1, batch // max(1, len(wanted)))
    for _, group in groupby(entries, key=lambda entry: len(entry[2].tokens)):
        alike = list(group)
        for start in range(0, len(alike), at_once):
            images, positions, own = (list(column) for column in zip(*alike[start : start + at_once], strict=True))
            for first in range(0, len(wanted), batch) or [0]:
                some = wanted[first : first + batch]
                noisy, timestep = backbone.add_noise(latents[images], some, steps, seed)
                yield ForwardBatch(noisy, timestep, own, images, positions, slice(first, first + len(some)))


def observe(
    backbone: Backbone,
    noisy: Float[Tensor, "row channel *frames height width"],
    timestep: Float[Tensor, " row"],
    prompt: Prompt | Sequence[Prompt],
    see: Callable[[JointAttention], Observed],
    layers: Sequence[int] | None = None,
) -> list[Observed]:
    """Run one forward up to the last wanted layer; return what `see` returns for each of the layers, in their order.

    Args:
        backbone: the model.
        noisy, timestep: from `Backbone.add_noise`.
        prompt: one for all rows, or one for each group of rows.
        see: called with the attention of each wanted layer during the forward.
        layers: 0-based; None for all.

    Raises:
        InputError: no layer, or one that the model does not have.
    """
    layers = range(backbone.layers) if layers is None else layers
    found: dict[int, Observed] = {}

    def store(call: JointAttention) -> None:
        found[call.layer] = see(call)

    with intercept(backbone.transformer, store, layers=layers, stop_after=max(layers, default=None)):
        backbone.predict_velocity(noisy, timestep, prompt)
    return [found[layer] for layer in layers]
