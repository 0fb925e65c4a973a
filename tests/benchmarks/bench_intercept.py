"""What interception itself costs a layer, apart from maps: `python -m tests.benchmarks.bench_intercept`.

Prints a markdown table: the joint attention of one block of a tiny SD3, whose operators take microseconds, on the CPU.
Best of many short runs, variants in turn, which other work on the machine disturbs least.

- plain: without hooks
- other layers wanted: hooks alone
- this layer wanted: hooks, each operator of the layer through the mode, attention with its log-sum-exp
- function replaced: the same, with `scaled_dot_product_attention` replaced in the whole process instead of the mode

A second table says where a wanted layer's time goes: each part alone, best of many runs.
"""

import argparse
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from seg4diff_tools.attention import operators
from seg4diff_tools.attention.intercept import _TAPS, _Request, _Tap, intercept
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.backbones.loading import wrap_pipeline
from seg4diff_tools.families import family_of
from tests.conftest import tiny_pipeline

LAYER = 1


class Replacing(_Tap):
    """The same hooks, for a function that asks which layer of its thread runs."""

    running = threading.local()

    def _before(self, layer: int, module: nn.Module, args: tuple) -> None:
        self.running.tap = self, layer

    def _after(self, layer: int, module: nn.Module, args: tuple, output: Any) -> None:
        self.running.tap = None


@contextmanager
def replaced(transformer: nn.Module) -> Iterator[None]:
    usual = F.scaled_dot_product_attention

    def routed(*args: Any, **kwargs: Any) -> torch.Tensor:
        found, Replacing.running.tap = getattr(Replacing.running, "tap", None), None
        if found is None:
            return usual(*args, **kwargs)
        tap, layer = found
        return tap._attend(layer, tap._layout, *args, **kwargs)

    tap = Replacing(transformer, family_of(transformer))
    tap.requests.append(_Request(lambda call: None, frozenset([LAYER]), [], None, None, None))
    F.scaled_dot_product_attention = routed
    try:
        yield
    finally:
        F.scaled_dot_product_attention = usual
        tap.remove()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=400, help="of each variant in each round")
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    backbone = wrap_pipeline(tiny_pipeline(num_attention_heads=2, attention_head_dim=8, caption_projection_dim=16))
    transformer, attention = backbone.transformer, backbone.transformer.transformer_blocks[LAYER].attn
    latents = torch.randn(1, *backbone.latent_size(None), generator=torch.Generator().manual_seed(0))
    inputs = backbone.inputs(*backbone.add_noise(latents, 8), [backbone.encode_prompt("a cat")])
    kept: list[dict[str, Any]] = []
    hook = attention.register_forward_pre_hook(lambda module, args, kwargs: kept.append(kwargs), with_kwargs=True)
    transformer(**inputs)
    hook.remove()
    variants: dict[str, Callable[[], AbstractContextManager]] = {
        "plain": nullcontext,
        "other layers wanted": lambda: intercept(transformer, lambda call: None, layers=LAYER - 1),
        "this layer wanted": lambda: intercept(transformer, lambda call: None, layers=LAYER),
        "function replaced": lambda: replaced(transformer),
    }
    best = dict.fromkeys(variants, float("inf"))
    for _ in range(options.rounds):
        for name, variant in variants.items():
            with variant():
                transformer(**inputs)
                for _ in range(options.runs):
                    start = time.perf_counter()
                    attention(**kept[0])
                    best[name] = min(best[name], time.perf_counter() - start)
    print("| interception | joint attention of a tiny block, µs | more than plain, µs | ratio |\n|---|---|---|---|")
    for name, seconds in best.items():
        more = (seconds - best["plain"]) * 1e6
        print(f"| {name} | {seconds * 1e6:.0f} | {more:.0f} | {seconds / best['plain']:.2f} |", flush=True)
    print("\n| part of a wanted layer | µs |\n|---|---|")
    for name, seconds in parts(transformer, inputs, lambda: attention(**kept[0])).items():
        print(f"| {name} | {seconds * 1e6:.1f} |", flush=True)


class Counting(TorchFunctionMode):
    """Counts what a mode sees."""

    seen = 0

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.seen += 1
        return func(*args, **(kwargs or {}))


def parts(transformer: nn.Module, inputs: dict[str, Any], layer: Callable[[], Any]) -> dict[str, float]:
    """Seconds of the parts of a wanted layer beside the layer itself."""
    calls: list[JointAttention] = []
    with Counting() as counting:
        layer()
    with intercept(transformer, calls.append, layers=LAYER):
        transformer(**inputs)
        tap, call = _TAPS[transformer], calls[0]
        assert tap._layout is not None
        given = LAYER, tap._layout, call.query, call.key, call.value
        plain = shortest(lambda: call.query.view(call.query.shape))
        with tap:
            through = shortest(lambda: call.query.view(call.query.shape))
        # two calls: the shape and the view
        each = (through - plain) / 2
        tap.requests[0].on_attention = lambda call: None
        known, answer = operators._OPERATORS, (call.output, call.raw_lse)
        try:
            operators._OPERATORS = dict.fromkeys(known, lambda *_: answer)
            attend = shortest(lambda: tap._attend(*given))
        finally:
            operators._OPERATORS = known
    return {
        f"{counting.seen} functions through the mode, {each * 1e6:.1f} each": counting.seen * each,
        "attention beside its operator": attend,
    }


def shortest(function: Callable[[], Any], runs: int = 20, rounds: int = 300) -> float:
    """Seconds of one call in the shortest of many short rounds."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(runs):
            function()
        found.append((time.perf_counter() - start) / runs)
    return min(found)


if __name__ == "__main__":
    main()
