"""Scenes per second, planned and drawn: `python tests/benchmarks/bench_scenes.py`. Prints a markdown table."""

import argparse
import time
from collections.abc import Callable, Sequence
from itertools import count

import torch

from seg4diff_tools.pretrain import preset
from seg4diff_tools.scenes import Plan, SceneConfig, draw_scenes, plan, render


def rate(call: Callable[[Sequence[Plan]], object], plans: Sequence[Plan], batch: int, seconds: float) -> float:
    """Scenes per second of calls on batches of plans, after one to warm up."""
    call(plans[:batch])
    began, done = time.perf_counter(), 0
    for start in count(0, batch):
        chosen = [plans[(start + offset) % len(plans)] for offset in range(batch)]
        call(chosen)
        done += batch
        if time.perf_counter() - began > seconds:
            return done / (time.perf_counter() - began)
    raise AssertionError


def rows(config: SceneConfig, device: str, batch: int, seconds: float) -> list[tuple[str, float]]:
    """What is measured, and its scenes per second."""

    def drawn(plans: Sequence[Plan]) -> None:
        render(plans, config.size, device)
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    began = time.perf_counter()
    plans = [plan("train", index, config) for index in range(2 * batch)]
    planned = len(plans) / (time.perf_counter() - began)
    return [
        ("planned", planned),
        ("drawn one at a time", rate(drawn, plans, 1, seconds)),
        (f"drawn {batch} at a time", rate(drawn, plans, batch, seconds)),
        (
            f"drawn {batch} at a time, with labels and masks",
            rate(lambda p: draw_scenes(p, config.size), plans, batch, seconds),
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=3.0, help="of every measurement")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads, drawn on {options.device}\n")
    print("| preset | side, px | scenes | per second |\n|---|---|---|---|")
    for name in ("cpu", "gpu"):
        config = preset(name).model.scenes
        for what, per_second in rows(config, options.device, options.batch, options.seconds):
            print(f"| {name} | {config.size} | {what} | {per_second:.0f} |", flush=True)


if __name__ == "__main__":
    main()
