"""Features of image tokens: queries, keys, values, the stream around AdaLN; value norms, shares of attention."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot
from tqdm.auto import tqdm

from seg4diff_tools.analysis.streams import Streams
from seg4diff_tools.attention.areas import area_means
from seg4diff_tools.attention.joint import Direction, JointAttention
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checks import check_latents, check_layers
from seg4diff_tools.backbones.forwards import forward_batches, observe
from seg4diff_tools.backbones.loading import as_backbone
from seg4diff_tools.datasets.labels import label_array
from seg4diff_tools.errors import InputError, list_of, named_extra, some_of
from seg4diff_tools.images import as_size
from seg4diff_tools.indices import as_indices, as_int
from seg4diff_tools.prompts import Kind, Prompt

with named_extra():
    from sklearn.decomposition import PCA

Projection = Literal["query", "key", "value"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)
Feature = Literal[Projection, "stream", "adaln"]
TEXT_PARTS: dict[str, tuple[Kind, ...]] = {
    "words": ("word",),
    "start and end": ("start", "end", "template"),
    "pads": ("pad",),
    "zeros": ("zero",),
}
"""Parts of the text tokens: kinds of `prompts.Token`."""

SIDES: tuple[tuple[str, Literal["i", "t"], Direction], ...] = (("image", "i", "i2t"), ("text", "t", "t2t"))
Latents = Float[Tensor, "image channel *frame row column"]


def image_features(
    backbone: Backbone,
    latents: Latents,
    prompts: Sequence[Prompt],
    *,
    layers: int | Sequence[int] | str | None = None,
    kinds: Sequence[Feature] = PROJECTIONS,
    discard: int | Sequence[int] = (),
    steps_from_end: int = 8,
    steps: int = 28,
    seed: int = 0,
    batch: int = 8,
) -> xr.DataArray:
    """Read features of image tokens: queries, keys and values as they enter the attention, or what enters the block.

    Args:
        backbone: the model.
        latents: encoded images, without noise.
        prompts: one for each image.
        layers: 0-based; "double" for the double-stream blocks; None for all. SD3 needs 25 MB for each kind, layer and
            image of 64 x 64 tokens.
        kinds: any of "query", "key", "value", heads concatenated; "stream", what enters the block; "adaln", the same
            after the block's adaptive layer norm (of SD3 and FLUX.1), from which queries, keys and values are made.
        discard: channels of the stream that are zero before the norm, such as `massive_channels`; the forward itself
            goes on with them.
        steps_from_end: noise level; 8 of 28 is the paper's.
        steps: length of the schedule.
        seed: of the noise, the same for all images.
        batch: images at once.

    Returns:
        fp32, dims (image, layer, kind, y, x, channel).

    Raises:
        InputError: not one prompt for each image, a layer, kind, channel or step out of range, channels to discard
            without a kind that has them, or "stream" and "adaln" of another family.

    Source: Seg4Diff, arXiv 2509.18096, figures 3 and 29; "adaln" and channels to discard: DiTF, Gan et al., arXiv
        2505.18584, whose released code discards channels before the norm as well.
    """
    backbone = as_backbone(backbone)
    wanted = check_layers(backbone, layers)
    kinds = some_of(kinds, "kinds", (*PROJECTIONS, "stream", "adaln"))
    of_streams = [kind for kind in kinds if kind not in PROJECTIONS]
    channels = () if hasattr(discard, "__len__") and len(discard) == 0 else as_indices(discard, "discard")
    if channels and not of_streams:
        raise InputError(f"expected discard with the kind 'stream' or 'adaln', got kinds={kinds}: leave it out")
    streams = Streams(backbone, wanted, channels) if of_streams else None
    grid = backbone.token_grid(check_latents(backbone, latents, "latents"))
    parts: dict[int, list[np.ndarray]] = {layer: [] for layer in wanted}

    def store(call: JointAttention, images: slice) -> None:
        tokens = torch.stack([_features(call, kind, streams).float() for kind in kinds], 1)
        parts[call.layer].append(tokens.unflatten(2, grid).cpu().numpy())

    with nullcontext() if streams is None else streams.watched():
        observe_images(backbone, latents, prompts, store, steps_from_end, steps, seed, batch, wanted)
    values = np.stack([np.concatenate(parts[layer]) for layer in wanted], 1)
    coords = {"layer": wanted, "kind": list(kinds)}
    return xr.DataArray(values, coords, ("image", "layer", "kind", "y", "x", "channel"), name="features")


def _features(call: JointAttention, kind: str, streams: Streams | None) -> Float[Tensor, "image token channel"]:
    if streams is not None and kind not in PROJECTIONS:
        return streams.of(call, kind)
    return getattr(call, kind)[:, :, call.image].transpose(1, 2).flatten(2)


def pca_colors(
    features: Float[np.ndarray, "image y x channel"], whiten: bool = True
) -> Float[np.ndarray, "image y x 3"]:
    """Map three principal components, fitted to all images at once, to red, green and blue.

    Args:
        features: of one layer and kind, with at least 3 channels.
        whiten: scale the components to equal deviation; otherwise the first one dominates.

    Returns:
        Values from 0 to 1: the central 98 % of each component, clipped.

    Raises:
        InputError: another shape.

    Source: Seg4Diff, arXiv 2509.18096, figures 3 and 29.
    """
    features = np.asarray(features)
    if features.ndim != 4 or features.shape[-1] < 3:
        raise InputError(
            f"expected features [image y x channel] with 3 channels or more, got {features.shape}: take one layer and "
            "kind with found.sel(layer=0, kind='key')"
        )
    flat = features.reshape(-1, features.shape[-1])
    parts = PCA(3, whiten=whiten, random_state=0).fit_transform(flat.astype(np.float64))
    low, high = np.quantile(parts, [0.01, 0.99], axis=0)
    scaled = ((parts - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return scaled.astype(np.float32).reshape(*features.shape[:-1], 3)


def explained_variance(features: Float[np.ndarray, "token channel"], groups: Int[np.ndarray, " token"]) -> float:
    """Return the share of the features' variance that is between groups of tokens, at most 1.

    The share is adjusted for the number of groups, as in the adjusted coefficient of determination: random groups get 0
    on average, and possibly negative values.

    Args:
        features: of many tokens.
        groups: a number for each token, such as its position or its true class.

    Raises:
        InputError: as many groups as tokens, or features that do not vary.
    """
    features, groups = np.asarray(features), np.asarray(groups)
    if features.ndim != 2 or groups.ndim != 1:
        raise InputError(
            f"expected features [token channel] and groups [token], got {features.shape} and {groups.shape}: flatten "
            "the places of images"
        )
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(groups) != len(features) or len(sizes) >= len(features):
        raise InputError(
            f"expected a group for each of {len(features)} tokens, and fewer groups than tokens; got {len(groups)} in "
            f"{len(sizes)} groups: pass one for each"
        )
    centered = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    total = (centered**2).sum()
    if total == 0:
        raise InputError("expected features that vary, got the same value for every token: pass others")
    sums = np.zeros((len(sizes), features.shape[1]))
    np.add.at(sums, member, centered)
    between = (sums**2 / sizes[:, None]).sum()
    return float(1 - (1 - between / total) * (len(features) - 1) / (len(features) - len(sizes)))


def token_labels(label_map: Int[Tensor, "height width"], grid: tuple[int, int]) -> Int[Tensor, "y x"]:
    """Return the majority class of each image token; of several, the first.

    Args:
        label_map: class of each pixel, 0 or more.
        grid: rows and columns of image tokens.

    Raises:
        InputError: no integers [y x], a negative class, or an invalid grid.
    """
    label_map, grid = torch.from_numpy(label_array(label_map)), as_size(grid)
    if label_map.numel() == 0 or label_map.min() < 0:
        raise InputError("expected label_map with classes of 0 or more, got a negative one or none: give it a class")
    return area_means(one_hot(label_map).permute(2, 0, 1), grid).argmax(0)


def value_norms(
    backbone: Backbone,
    latents: Latents,
    prompts: Sequence[Prompt],
    *,
    steps_from_end: int = 8,
    steps: int = 28,
    seed: int = 0,
    batch: int = 8,
) -> pd.DataFrame:
    """Measure the mean L2 norm of the values of image tokens, text tokens and the prompt's words, by layer and head.

    Args:
        backbone: the model.
        latents: encoded images, without noise.
        prompts: one for each image.
        steps_from_end: noise level; 8 of 28 is the paper's.
        steps: length of the schedule.
        seed: of the noise.
        batch: images at once.

    Returns:
        Columns layer, head ("all" for the norm over all heads together, or an index), tokens ("image", "text",
        "words"), norm (mean over tokens and images).

    Raises:
        InputError: not one prompt for each image, or a step out of range.

    Source: Seg4Diff, arXiv 2509.18096, figures 4 and 28; "words" are its prompt tokens without padding.
    """
    backbone = as_backbone(backbone, videos=True)
    sums: defaultdict[tuple[int, str], Any] = defaultdict(int)
    counts: Counter[tuple[int, str]] = Counter()

    def add(call: JointAttention, images: slice) -> None:
        squares = call.value.float().square().sum(-1).cpu()
        # each head, then all of them together
        norms = torch.cat([squares, squares.sum(1, keepdim=True)], 1).sqrt()
        text = norms[:, :, call.text]
        words = [text[row][:, list(p.indices("word"))] for row, p in enumerate(prompts[images])]
        found = {
            "image": norms[:, :, call.image].transpose(0, 1).flatten(1),
            "text": text.transpose(0, 1).flatten(1),
            "words": torch.cat(words, 1),
        }
        for name, values in found.items():
            sums[call.layer, name] += values.double().sum(1)
            counts[call.layer, name] += values.shape[1]

    observe_images(backbone, latents, prompts, add, steps_from_end, steps, seed, batch)
    heads = [*range(backbone.heads), "all"]
    rows = [
        (layer, head, name, norm)
        for (layer, name), total in sums.items()
        for head, norm in zip(heads, (total / counts[layer, name]).tolist(), strict=True)
    ]
    return pd.DataFrame(rows, columns=["layer", "head", "tokens", "norm"])


def attention_budget(
    backbone: Backbone,
    latents: Latents,
    prompts: Sequence[Prompt],
    steps_from_end: Sequence[int] = (8, 28),
    *,
    steps: int = 28,
    seed: int = 0,
    batch: int = 8,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure the shares of image and text keys in the attention of image and text queries, by layer.

    Args:
        backbone: the model.
        latents: encoded images, without noise; for prompts without images, generated ones.
        prompts: one for each image.
        steps_from_end: noise levels; the paper has 8 and 28.
        steps: length of the schedule.
        seed: of the noise.
        batch: images at once.
        progress: show a progress bar.

    Returns:
        Columns layer, steps_from_end, query ("image" or "text"), key ("image", "text", and the parts of the text
        "words", "start and end" with the tokens of a chat template, "pads", "zeros"), share (mean over heads, queries
        and images; image and text add up to 1 without registers or reference images), and uniform, the share under
        uniform attention.

    Raises:
        InputError: not one prompt for each image, or a step out of range.

    Source: Seg4Diff, arXiv 2509.18096, figure 2.
    """
    backbone, noise = as_backbone(backbone, videos=True), as_indices(steps_from_end, "steps_from_end", low=1)
    prompts = check_prompts(backbone, latents, prompts)
    rows: list[tuple[int, int, str, str, float, float]] = []
    parts = [{part: list(prompt.indices(*kinds)) for part, kinds in TEXT_PARTS.items()} for prompt in prompts]
    with tqdm(total=len(latents) * len(noise), unit="forward", disable=not progress, desc="budget") as bar:
        for step in noise:

            def add(call: JointAttention, images: slice, step: int = step) -> None:
                keys = call.query.shape[2]
                for query, side, direction in SIDES:
                    columns = call.head_mean(direction).mean(1).cpu().double()
                    others = call.mass_of_others(side).mean(1).cpu().double()
                    for own, column, rest in zip(parts[images], columns, others, strict=True):
                        text = column.sum().item()
                        shares = {
                            "text": (text, call.text_tokens / keys),
                            "image": (1 - text - rest.item(), call.image_tokens / keys),
                        }
                        shares |= {part: (column[at].sum().item(), len(at) / keys) for part, at in own.items()}
                        rows.extend((call.layer, step, query, key, *share) for key, share in shares.items())
                if call.layer == backbone.layers - 1:
                    bar.update(images.stop - images.start)

            observe_images(backbone, latents, prompts, add, step, steps, seed, batch)
    names = ["layer", "steps_from_end", "query", "key"]
    return pd.DataFrame(rows, columns=[*names, "share", "uniform"]).groupby(names, as_index=False).mean()


