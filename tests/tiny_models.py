"""Tiny random pipelines of the real classes, one for each family; every axis of another size."""

from collections.abc import Callable

import diffusers
import pytest
import torch
from conftest import tiny_pipeline, tiny_text_encoder, tiny_tokenizer
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)
from packaging.version import Version
from transformers import CLIPTextModel, T5Config, T5EncoderModel, T5TokenizerFast

SIDE = 40  # pixels of the square images: 5 x 5 image tokens of 8 pixels


def tiny_t5_tokenizer() -> T5TokenizerFast:
    """A T5 tokenizer of a few pieces and every ASCII character but the space."""
    pieces = ["▁a", "▁t", "▁ca", "▁cat", "re", "ne", "at", "▁"]
    letters = [chr(code) for code in range(33, 127)]
    scores = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0} | dict.fromkeys(pieces, -2.0) | dict.fromkeys(letters, -4.0)
    return T5TokenizerFast(vocab=list(scores.items()), extra_ids=0)


def tiny_t5(tokenizer: T5TokenizerFast, width: int) -> T5EncoderModel:
    """A two-layer T5 encoder."""
    sizes = {"d_model": width, "d_kv": 6, "d_ff": 29, "num_layers": 2, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=len(tokenizer), **sizes)).eval()


def tiny_vae(channels: int = 16, **overrides) -> AutoencoderKL:
    """A VAE of 4-pixel cells."""
    sizes = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (4, 6, 10),
        "layers_per_block": 1,
        "latent_channels": channels,
        "norm_num_groups": 2,
        "sample_size": 56,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    return AutoencoderKL(**(sizes | overrides)).eval()


def sharpened(transformer: torch.nn.Module) -> torch.nn.Module:
    """Larger query and key weights: fresh ones attend almost evenly, which tests nothing."""
    for name, parameter in transformer.named_parameters():
        if any(part in name for part in ("to_q.", "to_k.", "add_q_proj.", "add_k_proj.")) and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.4)
    return transformer.eval()


def tiny_flux(kind: type = FluxPipeline, guidance: bool = True) -> FluxPipeline:
    """FLUX.1: 2 double blocks and 3 single ones, 3 heads of 10."""
    tokenizer, tokenizer_2 = tiny_tokenizer(), tiny_t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=4 * 5,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=10,
        num_attention_heads=3,
        joint_attention_dim=22,
        pooled_projection_dim=14,
        guidance_embeds=guidance,
        axes_dims_rope=(2, 4, 4),
    )
    return kind(
        transformer=sharpened(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=tiny_vae(5),
        text_encoder=CLIPTextModel(tiny_text_encoder(tokenizer, width=14, projection=14).config).eval(),
        tokenizer=tokenizer,
        text_encoder_2=tiny_t5(tokenizer_2, 22),
        tokenizer_2=tokenizer_2,
    )


BUILDERS: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd3": tiny_pipeline,
    "sd3.5": lambda: tiny_pipeline(dual_attention_layers=(0, 1), qk_norm="rms_norm"),
    "flux-dev": tiny_flux,
    "flux-schnell": lambda: tiny_flux(guidance=False),
    "flux-kontext": lambda: tiny_flux(FluxKontextPipeline),
}


SINCE: dict[str, str] = {}
"""First version of diffusers with a family, by name, where the oldest that is supported lacks it; import it in its builder."""


def build(name: str) -> DiffusionPipeline:
    """A tiny pipeline, the same at every call.

    Args:
        name: of BUILDERS.
    """
    if Version(diffusers.__version__) < Version(SINCE.get(name, "0")):
        pytest.skip(f"{name} needs diffusers {SINCE[name]}, and this is {diffusers.__version__}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = BUILDERS[name]()
    pipe.set_progress_bar_config(disable=True)
    # the classes' own default is a megapixel
    pipe.default_sample_size = SIDE // pipe.vae_scale_factor
    return pipe
