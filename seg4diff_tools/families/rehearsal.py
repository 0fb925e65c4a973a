"""What a pipeline would hand to its transformer: its own preparations, stopped before the first forward."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from seg4diff_tools.families.record import Family
from seg4diff_tools.families.transformers import transformer_of, uncompiled


class _Curtain(Exception):
    """Ends a rehearsal."""


@dataclass(frozen=True, eq=False)
class CapturedInputs:
    """What a pipeline prepared.

    Args:
        inputs: the arguments of its transformer's first forward, by name.
        scheduler: a scheduler of its kind with the timesteps and noise levels set.
    """

    inputs: Mapping[str, Any]
    scheduler: Any


def capture_inputs(
    pipe: Any, family: Family, prompt: str, *, size: tuple[int, int], steps: int = 28, **arguments: Any
) -> CapturedInputs:
    """Runs a pipeline up to its transformer: text encoders, positions and schedule, but no denoising.

    So position ids, masks, prompt templates and shifts of the schedule are the pipeline's own, in every version of it. The
    pipeline's scheduler and progress bar stay as they were.

    Args:
        pipe: the pipeline.
        family: of its transformer.
        prompt: for one image.
        size: height and width of the image in pixels.
        steps: sampling steps.
        arguments: more of the pipeline's arguments.
    """
    found: dict[str, Any] = {}

    def stop(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        found.update(family.forward_inputs(module, args, kwargs))
        raise _Curtain

    # a pipeline keeps the settings of its last call, and this one shall leave no trace
    before = dict(vars(pipe))
    pipe.scheduler = copy.deepcopy(pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    handle = transformer_of(pipe).register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
    try:
        with uncompiled():
            pipe(
                prompt=prompt,
                num_inference_steps=steps,
                # the noise is thrown away, but drawing it must not disturb the user's random numbers
                generator=torch.Generator().manual_seed(0),
                output_type="latent",
                **family.sized(pipe, size),
                **family.plain,
                **arguments,
            )
    except _Curtain:
        return CapturedInputs(found, pipe.scheduler)
    finally:
        handle.remove()
        vars(pipe).clear()
        vars(pipe).update(before)
    raise AssertionError("a pipeline without a forward of its transformer")
