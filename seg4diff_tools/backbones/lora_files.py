"""Files of LoRA weights: of diffusers, peft and the paper's authors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from diffusers import ModelMixin
from peft import PeftConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from seg4diff_tools._runs import as_path, written_whole
from seg4diff_tools.backbones.checkpoints import MINI
from seg4diff_tools.errors import CheckpointError

FILE = "pytorch_lora_weights.safetensors"
"""Name of the LoRA file that diffusers writes."""
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
HEAD_FILE = "conv_head.safetensors"
SHIPPED = {name: MINI.parent / name for name in ("mini-magnet", "mini-flow")}
"""Packaged LoRAs of the embedded model: aligned with masks, and its control, flow matching alone."""

_RELEASED, _RELEASED_HEAD = "backbone.transformer.", "attn_mlp.attn_score_layer."


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """LoRA weights of a transformer.

    Attributes:
        tensors: matrices of each projection, named as in diffusers without its prefix:
            "transformer_blocks.0.attn.to_q.lora_A.weight", [rank in], and "...lora_B.weight", [out rank].
        rank: the largest rank.
        conv_head: weights of `magnet.ConvHead`, if it was trained and kept.
        config: peft's ("r", "lora_alpha", "use_rslora", ...); where empty, the change is the plain product of both
            matrices.
    """

    tensors: Mapping[str, Tensor] = field(repr=False)
    rank: int
    conv_head: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)


def save_lora(weights: LoraWeights, folder: str | Path) -> Path:
    """Write a LoRA for `pipe.load_lora_weights(folder)` of plain diffusers, and the conv head beside it.

    Args:
        weights: the LoRA.
        folder: made if it is not there.

    Raises:
        CheckpointError: the files cannot be written.
    """
    folder = as_path(folder, "folder")
    metadata = {"format": "pt"}
    if weights.config:
        named = {f"transformer.{name}": value for name, value in weights.config.items()}
        metadata["lora_adapter_metadata"] = json.dumps(named, sort_keys=True, default=list)
    tensors = {f"transformer.{name}": value.contiguous() for name, value in weights.tensors.items()}
    with written_whole(folder / FILE) as partial:
        save_file(tensors, partial, metadata=metadata)
    if weights.conv_head:
        with written_whole(folder / HEAD_FILE) as partial:
            save_file(dict(weights.conv_head), partial, metadata={"format": "pt"})
    return folder


def lora_file(source: str | Path) -> Path:
    """Find the file of LoRA weights: of `SHIPPED`, a file, or in a folder that diffusers, peft or `save_lora` wrote.

    Raises:
        CheckpointError: no such file, or a folder with several.
    """
    path = SHIPPED.get(str(source)) or as_path(source, "source")
    if path.is_dir():
        names = [name for name in (FILE, PEFT_FILE) if (path / name).is_file()]
        found = [path / name for name in names[:1]] or [
            file for file in sorted(path.glob("*.safetensors")) if file.name != HEAD_FILE
        ]
        if len(found) > 1:
            raise CheckpointError(
                f"expected one LoRA in {path}, got {', '.join(file.name for file in found)}: pass the file itself"
            )
        path = found[0] if found else path / FILE
    if not path.is_file():
        raise CheckpointError(
            f"expected LoRA weights in {path}, got no such file: check the path, or pass one of {', '.join(SHIPPED)}"
        )
    return path


def read_lora(source: str | Path) -> LoraWeights:
    """Read the LoRA of a transformer.

    Args:
        source: one of `SHIPPED`, such as "mini-magnet"; a folder that diffusers, peft or `save_lora` wrote; such a
            file; or `lora_weights.pth` as the paper's authors publish it (hub repositories chyun/seg4diff-coco-lora and
            chyun/seg4diff-sa1b-lora), a detectron2 checkpoint with or without the conv head.

    Raises:
        CheckpointError: no such file, one that cannot be read without running code from it, or names or shapes that are
            not those of a transformer's LoRA.
    """
    path = lora_file(source)
    config: dict[str, Any] = {}
    if path.suffix != ".safetensors":
        named, head = _read_released(path)
    else:
        tensors, head_path = read_safetensors(path), path.parent / HEAD_FILE
        head = read_safetensors(head_path) if head_path.is_file() else {}
        if others := sorted({name.split(".")[0] for name in tensors if name.startswith("text_encoder")}):
            raise CheckpointError(
                f"expected a LoRA of the transformer alone, got one of {', '.join(others)} too in {path}: pass the "
                "path to apply_lora"
            )
        prefix = "base_model.model." if _is_peft(path) else "transformer."
        named = {name.removeprefix(prefix): value for name, value in tensors.items()}
        config = _read_config(path)
    return LoraWeights(named, _rank(named, path), head, config)


def is_plain(path: Path, transformer: ModelMixin) -> bool:
    """Return whether `pipe.load_lora_weights` reads this file.

    `read_lora` also reads the authors' file, peft's, and those of `transformer.save_lora_adapter`, without a prefix.
    """
    if path.suffix != ".safetensors" or _is_peft(path):
        return False
    modules = {name.rpartition(".lora_")[0] for name in read_safetensors(path)}
    return "" in modules or not modules <= dict(transformer.named_modules()).keys()


def _is_peft(path: Path) -> bool:
    return path.name == PEFT_FILE and (path.parent / PEFT_CONFIG).is_file()


def _read_config(path: Path) -> dict[str, Any]:
    """Return peft's configuration of a transformer's LoRA, from the file's header or a file beside it."""
    try:
        if _is_peft(path):
            return PeftConfig.from_pretrained(str(path.parent)).to_dict()
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
        return {name.removeprefix("transformer."): value for name, value in header.items()}
    except (ValueError, TypeError, OSError) as error:
        raise CheckpointError(
            f"expected a LoRA configuration with {path}, got one that cannot be read ({error}): save the LoRA again"
        ) from error


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file, or raise a CheckpointError."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"expected LoRA weights in safetensors, got {path}, which cannot be read: {error}"
        ) from error


