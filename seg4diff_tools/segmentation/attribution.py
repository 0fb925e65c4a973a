"""Published attribution methods that make class maps of the same attention, to compare with the mean of one layer.

A method is a function of one image's noisy latents and of the prompts that name its classes. All methods observe the
one interception point and keep no map between image tokens: where one is needed, its rows are computed a few at a time
from the log-sum-exp. Each prompt is a forward of its own, which ends in the last wanted layer.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from seg4diff_tools.attention.exact import chunks, default_workspace, exact_products, working_dtype
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checks import check_layers
from seg4diff_tools.errors import InputError, one_of
from seg4diff_tools.indices import as_int
from seg4diff_tools.prompts import Prompt
from seg4diff_tools.segmentation import masks
from seg4diff_tools.segmentation.concepts import concept, concept_in_prompt
from seg4diff_tools.segmentation.watching import (
    Attribution,
    Features,
    Latents,
    Layers,
    Maps,
    Prompts,
    Spans,
    Timesteps,
    features,
    head_mean,
    layer_maps,
    watch,
)


def cosine(
    backbone: Backbone,
    noisy: Latents,
    timestep: Timesteps,
    prompts: Prompts,
    layers: Layers = None,
    *,
    image: Features = "key",
    text: Features = "key",
) -> Maps:
    """Take the cosine of features of image tokens with those of the words, heads side by side: a plain baseline.

    Args: as for `Attribution`, and
        image, text: which features of either side: "query", "key" or "value", as they enter the attention.

    Returns:
        Cosines, mean over each class's tokens and over layers.
    """
    one_of(image, "image", get_args(Features), "image='key'")
    one_of(text, "text", get_args(Features), "text='key'")

    def see(call: JointAttention, spans: Spans) -> Maps:
        places = normalize(features(call, image, "image"), dim=-1)
        words = normalize(features(call, text, "text"), dim=-1)
        return (spans.to(words).mT @ words) @ places.mT

    layers = check_layers(backbone, ["expert"] if layers is None else layers)
    return layer_maps(backbone, noisy, timestep, prompts, layers, see).mean(0)


def refined(
    backbone: Backbone, noisy: Latents, timestep: Timesteps, prompts: Prompts, layers: Layers = None, *, times: int = 2
) -> Maps:
    """Spread the paper's maps along image-to-image attention of the same layer: I2I^n I2T.

    Args: as for `Attribution`, and
        times: the power n; 0 leaves the maps as they are.

    Returns:
        Mean over layers.

    Source: refinement by self-attention, as in many training-free segmentors on diffusion U-Nets; see `propagate`.
    """
    layers = check_layers(backbone, ["expert"] if layers is None else layers)

    def see(call: JointAttention, spans: Spans) -> Maps:
        return propagate(call, head_mean(call, spans), times)

    return layer_maps(backbone, noisy, timestep, prompts, layers, see).mean(0)


def goca(
    backbone: Backbone,
    noisy: Latents,
    timestep: Timesteps,
    prompts: Prompts,
    layers: Layers = None,
    *,
    reference: int | None = None,
    heads: bool = True,
    times: int = 0,
    blur: bool = False,
) -> Maps:
    """Weigh heads and layers by their contribution, then rescale the scores at each place and for each class.

    Heads are weighted by `head_weights`, layers by `layer_weight`. The tokens of all classes then share out each place
    (they add up to 1 there), and each class is stretched to 0..1 over the image.

    Args: as for `Attribution`, layers=None takes all, and
        reference: layer of the dense features that weigh layers; None for the middle one.
        heads: False for the plain mean over heads, as released for FLUX; so it always is in single-stream blocks, which
            project heads together with their MLP.
        times: spread the shares that often along the reference layer's image-to-image attention. As released: 2 to 5
            times, along other layers of each model.
        blur: blur the shares before each class is stretched, as released: over 5 x 5 image tokens, deviation 1.1, see
            `masks.blur`. There the maps are first brought to 64 x 64 places, whatever the model.

    Returns:
        Values from 0 to 1.

    Source: GoCA, Meng et al., arXiv 2603.06178. Departures: the classes' words are all content words there are, because
    the prompt holds nothing else (there: nouns of a caption); the blur, which is released, has to be asked for.
    """
    layers = range(backbone.layers) if layers is None else layers
    reference = (backbone.layers - 1) // 2 if reference is None else reference
    modules = dict(backbone.family.joint_attention(backbone.transformer)) if heads else {}
    guides, parts = [], []
    for prompt in prompts:
        guides += watch(backbone, noisy, timestep, prompt, [reference], lambda call, _: call)
        see = partial(_weighted, modules=modules, dense=features(guides[-1], "output", "image"))
        found = watch(backbone, noisy, timestep, prompt, layers, see)
        weights, maps = (torch.stack(each) for each in zip(*found, strict=True))
        parts.append(torch.einsum("ls,lscn->scn", weights / weights.sum(0), maps).clamp(min=0))
    lengths = [parts[0].new_tensor([len(span) for span in prompt.classes.values()]) for prompt in prompts]
    content = sum(torch.einsum("c,scn->sn", *pair) for pair in zip(lengths, parts, strict=True))
    content = content.clamp(min=1e-30)[:, None]
    shares = [propagate(guide, part / content, times) for guide, part in zip(guides, parts, strict=True)]
    places = torch.cat(shares, dim=1).float().unflatten(-1, backbone.token_grid(noisy))
    return masks.minmax(masks.blur(places) if blur else places).flatten(-2)


def _weighted(
    call: JointAttention, spans: Spans, modules: Mapping[int, nn.Module], dense: Float[Tensor, "step image feature"]
) -> tuple[Float[Tensor, " step"], Maps]:
    """Return a layer's weight and its image-to-text attention with weighted heads."""
    # single-stream blocks project heads together with their MLP, in one linear layer or outside of the attention
    out = getattr(modules.get(call.layer), "to_out", None)
    if not isinstance(out, nn.ModuleList):
        return layer_weight(call, dense), head_mean(call, spans)
    weights = head_weights(call, effective_weight(out[0]))
    return layer_weight(call, dense), torch.einsum(
        "shn,shnc->scn", weights, call.weights("i2t", spans=spans).to(weights)
    )


