"""Slips with segmentation: `segment`, `group`, their options and results."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from seg4diff_tools import evaluation, segmentation
from seg4diff_tools.datasets import LabeledImage
from seg4diff_tools.segmentation import OpenVocabulary, Unsupervised, attribution

# untyped, as slips are wrong types
open_segmentation: Any = segmentation.open_segmentation
segment: Any = segmentation.segment
group: Any = segmentation.group
grouping_scores: Any = evaluation.grouping_scores
concept: Any = attribution.concept
cosine: Any = attribution.cosine
masks: Any = segmentation.masks
IMAGE = np.zeros((56, 56, 3), np.uint8)
NAMES = ["cat", "grass"]
LAYER, TILES = OpenVocabulary(layers=1), OpenVocabulary(layers=1, tiles=2)
MAPS = torch.linspace(0, 1, 60).reshape(3, 4, 5)
NAN = float("nan")


def _segment(**options: Any) -> Callable[[Any], Any]:
    return lambda backbone: segment(backbone, IMAGE, NAMES, OpenVocabulary(**{"layers": 1} | options))


def _group(**options: Any) -> Callable[[Any], Any]:
    return lambda backbone: group(backbone, IMAGE, Unsupervised(**{"layers": 1} | options))


def _scores(**arguments: Any) -> Callable[[Any], Any]:
    usual = {"samples": [LabeledImage(IMAGE, ("cat",), np.zeros((56, 56), int))], "thresholds": [0.1], "layers": 1}
    return lambda backbone: grouping_scores(**{"model": backbone} | usual | arguments)


def _transposed(backbone: Any, noisy: Any, timestep: Any, prompts: Any, layers: Any) -> Any:
    return attribution.cosine(backbone, noisy, timestep, prompts, layers).mT


def _plotted(backbone: Any, truth: Any) -> Any:
    return segment(backbone, IMAGE, NAMES, LAYER).plot(truth)


def _saved(backbone: Any, path: str) -> Any:
    return segment(backbone, IMAGE, NAMES, OpenVocabulary(layers=1)).save(path)


SLIPS: list[tuple[str, Callable[[Any], Any], str]] = [
    ("model-none", lambda b: segment(None, IMAGE, NAMES), "expected a model.*got NoneType: pass"),
    (
        "model-transformer",
        lambda b: segment(b.transformer, IMAGE, NAMES),
        "expected a model.*got SD3Transformer2DModel",
    ),
    ("model-typo", lambda b: segment("minni", IMAGE, NAMES), "minni"),
    (
        "classes-text",
        lambda b: segment(b, IMAGE, "cat grass"),
        "class_names as a list .*got 'cat grass': pass",
    ),
    ("classes-none", lambda b: segment(b, IMAGE, None), "class_names as a list of names, got None"),
    ("classes-empty", lambda b: segment(b, IMAGE, []), "class_names, at least one name, got none: pass"),
    ("classes-numbers", lambda b: segment(b, IMAGE, [1, 2]), r"class_names.*got 1 in it: pass"),
    ("classes-twice", lambda b: segment(b, IMAGE, ["cat", "cat"]), "got .'cat'. given twice"),
    ("classes-blank", lambda b: segment(b, IMAGE, ["cat", " "], OpenVocabulary(layers=1)), "class"),
    ("image-missing", lambda b: segment(b, "nowhere.png", NAMES, OpenVocabulary(layers=1)), "no image file.*check"),
    ("image-number", lambda b: segment(b, 5, NAMES, OpenVocabulary(layers=1)), "image"),
    ("images-empty", lambda b: segment(b, [], NAMES), "images, at least one, got an empty list: pass"),
    ("images-empty-path", lambda b: segment(b, "", NAMES), "expected images as text or a Path, got ''"),
    ("options-layer", lambda b: segment(b, IMAGE, NAMES, 4), r"options, an OpenVocabulary, got 4: pass options"),
    ("options-dict", lambda b: segment(b, IMAGE, NAMES, {"layers": 4}), "options, an OpenVocabulary"),
    ("options-pads", lambda b: segment(b, IMAGE, NAMES, Unsupervised()), "options, an OpenVocabulary"),
    ("options-words", lambda b: group(b, IMAGE, OpenVocabulary()), "options, an Unsupervised"),
    (
        "latents",
        lambda b: segment(b, IMAGE, NAMES, OpenVocabulary(layers=1), latents=np.zeros((2, 1))),
        r"latents \[image 16 rows columns\], got ndarray: pass what encode_image returns",
    ),
    ("method-typo", _segment(method="deam"), r"method, one of 'layer', 'daam'.*got 'deam': pass"),
    ("method-none", _segment(method=None), "method, one of.*got None"),
    ("variant", _segment(method=partial(concept, variant="sd4")), "variant, one of 'sd3'.*got 'sd4': pass"),
    ("layers-above", _segment(layers=5), "layers? from 0 to 4.*5"),
    ("layers-numpy-above", _segment(layers=np.arange(6)), "layers? from 0 to 4"),
    ("layers-below", _segment(layers=-1), "layers 0 or more, got -1"),
    ("layers-text", _segment(layers="4"), "layers, one of 'expert', got '4': pass.*layers=4"),
    ("layers-float", _segment(layers=1.5), "layers, a whole number.*got 1.5"),
    ("layers-empty", _segment(layers=[]), "layers, at least one"),
    ("layers-twice", _segment(layers=[1, 1]), "layers.*each one once"),
    ("layers-unknown", _segment(layers="expert"), "expert layer is known.*pass"),
    ("heads-above", _segment(heads=3), "heads? from 0 to 2.*3"),
    ("heads-text", _segment(heads="first"), "heads, one of 'mean', got 'first': pass"),
    ("heads-of-goca", _segment(heads=1, method="goca"), "expected heads with method 'layer' or 'daam' alone"),
    ("step-zero", _segment(steps_from_end=0), "steps_from_end from 1 to 28, got 0"),
    ("step-above", _segment(steps_from_end=[8, 29]), "steps_from_end from 1 to 28, got 29"),
    ("steps-zero", _segment(steps=0), "steps from 1 to 1000, got 0"),
    ("seed-float", _segment(seeds=1.5), "seeds, a whole number.*got 1.5"),
    ("seeds-none", _segment(seeds=[]), "seeds, at least one"),
    ("direction", _segment(direction="i2i"), "direction, one of 'i2t', 't2i', got 'i2i': pass"),
    ("normalize", _segment(normalize="sigmoid"), "normalize, one of 'softmax', 'scores', got 'sigmoid'"),
    ("minmax", _segment(minmax="yes"), "minmax, one of False, True, got 'yes'"),
    ("fit", _segment(fit="stretch"), "fit, one of 'resize', 'crop', got 'stretch'"),
    ("size", _segment(size=50), "size in multiples of 8.*try"),
    ("size-text", _segment(size="large"), "size, a whole number.*got 'large'"),
    ("tiles-zero", _segment(tiles=0), "tiles from 1 to 16, got 0"),
    ("tiles-float", _segment(tiles=2.0), "tiles, a whole number.*got 2.0"),
    ("upsampling", _segment(upsampling="bicubic"), "upsampling, one of 'bilinear', 'guided'"),
    ("background-text", _segment(background="sky"), r"background, one of 'word', got 'sky': pass.*list of words"),
    ("background-negative", _segment(background=-1.0), "background, a number from 0, got -1.0"),
    ("background-nan", _segment(background=float("nan")), "background, a number"),
    ("background-zero", _segment(background=0.0), "background, a number above 0"),
    ("background-scores", _segment(background=2.0, normalize="scores"), "probabilities with a number for background"),
    ("background-cosine", _segment(background=2.0, method="cosine"), "probabilities with a number for background"),
    ("synonyms-text", _segment(synonyms={"cat": "kitten"}), r"synonyms\['cat'\] as a list.*got 'kitten': pass"),
    ("synonyms-empty", _segment(synonyms={"cat": ()}), r"synonyms\['cat'\], at least one name, got none: pass"),
    ("synonyms-list", _segment(synonyms=["cat"]), r"synonyms as a dict.*got \['cat'\]"),
    ("classes-per-prompt", _segment(classes_per_prompt=0), "classes_per_prompt 1 or more, got 0"),
    ("second-pass", _segment(second_pass=1), "second_pass, a share from 0 to less than 1, got 1"),
    ("zero-tokens", _segment(zero_tokens=600), "zero_tokens from 0 to 512, got 600"),
    ("threshold", _group(threshold=-0.1), "threshold, a number from 0, got -0.1"),
    ("merging", _group(merging="paper"), "merging, one of 'published', 'released', got 'paper'"),
    ("matching", _group(matching="columns"), "matching, one of 'image', 'rows', got 'columns'"),
    ("kinds-text", _group(kinds="pad"), r"kinds as a list.*got 'pad'"),
    ("kinds-typo", _group(kinds=["pads"]), "kinds, one of.*got 'pads'"),
    ("kinds-missing", _group(kinds=["word"]), "kinds of text tokens that the prompt '' has"),
    ("prompt", _group(prompt=None), "prompt as text, got None"),
    ("rounds", _group(rounds=0), "rounds 1 or more, got 0"),
    (
        "open-missing",
        lambda b: open_segmentation("nowhere.nc"),
        "segmentation, got nowhere.nc, .*no file: pass",
    ),
    ("open-other", lambda b: open_segmentation(__file__), "not a readable netCDF file.*: save it again"),
    ("save-suffix", partial(_saved, path="cat.png"), r"path ending in .nc, got 'cat.png': pass path='cat.nc'"),
]
