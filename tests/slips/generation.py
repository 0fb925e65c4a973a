"""Slips around generated pictures and their judges."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch

from seg4diff_tools import generation as typed
from seg4diff_tools.backbones.checkpoints import MINI

# untyped, as slips are wrong types
generation: Any = typed
ONES = torch.ones(2, 3)
PICTURE = np.zeros((28, 28, 3), np.uint8)


PROMPTS = generation.prompts(1)
clip, detector = cache(lambda: generation.load_clip(MINI)), cache(generation.load_detector)


def _pictures(**changes: Any) -> Callable[[Any], Any]:
    asked = {"prompts": PROMPTS[:1], "steps": 1, "progress": False} | changes
    return lambda backbone: generation.generate_pictures(**{"backbone": backbone} | asked)


def _scored(**changes: Any) -> Callable[[Any], Any]:
    asked = {"detector": detector(), "prompts": PROMPTS[:1], "steps": 1, "progress": False} | changes
    return lambda backbone: generation.composition_scores(backbone, **asked)


def _table() -> Any:
    return generation.judge(detector(), [PICTURE], PROMPTS[:1])


def _bench(**changes: Any) -> Callable[[Any], Any]:
    return lambda backbone: bench(backbone, **changes)


def bench(backbone: Any, **changes: Any) -> Any:
    return generation.generate_benchmark(
        backbone, **{"layout": "geneval", "prompts": "nowhere.jsonl", "out": "nowhere", **changes}
    )


SLIPS: list[tuple[str, Callable[[Any], Any], str]] = [
    ("layout", lambda b: bench(b, layout="gen-eval"), "layout, one of 'geneval', .*got 'gen-eval': pass layout="),
    ("prompts", bench, "a text file of prompts, got nowhere.jsonl, no such file: check the path"),
    (
        "prompts-list",
        lambda b: bench(b, prompts=["a cat"]),
        r"prompts as text or a Path, got \['a cat'\]: pass prompts=",
    ),
    ("out", lambda b: bench(b, out=None), "out as text or a Path, got None: pass out="),
    (
        "detector",
        lambda b: generation.load_detector("nowhere"),
        "the folder of a scene detector, got nowhere .*: check",
    ),
    ("scores", lambda b: generation.clip_scores(ONES, ONES[:1]), "one text for each image, got 1 for 2 images: pass"),
    (
        "encoder",
        lambda b: generation.image_similarity(PICTURE, PICTURE, 5),
        "encoder, an ImageEncoder, got 5: pass encoder='facebook",
    ),
    ("encoder-name", lambda b: generation.load_image_encoder(5), "name as text or a Path, got 5: pass name="),
    (
        "encoder-hub",
        lambda b: generation.image_similarity(PICTURE, PICTURE, "dinov2-bass"),
        "a DINO as an image encoder, got 'dinov2-bass' .*: download",
    ),
    (
        "encoder-pictures",
        lambda b: generation.image_similarity(PICTURE, [PICTURE, PICTURE], "scene detector"),
        "a picture after for each before, got 2 for 1: pass as many",
    ),
    ("b-layout-n", _bench(layout=None), "layout, one of 'geneval', 't2i-compbench', got None: pass layout='geneval'"),
    (
        "b-layout-l",
        _bench(layout=["geneval"]),
        r"layout, one of 'geneval', 't2i-compbench', got \['geneval'\]: pass layout='geneval'",
    ),
    ("b-t2i", _bench(layout="t2i-compbench", prompts="nowhere.txt"), "a text file of prompts, got .*: check the"),
    ("lc-none", lambda b: generation.load_clip(None), "name as text or a Path, got None: pass name='folder/file'"),
    (
        "lc-folder",
        lambda b: generation.load_clip("tests"),
        r"a model folder with clip/config\.json, got tests: make it",
    ),
    ("lc-device", lambda b: generation.load_clip(MINI, "cud"), "device of this machine, got 'cud': pass device='cpu'"),
    ("lc-device-n", lambda b: generation.load_clip(MINI, 3.5), r"device of this machine, got 3\.5: pass device='cpu'"),
    (
        "lc-backbone",
        generation.load_clip,
        r"name as text or a Path, got Backbone.*: pass name='folder/file'",
    ),
    ("cl-img", lambda b: clip().embed_images(3), "images, one or a list, got int: pass a"),
    (
        "cl-img-e",
        lambda b: clip().embed_images([]),
        r"at least one image, got an empty list: pass images=\['photo\.jpg'\]",
    ),
    ("cl-text", lambda b: clip().embed_texts("a cat"), r"texts as a list of captions, got 'a cat': pass texts=\['a"),
    ("cl-text-n", lambda b: clip().embed_texts([3]), r"texts as a list of captions, got 3 in it: pass texts=\['a"),
    (
        "cl-text-e",
        lambda b: clip().embed_texts([]),
        r"texts as a list of captions, at least one, got none: pass texts=\['a",
    ),
    ("cl-text-i", lambda b: clip().embed_texts(3), r"texts as a list of captions, got 3: pass texts=\['a"),
    ("cl-text-none", lambda b: clip().embed_texts(None), r"texts as a list of captions, got None: pass texts=\['a"),
    (
        "cs-np",
        lambda b: generation.clip_scores(ONES.numpy(), ONES.numpy()),
        r"images, a Float\[Tensor, '_ _'\], got ndarray of float32.*: pass what",
    ),
    (
        "cs-list",
        lambda b: generation.clip_scores(["a"], ["b"]),
        r"images, a Float\[Tensor, '_ _'\], got \['a'\]: pass what",
    ),
    (
        "cs-dim",
        lambda b: generation.clip_scores(ONES, torch.ones(2, 4)),
        "images and texts embedded by one Clip, got vectors of 3 and 4.*: embed both",
    ),
    (
        "cs-1d",
        lambda b: generation.clip_scores(ONES[0], ONES[0]),
        r"images, a Float\[Tensor, '_ _'\], got Tensor of.*: pass what",
    ),
    (
        "cs-img",
        lambda b: generation.clip_scores([PICTURE], ["a cat"]),
        r"images, a Float\[Tensor, '_ _'\], got \[array\(\[\[\[0, 0\.\.\.,.*: pass what",
    ),
    ("cs-none", lambda b: generation.clip_scores(None, ONES), r"images, a Float\[Tensor, '_ _'\], got None: pass what"),
    (
        "ra-count",
        lambda b: generation.retrieval_accuracy(ONES, ONES, ["a"], 2),
        "as many captions as images, at least a.*, got 1 captions for 2 images.*: pass one",
    ),
    (
        "ra-group",
        lambda b: generation.retrieval_accuracy(ONES, ONES, ["a", "b"], 0),
        "group 1 or more, got 0: choose one",
    ),
    (
        "ra-groupneg",
        lambda b: generation.retrieval_accuracy(ONES, ONES, ["a", "b"], -1),
        "group 1 or more, got -1: choose one",
    ),
    (
        "ra-groupt",
        lambda b: generation.retrieval_accuracy(ONES, ONES, ["a", "b"], "2"),
        "group, a whole number 1 or more, got '2': pass group=1",
    ),
    (
        "ra-text",
        lambda b: generation.retrieval_accuracy(ONES, ONES, "ab", 2),
        "captions as a list of texts, got 'ab': pass the",
    ),
    (
        "ra-dim",
        lambda b: generation.retrieval_accuracy(ONES, torch.ones(2, 4), ["a", "b"], 2),
        "images and texts embedded by one Clip, got vectors of 3 and 4.*: embed both",
    ),
    (
        "ra-np",
        lambda b: generation.retrieval_accuracy(ONES.numpy(), ONES.numpy(), ["a", "b"], 2),
        r"images, a Float\[Tensor, '_ _'\], got ndarray of float32.*: pass what",
    ),
    (
        "ra-few",
        lambda b: generation.retrieval_accuracy(ONES, ONES, ["a", "b"]),
        "as many captions as images, at least a.*, got 2 captions for 2 images.*: pass one",
    ),
    ("pr-0", lambda b: generation.prompts(0), "count_per_category from 1 to 200, got 0: choose one"),
    ("pr-many", lambda b: generation.prompts(201), "count_per_category from 1 to 200, got 201: choose one"),
    (
        "pr-text",
        lambda b: generation.prompts("3"),
        "count_per_category, a whole number from 1.*, got '3'.*: pass count_per_category=1",
    ),
    (
        "pr-float",
        lambda b: generation.prompts(2.5),
        r"count_per_category, a whole number from 1.*, got 2\.5.*: pass count_per_category=1",
    ),
    (
        "pr-none",
        lambda b: generation.prompts(None),
        "count_per_category, a whole number from 1.*, got None.*: pass count_per_category=1",
    ),
    ("pr-seed", lambda b: generation.prompts(1, -1), "seed 0 or more, got -1: choose one"),
    ("pr-seed-t", lambda b: generation.prompts(1, "a"), "seed, a whole number 0 or more, got 'a': pass seed=0"),
    (
        "cp-cat",
        lambda b: generation.CompositionPrompt("x", (), "grass").text,
        "category, one of 'single object', 'two.*, got 'x'.*: pass category='single",
    ),
    (
        "cp-bg",
        lambda b: generation.CompositionPrompt("single object", (PROMPTS[0].objects[0],), "moon").text,
        "background that can be drawn, got 'moon': choose from",
    ),
    (
        "cp-obj",
        lambda b: generation.CompositionPrompt("single object", "cat", "grass").text,
        r"objects as a list of Asked, got 'cat': pass objects=\(Asked\('cat'\),\)",
    ),
    (
        "ju-det",
        lambda b: generation.judge(None, [PICTURE], PROMPTS[:1]),
        r"detector, a SceneDetector, got None: pass load_detector\(\)",
    ),
    (
        "ju-name",
        lambda b: generation.judge("scene detector", [PICTURE], PROMPTS[:1]),
        r"detector, a SceneDetector, got 'scene detector': pass load_detector\(\)",
    ),
    (
        "ju-count",
        lambda b: generation.judge(detector(), [PICTURE], PROMPTS[:2]),
        "one image for each prompt, got 1 images for 2 prompts: pass as",
    ),
    ("ju-img", lambda b: generation.judge(detector(), 3, PROMPTS[:1]), "images, one or a list, got int: pass a"),
    (
        "ju-text",
        lambda b: generation.judge(detector(), [PICTURE], ["a cat"]),
        r"prompts as a list of CompositionPrompt, got 'a cat' in it: pass generation\.prompts\(16\)",
    ),
    (
        "ju-single",
        lambda b: generation.judge(detector(), [PICTURE], PROMPTS[0]),
        r"prompts as a list of CompositionPrompt, got CompositionPrompt: pass generation\.prompts\(16\)",
    ),
    (
        "ju-str",
        lambda b: generation.judge(detector(), [PICTURE], "a"),
        r"prompts as a list of CompositionPrompt, got 'a': pass generation\.prompts\(16\)",
    ),
    (
        "gp-model",
        _pictures(backbone=3),
        r"a model \(a backbone, a diffusers pipeline.*, got int.*: pass load_backbone\('mini'\),",
    ),
    (
        "gp-text",
        _pictures(prompts=["a cat"]),
        r"prompts as a list of CompositionPrompt, got 'a cat' in it: pass generation\.prompts\(16\)",
    ),
    (
        "gp-str",
        _pictures(prompts="a cat"),
        r"prompts as a list of CompositionPrompt, got 'a cat': pass generation\.prompts\(16\)",
    ),
    (
        "gp-single",
        _pictures(prompts=PROMPTS[0]),
        r"prompts as a list of CompositionPrompt, got CompositionPrompt: pass generation\.prompts\(16\)",
    ),
    (
        "gp-none",
        _pictures(prompts=None),
        r"prompts as a list of CompositionPrompt, got None: pass generation\.prompts\(16\)",
    ),
    (
        "gp-empty",
        _pictures(prompts=[]),
        r"prompts as a list of CompositionPrompt, at.*, got none.*: pass generation\.prompts\(16\)",
    ),
    ("gp-seed-t", _pictures(seeds="0"), "seeds as numbers, got '0': pass seeds=0"),
    ("gp-seed-neg", _pictures(seeds=[-1]), "seeds from 0 to 70368744177663, got -1: choose one"),
    ("gp-seed-f", _pictures(seeds=[1.5]), r"seeds, a whole number from 0 to.*, got 1\.5.*: pass seeds=0"),
    ("gp-seeds-e", _pictures(seeds=[]), r"seeds, at least one and each one once, got \[\]: name each"),
    ("gp-steps", _pictures(steps=0), "steps 1 or more, got 0: choose one"),
    ("gp-batch", _pictures(batch=0), "batch 1 or more, got 0: choose one"),
    ("gp-batch-n", _pictures(batch=-1), "batch 1 or more, got -1: choose one"),
    (
        "gp-scale",
        _pictures(guidance_scale="a"),
        r"guidance_scale, a number of at least 0, got 'a': pass guidance_scale=4\.0",
    ),
    ("gp-seedbig", _pictures(seeds=[2**62]), "seeds from 0 to 70368744177663, got 4611686018427387904: choose one"),
    ("gp-seeds-twice", _pictures(seeds=[0, 0]), r"seeds, at least one and each one once, got \[0, 0\]: name each"),
    ("co-det-first", _scored(detector=None), r"detector, a SceneDetector, got None: pass load_detector\(\)"),
    (
        "co-text",
        _scored(prompts=["a"]),
        r"prompts as a list of CompositionPrompt, got 'a' in it: pass generation\.prompts\(16\)",
    ),
    (
        "su-none",
        lambda b: generation.summary(None),
        r"a table as a pandas\.DataFrame, got NoneType: pass Evaluation\.table\(\)",
    ),
    (
        "su-list",
        lambda b: generation.summary([1]),
        r"a table as a pandas\.DataFrame, got list: pass Evaluation\.table\(\)",
    ),
    (
        "su-by",
        lambda b: generation.summary(_table(), "model"),
        "a table with rows and the columns model,.*: name columns",
    ),
    (
        "su-by-n",
        lambda b: generation.summary(_table(), 3),
        r"by as a list of names of columns, got 3: pass by=\['category'\]",
    ),
    (
        "su-by-e",
        lambda b: generation.summary(_table(), ()),
        r"by as a list of names of columns, at least.*, got none.*: pass by=\['category'\]",
    ),
    (
        "su-cols",
        lambda b: generation.summary(pd.DataFrame({"a": [1]})),
        "a table with rows and the columns category,.*: name columns",
    ),
    (
        "su-correct",
        lambda b: generation.summary(_table().assign(correct="yes")),
        "numbers in the column correct, got 'yes': choose another",
    ),
    ("ld-num", lambda b: generation.load_detector(3), "folder as text or a Path, got 3: pass folder='folder/file'"),
    (
        "ld-device",
        lambda b: generation.load_detector(device="cud"),
        "device of this machine, got 'cud': pass device='cpu'",
    ),
    ("de-img", lambda b: detector().detect(3), "images, one or a list, got int: pass a"),
    ("de-batch", lambda b: detector().detect([PICTURE], 0), "batch 1 or more, got 0: choose one"),
    (
        "de-batch-t",
        lambda b: detector().detect([PICTURE], "a"),
        "batch, a whole number 1 or more, got 'a': pass batch=1",
    ),
    (
        "de-empty",
        lambda b: detector().detect([]),
        r"at least one image, got an empty list: pass images=\['photo\.jpg'\]",
    ),
    (
        "sd-det",
        lambda b: generation.save_detector(None, "nowhere"),
        r"detector, a SceneDetector, got None: pass load_detector\(\)",
    ),
    (
        "sd-folder",
        lambda b: generation.save_detector(detector(), None),
        "folder as text or a Path, got None: pass folder='folder/file'",
    ),
    ("sd-file", lambda b: generation.save_detector(detector(), __file__), "a folder, got .*: choose another"),
    (
        "da-none",
        lambda b: generation.detector_accuracy(detector(), []),
        "plans as a list of Plan, at least one, got none: pass",
    ),
    (
        "da-scenes",
        lambda b: generation.detector_accuracy(detector(), ["a"]),
        "plans as a list of Plan, got 'a' in it: pass",
    ),
    (
        "da-det",
        lambda b: generation.detector_accuracy(None, []),
        r"detector, a SceneDetector, got None: pass load_detector\(\)",
    ),
    (
        "da-img",
        lambda b: generation.detector_accuracy(detector(), [1], [PICTURE, PICTURE]),
        "plans as a list of Plan, got 1 in it: pass",
    ),
    ("da-nonen", lambda b: generation.detector_accuracy(detector(), None), "plans as a list of Plan, got None: pass"),
    (
        "da-imgs",
        lambda b: generation.detector_accuracy(detector(), None, PICTURE),
        "plans as a list of Plan, got None: pass",
    ),
    (
        "cf-clip",
        lambda b: generation.clip_features(None, [PICTURE]),
        r"clip, a Clip, got None: pass load_clip\(\.\.\.\)",
    ),
    (
        "cf-empty",
        lambda b: generation.clip_features(clip(), []),
        r"at least one image, got an empty list: pass images=\['photo\.jpg'\]",
    ),
    ("cf-batch", lambda b: generation.clip_features(clip(), [PICTURE], 0), "batch 1 or more, got 0: choose one"),
    ("cf-none", lambda b: generation.clip_features(clip(), None), "images, one or a list, got NoneType: pass a"),
    (
        "fd-few",
        lambda b: generation.frechet_distance(ONES[:1], ONES),
        r"two sets of at least two features of the.*, got \[1, 3\] and \[2, 3\].*: pass more",
    ),
    (
        "fd-dim",
        lambda b: generation.frechet_distance(ONES, torch.ones(2, 4)),
        r"two sets of at least two features of the.*, got \[2, 3\] and \[2, 4\].*: pass more",
    ),
    (
        "fd-np",
        lambda b: generation.frechet_distance(ONES.numpy(), ONES.numpy()),
        r"one, a Float\[Tensor, '_ _'\], got ndarray of float32.*: pass features",
    ),
    (
        "fd-nan",
        lambda b: generation.frechet_distance(ONES * np.nan, ONES),
        "finite features, got some that are NaN.*: compute in",
    ),
    (
        "fd-1d",
        lambda b: generation.frechet_distance(ONES[0], ONES[0]),
        r"one, a Float\[Tensor, '_ _'\], got Tensor of.*: pass features",
    ),
    (
        "fd-img",
        lambda b: generation.frechet_distance([PICTURE], [PICTURE]),
        r"one, a Float\[Tensor, '_ _'\], got \[array\(\[\[\[0, 0\.\.\.,.*: pass features",
    ),
    (
        "kd-np",
        lambda b: generation.kernel_distance(ONES.numpy(), ONES),
        r"one, a Float\[Tensor, '_ _'\], got ndarray of float32.*: pass features",
    ),
    (
        "kd-none",
        lambda b: generation.kernel_distance(None, ONES),
        r"one, a Float\[Tensor, '_ _'\], got None: pass features",
    ),
    (
        "kd-1d",
        lambda b: generation.kernel_distance(ONES, ONES[0]),
        r"other, a Float\[Tensor, '_ _'\], got Tensor of.*: pass features",
    ),
    (
        "pd-clip",
        lambda b: generation.picture_distances("mini", [PICTURE] * 2, [PICTURE] * 2),
        r"clip, a Clip, got 'mini': pass load_clip\(\.\.\.\)",
    ),
    (
        "pd-one",
        lambda b: generation.picture_distances(clip(), [PICTURE], [PICTURE] * 2),
        r"two sets of at least two features of the.*, got \[1, 128\] and \[2, 128\].*: pass more",
    ),
    (
        "pd-batch",
        lambda b: generation.picture_distances(clip(), [PICTURE] * 2, [PICTURE] * 2, "a"),
        "batch, a whole number 1 or more, got 'a': pass batch=1",
    ),
    (
        "is-none",
        lambda b: generation.image_similarity(None, PICTURE, "scene detector"),
        "images, one or a list, got NoneType: pass a",
    ),
]
