"""Make the embedded model's tables of edited attention: `python scripts/perturbation_study.py runs/perturbation`.

Every layer's image-to-text attention is edited in three ways, and guided away from the blur, with all prompts of the
list. The blur, the paper's edit, is also judged by the features of the scene detector. Writes `edits.csv` and
`guidance.csv`, which `--ship` copies to the model. A run that was stopped goes on with the next table. Forty minutes on
two CPU cores.
"""

import argparse
import shutil
from pathlib import Path

import pandas as pd

from seg4diff_tools import load_backbone, load_clip
from seg4diff_tools.analysis import perturbation
from seg4diff_tools.attention import edits
from seg4diff_tools.backbones.checkpoints import MINI
from seg4diff_tools.generation.encoders import DETECTOR
from seg4diff_tools.generation.prompt_lists import COMPOSITIONAL

EDITS = {"blur": edits.blur(), "average": edits.average(), "drop": edits.drop()}
SAMPLING = {"steps": 12, "batch": 10}
SCALES = (0.0, 1.0, 2.0, 4.0)


def main(folder: Path, ship: bool) -> None:
    """Make what is missing in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    backbone = load_backbone("mini")
    clip = load_clip(MINI)
    for name, edit in EDITS.items():
        if not (path := folder / f"{name}.csv").exists():
            encoder = DETECTOR if name == "blur" else None
            made = perturbation.layer_effects(backbone, clip, COMPOSITIONAL, edit, encoder=encoder, **SAMPLING)
            made.table.to_csv(path, index=False)
    if not (path := folder / "guidance.csv").exists():
        layers, weights = [backbone.expert_layer, backbone.layers // 4], (1.0, backbone.guidance_scale)
        made = perturbation.guidance_effects(
            backbone, clip, COMPOSITIONAL, EDITS["blur"], layers, SCALES, weights, **SAMPLING
        )
        made.table.to_csv(path, index=False)
    tables = [pd.read_csv(folder / f"{name}.csv", dtype={"layer": "Int64"}).assign(edit=name) for name in EDITS]
    pd.concat(tables).round(6).to_csv(folder / "edits.csv", index=False)
    for name in ("edits.csv", "guidance.csv") if ship else ():
        shutil.copy(folder / name, MINI / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ship", action="store_true", help="copy the tables to the embedded model")
    asked = parser.parse_args()
    main(asked.folder, asked.ship)
