"""What single heads carry: a word of the prompt, a right picture, a segmentation.

Heads are patched from a run with another word, or ablated (`attention.patch`, `attention.ablate`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL.Image import Image
from torch import Tensor
from tqdm.auto import tqdm

from seg4diff_tools.analysis.heads import HeadMaps, LayerAndHead, head_class_maps
from seg4diff_tools.analysis.search import mean_confusion
from seg4diff_tools.attention.edits import Edit, apply_edit
from seg4diff_tools.attention.patching import HeadEdit, ablate, patch, record_outputs
from seg4diff_tools.backbones.loading import as_backbone
from seg4diff_tools.datasets import Sample
from seg4diff_tools.datasets.labels import true_classes
from seg4diff_tools.errors import InputError, instance_of, list_of
from seg4diff_tools.evaluation import metrics
from seg4diff_tools.evaluation.evaluate import check_samples
from seg4diff_tools.generation.clip import Clip, clip_scores
from seg4diff_tools.generation.composition import (
    Asked,
    CompositionPrompt,
    fault,
    fitting_plan,
    judge,
    prompts,
    visible_colors,
)
from seg4diff_tools.generation.detector import SceneDetector
from seg4diff_tools.generation.encoders import DETECTOR, ImageEncoder, as_encoder
from seg4diff_tools.indices import as_indices, as_int
from seg4diff_tools.scenes import BACKGROUNDS, BASE_CONCEPTS, draw_scenes

PAIR_KINDS = ("object", "color", "count", "relation", "background")
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class WordPair:
    """Two prompts that differ in one word.

    Args:
        kind: of the word, one of `PAIR_KINDS`.
        first, second: the prompts.
    """

    kind: str
    first: CompositionPrompt
    second: CompositionPrompt


def word_pairs(count_per_kind: int = 8, seed: int = 0) -> list[WordPair]:
    """Draw pairs of prompts that differ in one word: a thing, a color, a number, a relation or a background.

    Args:
        count_per_kind: how many; a smaller number gives the first ones of a larger number.
        seed: of the draw.

    Raises:
        InputError: a number below 1 or above 40.
    """
    count_per_kind, seed = as_int(count_per_kind, "count_per_kind", 1, 40), as_int(seed, "seed", 0)
    found: list[WordPair] = []
    # more than are needed: some backgrounds have a preposition of their own
    asked = prompts(5 * count_per_kind, seed)
    for number, kind in enumerate(PAIR_KINDS):
        rng = np.random.default_rng([seed, number])
        pairs: list[WordPair] = []
        for one in asked:
            first, others = _variants(kind, one)
            apart = [other for other in others if _one_word_apart(first.text, other.text)]
            if apart and len(pairs) < count_per_kind:
                pairs.append(WordPair(kind, first, apart[rng.integers(len(apart))]))
        found += pairs
    return found


def _variants(kind: str, prompt: CompositionPrompt) -> tuple[CompositionPrompt, list[CompositionPrompt]]:
    """Return the first prompt of pairs of a kind, and all that may be its second; none from another category."""
    thing = prompt.objects[0]
    if kind == "object" and prompt.category == "single object":
        return prompt, [replace(prompt, objects=(Asked(name),)) for name in BASE_CONCEPTS]
    if kind == "color" and prompt.category == "color binding":
        one = replace(prompt, objects=(thing,))
        return one, [replace(one, objects=(replace(thing, color=name),)) for name in visible_colors(thing.concept)]
    if kind == "count" and prompt.category == "counting":
        return prompt, [replace(prompt, objects=(replace(thing, count=5 - thing.count),))]
    if kind == "relation" and prompt.category == "relation":
        return prompt, [replace(prompt, relation=_OPPOSITE[str(prompt.relation)])]
    if kind == "background" and prompt.category == "single object":
        one = replace(prompt, category="complex")  # whose background is judged
        return one, [replace(one, background=name) for name in BACKGROUNDS]
    return prompt, []


def _one_word_apart(first: str, second: str) -> bool:
    words, others = first.split(), second.split()
    return len(words) == len(others) and sum(a != b for a, b in zip(words, others, strict=True)) == 1


@contextmanager
def edit_heads(model: Any, edit: Edit | HeadEdit, heads: Sequence[LayerAndHead], **limits: Any) -> Iterator[None]:
    """Edit heads of several layers inside the `with`, each layer its own.

    Args:
        model: backbone, pipeline or transformer.
        edit: what to change, see `apply_edit`.
        heads: pairs of layer and head, each one once; none changes nothing.
        limits: tokens, steps and branches, see `apply_edit`.

    Raises:
        InputError: something else than pairs, or what `apply_edit` refuses.
    """
    by_layer: dict[int, list[int]] = {}
    pairs: Any = heads if isinstance(heads, (list, tuple)) else [heads]
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InputError(f"expected heads as pairs of layer and head, got {pair!r}: pass heads=[(4, 0), (4, 2)]")
        by_layer.setdefault(as_int(pair[0], "layer", 0), []).append(pair[1])
    with ExitStack() as stack:
        for layer, own in by_layer.items():
            stack.enter_context(apply_edit(model, edit, layer, heads=own, **limits))
        yield


def carried_shares(
    model: Any,
    pairs: Sequence[WordPair],
    *,
    steps_from_end: int | Sequence[int] = (28, 20),
    steps: int = 28,
    seed: int = 0,
    batch: int = 10,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure how much of what a word changes each head carries, in one forward.

    With v and v' the velocities that the model predicts for the two prompts from the same noisy scene of the first one,
    and p the velocity for the first prompt with one head's output patched from the second's forward, the share is
    (p - v) (v' - v) / (v' - v)^2, with inner products over the latent: 0 if the head carries nothing of the change, 1
    if it carries all. Heads hand things on to those of later layers, so that shares need not add up to 1.

    Args:
        model: backbone, pipeline or name.
        pairs: from `word_pairs`.
        steps_from_end: noise levels; all `steps` of them is noise alone.
        steps: length of the schedule.
        seed: of scenes and noise; a pair's number is added to it.
        batch: pairs at once.
        progress: show a progress bar.

    Returns:
        A row for each pair, noise level, layer and head: pair (its number), kind, steps_from_end, layer, head, share.

    Raises:
        InputError: no pairs, or a noise level out of range.
    """
    backbone, pairs = as_backbone(model), list_of(pairs, WordPair, "pairs", "word_pairs()")
    steps, seed, batch = as_int(steps, "steps", 1), as_int(seed, "seed", 0), as_int(batch, "batch", 1)
    levels = as_indices(steps_from_end, "steps_from_end", steps + 1, low=1)
    every = list(np.ndindex(backbone.layers, backbone.heads))
    rows: list[tuple[Any, ...]] = []
    with tqdm(total=len(pairs) * len(levels) * len(every), unit="forward", disable=not progress) as bar:
        for start in range(0, len(pairs), batch):
            part = pairs[start : start + batch]
            seeds = [seed + start + number for number in range(len(part))]
            plans = [fitting_plan(pair.first, own) for pair, own in zip(part, seeds, strict=True)]
            latents = backbone.encode_image([scene.image for scene in draw_scenes(plans, backbone.image_size)])
            first = backbone.encode_prompt([pair.first.text for pair in part])
            second = backbone.encode_prompt([pair.second.text for pair in part])
            for level in levels:
                noisy = backbone.add_noise(latents, level, steps, seeds)
                with record_outputs(backbone) as outputs:
                    other = backbone.predict_velocity(*noisy, second)
                plain = backbone.predict_velocity(*noisy, first)
                for layer, head in every:
                    with apply_edit(backbone, patch(outputs), layer, heads=head):
                        patched = backbone.predict_velocity(*noisy, first)
                    for number, share in enumerate(_share(plain, patched, other)):
                        rows.append((start + number, part[number].kind, level, layer, head, share))
                    bar.update(len(part))
    return pd.DataFrame(rows, columns=["pair", "kind", "steps_from_end", "layer", "head", "share"])