def _read_released(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the LoRA and the conv head of a detectron2 checkpoint."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, OSError, EOFError) as error:
        # torch's own message advises to load such a file unsafely
        raise CheckpointError(
            f"expected LoRA weights in safetensors, or a checkpoint of plain tensors, got {path}, which is damaged or "
            "would run code when it is read: fetch it again"
        ) from error
    if not isinstance(state, Mapping) or not isinstance(state.get("model"), Mapping):
        raise CheckpointError(f"expected a checkpoint with 'model' in {path}, got {_brief(state)}")
    named, head, unknown = {}, {}, []
    for name, value in state["model"].items():
        if name.startswith(_RELEASED) and ".lora_" in name:
            named[name.removeprefix(_RELEASED).replace(".default.", ".")] = value
        elif name.startswith(_RELEASED_HEAD):
            head[name.removeprefix(_RELEASED_HEAD)] = value
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"expected names that start with {_RELEASED} or {_RELEASED_HEAD} in {path}, got {len(unknown)} other(s), "
            f"such as {unknown[0]!r}: it is no checkpoint of Seg4Diff's LoRA"
        )
    return named, head


def _brief(state: object) -> str:
    return f"the entries {sorted(map(str, state))[:5]}" if isinstance(state, Mapping) else type(state).__name__


def _rank(named: Mapping[str, Tensor], path: Path) -> int:
    """Return the largest rank; check that every projection has both matrices, of one rank."""
    ranks: dict[str, dict[str, int]] = {}
    for name, value in named.items():
        module, _, rest = name.rpartition(".lora_")
        if rest in ("A.weight", "B.weight") and isinstance(value, Tensor) and value.ndim == 2:
            ranks.setdefault(module, {})[rest[0]] = value.shape[0 if rest[0] == "A" else 1]
        elif rest not in ("B.bias", "magnitude_vector", "magnitude_vector.weight"):
            raise CheckpointError(f"expected matrices lora_A.weight and lora_B.weight in {path}, got {name!r}")
    alone = [module for module, sides in ranks.items() if len(sides) < 2]
    apart = [sides.values() for sides in ranks.values() if len(set(sides.values())) > 1]
    if not ranks or alone or apart:
        found = f"only one for {alone[0]}" if alone else f"ranks {sorted(apart[0])}" if apart else "none"
        raise CheckpointError(f"expected pairs of matrices of one rank in {path}, got {found}")
    return max(rank for sides in ranks.values() for rank in sides.values())
