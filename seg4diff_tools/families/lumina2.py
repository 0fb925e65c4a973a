"""Lumina 2: [language model's tokens, image] in single blocks with grouped-query attention; pads are left out."""

from typing import Any

from torch import nn

from seg4diff_tools.errors import RecordingError
from seg4diff_tools.families.chat import chat_room
from seg4diff_tools.families.record import Family, Inputs, Layout, patch_grid, text_then_image
from seg4diff_tools.prompts import Token, label_template

TOKENS = 256


def _read(inputs: Inputs) -> int:
    """Return the number of text tokens, without pads."""
    lengths = set(inputs["encoder_attention_mask"].sum(dim=1).tolist())
    if len(lengths) > 1:
        raise RecordingError(
            f"expected prompts of one length in a batch of Lumina 2, got {sorted(lengths)} tokens, after which the "
            "image stands in another place in each: run them one by one, as generate does with batch=1"
        )
    return int(lengths.pop())


def _layout(transformer: nn.Module, inputs: Inputs) -> Layout:
    return text_then_image(patch_grid(transformer, inputs["hidden_states"]), _read(inputs))


def _template(pipe: Any) -> str:
    return pipe.system_prompt + " <Prompt Start> {}"


def _label(pipe: Any, text: str, length: int) -> tuple[Token, ...]:
    return label_template(pipe.tokenizer, text, length, _template(pipe), room=TOKENS)


def _reader(pipe: Any) -> tuple[Any, int]:
    room = chat_room(pipe.tokenizer, _template(pipe).format, TOKENS)
    return pipe.tokenizer, room - pipe.tokenizer.num_special_tokens_to_add()


# It predicts image minus noise, at times from 0 (noise) to 1.
LUMINA2 = Family(
    name="lumina2",
    pipelines=("Lumina2Pipeline",),
    transformer="Lumina2Transformer2DModel",
    layout=_layout,
    label=_label,
    tokenizer_and_limit=_reader,
    block_lists=(("layers", "attn"),),
    timestep_affine=(1.0, -1e-3),
    text_inputs=("encoder_hidden_states", "encoder_attention_mask"),
    count_text=_read,
    latents_as_given=True,
    channels=lambda pipe: pipe.transformer.config.in_channels,
    velocity=lambda output: -output,
    guidance_scale=4.0,
    branches=("cond", "uncond"),
    sequential=True,
)
