"""SD3-medium and FLUX.1-dev's blocks at their real size, with random weights, on any machine with the memory.

Run from the repository: python -m tests.benchmarks.real_size [--model flux] [--size 1024] [--dtype bfloat16]

SD3-medium's transformer has its published configuration (24 blocks of 24 heads x 64, 2.0 billion weights); its query
and key projections are drawn wider than the others, so that attention is not even. T5 is left out, as in the paper. The
text encoders have CLIP's widths and two layers each, the VAE its shape of latents and a few channels: both are small,
so that times are the transformer's. FLUX.1-dev's widths (24 heads x 128) come with one double and one single block.

A row is printed when it is measured and kept in the results folder: a run that was stopped goes on after it. In fp32,
SD3-medium wants 9 GB, and 11 GB for a step of fine-tuning; a forward at 512 pixels takes about a minute on one core.

- plain: one forward as it is
- recorded: with the head-mean I2T map of every layer and every text token, by AttentionRecorder
- segmented: `segment` of a photograph whose latent is given, up to the expert layer
- full map: a forward in which the expert layer's whole softmax map is made beside its attention, as is usual
- exactness: the expert layer's head-mean I2T map against a softmax in fp64
- sweep: every layer of two photographs scored by one run
- flow matching: one step of plain LoRA fine-tuning on one photograph, with blocks computed again in the backward pass
- fine-tuning: the same with its masks and their losses, as `finetune` takes a step
"""

import argparse
import functools
import json
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.attention.recorder import AttentionRecorder
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checkpoints import cpu_has_bf16
from seg4diff_tools.backbones.loading import wrap_pipeline
from seg4diff_tools.datasets.samples import LabeledImage
from tests.conftest import tiny_tokenizer

