"""Results kept on disk under a key of everything that determines them, and the fingerprint of a model's state."""

import dataclasses
import enum
import functools
import hashlib
import inspect
import json
import os
import re
import uuid
import warnings
import weakref
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, ParamSpec, TypeVar

import joblib
import numpy as np
import pandas as pd
import PIL.Image
import platformdirs
import torch
import xarray as xr
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from seg4diff_tools._code import add_code
from seg4diff_tools._runs import as_path, written_whole
from seg4diff_tools.attention.intercept import interceptions
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.loading import wrap_pipeline
from seg4diff_tools.errors import CheckpointError, InputError
from seg4diff_tools.families._private import (
    CONFIG_ATTRIBUTE,
    diffusers_hooks,
    forward_hooks,
    scheduler_shift,
    unwrapped,
)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

LARGEST = 4 << 30
"""Bytes that kept results may take; beyond, those that were not used for longest are deleted."""
_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "numpy", "pillow")
# Attributes of a module that change no result, beside the bookkeeping of nn.Module itself.
_INERT = {
    *vars(nn.Module()),
    "name_or_path",
    "gradient_checkpointing",
    "warnings_issued",
    "peft_config",
    CONFIG_ATTRIBUTE,
}


def remember(function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
    """Return `function(*args, **kwargs)`, from disk if the same call was computed before.

    The key holds the function's source, defaults and the variables that it reads, the source of this package, the
    versions of its libraries, and every argument by content: a picture by its pixels, a path (as text too) by what is
    in the file, a model by `model_fingerprint`. Results lie in the folder named by the environment variable
    `SEG4DIFF_CACHE`, or in the user's cache folder, and can be deleted at any time.

    Args:
        function: returns the same for the same arguments, such as `segment`.
        args, kwargs: for the function; `progress` is not part of the key.

    Returns:
        The result. One that cannot be stored (not picklable, disk full) is returned with a warning.

    Raises:
        InputError: no function, or an argument whose content cannot be read.
    """
    if not callable(function):
        raise InputError(f"expected a function, got {function!r}: pass the function and its arguments apart")
    content = hashlib.sha256(_package().encode())
    _add(content, [function, args, {name: value for name, value in kwargs.items() if name != "progress"}])
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
    try:
        with written_whole(path) as partial:
            joblib.dump(result, partial, compress=3)
        _prune(path.parent)
    except CheckpointError as error:
        warnings.warn(f"the result is not kept: {error}", stacklevel=2)
    except Exception as error:  # noqa: BLE001 - pickling runs code of any class
        warnings.warn(f"the result is not kept, since it cannot be pickled: {error}", stacklevel=2)
    return result


def folder() -> Path:
    """Return the folder where results are kept."""
    chosen = os.environ.get("SEG4DIFF_CACHE")
    return as_path(chosen, "SEG4DIFF_CACHE") if chosen else platformdirs.user_cache_path("seg4diff_tools")


def model_fingerprint(backbone: Backbone) -> str:
    """Digest everything in a model that changes its results.

    Returns:
        "weights-state", 16 hexadecimal digits each. Weights: all parameters and buffers, adapters and quantized values
        included. State: classes, configurations and plain settings of all parts (which adapters are active and how
        strong, attention processors, tiling, the scheduler's shift), vocabularies, dtype, default guidance, expert
        layer, and hooks, edits and interceptions that are active. The name, the folder and the device are not in it.
    """
    pipe, weights, state = backbone.pipe, hashlib.sha256(), hashlib.sha256()
    for name, part in sorted(pipe.components.items()):
        if isinstance(part, nn.Module):
            part = unwrapped(part)
            _add_weights(weights, name, part)
            _add_state(state, name, part)
        elif part is not None:
            _line(state, name, type(part).__qualname__, _config(part), scheduler_shift(part))
            if words := _vocabulary(part):
                _line(state, words)
    settings = {key: value for key, value in vars(pipe).items() if not key.startswith("_") and _is_plain(value)}
    _line(state, type(pipe).__qualname__, _config(pipe), sorted(settings.items()))
    _line(state, _config(getattr(pipe, "image_processor", None)))
    _line(state, backbone.guidance_scale, backbone.expert_layer, backbone.dtype)
    for callback, layers, biases, bias_of, concepts, _ in interceptions(backbone.transformer):
        if callback is not None and _add_hook(state, callback):
            _line(state, layers)
        if biases:
            _add(state, biases)
        if bias_of is not None:
            _add_hook(state, bias_of)
        if concepts is not None:
            _add(state, concepts)
    return f"{weights.hexdigest()[:16]}-{state.hexdigest()[:16]}"


def model_settings(backbone: Backbone) -> dict[str, Any]:
    """Return a model's part of the settings of a run: name, fingerprint and number format."""
    return {"model": backbone.name, "fingerprint": model_fingerprint(backbone), "dtype": str(backbone.dtype)}


def fingerprint(value: Any) -> str:
    """Digest the content of a value as `remember` does: equal for equal content.

    Raises:
        InputError: its content cannot be read.
    """
    content = hashlib.sha256()
    _add(content, value)
    return content.hexdigest()


def _line(content: Any, *values: Any) -> None:
    content.update(repr(values).encode() + b"\n")


def _add_weights(content: Any, name: str, module: nn.Module) -> None:
    for key, value in sorted([*module.named_parameters(), *module.named_buffers()], key=lambda pair: pair[0]):
        for part in _plain_tensors(value.detach()):
            _line(content, name, key, type(value).__qualname__, str(part.dtype), tuple(part.shape))
            # weights that are offloaded to disk have no values here
            if not part.is_meta:
                content.update(zlib.crc32(_raw(part).tobytes()).to_bytes(4, "little"))


def _raw(value: Tensor) -> np.ndarray:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _plain_tensors(value: Tensor) -> Iterator[Tensor]:
    """A tensor, or the tensors that a subclass, such as a quantized one, is made of."""
    if type(value) not in (Tensor, nn.Parameter) and hasattr(value, "__tensor_flatten__"):
        for name in value.__tensor_flatten__()[0]:
            yield from _plain_tensors(getattr(value, name))
    else:
        yield value


def _add_state(content: Any, name: str, module: nn.Module) -> None:
    _line(content, name, _config(module))
    for place, part in module.named_modules():
        _line(content, place, type(part).__qualname__, _settings(part))
        if (processor := vars(part).get("processor")) is not None:
            _line(content, type(processor).__qualname__, _settings(processor))
        for key, hook in diffusers_hooks(part).items():
            _line(content, key, type(hook).__qualname__, _settings(hook))
        for hook in forward_hooks(part):
            _add_hook(content, hook)


def _settings(part: Any) -> list[tuple[str, Any]]:
    """Plain attributes of an object. Nothing and empty containers are left out: caches begin so."""
    # these libraries' models keep notes and caches there
    skip_private = isinstance(part, nn.Module) and type(part).__module__.startswith(("transformers.", "diffusers."))
    return sorted(
        (key, value)
        for key, value in getattr(part, "__dict__", {}).items()
        if key not in _INERT and not (skip_private and key.startswith("_"))
        if _is_plain(value) and value not in (None, (), {}) and value != []
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, Mapping):
        return all(_is_plain(item) for pair in value.items() for item in pair)
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype, enum.Enum))


