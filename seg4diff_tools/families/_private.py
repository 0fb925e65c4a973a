"""Access to private APIs of diffusers, PyTorch and accelerate: the one file that an upgrade may have to change.

`tests/test_private.py` tests each private name and finds such names in other modules.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate.state import AcceleratorState
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, attention_backend
from torch import Tensor, nn

_COMPUTING = tuple(str(Path(torch.__file__).parent / name) for name in ("nn", "autograd", "optim", "_tensor.py")) + (
    str(Path(sys.modules["diffusers"].__file__ or "").parent),
)
CONFIG_ATTRIBUTE = "_internal_dict"
"""Configuration attribute of diffusers' models."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_HOOK_FLAGS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")


@dataclass(frozen=True, eq=False)
class SamplingLoop:
    """The sampling loop of a pipeline, while it runs.

    Args:
        weight: of classifier-free guidance in this forward; None without guidance.
        perturbed: whether the batch ends with a branch of perturbed attention guidance (PAG).
        timesteps: of the loop, an object of its own for each pipeline call; None if unknown.
        prompt: text argument of the pipeline call; None if it was called with embeddings.
    """

    weight: float | None
    perturbed: bool
    timesteps: Any
    prompt: Any

    @property
    def steps(self) -> int | None:
        """Number of forwards of each branch; None if unknown."""
        return None if self.timesteps is None else len(self.timesteps)


def unwrapped(transformer: Any) -> Any:
    """Return the module that torch.compile wrapped, or the module itself."""
    return getattr(transformer, "_orig_mod", transformer)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled modules eagerly: compiled code silently skips hooks that were added later."""
    # if torch._dynamo was never imported, nothing is compiled; its import takes seconds
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def sampling_loop(transformer: nn.Module) -> SamplingLoop | None:
    """Return the state of the pipeline whose `__call__` runs this transformer in this thread; None if none does.

    The pipeline is read from the call stack, because several pipelines can share a transformer (`from_pipe`).
    """
    for frame in _callers(sys._getframe(1)):
        if frame.f_code.co_name == "__call__":
            pipe = frame.f_locals.get("self")
            if not isinstance(pipe, nn.Module) and unwrapped(getattr(pipe, "transformer", None)) is transformer:
                return _loop_of(pipe, frame.f_locals)
    return None


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame and those of its callers, innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _loop_of(pipe: Any, names: dict[str, Any]) -> SamplingLoop:
    timesteps = names.get("timesteps")
    if timesteps is None:
        timesteps = getattr(getattr(pipe, "scheduler", None), "timesteps", None)
    perturbed = bool(getattr(pipe, "do_perturbed_attention_guidance", False))
    return SamplingLoop(_weight_of(pipe, names), perturbed, timesteps, names.get("prompt"))


def _weight_of(pipe: Any, names: dict[str, Any]) -> float | None:
    # Lumina 2 and Z-Image can stop guidance midway
    if names.get("do_classifier_free_truncation"):
        return None
    # guidance-distilled models read guidance_scale and add true_cfg_scale
    flags = (
        ("do_true_cfg", "true_cfg_scale"),
        ("apply_cfg", "current_guidance_scale"),
        ("do_classifier_free_guidance", "guidance_scale"),
    )
    if names.get("use_dynamic_cfg") and names.get("do_classifier_free_guidance"):
        # CogVideoX sets the weight of a step after its forward
        steps = names["num_inference_steps"]
        part = (1 - math.cos(math.pi * ((steps - float(names["t"])) / steps) ** 5)) / 2
        return 1 + float(names["guidance_scale"]) * part
    for flag, weight in flags:
        if flag in names:
            return float(names[weight]) if names[flag] else None
    if (guider := names.get("guider")) is not None:
        return float(guider.guidance_scale) if guider._enabled and guider.num_conditions > 1 else None
    return float(pipe.guidance_scale) if getattr(pipe, "do_classifier_free_guidance", False) else None


def is_computing(thread: int) -> bool:
    """Return whether the thread with this ident is running PyTorch's modules or diffusers."""
    return any(frame.f_code.co_filename.startswith(_COMPUTING) for frame in _callers(sys._current_frames().get(thread)))


class _Hook(partial):
    """A hook of this package, left out of copies of its module; adds no stack frame."""