CLASSES = ("sky", "water", "grass", "tree")
WORDS = "a red car and a cat on the grass"
SD3 = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 768 + 1280,
    "pos_embed_max_size": 192,
}
FLUX = {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": True}
TINY = {
    "sd3": {"num_layers": 3, "num_attention_heads": 3, "attention_head_dim": 8, "caption_projection_dim": 24},
    "flux": {"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6)},
}
"""Shapes of the tests' run of the same code."""
SD3_ROWS = ("plain", "recorded", "segmented", "full map", "exactness", "sweep", "flow matching", "fine-tuning")
EXPERT = {24: 9}
"""Layer whose maps are looked at, by number of layers; the middle one elsewhere."""
WIDE = 0.045
"""Deviation of query and key weights; 0.02 of all others."""


def filled(build: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """Build a model without initializing it, and fill it with random weights."""
    generator = torch.Generator("cpu").manual_seed(0)
    with torch.device("meta"):
        model = build()
    # not the model's own `to`, which warns of modules to be kept in fp32 where there are none
    model = nn.Module.to(model, dtype).to_empty(device="cpu").requires_grad_(False).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            # weights of norms are 1, biases 0
            parameter.fill_(float(name.endswith("weight")))
        else:
            wide = any(part in name for part in ("to_q.", "to_k.", "add_q_proj.", "add_k_proj."))
            parameter.normal_(std=WIDE if wide else 0.02, generator=generator)
    return model


def text_encoder(tokenizer: Any, width: int) -> CLIPTextModelWithProjection:
    """A CLIP text encoder of a real width, with two layers."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        projection_dim=width,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def sd3(size: int, dtype: torch.dtype, tiny: bool) -> Backbone:
    """SD3-medium with random weights."""
    shape = SD3 | (TINY["sd3"] if tiny else {})
    transformer = filled(lambda: SD3Transformer2DModel(**shape), dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # the table of positions is computed, not drawn
        table = SD3Transformer2DModel(**(shape | {"num_layers": 0})).pos_embed.pos_embed
        transformer.pos_embed.pos_embed = table.to(dtype)
        tokenizer, tokenizer_2 = tiny_tokenizer(), tiny_tokenizer(pad_token="!")
        channels = (8, 8, 8, 8)
        pipe = StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * len(channels),
                up_block_types=("UpDecoderBlock2D",) * len(channels),
                block_out_channels=channels,
                latent_channels=16,
                norm_num_groups=2,
                scaling_factor=1.5305,
                shift_factor=0.0609,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ).to(dtype),
            text_encoder=text_encoder(tokenizer, 768).to(dtype).eval(),
            tokenizer=tokenizer,
            text_encoder_2=text_encoder(tokenizer_2, 1280).to(dtype).eval(),
            tokenizer_2=tokenizer_2,
            text_encoder_3=None,
            tokenizer_3=None,
        )
    pipe.set_progress_bar_config(disable=True)
    pipe.default_sample_size = size // pipe.vae_scale_factor
    return wrap_pipeline(pipe, name="SD3-medium, random weights")


def flux(size: int, dtype: torch.dtype, tiny: bool) -> tuple[nn.Module, dict[str, Any]]:
    """Two blocks of FLUX.1-dev's widths with random weights, and arguments of a forward."""
    transformer = filled(lambda: FluxTransformer2DModel(**(FLUX | (TINY["flux"] if tiny else {}))), dtype)
    generator, side, text = torch.Generator("cpu").manual_seed(1), size // 16, 512

    def drawn(*shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=generator, dtype=torch.float32).to(dtype)

    places = torch.cartesian_prod(torch.arange(1), torch.arange(side), torch.arange(side))
    return transformer, {
        "hidden_states": drawn(side**2, 64),
        "encoder_hidden_states": drawn(text, transformer.config.joint_attention_dim),
        "pooled_projections": drawn(transformer.config.pooled_projection_dim),
        "timestep": torch.tensor([0.5], dtype=dtype),
        "guidance": torch.tensor([3.5], dtype=dtype),
        "img_ids": places.to(dtype),
        "txt_ids": torch.zeros(text, 3, dtype=dtype),
    }


def expert(layers: int) -> int:
    """The layer whose maps are looked at."""
    return EXPERT.get(layers, layers // 2)


def photographs() -> list[LabeledImage]:
    """Two photographs of scikit-learn, each with a label map of four bands."""
    from sklearn.datasets import load_sample_images  # of the extra [evaluate]

    found = []
    for image in load_sample_images().images:
        side = min(image.shape[:2])
        image = np.asarray(image[:side, :side])
        labels = np.repeat(np.arange(side) * len(CLASSES) // side, side).reshape(side, side)
        found.append(LabeledImage(image, CLASSES, labels.astype(np.uint8), "a photograph"))
    return found


@contextmanager
def watched(row: dict[str, Any]) -> Iterator[None]:
    """Put the seconds and the peak of the process's memory, looked at every 20 ms, into a row."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while True:
            peak[0] = max(peak[0], resident())
            if done.wait(0.02):
                return

    before, thread = resident(), threading.Thread(target=watch)
    thread.start()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        row |= {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        done.set()
        thread.join()
        row |= {"peak": peak[0], "above": peak[0] - before}


def resident() -> float:
    """This process's memory in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 2**20


def full_map(call: JointAttention) -> None:
    """The usual way: the softmax of all scores of all heads, its mean, its image-to-text part."""
    probabilities = (call.query @ call.key.mT * call.scale).softmax(dim=-1)
    probabilities.mean(dim=1)[:, call.image, call.text].float()


class Exactness:
    """Compares a layer's head-mean I2T map, and the usual softmax's, with a softmax in fp64."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}

    def __call__(self, call: JointAttention) -> None:
        ours, heads = call.head_mean("i2t")[0].double(), call.query.shape[1]
        exact, usual, lse = torch.zeros_like(ours), torch.zeros_like(ours), 0.0
        for head in range(heads):
            for rows in torch.arange(call.image.start, call.image.stop).split(512):
                at = rows - call.image.start
                scores = call.query[0, head, rows].double() @ call.key[0, head].double().mT * call.scale
                exact[at] += scores.softmax(-1)[:, call.text] / heads
                lse = max(lse, (scores.logsumexp(-1) - call.lse[0, head, rows]).abs().max().item())
                rounded = (call.query[0, head, rows] @ call.key[0, head].mT * call.scale).softmax(-1)
                usual[at] += rounded[:, call.text].double() / heads
        self.found = {
            "lse": lse,
            "relative": ((ours - exact).abs() / exact).max().item(),
            "usual": ((usual - exact).abs() / exact).max().item(),
            "lowest": exact.min().item(),
            "highest": exact.max().item(),
        }


class Run:
    """The rows of one model at one size and type, in a folder."""

    def __init__(self, folder: Path, model: str, size: int, dtype: torch.dtype) -> None:
        name = f"{model}-{size}-{str(dtype).removeprefix('torch.')}"
        self.file, self.plain = folder / f"{name}.jsonl", folder / f"{name}.npy"
        folder.mkdir(parents=True, exist_ok=True)
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        self.rows: dict[str, dict[str, Any]] = {row["row"]: row for row in map(json.loads, lines)}

    def measure(self, name: str, work: Callable[[], str]) -> None:
        """Measure a row, print and keep it; one that is there already is printed alone."""
        if name not in self.rows:
            row: dict[str, Any] = {"row": name}
            with watched(row):
                remark = work()
            row["remark"] = remark
            self.rows[name] = row
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        print(self.line(name), flush=True)

    def line(self, name: str) -> str:
        """A row of the table."""
        row, plain, flow = self.rows[name], self.rows.get("plain"), self.rows.get("flow matching")
        ratio = f"{row['cpu'] / plain['cpu']:.2f}" if plain and name != "built" else ""
        remark = row["remark"]
        if name == "fine-tuning" and flow:
            remark += f"; {row['cpu'] / flow['cpu']:.2f} of the step without masks"
        return f"| {name} | {row['cpu']:.1f} | {ratio} | {row['peak']:.0f} | {row['above']:.0f} | {remark} |"


HEAD = (
    "| what | CPU time, s | of a plain forward | peak memory, MiB | above the start, MiB | |\n|---|---|---|---|---|---|"
)


def same(run: Run, output: Tensor) -> str:
    """Whether an output is the plain forward's, bit for bit."""
    return (
        "the output is the same bit for bit"
        if np.array_equal(np.load(run.plain), output.float().numpy())
        else ("**another output**")
    )


def forward_rows(
    run: Run, transformer: nn.Module, predict: Callable[[], Tensor], layer: int
) -> dict[str, Callable[[], str]]:
    """The rows of single forwards, which every model has."""

    @torch.no_grad()
    def forward() -> Tensor:
        return predict()

    def plain() -> str:
        np.save(run.plain, forward().float().numpy())
        return ""

    def recorded() -> str:
        with AttentionRecorder(transformer, memory_budget=8 << 30) as recorder:
            output = forward()
        sizes = recorder.maps.sizes
        return f"{sizes['layer']} layers of {sizes['token']} tokens; {same(run, output)}"

    def materialized() -> str:
        with intercept(transformer, full_map, layers=layer):
            return same(run, forward())

    def exactness() -> str:
        exact = Exactness()
        with intercept(transformer, exact, layers=layer, stop_after=layer):
            forward()
        found = exact.found
        return (
            f"log-sum-exp within {found['lse']:.1e}; map within {found['relative']:.1e} of itself, a softmax in the "
            f"model's type within {found['usual']:.1e}; attention from {found['lowest']:.1e} to {found['highest']:.1e}"
        )

    return {"plain": plain, "recorded": recorded, "full map": materialized, "exactness": exactness}


def measure_sd3(run: Run, size: int, dtype: torch.dtype, tiny: bool, wanted: Sequence[str]) -> None:
    """The rows of SD3-medium."""
    from seg4diff_tools.evaluation.sweeps import layer_step_sweep
    from seg4diff_tools.magnet.config import MagnetConfig
    from seg4diff_tools.magnet.loop import finetune
    from seg4diff_tools.magnet.memory import step_bytes
    from seg4diff_tools.segmentation.options import OpenVocabulary
    from seg4diff_tools.segmentation.segment import segment

    made: list[Backbone] = []

    def build() -> str:
        made.append(sd3(size, dtype, tiny))
        weights = sum(parameter.numel() for parameter in made[0].transformer.parameters())
        return f"{weights / 1e9:.2f} billion weights"

    run.rows.pop("built", None)  # a run that goes on builds the model again
    run.measure("built", build)
    (backbone,) = made
    layer, photos = expert(backbone.layers), photographs()
    latents = backbone.encode_image(photos[0].image, size=size)
    noisy, prompt = backbone.add_noise(latents, 8), backbone.encode_prompt(WORDS)
    rows = forward_rows(run, backbone.transformer, lambda: backbone.predict_velocity(*noisy, prompt), layer)

    def segmented() -> str:
        found = segment(
            backbone, photos[0].image, CLASSES, OpenVocabulary(layers=layer, size=size), latents=latents, progress=False
        )
        return f"{len(np.unique(found.label_map))} classes in the label map"

    def swept() -> str:
        options = OpenVocabulary(size=size)
        table = layer_step_sweep(backbone, photos, options=options, progress=False).table()
        return f"{len(table)} rows"

    def tuned(**changes: float) -> str:
        config = MagnetConfig(steps=1, batch=1, warmup=0, layers=(layer,), size=size, **changes)
        with tempfile.TemporaryDirectory() as folder:
            finetune(backbone, photos[:1], config, folder, gradient_checkpointing=True, progress=False)
            written = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
        return f"a LoRA of {written / 2**20:.0f} MiB"

    flow = functools.partial(tuned, focal_weight=0.0, dice_weight=0.0)
    rows |= {"segmented": segmented, "sweep": swept, "flow matching": flow, "fine-tuning": tuned}
    for name in wanted or SD3_ROWS:
        run.measure(name, rows[name])
    estimate = step_bytes(backbone, size, checkpointing=True)
    print(f"\nEstimated for a step beside the weights: {estimate / 2**20:.0f} MiB.")


def measure_flux(run: Run, size: int, dtype: torch.dtype, tiny: bool, wanted: Sequence[str]) -> None:
    """The rows of FLUX.1-dev's two blocks."""
    made: list[Any] = []

    def build() -> str:
        made.extend(flux(size, dtype, tiny))
        return f"{sum(parameter.numel() for parameter in made[0].parameters()) / 1e9:.2f} billion weights"

    run.rows.pop("built", None)
    run.measure("built", build)
    transformer, inputs = made
    rows = forward_rows(run, transformer, lambda: transformer(**inputs, return_dict=False)[0], 1)
    for name in wanted or rows:
        run.measure(name, rows[name])


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("sd3", "flux"), default="sd3")
    parser.add_argument("--size", type=int, default=512, help="side of the picture in pixels")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="bfloat16 where the CPU has it, else float32")
    parser.add_argument("--results", type=Path, default=Path("real_size"), help="folder of the rows, to go on from")
    parser.add_argument("--rows", nargs="*", choices=SD3_ROWS, default=(), help="the rows to measure, all by default")
    parser.add_argument("--tiny", action="store_true", help="the same code on a tiny model")
    asked = parser.parse_args(arguments)
    dtype = getattr(torch, asked.dtype or ("bfloat16" if cpu_has_bf16() else "float32"))
    run = Run(asked.results, asked.model, asked.size, dtype)
    cores = f"{torch.get_num_threads()} thread(s) of {platform.processor() or platform.machine()}"
    print(f"{asked.model}, {asked.size} px, {str(dtype).removeprefix('torch.')}, {cores}, torch {torch.__version__}\n")
    print(HEAD, flush=True)
    {"sd3": measure_sd3, "flux": measure_flux}[asked.model](run, asked.size, dtype, asked.tiny, asked.rows)


if __name__ == "__main__":
    main()