def _config(part: Any) -> Any:
    """Public entries of a configuration."""
    config = getattr(part, "config", None)
    return _public({} if config is None else config.to_dict() if hasattr(config, "to_dict") else config)


def _public(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    about = ("transformers_version", "architectures")
    return sorted((str(key), _public(item)) for key, item in value.items() if str(key)[0] != "_" and key not in about)


def _vocabulary(part: Any) -> str:
    """How a tokenizer, or that of a processor of text and images, splits text."""
    part = getattr(part, "tokenizer", part)
    if not isinstance(part, PreTrainedTokenizerBase):
        return ""
    about = [part.model_max_length, part.padding_side, part.pad_token_id, getattr(part, "chat_template", None)]
    if (backend := getattr(part, "backend_tokenizer", None)) is None:
        return repr([about, sorted(part.get_vocab().items())])
    # truncation and padding are those of the last call
    rules = {key: value for key, value in json.loads(backend.to_str()).items() if key not in ("truncation", "padding")}
    return repr([about, rules])


def _add_hook(content: Any, hook: Any) -> bool:
    """Add a forward hook or an interception, and return whether it can change results.

    One whose state cannot be read counts as another one in each process.
    """
    hook = getattr(hook, "function", hook)
    function = inspect.unwrap(hook.func if isinstance(hook, functools.partial) else hook)
    home = getattr(function, "__module__", None) or type(function).__module__
    # recorders and interceptions change nothing by themselves, and libraries' own hooks follow from the rest
    if home.partition(".")[0] in ("torch", "diffusers", "transformers", "accelerate", "peft") or home in _OBSERVERS:
        return False
    own = hashlib.sha256()
    try:
        _add(own, hook, inside=True)
    except InputError:
        owner = getattr(hook, "__self__", hook)
        own.update(_SERIALS.setdefault(owner, uuid.uuid4().bytes))
    content.update(own.digest())
    return True


_OBSERVERS = ("seg4diff_tools.attention.recorder", "seg4diff_tools.attention.intercept")
_PRINTED = (bool, int, float, complex, bytes, np.generic, torch.dtype, torch.device, re.Pattern)
_SERIALS: weakref.WeakKeyDictionary[Any, bytes] = weakref.WeakKeyDictionary()


@functools.cache
def _package() -> str:
    """Digest of the package, weights that come with it included, and the versions of the libraries below it."""
    content = hashlib.sha256(repr([version(name) for name in _LIBRARIES]).encode())
    for path in sorted(Path(__file__).parent.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            content.update(path.read_bytes())
    return content.hexdigest()


def _add(content: Any, value: Any, inside: bool = False) -> None:
    """Add a value's content to a hash, with its kind, so that no two kinds are taken for each other.

    Inside a model, models count by their class alone.
    """
    add = functools.partial(_add, inside=inside)
    content.update(f"<{type(value).__qualname__}".encode())
    if inside and isinstance(value, (Backbone, DiffusionPipeline, nn.Module, Counter)):
        pass
    elif isinstance(value, str):
        content.update(repr(value).encode() + _file(value))
    elif value is None or isinstance(value, _PRINTED):
        content.update(repr(value).encode())
    elif isinstance(value, os.PathLike):
        content.update(repr(os.fspath(value)).encode() + _file(value))
    elif isinstance(value, Backbone):
        content.update(f"{model_fingerprint(value)} {value.name} {value.device.type}".encode())
    elif isinstance(value, DiffusionPipeline):
        add(content, wrap_pipeline(value))
    elif isinstance(value, nn.Module):
        _add_weights(content, "", value)
        _add_state(content, "", value)
    elif isinstance(value, PreTrainedTokenizerBase):
        content.update(_vocabulary(value).encode())
    elif isinstance(value, Tensor):
        content.update(f"{value.dtype} {tuple(value.shape)}".encode() + _raw(value).tobytes())
    elif isinstance(value, np.ndarray) and value.dtype != object:
        content.update(f"{value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, PIL.Image.Image):
        content.update(f"{value.mode} {value.size} {value.getpalette()}".encode() + value.tobytes())
    elif isinstance(value, (pd.DataFrame, pd.Series, xr.DataArray, xr.Dataset)):
        content.update(joblib.hash(value).encode())
    elif isinstance(value, functools.partial):
        add(content, [value.func, value.args, value.keywords])
    elif isinstance(value, MethodType):
        add(content, [value.__func__, value.__self__])
    elif isinstance(value, (FunctionType, type)):
        add_code(content, value, add)
    elif isinstance(value, BuiltinFunctionType):
        content.update(f"{value.__module__}.{value.__qualname__}".encode())
    elif isinstance(value, enum.Enum):
        content.update(str(value).encode())
    elif isinstance(value, Mapping):
        add(content, [item for pair in value.items() for item in pair])
    elif dataclasses.is_dataclass(value):
        # what is left out of comparisons follows from the rest
        add(content, {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.compare})
    elif isinstance(value, (list, tuple, range)):
        for item in value:
            add(content, item)
    elif isinstance(value, (set, frozenset)):
        add(content, sorted(fingerprint(item) for item in value))
    elif isinstance(value, Sequence) and hasattr(value, "__dict__"):
        add(content, vars(value))  # such as `Scenes`, whose items follow from how it was made
    else:
        raise InputError(
            f"expected arguments whose content can be read, got {type(value).__name__}: call the function itself"
        )
    content.update(b">")


def _file(path: str | os.PathLike[str]) -> bytes:
    """Digest of a file, or of the names, sizes and dates below a folder; nothing for a text that names neither."""
    try:
        found = Path(path or "\0").expanduser()
        if found.is_file():
            with found.open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        if found.is_dir():
            stats = [(str(entry), entry.stat()) for entry in sorted(found.rglob("*"))]
            return repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]).encode()
    except (OSError, ValueError, RuntimeError):
        pass
    return b""


def _prune(kept: Path) -> None:
    """Delete the least recently used results until the rest fits."""
    files = sorted(((path.stat().st_mtime, path) for path in kept.glob("*.joblib")), reverse=True)
    total = 0
    for _, path in files:
        total += path.stat().st_size
        if total > LARGEST:
            path.unlink(missing_ok=True)
