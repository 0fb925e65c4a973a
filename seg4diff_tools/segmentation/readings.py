"""Further readings of the attention, for `OpenVocabulary(method=...)`: closed keys, words alone, steps of its chain.

Options of a reading are set by `functools.partial(readings.bounced, times=3)`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import torch

from seg4diff_tools.attention import placing
from seg4diff_tools.attention.chain import second_eigenvalue
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checks import check_layers
from seg4diff_tools.errors import one_of, some_of
from seg4diff_tools.indices import as_int
from seg4diff_tools.prompts import Kind
from seg4diff_tools.segmentation.watching import (
    Latents,
    Layers,
    Maps,
    Prompts,
    Spans,
    Timesteps,
    head_mean,
    layer_maps,
)

HeadWeights = Literal["even", "eigenvalue"]


def without(
    backbone: Backbone,
    noisy: Latents,
    timestep: Timesteps,
    prompts: Prompts,
    layers: Layers = None,
    *,
    kinds: Kind | Sequence[Kind] = ("pad",),
) -> Maps:
    """Take the paper's maps of a forward in which some kinds of text tokens are closed to every query, in every layer.

    Args: as for `Attribution`, and
        kinds: of `prompts.Token`; no words.

    Returns:
        Probabilities, mean over heads, over each class's tokens and over layers.

    Raises:
        InputError: a kind that no token of a prompt has.

    Source: Seg4Diff, arXiv 2509.18096, equations 9 and 10, of the masked model.
    """
    closed = some_of(kinds, "kinds", [kind for kind in get_args(Kind) if kind != "word"])
    layers = check_layers(backbone, ["expert"] if layers is None else layers)
    found = []
    for prompt in prompts:
        # there is no guidance: the same prompt as the negative one has nothing encoded
        with placing.without(backbone, *closed, prompt=prompt, negative_prompt=prompt):
            found.append(layer_maps(backbone, noisy, timestep, [prompt], layers, head_mean).mean(0))
    return torch.cat(found, dim=1)


def among_words(
    backbone: Backbone, noisy: Latents, timestep: Timesteps, prompts: Prompts, layers: Layers = None
) -> Maps:
    """Take each word's share of what an image token gives to words, head by head, as if it had no other keys.

    Args: as for `Attribution`.

    Returns:
        Shares, mean over heads, over each class's tokens and over layers; each forward's words add up to 1 at each
        place.
    """

    def see(call: JointAttention, spans: Spans) -> Maps:
        words = spans.any(1).nonzero()[:, 0].tolist()
        found = call.weights("i2t", text=words)
        shares = (found / found.sum(-1, keepdim=True)).mean(1)
        return (shares @ spans[words].to(shares)).mT

    layers = check_layers(backbone, ["expert"] if layers is None else layers)
    return layer_maps(backbone, noisy, timestep, prompts, layers, see).mean(0)


def bounced(
    backbone: Backbone,
    noisy: Latents,
    timestep: Timesteps,
    prompts: Prompts,
    layers: Layers = None,
    *,
    times: int = 2,
    heads: HeadWeights = "even",
) -> Maps:
    """Follow the joint attention of a layer several times from each image token: the share that ends at each word.

    Args: as for `Attribution`, and
        times: the power of the joint map, text tokens among its states; 1 gives the paper's maps.
        heads: "even" for the mean over heads, or "eigenvalue" to weigh each head by its second eigenvalue.

    Returns:
        The columns of A^times, A the mean over heads of the whole joint map, mean over each class's tokens and layers.

    Source: Erel et al., "Attention (as Discrete-Time Markov) Chains", arXiv 2507.17657. Departure: there the map of one
    token is followed along attention between image tokens too; here the chain is the joint one.
    """
    times = as_int(times, "times", 1)
    one_of(heads, "heads", get_args(HeadWeights))
    layers = check_layers(backbone, ["expert"] if layers is None else layers)
    see = partial(_chained, times=times, heads=heads)
    return layer_maps(backbone, noisy, timestep, prompts, layers, see).mean(0)


def _chained(call: JointAttention, spans: Spans, times: int, heads: HeadWeights) -> Maps:
    ends = spans.new_zeros(len(call.query), 1, call.query.shape[2], spans.shape[1])
    ends[:, :, call.text] = spans
    weights = ends.new_ones(len(call.query), call.query.shape[1]) if heads == "even" else second_eigenvalue(call)
    # heads alike where all are uniform
    weights = weights.clamp(min=1e-30)
    weights = weights / weights.sum(1, keepdim=True)
    for _ in range(times):
        ends = torch.einsum("bh,bhqs->bqs", weights.to(ends), call.averaged(ends).to(ends))[:, None]
    return ends[:, 0, call.image].mT
