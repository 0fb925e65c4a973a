"""LoRA weights on a model: apply inside a `with`, attach for training."""

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ModelMixin
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn

from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.loading import as_backbone
from seg4diff_tools.backbones.lora_files import LoraWeights, is_plain, lora_file, read_lora, read_safetensors
from seg4diff_tools.errors import CheckpointError, InputError
from seg4diff_tools.families import Family, model_lock
from seg4diff_tools.families._private import unwrapped

ADAPTER = "seg4diff"

# transformer-only weights are usual; diffusers warns that they hold none for the text encoders
_EXPECTED_WARNING = "No LoRA keys associated to"


@contextmanager
def apply_lora(
    backbone: Backbone | DiffusionPipeline | str, source: str | Path | LoraWeights, scale: float = 1.0
) -> Iterator[Backbone]:
    """Apply a LoRA inside the `with`; afterwards the model is restored.

    A file of diffusers is loaded by the pipeline's own `load_lora_weights`, so that the output equals that of plain
    diffusers, with the file's rank, alpha, rank-stabilized scaling and text encoders. Encode prompts inside the `with`
    where the LoRA changes text encoders.

    Args:
        backbone: the model, a pipeline or a name; the `with` yields its backbone.
        source: as in `read_lora`, or its result.
        scale: strength; 1 as trained, 0 changes nothing.

    Raises:
        CheckpointError: as in `read_lora`, or weights of another architecture.
        InputError: the model has another LoRA already, or scale is not a finite number.
        RecordingError: another thread holds the model.
    """
    backbone = as_backbone(backbone)
    if isinstance(scale, bool) or not isinstance(scale, Real) or not abs(scale) < float("inf"):
        raise InputError(f"expected scale, a finite number, got {scale!r}: pass scale=1.0")
    weights = source if isinstance(source, LoraWeights) else None
    path = None if weights else lora_file(source)
    if path is not None and not is_plain(path, backbone.transformer):
        weights = read_lora(path)
    pipe, transformer = backbone.pipe, backbone.transformer
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    with model_lock(transformer).hold("a LoRA"), kept_flags(pipe):
        for part in parts:
            check_free(part)
        try:
            with _without_expected_warnings():
                if weights is None:
                    _load_file(backbone, path)
                else:
                    _check_fit(weights.tensors, transformer)
                    config = dict(weights.config) or None
                    transformer.load_lora_adapter(
                        dict(weights.tensors), prefix=None, adapter_name=ADAPTER, metadata=config
                    )
            for part in parts:
                part.requires_grad_(False)
            if scale != 1:
                for part in map(unwrapped, parts):
                    if ADAPTER in getattr(part, "peft_config", {}):
                        _set_scale(part, scale)
            yield backbone
        finally:
            _unload(pipe, transformer)


def _load_file(backbone: Backbone, path: Path) -> None:
    """Load a file of diffusers into the pipeline; raise an error if it fits only in part or not at all."""
    pipe, where = backbone.pipe, {"weight_name": path.name, "adapter_name": ADAPTER}
    tensors = read_safetensors(path)
    own = {name.removeprefix("transformer."): t for name, t in tensors.items() if name.startswith("transformer.")}
    _check_fit({name: value for name, value in own.items() if ".lora_" in name}, backbone.transformer)
    try:
        if hasattr(pipe, "load_lora_weights"):
            pipe.load_lora_weights(path.parent, **where)
        else:
            backbone.transformer.load_lora_adapter(path.parent, prefix="transformer", **where)
    except (ValueError, RuntimeError, KeyError, OSError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"expected a LoRA for {type(pipe).__name__}, got {path}, which it cannot load ({reason}): check which "
            "model the LoRA was trained for"
        ) from error
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    if not any(ADAPTER in getattr(part, "peft_config", {}) for part in parts):
        raise CheckpointError(
            f"expected a LoRA for {type(pipe).__name__}, got {path} with names such as {next(iter(tensors), None)!r}, "
            "none of which it has: check which model the LoRA was trained for"
        )


def _set_scale(part: nn.Module, scale: float) -> None:
    for module in part.modules():
        if ADAPTER in getattr(module, "scaling", {}):
            module.set_scale(ADAPTER, scale)


