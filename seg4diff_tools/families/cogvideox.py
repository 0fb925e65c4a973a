"""CogVideoX: [T5 tokens, video] in blocks that share their projections; pads are attended to."""

from typing import Any

import torch
from torch import Tensor, nn

from seg4diff_tools.families.record import (
    Family,
    Inputs,
    Layout,
    PixelSize,
    label_alone,
    text_then_image,
    video_grid,
)

TOKENS = 226
FRAME_AXIS = 1


def _layout(transformer: nn.Module, inputs: Inputs) -> Layout:
    grid = video_grid(transformer, inputs["hidden_states"], FRAME_AXIS)
    return text_then_image(grid, inputs["encoder_hidden_states"].shape[1])


def _size(pipe: Any) -> PixelSize:
    config, cell = pipe.transformer.config, pipe.vae_scale_factor_spatial
    return config.sample_frames, config.sample_height * cell, config.sample_width * cell


def _noise_levels(scheduler: Any) -> Tensor:
    return (1 - scheduler.alphas_cumprod[scheduler.timesteps.cpu()]).sqrt()


def _refused(transformer: nn.Module) -> str:
    if transformer.config.get("patch_size_t") is not None:
        return "; this one, of CogVideoX 1.5, fills up its latents before the first frame, which no record covers"
    if transformer.config.in_channels == transformer.config.out_channels:
        return ""
    return (
        "; this one reads an image or another video beside the noise, which no record covers: load a text-to-video "
        "checkpoint"
    )


# A diffusion model: x_t = sqrt(1 - sigma^2) x_0 + sigma noise; it predicts v = sqrt(1 - sigma^2) noise - sigma x_0.
COGVIDEOX = Family(
    name="cogvideox",
    pipelines=("CogVideoXPipeline",),
    transformer="CogVideoXTransformer3DModel",
    layout=_layout,
    label=label_alone,
    tokenizer_and_limit=lambda pipe: (pipe.tokenizer, TOKENS - 1),
    block_lists=(("transformer_blocks", "attn1"),),
    text_inputs=("encoder_hidden_states",),
    latents_as_given=True,
    frame_axis=FRAME_AXIS,
    # of an even number of latent frames the VAE makes more frames than it encoded to them
    frame_step=lambda pipe: 2 * pipe.vae_scale_factor_temporal,
    default_size=_size,
    latent_cell_px=lambda pipe: pipe.vae_scale_factor_spatial,
    noise_levels=_noise_levels,
    image_share=lambda sigma: torch.sqrt(1 - sigma**2),
    guidance_scale=6.0,
    refused=_refused,
)
