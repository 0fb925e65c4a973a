"""Load a model, from the package, a folder or a hub, or take one that is in memory."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checkpoints import find_checkpoint, load_pipeline, read_card
from seg4diff_tools.errors import InputError, UnknownArchitectureError
from seg4diff_tools.families import FAMILIES, family_of


def load_backbone(
    name_or_path: str | Path = "mini",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Backbone:
    """Loads a pipeline of a supported family; Stable Diffusion 3 and 3.5 without T5, the paper's setting.

    Args:
        name_or_path: "mini" (comes with the package), a folder in diffusers' layout, or a hub name such as
            "stabilityai/stable-diffusion-3-medium-diffusers", which is downloaded.
        device: default: CUDA, else Apple's MPS, else the CPU.
        dtype: of every part; default: float32 on the CPU, bfloat16 on a GPU that has it, else float16.

    Returns:
        The backbone, frozen (no gradients), in evaluation mode.

    Raises:
        CheckpointError: no such folder, not a diffusers folder, or weights that are missing or cut off.
        UnknownArchitectureError: a pipeline of another architecture.
    """
    source = find_checkpoint(name_or_path)
    pipe = load_pipeline(source, _supported(), device, dtype)
    return wrap_pipeline(pipe, str(name_or_path), read_card(source))


def as_backbone(model: Backbone | DiffusionPipeline | str | Path) -> Backbone:
    """Return the backbone of whatever names or holds a model.

    Args:
        model: a backbone (returned as it is), a diffusers pipeline in memory, or a name or folder for `load_backbone`.

    Raises:
        InputError: anything else.
        CheckpointError, UnknownArchitectureError: as `load_backbone`.
    """
    if isinstance(model, Backbone):
        return model
    if isinstance(model, DiffusionPipeline):
        return wrap_pipeline(model)
    if isinstance(model, (str, Path)):
        return load_backbone(model)
    raise InputError(
        f"expected a model (a backbone, a diffusers pipeline or a name), got {type(model).__name__}: pass "
        "load_backbone('mini'), a pipeline, or the name itself"
    )


def wrap_pipeline(pipe: DiffusionPipeline, name: str = "pipeline", card: dict | None = None) -> Backbone:
    """Makes a Backbone of a pipeline that is already in memory (with a LoRA, quantized, offloaded, ...).

    Args:
        pipe: a diffusers pipeline; of SD3 one without T5.
        name: what to call it.
        card: "expert_layer" and "guidance_scale" are read from it.

    Raises:
        UnknownArchitectureError: no family is known for its transformer.
        InputError: it has a part that the family leaves out, such as SD3's T5 encoder.
    """
    transformer = getattr(pipe, "transformer", None)
    if not isinstance(transformer, torch.nn.Module):
        raise UnknownArchitectureError(
            f"expected a pipeline with a transformer, got {type(pipe).__name__}: pass one of {', '.join(_supported())}"
        )
    family = family_of(transformer)
    if left := [name for name in family.dropped if getattr(pipe, name, None) is not None]:
        kinds = ", ".join(type(getattr(pipe, name)).__name__ for name in left)
        raise InputError(f"expected a pipeline without {' and '.join(left)} ({kinds}): load it with {left[0]}=None")
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    published = family.expert_layers.get(family.layers(pipe.transformer))
    card = card or {}
    return Backbone(
        pipe,
        family,
        name,
        card.get("expert_layer", published),
        float(card.get("guidance_scale", family.guidance_scale)),
    )


def _supported() -> dict[str, tuple[str, ...]]:
    """Classes of pipelines, each with the names of the parts that are left out."""
    return {pipeline: family.dropped for family in FAMILIES for pipeline in family.pipelines}
