"""Try recipes of the transformer's training: `python scripts/pretrain_trials.py RUN OUT --images 100k`.

RUN is a run whose CLIP and VAE are finished; each trial trains a new transformer on them for the same number of images,
the last quarter of it with a falling rate, and one row for each trial is added to OUT/trials.csv. Trials that have a
row are skipped, one that was stopped goes on. Judged are the averaged weights: object mIoU on validation scenes that
count in no other table (classes present, best layer at 8 of 28 steps from the end, chosen on these same scenes), and
the share of pictures of composition prompts that the scene parser finds right. The number of images stands in each
row: short trials order recipes roughly at best.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from diffusers import SD3Transformer2DModel

from seg4diff_tools._runs import append_row
from seg4diff_tools.backbones.loading import wrap_pipeline
from seg4diff_tools.evaluation.sweeps import layer_step_sweep
from seg4diff_tools.generation.composition import composition_scores, prompts
from seg4diff_tools.generation.detector import load_detector
from seg4diff_tools.pretrain import RunConfig, images_of, pin, run_stage
from seg4diff_tools.pretrain.stages import assemble
from seg4diff_tools.pretrain.watch import VALIDATE_FROM
from seg4diff_tools.scenes import scene

TRIALS: dict[str, dict[str, Any]] = {
    "as configured": {},
    "noise shift 3": {"shift": 3.0},
    "noise shift 1.5": {"shift": 1.5},
    "no direction loss": {"direction": 0.0},
    "no easy scenes": {"easy": 0},
    "no lists of classes": {"lists": 0.0},
    "modulation under Muon": {"modulation": True},
    "short captions": {"captions": "short"},
}
"""What differs from the run's own configuration: fields of its recipe, or the captions."""


def trial_config(config: RunConfig, changes: Mapping[str, Any], images: int) -> RunConfig:
    """The configuration of one trial."""
    changes = dict(changes)
    scenes = replace(config.model.scenes, captions=changes.pop("captions", config.model.scenes.captions))
    model = replace(config.model, scenes=scenes, recipe=replace(config.model.recipe, **changes))
    steps = -(-images // config.transformer.batch)
    return replace(config, model=model, transformer=replace(config.transformer, steps=steps, cooldown=steps // 4 or 1))


def judged(run: Path, config: RunConfig, scenes: int, asked: int) -> dict[str, float | int]:
    """Object mIoU at the best layer, and the share of right pictures."""
    transformer = SD3Transformer2DModel.from_pretrained(run / "transformer", torch_dtype=torch.float32)
    backbone = wrap_pipeline(assemble(run, transformer), "trial")
    samples = [scene("test", VALIDATE_FROM + number, config.model.test_scenes) for number in range(scenes)]
    best = layer_step_sweep(backbone, samples, None, (8,), progress=False).nlargest(1, "object_mIoU").iloc[0]
    row: dict[str, float | int] = {"layer": int(best["layer"]), "object_mIoU": round(float(best["object_mIoU"]), 4)}
    row["scenes"] = scenes
    if asked:
        table = composition_scores(backbone, load_detector(), prompts(asked), guidance_scale=4.0, progress=False)
        row["right_pictures"] = round(float(table["correct"].mean()), 4)
    return row | {"pictures": 6 * asked}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", default="100k")
    parser.add_argument("--trials", nargs="*", default=list(TRIALS), choices=list(TRIALS), metavar="NAME")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--prompts", type=int, default=8, help="of each of six kinds; 0 to draw no pictures")
    parser.add_argument("--cores", help="CPU cores to pin to, such as 0,1")
    options = parser.parse_args()
    if options.cores:
        pin([int(core) for core in options.cores.split(",")])
    images, table = images_of(options.images), options.out / "trials.csv"
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.trials:
        done = pd.read_csv(table) if table.exists() else pd.DataFrame(columns=["trial", "images"])
        if ((done["trial"] == name) & (done["images"] == images)).any():
            continue
        folder = options.out / f"{name.replace(' ', '-')}-{images}"
        folder.mkdir(exist_ok=True)
        for part in ("clip", "vae", "tokenizer"):
            if not (folder / part).exists():
                (folder / part).symlink_to((options.run / part).resolve())
        config = trial_config(RunConfig.load(options.run), TRIALS[name], images)
        run_stage("transformer", folder, config, save_every=100, cache=options.out / "latents")
        append_row(table, {"trial": name, "images": images, **judged(folder, config, options.scenes, options.prompts)})


if __name__ == "__main__":
    main()
