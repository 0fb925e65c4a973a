"""ConceptAttention: classes read by dot products of the attention's outputs, as words outside the prompt or in it."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention

from seg4diff_tools.attention.concepts import Concepts, check_appendable, encode_outside
from seg4diff_tools.attention.exact import working_dtype
from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checks import check_layers
from seg4diff_tools.errors import InputError, instance_of, one_of
from seg4diff_tools.prompts import Prompt
from seg4diff_tools.segmentation.watching import (
    Latents,
    Layers,
    Maps,
    Prompts,
    Spans,
    Timesteps,
    features,
    layer_maps,
)

Variant = Literal["sd3", "flux", "apart"]
Scoring = Literal["sd3", "flux", "flux2"]
RELEASED_CONCEPT: dict[str, Scoring] = {
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
    "Flux2Pipeline": "flux2",
}
"""The variant that the released code has for a pipeline."""


def concept(
    backbone: Backbone,
    noisy: Latents,
    timestep: Timesteps,
    prompts: Prompts,
    layers: Layers = None,
    *,
    variant: Variant | None = None,
    prompt: str = "",
) -> Maps:
    """Take dot products of image tokens with classes outside the prompt in the attention's output space.

    The classes are further text tokens, which read the image while image and prompt do not read them; one forward
    answers for all of them. A softmax over classes is taken in each layer.

    Args: as for `Attribution`, whose prompts name the classes, and
        variant: how the classes are encoded and read.
            "sd3", as released for Stable Diffusion 3: classes are words of one text, read each other, the text's start
            and the image; the image's outputs are those that it would have if it read them in place of the prompt;
            outputs of classes are divided by their length; layers=None takes all.
            "flux", as released for FLUX.1: each class is encoded alone, its first token stands for it; classes read
            each other and the image; the pooled text is zero; layers=None takes the last four double-stream layers.
            "apart", ours: each class is encoded alone, all of its tokens count, it reads the image and itself, so that
            no answer depends on the other classes but for the softmax; divided by length; layers=None takes all.
            None for the released variant of the model's family.
        prompt: that the image reads: a caption, or neutral.

    Returns:
        Shares that add up to 1 over the classes.

    Raises:
        InputError: a family whose text tokens have positions, so that none can be appended; use `concept_in_prompt`.

    Source: ConceptAttention, Helbling et al., arXiv 2502.04320, and its released code. Departures from "sd3": there a
    class counts with one token, here with all of its CLIP tokens, the same where names are single tokens.
    """
    check_appendable(backbone.family)
    if variant is None:
        variant = "sd3" if backbone.family.name == "sd3" else "flux"
    one_of(variant, "variant", get_args(Variant))
    instance_of(prompt, str, "prompt", "prompt='' or a caption")
    layers = _usual_layers(backbone, variant) if layers is None else check_layers(backbone, layers)
    read = _encoded(backbone, prompts, variant, prompt)
    spans = read.concepts.weights[:, int(variant == "sd3") :].to(noisy.device)
    found: dict[int, Maps] = {}

    def see(call: JointAttention) -> None:
        beside = call.outside_prompt()
        image = _reading_classes(call) if variant == "sd3" else features(call, "output", "image")
        scores = _classes(beside, spans, variant != "flux") @ image.mT
        found[call.layer] = scores.softmax(dim=1)

    with intercept(backbone.transformer, see, layers=layers, concepts=read.concepts, stop_after=max(layers)):
        backbone.predict_velocity(noisy, timestep, read.prompt)
    return torch.stack([found[layer] for layer in layers]).mean(0).float()


def concept_in_prompt(
    backbone: Backbone,
    noisy: Latents,
    timestep: Timesteps,
    prompts: Prompts,
    layers: Layers = None,
    *,
    variant: Scoring | None = None,
) -> Maps:
    """Take dot products of image tokens with words of the prompt in the attention's output space.

    Args: as for `Attribution`; layers=None takes all, and
        variant: "sd3" divides each word's output by its length and takes the softmax in each layer, "flux" takes the
            softmax in each layer of the plain dot products, "flux2" the softmax of their mean over layers. None for the
            variant that the released code has for this model: "sd3" for Stable Diffusion 3 and 3.5, "flux2" for FLUX.2,
            and "flux" for FLUX.1 and all other families.

    Returns:
        Shares that add up to 1 over the classes of all prompts together.

    Source: after ConceptAttention, Helbling et al., arXiv 2502.04320, for any family (the released code for FLUX.2
    divides by a temperature of 1000, which changes no label). Departure: there concepts stand outside the prompt, see
    `concept`. Here they are the words of the prompt, which names all classes: they also attend to the rest of the
    prompt, and the image attends to them. A concept of several tokens is their mean.
    """
    layers = range(backbone.layers) if layers is None else layers
    if variant is None:
        variant = RELEASED_CONCEPT.get(backbone.family.pipelines[0], "flux")
    one_of(variant, "variant", get_args(Scoring))
    maps = layer_maps(backbone, noisy, timestep, prompts, layers, partial(output_similarity, unit=variant == "sd3"))
    return maps.mean(0).softmax(dim=1) if variant == "flux2" else maps.softmax(dim=2).mean(0)


def output_similarity(call: JointAttention, spans: Spans, *, unit: bool = False) -> Maps:
    """Return dot products of the attention's outputs at image tokens with those of each class, heads side by side.

    Args:
        call: the attention as it is computed.
        spans: what each class is made of, over all text tokens, as from `span_weights`.
        unit: divide the output of each class by its length.

    Source: ConceptAttention, arXiv 2502.04320.
    """
    return _classes(call, spans, unit) @ features(call, "output", "image").mT


@dataclass(frozen=True, eq=False)
class _Read:
    """What a forward reads: classes outside of a prompt, and the prompt."""

    key: tuple
    concepts: Concepts
    prompt: Prompt


_READ: weakref.WeakKeyDictionary[Prompt, _Read] = weakref.WeakKeyDictionary()
"""Encoded once for the class prompts of many images."""


def _encoded(backbone: Backbone, prompts: Sequence[Prompt], variant: Variant, text: str) -> _Read:
    zeros = len(prompts[0].indices("zero")) if backbone.family.zero_text(backbone.pipe) else 77
    key = ([tuple(each.classes) for each in prompts], variant, text, zeros)
    known = _READ.get(prompts[0])
    if known is not None and known.key == key:
        return known
    read = backbone.encode_prompt(text, zero_tokens=zeros)
    if variant == "flux":
        pooled = "pooled_projections"
        read = replace(read, inputs={**read.inputs, pooled: torch.zeros_like(read.inputs[pooled])})
    found = _joined(backbone, prompts) if variant == "sd3" else _alone(backbone, prompts, variant)
    _READ[prompts[0]] = _Read(key, found, read)
    return _READ[prompts[0]]


def _joined(backbone: Backbone, prompts: Sequence[Prompt]) -> Concepts:
    """Take the start and the words of the prompts that name the classes."""
    family = backbone.family
    states: list[Tensor] = []
    spans: list[tuple[int, ...]] = []
    for prompt in prompts:
        own = prompt.inputs[(family.streams or family.text_inputs)[0]][0]
        for tokens in ([0], *prompt.classes.values()) if not spans else prompt.classes.values():
            read = [token for token in tokens if not family.clip_tokens or token < family.clip_tokens]
            if not read:
                raise InputError("expected classes with tokens of CLIP, got one that was cut off: leave cut_prompt out")
            start = sum(map(len, spans))
            spans.append(tuple(range(start, start + len(read))))
            states.append(own[read])
    names = ("<start>", *(name for prompt in prompts for name in prompt.classes))
    return Concepts(names, torch.cat(states), tuple(spans), together=True)


def _alone(backbone: Backbone, prompts: Sequence[Prompt], variant: Variant) -> Concepts:
    """Encode each class alone."""
    names = [name for prompt in prompts for name in prompt.classes]
    found = encode_outside(backbone, names, ("word",))
    if variant == "apart":
        return found
    first = [span[0] for span in found.spans]
    return replace(found, states=found.states[first], spans=tuple((at,) for at in range(len(names))), together=True)


def _usual_layers(backbone: Backbone, variant: Variant) -> list[int]:
    return check_layers(backbone, "double")[-4:] if variant == "flux" else list(range(backbone.layers))


def _classes(call: JointAttention, spans: Spans, unit: bool) -> Tensor:
    """Return the output of each class, heads side by side."""
    words = features(call, "output", "text")
    concepts = spans.to(words).mT @ words
    return normalize(concepts, dim=-1) if unit else concepts


def _reading_classes(call: JointAttention) -> Tensor:
    """Return the outputs that image tokens would have if they read the classes in place of the prompt."""
    assert call.concepts is not None
    query = call.query[:, :, call.image].to(working_dtype(call.query))
    key, value = (
        torch.cat([each[:, :, call.image], each[:, :, call.concepts]], dim=2).to(query)
        for each in (call.key, call.value)
    )
    return scaled_dot_product_attention(query, key, value, scale=call.scale).transpose(1, 2).flatten(2)
