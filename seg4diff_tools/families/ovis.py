"""Ovis-Image: [language model's tokens, image], double blocks first, then single ones; pads are zero vectors."""

from typing import Any

from seg4diff_tools.families.flux import packed_layout
from seg4diff_tools.families.record import Family
from seg4diff_tools.prompts import Token, label_template

TOKENS = 256


def _template(pipe: Any) -> str:
    messages = [{"role": "user", "content": pipe.system_prompt + "{}"}]
    return pipe.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )


def _label(pipe: Any, text: str, length: int) -> tuple[Token, ...]:
    skipped = pipe.user_prompt_begin_id
    return label_template(pipe.tokenizer, text, length, _template(pipe), skipped=skipped, specials=False)


def _reader(pipe: Any) -> tuple[Any, int]:
    frame = pipe.tokenizer(_template(pipe).replace("{}", ""), add_special_tokens=False).input_ids
    return pipe.tokenizer, TOKENS + pipe.user_prompt_begin_id - len(frame)


OVIS_IMAGE = Family(
    name="ovis-image",
    pipelines=("OvisImagePipeline",),
    transformer="OvisImageTransformer2DModel",
    layout=packed_layout,
    label=_label,
    reader=_reader,
    stacks=(("transformer_blocks", "attn"), ("single_transformer_blocks", "attn")),
    clock=(0.0, 1e-3),
    text_inputs=("encoder_hidden_states", "txt_ids"),
    packed=True,
    guidance_scale=5.0,
    branches=("cond", "uncond"),
    sequential=True,
)
