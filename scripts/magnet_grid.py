"""Which mask alignment helps segmentation and pictures both: `python scripts/magnet_grid.py runs/grid`.

Fine-tunes the embedded model at a short length by a grid of losses, layers, weights, rates and noise levels, chooses
the best six on validation scenes and prompts, fine-tunes these and flow matching alone at full length from three seeds,
and judges all on scenes and prompts that chose nothing. `grid.csv` and `judged.csv` get their rows as they come; a run
that was stopped goes on. `--cost` times a few steps, scenes and pictures and prints what the whole costs.
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from seg4diff_tools import load_backbone
from seg4diff_tools._runs import append_row
from seg4diff_tools.attention import temperature
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checkpoints import MINI
from seg4diff_tools.evaluation.grouping_scores import grouping_scores
from seg4diff_tools.evaluation.sweeps import layer_step_sweep
from seg4diff_tools.generation import (
    clip_features,
    clip_scores,
    composition,
    frechet_distance,
    load_clip,
    load_detector,
)
from seg4diff_tools.generation.clip import Clip
from seg4diff_tools.generation.detector import SceneDetector
from seg4diff_tools.magnet import MagnetConfig, PictureTest, apply_lora, finetune, preset
from seg4diff_tools.magnet.validation import both
from seg4diff_tools.pretrain.watch import VALIDATE_FROM
from seg4diff_tools.scenes import SceneConfig, Scenes, draw_scenes

CONTROL, UNTRAINED = "flow matching alone", "untrained"
FLOW = replace(preset("mini"), focal_weight=0.0, dice_weight=0.0)
MASKS = {"focal_weight": 0.1, "dice_weight": 0.2}
PLACES = {"places_weight": 1.0, "entropy_weight": 0.05}
WORDS = {"apart_weight": 1.0, "agree_weight": 1.0}
LOSSES = {"mask": MASKS, "places": PLACES, "words": WORDS}
WEIGHTS = {"gentle": 0.01, "strong": 1.0}
LEVELS = ("all", "early")
RATE, RATES = 3e-4, (1e-4, 1e-3)
SPLITS = 10
"""Random halves of the pictures whose Fréchet distances tell its spread."""
SEED, JUDGED_SEED = VALIDATE_FROM, 1
"""Of the prompts that choose, and of those that judge."""


@dataclass(frozen=True)
class Size:
    """How much of everything: steps of training, seeds, scenes, prompts of each of six kinds, steps of sampling."""

    short: int = 150
    long: int = 600
    seeds: tuple[int, ...] = (0, 1, 2)
    best: int = 6
    chosen_scenes: int = 64
    chosen_prompts: int = 10
    scenes: int = 200
    prompts: int = 34
    sampling: int = 14
    batch: int = 8


@dataclass(frozen=True)
class Study:
    """The model, its judges, and where results go."""

    backbone: Backbone
    clip: Clip
    detector: SceneDetector
    scenes: SceneConfig
    layer: int
    out: Path
    size: Size

    @property
    def choosing(self) -> list[composition.CompositionPrompt]:
        """Prompts that choose."""
        return composition.prompts(self.size.chosen_prompts, seed=SEED)

    @property
    def judging(self) -> list[composition.CompositionPrompt]:
        """Prompts that judge, none of which chose."""
        known = {prompt.text for prompt in self.choosing}
        drawn = composition.prompts(self.size.prompts + self.size.chosen_prompts, seed=JUDGED_SEED)
        new = [prompt for prompt in drawn if prompt.text not in known]
        kinds = [[prompt for prompt in new if prompt.category == kind] for kind in composition.CATEGORIES]
        return [prompt for own in kinds for prompt in own[: self.size.prompts]]


def settings(layers: int, expert: int) -> dict[str, MagnetConfig]:
    """Every setting of the grid by its name.

    Args:
        layers: of the model.
        expert: the layer that segments best.
    """
    places = {"one layer": (expert,), "half the layers": tuple(range(expert, min(layers, expert + layers // 2)))}
    found = {}
    for (loss, parts), (name, of), (weight, factor), levels in itertools.product(
        LOSSES.items(), places.items(), WEIGHTS.items(), LEVELS
    ):
        scaled = {key: value * factor for key, value in parts.items()}
        config = replace(FLOW, layers=of, learning_rate=RATE, align_at=levels, **scaled)
        found[f"{loss}, {name}, {weight}, {levels}, {RATE:g}"] = config
        if (name, weight, levels) == ("half the layers", "gentle", "early"):
            found |= {f"{loss}, {name}, {weight}, {levels}, {r:g}": replace(config, learning_rate=r) for r in RATES}
    found |= {f"temperature, {r:g}": replace(FLOW, temperature=1.2, learning_rate=r) for r in (RATES[0], RATE)}
    return found


def trained(study: Study, name: str, config: MagnetConfig, steps: int, seed: int) -> Path:
    """The folder of a fine-tuning, made if it is not there; a stopped one goes on."""
    folder = study.out / "runs" / f"{name} {steps} {seed}".replace(", ", "-")
    config = replace(config, steps=steps, seed=seed, warmup=min(config.warmup, steps), batch=study.size.batch)
    samples = Scenes("train", 100_000, study.scenes)
    return finetune(study.backbone, samples, config, folder, progress=False)


def applied(study: Study, folder: Path | None, config: MagnetConfig) -> ExitStack:
    """The model as this fine-tuning leaves it."""
    stack = ExitStack()
    if folder is not None:
        stack.enter_context(apply_lora(study.backbone, folder))
    stack.enter_context(temperature(study.backbone, config.temperature, above=config.temperature_above))
    return stack


def chosen_by(study: Study) -> tuple[float, float]:
    """Object mIoU and share of right pictures on the scenes and prompts that choose."""
    samples = Scenes("test", VALIDATE_FROM + study.size.chosen_scenes, study.scenes)[VALIDATE_FROM:]
    found = layer_step_sweep(study.backbone, samples, layers=study.layer, progress=False).totals.iloc[0]
    test = PictureTest(study.choosing, study.detector, steps=study.size.sampling)
    return float(found["object_mIoU"]), test.score(study.backbone)


def grid(study: Study, every: dict[str, MagnetConfig]) -> pd.DataFrame:
    """Train and measure each setting at the short length; rows of `grid.csv`."""
    path, rows = study.out / "grid.csv", {}
    if path.exists():
        rows = {row["setting"]: row for row in pd.read_csv(path).to_dict("records")}
    for name, config in {UNTRAINED: FLOW, CONTROL: FLOW, **every}.items():
        if name not in rows:
            folder = None if name == UNTRAINED else trained(study, name, config, study.size.short, 0)
            with applied(study, folder, config):
                segmented, right = chosen_by(study)
            rows[name] = {"setting": name, "object_mIoU": segmented, "right": right}
            before = rows[UNTRAINED]
            gains = (before["object_mIoU"], segmented), (before["right"], right)
            rows[name] |= {"both": both(*gains), "flow": np.nan if folder is None else last_flow(folder)}
            append_row(path, rows[name])
    return pd.DataFrame(rows.values())


def last_flow(folder: Path) -> float:
    """Mean loss of flow matching over the last hundred steps."""
    return float(pd.read_csv(folder / "log.csv")["flow"].tail(100).mean())


def measures(study: Study) -> Iterator[dict[str, str | float]]:
    """What judges: measure, what of, value, and low and high of its 95 % interval (of Fréchet one deviation)."""
    backbone, size, layer = study.backbone, study.size, study.layer
    test, style = (Scenes(split, size.scenes, study.scenes) for split in ("test", "test-style"))
    words = [*study.scenes.concepts, *study.scenes.backgrounds]
    quiet = {"progress": False}
    sweeps = {
        "by layer": layer_step_sweep(backbone, test, **quiet),
        "by noise": layer_step_sweep(backbone, test, layers=layer, steps_from_end=[1, 4, 16, 28], **quiet),
        "held-out style": layer_step_sweep(backbone, style, layers=layer, **quiet),
        "whole vocabulary": layer_step_sweep(backbone, test, layers=layer, vocabulary=words, **quiet),
    }
    for name, sweep in sweeps.items():
        for row in sweep.table().to_dict("records"):
            of = f"layer {row['layer']}, {row['steps_from_end']} from the end"
            yield {"measure": f"object mIoU, {name}", "of": of, "value": row["object_mIoU"]}
    part = [test[index] for index in range(max(1, size.scenes // 4))]
    for row in grouping_scores(backbone, part, [1e-6], layer, **quiet).to_dict("records"):
        yield {"measure": "mIoU, pads", "of": f"layer {row['layer']}", "value": row["mIoU"]}
    asked = study.judging
    made = composition.generate_pictures(backbone, asked, steps=size.sampling, **quiet)
    judged = composition.judge(study.detector, made, asked).assign(every="all kinds")
    for by in ("category", "every"):
        for row in composition.summary(judged, (by,)).to_dict("records"):
            parts = {"value": row["correct"], "low": row["low"], "high": row["high"]}
            yield {"measure": "right", "of": row[by]} | parts
    texts = study.clip.embed_texts([prompt.text for prompt in asked])
    scores = clip_scores(study.clip.embed_images(made), texts).numpy()
    half = 1.96 * scores.std(ddof=1) / len(scores) ** 0.5
    mean = float(scores.mean())
    yield {"measure": "CLIPScore", "of": "all kinds", "value": mean, "low": mean - half, "high": mean + half}
    fitting = [composition.fitting_plan(prompt, number) for number, prompt in enumerate(asked)]
    real = clip_features(study.clip, [scene.image for scene in draw_scenes(fitting, study.scenes.size)])
    ours, generator = clip_features(study.clip, made), torch.Generator().manual_seed(0)
    halves = [torch.randperm(len(ours), generator=generator)[: len(ours) // 2] for _ in range(SPLITS)]
    spread = float(np.std([frechet_distance(ours[one], real[one]) for one in halves], ddof=1))
    whole = frechet_distance(ours, real)
    yield {
        "measure": "Fréchet distance",
        "of": "all kinds",
        "value": whole,
        "low": whole - spread,
        "high": whole + spread,
    }


def judge(study: Study, every: dict[str, MagnetConfig], best: list[str]) -> pd.DataFrame:
    """Train the best and the control at both lengths from every seed, and judge them; rows of `judged.csv`."""
    path, size = study.out / "judged.csv", study.size
    done = set(map(tuple, pd.read_csv(path)[["setting", "steps", "seed"]].to_numpy())) if path.exists() else set()
    jobs = [(UNTRAINED, FLOW, 0, 0)]
    jobs += [(CONTROL, FLOW, steps, seed) for steps in (size.short, size.long) for seed in size.seeds]
    jobs += [(name, every[name], size.long, seed) for name in best for seed in size.seeds]
    for name, config, steps, seed in jobs:
        if (name, steps, seed) in done:
            continue
        folder = trained(study, name, config, steps, seed) if steps else None
        with applied(study, folder, config):
            rows = list(measures(study))
        # all rows of a run at once, so that a kill leaves none of it or all
        table = pd.DataFrame(rows, columns=["measure", "of", "value", "low", "high"])
        table.insert(0, "setting", name)
        table.insert(1, "steps", steps)
        table.insert(2, "seed", seed)
        before = pd.read_csv(path) if path.exists() else table.iloc[:0]
        part = path.with_suffix(".part")
        pd.concat([before, table] if len(before) else [table], ignore_index=True).to_csv(part, index=False)
        part.replace(path)
    return pd.read_csv(path)


def run(study: Study, every: dict[str, MagnetConfig]) -> pd.DataFrame:
    """The whole study: the grid, the choice on validation scenes and prompts, and the judgment on others."""
    study.out.mkdir(parents=True, exist_ok=True)
    found = grid(study, every)
    tried = found[found["setting"].isin(every)]
    best = tried.nlargest(study.size.best, "both")["setting"].tolist()
    print(f"chosen on validation: {'; '.join(best)}")
    return judge(study, every, best)


def cost(study: Study, every: dict[str, MagnetConfig], steps: int = 5, scenes: int = 8, prompts: int = 1) -> None:
    """Time a few steps of the most expensive loss, scenes and pictures; print the cost of the whole in core-minutes."""
    size, name = study.size, max(every, key=lambda each: (len(every[each].layers), each.startswith("mask")))
    clock, seconds = time.process_time, {}
    few = replace(
        study, size=replace(size, scenes=scenes, prompts=prompts, chosen_scenes=scenes, chosen_prompts=prompts)
    )
    for count in (1, 1 + steps):
        began = clock()
        trained(few, f"{name} cost", every[name], count, 0)
        seconds[count] = clock() - began
    step = (seconds[1 + steps] - seconds[1]) / steps
    began = clock()
    chosen_by(few)
    choosing = (clock() - began) * size.chosen_prompts / prompts
    began = clock()
    list(measures(few))
    judging = (clock() - began) * size.prompts / prompts
    short, long = (1 + len(every)) * size.short, (size.best + 1) * len(size.seeds) * size.long
    runs = 1 + (size.best + 2) * len(size.seeds)
    parts = {
        "training of the grid": short * step,
        "choosing": (2 + len(every)) * choosing,
        "training at full length": (long + len(size.seeds) * size.short) * step,
        "judging": runs * judging,
    }
    print(f"{step:.2f} s a step, {choosing:.0f} s to choose, {judging:.0f} s to judge one run")
    for part, taken in parts.items():
        print(f"{part}: {taken / 60:.0f} core-minutes")
    print(f"{len(every)} settings, all: {sum(parts.values()) / 60:.0f} core-minutes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs, grid.csv and judged.csv")
    parser.add_argument("--cost", action="store_true", help="time a few steps, scenes and pictures alone")
    options = parser.parse_args()
    backbone = load_backbone("mini")
    judges = load_clip(MINI), load_detector()
    study = Study(backbone, *judges, SceneConfig(), backbone.expert_layer, options.out, Size())
    every = settings(backbone.layers, backbone.expert_layer)
    (cost if options.cost else run)(study, every)


if __name__ == "__main__":
    main()
