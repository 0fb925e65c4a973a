"""ERNIE-Image: [image, language model's tokens] in single blocks, text padded to the longest prompt; pads are
masked."""

from functools import partial
from typing import Any

from torch import nn

from seg4diff_tools.families.flux2 import decode_patches, encode_patches
from seg4diff_tools.families.record import Family, Inputs, Layout, image_then_text, label_alone, patch_grid

EPS = 1e-5


def _layout(transformer: nn.Module, inputs: Inputs) -> Layout:
    return image_then_text(patch_grid(transformer, inputs["hidden_states"]), inputs["text_bth"].shape[1])


def _reader(pipe: Any) -> tuple[Any, int]:
    return pipe.tokenizer, pipe.tokenizer.model_max_length - pipe.tokenizer.num_special_tokens_to_add()


# The prompt enhancer is omitted: it would replace the prompt's words.
ERNIE_IMAGE = Family(
    name="ernie-image",
    pipelines=("ErnieImagePipeline",),
    transformer="ErnieImageTransformer2DModel",
    layout=_layout,
    label=label_alone,
    tokenizer_and_limit=_reader,
    block_lists=(("layers", "self_attention"),),
    text_inputs=("text_bth", "text_lens"),
    patch_size=1,
    latents_as_given=True,
    channels=lambda pipe: pipe.transformer.config.in_channels,
    # the pipeline's value, not that of the VAE's configuration
    encode=partial(encode_patches, eps=EPS),
    decode=partial(decode_patches, eps=EPS),
    guidance_scale=4.0,
    omitted_parts=("pe", "pe_tokenizer"),
)