def _share(plain: Tensor, patched: Tensor, other: Tensor) -> list[float]:
    """How far predictions went from one to the other, for each image."""
    way = (other - plain).flatten(1).double()
    return (((patched - plain).flatten(1).double() * way).sum(1) / way.square().sum(1)).tolist()


def ablated_segmentation(
    model: Any,
    samples: Sequence[Sample],
    *,
    edit: HeadEdit | None = None,
    layer: int | None = None,
    progress: bool = True,
    **read: Any,
) -> pd.DataFrame:
    """Measure how well each head segments by itself, and how well the model does without it.

    Args:
        model: backbone, pipeline or name.
        samples: images with label maps.
        edit: what is done to a head; None for `ablate()`.
        layer: whose mean map segments; None for the backbone's expert layer, or the middle one.
        progress: show progress bars.
        read: noise level and seed, see `head_class_maps`.

    Returns:
        A row for each head and image: layer, head (both missing for the model as it is), image, alone (of the head's
        own map), expert (of the mean map of `layer`, the head being ablated) and every (of the mean over all layers),
        each the mean IoU over the image's classes, 0 to 1.

    Raises:
        InputError: what `head_class_maps` refuses, or an edit that is none.
    """
    backbone, edit = as_backbone(model), ablate() if edit is None else edit
    check_samples(samples)
    middle = backbone.layers // 2 if backbone.expert_layer is None else backbone.expert_layer
    layer = as_int(middle if layer is None else layer, "layer", 0, backbone.layers - 1)
    plain = head_class_maps(backbone, samples, progress=progress, **read)
    rows: list[tuple[Any, ...]] = []

    def add(at: LayerAndHead | tuple[None, None], maps: Sequence[HeadMaps]) -> None:
        for image, (own, untouched, sample) in enumerate(zip(maps, plain, samples, strict=True)):
            alone = np.nan if at[0] is None else _iou(untouched[at], sample)
            rows.append((*at, image, alone, _iou(own[layer].mean(0), sample), _iou(own.mean((0, 1)), sample)))

    add((None, None), plain)
    for at in tqdm(list(np.ndindex(backbone.layers, backbone.heads)), unit="head", disable=not progress):
        with apply_edit(backbone, edit, at[0], heads=at[1]):
            maps = head_class_maps(backbone, samples, progress=False, **read)
        add((at[0], at[1]), maps)
    table = pd.DataFrame(rows, columns=["layer", "head", "image", "alone", "expert", "every"])
    return table.astype({"layer": "Int64", "head": "Int64"})


