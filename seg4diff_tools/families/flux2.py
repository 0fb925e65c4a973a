"""FLUX.2 dev and klein: [language model's tokens, image, reference images], double blocks first, then single ones."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from seg4diff_tools.families._private import module_function, patchify, unpatchify
from seg4diff_tools.families.chat import Render, chat_room, label_chat
from seg4diff_tools.families.flux import packed_layout
from seg4diff_tools.families.record import DOUBLE_AND_SINGLE, Family, Latents
from seg4diff_tools.prompts import Token

TOKENS = 512


def _chat(pipe: Any) -> tuple[Any, Render]:
    """Return the tokenizer and the template function: dev has a system message, klein none."""
    if hasattr(pipe, "system_message"):
        format_input = module_function(pipe, "format_input")

        def render(text: str) -> str:
            messages = format_input([text], pipe.system_message)
            return pipe.tokenizer.apply_chat_template(messages, tokenize=False)[0]

        # the pipeline's tokenizer can be a text and image processor
        return getattr(pipe.tokenizer, "tokenizer", pipe.tokenizer), render

    def render_alone(text: str) -> str:
        messages = [{"role": "user", "content": text}]
        return pipe.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )

    return pipe.tokenizer, render_alone


def _label(pipe: Any, text: str, length: int) -> tuple[Token, ...]:
    return label_chat(*_chat(pipe), text, length)


def _reader(pipe: Any) -> tuple[Any, int]:
    tokenizer, render = _chat(pipe)
    return tokenizer, chat_room(tokenizer, render, TOKENS)


def _statistics(pipe: Any, like: Tensor, eps: float | None) -> tuple[Tensor, Tensor]:
    norm = pipe.vae.bn
    deviation = (norm.running_var + (pipe.vae.config.batch_norm_eps if eps is None else eps)).sqrt()
    mean, deviation = (value.view(1, -1, 1, 1).to(like) for value in (norm.running_mean, deviation))
    return mean, deviation


def encode_patches(pipe: Any, pixels: Float[Tensor, "image 3 height width"], eps: float | None = None) -> Latents:
    """Encode images with FLUX.2's VAE: patches of 2 x 2 cells, normalized by its running statistics.

    Args:
        pipe: the pipeline.
        pixels: from -1 to 1.
        eps: added to the variance; None for the value of the VAE's configuration.
    """
    latents = patchify(pipe, pipe.vae.encode(pixels).latent_dist.mode())
    mean, deviation = _statistics(pipe, latents, eps)
    return (latents - mean) / deviation


def decode_patches(pipe: Any, latents: Latents, eps: float | None = None) -> Float[Tensor, "image 3 height width"]:
    """Decode latents of `encode_patches` to pixels from -1 to 1."""
    mean, deviation = _statistics(pipe, latents, eps)
    return pipe.vae.decode(unpatchify(pipe, latents * deviation + mean), return_dict=False)[0]


# Latents are patches of 2 x 2 cells, normalized by the VAE: one cell per token.
FLUX2 = Family(
    name="flux2",
    pipelines=("Flux2Pipeline", "Flux2KleinPipeline"),
    transformer="Flux2Transformer2DModel",
    layout=packed_layout,
    label=_label,
    tokenizer_and_limit=_reader,
    block_lists=DOUBLE_AND_SINGLE,
    timestep_affine=(0.0, 1e-3),
    text_inputs=("encoder_hidden_states", "txt_ids"),
    patch_size=1,
    packed=True,
    takes_packed=False,
    latent_cell_px=lambda pipe: 2 * pipe.vae_scale_factor,
    channels=lambda pipe: pipe.transformer.config.in_channels,
    encode=encode_patches,
    decode=decode_patches,
    # dev reads the scale; klein's first forward is always that of the prompt
    no_guidance_kwargs={},
    guidance_scale=4.0,
    branches=("cond", "uncond"),
    sequential=True,
)
