"""Krea 2: [language model's tokens, image] in single blocks with grouped-query attention; pads, before the template's
end, are masked."""

from typing import Any

import torch
from torch import nn

from seg4diff_tools.families.chat import chat_room
from seg4diff_tools.families.qwen import decode_frame, encode_frame
from seg4diff_tools.families.record import Family, Inputs, Layout, text_then_image
from seg4diff_tools.prompts import Token, label_template, numbered, reader_name

TOKENS = 512


def _layout(transformer: nn.Module, inputs: Inputs) -> Layout:
    text = inputs["encoder_hidden_states"].shape[1]
    places = inputs["position_ids"][text:]
    rows, columns = (int(places[:, axis].max()) + 1 for axis in (1, 2))
    return text_then_image((rows, columns), text)


def _label(pipe: Any, text: str, length: int) -> tuple[Token, ...]:
    prefix, skipped = pipe.prompt_template_encode_prefix, pipe.prompt_template_encode_start_idx
    ending = pipe.tokenizer(pipe.prompt_template_encode_suffix).input_ids
    tokens = label_template(pipe.tokenizer, text, length - len(ending), prefix + "{}", skipped=skipped)
    last = [
        Token(0, pipe.tokenizer.decode([number]), "template", reader=reader_name(pipe.tokenizer)) for number in ending
    ]
    return numbered([*tokens, *last])


def _reader(pipe: Any) -> tuple[Any, int]:
    tokens = TOKENS + pipe.prompt_template_encode_start_idx - pipe.prompt_template_encode_num_suffix_tokens
    return pipe.tokenizer, chat_room(pipe.tokenizer, lambda text: pipe.prompt_template_encode_prefix + text, tokens)


def _with_places_of_the_image(inputs: dict[str, Any]) -> dict[str, Any]:
    """Rebuild the position ids of text and image, since the text may be longer than the captured one."""
    text, image = inputs["encoder_hidden_states"].shape[1], inputs["hidden_states"].shape[1]
    places = inputs["position_ids"][-image:]
    return inputs | {"position_ids": torch.cat([places.new_zeros(text, 3), places])}


KREA2 = Family(
    name="krea2",
    pipelines=("Krea2Pipeline",),
    transformer="Krea2Transformer2DModel",
    layout=_layout,
    label=_label,
    tokenizer_and_limit=_reader,
    timestep_affine=(0.0, 1e-3),
    text_inputs=("encoder_hidden_states", "encoder_attention_mask"),
    packed=True,
    channels=lambda pipe: pipe.vae.config.z_dim,
    encode=encode_frame,
    decode=decode_frame,
    finalize_inputs=_with_places_of_the_image,
    no_guidance_kwargs={"guidance_scale": 0.0},
    guidance_scale=4.5,
    guidance_offset=1.0,
    branches=("cond", "uncond"),
    sequential=True,
)
