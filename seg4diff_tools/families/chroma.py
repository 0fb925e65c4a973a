"""Chroma: [T5 tokens, image], FLUX.1's blocks, with a mask that down-weights text tokens after the first pad."""

from typing import Any

import torch

from seg4diff_tools.families.flux import T5_TOKENS, packed_layout
from seg4diff_tools.families.record import DOUBLE_AND_SINGLE, Family, label_alone


def _with_mask_of_the_image(inputs: dict[str, Any]) -> dict[str, Any]:
    """Rebuild the pipeline's mask over text and image for the number of image tokens."""
    text, image = inputs["encoder_hidden_states"].shape[1], inputs["hidden_states"].shape[1]
    mask = inputs["attention_mask"][:, :text]
    return inputs | {"attention_mask": torch.cat([mask, mask.new_ones(len(mask), image)], dim=1)}


CHROMA = Family(
    name="chroma",
    pipelines=("ChromaPipeline",),
    transformer="ChromaTransformer2DModel",
    layout=packed_layout,
    label=label_alone,
    tokenizer_and_limit=lambda pipe: (pipe.tokenizer, T5_TOKENS - 1),
    block_lists=DOUBLE_AND_SINGLE,
    timestep_affine=(0.0, 1e-3),
    text_inputs=("encoder_hidden_states", "txt_ids", "attention_mask"),
    packed=True,
    finalize_inputs=_with_mask_of_the_image,
    guidance_scale=5.0,
    branches=("cond", "uncond"),
    sequential=True,
)
