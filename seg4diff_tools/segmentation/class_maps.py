"""Class maps of many images at many layers, steps and heads, from the attention probabilities or scores."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.attention.tokens import span_weights
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checks import Head, check_heads, check_layers
from seg4diff_tools.backbones.forwards import forward_batches, observe
from seg4diff_tools.errors import one_of
from seg4diff_tools.prompts import Prompt
from seg4diff_tools.segmentation import masks

Direction = Literal["i2t", "t2i"]
Normalize = Literal["softmax", "scores"]
DIRECTIONS, NORMALIZATIONS = get_args(Direction), get_args(Normalize)


def read_class_maps(
    backbone: Backbone,
    latents: Float[Tensor, "image channel *frame row column"],
    prompts: Sequence[Sequence[Prompt]],
    *,
    layers: Sequence[int],
    steps_from_end: Sequence[int] = (8,),
    steps: int = 28,
    heads: Sequence[Head] = ("mean",),
    kinds: Sequence[tuple[Direction, Normalize]] = (("i2t", "softmax"),),
    merge_scaled: bool = False,
    seed: int = 0,
    batch: int = 8,
    tick: Callable[[float], object] | None = None,
) -> list[Float[Tensor, "kind step layer head class *frame y x"]]:
    """Read class maps of several images at many layers, steps and heads, each image and step in one forward.

    The attention is reduced to sums over each class's tokens: the N x N map is never built, and blocks after the last
    wanted layer never run.

    Args:
        backbone: the model.
        latents: encoded images, without noise.
        prompts: for each image its prompts, made by `Backbone.class_prompts`.
        layers: 0-based.
        steps_from_end: noise levels, counted from the end of the schedule.
        steps: length of the schedule.
        heads: "mean" for the mean over heads, or indices of heads.
        kinds: pairs of direction ("i2t", "t2i") and normalization ("softmax", "scores").
        merge_scaled: scale each token's map to 0..1 before the mean over a class's tokens.
        seed: of the noise, the same for all images.
        batch: rows (steps of an image with one prompt) of one forward.
        tick: called after each forward with its share of all rows.

    Returns:
        For each image its maps in fp32 on the model's device, classes in the order of its prompts; NaN for a class that
        was cut off its prompt.

    Raises:
        InputError: a layer, step or head out of range, or an unknown kind.
    """
    layers, heads = check_layers(backbone, layers), check_heads(backbone, heads)
    for direction, normalize in kinds:
        one_of(direction, "direction", DIRECTIONS)
        one_of(normalize, "normalize", NORMALIZATIONS)
    grid, all_rows = backbone.token_grid(latents), len(steps_from_end) * sum(map(len, prompts))
    classes = [sum(len(prompt.classes) for prompt in group) for group in prompts]
    sizes = (len(kinds), len(steps_from_end), len(layers), len(heads))
    results = [
        torch.full((*sizes, count, *grid), torch.nan, dtype=torch.float32, device=latents.device) for count in classes
    ]
    forwards = forward_batches(
        backbone, latents, prompts, steps_from_end=steps_from_end, steps=steps, seed=seed, batch=batch
    )
    for forward in forwards:
        spans = sorted({span for prompt in forward.prompts for span in prompt.classes.values() if span})
        columns = sorted({column for span in spans for column in span})
        weights = span_weights([[columns.index(column) for column in span] for span in spans], len(columns))
        see = partial(
            _kind_maps, kinds=kinds, heads=heads, columns=columns, weights=weights.to(latents.device), grid=grid,
            scaled=merge_scaled,
        )  # fmt: skip
        maps = observe(backbone, forward.noisy, forward.timestep, forward.prompts, see, layers)
        stacked = torch.stack(maps, dim=2)
        for index, (image, position) in enumerate(zip(forward.images, forward.positions, strict=True)):
            first = sum(len(earlier.classes) for earlier in prompts[image][:position])
            read = [
                (first + k, spans.index(span))
                for k, span in enumerate(prompts[image][position].classes.values())
                if span
            ]
            places, chosen = (list(column) for column in zip(*read, strict=True))
            target = results[image][:, forward.steps]
            target[:, :, :, :, places] = stacked[:, forward.rows(index)][:, :, :, :, chosen]
        if tick is not None:
            tick(len(forward.noisy) / all_rows)
    return results


def _kind_maps(
    call: JointAttention,
    *,
    kinds: Sequence[tuple[Direction, Normalize]],
    heads: Sequence[Head],
    columns: Sequence[int],
    weights: Float[Tensor, "text span"],
    grid: tuple[int, ...],
    scaled: bool,
) -> Float[Tensor, "kind batch head span *frame y x"]:
    """Return the maps of one layer for every kind."""
    own = torch.eye(len(columns), dtype=weights.dtype, device=weights.device) if scaled else weights
    maps = torch.stack([span_maps(call, *kind, heads, columns, own) for kind in kinds]).unflatten(-1, grid)
    return torch.einsum("kbhtyx,ts->kbhsyx", masks.minmax(maps), weights) if scaled else maps


def span_maps(
    call: JointAttention,
    direction: Direction,
    normalize: Normalize,
    heads: Sequence[Head],
    columns: Sequence[int],
    weights: Float[Tensor, "text span"],
) -> Float[Tensor, "batch head span image"]:
    """Average one part of the joint map over each span's tokens, for the wanted heads.

    Args:
        call: the attention as it is computed; gradients flow to its queries and keys.
        direction: "i2t" or "t2i".
        normalize: "softmax" or "scores".
        heads: "mean" for the mean over heads, or indices.
        columns: the text tokens that are needed.
        weights: of these columns in each span, as from `span_weights`.

    Returns:
        At least fp32.

    Source: Seg4Diff, arXiv 2509.18096, equations 9 and 10.
    """
    single = [head for head in heads if head != "mean"]
    found: dict[Head, Tensor] = {}
    if normalize == "softmax":
        if "mean" in heads:
            found["mean"] = call.head_mean(direction, text=columns, spans=weights)
        if single:
            maps = call.weights(direction, heads=single, text=columns, spans=weights)
            found |= zip(single, maps.unbind(1), strict=True)
        if direction == "i2t":
            found = {head: maps.mT for head, maps in found.items()}
    else:
        # scores are linear: averaging the text side over its tokens first gives the mean of the scores
        text, image = (call.key, call.query) if direction == "i2t" else (call.query, call.key)
        text = weights.mT @ text[:, :, [call.text.start + column for column in columns]].float()
        image = image[:, :, call.image].float()
        if "mean" in heads:
            found["mean"] = torch.einsum("bhsd,bhnd->bsn", text, image) * (call.scale / text.shape[1])
        for head in single:
            found[head] = text[:, head] @ image[:, head].mT * call.scale
    return torch.stack([found[head] for head in heads], dim=1).float()
