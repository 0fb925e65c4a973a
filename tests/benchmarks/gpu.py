"""What recording costs at full size: SD3-medium and FLUX.1-dev with random weights in bf16 at 1024 pixels.

Run from the repository: python -m tests.benchmarks.gpu [--markdown book/speed_table.md]

For each model, one denoising forward
- plain: as it is
- recorded: with the head-mean I2T map of every layer, by AttentionRecorder
- materialized: with the full softmax map of every layer, averaged over heads and cut to its I2T direction, as is usual
- segmented: up to the expert layer, with the maps of two words, as `segment` runs it

The recorded row says whether the output stayed the same, and how far the expert layer's map is from a softmax in fp64.
Then single attentions of both shapes, of SD3's also with guidance, a mask, T5's text and, on a GPU, cuDNN as PyTorch's
last choice: which backend PyTorch chose, whether its operator was trusted, and its time against PyTorch's own. Rows are
printed as they come.
Times are medians of interleaved runs; peak memory is the device's, weights included (on the CPU: of a process for each
row). Without a GPU, sizes are reduced in depth, width and picture, in fp32: it takes about two minutes, and the counted
floor beside each row is that of the reduced size.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from seg4diff_tools.attention import operators
from seg4diff_tools.attention.exact import chunked_lse
from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.attention.recorder import AttentionRecorder
from seg4diff_tools.segmentation.class_maps import span_maps
from tests.benchmarks.bench_recorder import peak_rss

CUDNN_LAST = [
    *(SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION),
    *(SDPBackend.MATH, SDPBackend.CUDNN_ATTENTION),
]
VARIANTS = ("plain", "recorded", "materialized", "segmented")


@dataclass(frozen=True)
class Size:
    """A model's shape: blocks of two streams and of one, width, and the tokens of a picture and of a prompt."""

    blocks: tuple[int, int]
    expert: int
    heads: int
    dim: int
    side: int
    text: int

    @property
    def image(self) -> int:
        return self.side**2

    @property
    def width(self) -> int:
        return self.heads * self.dim


SIZES = {"SD3-medium": Size((24, 0), 9, 24, 64, 64, 154), "FLUX.1-dev": Size((19, 38), 12, 24, 128, 64, 512)}
REDUCED = {
    "SD3-medium": replace(SIZES["SD3-medium"], blocks=(4, 0), expert=1, heads=8, side=24),
    "FLUX.1-dev": replace(SIZES["FLUX.1-dev"], blocks=(1, 2), expert=0, heads=4, side=24),
}


def floor(size: Size) -> dict[str, float]:
    """What cannot be avoided, for one layer: operations of recording and of the block, and bytes in 16 bits.

    Recording multiplies image queries with text keys once more (2 N T H d operations), takes T H exponentials for each
    of N image tokens, reads queries, text keys and the log-sum-exp, and writes one map in 32 bits. A block of two
    streams projects every token (8 w^2), mixes tokens (4 n w) and has a feed-forward of four widths (16 w^2).
    """
    tokens = size.image + size.text
    recording = 2 * size.image * size.text * size.width + 2 * size.image * size.text * size.heads
    block = tokens * (24 * size.width**2 + 4 * tokens * size.width)
    read = 2 * tokens * size.width + 4 * size.image * size.heads
    return {
        "recording": recording,
        "block": block,
        "ratio": 1 + recording / block,
        "bytes": read + 4 * size.image * size.text,
        "map bytes": 2 * size.heads * tokens**2,
    }


def model(name: str, size: Size, device: str, dtype: torch.dtype) -> tuple[nn.Module, dict[str, Any]]:
    """A transformer with random weights, and arguments of its forward."""
    torch.manual_seed(0)
    with torch.device("meta"):
        if name.startswith("SD3"):
            transformer = SD3Transformer2DModel(
                num_layers=size.blocks[0],
                num_attention_heads=size.heads,
                attention_head_dim=size.dim,
                caption_projection_dim=size.width,
                pos_embed_max_size=96,
            )
        else:
            transformer = FluxTransformer2DModel(
                num_layers=size.blocks[0],
                num_single_layers=size.blocks[1],
                num_attention_heads=size.heads,
                attention_head_dim=size.dim,
                guidance_embeds=True,
            )
    # not the model's own `to`, which warns of modules to be kept in fp32 where there are none
    transformer = nn.Module.to(transformer, dtype).to_empty(device=device).requires_grad_(False).eval()
    for parameter in [*transformer.parameters(), *transformer.buffers()]:
        if parameter.is_floating_point():
            parameter.normal_(std=0.02)

    def random(*shape: int) -> Tensor:
        return torch.randn(1, *shape, device=device, dtype=dtype)

    if name.startswith("SD3"):
        inputs = {"hidden_states": random(16, 2 * size.side, 2 * size.side), "pooled_projections": random(2048)}
        inputs |= {"timestep": torch.tensor([500.0], device=device)}
    else:
        places = torch.cartesian_prod(torch.arange(1), torch.arange(size.side), torch.arange(size.side))
        inputs = {"hidden_states": random(size.image, 64), "pooled_projections": random(768)}
        inputs |= {"timestep": torch.tensor([0.5], device=device), "guidance": torch.tensor([3.5], device=device)}
        inputs |= {
            "img_ids": places.to(device, dtype),
            "txt_ids": torch.zeros(size.text, 3, device=device, dtype=dtype),
        }
    features = random(size.text, transformer.config.joint_attention_dim)
    return transformer, inputs | {"encoder_hidden_states": features, "return_dict": False}


