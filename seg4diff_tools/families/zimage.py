"""Z-Image: [image, padding, language model's tokens, padding], each part padded to a multiple of 32 tokens."""

from typing import Any

import torch
from torch import Tensor, nn

from seg4diff_tools.families.chat import Render, chat_room, label_chat
from seg4diff_tools.families.record import Family, Inputs, Layout
from seg4diff_tools.prompts import Token

TOKENS, MULTIPLE = 512, 32


def _filled(tokens: int) -> int:
    return -(-tokens // MULTIPLE) * MULTIPLE


def _layout(transformer: nn.Module, inputs: Inputs) -> Layout:
    patch = transformer.config.all_patch_size[0]
    rows, columns = (side // patch for side in inputs["x"][0].shape[-2:])
    start, text = _filled(rows * columns), max(len(features) for features in inputs["cap_feats"])
    return Layout((rows, columns), slice(0, rows * columns), slice(start, start + text), start + _filled(text))


def _chat(pipe: Any) -> tuple[Any, Render]:
    def render(text: str) -> str:
        messages = [{"role": "user", "content": text}]
        return pipe.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=True
        )

    return pipe.tokenizer, render


def _label(pipe: Any, text: str, length: int) -> tuple[Token, ...]:
    return label_chat(*_chat(pipe), text, length, room=TOKENS)


def _reader(pipe: Any) -> tuple[Any, int]:
    tokenizer, render = _chat(pipe)
    return tokenizer, chat_room(tokenizer, render, TOKENS)


def _as_lists_of_frames(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs | {"x": [latent.unsqueeze(1) for latent in inputs["x"]]}


def _velocity(output: list[Tensor]) -> Tensor:
    return -torch.stack(output).squeeze(2)


# It predicts image minus noise, at times from 0 (noise) to 1.
Z_IMAGE = Family(
    name="z-image",
    pipelines=("ZImagePipeline",),
    transformer="ZImageTransformer2DModel",
    layout=_layout,
    label=_label,
    tokenizer_and_limit=_reader,
    block_lists=(("layers", "attention"),),
    latents="x",
    timestep="t",
    timestep_affine=(1.0, -1e-3),
    text_inputs=("cap_feats",),
    finalize_inputs=_as_lists_of_frames,
    velocity=_velocity,
    no_guidance_kwargs={"guidance_scale": 0.0},
    guidance_scale=5.0,
    guidance_offset=1.0,
    branches=("cond", "uncond"),
)
