"""Drive a model: prompts, images, noise, one denoising step, generation."""

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, overload

import torch
from diffusers import DiffusionPipeline, ModelMixin
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from seg4diff_tools.backbones import pictures
from seg4diff_tools.backbones.checks import check_latents, check_zeros
from seg4diff_tools.backbones.inputs import forward_inputs
from seg4diff_tools.backbones.sampling import as_list, as_prompts, as_seeds, draw_noise, is_number, sample
from seg4diff_tools.errors import InputError
from seg4diff_tools.families import Family, model_lock, transformer_of
from seg4diff_tools.families._private import execution_device, scheduler_shift
from seg4diff_tools.families.capture import CapturedInputs, capture_inputs, prompt_of
from seg4diff_tools.images import Fit, ImageLike, Size, Video
from seg4diff_tools.indices import as_indices, as_int
from seg4diff_tools.prompts import Prompt, check_prompt, class_texts, class_tokens, cut_class_text

Prompts = str | Prompt | Sequence[str | Prompt]


@dataclass(frozen=True, eq=False)
class Backbone:
    """A diffusion model with the operations that analyses need: encode, add noise, predict, generate.

    Args:
        pipe: a plain diffusers pipeline.
        family: record of its architecture.
        name: shown in tables.
        expert_layer: 0-based layer whose I2T attention segments best; None if unknown.
        guidance_scale: default of `generate` (7.5 in the paper).
    """

    pipe: DiffusionPipeline
    family: Family
    name: str
    expert_layer: int | None = None
    guidance_scale: float = 7.5
    _captured: dict[tuple, Any] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        pixels = " x ".join(map(str, self.native_size)) if self.is_video else self.image_size
        size = f"{self.layers} layers of {self.heads} heads, {pixels} px"
        return f"Backbone({self.name!r}, {self.family.name}, {size}, {self.dtype} on {self.device})"

    @property
    def transformer(self) -> ModelMixin:
        """The MM-DiT; of a compiled one, the module that was compiled."""
        return transformer_of(self.pipe)

    @property
    def device(self) -> torch.device:
        """Compute device; with CPU offload, the accelerator."""
        return execution_device(self.pipe)

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
    def token_px(self) -> int:
        """Side of an image token in pixels."""
        return self.family.latent_cell_px(self.pipe) * self.family.patch_size

    @property
    def is_video(self) -> bool:
        """Whether it is a model of videos, whose latents and maps have an axis of frames."""
        return self.family.frame_axis is not None

    @property
    def image_size(self) -> int:
        """Side in pixels of the square images that the model was trained on; of videos, see `native_size`."""
        if self.is_video:
            raise InputError(f"expected a model of images, got {self.name!r}, one of videos: use native_size")
        return self.native_size[0]

    @property
    def native_size(self) -> tuple[int, ...]:
        """Height and width in pixels of what the model was trained on; of a video, the number of frames before them."""
        return self.family.native_size(self.pipe)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Channels, rows and columns of the latent of an image of the native size; of a video, frames before rows."""
        return self.latent_size()

    def token_grid(
        self, latents: Float[Tensor, "image channels *frames height width"] | None = None
    ) -> tuple[int, ...]:
        """Return rows and columns of image tokens; of a video, latent frames before them.

        Args:
            latents: of any size; None for the native image size.
        """
        *frames, rows, columns = self.latent_shape[1:] if latents is None else latents.shape[2:]
        return *frames, rows // self.family.patch_size, columns // self.family.patch_size

    @overload
    def encode_prompt(  # type: ignore[overload-overlap]
        self, prompt: str, *, zero_tokens: int = 77, cut: bool = False
    ) -> Prompt: ...

    @overload
    def encode_prompt(self, prompt: Sequence[str], *, zero_tokens: int = 77, cut: bool = False) -> list[Prompt]: ...

    def encode_prompt(
        self, prompt: str | Sequence[str], *, zero_tokens: int = 77, cut: bool = False
    ) -> Prompt | list[Prompt]:
        """Encode a prompt with the pipeline's own text encoders.

        Args:
            prompt: one prompt, or a list.
            zero_tokens: zero vectors in place of T5's tokens, for SD3 without T5: 77 in the released code, 256 in a
                plain `pipe(prompt)`, 0 for none.
            cut: drop words past CLIP's limit, as a plain `pipe(prompt)` does, instead of raising an error.

        Returns:
            One Prompt, or a list for a list.

        Raises:
            PromptError: a prompt does not fit; the message names the excess words.
            InputError: no text, or zero_tokens out of range or for a model without them.
        """
        texts = [prompt] if isinstance(prompt, str) else as_list(prompt, "prompt", "'a cat'")
        for text in texts:
            if not isinstance(text, str):
                raise InputError(f"expected prompt as text, got {text!r}: pass prompt='a cat', or a list of texts")
        zero_tokens = check_zeros(self, zero_tokens)
        prompts = [self._encode(unicodedata.normalize("NFC", text), zero_tokens, cut) for text in texts]
        return prompts[0] if isinstance(prompt, str) else prompts

    def _encode(self, text: str, zero_tokens: int, cut: bool) -> Prompt:
        if not cut:
            check_prompt(*self.family.tokenizer_and_limit(self.pipe), text)
        return prompt_of(self.pipe, self.family, text, self._capture(text, None, zero_tokens=zero_tokens))

    def _capture(self, text: str, size: Size | None, steps: int = 28, zero_tokens: int = 77) -> CapturedInputs:
        arguments: dict[str, Any] = {"size": pictures.pixel_size(self, size), "steps": steps}
        if self.family.zero_text(self.pipe):
            arguments["max_sequence_length"] = zero_tokens
        with self.running():
            return capture_inputs(self.pipe, self.family, text, **arguments)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold the model's lock, without gradients and in evaluation mode; restore modes on leaving the `with`."""
        parts = [part for part in self.pipe.components.values() if isinstance(part, torch.nn.Module)]
        modules = [module for part in parts if part.training for module in part.modules() if module.training]
        with model_lock(self.pipe), torch.no_grad():
            for module in modules:
                module.training = False
            try:
                yield
            finally:
                for module in modules:
                    module.training = True

    def class_prompts(
        self, class_names: Sequence[str], *, zero_tokens: int = 77, cut_prompt: bool = False, reader: str | None = None
    ) -> list[Prompt]:
        """Encode class names joined by spaces, the paper's segmentation prompt (section 4.2, Fig 7).

        Args:
            class_names: distinct names, in the order of the label map.
            zero_tokens: see `encode_prompt`.
            cut_prompt: False distributes names over as few prompts as hold them all; True cuts one prompt at the text
                encoder's limit, as the released code does, so that later names have no token. Of SD3 without T5.
            reader: the tokenizer whose tokens of a name count, "CLIP" or "T5" of SD3 with T5; None for all.

        Returns:
            Prompts whose `classes` give every name's token indices, exact even where one name contains another.

        Raises:
            InputError: no names, an empty one, or one twice, or a reader that the model lacks.
            PromptError: a single name longer than a prompt.
        """
        if cut_prompt:
            if not self.family.zero_text(self.pipe):
                raise InputError(f"expected cut_prompt with SD3 without T5, got {self.name!r}: leave it out")
            text, classes = cut_class_text(self.pipe.tokenizer, class_names)
            prompt = self.encode_prompt(text, zero_tokens=zero_tokens, cut=True)
            prompt.indices(reader=reader)  # refuses one that the model lacks
            return [replace(prompt, classes=classes)]
        texts = class_texts(*self.family.class_tokenizer_and_limit(self.pipe), class_names)
        encoded = ((self.encode_prompt(text, zero_tokens=zero_tokens), ranges) for text, ranges in texts)
        return [replace(prompt, classes=class_tokens(prompt, ranges, reader)) for prompt, ranges in encoded]

    def encode_image(
        self,
        images: ImageLike | Video | Sequence[ImageLike] | Sequence[Video],
        size: Size | None = None,
        fit: Fit = "resize",
    ) -> Float[Tensor, "image channels *frames height width"]:
        """Encode images into scaled latents: the mean of the VAE's posterior, hence deterministic.

        Args:
            images: paths, PIL images, uint8 arrays [y x 3], float tensors [3 y x] from 0 to 1, batches or lists. A
                model of videos takes a `Video`, or a list of them with as many frames.
            size: target size in pixels, (height, width) or the side of a square; None for the native size.
            fit: "resize" (stretch, as the released code) or "crop" (center crop, as the paper's text).

        Returns:
            Latents, one per image, (z - shift) * scale as the transformer expects.

        Raises:
            InputError: an image that is missing or damaged, a size or a number of frames that the model cannot take,
                or an image in place of a video.
        """
        return pictures.encode(self, images, size, fit)

    def decode(self, latents: Float[Tensor, "image channels *frames height width"]) -> list[Any]:
        """Decode scaled latents into PIL images; with a model of videos, into a `Video` each.

        Args:
            latents: from `encode_image`.
        """
        return pictures.decode(self, latents)

    def schedule(
        self, steps: int = 28, size: Size | None = None
    ) -> tuple[Float[Tensor, " step"], Float[Tensor, " step"]]:
        """Return timesteps and noise levels of the pipeline's sampling schedule; its scheduler stays unchanged.

        Args:
            steps: length of the schedule (28 in the paper).
            size: of the image in pixels, which shifts the schedule of some models; None for the native size.

        Returns:
            Timesteps from 1000 down and sigma from 1 down, float32 on the CPU.
        """
        steps = as_int(steps, "steps", 1)
        # a scheduler can be changed in place
        scheduler, settings = self.pipe.scheduler, repr(sorted(self.pipe.scheduler.config.items()))
        key = "schedule", pictures.pixel_size(self, size), steps, scheduler, settings, scheduler_shift(scheduler)
        if key not in self._captured:
            made = self._capture("", size, steps).scheduler
            levels = made.timesteps, self.family.noise_levels(made)
            self._captured[key] = tuple(each.cpu().float()[:steps] for each in levels)
        return self._captured[key]

    def add_noise(
        self,
        latents: Float[Tensor, "image channels *frames height width"],
        steps_from_end: int | Sequence[int] = 8,
        steps: int = 28,
        seed: int | Sequence[int] = 0,
    ) -> tuple[Float[Tensor, "batch channels *frames height width"], Float[Tensor, " batch"]]:
        """Mix latents with noise as at one or several steps of sampling: x_t = (1 - sigma) x_0 + sigma noise; of
        CogVideoX, whose schedule keeps the variance, sqrt(1 - sigma^2) x_0 + sigma noise.

        Args:
            latents: scaled, one per image.
            steps_from_end: the paper's "t = 8 of 28" is 8: `scheduler.timesteps[-8]`. A list gives every image at
                every one of these steps, with the same noise.
            steps: length of the schedule.
            seed: of the noise, the same on every device: one for every image, or a list with one each.

        Returns:
            Noised latents in the order (image step), steps changing fastest, and their timesteps.

        Raises:
            InputError: a step outside the schedule, or a number of seeds that is not the number of images.
        """
        latents, steps = check_latents(self, latents, "latents"), as_int(steps, "steps", 1)
        wanted = as_indices(steps_from_end, "steps_from_end", steps + 1, low=1)
        timesteps, sigmas = self.schedule(steps, pictures.size_of(self, latents))
        seeds = as_seeds(seed)
        seeds = seeds * len(latents) if is_number(seed) else seeds
        if len(seeds) != len(latents):
            raise InputError(
                f"expected seed, one or one per image, got {len(seeds)} for {len(latents)} images: pass seed=0"
            )
        index = torch.tensor([-k for k in wanted])
        sigma = sigmas[index].view(1, -1, *[1] * (latents.ndim - 1)).to(latents.device)
        noise = draw_noise(seeds, latents.shape[1:]).to(latents.device)
        mixed = self.family.image_share(sigma) * latents.float()[:, None] + sigma * noise[:, None]
        noisy = rearrange(mixed, "image step ... -> (image step) ...").to(latents.dtype)
        return noisy, repeat(timesteps[index], "step -> (image step)", image=len(latents)).to(latents.device)

    def predict_velocity(
        self,
        noisy: Float[Tensor, "batch channels *frames height width"],
        timestep: Float[Tensor, " batch"] | Float[Tensor, ""] | float,
        prompt: Prompts,
    ) -> Float[Tensor, "batch ..."]:
        """Run one forward of the transformer, without gradients and without classifier-free guidance.

        Args:
            noisy: latents from `add_noise`.
            timestep: from 0 to 1000, one for all or one each.
            prompt: one for all, or a list, distributed evenly over the latents in order: with several steps per image
                (see `add_noise`) one prompt per image.

        Returns:
            The predicted velocity, noise minus image; of CogVideoX sqrt(1 - sigma^2) noise - sigma image.
        """
        with self.running():
            predicted = self.pipe.transformer(**self.inputs(noisy, timestep, prompt))[0]
        return self.family.unpack(self.family.velocity(predicted), self.token_grid(noisy))

    def inputs(
        self,
        noisy: Float[Tensor, "batch channels *frames height width"],
        timestep: Float[Tensor, " batch"] | Float[Tensor, ""] | float,
        prompt: Prompts,
    ) -> dict[str, Any]:
        """Return the transformer's arguments for one forward, whose result is a tuple with the velocity first.

        Args:
            noisy, timestep, prompt: see `predict_velocity`.

        Raises:
            InputError: latents, timesteps or prompts that do not fit together.
        """
        noisy = check_latents(self, noisy, "noisy")
        prompts = [self.encode_prompt(each) if isinstance(each, str) else each for each in as_prompts(prompt)]
        # looked up once: both search through modules; captured inputs keep the pipeline's device and dtype
        device, dtype = self.device, self.dtype
        key = "inputs", pictures.size_of(self, noisy), device, dtype
        if key not in self._captured:
            self._captured[key] = self._capture("", pictures.size_of(self, noisy)).inputs
        return forward_inputs(self.family, self._captured[key], noisy.to(device, dtype), timestep, prompts)

    def generate(
        self,
        prompt: Prompts,
        *,
        steps: int = 28,
        guidance_scale: float | None = None,
        seed: int | Sequence[int] = 0,
        size: Size | None = None,
        negative_prompt: str | None = None,
        zero_tokens: int = 77,
        batch: int | None = None,
        progress: bool = True,
        callback: Callable[[int, float, Tensor], None] | None = None,
        **arguments: Any,
    ) -> list[Any]:
        """Generate images, or videos, with the pipeline's own sampling loop.

        Args:
            prompt: one, or a list: one image each.
            steps: sampling steps, at least 1.
            guidance_scale: of classifier-free guidance; None for the backbone's default, 1 or less for no guidance. A
                guidance-distilled model, such as FLUX.1-dev, reads the number instead.
            seed: one for all images, or a list (with a single prompt: that many images of it).
            size: (height, width) or side in pixels, (frames, height, width) of a video; None for the native size.
            negative_prompt: of classifier-free guidance; None for the pipeline's own, mostly the empty prompt.
            zero_tokens: see `encode_prompt`; an encoded prompt keeps its own number.
            batch: images at once; None for all.
            progress: show a progress bar of the steps, or of several batches.
            callback: called after every step with the step's index, its timestep and the latents.
            arguments: further arguments of the pipeline, such as `true_cfg_scale` of FLUX.1 or `image` of Kontext.

        Returns:
            The images; of a model of videos, a `Video` each.

        Raises:
            PromptError: a prompt does not fit.
            InputError: a value out of range, a size that the model cannot take, seeds that do not match the prompts, or
                an argument that the pipeline lacks or that would have no effect.
        """
        asked = as_prompts(prompt), as_int(steps, "steps", 1), guidance_scale, seed, pictures.pixel_size(self, size)
        return sample(self, *asked, negative_prompt, zero_tokens, batch, progress, callback, arguments)

    def latent_size(self, size: Size | None = None) -> tuple[int, ...]:
        """Return channels, rows and columns of the latent of an image of a size in pixels, None for the native one;
        of a video, whose size may be (frames, height, width), latent frames before the rows."""
        return pictures.latent_size(self, size)

    def latent_frame(self, frame: int) -> int:
        """Return the latent frame (of maps the index on axis "frame") that stands for a frame of a video: the first one
        for the first frame alone, each other one for as many as the VAE joins."""
        return pictures.latent_frame(self, frame)
