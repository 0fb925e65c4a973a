"""What recording costs, at one SD3-medium block's shape on the CPU: 24 heads x 64, 4,096 image and 154 text tokens.

Run from the repository: python -m tests.benchmarks.bench_recorder

- plain: the attention alone
- recorded: the attention and its head-mean I2T map from the log-sum-exp, as AttentionRecorder takes it
- materialized: the full softmax map, its head-mean I2T direction, then the attention again

Times are medians of interleaved runs in one process. Peak memory is a process's own, above what it used before inputs
were made: inputs, output and everything in between.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.attention.operators import attention_with_lse

HEADS, DIM, IMAGE, TEXT = 24, 64, 4096, 154
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def plain(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    return F.scaled_dot_product_attention(query, key, value), None


def recorded(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    output, lse = attention_with_lse(query, key, value)
    tokens = query.shape[2]
    call = JointAttention(
        0, slice(0, tokens - TEXT), slice(tokens - TEXT, tokens), query, key, value, lse, DIM**-0.5, None, output
    )
    return output, call.head_mean("i2t")


def materialized(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    probabilities = (query @ key.mT * DIM**-0.5).softmax(dim=-1)
    maps = probabilities[:, :, :-TEXT, -TEXT:].float().mean(dim=1)
    del probabilities
    return F.scaled_dot_product_attention(query, key, value), maps


VARIANTS: dict[str, Callable] = {function.__name__: function for function in (plain, recorded, materialized)}


def inputs(dtype: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack(
        [torch.randn(1, HEADS, IMAGE + TEXT, DIM, generator=generator).to(DTYPES[dtype]) for _ in range(3)]
    )


def peak_rss() -> float:
    """This process's peak resident memory so far, in MiB."""
    if sys.platform == "linux":
        # getrusage would count the parent process's memory too, which a child inherits.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def memory(variant: str, dtype: str) -> float:
    """Peak memory of one call in this process, in MiB."""
    VARIANTS[variant](*torch.ones(3, 1, HEADS, TEXT + 1, DIM, dtype=DTYPES[dtype]))  # loads the kernels
    before = peak_rss()
    query, key, value = torch.empty(3, 1, HEADS, IMAGE + TEXT, DIM, dtype=DTYPES[dtype]).normal_()
    VARIANTS[variant](query, key, value)
    return peak_rss() - before


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--memory", nargs=2, metavar=("VARIANT", "DTYPE"), help="print the peak memory of one variant")
    arguments = parser.parse_args()
    if arguments.memory:
        print(memory(*arguments.memory))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, median of {arguments.runs} runs\n")
    print("| type | variant | time, s | time ratio | peak memory, MiB | memory ratio | largest error |")
    print("|---|---|---|---|---|---|---|")
    for dtype in DTYPES:
        query, key, value = inputs(dtype)
        seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
        maps: dict[str, Tensor | None] = {}
        for run in range(arguments.runs + 1):
            for name, variant in VARIANTS.items():
                start = time.perf_counter()
                maps[name] = variant(query, key, value)[1]
                if run:  # the first one warms up
                    seconds[name].append(time.perf_counter() - start)
        peaks = {}
        for name in VARIANTS:
            command = [sys.executable, "-m", "tests.benchmarks.bench_recorder", "--memory", name, dtype]
            peaks[name] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        times = {name: statistics.median(values) for name, values in seconds.items()}
        for name in VARIANTS:
            error = "" if maps[name] is None else f"{(maps[name] - reference(query, key)).abs().max():.1e}"
            print(
                f"| {dtype} | {name} | {times[name]:.2f} | {times[name] / times['plain']:.2f} "
                f"| {peaks[name]:.0f} | {peaks[name] / peaks['plain']:.2f} | {error} |",
                flush=True,
            )


def reference(query: Tensor, key: Tensor) -> Tensor:
    """Head-mean I2T map from a softmax in fp64, one head at a time."""
    total = torch.zeros(query.shape[0], IMAGE, TEXT, dtype=torch.float64)
    for head in range(HEADS):
        for rows in torch.arange(IMAGE).split(512):
            scores = query[:, head, rows].double() @ key[:, head].double().mT * DIM**-0.5
            total[:, rows] += scores.softmax(dim=-1)[..., IMAGE:] / HEADS
    return total


if __name__ == "__main__":
    main()
