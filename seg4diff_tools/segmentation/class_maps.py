"""Class maps of many images at many layers, steps and heads."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checks import Head, check_heads, check_layers
from seg4diff_tools.errors import InputError
from seg4diff_tools.prompts import Prompt
from seg4diff_tools.segmentation import masks

Direction = Literal["i2t", "t2i"]
Normalize = Literal["softmax", "scores"]


def read_class_maps(
    backbone: Backbone,
    latents: Float[Tensor, "image channel row column"],
    prompts: Sequence[Sequence[Prompt]],
    *,
    layers: Sequence[int],
    steps_from_end: Sequence[int] = (8,),
    steps: int = 28,
    heads: Sequence[Head] = ("mean",),
    kinds: Sequence[tuple[Direction, Normalize]] = (("i2t", "softmax"),),
    seed: int = 0,
    batch: int = 8,
) -> list[Float[Tensor, "kind step layer head class y x"]]:
    """Class maps of several images at many layers, steps and heads, each image and step in one forward.

    Only sums over each class's tokens leave the attention; the N x N map is never built, and blocks after the last
    wanted layer never run.

    Args:
        backbone: the model.
        latents: encoded images, without noise.
        prompts: for each image its prompts, made by `Backbone.class_prompts`.
        layers: 0-based.
        steps_from_end: noise levels, counted from the end of the schedule.
        steps: length of the schedule.
        heads: "mean" for the mean over heads, or indices of heads.
        kinds: which direction of the joint map, and before ("scores") or after the softmax.
        seed: of the noise, the same for all images.
        batch: forwards to run at once: a step of an image with one prompt is one.

    Returns:
        For each image its maps in fp32 on the model's device, classes in the order of its prompts; NaN for a class that
        was cut off its prompt.

    Raises:
        InputError: a layer, step or head out of range, or an unknown kind.
    """
    layers, heads = check_layers(backbone, layers), check_heads(backbone, heads)
    check_kinds(kinds)
    if batch < 1:
        raise InputError(f"expected a batch of at least 1, got {batch}")
    grid = backbone.token_grid(latents)
    classes = [sum(len(prompt.classes) for prompt in group) for group in prompts]
    sizes = (len(kinds), len(steps_from_end), len(layers), len(heads))
    results = [torch.full((*sizes, count, *grid), torch.nan, device=latents.device) for count in classes]
    # one entry for each prompt of each image, with the place of its first class
    entries = [
        (image, prompt, sum(len(earlier.classes) for earlier in group[:position]))
        for image, group in enumerate(prompts)
        for position, prompt in enumerate(group)
    ]
    at_once = max(1, batch // len(steps_from_end))
    for part in _batches(entries, at_once):
        spans = sorted({span for _, prompt, _ in part for span in prompt.classes.values() if span})
        columns = sorted({column for span in spans for column in span})
        weights = masks.span_weights([[columns.index(column) for column in span] for span in spans], len(columns))
        weights = weights.to(latents.device)
        for first in range(0, len(steps_from_end), batch):
            wanted = list(steps_from_end[first : first + batch])
            noisy, timestep = backbone.add_noise(latents[[image for image, _, _ in part]], wanted, steps, seed)
            targets = []
            for row, (image, prompt, place) in enumerate(part):
                read = [(place + k, spans.index(span)) for k, span in enumerate(prompt.classes.values()) if span]
                target = results[image][:, first : first + len(wanted)]
                targets.append((target, slice(row * len(wanted), (row + 1) * len(wanted)), *zip(*read, strict=True)))

            def store(call: JointAttention, columns=columns, weights=weights, targets=targets) -> None:
                for index, (direction, normalize) in enumerate(kinds):
                    maps = span_maps(call, direction, normalize, heads, columns, weights).unflatten(-1, grid)
                    for target, rows, places, chosen in targets:
                        target[index, :, layers.index(call.layer)][:, :, places] = maps[rows][:, :, chosen]

            with intercept(backbone.transformer, store, layers=layers, stop_after=max(layers)):
                backbone.predict_velocity(noisy, timestep, [prompt for _, prompt, _ in part])
    return results


def _batches(entries: Sequence[tuple[int, Prompt, int]], size: int) -> Iterator[Sequence[tuple[int, Prompt, int]]]:
    """Neighbors whose prompts have one length, at most `size` of them at once."""
    for _, group in groupby(entries, key=lambda entry: len(entry[1].tokens)):
        alike = list(group)
        for start in range(0, len(alike), size):
            yield alike[start : start + size]


def span_maps(
    call: JointAttention,
    direction: Direction,
    normalize: Normalize,
    heads: Sequence[Head],
    columns: Sequence[int],
    weights: Float[Tensor, "text span"],
) -> Float[Tensor, "batch head span image"]:
    """Mean over each span's tokens of one part of the joint map, for the wanted heads.

    Args:
        call: the attention as it is computed; gradients flow to its queries and keys.
        direction: "i2t" or "t2i".
        normalize: "softmax" or "scores".
        heads: "mean" for the mean over heads, or indices.
        columns: the text tokens that are needed.
        weights: what each span is made of, such as `masks.span_weights` makes it of these columns.

    Returns:
        At least fp32.

    Source: Seg4Diff, arXiv 2509.18096, equations 9 and 10.
    """
    single = [head for head in heads if head != "mean"]
    found = {}
    if normalize == "softmax":
        if "mean" in heads:
            found["mean"] = call.head_mean(direction, text=columns, spans=weights)
        if single:
            found |= zip(
                single, call.weights(direction, heads=single, text=columns, spans=weights).unbind(1), strict=True
            )
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


def check_kinds(kinds: Sequence[tuple[str, str]]) -> None:
    """Refuses directions and normalizations that there are not.

    Args:
        kinds: pairs of direction and normalization.

    Raises:
        InputError: another name.
    """
    for direction, normalize in kinds:
        if direction not in ("i2t", "t2i"):
            raise InputError(f"expected direction='i2t' or direction='t2i', got {direction!r}")
        if normalize not in ("softmax", "scores"):
            raise InputError(f"expected normalize='softmax' or normalize='scores', got {normalize!r}")
