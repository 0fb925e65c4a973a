"""Make the embedded model's tables of what heads carry: `python scripts/heads_study.py runs/heads`.

One forward says how much of a changed word each head carries, and how well the model segments without it. Pictures are
drawn with each head ablated, and with the heads that carry most, by the first pairs, patched from runs of other pairs.
Writes a table for each, which `--ship` copies to the model. A run that was stopped goes on with the next one; pictures
with ablated heads come in rounds of one prompt of each kind. About 12 minutes on a CPU core.
"""

import argparse
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from seg4diff_tools import load_backbone
from seg4diff_tools.analysis import (
    ablated_segmentation,
    ablation_effects,
    carried_shares,
    patch_effects,
    word_pairs,
)
from seg4diff_tools.backbones.checkpoints import MINI
from seg4diff_tools.generation import load_clip, load_detector, prompts
from seg4diff_tools.scenes import SceneConfig, Scenes

CHOOSING, JUDGING = word_pairs(8, seed=0), word_pairs(6, seed=1)
SCENES = 8  # of the test split
SAMPLING = {"steps": 6, "batch": 12}
TABLES = ("carried", "segmented", "patched", "ablated")
SIZE = 8  # of the sets of heads that are patched together


def sets_of(shares: pd.DataFrame) -> dict[str, list[tuple[int, int]]]:
    """Return the heads that carry most, as many others drawn at random, none and all."""
    mean = shares.groupby(["layer", "head"])["share"].mean().sort_values(ascending=False)
    order = [(int(layer), int(head)) for layer, head in mean.index]
    others = order[SIZE:]
    drawn = np.random.default_rng(0).choice(len(others), SIZE, replace=False)
    return {"none": [], "top": order[:SIZE], "random": [others[number] for number in drawn], "all": order}


def main(folder: Path, rounds: int, ship: bool) -> None:
    """Make what is missing in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    backbone, clip, detector = load_backbone("mini"), load_clip(MINI), load_detector()

    def made(name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        if not (path := folder / f"{name}.csv").exists():
            make().round(4).to_csv(path, index=False)
        return pd.read_csv(path)

    levels = made("carried at each level", lambda: carried_shares(backbone, CHOOSING))
    made("carried", levels.groupby(["pair", "kind", "layer", "head"], as_index=False)["share"].mean)
    test = Scenes("test", SCENES, SceneConfig(size=backbone.image_size))
    made("segmented", lambda: ablated_segmentation(backbone, list(test)))
    patching = partial(patch_effects, backbone, detector, JUDGING, sets_of(levels), **SAMPLING)
    made("patched", lambda: patching()[0])
    ablated = []
    for number in range(rounds):
        asked = prompts(number + 1)[number :: number + 1]
        draw = partial(ablation_effects, backbone, clip, detector, asked, seed=1000 * number, **SAMPLING)
        drawn = made(f"ablated {number}", draw)
        ablated.append(drawn.assign(prompt=drawn["prompt"] + number * len(asked)))
    pd.concat(ablated).astype({"layer": "Int64", "head": "Int64"}).to_csv(folder / "ablated.csv", index=False)
    for name in TABLES if ship else ():
        shutil.copy(folder / f"{name}.csv", MINI / f"heads_{name}.csv")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=2, help="of pictures with ablated heads")
    parser.add_argument("--ship", action="store_true", help="copy the tables to the embedded model")
    options = parser.parse_args()
    main(options.folder, options.rounds, options.ship)
