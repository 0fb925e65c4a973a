"""TODO."""

from collections.abc import Sequence
from typing import Any, Literal

from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.errors import InputError

Head = Literal["mean"] | int


def check_layers(backbone: Backbone, layers: Sequence[int | Literal["expert"]] | None) -> list[int]:
    """Layer indices, the expert's name resolved; None stands for all.

    Args:
        backbone: the model.
        layers: 0-based indices, each one once, or "expert".

    Raises:
        InputError: an index out of range or twice, none at all, or an expert that nobody has measured.
    """
    if layers is None:
        return list(range(backbone.layers))
    if "expert" in layers and backbone.expert_layer is None:
        raise InputError(
            f"expected a model whose expert layer is known, got '{backbone.name}': pass layer=0 to "
            f"{backbone.layers - 1}, or find the best one with sweeps.layer_step_sweep"
        )
    indices = [backbone.expert_layer if layer == "expert" else layer for layer in layers]
    return _check_indices(indices, backbone.layers, "layer", "'expert'")


def check_heads(backbone: Backbone, heads: Sequence[Head] | Literal["mean", "all"]) -> list[Head]:
    """Heads as a list: "mean" for the mean over all, "all" for each one on its own, or any mixture of both.

    Args:
        backbone: the model.
        heads: "mean", "all", or a list of "mean" and indices.

    Raises:
        InputError: an index out of range or twice, or none at all.
    """
    if isinstance(heads, str):
        heads = list(range(backbone.heads)) if heads == "all" else [heads]
    _check_indices([head for head in heads if head != "mean"] or [0], backbone.heads, "head", "'mean'")
    if not heads or len(set(heads)) < len(heads):
        raise InputError(f"expected heads, each one once, got {list(heads)}")
    return list(heads)


def _check_indices(indices: Sequence[Any], length: int, name: str, word: str) -> list[int]:
    wrong = [index for index in indices if type(index) is not int or not 0 <= index < length]
    if wrong or not indices or len(set(indices)) < len(indices):
        raise InputError(
            f"expected {name}s from 0 to {length - 1} or {word}, each one once, got {wrong[0] if wrong else indices!r}"
        )
    return list(indices)
