"""Inputs of a batch: stacked prompts, timesteps in the model's format, and captured pipeline inputs."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from seg4diff_tools.backbones.checks import check_timesteps
from seg4diff_tools.errors import InputError
from seg4diff_tools.families import Family
from seg4diff_tools.prompts import Prompt


def forward_inputs(
    family: Family, captured: Mapping[str, Any], noisy: Tensor, timestep: Any, prompts: Sequence[Prompt]
) -> dict[str, Any]:
    """Return the transformer's arguments for one forward: see `Backbone.inputs`.

    `captured` are the pipeline's inputs for an image of this size; `noisy` is on the model's device and in its dtype.

    Raises:
        InputError: prompts or timesteps that do not fit the latents.
    """
    if len(noisy) % len(prompts):
        raise InputError(
            f"expected prompt, one or one per image, got {len(prompts)} for {len(noisy)} latents: pass one for all"
        )
    own = (family.latents, family.timestep, *family.text_inputs, "return_dict")
    start, slope = family.timestep_affine
    # in the dtype in which the pipeline passes it
    like = captured[family.timestep].dtype
    time = start + slope * check_timesteps(timestep, len(noisy), noisy.device)
    inputs = {
        **{name: rows([value] * len(noisy)) for name, value in captured.items() if name not in own},
        **stack_prompts(prompts, len(noisy) // len(prompts), family.image_axis),
        family.latents: family.pack(noisy),
        family.timestep: time.to(like if like.is_floating_point else torch.float32),
        "return_dict": False,
    }
    return family.finalize_inputs(inputs)


def stack_prompts(
    prompts: Sequence[Prompt], times: int = 1, image_axis: Mapping[str, int] = MappingProxyType({})
) -> dict[str, Any]:
    """Return the transformer's arguments that come from prompts of one length, each repeated, as one batch.

    Those with one row for each image are stacked, along `image_axis` where it is not the first; the rest, such as
    position ids, are shared.

    Raises:
        InputError: prompts with different numbers of tokens.
    """
    lengths = {len(prompt.tokens) for prompt in prompts}
    if len(lengths) > 1:
        raise InputError(
            f"expected prompts of one length, got {sorted(lengths)} tokens: run them one by one, and use one "
            "zero_tokens for all"
        )
    return {
        name: rows([prompt.inputs[name] for prompt in prompts], times, image_axis.get(name, 0))
        for name in prompts[0].inputs
    }


def rows(values: Sequence[Any], times: int = 1, axis: int = 0) -> Any:
    """Combine an argument of several images into that of their batch, each repeated.

    Tensors with one row along the axis of images and lists of one item are per image; anything else is shared.
    """
    first = values[0]
    if isinstance(first, Tensor) and first.ndim and first.shape[axis] == 1:
        return torch.cat(list(values), dim=axis).repeat_interleave(times, dim=axis)
    if isinstance(first, list) and len(first) == 1:
        return [item for value in values for item in value for _ in range(times)]
    return first


def at_once(size: tuple[int, ...]) -> int:
    """Return the VAE's batch size for images of a size in pixels: it needs more memory than the transformer."""
    return max(1, (1 << 20) // math.prod(size))
