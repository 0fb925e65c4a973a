"""Sweep layers, steps, heads, directions and normalizations on a data set, from one forward for each image and step."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from diffusers import DiffusionPipeline
from jaxtyping import Float, Int
from torch import Tensor

from seg4diff_tools._runs import as_path
from seg4diff_tools.attention.exact import chunks
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checks import Head, check_heads, check_layers
from seg4diff_tools.backbones.loading import as_backbone
from seg4diff_tools.datasets import Sample, background_of
from seg4diff_tools.datasets.labels import true_classes
from seg4diff_tools.datasets.opened import OpenedSample
from seg4diff_tools.errors import InputError, as_names, instance_of, some_of
from seg4diff_tools.evaluation import metrics
from seg4diff_tools.evaluation.counts import ImageCounts
from seg4diff_tools.evaluation.evaluate import check_samples, encode_images
from seg4diff_tools.evaluation.results import SCORES, Evaluation
from seg4diff_tools.evaluation.runs import AXES, refuse_other_run, run_counts
from seg4diff_tools.indices import as_indices, as_int
from seg4diff_tools.segmentation import masks
from seg4diff_tools.segmentation.class_maps import Direction, read_class_maps
from seg4diff_tools.segmentation.engine import layer_list
from seg4diff_tools.segmentation.options import Indices, Layers, OpenVocabulary, option_settings
from seg4diff_tools.segmentation.workbench import Workbench, label_frame

NORMALIZATIONS = ("softmax", "softmax+minmax", "scores", "scores+minmax")
PIXELS_AT_ONCE = 1 << 22
"""Pixels of label maps to compute at once; more is no faster and needs more memory."""
USED = ("steps", "seeds", "merge_scaled", "classes_per_prompt", "cut_prompt", "zero_tokens", "reader", "fit", "size")
"""Fields of the options that a sweep reads."""

__all__ = ["NORMALIZATIONS", "SCORES", "layer_step_sweep"]


def layer_step_sweep(
    model: Backbone | DiffusionPipeline | str | Path,
    samples: Sequence[Sample],
    options: OpenVocabulary | None = None,
    *,
    layers: Layers = None,
    steps_from_end: Indices = (8,),
    heads: Literal["mean", "all"] | Head | Iterable[Head] = "mean",
    directions: Direction | Sequence[Direction] = "i2t",
    normalize: str | Sequence[str] = "softmax",
    vocabulary: Sequence[str] | None = None,
    out: str | Path | None = None,
    batch: int = 8,
    memory_budget: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Score open-vocabulary segmentation at many layers, steps and heads, from one forward for each image and step.

    Args:
        model: a backbone, a pipeline or a name.
        samples: images with label maps, such as `scenes.Scenes` or `datasets.folder`.
        options: shared by all rows: steps, seeds, merge_scaled, classes_per_prompt, cut_prompt, zero_tokens, reader,
            fit and size. Other fields keep their defaults; use `evaluate` for them.
        layers: 0-based; all by default.
        steps_from_end: noise levels; 8 (of 28 steps) is the paper's.
        heads: "mean" for the mean over heads, "all" for each head, or a list of "mean" and indices.
        directions: "i2t", "t2i" or both (Fig 16).
        normalize: any of "softmax", "softmax+minmax", "scores", "scores+minmax" (Table 5).
        vocabulary: class names of the prompt. None gives each image its own classes, as the paper's released evaluation
            does (protocol "present"); a list is used for each image (protocol "full").
        out: folder for the counts of each image. A killed run resumes from there, and more images may be appended; a
            folder of other settings, another model or other images is refused. With the same `memory_budget` the table
            is that of a run in one go; with None the free memory sets how many forwards run at once, and maps can
            differ by rounding, which moves a pixel only where two classes tie.
        batch: forwards at once (images times steps); a run in `out` keeps its own.
        memory_budget: bytes beside the weights, by an estimate; None for most of what is free. Where `batch` does not
            fit, fewer images and forwards run at once.
        progress: show a progress bar.

    Returns:
        An evaluation with one row for each setting; its `.table()` has the columns model, protocol, direction,
        normalize, layer, steps_from_end, head, mIoU with low and high, the other scores (0..1), images and skipped.
        `background` of the samples names the stuff classes: without it all classes are objects.

    Raises:
        InputError: no samples, a label map of another size than its image, a class outside the vocabulary, a layer,
            step or head out of range, unsupported options, an `out` folder of another run, or more memory than
            memory_budget even for one image.

    Source: Seg4Diff, arXiv 2509.18096, figures 8, 15, 16, 17 and table 5; scores as in appendix A.4.
    """
    check_samples(samples)
    options = OpenVocabulary() if options is None else options
    _check_options(options, steps_from_end)
    shared = {name: value for name, value in option_settings(options).items() if name in USED}
    steps = as_indices(steps_from_end, "steps_from_end", options.steps + 1, low=1)
    plan: dict[str, Any] = {
        "protocol": "present" if vocabulary is None else "full",
        "vocabulary": None if vocabulary is None else list(as_names(vocabulary, "vocabulary")),
        "directions": some_of(directions, "directions", get_args(Direction)),
        "normalize": some_of(normalize, "normalize", NORMALIZATIONS),
        "steps_from_end": steps,
        "options": shared,
        "batch": as_int(batch, "batch", 1),
    }
    folder = None if out is None else as_path(out, "out")
    refuse_other_run(folder, plan)
    backbone = as_backbone(model)
    wanted = None if layers is None else layer_list(replace(options, layers=layers))
    plan |= {"layers": check_layers(backbone, wanted), "heads": check_heads(backbone, heads)}
    work, at_once = Workbench(backbone, memory_budget), max(1, plan["batch"] // len(steps))
    if plan["vocabulary"] is not None:
        # refuse a vocabulary that no prompt can hold before any computation
        work.prompts(plan["vocabulary"], options)
    compute = partial(_counts, work, options, plan)
    shared = {"folder": folder, "at_once": at_once, "skip": False, "progress": progress, "kind": "sweep"}
    return run_counts(work, samples, compute, plan, range(len(samples)), **shared)


def _check_options(options: Any, steps_from_end: Any) -> None:
    instance_of(options, OpenVocabulary, "options", "options=OpenVocabulary(...), and layers=... by name")
    # a schedule of fewer than 8 steps also needs a step in the options
    usual = replace(OpenVocabulary(), steps=options.steps, steps_from_end=steps_from_end)
    usual = usual if options.steps_from_end == usual.steps_from_end else OpenVocabulary()
    others = [each.name for each in fields(OpenVocabulary) if each.name not in USED]
    if changed := [name for name in others if getattr(options, name) != getattr(usual, name)]:
        raise InputError(
            f"expected options of a sweep ({', '.join(USED)}), got {', '.join(changed)} too: pass layers, "
            "steps_from_end, heads, directions and normalize to the sweep itself, and compare other options by evaluate"
        )


def _counts(
    work: Workbench,
    options: OpenVocabulary,
    plan: dict[str, Any],
    group: Sequence[OpenedSample],
    tick: Callable[[float], Any],
) -> list[ImageCounts]:
    """Count the pixels of a group of images in every configuration."""
    work.forget()
    work.images += len(group)
    vocabulary = plan["vocabulary"]
    # an image without a class has no score and no prompt
    shown = [each for each in group if vocabulary or len(each.sample.class_names)]
    nothing = np.zeros((prod(len(plan[axis]) for axis in AXES.values()), 0, 0), np.int64)
    records = [
        ImageCounts(each.index, nothing, (), (), background_of(each.sample), each.fingerprint)
        for each in group
        if each not in shown
    ]
    if shown:
        together, rows = _at_once(work, options, plan, shown)
        for part in chunks(len(shown), together):
            records += _counts_of(work, options, plan | {"batch": rows}, shown[part], tick)
    return records


def _at_once(
    work: Workbench, options: OpenVocabulary, plan: dict[str, Any], group: Sequence[OpenedSample]
) -> tuple[int, int]:
    """Return how many images and rows of a forward fit into the memory at once."""
    names = max((plan["vocabulary"] or each.sample.class_names for each in group), key=len)
    prompts = work.prompts(list(names), options)
    places = work.places(options.size)
    row = 4 * places * len(_kinds(plan)) * len(plan["layers"]) * len(plan["heads"])
    # of all seeds together and of one; of a forward apart and together
    sizes = {"maps": 2 * row * len(plan["steps_from_end"]) * len(names)}
    sizes["row"] = 2 * row * max(len(prompt.classes) for prompt in prompts)
    ways = "fewer layers, heads, steps or class names"
    tokens = places + len(prompts[0].tokens)
    return work.at_once(len(group), plan["batch"], tokens=tokens, ways=ways, **sizes)


def _counts_of(
    work: Workbench,
    options: OpenVocabulary,
    plan: dict[str, Any],
    shown: Sequence[OpenedSample],
    tick: Callable[[float], Any],
) -> list[ImageCounts]:
    """Count the pixels of images that fit into the memory together."""
    vocabulary = plan["vocabulary"]
    records = []
    encode_images(work, shown, options, tick)
    latents = work.latents([each.picture for each in shown], options.fit, options.size)
    prompts = [work.prompts(list(vocabulary or each.sample.class_names), options) for each in shown]
    seeds = as_indices(options.seeds, "seeds")
    totals: list[Tensor] = []
    with work.timed("attention"):
        for seed in seeds:
            found = read_class_maps(
                work.backbone,
                latents,
                prompts,
                layers=plan["layers"],
                steps_from_end=plan["steps_from_end"],
                steps=options.steps,
                heads=plan["heads"],
                kinds=_kinds(plan),
                merge_scaled=options.merge_scaled,
                seed=seed,
                batch=plan["batch"],
                tick=lambda share: tick(0.4 * len(shown) * share / len(seeds)),
            )
            totals = [total.add_(maps) for total, maps in zip(totals, found, strict=True)] if totals else found
    for index, each in enumerate(shown):
        maps = totals[index] if len(seeds) == 1 else totals[index] / len(seeds)
        predicted = tuple(vocabulary or each.sample.class_names)
        true = tuple(name for name in predicted if name in each.sample.class_names)
        target = true_classes(each.sample.label_map, each.sample.class_names, predicted)
        height, width = target.shape
        left, top, right, bottom = label_frame(work.backbone, (height, width), options.fit, options.size)
        with work.timed("labels"):
            counts = _confusion(maps, target[top:bottom, left:right].to(maps.device), plan)
        rows = counts[:, [predicted.index(name) for name in true]]
        records.append(ImageCounts(each.index, rows, true, predicted, background_of(each.sample), each.fingerprint))
    return records


def _kinds(plan: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Return the maps to read: both rows of a min-max pair come from the same maps."""
    kinds = dict.fromkeys(variant.partition("+")[0] for variant in plan["normalize"])
    return list(product(plan["directions"], kinds))


def _confusion(
    maps: Float[Tensor, "kind step layer head class y x"], target: Int[Tensor, "height width"], plan: dict[str, Any]
) -> Int[np.ndarray, "configuration true predicted"]:
    """Count the pixels of one image, in the order direction, normalize, step, layer, head."""
    kinds, classes, parts = _kinds(plan), maps.shape[4], []
    for direction, variant in product(plan["directions"], plan["normalize"]):
        name, _, scaled = variant.partition("+")
        chosen = maps[kinds.index((direction, name))].flatten(0, 2)
        chosen = masks.minmax(chosen) if scaled else chosen
        for some in chosen.split(max(1, PIXELS_AT_ONCE // target.numel())):
            labels = masks.label_map(some, (target.shape[0], target.shape[1]))
            parts.append(metrics.confusion(labels, target, classes, ignore=-1).cpu().numpy())
    return np.concatenate(parts)