def check_prompts(backbone: Backbone, latents: Any, prompts: Any) -> Sequence[Prompt]:
    """Return one encoded prompt for each of the latents, or raise an InputError."""
    check_latents(backbone, latents, "latents")
    prompts = list_of(prompts, Prompt, "prompts", "backbone.encode_prompt(['a cat'])")
    if len(prompts) != len(latents):
        raise InputError(
            f"expected one prompt for each image, got {len(prompts)} for {len(latents)} images: pass as many"
        )
    return prompts


def observe_images(
    backbone: Backbone,
    latents: Latents,
    prompts: Sequence[Prompt],
    on_attention: Callable[[JointAttention, slice], None],
    steps_from_end: int,
    steps: int,
    seed: int,
    batch: int,
    layers: Sequence[int] | None = None,
) -> None:
    """Call an observer with the attention of each wanted layer and its image indices, batch by batch."""
    entries = [[prompt] for prompt in check_prompts(backbone, latents, prompts)]
    noise = [as_int(steps_from_end, "steps_from_end", 1)]
    forwards = forward_batches(backbone, latents, entries, steps_from_end=noise, steps=steps, seed=seed, batch=batch)
    for forward in forwards:

        def see(call: JointAttention, images: slice = slice(forward.images[0], forward.images[-1] + 1)) -> None:
            on_attention(call, images)

        observe(backbone, forward.noisy, forward.timestep, forward.prompts, see, layers)
