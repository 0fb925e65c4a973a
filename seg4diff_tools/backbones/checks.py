"""Checks of arguments against a model, made at the call."""

from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from seg4diff_tools.errors import InputError
from seg4diff_tools.indices import as_indices, as_int

if TYPE_CHECKING:
    from seg4diff_tools.backbones.backbone import Backbone

Head = Literal["mean"] | int


def check_layers(backbone: "Backbone", layers: Any) -> list[int]:
    """Return layer indices.

    Args:
        backbone: the model.
        layers: 0-based, one or several, each once; "expert" for the model's expert layer; "double" or "single" for all
            double-stream or single-stream blocks; None for all.

    Raises:
        InputError: an index out of range or twice, none at all, "expert" where it is unknown, or a kind of block that
            the model lacks.
    """
    if layers is None:
        return list(range(backbone.layers))
    if isinstance(layers, str) and layers in ("double", "single"):
        double = backbone.family.double_layers(backbone.transformer)
        found = [layer for layer in range(backbone.layers) if (layer in double) == (layers == "double")]
        if not found:
            raise InputError(
                f"expected layers of a kind that {backbone.name!r} has, got {layers!r}: pass layers=None for all"
            )
        return found
    several = isinstance(layers, (list, tuple))
    if "expert" in (layers if several else [layers] if isinstance(layers, str) else []):
        if backbone.expert_layer is None:
            raise InputError(
                f"expected a model whose expert layer is known, got '{backbone.name}': pass layers=0 to "
                f"{backbone.layers - 1}, or find the best one with layer_step_sweep"
            )
        layers = [backbone.expert_layer if layer == "expert" else layer for layer in (layers if several else [layers])]
    return as_indices(layers, "layers", backbone.layers)


def check_heads(backbone: "Backbone", heads: Any) -> list[Head]:
    """Return heads as a list.

    Args:
        backbone: the model.
        heads: "mean" for the mean over all, "all" for each one, 0-based indices, or a list of "mean" and indices.

    Raises:
        InputError: an index out of range or twice, or none at all.
    """
    if isinstance(heads, str) and heads == "all":
        return list(range(backbone.heads))
    if isinstance(heads, str) and heads == "mean":
        return ["mean"]
    if isinstance(heads, (list, tuple)) and "mean" in heads:
        rest = [head for head in heads if not (isinstance(head, str) and head == "mean")]
        indices = iter(as_indices(rest, "heads", backbone.heads) if rest else [])
        if len(rest) < len(heads) - 1:
            raise InputError(f"expected heads, each one once, got {list(heads)}: name 'mean' once")
        return [head if head == "mean" else next(indices) for head in heads]
    return list(as_indices(heads, "heads", backbone.heads))


def check_zeros(backbone: "Backbone", zero_tokens: int) -> int:
    """Return a valid number of zero vectors, or raise an InputError."""
    zero_tokens = as_int(zero_tokens, "zero_tokens", 0, 512)
    if not backbone.family.zero_text(backbone.pipe) and zero_tokens != 77:
        raise InputError(
            f"expected zero_tokens with SD3 without T5, got {zero_tokens} with {backbone.family.name}: leave it out"
        )
    return zero_tokens


def check_latents(backbone: "Backbone", latents: Any, name: str) -> Tensor:
    """Return a batch of latents of the model's shape, or raise an InputError."""
    channels, frames = backbone.family.channels(backbone.pipe), "frames " if backbone.is_video else ""
    shape = tuple(getattr(latents, "shape", ()))
    axes = 5 if backbone.is_video else 4
    if not isinstance(latents, Tensor) or len(shape) != axes or not len(latents) or shape[1] != channels:
        kind = f"shape {shape}" if isinstance(latents, Tensor) else type(latents).__name__
        raise InputError(
            f"expected {name} [image {channels} {frames}rows columns], got {kind}: pass what encode_image returns"
        )
    if shape[-2] % backbone.family.patch_size or shape[-1] % backbone.family.patch_size:
        raise InputError(
            f"expected {name} with rows and columns in multiples of {backbone.family.patch_size}, got {shape[-2:]}: "
            f"encode "
            f"an image whose sides are multiples of {backbone.token_px} px"
        )
    return latents


def check_frames(backbone: "Backbone", frames: Any) -> int:
    """Return a number of frames that a model of videos can take.

    Raises:
        InputError: another number; the message names the nearest ones.
    """
    frames, step = as_int(frames, "frames", 1), backbone.family.frame_step(backbone.pipe)
    if (frames - 1) % step:
        below = frames - (frames - 1) % step
        raise InputError(
            f"expected 1, {1 + step}, {1 + 2 * step} or more frames in steps of {step} for {backbone.name!r}, got "
            f"{frames}: pass {below} or {below + step}"
        )
    return frames


def check_timesteps(timestep: Any, count: int, device: torch.device) -> Float[Tensor, " batch"]:
    """Return timesteps, one for each of `count` latents, or raise an InputError."""
    try:
        found = torch.as_tensor(timestep, dtype=torch.float32, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"expected timestep as numbers from 0 to 1000, got {timestep!r}: pass timestep=500") from error
    if not bool(((found >= 0) & (found <= 1000)).all()) or found.shape not in ((), (1,), (count,)):
        raise InputError(
            f"expected timestep from 0 to 1000, one or one for each of {count} latents, got {found.tolist()}: take "
            "those of add_noise"
        )
    return found.expand(count)
