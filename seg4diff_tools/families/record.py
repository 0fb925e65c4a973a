"""Record of a family: the differences between architectures, as data and a few small functions."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from seg4diff_tools.prompts import Token, label_template

Inputs = Mapping[str, Any]
"""Arguments of a transformer's forward, by name."""
Latents = Float[Tensor, "image channels *latent_frames rows columns"]
"""Latents of images or, with an axis of frames, of videos."""
PixelSize = tuple[int, ...]
"""Height and width in pixels; of a video, the number of frames before them."""


@dataclass(frozen=True)
class Layout:
    """Token positions in the joint sequence of one forward.

    Args:
        grid: rows and columns of the image tokens; of a video, frames, rows and columns.
        image: positions of the image tokens, or of the tokens of a video.
        text: positions of the text tokens.
        tokens: length of the joint sequence, with registers, reference images and padding.
    """

    grid: tuple[int, ...]
    image: slice
    text: slice
    tokens: int


def image_then_text(grid: tuple[int, ...], text: int) -> Layout:
    """Return the layout [image, text]."""
    image = math.prod(grid)
    return Layout(grid, slice(0, image), slice(image, image + text), image + text)


def text_then_image(grid: tuple[int, ...], text: int, *, registers: int = 0, references: int = 0) -> Layout:
    """Return the layout [registers, text, image, references].

    Args:
        grid: rows and columns of the image tokens; of a video, frames, rows and columns.
        text: number of text tokens.
        registers: learned tokens before the text.
        references: tokens of reference images, after the image.
    """
    start, image = registers + text, math.prod(grid)
    return Layout(grid, slice(start, start + image), slice(registers, start), start + image + references)


def patch_grid(transformer: nn.Module, latents: Tensor) -> tuple[int, int]:
    """Return rows and columns of image tokens where the transformer patchifies latents [... rows columns] itself."""
    patch = transformer.config.patch_size
    down, across = (patch, patch) if isinstance(patch, int) else patch
    return latents.shape[-2] // down, latents.shape[-1] // across


def label_alone(pipe: Any, text: str, length: int) -> tuple[Token, ...]:
    """Label the text tokens where the pipeline's one tokenizer reads the plain prompt."""
    return label_template(pipe.tokenizer, text, length)


def video_grid(transformer: nn.Module, latents: Tensor, frame_axis: int) -> tuple[int, int, int]:
    """Return frames, rows and columns of the tokens of a video where the transformer patchifies latents itself.

    Args:
        transformer: whose configuration has patch_size.
        latents: with rows and columns last; each latent frame has tokens of its own.
        frame_axis: of the latents.
    """
    return latents.shape[frame_axis], *patch_grid(transformer, latents)


def native_side(pipe: Any) -> int:
    """Return the side in pixels of the square images that a pipeline makes by default; 1024 where it does not say."""
    cells = getattr(pipe, "default_sample_size", None)
    return 1024 if cells is None else cells * pipe.vae_scale_factor


DOUBLE_AND_SINGLE = (("transformer_blocks", "attn"), ("single_transformer_blocks", "attn"))
"""Double-stream blocks, then single-stream blocks, as FLUX.1 names them."""


def encode_with_mode(pipe: Any, pixels: Float[Tensor, "image 3 *frames height width"]) -> Latents:
    """Encode pixels with an AutoencoderKL to scaled latents: the posterior's mean, (z - shift) * scale."""
    config = pipe.vae.config
    return (pipe.vae.encode(pixels).latent_dist.mode() - (config.get("shift_factor") or 0.0)) * config.scaling_factor


def decode_scaled(pipe: Any, latents: Latents) -> Float[Tensor, "image 3 *frames height width"]:
    """Decode scaled latents with an AutoencoderKL to pixels from -1 to 1."""
    config = pipe.vae.config
    return pipe.vae.decode(latents / config.scaling_factor + (config.get("shift_factor") or 0.0), return_dict=False)[0]


