"""Drive a model: prompts, images, noise, one denoising step, generation."""

import inspect
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import PIL.Image
import torch
from diffusers import DiffusionPipeline, ModelMixin
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from seg4diff_tools.errors import InputError
from seg4diff_tools.families import Family, model_lock, transformer_of
from seg4diff_tools.families.rehearsal import CapturedInputs, capture_inputs
from seg4diff_tools.images import Fit, ImageLike, Size, check_size, fit_image, open_images
from seg4diff_tools.prompts import Prompt, check_prompt, class_texts, class_tokens, cut_class_text, rows, stack_prompts

Prompts = str | Prompt | Sequence[str | Prompt]


@dataclass(frozen=True, eq=False)
class Backbone:
    """A diffusion model with the calls that the analyses are made of.

    Args:
        pipe: a plain diffusers pipeline; of SD3 without T5, as in the paper.
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
    _captured: dict[tuple, Any] = field(default_factory=dict, repr=False)

    @property
    def transformer(self) -> ModelMixin:
        """The MM-DiT; of a compiled one, the module that was compiled."""
        return transformer_of(self.pipe)

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
        """Side of an image token in pixels."""
        return self.family.cell(self.pipe) * self.family.cells

    @property
    def image_size(self) -> int:
        """Side in pixels of the square images that the model was trained on."""
        return self.family.native(self.pipe)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of the latent of an image of the native size."""
        return self._latent_shape(None)

    def token_grid(self, latents: Float[Tensor, "image channels height width"] | None = None) -> tuple[int, int]:
        """Rows and columns of image tokens.

        Args:
            latents: whose grid; None for the native image size.
        """
        rows, columns = self.latent_shape[1:] if latents is None else latents.shape[-2:]
        return rows // self.family.cells, columns // self.family.cells

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
            zero_tokens: of SD3 without T5, how many zero vectors follow CLIP's tokens in place of T5's: 77 in the paper's
                released code, 256 in a plain `pipe(prompt)`, and 0 leaves them out. Other models have none.
            cut: leave out the words that CLIP does not read, as a plain `pipe(prompt)` does, in place of an error.

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
        prompts = [self._encode(unicodedata.normalize("NFC", text), zero_tokens, cut) for text in texts]
        return prompts[0] if isinstance(prompt, str) else prompts

    def _encode(self, text: str, zero_tokens: int, cut: bool) -> Prompt:
        if not cut:
            check_prompt(*self.family.reader(self.pipe), text)
        found = self._capture(text, None, zero_tokens=zero_tokens).inputs
        inputs = {name: found[name] for name in self.family.text_inputs if found.get(name) is not None}
        return Prompt(text, self.family.label(self.pipe, text, self.family.text_length(inputs)), inputs)

    def _capture(self, text: str, size: Size | None, steps: int = 28, zero_tokens: int = 77) -> CapturedInputs:
        arguments = {"max_sequence_length": zero_tokens} if self.family.zeros else {}
        with model_lock(self.pipe), torch.no_grad():
            return capture_inputs(self.pipe, self.family, text, size=self._pixels(size), steps=steps, **arguments)

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
            if not self.family.clip_tokens:
                raise InputError(
                    f"expected cut_prompt with a model that reads CLIP tokens, got {self.name!r}: leave it out"
                )
            text, classes = cut_class_text(self.pipe.tokenizer, class_names)
            return [replace(self.encode_prompt(text, zero_tokens=zero_tokens, cut=True), classes=classes)]
        prompts = []
        for text, ranges in class_texts(*self.family.reader(self.pipe), class_names):
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
            fit: "resize" (stretch, as the released code) or "crop" (center crop, as the paper's text).

        Returns:
            Latents, one per image, (z - shift) * scale as the transformer expects.

        Raises:
            InputError: an image that is missing or damaged, or a size that the model cannot take.
        """
        height, width = self._pixels(size)
        pictures = [fit_image(image, (height, width), fit) for image in open_images(images)]
        pixels = self.pipe.image_processor.preprocess(pictures, height, width)
        with torch.no_grad():
            return self.family.encode(self.pipe, pixels.to(self.device, self.pipe.vae.dtype)).to(self.dtype)

    def decode(self, latents: Float[Tensor, "image channels height width"]) -> list[PIL.Image.Image]:
        """Decodes scaled latents into images.

        Args:
            latents: as `encode_image` gives them.
        """
        with torch.no_grad():
            pixels = self.family.decode(self.pipe, latents.to(self.device, self.pipe.vae.dtype))
            return self.pipe.image_processor.postprocess(pixels)

    def schedule(
        self, steps: int = 28, size: Size | None = None
    ) -> tuple[Float[Tensor, " step"], Float[Tensor, " step"]]:
        """Timesteps and noise shares of the pipeline's sampling schedule; its own scheduler is left alone.

        Args:
            steps: length of the schedule (28 in the paper).
            size: of the image in pixels, which moves the schedule of some models; None for the native size.

        Returns:
            Timesteps from 1000 down and sigma from 1 down, float32 on the CPU.
        """
        if steps < 1:
            raise InputError(f"expected at least one step, got steps={steps}")
        key = "schedule", self._pixels(size), steps, self.pipe.scheduler
        if key not in self._captured:
            scheduler = self._capture("", size, steps).scheduler
            self._captured[key] = scheduler.timesteps.cpu().float()[:steps], scheduler.sigmas.cpu().float()[:steps]
        return self._captured[key]

    def add_noise(
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
        timesteps, sigmas = self.schedule(steps, self._size(latents))
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

    def predict_velocity(
        self,
        noisy: Float[Tensor, "batch channels height width"],
        timestep: Float[Tensor, " batch"] | Float[Tensor, ""] | float,
        prompt: Prompts,
    ) -> Float[Tensor, "batch ..."]:
        """One forward pass of the transformer, without gradient and without classifier-free guidance.

        Args:
            noisy: add_noise latents.
            timestep: from 0 to 1000, one for all or one each.
            prompt: one for all, or a list; the latents are then shared out evenly in order, so that with several
                steps per image (see `add_noise`) there is one prompt per image.

        Returns:
            The predicted velocity, noise minus image.
        """
        with model_lock(self.pipe), torch.no_grad():
            predicted = self.pipe.transformer(**self.inputs(noisy, timestep, prompt))[0]
        return self.family.unpack(self.family.velocity(predicted), self.token_grid(noisy))

    def inputs(
        self,
        noisy: Float[Tensor, "batch channels height width"],
        timestep: Float[Tensor, " batch"] | Float[Tensor, ""] | float,
        prompt: Prompts,
    ) -> dict[str, Any]:
        """Arguments of one forward pass of the transformer, which gives the velocity as the first of a tuple.

        Args: as for `predict_velocity`.
        """
        prompts = self._prompts(prompt)
        if len(noisy) % len(prompts):
            raise InputError(f"expected one prompt or one per image, got {len(prompts)} for {len(noisy)} latents")
        share = len(noisy) // len(prompts)
        # what is kept has the pipeline's device and number format
        key = "inputs", self._size(noisy), self.device, self.dtype
        if key not in self._captured:
            self._captured[key] = self._capture("", self._size(noisy)).inputs
        own = (self.family.latents, self.family.timestep, *self.family.text_inputs, "return_dict")
        shared = {name: value for name, value in self._captured[key].items() if name not in own}
        start, slope = self.family.clock
        timestep = torch.as_tensor(timestep, dtype=torch.float32, device=self.device).expand(len(noisy))
        inputs = {
            **{name: rows([value] * len(noisy)) for name, value in shared.items()},
            **stack_prompts(prompts, share),
            self.family.latents: self.family.pack(noisy.to(self.device, self.dtype)),
            self.family.timestep: start + slope * timestep,
            "return_dict": False,
        }
        return self.family.adjust(inputs)

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
        progress: bool = True,
        callback: Callable[[int, float, Tensor], None] | None = None,
        **arguments: Any,
    ) -> list[PIL.Image.Image]:
        """Generates images with the pipeline's own sampling loop.

        Args:
            prompt: one, or a list: one image each.
            steps: sampling steps.
            guidance_scale: of classifier-free guidance, None takes the backbone's default; 1 or less turns it off. A
                guidance-distilled model, such as FLUX.1-dev, reads the number instead.
            seed: one for all images, or a list (with a single prompt: that many images of it).
            size: (height, width) or side in pixels; None for the native size.
            negative_prompt: what guidance moves away from; None for the pipeline's own, mostly the empty prompt.
            zero_tokens: see `encode_prompt`; of an encoded prompt, its own number.
            progress: show a progress bar.
            callback: called after every step with the step's index, its timestep and the latents.
            arguments: more of the pipeline's own, such as `true_cfg_scale` of FLUX.1 or the `image` of Kontext.

        Returns:
            The images.

        Raises:
            PromptError: a prompt does not fit.
            InputError: a size that the model cannot take, or seeds that do not match the prompts.
        """
        prompts = _listed(prompt)
        texts = [unicodedata.normalize("NFC", p) if isinstance(p, str) else p.text for p in prompts]
        for text in (*texts, negative_prompt or ""):
            check_prompt(*self.family.reader(self.pipe), text)
        seeds = [seed] * len(texts) if isinstance(seed, int) else list(seed)
        texts = texts * len(seeds) if len(texts) == 1 else texts
        if len(seeds) != len(texts) or not seeds:
            raise InputError(f"expected one seed or one per prompt, got {len(seeds)} for {len(texts)} prompts")
        height, width = self._pixels(size)
        if self.family.zeros:
            encoded = [len(p.indices("zero")) for p in prompts if isinstance(p, Prompt)]
            arguments |= {"max_sequence_length": encoded[0] if encoded else zero_tokens}
        negative = self.family.negative if negative_prompt is None else negative_prompt
        if negative is not None:
            arguments |= {"negative_prompt": [negative] * len(texts)}
        arguments |= {self.family.scale_name: self.guidance_scale if guidance_scale is None else guidance_scale}

        def on_step(pipe, step, timestep, tensors):
            callback(step, float(timestep), tensors["latents"])
            return {}

        if callback:
            arguments |= {"callback_on_step_end": on_step}
        if unknown := set(arguments) - set(inspect.signature(type(self.pipe).__call__).parameters):
            raise InputError(f"{type(self.pipe).__name__} takes no {' and no '.join(sorted(unknown))}: leave it out")
        noise = _noise(seeds, self._latent_shape((height, width)))

        with model_lock(self.pipe):
            bar = getattr(self.pipe, "_progress_bar_config", {})
            self.pipe.set_progress_bar_config(**(bar | {"disable": not progress}))
            try:
                return self.pipe(
                    prompt=texts,
                    **self.family.sized(self.pipe, (height, width)),
                    num_inference_steps=steps,
                    latents=self.family.pack(noise) if self.family.takes_packed else noise,
                    **arguments,
                ).images
            finally:
                self.pipe.set_progress_bar_config(**bar)

    def _pixels(self, size: Size | None) -> tuple[int, int]:
        most = self.family.widest(self.transformer)
        return check_size(self.image_size if size is None else size, self.footprint, most)

    def _latent_shape(self, size: Size | None) -> tuple[int, int, int]:
        rows, columns = (side // self.family.cell(self.pipe) for side in self._pixels(size))
        return self.family.channels(self.pipe), rows, columns

    def _size(self, latents: Tensor) -> tuple[int, int]:
        """Height and width in pixels of the image that latents stand for."""
        height, width = (side * self.family.cell(self.pipe) for side in latents.shape[-2:])
        return height, width

    def _prompts(self, prompt: Prompts, zero_tokens: int = 77) -> list[Prompt]:
        return [self.encode_prompt(p, zero_tokens=zero_tokens) if isinstance(p, str) else p for p in _listed(prompt)]


def _listed(prompt: Prompts) -> list[str | Prompt]:
    prompts = [prompt] if isinstance(prompt, (str, Prompt)) else list(prompt)
    if not prompts:
        raise InputError("expected at least one prompt, got an empty list")
    return prompts


def _noise(seeds: Sequence[int], shape: Sequence[int]) -> Float[Tensor, "image channels height width"]:
    return torch.stack([torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
