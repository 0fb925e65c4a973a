"""Results kept on disk under a key of everything that determines them, so that a second run is fast and never stale."""

import dataclasses
import functools
import hashlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any, TypeVar

import joblib
import numpy as np
import pandas as pd
import PIL.Image
import platformdirs
import torch
import xarray as xr
from diffusers import ConfigMixin
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.errors import InputError

Result = TypeVar("Result")

LARGEST = 4 << 30
"""Bytes that kept results may take; beyond, those that were not used for longest are deleted."""


def remember(function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """What `function(*args, **kwargs)` returns: from disk where the very same was computed before, else computed and kept.

    The key holds the function's own source, all of this package's source, the versions of torch and diffusers, and every
    argument by its content: a picture by its pixels, a model by a few values of each of its weights. Whatever changes, the
    result is made anew.
    Results lie in `SEG4DIFF_CACHE`, or in the user's cache folder; deleting them costs time alone.

    Args:
        function: returns the same for the same arguments, such as `sweeps.layer_step_sweep`.
        args, kwargs: for the function; how progress is shown (`progress`) is no part of the key.

    Raises:
        InputError: an argument whose content cannot be told.
    """
    named = {name: value for name, value in kwargs.items() if name != "progress"}
    content = hashlib.sha256(_package().encode())
    _add(content, [function, args, named])
    path = folder() / f"{getattr(function, '__name__', 'result')}-{content.hexdigest()[:24]}.joblib"
    if path.exists():
        try:
            result = joblib.load(path)
        except Exception:  # noqa: BLE001 - each damage has its own error; what cannot be read is made again
            path.unlink(missing_ok=True)
        else:
            path.touch()
            return result
    result = function(*args, **kwargs)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    joblib.dump(result, partial, compress=3)
    os.replace(partial, path)
    _prune(path.parent)
    return result


def folder() -> Path:
    """Where results are kept."""
    chosen = os.environ.get("SEG4DIFF_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("seg4diff_tools")


def model_fingerprint(backbone: Backbone) -> str:
    """Tells a model from its next checkpoint: a few values of every weight, the vocabularies and the configurations."""
    content = hashlib.sha256()
    for _, part in sorted(backbone.pipe.components.items()):
        if isinstance(part, nn.Module):
            content.update(_few_weights(part, backbone.device))
        if isinstance(part, PreTrainedTokenizerBase):
            content.update(repr(sorted(part.get_vocab().items())).encode())
        if isinstance(part, ConfigMixin):
            public = {key: value for key, value in part.config.items() if not key.startswith("_")}
            content.update(repr(sorted(public.items())).encode())
    return content.hexdigest()


def fingerprint(value: Any) -> str:
    """The content of a value as `remember` tells it: equal for equal content.

    Raises:
        InputError: its content cannot be told.
    """
    content = hashlib.sha256()
    _add(content, value)
    return content.hexdigest()


def _few_weights(module: nn.Module, device: torch.device) -> bytes:
    few = [weight.detach().flatten()[:: max(1, weight.numel() // 8)].float() for weight in module.parameters()]
    # weights that are offloaded to disk have no values here
    few = [values.to(device) for values in few if not values.is_meta]
    return torch.cat(few).cpu().numpy().tobytes() if few else b""


@functools.cache
def _package() -> str:
    """All code that a result can depend on."""
    content = hashlib.sha256(repr([version(name) for name in ("torch", "diffusers", "transformers")]).encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        content.update(path.read_bytes())
    return content.hexdigest()


def _add(content: Any, value: Any) -> None:
    """Adds a value's content to a hash, with its kind, so that no two kinds are taken for each other."""
    content.update(f"<{type(value).__qualname__}".encode())
    if value is None or isinstance(value, (bool, int, float, str, bytes, np.generic, torch.dtype)):
        content.update(repr(value).encode())
    elif isinstance(value, Path):
        # a file that is written again is another argument
        state = value.stat() if value.is_file() else None
        content.update(repr((value, state and (state.st_size, state.st_mtime_ns))).encode())
    elif isinstance(value, Backbone):
        content.update(f"{model_fingerprint(value)} {value.dtype} {value.device.type} {value.guidance_scale}".encode())
    elif isinstance(value, nn.Module):
        content.update(_few_weights(value, torch.device("cpu")))
    elif isinstance(value, PreTrainedTokenizerBase):
        content.update(repr(sorted(value.get_vocab().items())).encode())
    elif isinstance(value, Tensor):
        _add(content, value.detach().cpu().float().numpy() if value.is_floating_point() else value.cpu().numpy())
        content.update(str(value.dtype).encode())
    elif isinstance(value, np.ndarray):
        content.update(f"{value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, PIL.Image.Image):
        content.update(f"{value.mode} {value.size}".encode() + value.tobytes())
    elif isinstance(value, (pd.DataFrame, pd.Series, xr.DataArray, xr.Dataset)):
        content.update(joblib.hash(value).encode())
    elif isinstance(value, functools.partial):
        _add(content, [value.func, value.args, value.keywords])
    elif isinstance(value, MethodType):
        _add(content, [value.__func__, value.__self__])
    elif isinstance(value, FunctionType):
        value = inspect.unwrap(value)
        content.update(_source(value))
        # what a function closes over, or reads from its notebook, is as much an argument as any other
        _add(content, [cell.cell_contents for cell in value.__closure__ or ()])
        _add(content, _surroundings(value))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _add(content, key)
            _add(content, item)
    elif dataclasses.is_dataclass(value):
        # what is left out of comparisons follows from the rest
        _add(content, {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.compare})
    elif isinstance(value, (list, tuple, range)):
        for item in value:
            _add(content, item)
    elif isinstance(value, Sequence) and hasattr(value, "__dict__"):
        _add(content, vars(value))  # such as `Scenes`, whose items follow from how it was made
    else:
        raise InputError(
            f"expected arguments whose content can be told, got {type(value).__name__}: call the function itself"
        )
    content.update(b">")


def _source(function: FunctionType) -> bytes:
    try:
        return f"{function.__module__}.{function.__qualname__} {inspect.getsource(function)}".encode()
    except OSError as error:
        raise InputError(f"expected a function with its source at hand, got {function.__qualname__}") from error


def _surroundings(function: FunctionType) -> list[tuple[str, Any]]:
    """Functions, by their source, and plain values that a function outside of this package reads around it."""
    found: dict[str, Any] = {}
    waiting = [] if function.__module__.partition(".")[0] == __package__ else [function]
    while waiting:
        reader = waiting.pop()
        names, codes = set(), [reader.__code__]
        while codes:
            code = codes.pop()
            names.update(code.co_names)
            codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        for name in (names & reader.__globals__.keys()) - found.keys():
            value = reader.__globals__[name]
            if isinstance(value, FunctionType) and value.__module__ == function.__module__:
                found[name] = _source(value)
                waiting.append(value)
            elif isinstance(value, (bool, int, float, str, tuple)):
                found[name] = value
    return sorted(found.items())


def _prune(kept: Path) -> None:
    """Deletes what was not used for longest until the rest is small enough."""
    files = sorted(((path.stat().st_mtime, path) for path in kept.glob("*.joblib")), reverse=True)
    total = 0
    for _, path in files:
        total += path.stat().st_size
        if total > LARGEST:
            path.unlink(missing_ok=True)
