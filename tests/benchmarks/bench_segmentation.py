"""What early stopping and recording all layers at once save: `python tests/benchmarks/bench_segmentation.py`.

Prints a markdown table. Times are medians of processor seconds for one image, so that other jobs on the machine hardly
count on a CPU; on a GPU they are wall-clock seconds.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checkpoints import MINI
from seg4diff_tools.backbones.loading import load_backbone, wrap_pipeline
from seg4diff_tools.datasets import LabeledImage
from seg4diff_tools.evaluation import sweeps
from seg4diff_tools.segmentation.class_maps import read_class_maps

NAMES = ("cat", "dog", "tree", "grass")


def backbone_of(name: str) -> Backbone:
    """The named model; random weights of the same shape in place of an embedded model that is not there."""
    if name != "mini" or MINI.is_dir():
        return load_backbone(name)
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from conftest import tiny_pipeline

    shape = {"sample_size": 24, "num_layers": 12, "attention_head_dim": 32, "num_attention_heads": 4}
    pipe = tiny_pipeline(**shape, caption_projection_dim=128, pos_embed_max_size=24)
    return wrap_pipeline(pipe, name="random weights, mini's shape", card={"expert_layer": 9})


def seconds(device: torch.device, calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median time of each call after one to warm up, taken in turns: a machine's speed drifts."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + 1):
        for call, times in zip(calls, taken, strict=True):
            start = clock()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(clock() - start)
    return [statistics.median(times[1:]) for times in taken]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    backbone = backbone_of(options.model)
    device, layer, size = backbone.device, backbone.expert_layer, backbone.image_size
    layer = backbone.layers // 2 if layer is None else layer
    generator = np.random.default_rng(0)
    samples = [
        LabeledImage(
            generator.integers(0, 256, (size, size, 3), dtype=np.uint8), NAMES, generator.integers(0, 4, (size, size))
        )
        for _ in range(options.images)
    ]
    latents = backbone.encode_image(samples[0].image)
    prompts = backbone.class_prompts(NAMES)

    def full() -> None:
        noisy, timestep = backbone.add_noise(latents)
        seen = []
        columns = sorted({column for span in prompts[0].classes.values() for column in span})
        with intercept(
            backbone.transformer, lambda call: seen.append(call.head_mean("i2t", text=columns)), layers=[layer]
        ):
            backbone.predict_velocity(noisy, timestep, prompts)

    def stopped() -> None:
        read_class_maps(backbone, latents, [prompts], layers=[layer])

    def together() -> None:
        sweeps.layer_step_sweep(backbone, samples, progress=False)

    def one_by_one() -> None:
        for each in range(backbone.layers):
            sweeps.layer_step_sweep(backbone, samples, layers=[each], progress=False)

    rows = [
        (f"class maps of layer {layer} of {backbone.layers}", "full forward", full, "stops in that layer", stopped, 1),
        (f"sweep over {backbone.layers} layers", "one run per layer", one_by_one, "one run", together, len(samples)),
    ]
    print(f"{backbone.name}, {device.type}, {torch.get_num_threads()} thread(s), {backbone.dtype}\n")
    print("| task | usual way | s per image | here | s per image | ratio |\n|---|---|---|---|---|---|")
    for task, usual, slow, ours, fast, images in rows:
        before, after = (each / images for each in seconds(device, (slow, fast), options.repeats))
        print(f"| {task} | {usual} | {before:.3f} | {ours} | {after:.3f} | {before / after:.1f} x |")


if __name__ == "__main__":
    main()
