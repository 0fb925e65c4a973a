"""Sinks of the attention: which tokens take it, and forwards in which some of them are closed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from seg4diff_tools.analysis.features import observe_images
from seg4diff_tools.attention.chain import token_rank
from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.backbones.checks import check_layers
from seg4diff_tools.backbones.loading import as_backbone
from seg4diff_tools.errors import InputError, RecordingError, list_of
from seg4diff_tools.families import transformer_of
from seg4diff_tools.images import ImageLike
from seg4diff_tools.indices import as_float, as_indices, as_int
from seg4diff_tools.prompts import Kind, Prompt

Choose = Callable[[JointAttention], Bool[Tensor, "batch key"]]
KINDS: tuple[str, ...] = (*get_args(Kind), "image", "image sink", "other")
"""Kinds of joint tokens: those of text, of the image, and "other", such as registers and reference images."""


def attention_takers(
    model: Any,
    prompts: Sequence[str],
    pictures: Sequence[ImageLike] | None = None,
    *,
    layers: int | Sequence[int] | str | None = None,
    steps_from_end: int | Sequence[int] = (8, 28),
    steps: int = 28,
    seed: int = 0,
    sink: float = 10.0,
    batch: int = 8,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure which kinds of tokens take the attention of image queries, of text queries, and of the whole chain.

    Args:
        model: backbone, pipeline or name.
        prompts: texts.
        pictures: one for each prompt; None draws them, a prompt's number is its seed.
        layers: 0-based; "double" for the double-stream blocks; None for all.
        steps_from_end: noise levels.
        steps: length of the schedule.
        seed: of the noise that is added.
        sink: how many times the median of image tokens one must get to be an "image sink".
        batch: images at once.
        progress: show a progress bar.

    Returns:
        Columns layer, steps_from_end, query ("image" and "text" queries, or "chain", the stationary distribution of
        `token_rank`), key (one of `KINDS`), tokens (how many there are), share (what they take together), largest (what
        the first of them takes), uniform (their share if all keys got the same), all means over images. Shares of a
        query add up to 1.

    Raises:
        InputError: not one picture for each prompt, or a layer or step out of range.
    """
    backbone, texts = as_backbone(model), list_of(prompts, str, "prompts", "prompts=['a cat']", "texts")
    wanted, steps = check_layers(backbone, layers), as_int(steps, "steps", 1)
    noise = as_indices(steps_from_end, "steps_from_end", steps + 1, low=1)
    sink, batch = as_float(sink, "sink", 1.0), as_int(batch, "batch", 1)
    encoded = backbone.encode_prompt(texts)
    if pictures is None:
        seeds = list(range(len(texts)))
        pictures = backbone.generate(texts, steps=steps, seed=seeds, batch=batch, progress=progress)
    latents = backbone.encode_image(pictures)
    rows: list[tuple[Any, ...]] = []
    with tqdm(total=len(latents) * len(noise), unit="forward", disable=not progress, desc="takers") as bar:
        for step in noise:

            def add(call: JointAttention, images: slice, step: int = step) -> None:
                sides = _sides(call)
                got = torch.cat([call.received(sides[:, None]).mean(1), token_rank(call)[:, None]], 1).cpu()
                for prompt, shares in zip(encoded[images], got, strict=True):
                    for query, share in zip(("image", "text", "chain"), shares, strict=True):
                        kinds = _kinds(call, prompt, share, sink)
                        rows.extend((call.layer, step, query, *row) for row in _by_kind(kinds, share))
                if call.layer == wanted[-1]:
                    bar.update(images.stop - images.start)

            observe_images(backbone, latents, encoded, add, step, steps, seed, batch, wanted)
    names = ["layer", "steps_from_end", "query", "key"]
    table = pd.DataFrame(rows, columns=[*names, "tokens", "share", "largest", "uniform"])
    return table.groupby(names, as_index=False).mean()


