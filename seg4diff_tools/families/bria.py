"""Bria 3.2: [T5 tokens, image], double blocks first, then single ones; pads are zero vectors."""

from seg4diff_tools.families.flux import packed_layout
from seg4diff_tools.families.record import DOUBLE_AND_SINGLE, Family, label_alone

T5_TOKENS = 128

BRIA = Family(
    name="bria",
    pipelines=("BriaPipeline",),
    transformer="BriaTransformer2DModel",
    layout=packed_layout,
    label=label_alone,
    tokenizer_and_limit=lambda pipe: (pipe.tokenizer, T5_TOKENS - 1),
    block_lists=DOUBLE_AND_SINGLE,
    text_inputs=("encoder_hidden_states", "txt_ids"),
    packed=True,
    # the pipeline's own factor counts the packing too
    latent_cell_px=lambda pipe: pipe.vae_scale_factor // 2,
    guidance_scale=5.0,
)
