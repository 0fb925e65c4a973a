"""Make the embedded model's table of words and prompts in their place: `python scripts/placing_study.py runs/placing`.

Strengths are compared on prompts that choose one; pictures without it, with words kept in their place, with the layout
of an early step locked, and with second prompts in the places of things are then compared on other prompts. Writes
`placing.csv`, which `--ship` copies to the model. A run that was stopped goes on with the next table. A quarter of an
hour on two CPU cores.
"""

import argparse
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pandas as pd

from seg4diff_tools import Backbone, load_backbone
from seg4diff_tools.analysis.placement import Places, Placing, Way, placing_effects
from seg4diff_tools.attention import regional_prompts
from seg4diff_tools.backbones.checkpoints import MINI
from seg4diff_tools.generation import load_detector, prompts

SAMPLING = {"steps": 12, "batch": 10}


def second_prompts(
    backbone: Backbone, texts: Sequence[str], places: Sequence[Places], strength: float
) -> AbstractContextManager:
    """Let the place of each thing read the words of that thing as a prompt of its own."""
    return regional_prompts(backbone, list(places), strength=strength)


STRENGTHS: dict[str, Placing | Way] = {f"strength {value:g}": Placing(value) for value in (1.0, 2.0, 4.0)}
PROMPTS: dict[str, Placing | Way] = {
    f"prompts {value:g}": partial(second_prompts, strength=value) for value in (0.0, 1.0)
}
CHOSEN, CHOSEN_PROMPTS = 2.0, 1.0  # by the first table
CONTEST: dict[str, Placing | Way] = {
    "without": Placing(strength=0.0),
    "placed": Placing(CHOSEN),
    "locked": Placing(CHOSEN, lock=3),
    "second prompts": partial(second_prompts, strength=CHOSEN_PROMPTS),
}
TABLES = {
    "choosing": (prompts(4, seed=1), STRENGTHS | PROMPTS),
    "judging": (prompts(17, seed=0), CONTEST),
}


def main(folder: Path, ship: bool) -> None:
    """Make what is missing in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    backbone, detector = load_backbone("mini"), load_detector()
    tables = []
    for name, (asked, settings) in TABLES.items():
        for setting, placing in settings.items():
            path = folder / f"{name} {setting}.csv"
            if not path.exists():
                placing_effects(backbone, detector, asked, {setting: placing}, **SAMPLING).to_csv(path, index=False)
            tables.append(pd.read_csv(path, keep_default_na=False).assign(prompts=name))
    pd.concat(tables).to_csv(folder / "placing.csv", index=False)
    if ship:
        shutil.copy(folder / "placing.csv", MINI / "placing.csv")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ship", action="store_true", help="copy the table to the embedded model")
    asked = parser.parse_args()
    main(asked.folder, asked.ship)
