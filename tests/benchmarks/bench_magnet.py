"""What the mask loss adds to a step of LoRA fine-tuning: `python -m tests.benchmarks.bench_magnet`.

Prints a markdown table. Time is the median of processor seconds of a whole step, data included, over interleaved
steps; on a
GPU wall-clock seconds. Peak memory is a process's own, above what it used before its first step. The third variant is
what one would write instead: keep the layer's whole joint map for the loss.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.backbones.loading import load_backbone
from seg4diff_tools.backbones.lora import attach
from seg4diff_tools.magnet import MagnetConfig, alignment, preset
from seg4diff_tools.magnet.loop import _Run
from seg4diff_tools.magnet.student import Student
from seg4diff_tools.scenes import Scenes
from tests.benchmarks.bench_recorder import peak_rss

PLAIN = "flow matching alone"
VARIANTS = {
    PLAIN: {"focal_weight": 0.0, "dice_weight": 0.0},
    "with the mask loss, shares": {},
    "with the mask loss, scores": {"reading": "scores"},
    "with the mask loss, heads": {"reading": "scores", "maps": "heads", "text": "caption"},
    "with the mask loss, whole map": {},
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
    config: MagnetConfig = replace(preset("mini"), batch=batch, **VARIANTS[name])
    backbone = load_backbone(model, device=device)
    attach(backbone.transformer, backbone.family, config.rank, config.alpha)
    accelerator = Accelerator(cpu=backbone.device.type == "cpu")
    layers = [backbone.expert_layer] if config.has_masks else []
    student = Student(backbone, config, layers, None)
    run = _Run(backbone, Scenes("train", 1000), config, Path(tempfile.mkdtemp()), accelerator, student)
    if name.endswith("whole map"):

        def keep(call: JointAttention) -> None:
            run.student._seen[call.layer] = whole_map(call, *run.student._read.keywords.values())

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--device")
    parser.add_argument("--memory", metavar="VARIANT", help="print the peak memory of one variant")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shared = options.model, options.batch, options.device
    if options.memory:
        print(memory(start(options.memory, *shared)))
        return
    runs = {name: start(name, *shared) for name in VARIANTS}
    times = {name: [seconds(run, step) for step in range(1)] for name, run in runs.items()}
    for step in range(1, options.steps):
        for name, run in runs.items():
            times[name].append(seconds(run, step))
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.bench_magnet",
        "--model",
        options.model,
        "--batch",
        str(options.batch),
    ]
    command += ["--device", options.device] if options.device else []
    peaks = {}
    for name in VARIANTS:
        found = subprocess.run([*command, "--memory", name], check=True, capture_output=True, text=True)
        peaks[name] = float(found.stdout.splitlines()[-1])
    print("| step | time, s | time ratio | peak memory, MiB | memory ratio |")
    print("|---|---|---|---|---|")
    medians = {name: statistics.median(taken[1:]) for name, taken in times.items()}
    for name in VARIANTS:
        ratios = medians[name] / medians[PLAIN], peaks[name] / peaks[PLAIN]
        print(f"| {name} | {medians[name]:.2f} | {ratios[0]:.2f} | {peaks[name]:.0f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