class Materialize(TorchFunctionMode):
    """The usual way: the whole map of every head, in the place of the attention."""

    def __init__(self, text: slice, image: slice):
        super().__init__()
        self.text, self.image, self.maps = text, image, []

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
        query, key, value = given["query"], given["key"], given["value"]
        joint = (query @ key.mT * query.shape[-1] ** -0.5).softmax(dim=-1)
        self.maps.append(joint[:, :, self.image, self.text].float().mean(dim=1).cpu())
        return joint @ value


@torch.no_grad()
def run(variant: str, name: str, size: Size, transformer: nn.Module, inputs: dict[str, Any]) -> Tensor | None:
    """One forward, and its output where it is the model's own."""
    if variant == "plain":
        return transformer(**inputs)[0]
    if variant == "recorded":
        with AttentionRecorder(transformer, memory_budget=32 << 30):
            return transformer(**inputs)[0]
    if variant == "materialized":
        first, second = slice(0, size.image), slice(size.image, None)
        if not name.startswith("SD3"):
            first, second = slice(size.text, None), slice(0, size.text)
        with Materialize(text=second, image=first):
            transformer(**inputs)
    else:
        weights = torch.eye(2, device=inputs["encoder_hidden_states"].device)

        def read(call: JointAttention) -> None:
            span_maps(call, "i2t", "softmax", ["mean"], [1, 2], weights).cpu()

        with intercept(transformer, read, layers=[size.expert], stop_after=size.expert):
            transformer(**inputs)
    return None


