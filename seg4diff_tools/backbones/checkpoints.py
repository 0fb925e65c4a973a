"""Read a model folder or a hub model: complete, of a supported class, in one dtype, or one clear error."""

import contextlib
import difflib
import importlib
import json
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import diffusers
import huggingface_hub
import torch
import transformers
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError
from safetensors import SafetensorError

from seg4diff_tools.errors import CheckpointError, UnknownArchitectureError
from seg4diff_tools.families import why_refused

MINI = Path(__file__).parents[1] / "models" / "mini"
"""The folder of the embedded model."""
MODELS = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4", "vae", "transformer")


def find_checkpoint(name_or_path: str | Path) -> Path | str:
    """Return the folder of a model as a Path ("mini" is the embedded one), or its hub name ("owner/model") as a str.

    Raises:
        CheckpointError: no such folder, and it cannot be a hub name either.
    """
    folder = MINI if str(name_or_path) == "mini" else Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(name_or_path, str) and re.fullmatch(r"\w[\w.-]*/[\w.-]+", name_or_path):
        return name_or_path
    near = difflib.get_close_matches(str(name_or_path), ["mini"], n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise CheckpointError(f"no model folder '{folder}': check the path, or give a hub name 'owner/model'{hint}")


def load_pipeline(
    source: Path | str,
    supported: Mapping[str, Collection[str]],
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    required: Collection[str] = (),
) -> diffusers.DiffusionPipeline:
    """Load a pipeline, all its parts in one dtype, from safetensors only.

    Args:
        source: from `find_checkpoint`; a hub name is downloaded once its index shows a supported pipeline.
        supported: names of diffusers pipeline classes, each with its omitted components.
        device: None for CUDA, else Apple's MPS, else the CPU.
        dtype: of every model; None for float32 on the CPU, bfloat16 on a GPU that has it, else float16.
        required: names of components that it must have.

    Raises:
        CheckpointError: not a diffusers checkpoint, or parts or weights that are missing or truncated.
        UnknownArchitectureError: another pipeline class.
    """
    index = _model_index(source)
    pipeline = str(index.get("_class_name"))
    if pipeline not in supported:
        reason = why_refused(str(part[1]) for part in index.values() if isinstance(part, list) and len(part) == 2)
        raise UnknownArchitectureError(
            f"'{source}' holds a pipeline of class {pipeline}{reason}; supported: {', '.join(sorted(supported))}"
        )
    if lacking := [name for name in required if not index.get(name, [None])[0]]:
        raise CheckpointError(f"'{source}' has no {' and no '.join(lacking)} (T5): load it with t5=False")
    with _quiet(isinstance(source, Path)):
        known = hasattr(diffusers, pipeline)
    if not known:
        raise CheckpointError(
            f"'{source}' needs {pipeline}, which diffusers {diffusers.__version__} does not have: pip install -U "
            "diffusers"
        )
    place = torch.device(device or best_device())
    dtype = dtype or _best_dtype(place)
    if place.type == "cpu" and (slow := slow_on_cpu(dtype)):
        warnings.warn(f"{slow}: pass dtype='fp32'", stacklevel=3)
    try:
        with _quiet(isinstance(source, Path)):
            dropped = dict.fromkeys(supported[pipeline])
            names = [name for name in MODELS if name not in dropped and index.get(name, [None])[0]]
            models = {name: _load_model(source, name, dtype, *index[name]) for name in names}
            pipe = getattr(diffusers, pipeline).from_pretrained(
                str(source), **models, **dropped, **_as_argument(dtype), use_safetensors=True
            )
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"'{source}' is not a whole {pipeline} checkpoint: {reason}") from error
    encoders = [name for name in names if name.startswith("text_encoder")]
    for tokenizer, encoder in (
        (getattr(pipe, name.replace("text_encoder", "tokenizer")), getattr(pipe, name)) for name in encoders
    ):
        # a text and image processor contains its tokenizer
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        # a text and image model has this in its language model's configuration only
        entries = encoder.config.get_text_config().vocab_size
        # without its files transformers silently makes an empty tokenizer
        if not entries / 2 < len(tokenizer) <= entries:
            raise CheckpointError(
                f"'{source}' has a tokenizer of {len(tokenizer)} entries for a text encoder of "
                f"{entries}: its tokenizer files are missing or belong to another model"
            )
    return pipe.to(device)


def read_card(source: Path | str) -> dict:
    """Read the model_card.json of a folder; empty if there is none."""
    path = Path(source) / "model_card.json"
    return _json(path) if path.is_file() else {}


def _load_model(source: Path | str, name: str, dtype: torch.dtype, library: str, class_name: str) -> torch.nn.Module:
    # one by one, because only this reports missing weights, which are initialized at random
    model, info = getattr(importlib.import_module(library), class_name).from_pretrained(
        str(source), subfolder=name, **_as_argument(dtype, library), use_safetensors=True, output_loading_info=True
    )
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(f"the {name} in '{source}' lacks {len(missing)} weight(s), such as '{missing[0]}'")
    return model


def _as_argument(dtype: torch.dtype, library: str = "diffusers") -> dict[str, torch.dtype]:
    # diffusers before 0.40 has another name for it, deprecated later
    old = library == "diffusers" and tuple(map(int, diffusers.__version__.split(".")[:2])) < (0, 40)
    return {"torch_dtype" if old else "dtype": dtype}


def best_device() -> str:
    """Return CUDA, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def cpu_has_bf16() -> bool:
    """Return whether the CPU has instructions for bfloat16 matrix products, and PyTorch takes them.

    oneDNN's own answer also counts processors on which it only emulates them.
    """
    has = torch.cpu.get_capabilities()
    return torch.backends.mkldnn.is_available() and any(map(has.get, ("avx512_bf16", "amx_bf16", "bf16")))


def slow_on_cpu(dtype: torch.dtype) -> str | None:
    """Say why a number format is slow on this CPU; None if it is not."""
    if dtype == torch.float16:
        return "float16 is about ten times slower than float32 on a CPU"
    if dtype == torch.bfloat16 and not cpu_has_bf16():
        return "bfloat16 saves memory but is several times slower than float32 on a CPU without instructions for it"
    return None


def _best_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float16


def _model_index(source: Path | str) -> dict:
    if isinstance(source, Path):
        path = source / "model_index.json"
        if not path.is_file():
            raise CheckpointError(f"'{source}' is not a diffusers model folder: it has no model_index.json")
        return _json(path)
    try:
        return _json(Path(huggingface_hub.hf_hub_download(source, "model_index.json")))
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"'{source}' is not a folder here, and the hub does not give its model_index.json: {_hub_reason(error)}"
        ) from error


def _hub_reason(error: Exception) -> str:
    """Return why a file cannot be downloaded from the hub, and the remedy."""
    if isinstance(error, GatedRepoError):
        return "the model is gated: accept its licence on its page, then log in with `hf auth login`"
    if constants.HF_HUB_OFFLINE:
        return "it is not in the local cache and HF_HUB_OFFLINE=1 forbids downloads: unset it to download the model"
    return str(error).strip().split("\n")[0]


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"'{path}' is damaged: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"'{path}' is damaged: expected a JSON object")
    return content


@contextlib.contextmanager
def _quiet(local: bool) -> Iterator[None]:
    """Suppress loading messages and, for a folder, progress bars; a download keeps its bars."""
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        if local:
            library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity, bar in before:
            library.set_verbosity(verbosity)
            (library.enable_progress_bar if bar else library.disable_progress_bar)()
