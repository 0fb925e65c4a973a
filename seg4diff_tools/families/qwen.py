"""Qwen-Image: [language model's tokens, image, reference images], without padding."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, float32, nn, tensor

from seg4diff_tools.families.chat import chat_room
from seg4diff_tools.families.record import Family, Inputs, Latents, Layout, text_then_image
from seg4diff_tools.prompts import Token, label_template

TOKENS = 1024


def _layout(transformer: nn.Module, inputs: Inputs) -> Layout:
    (_, rows, columns), *references = inputs["img_shapes"][0]
    others = sum(frames * height * width for frames, height, width in references)
    return text_then_image((rows, columns), inputs["encoder_hidden_states"].shape[1], references=others)


def _label(pipe: Any, text: str, length: int) -> tuple[Token, ...]:
    template, skipped = pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx
    return label_template(pipe.tokenizer, text, length, template, skipped=skipped, room=TOKENS)


def _reader(pipe: Any) -> tuple[Any, int]:
    tokens = TOKENS + pipe.prompt_template_encode_start_idx
    return pipe.tokenizer, chat_room(pipe.tokenizer, pipe.prompt_template_encode.format, tokens)


def _statistics(pipe: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    config = pipe.vae.config
    mean, deviation = (
        tensor(values, dtype=float32, device="cpu").view(1, -1, 1, 1).to(like)
        for values in (config.latents_mean, config.latents_std)
    )
    return mean, deviation


def encode_frame(pipe: Any, pixels: Float[Tensor, "image 3 height width"]) -> Latents:
    """Encode images as single frames with a video VAE, normalized by each channel's mean and deviation."""
    latents = pipe.vae.encode(pixels.unsqueeze(2)).latent_dist.mode().squeeze(2)
    mean, deviation = _statistics(pipe, latents)
    return (latents - mean) / deviation


def decode_frame(pipe: Any, latents: Latents) -> Float[Tensor, "image 3 height width"]:
    """Decode latents of `encode_frame` to pixels from -1 to 1."""
    mean, deviation = _statistics(pipe, latents)
    return pipe.vae.decode((latents * deviation + mean).unsqueeze(2), return_dict=False)[0].squeeze(2)


QWEN_IMAGE = Family(
    name="qwen-image",
    pipelines=("QwenImagePipeline",),
    transformer="QwenImageTransformer2DModel",
    layout=_layout,
    label=_label,
    tokenizer_and_limit=_reader,
    timestep_affine=(0.0, 1e-3),
    # the last one before diffusers 0.37
    text_inputs=("encoder_hidden_states", "encoder_hidden_states_mask", "txt_seq_lens"),
    packed=True,
    channels=lambda pipe: pipe.vae.config.z_dim,
    encode=encode_frame,
    decode=decode_frame,
    no_guidance_kwargs={"true_cfg_scale": 1.0},
    scale_name="true_cfg_scale",
    guidance_scale=4.0,
    negative=" ",
    branches=("cond", "uncond"),
    sequential=True,
)