def timed(device: str, work: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each, in turns; the first turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, function in work.items():
            _wait(device)
            start = time.perf_counter()
            function()
            _wait(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peaks(device: str, name: str, size: Size, built: tuple) -> dict[str, float]:
    """Peak memory of each variant in MiB."""
    found = {}
    for variant in VARIANTS:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            run(variant, name, size, *built)
            found[variant] = torch.cuda.max_memory_allocated() / 2**20
        else:
            command = [sys.executable, "-m", "tests.benchmarks.gpu", "--peak", name, variant]
            found[variant] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def floors() -> str:
    """The table of what cannot be avoided at full size."""
    rows = [
        (
            "| model at 1024 pixels | operations of a block | of recording it | time ratio at least | bytes read "
            "and written "
            "| bytes of the full maps |"
        ),
        "|---|---|---|---|---|---|",
    ]
    for name, size in SIZES.items():
        least = floor(size)
        rows.append(
            f"| {name} | {least['block'] / 1e9:.0f} G | {least['recording'] / 1e9:.1f} G | {least['ratio']:.4f} "
            f"| {least['bytes'] / 2**20:.0f} MiB | {least['map bytes'] / 2**20:.0f} MiB |"
        )
    return "\n".join([*rows, ""])


def forwards(device: str, dtype: torch.dtype, sizes: dict[str, Size], repeats: int) -> Iterator[str]:
    """The table of forwards, and the floor beside it, row by row."""
    yield "| model | forward | time, s | ratio | peak memory, MiB | ratio | counted floor of the ratio | output |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, size in sizes.items():
        built = model(name, size, device, dtype)
        work = {variant: partial(run, variant, name, size, *built) for variant in VARIANTS}
        seconds, memory = timed(device, work, repeats), peaks(device, name, size, built)
        plain, recorded = (run(variant, name, size, *built) for variant in ("plain", "recorded"))
        assert plain is not None and recorded is not None
        same = "the same bit for bit" if torch.equal(plain, recorded) else "**another one**"
        same += f"; map within {map_error(*built, size.expert):.1e} of itself"
        for variant in VARIANTS:
            least, output = (f"{floor(size)['ratio']:.3f}", same) if variant == "recorded" else ("", "")
            yield (
                f"| {name} | {variant} | {seconds[variant]:.3f} | {seconds[variant] / seconds['plain']:.2f} "
                f"| {memory[variant]:.0f} | {memory[variant] / memory['plain']:.2f} | {least} | {output} |"
            )


@torch.no_grad()
def map_error(transformer: nn.Module, inputs: dict[str, Any], layer: int) -> float:
    """Largest relative error of a layer's head-mean I2T map in 64 rows, against a softmax in fp64."""
    found = []

    def compare(call: JointAttention) -> None:
        rows = slice(call.image.start, min(call.image.stop, call.image.start + 64))
        scores = call.query[:, :, rows].double() @ call.key.double().mT * call.scale
        exact = scores.softmax(-1)[..., call.text].mean(1)
        found.append(((call.head_mean("i2t")[:, : exact.shape[1]] - exact).abs() / exact).max().item())

    with intercept(transformer, compare, layers=layer, stop_after=layer):
        transformer(**inputs)
    return found[0]


def attentions(device: str, sizes: dict[str, Size], repeats: int) -> Iterator[str]:
    """The table of single attentions of the models' shapes: with guidance, a mask, T5's text, and in every type."""
    yield (
        "| type | attention | backend | trusted | PyTorch's own, ms | with log-sum-exp, ms | ratio | in chunks, ms "
        "| output | largest error of the log-sum-exp |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    sd3, flux = sizes["SD3-medium"], sizes["FLUX.1-dev"]
    cases = {"SD3-medium": (sd3, 1, False), "with guidance": (sd3, 2, False), "with a mask": (sd3, 2, True)}
    cases |= {"with T5's text": (replace(sd3, text=333), 1, False), "FLUX.1-dev": (flux, 1, False)}
    for dtype in (
        (torch.bfloat16, torch.float16, torch.float32) if device == "cuda" else (torch.float32, torch.bfloat16)
    ):
        for name, case in cases.items():
            yield _attention(device, dtype, name, *case, repeats)
        if device == "cuda":
            # as with TORCH_CUDNN_SDPA_DEPRIORITIZED=1
            with sdpa_kernel(CUDNN_LAST, set_priority=True):
                yield _attention(device, dtype, "SD3-medium, cuDNN last", sd3, 1, False, repeats)


@torch.no_grad()
def _attention(device: str, dtype: torch.dtype, name: str, size: Size, batch: int, masked: bool, repeats: int) -> str:
    scale, shape = size.dim**-0.5, (3, batch, size.heads, size.image + size.text, size.dim)
    query, key, value = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    mask = torch.ones(batch, 1, 1, query.shape[2], dtype=torch.bool, device=device) if masked else None
    if mask is not None:
        mask[0, ..., -5:] = mask[1, ..., -3:] = False
    own = partial(F.scaled_dot_product_attention, query, key, value, mask, scale=scale)
    ours = partial(operators.observed_attention, query, key, value, mask, scale)
    added = operators.added_mask(mask, dtype)
    # the first call is checked
    output, lse, _ = ours()
    backend = operators._chosen_backend(query, key, value, mask, scale, False)
    trusted = backend in operators._OPERATORS and bool(list(operators._TRUSTED.values())[-1])
    seconds = timed(
        device, {"own": own, "ours": ours, "chunks": partial(chunked_lse, query, key, added, scale)}, repeats
    )
    scores = query[:, :2, :64].double() @ key[:, :2].double().mT * scale
    scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    error = (lse[:, :2, :64].double() - scores.logsumexp(-1)).abs().max().item()
    same = "the same bit for bit" if torch.equal(output, own()) else "**another one**"
    times = {variant: 1000 * value for variant, value in seconds.items()}
    return (
        f"| {str(dtype).removeprefix('torch.')} | {name} | {backend.name.lower()} | {'yes' if trusted else '**no**'} "
        f"| {times['own']:.1f} | {times['ours']:.1f} | {times['ours'] / times['own']:.2f} | {times['chunks']:.1f} "
        f"| {same} | {error:.1e} |"
    )


def report(device: str, repeats: int) -> Iterator[str]:
    """Both tables row by row, with what they were measured on."""
    dtype, sizes = (torch.bfloat16, SIZES) if device == "cuda" else (torch.float32, REDUCED)
    if device == "cuda":
        place = torch.cuda.get_device_name()
    else:
        place = f"a CPU, {torch.get_num_threads()} thread(s), **at reduced size**"
    shapes = "; ".join(
        f"{name}: {sum(size.blocks)} blocks of {size.heads} x {size.dim}, {size.image} + {size.text} tokens"
        for name, size in sizes.items()
    )
    yield (
        f"On {place}; torch {torch.__version__}, {str(dtype).removeprefix('torch.')}, medians of {repeats} interleaved "
        f"runs. {shapes}."
    )
    yield ""
    yield from forwards(device, dtype, sizes, repeats)
    yield ""
    yield from attentions(device, sizes, repeats)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--markdown", type=Path, help="write the tables here too")
    parser.add_argument("--peak", nargs=2, metavar=("MODEL", "VARIANT"), help=argparse.SUPPRESS)
    parser.add_argument("--floor", type=Path, help="write the table of the floor here, and do nothing else")
    asked = parser.parse_args()
    if asked.floor:
        asked.floor.write_text(floors())
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if asked.peak:
        name, variant = asked.peak
        run(variant, name, REDUCED[name], *model(name, REDUCED[name], "cpu", torch.float32))
        print(peak_rss())
        return
    rows = []
    for row in report(device, asked.repeats):
        # at once: the memory may end before the last row
        print(row, flush=True)
        rows.append(row)
        if asked.markdown:
            asked.markdown.write_text("\n".join([*rows, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