PROBABILITIES = "layer", "daam"
"""Methods that take the mean attention probability: of the expert layer, or of all layers (DAAM, arXiv 2210.04885)."""
ATTRIBUTIONS: dict[str, Attribution] = {
    "concept": concept,
    "concept-in-prompt": concept_in_prompt,
    "goca": goca,
    "cosine": cosine,
    "refined": refined,
}
"""Other methods, by name."""
METHODS = *PROBABILITIES, *ATTRIBUTIONS
"""Names of all methods."""


def propagate(call: JointAttention, maps: Maps, times: int = 1) -> Maps:
    """Replace the value at each image token by the mean of what it attends to in the image, several times over.

    Args:
        call: the attention as it is computed.
        maps: of the same image tokens.
        times: how often.

    Returns:
        I2I^times @ maps, where I2I is the mean over heads, its rows brought to a sum of 1.
    """
    for _ in range(as_int(times, "times", 0)):
        maps = torch.cat(
            [maps.to(part) @ (part / part.sum(-1, keepdim=True)).mT for _, part in image_rows(call)], dim=-1
        )
    return maps


def head_weights(
    call: JointAttention, projection: Float[Tensor, "feature head_feature"]
) -> Float[Tensor, "step heads image"]:
    """Return the share of each head in a layer's output at each image token.

    Args:
        call: the attention as it is computed.
        projection: weight of the linear layer that joins the heads, `effective_weight(to_out[0])`.

    Returns:
        Dot product of the head's projected output with the whole projected output, divided by the sum over heads. A
        head that works against the others is below 0.

    Source: GoCA, arXiv 2603.06178.
    """
    output = call.output[:, :, call.image].to(working_dtype(call.output))
    projection = projection.to(output)
    whole = features(call, "output", "image") @ projection.mT
    # o_h . o = (x_h W_h) . o = x_h . (o W_h^T): no projected output for each head
    back = (whole @ projection).unflatten(-1, (output.shape[1], -1)).transpose(1, 2)
    weights = (output * back).sum(-1)
    return weights / weights.sum(1, keepdim=True)


