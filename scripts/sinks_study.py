"""Make the embedded model's table of pictures with closed keys: `python scripts/sinks_study.py runs/sinks`.

The same prompts and noise are drawn with all keys, and with some of them closed to every query in every layer and
step, in both branches of classifier-free guidance. Writes `sinks.csv`, which `--ship` copies to the model. A run that
was stopped goes on with the next set of keys. About 15 minutes on a CPU core.
"""

import argparse
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pandas as pd

from seg4diff_tools import load_backbone
from seg4diff_tools.analysis import sinks
from seg4diff_tools.attention import without
from seg4diff_tools.backbones import Backbone
from seg4diff_tools.backbones.checkpoints import MINI
from seg4diff_tools.generation import image_similarity, judge, load_clip, load_detector, prompts
from seg4diff_tools.generation.clip import clip_scores
from seg4diff_tools.generation.composition import CompositionPrompt
from seg4diff_tools.generation.encoders import DETECTOR
from seg4diff_tools.prompts import Kind

CLOSED = ("nothing", "pads", "zeros", "start", "top key", "random key")
KINDS: dict[str, Kind] = {"pads": "pad", "zeros": "zero", "start": "start"}
PROMPTS = 17  # of each of six kinds
STEPS = 8
BATCH = 17


def closing(closed: str, backbone: Backbone, texts: list[str]) -> AbstractContextManager:
    """Return the context in which the keys of this name are closed."""
    if closed in KINDS:
        return without(backbone, KINDS[closed], prompt=texts)
    if closed == "nothing":
        return nullcontext()
    return sinks.close_keys(backbone, sinks.top_keys() if closed == "top key" else sinks.random_keys())


def draw(backbone: Backbone, asked: list[CompositionPrompt], closed: str) -> np.ndarray:
    """Draw a picture of each prompt; its number is its seed."""
    made = []
    for start in range(0, len(asked), BATCH):
        texts = [prompt.text for prompt in asked[start : start + BATCH]]
        seeds = list(range(start, start + len(texts)))
        with closing(closed, backbone, texts):
            made += backbone.generate(texts, steps=STEPS, seed=seeds, progress=False)
    return np.stack([np.asarray(picture) for picture in made])


def main(folder: Path, ship: bool) -> None:
    """Make what is missing in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    backbone, clip, detector = load_backbone("mini"), load_clip(MINI), load_detector()
    asked, tables = prompts(PROMPTS), []
    texts = clip.embed_texts([prompt.text for prompt in asked])
    for closed in CLOSED:
        if not (path := folder / f"{closed}.npy").exists():
            np.save(path, draw(backbone, asked, closed))
        pictures, untouched = list(np.load(path)), list(np.load(folder / "nothing.npy"))
        scores = {
            "closed": closed,
            "prompt": range(len(asked)),
            "category": [prompt.category for prompt in asked],
            "correct": judge(detector, pictures, asked)["correct"].astype(int),
            "CLIP-T": clip_scores(clip.embed_images(pictures), texts),
            "features": image_similarity(untouched, pictures, DETECTOR),
        }
        tables.append(pd.DataFrame(scores))
        print(closed, tables[-1][["correct", "CLIP-T", "features"]].mean().round(4).to_dict(), flush=True)
    pd.concat(tables).round(6).to_csv(folder / "sinks.csv", index=False)
    if ship:
        shutil.copy(folder / "sinks.csv", MINI / "sinks.csv")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ship", action="store_true", help="copy the table to the embedded model")
    options = parser.parse_args()
    main(options.folder, options.ship)
