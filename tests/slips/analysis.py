"""Slips with analysis: features, heads, searches and the effects of edits."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch

from seg4diff_tools import analysis as typed
from seg4diff_tools import generation
from seg4diff_tools.attention import ablate, edits
from seg4diff_tools.backbones.checkpoints import MINI
from seg4diff_tools.datasets import LabeledImage
from seg4diff_tools.generation import load_clip
from seg4diff_tools.scenes import Scenes

# untyped, as slips are wrong types
analysis: Any = typed
SAMPLES = Scenes("test", 2)
LABELED = LabeledImage(np.zeros((56, 56, 3), np.uint8), ("cat", "grass"), np.zeros((56, 56), int))
UNNAMED = LabeledImage(np.zeros((56, 56, 3), np.uint8), (), np.full((56, 56), 255))
MAPS = [torch.zeros(5, 3, 2, 4, 4)] * 2
TABLE = pd.DataFrame({"layer": [1, 1], "prompt": [0, 1], "CLIP-T": [0.0, 2.0]})
PICTURE = np.zeros((56, 56, 3), np.uint8)
LATENTS = torch.zeros(2, 16, 12, 14)
clip = cache(lambda: load_clip(MINI))
detector = cache(generation.load_detector)


def _effects(backbone: Any, **changes: Any) -> Any:
    asked = {"clip": clip(), "prompts": ["a cat"], "edit": edits.blur(), "layers": 1, "steps": 1, "progress": False}
    return analysis.layer_effects(backbone, **asked | changes)


def _guided(backbone: Any, **changes: Any) -> Any:
    asked = {"clip": clip(), "prompts": ["a cat"], "edit": edits.blur(), "layers": 1, "scales": [1.0], "steps": 1}
    return analysis.guidance_effects(backbone, **asked | {"progress": False} | changes)


def _takers(**changes: Any) -> Callable[[Any], Any]:
    return lambda b: analysis.attention_takers(b, ["a cat"], **{"pictures": [PICTURE], "progress": False} | changes)


def _enter(context: Any) -> None:
    with context:
        pass


def _closed(backbone: Any, choose: Any) -> None:
    with analysis.close_keys(backbone, choose):
        backbone.predict_velocity(LATENTS, 500.0, "a cat")


def _seen(name: str, **changes: Any) -> Callable[[Any], Any]:
    """A call of `image_features` and its like, with latents and their prompts."""

    def call(backbone: Any) -> Any:
        given = {"latents": LATENTS, "prompts": backbone.encode_prompt(["a cat", "a dog"])} | changes
        return getattr(analysis, name)(backbone, **given)

    return call


def _heads(**changes: Any) -> Callable[[Any], Any]:
    asked = {"samples": [LABELED], "progress": False} | changes
    return lambda backbone: analysis.head_class_maps(backbone, **asked)


def _combined(**changes: Any) -> Callable[[Any], Any]:
    asked = {"samples": [LABELED], "progress": False} | changes
    return lambda backbone: analysis.choose_combination(backbone, **asked)


def _placing(backbone: Any, **changes: Any) -> Any:
    asked = {"detector": detector(), "prompts": generation.prompts(1)[:1], "settings": {"a": analysis.Placing(1.0)}}
    return analysis.placing_effects(backbone, **asked | {"steps": 1, "progress": False} | changes)


def _ablated(**changes: Any) -> Callable[[Any], Any]:
    asked = {"asked": generation.prompts(1)[:1], "heads": [(1, 1)], "steps": 1, "progress": False} | changes
    return lambda b: analysis.ablation_effects(b, **{"clip": clip(), "detector": detector()} | asked)


def _patched(**changes: Any) -> Callable[[Any], Any]:
    asked = {"pairs": analysis.word_pairs(1), "sets": {"one": [(1, 1)]}, "steps": 1, "progress": False} | changes
    return lambda b: analysis.patch_effects(b, **{"detector": detector()} | asked)


SLIPS: list[tuple[str, Callable[[Any], Any], str]] = [
    ("placing-text", lambda b: _placing(b, prompts=["a cat"]), "prompts as a list of CompositionPrompt"),
    ("placing-settings", lambda b: _placing(b, settings={"a": 2.0}), "settings, Placing by name"),
    ("placing-detector", lambda b: _placing(b, detector=clip()), "detector, a SceneDetector"),
    ("placing-strength", lambda b: analysis.Placing(-1.0), "strength, a number at least 0"),
    ("placing-lock", lambda b: analysis.Placing(lock=2.5), "lock, a whole number"),
    ("placing-places", lambda b: analysis.asked_places("a cat"), "prompt, a CompositionPrompt"),
    ("pairs-count", lambda b: analysis.word_pairs(0), "count_per_kind from 1 to 40, got 0"),
    ("pairs-many", lambda b: analysis.word_pairs(41), "count_per_kind from 1 to 40, got 41"),
    ("heads-edited-layer", lambda b: _enter(analysis.edit_heads(b, ablate(), [(9, 0)])), "layers from 0 to 4, got 9"),
    (
        "heads-edited-none",
        lambda b: _enter(analysis.edit_heads(b, ablate(), None)),
        "layer and head, got None",
    ),
    ("heads-edited-flat", lambda b: _enter(analysis.edit_heads(b, ablate(), [4, 0])), "pairs of layer and head, got 4"),
    ("carried-pairs", lambda b: analysis.carried_shares(b, ["a cat"]), "pairs as a list of WordPair"),
    (
        "carried-late",
        lambda b: analysis.carried_shares(b, analysis.word_pairs(1), steps_from_end=29),
        "steps_from_end from 1 to 28, got 29",
    ),
    ("segmented-samples", lambda b: analysis.ablated_segmentation(b, []), "samples"),
    ("segmented-layer", lambda b: analysis.ablated_segmentation(b, [LABELED], layer=9), "layer from 0 to 4, got 9"),
    ("ablated-prompts", _ablated(asked=["a cat"]), "asked as a list of CompositionPrompt"),
    ("ablated-clip", _ablated(clip=None), "clip, a Clip, got None"),
    ("ablated-head", _ablated(heads=[(1, 5)]), "heads from 0 to 2, got 5"),
    ("ablated-detector", _ablated(detector="mini"), "detector, a SceneDetector"),
    ("patched-sets", _patched(sets=[(1, 1)]), "sets of heads by name"),
    ("patched-name", _patched(sets={"second": []}), "none called 'second'"),
    ("patched-detector", _patched(detector=None), "detector, a SceneDetector"),
    ("effects-model", lambda b: _effects(None), "expected a model.*got NoneType: pass"),
    ("effects-clip", lambda b: _effects(b, clip="mini"), "clip, a Clip, got 'mini': pass load_clip"),
    (
        "effects-prompts",
        lambda b: _effects(b, prompts="a cat"),
        "prompts as a list of texts, got 'a cat': pass prompts=",
    ),
    (
        "effects-none",
        lambda b: _effects(b, prompts=[]),
        "prompts as a list of texts, at least one, got none: pass prompts=",
    ),
    ("effects-numbers", lambda b: _effects(b, prompts=[3]), "prompts as a list of texts, got 3 in it: pass prompts="),
    ("effects-edit", lambda b: _effects(b, edit="blur"), "edit, an Edit or a HeadEdit, got 'blur': pass blur"),
    (
        "effects-edit-function",
        lambda b: _effects(b, edit=edits.blur),
        "an Edit or a HeadEdit, got function: pass",
    ),
    ("effects-layer", lambda b: _effects(b, layers=9), "layers from 0 to 4, got 9: choose"),
    ("effects-layers-typo", lambda b: _effects(b, layers="dubble"), "layers as numbers, got 'dubble': pass layers="),
    ("effects-layers-kind", lambda b: _effects(b, layers="single"), "got 'single': pass layers=None"),
    ("effects-layers-twice", lambda b: _effects(b, layers=[1, 1]), "each one once, got .1, 1.: name each"),
    ("effects-encoder", lambda b: _effects(b, encoder=clip()), "encoder, an ImageEncoder, got Clip: pass"),
    ("effects-encoder-name", lambda b: _effects(b, encoder="dinov2"), "a DINO as an image encoder, got 'dinov2'"),
    ("effects-batch", lambda b: _effects(b, batch=0), "batch 1 or more, got 0: choose"),
    ("effects-steps", lambda b: _effects(b, steps=0), "steps 1 or more, got 0: choose"),
    ("guidance-scale", lambda b: _guided(b, scales=2.0), r"scales, one or a list, got 2.0: pass scales="),
    ("guidance-scales", lambda b: _guided(b, scales=[-1]), r"scales of 0 or more, got \[-1\]: pass scales="),
    ("guidance-words", lambda b: _guided(b, guidance_scales=["7"]), r"guidance_scales of 0 or more, got \['7'\]: pass"),
    ("guidance-layer", lambda b: _guided(b, layers=[5]), "layers from 0 to 4, got 5: choose"),
    ("guidance-clip", lambda b: _guided(b, clip=None), "clip, a Clip, got None: pass load_clip"),
    (
        "resampled-score",
        lambda b: analysis.resampled(TABLE, "clip-t"),
        "the columns prompt, clip-t, layer; got .*: name",
    ),
    (
        "resampled-by",
        lambda b: analysis.resampled(TABLE, "CLIP-T", "scale"),
        "the columns prompt, CLIP-T, scale; got .*: name",
    ),
    (
        "resampled-effects",
        lambda b: analysis.resampled(None, "CLIP-T"),
        "a table as a pandas.DataFrame, got NoneType: pass",
    ),
    ("resampled-draws", lambda b: analysis.resampled(TABLE, "CLIP-T", draws=0), "draws 1 or more, got 0: choose"),
    (
        "resampled-twice",
        lambda b: analysis.resampled(pd.concat([TABLE] * 2), "CLIP-T"),
        "one row for each .*: pass by=",
    ),
    (
        "features-strings",
        _seen("image_features", prompts=["a cat", "a dog"]),
        r"prompts as a list of Prompt, got .*: pass backbone\.encode_prompt",
    ),
    ("features-few", _seen("image_features", latents=LATENTS[:1]), "one prompt for each image, got 2 for 1 images"),
    (
        "features-image",
        _seen("image_features", latents=np.zeros((56, 56, 3))),
        "latents .*, got ndarray: pass",
    ),
    (
        "features-kinds",
        _seen("image_features", kinds="keys"),
        "kinds from query, key, value, .*got 'keys': pass",
    ),
    ("features-kind", _seen("image_features", kinds=["keys"]), r"kinds from query, .*got \['keys'\]: pass kinds="),
    ("features-discard", _seen("image_features", discard=[3]), "discard with the kind 'stream' or 'adaln', got kinds"),
    (
        "features-channel",
        _seen("image_features", kinds=["stream"], discard=[60]),
        "discard from 0 to 59, got 60",
    ),
    ("massive-flat", lambda b: analysis.massive_channels(np.zeros(3)), r"features \[token channel\], got \(3,\)"),
    ("massive-factor", lambda b: analysis.massive_channels(np.zeros((3, 4)), 0), "factor, a number above 0"),
    (
        "neighbor-one",
        lambda b: analysis.neighbor_agreement(np.zeros((1, 2, 2, 5)), np.zeros((1, 2, 2), int)),
        "two images or more",
    ),
    (
        "neighbor-classes",
        lambda b: analysis.neighbor_agreement(np.zeros((2, 2, 2, 5)), np.zeros((2, 4), int)),
        r"classes \[image y x\], got .*\(2, 4\)",
    ),
    ("features-layers", _seen("image_features", layers=[7]), "layers from 0 to 4, got 7: choose"),
    ("features-steps", _seen("image_features", steps_from_end=[8]), "steps_from_end, a whole number 1 or more, got"),
    ("features-late", _seen("image_features", steps_from_end=40), "steps_from_end from 1 to 28, got 40: choose"),
    (
        "norms-prompt",
        _seen("value_norms", prompts="a cat"),
        r"prompts as a list of Prompt, got .*: pass backbone\.encode_prompt",
    ),
    ("norms-batch", _seen("value_norms", batch=0), "batch 1 or more, got 0: choose"),
    ("norms-model", lambda b: analysis.value_norms(b.transformer, LATENTS, []), "a model.*got SD3Transformer2DModel"),
    ("budget-steps", _seen("attention_budget", steps_from_end="all"), "steps_from_end as numbers, got 'all': pass"),
    ("budget-late", _seen("attention_budget", steps_from_end=29), "steps_from_end from 1 to 28, got 29: choose"),
    ("budget-none", _seen("attention_budget", latents=LATENTS[:0], prompts=[]), "expected latents .*: pass what"),
    (
        "takers-prompts",
        lambda b: analysis.attention_takers(b, "a cat"),
        "a list of texts, got 'a cat': pass",
    ),
    ("takers-late", _takers(steps_from_end=29), "steps_from_end from 1 to 28, got 29: choose"),
    ("takers-few", _takers(pictures=[PICTURE] * 2), "one prompt for each image, got 1 for 2 images: pass as many"),
    ("takers-sink", _takers(sink=0.5), "sink, a number from 1, got 0.5: pass"),
    ("takers-model", lambda b: analysis.attention_takers(b.transformer, ["a cat"]), "a model.*SD3Transformer2DModel"),
    (
        "close-choice",
        lambda b: _enter(analysis.close_keys(b, "pad")),
        "choose, a function .*, got 'pad': pass",
    ),
    ("close-layers", lambda b: _enter(analysis.close_keys(b, analysis.top_keys(), 9)), "layers from 0 to 4, got 9"),
    (
        "close-shape",
        lambda b: _closed(b, lambda call: torch.zeros(1, 3)),
        "booleans .*, got torch.float32",
    ),
    ("close-many", lambda b: _closed(b, analysis.top_keys(10_000)), "count from 1 to .*, got 10000"),
    ("top-count", lambda b: analysis.top_keys(0), "count 1 or more, got 0: choose"),
    ("random-seed", lambda b: analysis.random_keys(seed=-1), "seed 0 or more, got -1: choose"),
    (
        "leak-alone",
        lambda b: analysis.leakage(b, [UNNAMED], 1),
        "that show two classes, got none among 1",
    ),
    ("leak-layer", lambda b: analysis.leakage(b, SAMPLES, 7), "layers from 0 to 4, got 7: choose"),
    ("leak-steps", lambda b: analysis.leakage(b, SAMPLES, steps_from_end=[8]), "steps_from_end, a whole number"),
    ("means-column", lambda b: analysis.mean_intervals(TABLE, "leak"), "a table with rows and the columns .*leak"),
    ("means-draws", lambda b: analysis.mean_intervals(TABLE, "CLIP-T", draws=0), "draws 1 or more, got 0: choose"),
    ("colors-token", lambda b: analysis.pca_colors(np.zeros((5, 8))), r"\[image y x channel\].*, got \(5, 8\): take"),
    ("colors-two", lambda b: analysis.pca_colors(np.zeros((1, 4, 4, 2))), "3 channels or more, got .*: take one layer"),
    ("variance-shape", lambda b: analysis.explained_variance(np.zeros((2, 3, 4)), [0, 1]), "features .token channel."),
    (
        "variance-many",
        lambda b: analysis.explained_variance(np.eye(3), [0, 1, 2]),
        "groups than tokens; .*: pass",
    ),
    ("labels-float", lambda b: analysis.token_labels(np.zeros((4, 4)), (2, 2)), "label map of integers .*: pass"),
    ("labels-negative", lambda b: analysis.token_labels(np.full((4, 4), -1), (2, 2)), "label_map with classes of 0"),
    ("labels-grid", lambda b: analysis.token_labels(np.zeros((4, 4), int), (2, 2, 2)), r"got \(2, 2, 2\): pass"),
    ("heads-samples", _heads(samples=LABELED), "expected samples, a list .*, got a LabeledImage: pass"),
    ("heads-none", _heads(samples=[]), "at least one sample, got 0 samples: pass"),
    ("heads-layers", _heads(layers=5), "layers from 0 to 4, got 5: choose"),
    ("heads-steps", _heads(steps_from_end=[8]), "steps_from_end, a whole number 1 or more, got"),
    ("heads-unnamed", _heads(samples=[UNNAMED]), "class"),
    ("heads-images", _heads(samples=[LABELED.image]), "samples with image, label_map and class_names, got a ndarray"),
    ("parts-samples", lambda b: analysis.part_scores(MAPS, [LABELED] * 2), "scenes with masks of their things.*: pass"),
    ("parts-few", lambda b: analysis.part_scores(MAPS[:1], SAMPLES), "as many scenes as maps, got 2 for 1: pass one"),
    ("parts-maps", lambda b: analysis.part_scores(MAPS[0], SAMPLES), "maps, a list of .layer head class y x.*: pass"),
    ("parts-least", lambda b: analysis.part_scores(MAPS, SAMPLES, 0), "least 1 or more, got 0: choose"),
    ("choose-empty", lambda b: analysis.choose_heads([], []), "expected maps, a list of .*: pass those of head_class"),
    ("choose-labels", lambda b: analysis.choose_heads(MAPS, None), "as many labels as maps, got NoneType for 2: pass"),
    (
        "choose-pixels",
        lambda b: analysis.choose_heads(MAPS, [torch.zeros(56, 56).long()] * 2),
        "labels of image tokens",
    ),
    (
        "choose-count",
        lambda b: analysis.choose_heads(MAPS, [torch.zeros(4, 4).long()] * 2, 0),
        "count 1 or more, got 0",
    ),
    ("folds-few", lambda b: analysis.cross_validated(MAPS, SAMPLES, 1, folds=3), "from 2 to 2 folds .*, got 3: choose"),
    ("folds-layer", lambda b: analysis.cross_validated(MAPS, SAMPLES, 5), "layer from 0 to 4, got 5: choose"),
    ("folds-maps", lambda b: analysis.cross_validated(MAPS[:1], SAMPLES, 1), "as many samples as maps, got 2 for 1"),
    ("combination-text", _combined(samples="scenes"), "expected samples, a list .*, got a str: pass"),
    ("combination-unnamed", _combined(samples=[UNNAMED]), "samples that show a class, got none among 1: pass"),
    ("combination-layers", _combined(layers=[0, 8]), "layers from 0 to 4, got 8: choose"),
    ("combination-steps", _combined(steps_from_end=()), "steps_from_end, at least one"),
    ("combination-late", _combined(steps_from_end=30), "steps_from_end from 1 to 28, got 30: choose"),
]
