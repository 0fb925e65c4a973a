"""Stable Diffusion 3 and 3.5, in the paper's setting: without T5, [image, CLIP tokens, zero vectors]."""

from typing import Any

from torch import nn

from seg4diff_tools.families.record import Family, Inputs, Layout, image_then_text, patch_grid
from seg4diff_tools.prompts import Token, label_clip


def _layout(transformer: nn.Module, inputs: Inputs) -> Layout:
    return image_then_text(patch_grid(transformer, inputs["hidden_states"]), inputs["encoder_hidden_states"].shape[1])


def _label(pipe: Any, text: str, length: int) -> tuple[Token, ...]:
    return label_clip((pipe.tokenizer, pipe.tokenizer_2), text, length)


# SD3.5 shares the class; its second, image-only attention is `attn2` of the same blocks.
SD3 = Family(
    name="sd3",
    pipelines=("StableDiffusion3Pipeline",),
    transformer="SD3Transformer2DModel",
    layout=_layout,
    label=_label,
    tokenizer_and_limit=lambda pipe: (pipe.tokenizer, pipe.tokenizer.model_max_length - 2),
    # side in tokens of the square position table
    max_tokens_per_side=lambda transformer: transformer.config.pos_embed_max_size,
    channels=lambda pipe: pipe.transformer.config.in_channels,
    negative="",
    zero_text=True,
    clip_tokens=77,
    omitted_parts=("text_encoder_3", "tokenizer_3"),
    appendable=("context_embedder",),
    expert_layers={24: (9,)},
)
