"""Load a model from the package, a folder or a hub, or wrap one in memory."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checkpoints import best_device, find_checkpoint, load_pipeline, read_card
from seg4diff_tools.errors import InputError, UnknownArchitectureError, one_of
from seg4diff_tools.families import FAMILIES, family_of, refuse_split, why_refused


def load_backbone(
    name_or_path: str | Path = "mini",
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    *,
    t5: bool = False,
) -> Backbone:
    """Load a pipeline of a supported family; Stable Diffusion 3 and 3.5 without T5, the paper's setting.

    Args:
        name_or_path: "mini" (comes with the package), a folder in diffusers' layout, or a hub name such as
            "stabilityai/stable-diffusion-3-medium-diffusers", which is downloaded (that one is gated: accept its
            licence on its page and log in with `hf auth login`).
        device: default: CUDA, else Apple's MPS, else the CPU.
        dtype: of every part, as torch.bfloat16 or "bf16"; default: float32 on the CPU, bfloat16 on a GPU that has it,
            else float16. On a CPU with bfloat16 instructions "bf16" halves time and memory.
        t5: load the T5 encoder of Stable Diffusion 3 or 3.5 too (9.5 GB in 16 bits), whose 256 tokens follow CLIP's 77.
            Without it, zero vectors take their place.

    Returns:
        The backbone, frozen (no gradients), in evaluation mode.

    Raises:
        CheckpointError: no such folder, not a diffusers folder, weights that are missing or truncated, or no T5 in it.
        UnknownArchitectureError: a pipeline of another architecture.
    """
    one_of(t5, "t5", (False, True))
    if not isinstance(name_or_path, (str, Path)):
        raise InputError(
            f"expected name_or_path, a name or a folder, got {type(name_or_path).__name__}: pass 'mini', or wrap a "
            "pipeline with wrap_pipeline"
        )
    source = find_checkpoint(name_or_path)
    form = as_device(device), None if dtype is None else as_dtype(dtype)
    pipe = load_pipeline(source, _supported(t5), *form, required=("text_encoder_3",) if t5 else ())
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    return wrap_pipeline(pipe, str(name_or_path), read_card(source))


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Return a floating-point dtype, given as torch.bfloat16, "bfloat16" or "bf16"; raise an InputError otherwise."""
    found = _DTYPES.get(dtype.removeprefix("torch.").lower()) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"expected dtype from fp32, bf16 and fp16, got {dtype!r}: pass dtype='bf16'")
    return found


def as_device(device: torch.device | str | None) -> torch.device:
    """Return an available device: the given one; for None CUDA, else Apple's MPS, else the CPU.

    Raises:
        InputError: no such device.
    """
    if device is None:
        return torch.device(best_device())
    try:
        found = torch.device(device)
        torch.empty(1, device=found, dtype=torch.float32)
    except (RuntimeError, TypeError, AssertionError, ValueError, NotImplementedError) as error:
        raise InputError(f"expected device of this machine, got {device!r}: pass device='{best_device()}'") from error
    return found


_DTYPES = {
    **dict.fromkeys(("float32", "fp32"), torch.float32),
    **dict.fromkeys(("bfloat16", "bf16"), torch.bfloat16),
    **dict.fromkeys(("float16", "fp16", "half"), torch.float16),
    "float64": torch.float64,
}


def as_backbone(model: Backbone | DiffusionPipeline | str | Path, *, videos: bool = False) -> Backbone:
    """Return the backbone of a model given by name or in memory.

    Args:
        model: a backbone (returned as it is), a diffusers pipeline in memory, or a name or folder for `load_backbone`.
        videos: whether a model of videos will do.

    Raises:
        InputError: anything else, or a model of videos where only one of images will do.
        CheckpointError, UnknownArchitectureError: as `load_backbone`.
    """
    if isinstance(model, DiffusionPipeline):
        model = wrap_pipeline(model)
    elif isinstance(model, (str, Path)):
        model = load_backbone(model)
    if not isinstance(model, Backbone):
        raise InputError(
            f"expected a model (a backbone, a diffusers pipeline or a name), got {type(model).__name__}: pass "
            "load_backbone('mini'), a pipeline, or the name itself"
        )
    if model.is_video and not videos:
        raise InputError(
            f"expected a model of images, got {model.name!r}, a model of videos ({model.family.name}): record it with "
            "AttentionRecorder, or segment a Video with it"
        )
    return model


def wrap_pipeline(pipe: DiffusionPipeline, name: str = "pipeline", card: dict | None = None) -> Backbone:
    """Wrap a pipeline in memory (with a LoRA, quantized, offloaded, ...) as a Backbone, without changing it.

    Args:
        pipe: a diffusers pipeline; SD3 with or without T5.
        name: shown in tables.
        card: sets "expert_layer" and "guidance_scale".

    Raises:
        UnknownArchitectureError: no family is known for its transformer.
        InputError: no pipeline, one with a part that the family omits, such as ERNIE-Image's prompt enhancer, one with
            a text encoder but not its tokenizer, or one that `device_map` spread over several accelerators.
    """
    if not isinstance(pipe, DiffusionPipeline):
        raise InputError(
            f"expected a diffusers pipeline, got {type(pipe).__name__}: pass one, or use load_backbone for a name"
        )
    transformer = getattr(pipe, "transformer", None)
    if not isinstance(transformer, torch.nn.Module):
        reason = why_refused(type(part).__name__ for part in pipe.components.values())
        raise UnknownArchitectureError(
            f"expected a pipeline with a transformer, got {type(pipe).__name__}{reason}: pass one of "
            f"{', '.join(_supported())}"
        )
    refuse_split(pipe, "pipeline")
    family = family_of(transformer)
    if left := [part for part in family.omitted_parts if getattr(pipe, part, None) is not None]:
        kinds = ", ".join(type(getattr(pipe, part)).__name__ for part in left)
        raise InputError(f"expected a pipeline without {' and '.join(left)} ({kinds}): load it with {left[0]}=None")
    if family.optional_parts and not family.zero_text(pipe) and getattr(pipe, family.optional_parts[1], None) is None:
        raise InputError(
            "expected a pipeline with both of {} and {}, got the first alone: load both or neither".format(
                *family.optional_parts
            )
        )
    published = family.expert_layers.get(family.layers(pipe.transformer), (None,))
    card = card or {}
    expert, scale = card.get("expert_layer", published[0]), card.get("guidance_scale", family.guidance_scale)
    return Backbone(pipe, family, name, expert, float(scale))


def _supported(t5: bool = True) -> dict[str, tuple[str, ...]]:
    """Return the supported pipeline classes, each with the names of its omitted components."""
    return {
        pipeline: (*family.omitted_parts, *(() if t5 else family.optional_parts))
        for family in reversed(FAMILIES)  # the first one covers a pipeline
        for pipeline in family.pipelines
    }
