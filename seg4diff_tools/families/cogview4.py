"""CogView4: [language model's tokens, image] in blocks that share their projections; pads stand before the text."""

from typing import Any

from torch import nn

from seg4diff_tools.families.record import Family, Inputs, Layout, patch_grid, text_then_image
from seg4diff_tools.prompts import Token, label_template

TOKENS = 1024


def _layout(transformer: nn.Module, inputs: Inputs) -> Layout:
    return text_then_image(patch_grid(transformer, inputs["hidden_states"]), inputs["encoder_hidden_states"].shape[1])


def _label(pipe: Any, text: str, length: int) -> tuple[Token, ...]:
    return label_template(pipe.tokenizer, text, length, left=True)


# Text is filled up to a multiple of 16 tokens, and the pads are attended to.
COGVIEW4 = Family(
    name="cogview4",
    pipelines=("CogView4Pipeline",),
    transformer="CogView4Transformer2DModel",
    layout=_layout,
    label=_label,
    tokenizer_and_limit=lambda pipe: (pipe.tokenizer, TOKENS - pipe.tokenizer.num_special_tokens_to_add()),
    block_lists=(("transformer_blocks", "attn1"),),
    text_inputs=("encoder_hidden_states",),
    pads_left=True,
    default_size=lambda pipe: pipe.transformer.config.sample_size * pipe.vae_scale_factor,
    channels=lambda pipe: pipe.transformer.config.in_channels,
    guidance_scale=5.0,
    branches=("cond", "uncond"),
    sequential=True,
)
