"""HunyuanVideo: [video, 256 tokens of a language model], pads are masked; blocks that refine the text see no video."""

import inspect
from typing import Any

from torch import nn

from seg4diff_tools.families._private import module_function
from seg4diff_tools.families.chat import chat_room
from seg4diff_tools.families.record import (
    DOUBLE_AND_SINGLE,
    Family,
    Inputs,
    Layout,
    PixelSize,
    image_then_text,
    video_grid,
)
from seg4diff_tools.prompts import Token, label_template

TOKENS = 256
FRAME_AXIS = 2


def _layout(transformer: nn.Module, inputs: Inputs) -> Layout:
    grid = video_grid(transformer, inputs["hidden_states"], FRAME_AXIS)
    return image_then_text(grid, inputs["encoder_hidden_states"].shape[1])


def _template(pipe: Any) -> tuple[str, int]:
    """Return the pipeline's own template, and how many of its tokens it cuts off."""
    found = module_function(pipe, "DEFAULT_PROMPT_TEMPLATE")
    return found["template"], found["crop_start"]


def _label(pipe: Any, text: str, length: int) -> tuple[Token, ...]:
    template, skipped = _template(pipe)
    return label_template(pipe.tokenizer, text, length, template, skipped=skipped)


def _reader(pipe: Any) -> tuple[Any, int]:
    template, skipped = _template(pipe)
    return pipe.tokenizer, chat_room(pipe.tokenizer, template.format, TOKENS + skipped)


def _size(pipe: Any) -> PixelSize:
    """Return frames, height and width that the pipeline makes by default: the configuration does not say them."""
    known = inspect.signature(type(pipe).__call__).parameters
    return tuple(known[name].default for name in ("num_frames", "height", "width"))


def _refused(transformer: nn.Module) -> str:
    config = transformer.config
    if config.get("image_condition_type") is None and config.in_channels == config.out_channels:
        return ""
    return "; this one reads an image beside the prompt, which no record covers: load a text-to-video checkpoint"


HUNYUAN_VIDEO = Family(
    name="hunyuan-video",
    pipelines=("HunyuanVideoPipeline",),
    transformer="HunyuanVideoTransformer3DModel",
    layout=_layout,
    label=_label,
    tokenizer_and_limit=_reader,
    block_lists=DOUBLE_AND_SINGLE,
    text_inputs=("encoder_hidden_states", "encoder_attention_mask", "pooled_projections"),
    frame_axis=FRAME_AXIS,
    default_size=_size,
    latent_cell_px=lambda pipe: pipe.vae_scale_factor_spatial,
    no_guidance_kwargs={},
    guidance_scale=6.0,
    branches=("cond", "uncond"),
    sequential=True,
    refused=_refused,
)
