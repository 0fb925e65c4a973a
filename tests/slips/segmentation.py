"""Slips with segmentation: `segment`, `group`, their options and results."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from seg4diff_tools import evaluation, segmentation
from seg4diff_tools.datasets import LabeledImage
from seg4diff_tools.segmentation import OpenVocabulary, Unsupervised, attribution, concepts

# untyped, as slips are wrong types
open_segmentation: Any = segmentation.open_segmentation
segment: Any = segmentation.segment
group: Any = segmentation.group
grouping_scores: Any = evaluation.grouping_scores
cosine: Any = attribution.cosine
concept: Any = concepts.concept
concept_in_prompt: Any = concepts.concept_in_prompt
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
    ("memory", lambda b: segment(b, IMAGE, NAMES, LAYER, memory_budget=0), "memory_budget 1 or more, got 0"),
    (
        "memory-small",
        lambda b: segment(b, IMAGE, NAMES, TILES, memory_budget=9),
        "9 bytes.*: pass fewer tiles, .* or",
    ),
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
    (
        "variant-in",
        _segment(method=partial(concept_in_prompt, variant="sd4")),
        "variant, one of 'sd3'.*got 'sd4': pass",
    ),
    ("concept-prompt", _segment(method=partial(concept, prompt=None)), "prompt, a str, got None: pass prompt=''"),
    ("concept-stop", _segment(method="concept", stop_words=["the"]), "stop_words with a prompt that names the classes"),
    (
        "concept-variant-stop",
        _segment(method=partial(concept, variant="apart"), stop_words=["the"]),
        "stop_words with a prompt that names the classes",
    ),
    ("stop-text", _segment(layers=1, stop_words="the"), "stop_words as a list of names, got 'the'"),
    ("stop-class", _segment(layers=1, stop_words=["cat"]), "stop_words that are no class, got 'cat'"),
    ("stop-cut", _segment(layers=1, stop_words=["the"], cut_prompt=True), "stop_words with whole prompts"),
    ("blur-even", lambda b: masks.blur(torch.zeros(3, 5, 5), 4), "kernel, an odd number .*got 4: pass"),
    ("blur-small", lambda b: masks.blur(torch.zeros(3, 2, 5)), "kernel, an odd number for maps of 2 x 5 values, got 5"),
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
    *(
        (
            f"{name}-{value!r}",
            _segment(**{name: value}),
            f"{name}, {kind}.*got {re.escape(repr(value))}: pass .*{name}=",
        )
        for names, kind, values in (
            (("steps", "tiles", "classes_per_prompt", "zero_tokens"), "a whole number", ("2", 2.5, True, [2], NAN)),
            (("minmax", "merge_scaled", "prompt_sets", "cut_prompt"), "one of False, True", (None, 1, "no", [])),
            (("direction", "normalize", "upsampling", "fit"), "one of '", (None, 3, True)),
            (("second_pass", "background"), "a number from 0", (-0.5, NAN, True)),
        )
        for name in names
        for value in values
        if (name, value) != ("background", None)
    ),
    *(
        (
            f"{name}-pads-{value!r}",
            _group(**{name: value}),
            f"{name}, {kind}.*got {re.escape(repr(value))}: pass .*{name}=",
        )
        for names, kind, values in (
            (("steps", "rounds", "zero_tokens"), "a whole number", ("2", 2.5, True, None)),
            (("merging", "matching", "fit"), "one of '", (None, 3, "")),
            (("threshold",), "a number from 0", (NAN, "low", None, True)),
        )
        for name in names
        for value in values
    ),
    *(
        (f"{name}-none", call(**{name: None}), f"{name}, a whole number.*got None: pass {name}=")
        for call in (_segment, _group)
        for name in ("steps_from_end", "seeds")
    ),
    ("steps-many", _segment(steps=10**6), "steps from 1 to 1000, got 1000000: choose"),
    ("tiles-many", _segment(tiles=100), "tiles from 1 to 16, got 100: choose"),
    ("tiles-none", _segment(tiles=None), "tiles, a whole number .*got None: pass tiles=1"),
    ("seed-negative", _segment(seeds=-1), "seeds from 0 .*got -1: choose"),
    ("seed-huge", _segment(seeds=1 << 64), "seeds from 0 .*got 18446744073709551616: choose"),
    ("heads-array", _segment(heads=np.arange(4)), "heads from 0 to 2, got 3"),
    ("heads-twice", _segment(heads=[1, 1]), "heads, at least one and each one once"),
    ("heads-none", _segment(heads=None), "heads, a whole number .*got None: pass heads=0"),
    ("size-three", _segment(size=(8, 8, 8)), r"size, a whole number .*got \(8, 8, 8\): pass size=1"),
    ("size-zero", _segment(size=(0, 8)), "size 1 or more, got 0"),
    ("synonyms-none", _segment(synonyms=None), "synonyms as a dict .*got None: pass a dict"),
    ("synonyms-key", _segment(synonyms={3: ("dog",)}), "class names in synonyms .*got 3 in it: pass"),
    ("synonyms-word", _segment(synonyms={"cat": (3,)}), r"synonyms\['cat'\] as a list of names, got 3 in it: pass"),
    ("synonyms-twice", _segment(synonyms={"cat": ("a", "a")}), r"synonyms\['cat'\], each one once, got \['a'\]"),
    ("background-none", _segment(background=None), "background as a list of names, got None: pass background="),
    ("background-empty", _segment(background=[]), "background, at least one name, got none: pass background="),
    ("background-infinite", _segment(background=float("inf")), "background, a number from 0, got inf: pass"),
    ("method-builtin", _segment(method=len), "method, a name or a function of .*no Python function.*: pass one"),
    ("method-class", _segment(method=int), "method, a name or a function of .*no Python function.*: pass one"),
    ("method-arguments", _segment(method=lambda backbone: None), "method, a name or a function .*too many pos.*: pass"),
    ("method-keyword", _segment(method=partial(attribution.refined, tims=1)), "method, a name .*incorrect.*: pass one"),
    (
        "method-result",
        _segment(method=lambda *a: 1),
        r"of method maps \[step class image\] .*got int: return such maps",
    ),
    (
        "method-shape",
        _segment(method=_transposed),
        r"of method maps .*\(1, 2, 49\), got shape \(1, 49, 2\): return such",
    ),
    ("times", _segment(method=partial(attribution.refined, times=-1)), "times 0 or more, got -1: choose"),
    (
        "times-half",
        _segment(method=partial(attribution.refined, times=0.5)),
        "times, a whole number .*got 0.5: pass times=",
    ),
    (
        "features",
        _segment(method=partial(cosine, image="vlaue")),
        "image, one of 'query', .*got 'vlaue': pass image='key'",
    ),
    ("features-text", _segment(method=partial(cosine, text=3)), "text, one of 'query', .*got 3: pass text='key'"),
    ("reference", _segment(method=partial(attribution.goca, reference=9)), "layers from 0 to 4, got 9"),
    ("kinds-none", _group(kinds=None), r"kinds as a list of names, got None: pass kinds=\['pad'\]"),
    ("kinds-empty", _group(kinds=()), r"kinds, at least one name, got none: pass kinds=\['pad'\]"),
    ("kinds-twice", _group(kinds=("pad", "pad")), r"kinds, each one once, got \['pad'\] given twice"),
    ("prompt-bytes", _group(prompt=b"a"), "prompt as text, got b'a': pass"),
    ("prompt-long", _group(prompt="cat " * 500), "cat cat"),
    ("group-layers", _group(layers=9), "layers from 0 to 4, got 9"),
    ("group-expert", _group(layers="expert"), "expert layer is known.*pass"),
    ("group-size", _group(size=3), "size in multiples of 8.*try"),
    ("group-image", lambda b: group(b, None, Unsupervised(layers=1)), "expected images .*got NoneType: pass"),
    ("group-empty", lambda b: group(b, []), "images, at least one, got an empty list: pass"),
    ("group-model", lambda b: group(3, IMAGE), "a model .*got int: pass"),
    ("image-nan", lambda b: segment(b, torch.full((3, 8, 8), NAN), NAMES, LAYER), "tensor values from 0 to 1, got nan"),
    ("image-void", lambda b: segment(b, torch.zeros(3, 0, 8), NAMES, LAYER), r"a float tensor .*of shape \(3, 0, 8\)"),
    ("image-floats", lambda b: segment(b, np.zeros((4, 4, 3)), NAMES, LAYER), "a uint8 array .*got float64"),
    ("image-text", lambda b: segment(b, __file__, NAMES, LAYER), "is not an image that PIL can read"),
    (
        "image-batch",
        lambda b: segment(b, IMAGE[None], NAMES, LAYER),
        "several images as a list, got one ndarray: pass list",
    ),
    ("images-none", lambda b: segment(b, [None], NAMES, LAYER), "expected images, one or a list, got NoneType: pass"),
    ("folder-without", lambda b: segment(b, "tests/slips", NAMES, LAYER), "images in tests/slips, got no .*: check"),
    ("classes-dict", lambda b: segment(b, IMAGE, {"cat": 1}), r"class_names as a list of names, got {'cat': 1}: pass"),
    (
        "latents-count",
        lambda b: segment(b, IMAGE, NAMES, LAYER, latents=torch.zeros(2, 16, 14, 14)),
        "latents of 1 images",
    ),
    (
        "latents-tiles",
        lambda b: segment(b, IMAGE, NAMES, TILES, latents=torch.zeros(1, 16, 14, 14)),
        "tiles=1, got 1 with",
    ),
    (
        "latents-text",
        lambda b: segment(b, IMAGE, NAMES, LAYER, latents="x"),
        "latents .*got str: pass what encode_image",
    ),
    (
        "latents-shape",
        lambda b: segment(b, IMAGE, NAMES, LAYER, latents=torch.zeros(1, 3, 14, 14)),
        "latents .*got shape",
    ),
    ("minmax-array", lambda b: masks.minmax(MAPS.numpy()), r"maps as a float tensor \[y x\], .*got ndarray: pass such"),
    (
        "minmax-axis",
        lambda b: masks.minmax(MAPS[0, 0]),
        r"maps as a float tensor \[y x\], .*of shape \(5,\): pass such",
    ),
    (
        "upsample-integers",
        lambda b: masks.upsample(MAPS.long(), (8, 8)),
        "maps as a float tensor .*torch.int64.*: pass",
    ),
    ("upsample-size", lambda b: masks.upsample(MAPS, (8, 8, 8)), r"size, .*got \(8, 8, 8\): pass size=512"),
    ("upsample-half", lambda b: masks.upsample(MAPS, (2.5, 3)), "size, a whole number .*got 2.5: pass size=1"),
    ("upsample-text", lambda b: masks.upsample(MAPS, "ab"), "size, a whole number .*got 'ab': pass size=1"),
    (
        "labels-none",
        lambda b: masks.label_map(None),
        r"maps as a float tensor \[class y x\], .*got NoneType: pass such",
    ),
    ("labels-classes", lambda b: masks.label_map(MAPS[:0]), r"none of them empty, got .*\(0, 4, 5\): pass such maps"),
    ("labels-nan", lambda b: masks.label_map(MAPS * NAN), "class maps without NaN, got some: run the model in float32"),
    ("merge-nan", lambda b: masks.merge_maps(MAPS * NAN), "maps without NaN, got some: run the model in float32"),
    (
        "merge-threshold",
        lambda b: masks.merge_maps(MAPS, NAN),
        "threshold, a number from 0, got nan: pass .*threshold=",
    ),
    ("merge-rounds", lambda b: masks.merge_maps(MAPS, rounds=0), "rounds 1 or more, got 0: choose"),
    (
        "merge-way",
        lambda b: masks.merge_maps(MAPS, merging=None),
        "merging, one of 'published', .*got None: pass merging=",
    ),
    ("save-none", partial(_saved, path=None), "path as text or a Path, got None: pass path="),
    ("save-folder", partial(_saved, path="tests"), "path ending in .nc, got 'tests': pass path='tests.nc'"),
    ("save-in-file", partial(_saved, path=f"{__file__}/cat.nc"), "to write .*cat.nc, got an error .*: earlier files"),
    ("open-none", lambda b: open_segmentation(None), "path as text or a Path, got None: pass path="),
    (
        "open-folder",
        lambda b: segmentation.Segmentation.open("tests"),
        "segmentation, got tests, .*no file: pass the path",
    ),
    ("plot-truth", partial(_plotted, truth=np.zeros((3, 3), int)), r"a label map of the image's size .*got \(3, 3\)"),
    ("plot-floats", partial(_plotted, truth=np.zeros((56, 56))), r"a label map of integers \[y x\], got float64"),
    ("scores-frame", _scores(frame="file"), "frame, one of 'image', 'released', got 'file'"),
    ("scores-frame-fit", _scores(frame="released", options=Unsupervised(fit="crop")), "fit='resize' and size=None"),
    (
        "scores-options",
        _scores(options=OpenVocabulary()),
        "options, an Unsupervised, got .*: pass options such as Unsupervised",
    ),
    ("scores-layers", _scores(layers=7), "layers from 0 to 4, got 7"),
    ("scores-thresholds", _scores(thresholds=["low"]), "thresholds, a number from 0, got 'low': pass"),
    ("scores-text", _scores(thresholds="low"), "thresholds, a number from 0, got 'l': pass"),
    ("scores-no-threshold", _scores(thresholds=[]), "at least one threshold and sample, got 0 and 1: pass thresholds"),
    ("scores-no-sample", _scores(samples=[]), "at least one threshold and sample, got 1 and 0: pass"),
    ("scores-absent", _scores(absent="no"), "absent, one of 'skip', 'zero', got 'no': pass"),
    ("scores-model", _scores(model=3), "a model .*got int: pass"),
    ("save-suffix", partial(_saved, path="cat.png"), r"path ending in .nc, got 'cat.png': pass path='cat.nc'"),
]
