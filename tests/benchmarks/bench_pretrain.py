"""The old and the new training step side by side: `python -m tests.benchmarks.bench_pretrain`.

Prints a markdown table of milliseconds an image, stage by stage, and images a second. The old step has batches of 8,
fp32 products, PyTorch's own attention under an interception, and `torch.optim.Muon`; the new one has batches of 32 and
what `Speed.best` chooses. Steps are interleaved; the median counts. On a CPU, times are of its cores together, which
other work on the machine disturbs least, and a further row has the other attention. The last row is of scenes that were
encoded before: planning them for their prompts counts as "scene", reading their latents as "VAE".
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from seg4diff_tools.pretrain.config import RunConfig, StageConfig, preset
from seg4diff_tools.pretrain.latents import LatentCache
from seg4diff_tools.pretrain.loop import _moving_average, _optimizers
from seg4diff_tools.pretrain.speed import Speed, pin
from seg4diff_tools.pretrain.stages import STAGES, TransformerStage
from seg4diff_tools.scenes import render

STAGE_NAMES = ("scene", "VAE", "text", "forward", "backward", "optimizer", "average")
CACHED = 1024
"""Latents to read from."""


class Steps:
    """Times the stages of training steps, with everything that a training loop does."""

    def __init__(self, folder: Path, config: RunConfig, stage: StageConfig, speed: Speed, device: torch.device) -> None:
        self.training, self.speed, self.device = stage, speed, device
        self.stage = TransformerStage(config.model, folder, device)
        side = config.model.latent_side
        self.cache = LatentCache(folder / "latents", CACHED, (16, side, side), "noise", self._noise)
        self.cache(range(CACHED))
        self.optimizers = _optimizers(self.stage.model, stage, speed)
        self.average = AveragedModel(copy.deepcopy(self.stage.model), multi_avg_fn=_moving_average(stage.ema))
        if speed.joint_attention != "native" or speed.compiled:
            self.stage.prepare(speed)

    def _noise(self, numbers: Sequence[int]) -> torch.Tensor:
        side = self.stage.config.latent_side
        return torch.randn(len(numbers), 16, side, side)

    def step(self, number: int) -> dict[str, float]:
        """Seconds of each stage of one step; all prompts are thinned, as four in five batches are."""
        taken: dict[str, float] = {}

        clock = time.process_time if self.device.type == "cpu" else time.perf_counter

        def timed(name: str, call: Callable[[], Any]) -> Any:
            began = clock()
            result = call()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            taken[name] = clock() - began
            return result

        stage, batch = self.stage, self.training.batch
        generator = torch.Generator().manual_seed(number)
        first = stage.config.recipe.crowded + number * batch
        plans = timed("planning", lambda: stage.plans(range(first, first + batch)))
        size = stage.config.scenes.size
        images = timed("drawing", lambda: render(plans, size, self.device)[0] * 2 - 1)
        taken["scene"] = taken["planning"] + taken.pop("drawing")
        numbers = [int(number) for number in torch.randint(CACHED, (batch,), generator=generator)]
        timed("reading", lambda: self.cache(numbers).to(self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.speed.dtype == torch.bfloat16):
            with torch.no_grad():
                latents = timed("VAE", partial(self._encode, images))
                prompts, _ = stage._prompts(plans, first, generator)
                text, pooled, counts = timed("text", lambda: stage._encode(prompts, True, 1.0, generator))
            sigma = torch.rand(batch, device=self.device)
            noised = latents + torch.randn_like(latents)
            loss = timed(
                "forward", lambda: stage._predict(noised, sigma, text, pooled, counts.log()).float().square().mean()
            )
        timed("backward", loss.backward)
        timed("optimizer", self._update)
        timed("average", lambda: self.average.update_parameters(stage.model))
        return taken

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.stage.vae.encode(images).latent_dist.mean.float()

    def _update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.stage.model.parameters(), self.training.clip_gradients)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def untrained(folder: Path, config: RunConfig, device: torch.device) -> Path:
    """A run whose CLIP and VAE are new: as fast as trained ones."""
    for part in ("clip", "vae"):
        stage = STAGES[part](config.model, folder, device)
        if part == "vae":
            stage.model.register_to_config(shift_factor=0.0, scaling_factor=1.0)
        stage.model.save_pretrained(folder / part)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cores", default="0", help="CPU cores to pin to, such as 0,1")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of either way, after one to warm up")
    options = parser.parse_args()
    pin([int(core) for core in options.cores.split(",")])
    device, config = torch.device(options.device), preset("cpu")
    old, new = StageConfig(1, 8, 1e-3, muon_learning_rate=5e-3), config.transformer
    with tempfile.TemporaryDirectory() as name:
        folder = untrained(Path(name), config, device)
        best = Speed.best(device)
        ways = {"old": Steps(folder, config, old, Speed(), device), "new": Steps(folder, config, new, best, device)}
        if device.type == "cpu":
            other = "matrix" if best.joint_attention == "native" else "native"
            speed = replace(best, joint_attention=other)
            ways[f"new, {other} attention"] = Steps(folder, config, new, speed, device)
        times: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for number in range(options.steps + 1):
            for way, steps in ways.items():
                taken = steps.step(number)
                if number:
                    times[way].append({stage: 1000 * taken[stage] / steps.training.batch for stage in taken})
    found = {
        way: {stage: statistics.median(step[stage] for step in rows) for stage in rows[0]}
        for way, rows in times.items()
    }
    cached = {"scene": found["new"]["planning"], "VAE": found["new"]["reading"]}
    found["new, cached latents"] = found["new"] | cached
    print(f"{ways['new'].speed.describe(device)} torch {torch.__version__}.\n")
    what = "ms of one core an image" if device.type == "cpu" else "ms an image"
    print(f"| {what} | " + " | ".join(STAGE_NAMES) + " | images a second | ratio |")
    print("|---" * (len(STAGE_NAMES) + 3) + "|")
    slowest = sum(found["old"][stage] for stage in STAGE_NAMES)
    for way, stages in found.items():
        total = sum(stages[stage] for stage in STAGE_NAMES)
        cells = [f"{stages[stage]:.1f}" for stage in STAGE_NAMES]
        print(f"| {way} | {' | '.join(cells)} | {1000 / total:.1f} | {slowest / total:.1f} |")


if __name__ == "__main__":
    main()
