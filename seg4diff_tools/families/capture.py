"""Capture what a pipeline passes to its transformer: its own preparations, stopped before the first forward."""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

from seg4diff_tools.errors import InputError
from seg4diff_tools.families._private import uncompiled
from seg4diff_tools.families.record import Family, PixelSize
from seg4diff_tools.families.transformers import model_lock, transformer_of
from seg4diff_tools.prompts import Prompt


class _Captured(Exception):
    """Raised to end the pipeline's call."""


@dataclass(frozen=True, eq=False)
class CapturedInputs:
    """Inputs that a pipeline prepared for its transformer.

    Args:
        inputs: arguments of the first forward, by name.
        scheduler: a copy of the pipeline's scheduler, with timesteps and noise levels set.
    """

    inputs: Mapping[str, Any]
    scheduler: Any


def capture_inputs(
    pipe: Any, family: Family, prompt: str, *, size: PixelSize, steps: int = 28, **arguments: Any
) -> CapturedInputs:
    """Run a pipeline up to its transformer: text encoders, positions and schedule, but no denoising.

    Position ids, masks, prompt templates and schedule shifts are thus the pipeline's own. Its scheduler and progress
    bar are restored.

    Args:
        pipe: the pipeline.
        family: of its transformer.
        prompt: for one image.
        size: height and width of the image in pixels; of a video, frames before them.
        steps: sampling steps.
        arguments: further arguments of the pipeline.
    """
    found: dict[str, Any] = {}

    def stop(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        found.update(family.forward_inputs(module, args, kwargs))
        raise _Captured

    # a pipeline keeps the settings of its last call: restore them
    before = dict(vars(pipe))
    pipe.scheduler = copy.deepcopy(pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    handle = transformer_of(pipe).register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
    try:
        with uncompiled():
            pipe(
                prompt=prompt,
                num_inference_steps=steps,
                # the noise is discarded; drawing it must not advance the user's random state
                generator=torch.Generator().manual_seed(0),
                output_type="latent",
                **family.sized(pipe, size),
                **family.call_kwargs,
                **family.no_guidance_kwargs,
                **arguments,
            )
    except _Captured:
        return CapturedInputs(found, pipe.scheduler)
    finally:
        handle.remove()
        vars(pipe).clear()
        vars(pipe).update(before)
    raise AssertionError("a pipeline without a forward of its transformer")


def encode_text(pipe: Any, family: Family, text: str) -> Prompt:
    """Encode a prompt with the pipeline's own text encoders; words past the limit are dropped, as the pipeline does.

    Args:
        pipe: a pipeline of the family, or of its components (image to image, inpainting, PAG).
        family: of its transformer.
        text: the prompt, in Unicode NFC.

    Raises:
        InputError: the pipeline has no text encoder, or has a part that the family omits.
    """
    parts = getattr(pipe, "components", None)
    if not parts:
        raise InputError(
            f"expected an encoded prompt with a {type(pipe).__name__}, got the text {text!r}: pass a backbone or its "
            "pipeline, or prompt=Backbone.encode_prompt(...)"
        )
    missing = [
        name
        for name, part in parts.items()
        if part is None
        and name.startswith(("text_encoder", "tokenizer"))
        and name not in (*family.omitted_parts, *family.optional_parts)
    ]
    if missing:
        raise InputError(
            f"expected a pipeline with text encoders for the prompt {text!r}, got one without {' and '.join(missing)}: "
            "load them, or, in a recorder, leave prompt out and name tokens by index"
        )
    if type(pipe).__name__ not in family.pipelines:
        plain = getattr(diffusers, family.pipelines[0])
        known = inspect.signature(plain.__init__).parameters
        pipe = plain(**{name: part for name, part in parts.items() if name in known})
    arguments = {"max_sequence_length": 0} if family.zero_text(pipe) else {}
    with model_lock(pipe), torch.no_grad():
        return prompt_of(
            pipe, family, text, capture_inputs(pipe, family, text, size=family.native_size(pipe), **arguments)
        )


def prompt_of(pipe: Any, family: Family, text: str, captured: CapturedInputs) -> Prompt:
    """Return the encoded prompt of a captured call."""
    inputs = {name: captured.inputs[name] for name in family.text_inputs if captured.inputs.get(name) is not None}
    return Prompt(text, family.label(pipe, text, family.text_length(inputs)), inputs)
