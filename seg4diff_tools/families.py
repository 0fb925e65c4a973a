"""What sets the supported architectures apart, as data: the only module that knows the inside of diffusers' models."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from seg4diff_tools.errors import InputError, UnknownArchitectureError


@dataclass(frozen=True)
class Family:
    """One architecture: where its joint attention lives, in which order tokens stand, and what its prompts look like.

    Args:
        name: short name, for example "sd3".
        pipeline_class: name of the diffusers pipeline class.
        transformer_class: name of the diffusers transformer class.
        forward_arguments: names of the transformer's positional arguments, in order.
        blocks: attribute of the transformer that lists its MM-DiT blocks; a block's index is its `layer`.
        attention: attribute of a block that holds its joint attention. Image-only attention lives elsewhere.
        attention_arguments: names of the attention module's image and text arguments, [batch tokens channels] each.
        image_first: whether image tokens stand before text tokens in the joint sequence.
        clip_tokens: number of text tokens, at the start of the text, that come from the prompt's CLIP tokens.
        zero_tokens: number of zero vectors that follow them in the paper's setting (T5 dropped).
        branches: order of the guidance branches in a batch that carries classifier-free guidance.
        expert_layers: layer that segments best (Seg4Diff, arXiv 2509.18096, Fig 8 and App C), by number of layers.
    """

    name: str
    pipeline_class: str
    transformer_class: str
    forward_arguments: tuple[str, ...]
    blocks: str = "transformer_blocks"
    attention: str = "attn"
    attention_arguments: tuple[str, str] = ("hidden_states", "encoder_hidden_states")
    image_first: bool = True
    clip_tokens: int = 77
    zero_tokens: int = 77
    branches: tuple[str, ...] = ("uncond", "cond")
    expert_layers: Mapping[int, int] = field(default_factory=dict)

    def joint_attention(self, transformer: nn.Module) -> list[tuple[int, nn.Module]]:
        """The joint-attention modules with their layer index, first layer first."""
        return [
            (layer, getattr(block, self.attention)) for layer, block in enumerate(getattr(transformer, self.blocks))
        ]

    def layers(self, transformer: nn.Module) -> int:
        """Number of layers with joint attention."""
        return len(getattr(transformer, self.blocks))

    def heads(self, transformer: nn.Module) -> int:
        """Number of attention heads in each layer."""
        return transformer.config.num_attention_heads

    def forward_inputs(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs of a transformer call by name, whichever of them were passed by position."""
        return dict(zip(self.forward_arguments, args, strict=False)) | dict(kwargs)

    def token_counts(self, args: tuple, kwargs: Mapping[str, Any]) -> tuple[int, int]:
        """Numbers of image tokens and text tokens in a call of a joint-attention module, from its arguments."""
        inputs = dict(zip(self.attention_arguments, args, strict=False)) | dict(kwargs)
        image, text = (inputs.get(name) for name in self.attention_arguments)
        return image.shape[1], 0 if text is None else text.shape[1]

    def token_grid(self, transformer: nn.Module, latents: Tensor) -> tuple[int, int]:
        """Rows and columns of image tokens for latents of shape [batch channels height width]."""
        patch = transformer.config.patch_size
        return latents.shape[-2] // patch, latents.shape[-1] // patch

    def expert_layer(self, transformer: nn.Module) -> int:
        """The published expert layer of a model of this depth.

        Raises:
            InputError: no expert layer is published for this depth.
        """
        depth = self.layers(transformer)
        if depth not in self.expert_layers:
            raise InputError(
                f"No expert layer is known for a {self.name} model of {depth} layers (known: {dict(self.expert_layers)} "
                "as layers: expert); name the layer yourself."
            )
        return self.expert_layers[depth]


FAMILIES: tuple[Family, ...] = (
    # SD3.5 shares the class; its second, image-only attention is `attn2` of the same blocks.
    Family(
        name="sd3",
        pipeline_class="StableDiffusion3Pipeline",
        transformer_class="SD3Transformer2DModel",
        forward_arguments=("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep"),
        expert_layers={24: 9},
    ),
)


def family_of(transformer: nn.Module) -> Family:
    """The family of a diffusers transformer, by its class or a parent class.

    Raises:
        UnknownArchitectureError: the class belongs to no known family; its layout is not guessed.
    """
    names = {cls.__name__ for cls in type(transformer).__mro__}
    for family in FAMILIES:
        if family.transformer_class in names:
            return family
    supported = ", ".join(f"{family.transformer_class} ({family.name})" for family in FAMILIES)
    raise UnknownArchitectureError(
        f"{type(transformer).__name__} is not an architecture that this package knows; supported: {supported}. "
        "Pass the transformer of such a pipeline, or add a record to seg4diff_tools.families.FAMILIES."
    )


def is_guiding(pipeline: Any) -> bool:
    """Whether the pipeline's sampling loop is running right now, with guidance on."""
    if not getattr(pipeline, "do_classifier_free_guidance", False):
        return False
    # A pipeline keeps its last guidance scale, so that alone says nothing about a forward outside its loop.
    loop = inspect.unwrap(type(pipeline).__call__).__code__
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not loop:
        frame = frame.f_back
    return frame is not None
