"""Every touch of diffusers' and torch's private parts in this package of models."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def execution_device(pipe: Any) -> torch.device:
    """Return the device that a pipeline computes on, offloaded or not."""
    return pipe._execution_device


def scheduler_shift(scheduler: Any) -> float | None:
    """Return the shift that `scheduler.set_shift` sets beside the configuration; None if it has none."""
    return getattr(scheduler, "_shift", None)


@contextmanager
def progress_bar(pipe: Any, shown: bool) -> Iterator[None]:
    """Show or hide a pipeline's progress bar inside the `with`."""
    before = vars(pipe).get("_progress_bar_config")
    pipe.set_progress_bar_config(**((before or {}) | {"disable": not shown}))
    try:
        yield
    finally:
        if before is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = before


def written(module: nn.Module) -> nn.Module:
    """Return the module that `torch.compile` wrapped; any other as it is."""
    return getattr(module, "_orig_mod", module)


def forward_hooks(module: nn.Module) -> list[Any]:
    """Return the forward hooks and forward pre-hooks of a module, in order."""
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def diffusers_hooks(module: nn.Module) -> dict[str, Any]:
    """Return diffusers' own hooks on a module by name, such as caches and layerwise casting."""
    return getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