@dataclass(frozen=True)
class Family:
    """One architecture: its joint attention modules, token order and pipeline arguments.

    Args:
        name: short name, for example "sd3".
        pipelines: names of the diffusers pipeline classes that run it.
        transformer: name of the diffusers transformer class.
        layout: from the transformer and a forward's inputs to the `Layout`.
        label: from the pipeline, a prompt and the number of text tokens to a label for each of them.
        tokenizer_and_limit: from the pipeline to the tokenizer of the prompt and its limit in tokens.
        block_lists: attributes of the transformer that list its MM-DiT blocks, each with the block's attribute for
            joint attention (dots allowed); a `layer` is an index through all. Image-only attention is another one.
        latents, timestep: names of the transformer's arguments.
        timestep_affine: a and b, where the transformer reads a + b t for a timestep t of 0 to 1000.
        text_inputs: names of the transformer's arguments that come from the prompt.
        streams: those of `text_inputs` that hold features of text tokens; the first if empty.
        image_axis: the axis of images in those of `text_inputs` where it is not the first.
        pads_left: whether pads stand before the text.
        count_text: from a forward's inputs to the number of text tokens; None if it is that of all features.
        patch_size: latent cells along the side of an image token.
        packed: whether the pipeline cuts latents into tokens before the transformer.
        takes_packed: whether the pipeline's `latents` argument is packed too.
        latents_as_given: whether the pipeline passes its `latents` argument to the transformer without a cast.
        finalize_inputs: makes a forward's inputs from the prompt and from the image consistent.
        frame_axis: the axis of frames in the latents that the transformer reads; None for a model of images.
        frame_step: from the pipeline to n, where videos have 1, 1 + n, 1 + 2 n, ... frames.
        default_size: from the pipeline to the size that it was trained on: the side in pixels of square images, or
            frames, height and width of videos.
        made_size: from the pipeline and a size in pixels to that of the images that it makes for it.
        max_tokens_per_side: from the transformer to the most image tokens along a side; None for no limit.
        latent_cell_px: from the pipeline to the side of a latent cell in pixels.
        channels: from the pipeline to the number of latent channels.
        encode: from the pipeline and pixels (-1 to 1) to scaled latents.
        decode: the inverse of `encode`.
        noise_levels: from a scheduler with its timesteps set to the share sigma of the noise at each of them.
        image_share: from sigma to the share of the image: 1 - sigma in flow matching.
        velocity: from the transformer's prediction to noise minus image, packed alike; where the schedule keeps the
            variance, to image_share noise - sigma image.
        call_kwargs: arguments of every pipeline call, such as one that turns rewriting of prompts off.
        no_guidance_kwargs: arguments of a pipeline call without classifier-free guidance.
        scale_name: the pipeline's argument that `Backbone.generate` sets to its guidance scale.
        guidance_scale: default of it.
        guidance_offset: added to that scale gives the weight w of uncond + w (cond - uncond).
        negative: default negative prompt; None for the pipeline's own.
        branches: order of the branches of classifier-free guidance.
        sequential: whether branches run in successive forwards, not in one batch.
        optional_parts: a text encoder and its tokenizer that a pipeline may lack; zero vectors then take the place of
            its tokens.
        clip_tokens: number of text tokens, at the start of the text, that come from CLIP.
        omitted_parts: names of pipeline components that are omitted.
        appendable: where further text tokens can be appended: attributes of the transformer that embed the text and, if
            any, make positions from ids; empty where text tokens have positions of their own.
        refused: from the transformer to why one of this class is none of the family, as the end of a sentence; empty if
            it is one.
        expert_layers: layers that segment best (Seg4Diff, arXiv 2509.18096, Fig 8 and App C), by number of layers; the
            first is `Backbone.expert_layer`.
    """

    name: str
    pipelines: tuple[str, ...]
    transformer: str
    layout: Callable[[nn.Module, Inputs], Layout]
    label: Callable[[Any, str, int], tuple[Token, ...]]
    tokenizer_and_limit: Callable[[Any], tuple[Any, int]]
    block_lists: tuple[tuple[str, str], ...] = (("transformer_blocks", "attn"),)
    latents: str = "hidden_states"
    timestep: str = "timestep"
    timestep_affine: tuple[float, float] = (0.0, 1.0)
    text_inputs: tuple[str, ...] = ("encoder_hidden_states", "pooled_projections")
    streams: tuple[str, ...] = ()
    image_axis: Mapping[str, int] = field(default_factory=dict)
    pads_left: bool = False
    count_text: Callable[[Inputs], int] | None = None
    patch_size: int = 2
    packed: bool = False
    takes_packed: bool = True
    latents_as_given: bool = False
    finalize_inputs: Callable[[dict[str, Any]], dict[str, Any]] = lambda inputs: inputs
    frame_axis: int | None = None
    frame_step: Callable[[Any], int] = lambda pipe: pipe.vae_scale_factor_temporal
    default_size: Callable[[Any], int | PixelSize] = native_side
    made_size: Callable[[Any, Any], PixelSize] = lambda pipe, size: size
    max_tokens_per_side: Callable[[nn.Module], int | None] = lambda transformer: None
    latent_cell_px: Callable[[Any], int] = lambda pipe: pipe.vae_scale_factor
    channels: Callable[[Any], int] = lambda pipe: pipe.vae.config.latent_channels
    encode: Callable[[Any, Tensor], Tensor] = encode_with_mode
    decode: Callable[[Any, Tensor], Tensor] = decode_scaled
    noise_levels: Callable[[Any], Tensor] = lambda scheduler: scheduler.sigmas
    image_share: Callable[[Tensor], Tensor] = lambda sigma: 1 - sigma
    velocity: Callable[[Any], Tensor] = lambda output: output
    call_kwargs: Mapping[str, Any] = field(default_factory=dict)
    no_guidance_kwargs: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    scale_name: str = "guidance_scale"
    guidance_scale: float = 7.5
    guidance_offset: float = 0.0
    negative: str | None = None
    branches: tuple[str, ...] = ("uncond", "cond")
    sequential: bool = False
    optional_parts: tuple[str, ...] = ()
    clip_tokens: int = 0
    omitted_parts: tuple[str, ...] = ()
    appendable: tuple[str, ...] = ()
    refused: Callable[[nn.Module], str] = lambda transformer: ""
    expert_layers: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def joint_attention(self, transformer: nn.Module) -> list[tuple[int, nn.Module]]:
        """Return the joint-attention modules with their layer index, in order."""
        modules = [
            attrgetter(attention)(block)
            for stack, attention in self.block_lists
            for block in getattr(transformer, stack)
        ]
        return list(enumerate(modules))

    def layers(self, transformer: nn.Module) -> int:
        """Return the number of joint-attention layers of all stacks."""
        return sum(len(getattr(transformer, stack)) for stack, _ in self.block_lists)

    def double_layers(self, transformer: nn.Module) -> list[int]:
        """Return the layers of double-stream blocks, where text tokens have separate projections."""
        modules = self.joint_attention(transformer)
        names = "add_k_proj", "to_k_t"
        return [layer for layer, module in modules if any(getattr(module, name, None) is not None for name in names)]

    def heads(self, transformer: nn.Module) -> int:
        """Return the number of attention heads in each layer."""
        config = transformer.config
        return config.num_attention_heads if "num_attention_heads" in config else config.n_heads

    def forward_inputs(self, transformer: nn.Module, args: tuple, kwargs: Inputs) -> dict[str, Any]:
        """Return the inputs of a transformer call by name, positional ones included."""
        names = [*inspect.signature(type(transformer).forward).parameters][1:]
        return dict(zip(names, args, strict=False)) | dict(kwargs)

    def native_size(self, pipe: Any) -> PixelSize:
        """Return height and width in pixels of the images that a model was trained on, of videos frames before them."""
        size = self.default_size(pipe)
        return (size, size) if isinstance(size, int) else size

    def sized(self, pipe: Any, size: PixelSize) -> dict[str, int]:
        """Return the arguments of a pipeline call for an image or a video of this size."""
        arguments = dict(zip(("width", "height", "num_frames"), reversed(size), strict=False))
        # Kontext reads only the aspect ratio from height and width, and the size from here
        if "max_area" in inspect.signature(type(pipe).__call__).parameters:
            arguments["max_area"] = math.prod(size)
        return arguments

    def zero_text(self, pipe: Any) -> bool:
        """Return whether a pipeline puts zero vectors in the place of the tokens of `optional_parts`."""
        return bool(self.optional_parts) and getattr(pipe, self.optional_parts[0], None) is None

    def class_tokenizer_and_limit(self, pipe: Any) -> tuple[Any, int]:
        """Return tokenizer and limit of joined class names; where CLIP reads tokens, it has to read all of them."""
        if not self.clip_tokens:
            return self.tokenizer_and_limit(pipe)
        return pipe.tokenizer, pipe.tokenizer.model_max_length - 2

    def text_length(self, inputs: Inputs) -> int:
        """Return the number of text tokens in a prompt's transformer inputs."""
        if self.count_text is not None:
            return self.count_text(inputs)
        return sum(len(inputs[name][0]) for name in self.streams or self.text_inputs[:1])

    def pack(self, latents: Latents) -> Float[Tensor, "image ..."]:
        """Return latents as the transformer reads and predicts them: unchanged, with frames at the family's axis, or as
        tokens [image token channels]."""
        if self.frame_axis is not None:
            return latents.movedim(2, self.frame_axis)
        if not self.packed:
            return latents
        return rearrange(latents, "b c (y p) (x q) -> b (y x) (c p q)", p=self.patch_size, q=self.patch_size)

    def unpack(self, packed: Float[Tensor, "image ..."], grid: tuple[int, ...]) -> Latents:
        """Undo `pack`.

        Args:
            packed: input or prediction of the transformer; tokens of reference images, at the end, are dropped.
            grid: rows and columns of image tokens; of a video, with frames before them.
        """
        if self.frame_axis is not None:
            return packed.movedim(self.frame_axis, 2)
        if not self.packed:
            return packed
        cells, (y, x) = self.patch_size, grid
        return rearrange(packed[:, : y * x], "b (y x) (c p q) -> b c (y p) (x q)", y=y, x=x, p=cells, q=cells)

    def timesteps(self, inputs: Inputs) -> Float[Tensor, " batch"]:
        """Return the timesteps of a forward, from 0 to 1000, on the CPU."""
        start, slope = self.timestep_affine
        times = torch.as_tensor(inputs[self.timestep], dtype=torch.float32, device="cpu").detach()
        return (times.reshape(-1) - start) / slope
