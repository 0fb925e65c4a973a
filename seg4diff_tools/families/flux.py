"""FLUX.1 (dev, schnell, Kontext): [T5 tokens, image, reference images], double blocks first, then single ones."""

from typing import Any

from torch import nn

from seg4diff_tools.families.record import DOUBLE_AND_SINGLE, Family, Inputs, Layout, text_then_image
from seg4diff_tools.prompts import Token, label_template

T5_TOKENS = 512


def packed_layout(transformer: nn.Module, inputs: Inputs) -> Layout:
    """Return the layout of a forward from its image position ids: (image number, row, column)."""
    ids = inputs["img_ids"]
    ids = ids[0] if ids.ndim == 3 else ids
    # reference images have another number in the first column
    own = ids[ids[:, 0] == 0]
    rows, columns = (int(own[:, axis].max()) + 1 for axis in (1, 2))
    text, references = inputs["encoder_hidden_states"].shape[1], len(ids) - len(own)
    return text_then_image((rows, columns), text, references=references)


def _label(pipe: Any, text: str, length: int) -> tuple[Token, ...]:
    return label_template(pipe.tokenizer_2, text, length)


# Kontext shares the class; reference images follow the image.
FLUX = Family(
    name="flux",
    pipelines=("FluxPipeline", "FluxKontextPipeline"),
    transformer="FluxTransformer2DModel",
    layout=packed_layout,
    label=_label,
    tokenizer_and_limit=lambda pipe: (pipe.tokenizer_2, T5_TOKENS - 1),
    block_lists=DOUBLE_AND_SINGLE,
    timestep_affine=(0.0, 1e-3),
    text_inputs=("encoder_hidden_states", "pooled_projections", "txt_ids"),
    packed=True,
    no_guidance_kwargs={},
    guidance_scale=3.5,
    branches=("cond", "uncond"),
    appendable=("context_embedder", "pos_embed"),
    sequential=True,
    # of 19 double blocks and 38 single ones
    expert_layers={57: (12, 17)},
)
