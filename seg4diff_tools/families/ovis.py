"""Ovis-Image: [language model's tokens, image], double blocks first, then single ones; pads are zero vectors."""

from functools import partial
from typing import Any

from seg4diff_tools.families._private import ovis_message
from seg4diff_tools.families.chat import Render, chat_room, label_chat
from seg4diff_tools.families.flux import packed_layout
from seg4diff_tools.families.record import DOUBLE_AND_SINGLE, Family
from seg4diff_tools.prompts import Token

TOKENS = 256


def _chat(pipe: Any) -> tuple[Any, Render]:
    return pipe.tokenizer, partial(ovis_message, pipe)


def _label(pipe: Any, text: str, length: int) -> tuple[Token, ...]:
    return label_chat(*_chat(pipe), text, length, skipped=pipe.user_prompt_begin_id)


def _reader(pipe: Any) -> tuple[Any, int]:
    tokenizer, render = _chat(pipe)
    return tokenizer, chat_room(tokenizer, render, TOKENS + pipe.user_prompt_begin_id)


OVIS_IMAGE = Family(
    name="ovis-image",
    pipelines=("OvisImagePipeline",),
    transformer="OvisImageTransformer2DModel",
    layout=packed_layout,
    label=_label,
    tokenizer_and_limit=_reader,
    block_lists=DOUBLE_AND_SINGLE,
    timestep_affine=(0.0, 1e-3),
    text_inputs=("encoder_hidden_states", "txt_ids"),
    packed=True,
    guidance_scale=5.0,
    branches=("cond", "uncond"),
    sequential=True,
)
