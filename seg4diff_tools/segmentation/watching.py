"""What attribution methods are made of: forwards up to the last wanted layer, maps and features of a layer."""

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from seg4diff_tools.attention.exact import working_dtype
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.attention.tokens import span_weights
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.forwards import observe
from seg4diff_tools.prompts import Prompt

Found = TypeVar("Found")
Features = Literal["query", "key", "value"]
Latents = Float[Tensor, "step channel row column"]
Timesteps = Float[Tensor, " step"]
Spans = Float[Tensor, "text class"]
Maps = Float[Tensor, "step class image"]
Prompts = Sequence[Prompt]
Layers = Sequence[int] | None
Attribution = Callable[[Backbone, Latents, Timesteps, Prompts, Layers], Maps]
"""A method: (backbone, noisy latents of one image, timesteps, prompts, layers) to class maps, fp32, one for each step.

Latents and timesteps come from `Backbone.add_noise`, prompts from `Backbone.class_prompts`; layers=None stands for the
method's own choice. `functools.partial` sets further options."""


def layer_maps(
    backbone: Backbone,
    noisy: Latents,
    timestep: Timesteps,
    prompts: Sequence[Prompt],
    layers: Sequence[int],
    see: Callable[[JointAttention, Spans], Maps],
) -> Float[Tensor, "layer step class image"]:
    """Return what `see` makes of each layer, classes of all prompts side by side."""
    found = [torch.stack(watch(backbone, noisy, timestep, prompt, layers, see)) for prompt in prompts]
    return torch.cat(found, dim=2).float()


def watch(
    backbone: Backbone,
    noisy: Latents,
    timestep: Timesteps,
    prompt: Prompt,
    layers: Sequence[int],
    see: Callable[[JointAttention, Spans], Found],
) -> list[Found]:
    """Return what `see` makes of each layer in one forward."""
    spans = span_weights(list(prompt.classes.values()), len(prompt.tokens)).to(noisy.device)
    return observe(backbone, noisy, timestep, prompt, lambda call: see(call, spans), layers)


def head_mean(call: JointAttention, spans: Spans) -> Maps:
    """Return the paper's maps of a layer: image-to-text attention, mean over heads and over each class's tokens."""
    return call.head_mean("i2t", spans=spans).mT


def features(
    call: JointAttention, name: Literal[Features, "output"], side: Literal["image", "text"]
) -> Float[Tensor, "step token feature"]:
    """Return what the attention takes from or gives to image or text tokens, heads side by side, at least fp32."""
    tokens = getattr(call, name)[:, :, getattr(call, side)]
    return tokens.to(working_dtype(tokens)).transpose(1, 2).flatten(2)