def effective_weight(linear: nn.Module) -> Float[Tensor, "feature head_feature"]:
    """Return the weight of a linear layer together with what active LoRA weights add to it."""
    added = [linear.get_delta_weight(adapter) for adapter in getattr(linear, "active_adapters", ())]
    return linear.weight + sum(added)


def layer_weight(call: JointAttention, dense: Float[Tensor, "step image feature"]) -> Float[Tensor, " step"]:
    """Return the similarity of a layer's image-to-image attention to a pseudo attention map made of dense features.

    Args:
        call: the attention as it is computed.
        dense: features f of the image tokens.

    Returns:
        Sum over pairs of image tokens of I2I, mean over heads, times softmax(f f^T / sqrt(feature)).

    Source: GoCA, arXiv 2603.06178.
    """
    total = dense.new_zeros(len(dense))
    for rows, part in image_rows(call):
        pseudo = (dense[:, rows] @ dense.mT * dense.shape[-1] ** -0.5).softmax(-1)
        total = total + (part.to(pseudo) * pseudo).sum((1, 2))
    return total


def image_rows(
    call: JointAttention, workspace: int | None = None
) -> Iterator[tuple[slice, Float[Tensor, "step rows image"]]]:
    """Yield image-to-image attention, mean over heads, a few rows at a time: exact, from the log-sum-exp.

    Args:
        call: the attention as it is computed.
        workspace: bytes for intermediate results; None: what suits the device.

    Yields:
        Which image tokens the rows are of, and what they give to all image tokens; rows add up to less than 1, because
        text gets the rest.
    """
    key = call.key[:, :, call.image].to(working_dtype(call.query)).mT
    workspace = default_workspace(key.device) if workspace is None else workspace
    for rows in chunks(call.image_tokens, workspace // (key[:, :, 0].numel() * key.element_size())):
        places = slice(call.image.start + rows.start, call.image.start + rows.stop)
        with exact_products(key.device):
            scores = call.query[:, :, places].to(key) @ key * call.scale - call.lse[:, :, places, None].to(key)
        if (added := call.added(places, call.image)) is not None:
            scores = scores + added
        yield rows, scores.exp().mean(1)


def read(
    backbone: Backbone,
    latents: Float[Tensor, "1 channel row column"],
    prompts: Sequence[Prompt],
    method: str | Attribution,
    layers: Sequence[int] | None = None,
    *,
    steps_from_end: int | Sequence[int] = 8,
    steps: int = 28,
    seed: int = 0,
) -> Float[Tensor, "class y x"]:
    """Return class maps of one image by any method of `ATTRIBUTIONS`, mean over steps.

    Args:
        backbone: the model.
        latents: the encoded image, without noise.
        prompts: of its classes, from `Backbone.class_prompts`.
        method: one of `ATTRIBUTIONS` by name, or a function of that kind.
        layers: 0-based; None for the method's own choice.
        steps_from_end: one noise level or several.
        steps: length of the schedule.
        seed: of the noise.

    Returns:
        fp32, classes in the order of the prompts.

    Raises:
        InputError: a layer or step out of range, or a function that returns something else than class maps.
    """
    function = ATTRIBUTIONS[method] if isinstance(method, str) else method
    noisy, timestep = backbone.add_noise(latents, steps_from_end, steps, seed)
    maps, grid = function(backbone, noisy, timestep, prompts, layers), backbone.token_grid(latents)
    shape = len(noisy), sum(len(prompt.classes) for prompt in prompts), grid[0] * grid[1]
    if not isinstance(maps, Tensor) or maps.shape != shape:
        found = f"shape {tuple(maps.shape)}" if isinstance(maps, Tensor) else type(maps).__name__
        raise InputError(f"expected of method maps [step class image] of shape {shape}, got {found}: return such maps")
    return maps.mean(0).float().unflatten(-1, grid)
