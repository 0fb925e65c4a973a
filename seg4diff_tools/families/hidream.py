"""HiDream-I1: [image, T5 tokens, Llama tokens twice], double blocks first, then single ones.

Latents that are not square are filled up to a fixed number of image tokens, whose keys are zero."""

import math
from dataclasses import replace
from typing import Any

from torch import nn

from seg4diff_tools.families.record import Family, Inputs, Layout, patch_grid
from seg4diff_tools.prompts import Token, label_template, numbered

TOKENS = 128


def _count(inputs: Inputs) -> int:
    # Llama's tokens stand there twice: features of its last layer, and of one layer for each block
    return inputs["encoder_hidden_states_t5"].shape[1] + 2 * inputs["encoder_hidden_states_llama3"].shape[2]


def _layout(transformer: nn.Module, inputs: Inputs) -> Layout:
    rows, columns = patch_grid(transformer, inputs["hidden_states"])
    start, text = rows * columns if rows == columns else transformer.max_seq, _count(inputs)
    return Layout((rows, columns), slice(0, rows * columns), slice(start, start + text), start + text)


def _label(pipe: Any, text: str, length: int) -> tuple[Token, ...]:
    t5, llama = (
        label_template(tokenizer, text, min(TOKENS, tokenizer.model_max_length), left=tokenizer.padding_side == "left")
        for tokenizer in (pipe.tokenizer_3, pipe.tokenizer_4)
    )
    # one name for each copy, so that a label such as "cat@LLMBlocks#2" is that of one token
    blocks = [replace(token, reader=f"{token.reader}Blocks") for token in llama]
    return numbered([*t5, *llama, *blocks])


def _made_size(pipe: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return the size that the pipeline makes of one asked for: always of about its default area."""
    token, area = 2 * pipe.vae_scale_factor, (pipe.default_sample_size * pipe.vae_scale_factor) ** 2
    scale = math.sqrt(area / (size[0] * size[1]))
    height, width = (int(side * scale // token * token) for side in size)
    return height, width


# It predicts image minus noise.
HIDREAM_IMAGE = Family(
    name="hidream",
    pipelines=("HiDreamImagePipeline",),
    transformer="HiDreamImageTransformer2DModel",
    layout=_layout,
    label=_label,
    tokenizer_and_limit=lambda pipe: (pipe.tokenizer_3, TOKENS - 1),
    block_lists=(("double_stream_blocks", "block.attn1"), ("single_stream_blocks", "block.attn1")),
    timestep="timesteps",
    text_inputs=("encoder_hidden_states_t5", "encoder_hidden_states_llama3", "pooled_embeds"),
    streams=("encoder_hidden_states_t5",),
    image_axis={"encoder_hidden_states_llama3": 1},
    count_text=_count,
    made_size=_made_size,
    latents_as_given=True,
    channels=lambda pipe: pipe.transformer.config.in_channels,
    velocity=lambda output: -output,
    guidance_scale=5.0,
)
