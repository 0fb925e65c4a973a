"""What lies under the maps: queries, keys and values of image tokens, norms of values, and who attends to whom."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate, one_hot
from tqdm.auto import tqdm

from seg4diff_tools.attention.joint import Direction, JointAttention
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.forwards import forward_batches, observe
from seg4diff_tools.errors import InputError, named_extra
from seg4diff_tools.prompts import Prompt

with named_extra():
    from sklearn.decomposition import PCA

Projection = Literal["query", "key", "value"]
PROJECTIONS: tuple[Projection, ...] = ("query", "key", "value")
TEXT_PARTS = {"words": ("word",), "start and end": ("start", "end", "template"), "pads": ("pad",), "zeros": ("zero",)}
"""What the text tokens consist of: kinds of `prompts.Token`."""

SIDES: tuple[tuple[str, Literal["i", "t"], Direction], ...] = (("image", "i", "i2t"), ("text", "t", "t2t"))
Latents = Float[Tensor, "image channel row column"]


def image_features(
    backbone: Backbone,
    latents: Latents,
    prompts: Sequence[Prompt],
    *,
    layers: Sequence[int] | None = None,
    kinds: Sequence[Projection] = PROJECTIONS,
    steps_from_end: int = 8,
    steps: int = 28,
    seed: int = 0,
    batch: int = 8,
) -> xr.DataArray:
    """Queries, keys and values of image tokens as they enter the attention, heads side by side.

    Args:
        backbone: the model.
        latents: encoded images, without noise.
        prompts: one for each image.
        layers: 0-based; None for all. A large model has 6 MB for each kind, layer and image of 64 x 64 tokens.
        kinds: any of "query", "key", "value".
        steps_from_end: noise level; 8 of 28 is the paper's.
        steps: length of the schedule.
        seed: of the noise, the same for all images.
        batch: images at once.

    Returns:
        fp32, dims (image, layer, kind, y, x, channel).

    Source: Seg4Diff, arXiv 2509.18096, figures 3 and 29.
    """
    rows, columns = backbone.token_grid(latents)
    wanted = list(range(backbone.layers) if layers is None else layers)
    values = np.empty((len(latents), len(wanted), len(kinds), rows, columns, 0), np.float32)

    def store(call: JointAttention, part: slice) -> None:
        nonlocal values
        if values.size == 0:
            values = np.empty((*values.shape[:-1], call.query.shape[1] * call.query.shape[3]), np.float32)
        for index, kind in enumerate(kinds):
            tokens = getattr(call, kind)[:, :, call.image].transpose(1, 2).flatten(2)
            values[part, wanted.index(call.layer), index] = tokens.float().cpu().unflatten(1, (rows, columns)).numpy()

    _observe(backbone, latents, prompts, store, steps_from_end, steps, seed, batch, layers=wanted)
    coords = {"layer": wanted, "kind": list(kinds)}
    return xr.DataArray(values, coords, ("image", "layer", "kind", "y", "x", "channel"), name="features")


def pca_colors(
    features: Float[np.ndarray, "image y x channel"], whiten: bool = True
) -> Float[np.ndarray, "image y x 3"]:
    """Three principal components as red, green and blue, fitted to all images at once so that colors agree.

    Args:
        features: of one layer and kind.
        whiten: give the components the same deviation; without it the first one takes most of the color.

    Returns:
        Values from 0 to 1: the middle 98 % of each component, cut off beyond.

    Source: Seg4Diff, arXiv 2509.18096, figures 3 and 29.
    """
    flat = features.reshape(-1, features.shape[-1])
    parts = PCA(3, whiten=whiten, random_state=0).fit_transform(flat.astype(np.float64))
    low, high = np.quantile(parts, [0.01, 0.99], axis=0)
    scaled = ((parts - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return scaled.astype(np.float32).reshape(*features.shape[:-1], 3)


def explained_variance(features: Float[np.ndarray, "token channel"], groups: Int[np.ndarray, " token"]) -> float:
    """Share of the features' variance that lies between groups of tokens: 1 if the group tells all, 0 if nothing.

    The share is adjusted for the number of groups, as in the adjusted coefficient of determination: groups that mean
    nothing get 0 on average, and sometimes a little less.

    Args:
        features: of many tokens.
        groups: a number for each token, such as its place in the picture, or its true class.

    Raises:
        InputError: as many groups as tokens, or features that do not vary.
    """
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(groups) != len(features) or len(sizes) >= len(features):
        raise InputError(
            f"expected a group for each of {len(features)} tokens, and fewer groups than tokens; got {len(groups)} in "
            f"{len(sizes)} groups"
        )
    centered = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    total = (centered**2).sum()
    if total == 0:
        raise InputError("expected features that vary, got the same value for every token")
    sums = np.zeros((len(sizes), features.shape[1]))
    np.add.at(sums, member, centered)
    between = (sums**2 / sizes[:, None]).sum()
    return float(1 - (1 - between / total) * (len(features) - 1) / (len(features) - len(sizes)))


def token_labels(label_map: Int[Tensor, "height width"], grid: tuple[int, int]) -> Int[Tensor, "y x"]:
    """The class that covers most of each image token.

    Args:
        label_map: class of each pixel.
        grid: rows and columns of image tokens.
    """
    shares = interpolate(one_hot(label_map.long()).permute(2, 0, 1)[None].float(), size=grid, mode="area")
    return shares[0].argmax(0)


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
    """Mean L2 norm of the values of image tokens, of all text tokens, and of the prompt's words, per layer and head.

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

    Source: Seg4Diff, arXiv 2509.18096, figures 4 and 28; "words" are its prompt tokens without padding.
    """
    sums: dict[tuple[int, str], Tensor] = {}
    counts: dict[tuple[int, str], int] = {}

    def add(call: JointAttention, part: slice) -> None:
        squares = call.value.float().square().sum(-1).cpu()
        # heads on their own, then all of them together
        norms = torch.cat([squares, squares.sum(1, keepdim=True)], 1).sqrt()
        text = norms[:, :, call.text]
        words = [text[row][:, list(p.indices("word"))] for row, p in enumerate(prompts[part])]
        found = {
            "image": norms[:, :, call.image].transpose(0, 1).flatten(1),
            "text": text.transpose(0, 1).flatten(1),
            "words": torch.cat(words, 1),
        }
        for name, values in found.items():
            key = call.layer, name
            sums[key] = sums.get(key, 0) + values.double().sum(1)
            counts[key] = counts.get(key, 0) + values.shape[1]

    _observe(backbone, latents, prompts, add, steps_from_end, steps, seed, batch)
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
    """How image tokens and text tokens share out their attention over image and text, layer by layer.

    Args:
        backbone: the model.
        latents: encoded images, without noise; for prompts without images, those that the model makes of them.
        prompts: one for each image.
        steps_from_end: noise levels; the paper has 8 and 28.
        steps: length of the schedule.
        seed: of the noise.
        batch: images at once.
        progress: show a progress bar.

    Returns:
        Columns layer, steps_from_end, query ("image" or "text"), key ("image", "text", and the parts of the text
        "words",
        "start and end" with the frame of a chat template, "pads", "zeros"), share (mean over heads, queries and images;
        image and text add up to 1, unless there are registers or reference images beside them), and uniform, the share
        if every key got the same.

    Source: Seg4Diff, arXiv 2509.18096, figure 2.
    """
    totals: dict[tuple[int, int, str, str], float] = {}
    uniform: dict[str, float] = {}
    parts = [
        torch.tensor([[token.kind in kinds for token in prompt.tokens] for kinds in TEXT_PARTS.values()]).double()
        for prompt in prompts
    ]
    with tqdm(total=len(latents) * len(steps_from_end), unit="forward", disable=not progress, desc="budget") as bar:
        for step in steps_from_end:

            def add(call: JointAttention, part: slice, step=step) -> None:
                keys = call.query.shape[2]
                for query, side, direction in SIDES:
                    columns = call.head_mean(direction).mean(1).cpu().double()
                    others = call.mass_of_others(side).mean(1).cpu().double()
                    for row, kinds in enumerate(parts[part]):
                        shares = dict(zip(TEXT_PARTS, (kinds @ columns[row]).tolist(), strict=True))
                        counts = dict(zip(TEXT_PARTS, (kinds.sum(1) / keys).tolist(), strict=True))
                        whole = columns[row].sum().item()
                        shares |= {"text": whole, "image": 1 - whole - others[row].item()}
                        counts |= {"text": call.text_tokens / keys, "image": call.image_tokens / keys}
                        for name, share in shares.items():
                            key = call.layer, step, query, name
                            totals[key] = totals.get(key, 0.0) + share / len(latents)
                            if (call.layer, step, query) == (0, steps_from_end[0], "image"):
                                uniform[name] = uniform.get(name, 0.0) + counts[name] / len(latents)
                if call.layer == backbone.layers - 1:
                    bar.update(part.stop - part.start)

            _observe(backbone, latents, prompts, add, step, steps, seed, batch)
    names = ["layer", "steps_from_end", "query", "key"]
    table = pd.DataFrame([(*key, share) for key, share in totals.items()], columns=[*names, "share"])
    return table.assign(uniform=table["key"].map(uniform)).sort_values(names, ignore_index=True)


def _observe(
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
    """Shows an observer the attention of each wanted layer, and which of the images it is of, a batch at a time."""
    if len(prompts) != len(latents) or len(latents) == 0:
        raise InputError(f"expected one prompt for each image, got {len(prompts)} for {len(latents)} images")
    forwards = forward_batches(
        backbone, latents, [[prompt] for prompt in prompts], steps_from_end=[steps_from_end], steps=steps, seed=seed,
        batch=batch,
    )  # fmt: skip
    for forward in forwards:

        def see(call: JointAttention, part: slice = slice(forward.images[0], forward.images[-1] + 1)) -> None:
            on_attention(call, part)

        observe(backbone, forward.noisy, forward.timestep, forward.prompts, see, layers)