def add_hook(module: nn.Module, function: Callable, *, before: bool = False, **options: bool) -> Callable[[], None]:
    """Add a forward hook that deepcopy, pickle and torch.save of the module leave out.

    Args:
        module: the module.
        function: the hook.
        before: whether it runs before the forward.
        options: of `register_forward_hook` or `register_forward_pre_hook`.

    Returns:
        A function that removes the hook.
    """
    register = module.register_forward_pre_hook if before else module.register_forward_hook
    handle = register(_Hook(function), **options)
    # copy and pickle look both up on the instance
    vars(module)["__reduce_ex__"] = lambda protocol: _reduced(module, protocol)

    def remove() -> None:
        handle.remove()
        if not any(isinstance(hook, _Hook) for name in _HOOKS for hook in vars(module)[name].values()):
            vars(module).pop("__reduce_ex__", None)

    return remove


def _reduced(module: nn.Module, protocol: int) -> tuple:
    reduced: Any = object.__reduce_ex__(module, protocol)
    function, args, state, *rest = reduced
    ours = {key for name in _HOOKS for key, hook in state[name].items() if isinstance(hook, _Hook)}
    for name in (*_HOOKS, *_HOOK_FLAGS):
        kept = ((key, value) for key, value in state[name].items() if key not in ours)
        state = state | {name: type(state[name])(kept)}
    state = {name: value for name, value in state.items() if name != "__reduce_ex__"}
    return function, args, state, *rest


@contextmanager
def native_processors(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Make diffusers' attention processors use PyTorch's attention: other backends cannot be intercepted."""
    processors: list[Any] = [getattr(module, "processor", None) for module in modules]
    changed = [
        (processor, processor._attention_backend)
        for processor in processors
        if getattr(processor, "_attention_backend", None) not in (None, "native")
    ]
    for processor, _ in changed:
        processor._attention_backend = "native"
    try:
        yield
    finally:
        for processor, backend in changed:
            processor._attention_backend = backend


def native_dispatch() -> AbstractContextManager:
    """Return a context manager in which diffusers dispatches attention to PyTorch's."""
    # entering diffusers' own costs as much as a small operator
    native = _AttentionBackendRegistry._active_backend == AttentionBackendName.NATIVE
    return nullcontext() if native else attention_backend("native")


def sdp_choice(*args: Any, **kwargs: Any) -> int | None:
    """Return the number of the SDPBackend that `scaled_dot_product_attention` would use; None if unknown."""
    choose = getattr(torch, "_fused_sdp_choice", None)
    return None if choose is None else choose(*args, **kwargs)


def sdp_operator(name: str) -> Callable[..., Any]:
    """Return an attention operator that also returns the log-sum-exp, such as "flash_attention_for_cpu"."""
    return getattr(torch.ops.aten, f"_scaled_dot_product_{name}")


def module_function(pipe: Any, name: str) -> Any:
    """Return what a pipeline's module defines, a function or a constant; an import by name is slow for other models."""
    return getattr(sys.modules[type(pipe).__module__], name)


def patchify(pipe: Any, latents: Tensor) -> Tensor:
    """Cut latents into patches as a FLUX.2 pipeline does."""
    return pipe._patchify_latents(latents)


def unpatchify(pipe: Any, latents: Tensor) -> Tensor:
    """Undo `patchify`."""
    return pipe._unpatchify_latents(latents)


def ovis_message(pipe: Any, text: str) -> str:
    """Put a prompt into Ovis-Image's chat template."""
    return pipe._get_messages(text)[0]


def execution_device(pipe: Any) -> torch.device:
    """Return the compute device of a pipeline, offloaded or not."""
    return pipe._execution_device


def scheduler_shift(scheduler: Any) -> float | None:
    """Return the shift set by `scheduler.set_shift`, which the configuration lacks; None if there is none."""
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


def forward_hooks(module: nn.Module) -> list[Any]:
    """Return the forward pre-hooks and forward hooks of a module, in order."""
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def diffusers_hooks(module: nn.Module) -> dict[str, Any]:
    """Return diffusers' own hooks on a module by name, such as caches and layerwise casting."""
    return getattr(getattr(module, "_diffusers_hook", None), "hooks", {})


def foreach(name: str) -> Callable[..., Any]:
    """Return an operator on lists of tensors, such as "lerp_", as PyTorch's optimizers use."""
    return getattr(torch, f"_foreach_{name}")


def allow_precision(precision: str) -> None:
    """Set the mixed precision of the next Accelerator; accelerate would keep that of the process's first one."""
    if AcceleratorState._shared_state.get("_mixed_precision") != precision:
        AcceleratorState._reset_state()
