"""What a loss on attention adds to a step of LoRA fine-tuning: `python -m tests.benchmarks.bench_magnet`.

Prints a markdown table. Time is the median of processor seconds of a whole step, data included, over interleaved
steps; on a GPU wall-clock seconds. "before" is flow matching alone as it was computed before: all zero vectors in T5's
place, images encoded one at a time. "whole map" is what one would write for the mask loss: keep the layer's joint map.
The layers of "four layers" are the expert and its neighbors. Peak memory is a process's own, above what it used before
its first step; `--no-memory` leaves it out. With `--pretrain`, images a second of a training step of `pretrain` beside
it, weights and optimizer of the whole transformer included.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.backbones.loading import load_backbone
from seg4diff_tools.backbones.lora import attach
from seg4diff_tools.magnet import MagnetConfig, alignment, preset
from seg4diff_tools.magnet.loop import _Run
from seg4diff_tools.magnet.student import Student
from seg4diff_tools.pretrain import config as pretrain_config
from seg4diff_tools.pretrain.speed import Speed
from seg4diff_tools.scenes import Scenes
from tests.benchmarks.bench_recorder import peak_rss

PLAIN, BEFORE = "flow matching alone", "flow matching alone, before"
NONE = {"focal_weight": 0.0, "dice_weight": 0.0}
PLACES = {"places_weight": 1e-3, "entropy_weight": 5e-5}
VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: NONE,
    BEFORE: NONE,
    "mask loss, shares": {},
    "mask loss, scores": {"reading": "scores"},
    "mask loss, heads": {"reading": "scores", "maps": "heads", "text": "caption"},
    "mask loss, whole map": {},
    "places and entropy": NONE | PLACES,
    "apart and agree": NONE | {"apart_weight": 1e-2, "agree_weight": 1e-2},
    "regions": NONE | {"regions_weight": 1.0},
    "places and entropy, four layers": NONE | PLACES | {"layers": 4},
    "mask loss, shares, four layers": {"layers": 4},
    "temperature": NONE | {"temperature": 1.2},
}


def whole_map(call: JointAttention, *arguments) -> list[torch.Tensor]:
    """The same maps, read from a joint map that is materialized as a whole."""
    scores = (call.query.float() @ call.key.float().mT) * call.scale
    probabilities = scores.softmax(-1)
    targets, _, grid, _ = arguments
    direction = probabilities[:, :, call.image, call.text].mean(1)
    found = []
    for one, target in zip(direction, targets, strict=True):
        maps = torch.stack([one[:, list(span)].mean(1) for span in target.spans])
        found.append(alignment._log_shares(maps).unflatten(-1, grid))
    return found


def start(name: str, model: str, batch: int, device: str | None) -> _Run:
    backbone = load_backbone(model, device=device)
    options = dict(VARIANTS[name])
    expert = backbone.expert_layer
    count = options.pop("layers", 1)
    layers = tuple(range(expert - count // 2, expert - count // 2 + count))
    config: MagnetConfig = replace(preset("mini"), batch=batch, layers=layers, **options)
    attach(backbone.transformer, backbone.family, config.rank, config.alpha)
    accelerator = Accelerator(cpu=backbone.device.type == "cpu")
    student = Student(backbone, config, list(layers) if config.has_masks else [], None)
    run = _Run(backbone, Scenes("train", 1000), config, Path(tempfile.mkdtemp()), accelerator, student)
    if name == BEFORE:
        student.zeros = 0
        whole = backbone.encode_image

        def one_by_one(images: list[Any], size: Any) -> torch.Tensor:
            return torch.cat([whole(image, size) for image in images])

        vars(backbone)["encode_image"] = one_by_one
    if name.endswith("whole map"):

        def keep(call: JointAttention) -> None:
            run.student._seen[call.layer] = whole_map(call, *run.student._read.keywords.values()), None

        run.student._keep = keep
    return run


def seconds(run: _Run, step: int) -> float:
    clock = time.process_time if run.accelerator.device.type == "cpu" else time.perf_counter
    began = clock()
    run._step(step)
    if run.accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - began


def memory(run: _Run) -> float:
    """Peak memory of two steps in MiB, beyond what there was before."""
    if run.accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run._step(0), run._step(1)
        return (torch.cuda.max_memory_allocated() - before) / (1 << 20)
    before = peak_rss()
    run._step(0), run._step(1)
    return peak_rss() - before


def pretraining(device: torch.device, batch: int, steps: int) -> float:
    """Median processor seconds of an uncompiled training step of `pretrain` on as many new scenes."""
    from tests.benchmarks.bench_pretrain import Steps

    config = pretrain_config.preset("cpu")
    training = replace(config.transformer, batch=batch)
    with tempfile.TemporaryDirectory() as folder:
        one = Steps(Path(folder), config, training, Speed.best(device, compiled=False), device)
        taken = []
        for number in range(steps):
            began = time.process_time()
            one.step(number)
            taken.append(time.process_time() - began)
    return statistics.median(taken[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--device")
    parser.add_argument(
        "--only", action="append", choices=[*VARIANTS], help="beside flow matching alone; all by default"
    )
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--pretrain", action="store_true")
    parser.add_argument("--memory", metavar="VARIANT", help="print the peak memory of one variant")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shared = options.model, options.batch, options.device
    if options.memory:
        print(memory(start(options.memory, *shared)))
        return
    names = [name for name in VARIANTS if name == PLAIN or not options.only or name in options.only]
    runs = {name: start(name, *shared) for name in names}
    times = {name: [seconds(run, step) for step in range(1)] for name, run in runs.items()}
    for step in range(1, options.steps):
        for name, run in runs.items():
            times[name].append(seconds(run, step))
    command = [sys.executable, "-m", "tests.benchmarks.bench_magnet", "--model", options.model]
    command += ["--batch", str(options.batch), *(["--device", options.device] if options.device else [])]
    peaks = dict.fromkeys(names, float("nan"))
    for name in () if options.no_memory else names:
        found = subprocess.run([*command, "--memory", name], check=True, capture_output=True, text=True)
        peaks[name] = float(found.stdout.splitlines()[-1])
    print("| step | time, s | steps/s | time ratio | peak memory, MiB | memory ratio |")
    print("|---|---|---|---|---|---|")
    medians = {name: statistics.median(taken[1:]) for name, taken in times.items()}
    for name in names:
        ratios = medians[name] / medians[PLAIN], peaks[name] / peaks[PLAIN]
        cells = f"{medians[name]:.2f} | {1 / medians[name]:.2f} | {ratios[0]:.2f} | {peaks[name]:.0f} | {ratios[1]:.2f}"
        print(f"| {name} | {cells} |")
    if options.pretrain:
        taken = pretraining(runs[PLAIN].accelerator.device, options.batch, options.steps)
        print(f"| a step of pretrain | {taken:.2f} | {1 / taken:.2f} | {taken / medians[PLAIN]:.2f} | nan | nan |")


if __name__ == "__main__":
    main()
