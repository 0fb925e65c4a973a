"""AuraFlow: [registers, T5 tokens, image], joint blocks first, then single ones; pads are zero vectors."""

import math

from torch import nn

from seg4diff_tools.families.record import Family, Inputs, Layout, label_alone, patch_grid, text_then_image

T5_TOKENS = 256


def _layout(transformer: nn.Module, inputs: Inputs) -> Layout:
    grid, registers = patch_grid(transformer, inputs["hidden_states"]), transformer.register_tokens.shape[1]
    return text_then_image(grid, inputs["encoder_hidden_states"].shape[1], registers=registers)


AURAFLOW = Family(
    name="auraflow",
    pipelines=("AuraFlowPipeline",),
    transformer="AuraFlowTransformer2DModel",
    layout=_layout,
    label=label_alone,
    tokenizer_and_limit=lambda pipe: (pipe.tokenizer, T5_TOKENS - 2),
    block_lists=(("joint_transformer_blocks", "attn"), ("single_transformer_blocks", "attn")),
    timestep_affine=(0.0, 1e-3),
    text_inputs=("encoder_hidden_states",),
    default_size=lambda pipe: pipe.transformer.config.sample_size * pipe.vae_scale_factor,
    max_tokens_per_side=lambda transformer: math.isqrt(transformer.config.pos_embed_max_size),
    guidance_scale=3.5,
    negative="",
)
