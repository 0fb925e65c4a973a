"""Slips around generated pictures and their judges."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from seg4diff_tools import generation

ONES = torch.ones(2, 3)
PICTURE = np.zeros((28, 28, 3), np.uint8)


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
]
