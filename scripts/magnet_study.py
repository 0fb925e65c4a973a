"""How the embedded model's LoRA and the table of its ablations were made: `python scripts/magnet_study.py runs/magnet`.

Trains what is not trained yet, measures what is not measured yet, and writes `study.csv`: a run that was stopped goes
on. Two hours on two CPU cores.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd

from seg4diff_tools import load_backbone
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.lora_files import SHIPPED
from seg4diff_tools.evaluation.grouping_scores import grouping_scores
from seg4diff_tools.evaluation.sweeps import layer_step_sweep
from seg4diff_tools.magnet import MagnetConfig, apply_lora, finetune, preset
from seg4diff_tools.scenes import SceneConfig, Scenes

LONG, SHORT, SEEDS = 600, 150, (0, 1, 2)
MINI = preset("mini")
PAPER = replace(MINI, reading="scores")
HEADS = replace(PAPER, maps="heads", text="caption", least_area=0.005)
VARIANTS = {
    "flow matching alone": replace(MINI, focal_weight=0.0, dice_weight=0.0),
    "shares": MINI,
    "shares, captions": replace(MINI, text="caption"),
    "softmax": replace(MINI, reading="softmax"),
    "scores": PAPER,
    "scores, released focal": replace(PAPER, focal="released"),
    "scores, conv head": replace(PAPER, conv_head=True, head_learning_rate=1e-2),
    "scores, released code": replace(PAPER, focal="released", conv_head=True, head_learning_rate=1e-2),
    "heads": HEADS,
}
REPEATED = ("shares", "flow matching alone")
SCENES = 200
LAST = 100  # steps over which the loss of flow matching is averaged


def jobs() -> list[tuple[str, MagnetConfig]]:
    """Variant and setting of every run, the shipped one and its control first."""
    first = [(name, replace(VARIANTS[name], steps=LONG)) for name in ("shares", "flow matching alone")]
    short = {name: replace(config, steps=SHORT) for name, config in VARIANTS.items()}
    repeats = [(name, replace(short[name], seed=seed)) for name in REPEATED for seed in SEEDS[1:]]
    return first + list(short.items()) + repeats


def measure(backbone: Backbone) -> pd.DataFrame:
    """Scores on unseen scenes: every layer, four steps, held-out drawings, the whole vocabulary, and grouping by
    pads."""
    layer, quiet = backbone.expert_layer, {"progress": False}
    test, config = Scenes("test", SCENES), SceneConfig()
    style = Scenes("test-style", SCENES)
    vocabulary = [*config.concepts, *config.backgrounds]
    parts = {
        "test": layer_step_sweep(backbone, test, normalize=["softmax", "scores"], **quiet).table(),
        "steps": layer_step_sweep(backbone, test, layers=layer, steps_from_end=[1, 4, 16, 28], **quiet).table(),
        "test-style": layer_step_sweep(backbone, style, layers=layer, **quiet).table(),
        "vocabulary": layer_step_sweep(backbone, test, layers=layer, vocabulary=vocabulary, **quiet).table(),
        "pads": grouping_scores(backbone, [test[i] for i in range(SCENES // 4)], [1e-6], **quiet),
    }
    return pd.concat([part.assign(set=name) for name, part in parts.items()], ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs and of study.csv")
    parser.add_argument(
        "--ship", action="store_true", help="then put the long runs' LoRAs and study.csv into the package"
    )
    options = parser.parse_args()
    out = options.out
    run(out)
    if options.ship:
        for name, variant in {"mini-magnet": "shares", "mini-flow": "flow matching alone"}.items():
            for file in ("pytorch_lora_weights.safetensors", "log.csv", "settings.json"):
                shutil.copy(folder_of(out, variant, LONG, 0) / file, SHIPPED[name] / file)
        shutil.copy(out / "study.csv", SHIPPED["mini-magnet"] / "study.csv")


def folder_of(out: Path, name: str, steps: int, seed: int) -> Path:
    return out / f"{name} {steps} {seed}".replace(", ", "-")


def run(out: Path) -> None:
    """Trains and measures what is missing."""
    backbone, data = load_backbone("mini"), Scenes("train", 100_000)
    tables = []
    for name, config in [("untrained", None), *jobs()]:
        folder = out / name if config is None else folder_of(out, name, config.steps, config.seed)
        scores = folder / "scores.csv"
        if not scores.exists():
            if config is None:
                folder.mkdir(parents=True, exist_ok=True)
                table = measure(backbone)
            else:
                finetune(backbone, data, config, folder)
                with apply_lora(backbone, folder):
                    table = measure(backbone)
            seed, steps = (0, 0) if config is None else (config.seed, config.steps)
            table.insert(0, "variant", name)
            table.insert(1, "trained_steps", steps)
            table.insert(2, "seed", seed)
            table.drop(columns="model").to_csv(scores, index=False)
        tables.append(pd.read_csv(scores))
        if config is not None:
            tables[-1]["flow"] = pd.read_csv(folder / "log.csv")["flow"].tail(LAST).mean()
        pd.concat(tables, ignore_index=True).to_csv(out / "study.csv", index=False)


if __name__ == "__main__":
    main()
