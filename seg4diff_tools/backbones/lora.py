"""LoRA weights of a fine-tuned transformer: put on for a while, written as plain diffusers loads them, read from the authors' files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError

import torch
from diffusers import ModelMixin
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checkpoints import MINI
from seg4diff_tools.errors import CheckpointError, InputError
from seg4diff_tools.families import Family

FILE = "pytorch_lora_weights.safetensors"
"""Where diffusers looks for LoRA weights in a folder."""
HEAD_FILE = "conv_head.safetensors"
SHIPPED = {name: MINI.parent / name for name in ("mini-magnet", "mini-flow")}
"""LoRAs of the embedded model that come with the package: aligned with masks, and its control, flow matching alone."""

ADAPTER = "seg4diff"

_RELEASED, _RELEASED_HEAD = "backbone.transformer.", "attn_mlp.attn_score_layer."


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """What fine-tuning changed.

    Attributes:
        tensors: two matrices for each projection, named as in diffusers without its prefix:
            "transformer_blocks.0.attn.to_q.lora_A.weight", [rank in], and "...lora_B.weight", [out rank].
        rank: of all matrices; alpha is the same, so that the change is their plain product.
        conv_head: weights of `magnet.ConvHead`, if it was trained and kept.
    """

    tensors: Mapping[str, Tensor] = field(repr=False)
    rank: int
    conv_head: Mapping[str, Tensor] = field(default_factory=dict, repr=False)


@contextmanager
def apply_lora(backbone: Backbone, source: str | Path | LoraWeights, scale: float = 1.0) -> Iterator[Backbone]:
    """The model with a LoRA inside the `with`, and as it was after it.

    Args:
        backbone: the model.
        source: as in `read_lora`, or weights that it read.
        scale: strength; 1 as trained, 0 changes nothing.

    Raises:
        CheckpointError: as in `read_lora`, or weights of another architecture.
        InputError: the model has another LoRA already.
    """
    weights = source if isinstance(source, LoraWeights) else read_lora(source)
    transformer = backbone.transformer
    check_free(transformer)
    _check_fit(weights, transformer)
    # scaled here, so that one strength holds for every way of loading
    tensors = {name: value * scale if ".lora_B." in name else value for name, value in weights.tensors.items()}
    try:
        transformer.load_lora_adapter(tensors, prefix=None, adapter_name=ADAPTER)
        transformer.requires_grad_(False).eval()
        yield backbone
    finally:
        transformer.unload_lora()


def attach(transformer: ModelMixin, family: Family, rank: int, alpha: int) -> None:
    """Puts new LoRA layers on q, k, v and the output of every joint attention; only they can be trained then.

    `transformer.unload_lora()` takes them off again.

    Args:
        transformer: without a LoRA.
        family: says where joint attention is. A second, image-only attention (SD3.5) is left alone, as in the paper's code.
        rank: 16 in the paper.
        alpha: the change is alpha / rank times the product of both matrices; 16 in the paper.

    Source: Seg4Diff, arXiv 2509.18096, section 3.5.
    """
    check_free(transformer)
    names = {attention for _, attention in family.stacks}
    modules = [f"{name}.{part}" for name in sorted(names) for part in ("to_q", "to_k", "to_v", "to_out.0")]
    config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=modules)
    transformer.add_adapter(config, adapter_name=ADAPTER)


def trained(transformer: ModelMixin, alpha: int) -> LoraWeights:
    """The LoRA that `attach` put on, on the CPU in fp32, with alpha / rank already multiplied in.

    Args:
        transformer: with the LoRA.
        alpha: that it was attached with.
    """
    found = get_peft_model_state_dict(transformer, adapter_name=ADAPTER)
    rank = next(value.shape[0] for name, value in found.items() if ".lora_A." in name)
    factor = {name: alpha / rank if ".lora_B." in name else 1.0 for name in found}
    tensors = {name: value.detach().cpu().float() * factor[name] for name, value in found.items()}
    return LoraWeights(tensors, rank)


def save_lora(weights: LoraWeights, folder: str | Path) -> Path:
    """Writes a LoRA that `pipe.load_lora_weights(folder)` of plain diffusers loads, and the conv head beside it.

    Args:
        weights: the LoRA.
        folder: made if it is not there.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"transformer.{name}": value.contiguous() for name, value in weights.tensors.items()}
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    if weights.conv_head:
        save_file(dict(weights.conv_head), folder / HEAD_FILE, metadata={"format": "pt"})
    return folder