def _iou(maps: Tensor, sample: Sample) -> float:
    names = sample.class_names
    return metrics.miou(mean_confusion(maps, names, true_classes(sample.label_map, names, names), names)).item()


def ablation_effects(
    model: Any,
    clip: Clip,
    detector: SceneDetector,
    asked: Sequence[CompositionPrompt],
    heads: Sequence[LayerAndHead] | None = None,
    *,
    edit: HeadEdit | None = None,
    encoder: ImageEncoder | str | Path = DETECTOR,
    seed: int = 0,
    progress: bool = True,
    **sampling: Any,
) -> pd.DataFrame:
    """Generate the same pictures with one head ablated in all steps and branches, for each head, and judge them.

    Args:
        model: backbone, pipeline or name.
        clip: scores how a picture fits its prompt.
        detector: finds things.
        asked: one picture each.
        heads: pairs of layer and head; None for all.
        edit: what is done to a head; None for `ablate()`.
        encoder: for the likeness to the picture of the untouched model.
        seed: of the noise; a prompt's number is added to it.
        progress: show a progress bar.
        sampling: steps, guidance_scale and batch, see `Backbone.generate`.

    Returns:
        A row for each head and prompt: layer, head (both missing for the untouched model, the first rows), prompt (its
        number), category, correct (see `judge`), wrong, CLIP-T (CLIPScore) and likeness (cosine).

    Raises:
        InputError: a head out of range, or arguments of another kind.
    """
    backbone, edit = as_backbone(model), ablate() if edit is None else edit
    instance_of(clip, Clip, "clip", "load_clip(...)")
    instance_of(detector, SceneDetector, "detector", "load_detector()")
    asked = list_of(asked, CompositionPrompt, "asked", "generation.prompts(16)")
    judged_by, texts = as_encoder(encoder), clip.embed_texts([one.text for one in asked])
    wanted = list(np.ndindex(backbone.layers, backbone.heads)) if heads is None else list(heads)
    seeds = [as_int(seed, "seed", 0) + number for number in range(len(asked))]
    tables, untouched = [], None
    for at in tqdm([None, *wanted], unit="head", disable=not progress):
        with edit_heads(backbone, edit, [] if at is None else [at]):
            made = backbone.generate([one.text for one in asked], seed=seeds, progress=False, **sampling)
        vectors = judged_by.embed(made)
        untouched = vectors if untouched is None else untouched
        scores = {
            "layer": pd.array([None if at is None else at[0]] * len(asked), dtype="Int64"),
            "head": pd.array([None if at is None else at[1]] * len(asked), dtype="Int64"),
            "prompt": range(len(asked)),
            **judge(detector, made, asked)[["category", "correct", "wrong"]].to_dict("list"),
            "CLIP-T": clip_scores(clip.embed_images(made), texts),
            "likeness": (vectors * untouched).sum(-1),
        }
        tables.append(pd.DataFrame(scores))
    return pd.concat(tables, ignore_index=True)


