"""What a step of fine-tuning keeps for each image, for `magnet.memory`: `python -m tests.benchmarks.bench_memory`.

Prints a markdown table. Random Stable Diffusion 3s on the CPU, one image. "kept": bytes of all tensors that autograd
saves in the forward, weights excepted, each storage once. "peak": what a process of its own takes at most for two
steps, beyond what it took before them.
"""

import argparse
import subprocess
import sys
import tempfile

import torch

from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.loading import as_dtype, wrap_pipeline
from seg4diff_tools.magnet import MagnetConfig, finetune
from seg4diff_tools.magnet.memory import step_bytes
from seg4diff_tools.scenes import Scenes
from tests.benchmarks.bench_recorder import peak_rss
from tests.conftest import tiny_pipeline

SIZES = (
    *((4, 6, 32, "fp32", 0), (8, 6, 32, "fp32", 0), (4, 6, 32, "bf16", 0), (4, 12, 32, "bf16", 0)),
    *((4, 24, 16, "fp32", 0), (8, 24, 16, "fp32", 0), (4, 24, 16, "fp32", 1), (8, 24, 16, "fp32", 1)),
    *((4, 24, 32, "fp32", 0), (4, 24, 32, "fp32", 1)),
)
"""Blocks, heads of 64 channels, image tokens along a side, number format, and whether blocks are computed again."""


def model(layers: int, heads: int, side: int, dtype: str) -> Backbone:
    width = {"attention_head_dim": 64, "num_attention_heads": heads, "caption_projection_dim": 64 * heads}
    pipe = tiny_pipeline(num_layers=layers, sample_size=2 * side, pos_embed_max_size=side, **width)
    return wrap_pipeline(pipe.to(as_dtype(dtype)), name="random")


def step(backbone: Backbone, steps: int = 1, checkpointing: bool = False) -> None:
    config = MagnetConfig(steps=steps, batch=1, layers=(1,), size=backbone.token_px * backbone.token_grid()[0])
    finetune(
        *(backbone, Scenes("train", 4), config, tempfile.mkdtemp() + "/run"),
        images_at_once=1,
        gradient_checkpointing=checkpointing,
        progress=False,
    )


def kept(backbone: Backbone, checkpointing: bool) -> int:
    """Bytes of what autograd saves in one step."""
    weights = {value.untyped_storage().data_ptr() for value in backbone.transformer.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        # held, so that no other tensor gets the same place
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step(backbone, 1, checkpointing)
    return sum(storage.nbytes() for place, storage in storages.items() if place not in weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peak", nargs=5, metavar=("LAYERS", "HEADS", "SIDE", "DTYPE", "CHECKPOINTING"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        backbone = model(*map(int, options.peak[:3]), options.peak[3])
        backbone.encode_prompt("a cat")
        before = peak_rss()
        step(backbone, 2, options.peak[4] == "1")
        print(peak_rss() - before)
        return
    print("| format | blocks | channels | image tokens | checkpointing | kept, MiB | peak, MiB | formula, MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for size in SIZES:
        layers, heads, side, dtype, again = size
        backbone = model(layers, heads, side, dtype)
        estimate, found = step_bytes(backbone, checkpointing=bool(again)), kept(backbone, bool(again))
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks.bench_memory",
            "--peak",
            *map(str, size),
        ]
        peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        sizes = f"{found / 2**20:.0f} | {peak:.0f} | {estimate / 2**20:.0f}"
        print(f"| {dtype} | {layers} | {64 * heads} | {side**2} | {'yes' if again else 'no'} | {sizes} |", flush=True)


if __name__ == "__main__":
    main()