def read_lora(source: str | Path) -> LoraWeights:
    """Reads a LoRA of a transformer's attention.

    Args:
        source: one of `SHIPPED`, such as "mini-magnet"; a folder with `pytorch_lora_weights.safetensors`, as diffusers and `save_lora` write it; such
            a file; or `lora_weights.pth` as the paper's authors publish it (hub repositories chyun/seg4diff-coco-lora and
            chyun/seg4diff-sa1b-lora), a detectron2 checkpoint with or without the conv head.

    Raises:
        CheckpointError: no such file, one that cannot be read without running code from it, or names or shapes that are
            not those of such a LoRA.
    """
    path = SHIPPED.get(str(source), Path(source))
    head_path = path / HEAD_FILE
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise CheckpointError(f"expected LoRA weights in {path}, got no such file: check the path")
    if path.suffix == ".safetensors":
        tensors, head = _read_safetensors(path), _read_safetensors(head_path) if head_path.is_file() else {}
        named = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    else:
        named, head = _read_released(path)
    return LoraWeights(named, _rank(named, path), head)


def check_free(transformer: ModelMixin) -> None:
    """Refuses a transformer that has a LoRA already.

    Args:
        transformer: the model.

    Raises:
        InputError: it has one.
    """
    if present := list(getattr(transformer, "peft_config", {})):
        raise InputError(
            f"expected a model without a LoRA, got one with {present}: call pipe.unload_lora_weights() first"
        )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"expected LoRA weights in safetensors, got {path}, which cannot be read: {error}"
        ) from error


def _read_released(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """LoRA and conv head of a detectron2 checkpoint."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, OSError, EOFError) as error:
        # torch's own message advises to load such a file unsafely
        raise CheckpointError(
            f"expected LoRA weights in safetensors, or a checkpoint of plain tensors, got {path}, which is damaged or would "
            "run code when it is read: fetch it again"
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
            f"expected names that start with {_RELEASED} or {_RELEASED_HEAD} in {path}, got {len(unknown)} other(s), such as "
            f"{unknown[0]!r}: it is no checkpoint of Seg4Diff's LoRA"
        )
    return named, head


def _brief(state: object) -> str:
    return f"the entries {sorted(map(str, state))[:5]}" if isinstance(state, Mapping) else type(state).__name__


def _rank(named: Mapping[str, Tensor], path: Path) -> int:
    """The rank of all matrices, once they are known to be pairs of one rank."""
    ranks = {}
    for name, value in named.items():
        module, _, rest = name.rpartition(".lora_")
        if rest not in ("A.weight", "B.weight") or not isinstance(value, Tensor) or value.ndim != 2:
            raise CheckpointError(f"expected matrices lora_A.weight and lora_B.weight in {path}, got {name!r}")
        ranks[module, rest[0]] = value.shape[0 if rest[0] == "A" else 1]
    modules = {module for module, _ in ranks}
    alone = [module for module in modules if not {(module, "A"), (module, "B")} <= ranks.keys()]
    if not ranks or alone or len(set(ranks.values())) > 1:
        told = f"only one for {alone[0]}" if alone else f"ranks {sorted(set(ranks.values()))}"
        raise CheckpointError(f"expected pairs of matrices of one rank in {path}, got {told}")
    return next(iter(ranks.values()))


def _check_fit(weights: LoraWeights, transformer: ModelMixin) -> None:
    modules = dict(transformer.named_modules())
    for name, value in weights.tensors.items():
        module = modules.get(name.rpartition(".lora_")[0])
        if not isinstance(module, torch.nn.Linear):
            raise CheckpointError(
                f"expected a LoRA for this {type(transformer).__name__}, got one with {name!r}, which it does not have: it "
                "belongs to another architecture"
            )
        side = value.shape[1] if ".lora_A." in name else value.shape[0]
        wanted = module.in_features if ".lora_A." in name else module.out_features
        if side != wanted:
            raise CheckpointError(
                f"expected {wanted} channels for {name!r}, got {side}: the LoRA belongs to a model of another width"
            )