def patch_effects(
    model: Any,
    detector: SceneDetector,
    pairs: Sequence[WordPair],
    sets: Mapping[str, Sequence[LayerAndHead]],
    *,
    seed: int = 0,
    batch: int = 8,
    progress: bool = True,
    **sampling: Any,
) -> tuple[pd.DataFrame, dict[str, list[Image]]]:
    """Generate pictures of the first prompts with heads patched from runs of the second ones, in all steps.

    Both runs start from the same noise; outputs of the prompt's branch are patched.

    Args:
        model: backbone, pipeline or name.
        detector: finds things.
        pairs: from `word_pairs`.
        sets: pairs of layer and head by name; an empty set leaves the first prompt's picture as it is.
        seed: of the noise; a pair's number is added to it.
        batch: pairs at once; their outputs of all steps are held meanwhile.
        progress: show a progress bar.
        sampling: steps and guidance_scale, see `Backbone.generate`.

    Returns:
        A row for each set and pair: set, pair (its number), kind, first and second (whether the picture is right for
        that prompt); and the pictures of each set, those of the second prompts under "second".

    Raises:
        InputError: a set that is none, or arguments of another kind.
    """
    backbone, pairs = as_backbone(model), list_of(pairs, WordPair, "pairs", "word_pairs()")
    instance_of(detector, SceneDetector, "detector", "load_detector()")
    if not isinstance(sets, Mapping) or "second" in sets:
        raise InputError(
            f"expected sets of heads by name, none called 'second', got {sets!r}: pass sets={{'top': [(4, 0)]}}"
        )
    batch, seed = as_int(batch, "batch", 1), as_int(seed, "seed", 0)
    pictures: dict[str, list[Image]] = {name: [] for name in ("second", *sets)}
    for start in tqdm(range(0, len(pairs), batch), unit="batch", disable=not progress):
        part = pairs[start : start + batch]
        seeds = [seed + start + number for number in range(len(part))]
        with record_outputs(backbone, branches="cond") as outputs:
            texts = [pair.second.text for pair in part]
            pictures["second"] += backbone.generate(texts, seed=seeds, progress=False, **sampling)
        texts = [pair.first.text for pair in part]
        for name, heads in sets.items():
            with edit_heads(backbone, patch(outputs), heads):
                pictures[name] += backbone.generate(texts, seed=seeds, progress=False, **sampling)
    rows = []
    for name, made in pictures.items():
        for number, (pair, scene) in enumerate(zip(pairs, detector.detect(made), strict=True)):
            rows.append((name, number, pair.kind, not fault(pair.first, scene), not fault(pair.second, scene)))
    return pd.DataFrame(rows, columns=["set", "pair", "kind", "first", "second"]), pictures
