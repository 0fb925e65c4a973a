"""Stable Diffusion 3 and 3.5: [image, 77 CLIP tokens, T5 tokens], or zero vectors in T5's place as in the paper."""

import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from seg4diff_tools.families.record import Family, Inputs, Layout, image_then_text, patch_grid
from seg4diff_tools.prompts import Token, check_prompt, label_template, numbered, reader_name

CLIP_TOKENS, T5_TOKENS = 77, 256


def _layout(transformer: nn.Module, inputs: Inputs) -> Layout:
    return image_then_text(patch_grid(transformer, inputs["hidden_states"]), inputs["encoder_hidden_states"].shape[1])


def _label(pipe: Any, text: str, length: int) -> tuple[Token, ...]:
    clip = _label_clip((pipe.tokenizer, pipe.tokenizer_2), text)[:length]
    if SD3.zero_text(pipe):
        return numbered([*clip, *[Token(0, "<zero>", "zero")] * (length - len(clip))])
    return numbered([*clip, *label_template(pipe.tokenizer_3, text, length - len(clip))])


def _label_clip(tokenizers: Sequence[PreTrainedTokenizerBase], text: str) -> list[Token]:
    """Label CLIP's tokens: start, words up to its limit, end, pads.

    Kinds go by position, not by id: one tokenizer pads with the end token, the other with "!".
    """
    room = tokenizers[0].model_max_length - 2
    pieces = [check_prompt(tokenizer, room, text, cut=True) for tokenizer in tokenizers]
    if any(other != pieces[0] for other in pieces[1:]):
        warnings.warn(
            f"the text encoders split '{text}' into different tokens, so some columns mix two words; "
            "tokens are labeled by the first tokenizer",
            stacklevel=4,
        )
    reader = reader_name(tokenizers[0])
    words = [Token(0, text[start:stop], "word", start, stop, reader) for start, stop in pieces[0]]
    start, end, pad = (Token(0, f"<{kind}>", kind, reader=reader) for kind in ("start", "end", "pad"))
    return [start, *words, end, *[pad] * (room - len(words))]


def _reader(pipe: Any) -> tuple[Any, int]:
    """Return T5's tokenizer and limit, of a pipeline with T5: it reads what CLIP no longer does."""
    if SD3.zero_text(pipe):
        return pipe.tokenizer, pipe.tokenizer.model_max_length - 2
    return pipe.tokenizer_3, T5_TOKENS - 1


# SD3.5 shares the class; its second, image-only attention is `attn2` of the same blocks.
SD3 = Family(
    name="sd3",
    pipelines=("StableDiffusion3Pipeline",),
    transformer="SD3Transformer2DModel",
    layout=_layout,
    label=_label,
    tokenizer_and_limit=_reader,
    # side in tokens of the square position table
    max_tokens_per_side=lambda transformer: transformer.config.pos_embed_max_size,
    channels=lambda pipe: pipe.transformer.config.in_channels,
    negative="",
    optional_parts=("text_encoder_3", "tokenizer_3"),
    clip_tokens=CLIP_TOKENS,
    appendable=("context_embedder",),
    expert_layers={24: (9,)},
)