@contextmanager
def close_keys(model: Any, choose: Choose, layers: int | Iterable[int] | None = None) -> Iterator[None]:
    """Close keys to every query in each forward inside the `with`, chosen anew in each layer and step.

    Keys stay closed that biases, as of `place_words`, have closed. Recorders see the attention before the keys are
    closed, and so does an edit inside the `with`, whose change is added to the output of the open keys.

    Args:
        model: backbone, pipeline or transformer.
        choose: from the attention as it is computed to the joint keys that are closed, such as `top_keys()`.
        layers: 0-based; None for all.

    Raises:
        InputError: a layer out of range, or keys of another shape.
        RecordingError: another interception around it, as of `apply_edit`, replaced the output already.
    """
    if not callable(choose):
        raise InputError(f"expected choose, a function of a JointAttention, got {choose!r}: pass top_keys()")

    def close(call: JointAttention) -> Tensor:
        if call.replaced:
            raise RecordingError(
                f"expected the model's own output in layer {call.layer}, got one that was edited before keys are "
                "closed: enter close_keys first, edits inside it"
            )
        closed, shape = choose(call), (len(call.query), call.query.shape[2])
        if tuple(closed.shape) != shape or closed.dtype != torch.bool:
            raise InputError(f"expected closed keys as booleans {shape}, got {closed.dtype} {tuple(closed.shape)}")
        return call.without_keys(closed)

    with intercept(transformer_of(model), close, layers=layers):
        yield


def top_keys(count: int = 1) -> Choose:
    """Return a choice of the joint keys that get most from all queries, mean over heads, for `close_keys`.

    Args:
        count: how many for each image.
    """
    count = as_int(count, "count", 1)

    def choose(call: JointAttention) -> Bool[Tensor, "batch key"]:
        return _marked(_received_by_all(call), count)

    return choose


def random_keys(count: int = 1, seed: int = 0) -> Choose:
    """Return a choice of as many other keys at random: what closing any key does, to compare `top_keys` with.

    Args:
        count: how many for each image, none of them among its `count` top keys.
        seed: of the draws, which go on from call to call.
    """
    count, generator = as_int(count, "count", 1), torch.Generator().manual_seed(as_int(seed, "seed", 0))

    def choose(call: JointAttention) -> Bool[Tensor, "batch key"]:
        got = _received_by_all(call)
        inside = _prompt_and_image(call)
        size = len(got), int(inside.sum())
        drawn = torch.full(got.shape, -1.0, dtype=torch.float32, device="cpu")
        drawn[:, inside] = torch.rand(*size, generator=generator, dtype=torch.float32, device="cpu")
        return _marked(drawn.to(got.device).masked_fill(_marked(got, count), -1.0), count)

    return choose


def _sides(call: JointAttention) -> Float[Tensor, "batch 2 query"]:
    """Return even weights of image queries and of text queries."""
    weights = torch.zeros(2, call.query.shape[2], dtype=torch.float32, device=call.query.device)
    weights[0, call.image] = 1 / call.image_tokens
    weights[1, call.text] = 1 / call.text_tokens
    return weights.expand(len(call.query), -1, -1)


def _received_by_all(call: JointAttention) -> Float[Tensor, "batch key"]:
    even = _prompt_and_image(call).to(call.query.device, torch.float32).expand(len(call.query), 1, 1, -1)
    return call.received(even).mean(1)[:, 0]


def _prompt_and_image(call: JointAttention) -> Bool[Tensor, " key"]:
    """Return all joint tokens but the words outside the prompt, which no choice follows; on the CPU."""
    inside = torch.ones(call.query.shape[2], dtype=torch.bool, device="cpu")
    if call.concepts is not None:
        inside[call.concepts] = False
    return inside


def _marked(values: Float[Tensor, "batch key"], count: int) -> Bool[Tensor, "batch key"]:
    """Return which keys have the largest values."""
    count = as_int(count, "count", 1, values.shape[1] // 2)
    places = values.topk(count, dim=1).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter(1, places, True)


def _kinds(call: JointAttention, prompt: Prompt, share: Float[Tensor, " key"], sink: float) -> np.ndarray:
    """Return the kind of each joint token."""
    kinds = np.full(len(share), "other", dtype=object)
    kinds[call.text] = [token.kind for token in prompt.tokens]
    image = share[call.image]
    kinds[call.image] = np.where((image > sink * image.median()).numpy(), "image sink", "image")
    return kinds


def _by_kind(kinds: np.ndarray, share: Float[Tensor, " key"]) -> Iterator[tuple[str, int, float, float, float]]:
    """Yield kind, number of tokens, their share, the largest single one and the uniform share."""
    values = share.double().numpy()
    for kind in KINDS:
        own = values[kinds == kind]
        yield kind, len(own), own.sum(), own.max(initial=0.0), len(own) / len(values)
