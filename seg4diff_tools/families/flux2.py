"""FLUX.2 dev and klein: [language model's tokens, image, reference images], double blocks first, then single ones."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from seg4diff_tools.families.flux import packed_layout
from seg4diff_tools.families.record import Family, Latents
from seg4diff_tools.prompts import Token, label_template

TOKENS = 512


def _tokenizer(pipe: Any) -> Any:
    # dev has a processor of pictures and text, klein a tokenizer
    return getattr(pipe.tokenizer, "tokenizer", pipe.tokenizer)


def _template(pipe: Any) -> str:
    if hasattr(pipe, "system_message"):
        parts = [("system", pipe.system_message), ("user", "{}")]
        messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in parts]
        return pipe.tokenizer.apply_chat_template(messages, add_generation_prompt=False, tokenize=False)
    messages = [{"role": "user", "content": "{}"}]
    return pipe.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )


def _label(pipe: Any, text: str, length: int) -> tuple[Token, ...]:
    tokenizer = _tokenizer(pipe)
    left = tokenizer.padding_side == "left"
    return label_template(
        tokenizer, text, length, _template(pipe), left=left, specials=not hasattr(pipe, "system_message")
    )


def _room(pipe: Any) -> int:
    frame = _template(pipe).replace("{}", "")
    return TOKENS - len(_tokenizer(pipe)(frame, verbose=False).input_ids)


def _statistics(pipe: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    norm = pipe.vae.bn
    deviation = (norm.running_var + pipe.vae.config.batch_norm_eps).sqrt()
    mean, deviation = (value.view(1, -1, 1, 1).to(like) for value in (norm.running_mean, deviation))
    return mean, deviation


def _encode(pipe: Any, pixels: Float[Tensor, "image 3 height width"]) -> Latents:
    latents = pipe._patchify_latents(pipe.vae.encode(pixels).latent_dist.mode())
    mean, deviation = _statistics(pipe, latents)
    return (latents - mean) / deviation


def _decode(pipe: Any, latents: Latents) -> Float[Tensor, "image 3 height width"]:
    mean, deviation = _statistics(pipe, latents)
    return pipe.vae.decode(pipe._unpatchify_latents(latents * deviation + mean), return_dict=False)[0]


# Its latents are cut into patches of 2 x 2 cells and normalised by the VAE: one cell for a token.
FLUX2 = Family(
    name="flux2",
    pipelines=("Flux2Pipeline", "Flux2KleinPipeline"),
    transformer="Flux2Transformer2DModel",
    layout=packed_layout,
    label=_label,
    reader=lambda pipe: (_tokenizer(pipe), _room(pipe)),
    stacks=(("transformer_blocks", "attn"), ("single_transformer_blocks", "attn")),
    clock=(0.0, 1e-3),
    text_inputs=("encoder_hidden_states", "txt_ids"),
    cells=1,
    packed=True,
    takes_packed=False,
    cell=lambda pipe: 2 * pipe.vae_scale_factor,
    channels=lambda pipe: pipe.transformer.config.in_channels,
    encode=_encode,
    decode=_decode,
    plain={"guidance_scale": 1.0},
    guidance_scale=4.0,
    branches=("cond", "uncond"),
    sequential=True,
)
