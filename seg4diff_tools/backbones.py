"""Load a model and drive it: prompts, images, noise, one denoising step, generation."""

import copy
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import PIL.Image
import torch
from diffusers import DiffusionPipeline, ModelMixin
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from seg4diff_tools.checkpoints import find_checkpoint, load_pipeline, read_card
from seg4diff_tools.errors import InputError
from seg4diff_tools.families import FAMILIES, Family, family_of
from seg4diff_tools.images import Fit, ImageLike, Size, check_size, fit_image, open_images
from seg4diff_tools.prompts import Prompt, class_texts, class_tokens, cut_class_text, label_tokens, stack_prompts

MINI = Path(__file__).parent / "models" / "mini"
Prompts = str | Prompt | Sequence[str | Prompt]


@dataclass(frozen=True, eq=False)
class Backbone:
    """A diffusion model with the calls that the analyses are made of.

    Args:
        pipe: a plain diffusers pipeline, T5 left out as in the paper.
        family: where its architecture keeps joint attention.
        name: what it was loaded as.
        expert_layer: 0-based layer whose I2T attention segments best; None if nobody has measured it.
        guidance_scale: default of `generate` (7.5 in the paper).
    """

    pipe: DiffusionPipeline
    family: Family
    name: str
    expert_layer: int | None = None
    guidance_scale: float = 7.5

    @property
    def transformer(self) -> ModelMixin:
        """The MM-DiT."""
        return self.pipe.transformer

    @property
    def device(self) -> torch.device:
        """Where the model computes (with CPU offload: the accelerator)."""
        return self.pipe._execution_device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the transformer."""
        return self.transformer.dtype

    @property
    def layers(self) -> int:
        """Number of joint attention layers."""
        return self.family.layers(self.transformer)

    @property
    def heads(self) -> int:
        """Number of attention heads in a layer."""
        return self.family.heads(self.transformer)

    @property
    def footprint(self) -> int:
        """Side of an image token in pixels (VAE factor times patch)."""
        return self.pipe.vae_scale_factor * self.pipe.patch_size

    @property
    def image_size(self) -> int:
        """Side in pixels of the square images that the model was trained on."""
        return self.pipe.default_sample_size * self.pipe.vae_scale_factor

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of the latent of an image of the native size."""
        return self._latent_shape(None)

    def token_grid(self, latents: Float[Tensor, "image channels height width"] | None = None) -> tuple[int, int]:
        """Rows and columns of image tokens.

        Args:
            latents: whose grid; None for the native image size.
        """
        latents = torch.empty(1, *self.latent_shape) if latents is None else latents
        return self.family.token_grid(self.transformer, latents)

    @overload
    def encode_prompt(  # type: ignore[overload-overlap]
        self, prompt: str, *, zero_tokens: int = 77, cut: bool = False
    ) -> Prompt: ...

    @overload
    def encode_prompt(self, prompt: Sequence[str], *, zero_tokens: int = 77, cut: bool = False) -> list[Prompt]: ...

    def encode_prompt(
        self, prompt: str | Sequence[str], *, zero_tokens: int = 77, cut: bool = False
    ) -> Prompt | list[Prompt]:
        """Encodes a prompt with the pipeline's own text encoders.

        Args:
            prompt: one prompt, or a list.
            zero_tokens: how many zero vectors follow CLIP's tokens in place of T5's: 77 in the paper's released code,
                256 in a plain `pipe(prompt)`, and 0 leaves them out.
            cut: leave out the words that do not fit, as a plain `pipe(prompt)` does, in place of an error.

        Returns:
            One Prompt, or a list if a list came.

        Raises:
            PromptError: a prompt does not fit; the message names the words that are too many.
        """
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not texts:
            raise InputError("expected at least one prompt, got an empty list")
        if not 0 <= zero_tokens <= 512:
            raise InputError(f"expected zero_tokens from 0 to 512, got {zero_tokens}")
        texts = [unicodedata.normalize("NFC", text) for text in texts]
        tokenizers = (self.pipe.tokenizer, self.pipe.tokenizer_2)
        tokens = [label_tokens(tokenizers, text, zero_tokens, cut) for text in texts]
        with torch.no_grad():
            embeds, _, pooled, _ = self.pipe.encode_prompt(
                prompt=texts,
                prompt_2=None,
                prompt_3=None,
                do_classifier_free_guidance=False,
                max_sequence_length=zero_tokens,
            )
        prompts = [Prompt(*row) for row in zip(texts, tokens, embeds.split(1), pooled.split(1), strict=True)]
        return prompts[0] if isinstance(prompt, str) else prompts

    def class_prompts(
        self, class_names: Sequence[str], *, zero_tokens: int = 77, cut_prompt: bool = False
    ) -> list[Prompt]:
        """The paper's segmentation prompts: class names joined by a space (section 4.2, Fig 7).

        Args:
            class_names: distinct names, in the order of the label map.
            zero_tokens: see `encode_prompt`.
            cut_prompt: what to do with more names than a prompt holds. False spreads them over as few prompts as hold them
                all; True cuts the one prompt where the text encoder stops reading, as the released code silently does,
                so that names past the cut have no token.

        Returns:
            Prompts whose `classes` give every name's token indices, right even where one name contains another.

        Raises:
            InputError: no names, an empty one, or one twice.
            PromptError: a single name longer than a prompt.
        """
        if cut_prompt:
            text, classes = cut_class_text(self.pipe.tokenizer, class_names)
            return [replace(self.encode_prompt(text, zero_tokens=zero_tokens, cut=True), classes=classes)]
        prompts = []
        for text, ranges in class_texts(self.pipe.tokenizer, class_names):
            prompt = self.encode_prompt(text, zero_tokens=zero_tokens)
            prompts.append(replace(prompt, classes=class_tokens(prompt.tokens, ranges)))
        return prompts

    def encode_image(
        self, images: ImageLike | Sequence[ImageLike], size: Size | None = None, fit: Fit = "resize"
    ) -> Float[Tensor, "image channels height width"]:
        """Encodes images into scaled latents: the mean of the VAE's posterior, so the same image gives the same latent.

        Args:
            images: paths, PIL images, uint8 arrays [y x 3], float tensors [3 y x] from 0 to 1, batches or lists.
            size: pixels to bring them to, (height, width) or the side of a square; None for the native size.
            fit: "resize" (stretch, as the released code) or "crop" (centre crop, as the paper's text).

        Returns:
            Latents, one per image, (z - shift) * scale as the transformer expects.

        Raises:
            InputError: an image that is missing or damaged, or a size that the model cannot take.
        """
        height, width = self._pixels(size)
        pictures = [fit_image(image, (height, width), fit) for image in open_images(images)]
        pixels = self.pipe.image_processor.preprocess(pictures, height, width)
        vae = self.pipe.vae
        with torch.no_grad():
            latents = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist.mode()
        return ((latents - vae.config.shift_factor) * vae.config.scaling_factor).to(self.dtype)

    def decode(self, latents: Float[Tensor, "image channels height width"]) -> list[PIL.Image.Image]:
        """Decodes scaled latents into images.

        Args:
            latents: as `encode_image` gives them.
        """
        vae = self.pipe.vae
        with torch.no_grad():
            latents = latents.to(self.device, vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
            return self.pipe.image_processor.postprocess(vae.decode(latents, return_dict=False)[0])

    def schedule(self, steps: int = 28) -> tuple[Float[Tensor, " step"], Float[Tensor, " step"]]:
        """Timesteps and noise shares of a sampling schedule; the pipeline's own scheduler is left alone.

        Args:
            steps: length of the schedule (28 in the paper).

        Returns:
            Timesteps from 1000 down as the transformer reads them, and sigma from 1 down, float32 on the CPU.
        """
        if steps < 1:
            raise InputError(f"expected at least one step, got steps={steps}")
        scheduler = copy.deepcopy(self.pipe.scheduler)
        scheduler.set_timesteps(steps)
        return scheduler.timesteps, scheduler.sigmas[:steps]

    def noised(
        self,
        latents: Float[Tensor, "image channels height width"],
        steps_from_end: int | Sequence[int] = 8,
        steps: int = 28,
        seed: int | Sequence[int] = 0,
    ) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, " batch"]]:
        """Mixes latents with noise as at one or several steps of sampling: x_t = (1 - sigma) x_0 + sigma noise.

        Args:
            latents: scaled, one per image.
            steps_from_end: the paper's "t = 8 of 28" is 8: `scheduler.timesteps[-8]`. A list gives every image at
                every one of these steps, with the same noise.
            steps: length of the schedule.
            seed: of the noise, drawn on the CPU in float32, so the same on every device. One number gives every
                image the same noise, so that a batch equals its images one by one; a list has one seed per image.

        Returns:
            Noised latents in the order (image step), steps changing fastest, and their timesteps.

        Raises:
            InputError: a step outside the schedule, or a number of seeds that is not the number of images.
        """
        wanted = [steps_from_end] if isinstance(steps_from_end, int) else list(steps_from_end)
        timesteps, sigmas = self.schedule(steps)
        outside = [k for k in wanted if not 1 <= k <= steps]
        if outside or not wanted:
            raise InputError(f"expected steps_from_end from 1 to {steps}, got {outside or 'an empty list'}")
        seeds = [seed] * len(latents) if isinstance(seed, int) else list(seed)
        if len(seeds) != len(latents):
            raise InputError(f"expected one seed or one per image, got {len(seeds)} seeds for {len(latents)} images")
        index = torch.tensor([-k for k in wanted])
        sigma = rearrange(sigmas[index], "step -> 1 step 1 1 1").to(latents.device)
        noise = _noise(seeds, latents.shape[1:]).to(latents.device)
        mixed = (1 - sigma) * latents.float()[:, None] + sigma * noise[:, None]
        noisy = rearrange(mixed, "image step ... -> (image step) ...").to(latents.dtype)
        return noisy, repeat(timesteps[index], "step -> (image step)", image=len(latents)).to(latents.device)

    def denoise(
        self,
        noisy: Float[Tensor, "batch channels height width"],
        timestep: Float[Tensor, " batch"] | Float[Tensor, ""] | float,
        prompt: Prompts,
    ) -> Float[Tensor, "batch channels height width"]:
        """One forward pass of the transformer, without gradient and without guidance.

        Args:
            noisy: noised latents.
            timestep: from 0 to 1000, one for all or one each.
            prompt: one for all, or a list; the latents are then shared out evenly in order, so that with several
                steps per image (see `noised`) there is one prompt per image.

        Returns:
            The predicted velocity, noise minus image.
        """
        with torch.no_grad():
            return self.transformer(**self.inputs(noisy, timestep, prompt))[0]

    def inputs(
        self,
        noisy: Float[Tensor, "batch channels height width"],
        timestep: Float[Tensor, " batch"] | Float[Tensor, ""] | float,
        prompt: Prompts,
    ) -> dict[str, Any]:
        """Arguments of one forward pass of the transformer, which gives the velocity as the first of a tuple.

        Args: as for `denoise`.
        """
        prompts = self._prompts(prompt)
        if len(noisy) % len(prompts):
            raise InputError(f"expected one prompt or one per image, got {len(prompts)} for {len(noisy)} latents")
        share = len(noisy) // len(prompts)
        embeds, pooled = stack_prompts(prompts)
        timestep = torch.as_tensor(timestep, dtype=torch.float32, device=self.device).expand(len(noisy))
        return {
            "hidden_states": noisy.to(self.device, self.dtype),
            "timestep": timestep,
            "encoder_hidden_states": embeds.repeat_interleave(share, dim=0),
            "pooled_projections": pooled.repeat_interleave(share, dim=0),
            "return_dict": False,
        }

    def generate(
        self,
        prompt: Prompts,
        *,
        steps: int = 28,
        guidance_scale: float | None = None,
        seed: int | Sequence[int] = 0,
        size: Size | None = None,
        negative_prompt: str = "",
        zero_tokens: int = 77,
        progress: bool = True,
        callback: Callable[[int, float, Tensor], None] | None = None,
    ) -> list[PIL.Image.Image]:
        """Generates images with the pipeline's own sampling loop.

        Args:
            prompt: one, or a list: one image each.
            steps: sampling steps.
            guidance_scale: classifier-free guidance; 1 or less turns it off, None takes the backbone's default.
            seed: one for all images, or a list (with a single prompt: that many images of it).
            size: (height, width) or side in pixels; None for the native size.
            negative_prompt: what guidance moves away from.
            zero_tokens: see `encode_prompt`.
            progress: show a progress bar.
            callback: called after every step with the step's index, its timestep and the latents.

        Returns:
            The images.

        Raises:
            PromptError: a prompt does not fit.
            InputError: a size that the model cannot take, or seeds that do not match the prompts.
        """
        guidance_scale = self.guidance_scale if guidance_scale is None else guidance_scale
        prompts = self._prompts(prompt, zero_tokens)
        seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
        prompts = prompts * len(seeds) if len(prompts) == 1 else prompts
        if len(seeds) != len(prompts) or not seeds:
            raise InputError(f"expected one seed or one per prompt, got {len(seeds)} for {len(prompts)} prompts")
        height, width = self._pixels(size)
        embeds, pooled = stack_prompts(prompts)
        arguments = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
        if guidance_scale > 1:
            zeros = len(prompts[0].indices("zero"))
            negative, negative_pooled = stack_prompts(self._prompts(negative_prompt, zeros) * len(prompts))
            arguments |= {"negative_prompt_embeds": negative, "negative_pooled_prompt_embeds": negative_pooled}

        def on_step(pipe, step, timestep, tensors):
            callback(step, float(timestep), tensors["latents"])
            return {}

        bar = getattr(self.pipe, "_progress_bar_config", {})
        self.pipe.set_progress_bar_config(**(bar | {"disable": not progress}))
        try:
            return self.pipe(
                **arguments,
                height=height,
                width=width,
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                latents=_noise(seeds, self._latent_shape((height, width))),
                callback_on_step_end=on_step if callback else None,
            ).images
        finally:
            self.pipe.set_progress_bar_config(**bar)

    def _pixels(self, size: Size | None) -> tuple[int, int]:
        # SD3 cuts its position table from a square of this many tokens
        most = self.transformer.config.get("pos_embed_max_size")
        return check_size(self.image_size if size is None else size, self.footprint, most)

    def _latent_shape(self, size: Size | None) -> tuple[int, int, int]:
        rows, columns = (side // self.pipe.vae_scale_factor for side in self._pixels(size))
        return self.transformer.config.in_channels, rows, columns

    def _prompts(self, prompt: Prompts, zero_tokens: int = 77) -> list[Prompt]:
        prompts = [prompt] if isinstance(prompt, (str, Prompt)) else list(prompt)
        if not prompts:
            raise InputError("expected at least one prompt, got an empty list")
        return [self.encode_prompt(p, zero_tokens=zero_tokens) if isinstance(p, str) else p for p in prompts]


def load_backbone(
    name_or_path: str | Path = "mini",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Backbone:
    """Loads a Stable Diffusion 3 / 3.5 pipeline without T5, the paper's setting.

    Args:
        name_or_path: "mini" (comes with the package), a folder in diffusers' layout, or a hub name such as
            "stabilityai/stable-diffusion-3-medium-diffusers", which is downloaded.
        device: default: CUDA, else Apple's MPS, else the CPU.
        dtype: of every part; default: float32 on the CPU, bfloat16 on a GPU that has it, else float16.

    Returns:
        The backbone, frozen (no gradients), in evaluation mode.

    Raises:
        CheckpointError: no such folder, not a diffusers folder, or weights that are missing or cut off.
        UnknownArchitectureError: a pipeline of another architecture.
    """
    source = find_checkpoint(MINI if str(name_or_path) == "mini" else name_or_path)
    pipe = load_pipeline(source, [family.pipeline_class for family in FAMILIES], device, dtype)
    return wrap_pipeline(pipe, str(name_or_path), read_card(source))


def wrap_pipeline(pipe: DiffusionPipeline, name: str = "pipeline", card: dict | None = None) -> Backbone:
    """Makes a Backbone of a pipeline that is already in memory (with a LoRA, quantised, offloaded, ...).

    Args:
        pipe: a diffusers pipeline without T5.
        name: what to call it.
        card: "expert_layer" and "guidance_scale" are read from it.

    Raises:
        UnknownArchitectureError: no family is known for its transformer.
        InputError: it has a T5 encoder.
    """
    family = family_of(pipe.transformer)
    if getattr(pipe, "text_encoder_3", None) is not None:
        raise InputError("expected a pipeline without T5: load it with text_encoder_3=None, tokenizer_3=None")
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    published = family.expert_layers.get(family.layers(pipe.transformer))
    card = card or {}
    return Backbone(pipe, family, name, card.get("expert_layer", published), float(card.get("guidance_scale", 7.5)))


def _noise(seeds: Sequence[int], shape: Sequence[int]) -> Float[Tensor, "image channels height width"]:
    return torch.stack([torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