def _unload(pipe: DiffusionPipeline, transformer: ModelMixin) -> None:
    if hasattr(pipe, "unload_lora_weights"):
        options = inspect.signature(pipe.unload_lora_weights).parameters
        # FLUX.1's control LoRAs widen layers
        pipe.unload_lora_weights(**({"reset_to_overwritten_params": True} if len(options) else {}))
    else:
        transformer.unload_lora()


@contextmanager
def kept_flags(pipe: DiffusionPipeline) -> Iterator[None]:
    """Restore the training modes and gradient flags of all parts of a pipeline on leaving the `with`."""
    modules = [m for part in pipe.components.values() if isinstance(part, nn.Module) for m in part.modules()]
    modes = [(module, module.training) for module in modules]
    flags = [(value, value.requires_grad) for module in modules for value in module.parameters(recurse=False)]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for value, flag in flags:
            value.requires_grad_(flag)


@contextmanager
def _without_expected_warnings() -> Iterator[None]:
    loggers = [logging.getLogger(f"diffusers.loaders.{name}") for name in ("peft", "lora_base", "lora_pipeline")]

    def unexpected(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_EXPECTED_WARNING)

    for logger in loggers:
        logger.addFilter(unexpected)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(unexpected)


def check_free(transformer: nn.Module) -> None:
    """Raise an InputError for a model that has a LoRA already."""
    if present := list(getattr(transformer, "peft_config", {})):
        raise InputError(
            f"expected a model without a LoRA, got one with {present}: call pipe.unload_lora_weights() first"
        )


def attach(transformer: ModelMixin, family: Family, rank: int, alpha: int) -> None:
    """Attach trainable LoRA layers to q, k, v and the output of every joint attention, and freeze the rest.

    `transformer.unload_lora()` removes them.

    Args:
        transformer: without a LoRA.
        family: of the transformer. A second, image-only attention (SD3.5) stays unchanged, as in the authors' code.
        rank, alpha: the change is alpha / rank times the product of both matrices; 16 and 16 in the paper.

    Raises:
        InputError: the transformer has a LoRA already.

    Source: Seg4Diff, arXiv 2509.18096, section 3.5.
    """
    check_free(transformer)
    names = {attention for _, attention in family.block_lists}
    modules = [f"{name}.{part}" for name in sorted(names) for part in ("to_q", "to_k", "to_v", "to_out.0")]
    config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=modules)
    before = torch.get_default_dtype()
    # peft draws in the default dtype
    torch.set_default_dtype(torch.float32)
    try:
        transformer.add_adapter(config, adapter_name=ADAPTER)
    finally:
        torch.set_default_dtype(before)


def trained(transformer: ModelMixin, alpha: int) -> LoraWeights:
    """Return the LoRA that `attach` made with this alpha, on the CPU in float32, multiplied by alpha / rank."""
    found = get_peft_model_state_dict(transformer, adapter_name=ADAPTER)
    rank = next(value.shape[0] for name, value in found.items() if ".lora_A." in name)
    factor = {name: alpha / rank if ".lora_B." in name else 1.0 for name in found}
    tensors = {name: value.detach().cpu().float() * factor[name] for name, value in found.items()}
    return LoraWeights(tensors, rank)


def _check_fit(tensors: Mapping[str, Tensor], transformer: ModelMixin) -> None:
    modules = dict(transformer.named_modules())
    for name, value in tensors.items():
        module = modules.get(name.rpartition(".lora_")[0])
        if module is None:
            raise CheckpointError(
                f"expected a LoRA for this {type(transformer).__name__}, got one with {name!r}, which it does not "
                "have: it belongs to another architecture"
            )
        if not isinstance(module, nn.Linear) or not name.endswith(("lora_A.weight", "lora_B.weight")):
            continue
        side = value.shape[1] if ".lora_A." in name else value.shape[0]
        wanted = module.in_features if ".lora_A." in name else module.out_features
        if side != wanted:
            raise CheckpointError(
                f"expected {wanted} channels for {name!r}, got {side}: the LoRA belongs to a model of another width"
            )
