"""A temperature on the scores of image tokens with text tokens that depends on the timestep, without training.

There are many more image tokens than text tokens, so that the text gets little of a softmax over both. A factor on the
scores of image queries with text keys, in the noisy steps in which a layout emerges, gives it more (TACA, arXiv
2506.07986): A_I = softmax([factor q_img k_txt^T, q_img k_img^T] scale).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seg4diff_tools.attention.exact import mask_part
from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.attention.operators import observed_attention
from seg4diff_tools.errors import RecordingError
from seg4diff_tools.families import family_of, model_lock, transformer_of
from seg4diff_tools.families._private import add_hook
from seg4diff_tools.indices import as_float, as_indices, as_positive

ABOVE = 970.0
"""Timestep, 0 to 1000, from which on TACA has its factor."""


@contextmanager
def temperature(
    model: Any, factor: float = 1.2, *, above: float = ABOVE, layers: int | Iterable[int] | None = None
) -> Iterator[None]:
    """Multiply the scores of image tokens with text tokens in every noisy forward inside the `with`.

    The other forwards stay bit-identical. Recorders inside or around it see the attention before the change. Of image
    tokens it drops what an edit that was entered before it did, as `apply_edit`; one that is entered after it, or that
    `perturbed_guidance` applies, starts from its output.

    Args:
        model: backbone, pipeline or transformer.
        factor: on the scores, before the softmax; 1 changes nothing. Biases and masks are added as they are.
        above: the smallest timestep with the factor, 0 (all) to 1000 (pure noise).
        layers: 0-based; None for all.

    Raises:
        InputError: a factor, timestep or layer out of range.

    Source: TACA, Lv et al., arXiv 2506.07986: factor 1.2 from 970 on.
    """
    factor, above = as_positive(factor, "factor"), as_float(above, "above", 0.0, 1000.0)
    transformer = transformer_of(model)
    family = family_of(transformer)
    if layers is not None:
        layers = as_indices(layers, "layers", family.layers(transformer))
    if factor == 1:
        yield
        return
    running = _Running()

    def see(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        running.factors = factors_at(family.timesteps(family.forward_inputs(module, args, kwargs)), factor, above)

    def attend(call: JointAttention) -> Tensor | None:
        return None if (running.factors == 1).all() else tempered(call, running.factors).output

    # another thread's forwards would be changed too
    with model_lock(transformer).hold("a temperature"):
        remove = add_hook(transformer, see, before=True, with_kwargs=True)
        try:
            with intercept(transformer, attend, layers=layers):
                yield
        finally:
            remove()


@dataclass(eq=False)
class _Running:
    """The factors of the forward that is running."""

    # no part of what `caching` tells it by
    factors: Tensor = field(default_factory=lambda: torch.ones(1, dtype=torch.float32, device="cpu"), compare=False)


def factors_at(timesteps: Float[Tensor, " image"], factor: float, above: float) -> Float[Tensor, " image"]:
    """Return the factor at each timestep: `factor` from `above` on, and 1 below.

    Args:
        timesteps: 0 to 1000.
        factor, above: see `temperature`.
    """
    return torch.where(timesteps >= above, factor, 1.0)


def tempered(call: JointAttention, factors: Float[Tensor, " row"]) -> JointAttention:
    """Return an attention with factors on the scores of its image queries with its text keys.

    What its image queries give, `i2t` and `i2i`, is that of the new softmax, and so is their gradient. Its text queries
    attend as before; their maps cannot be read from it.

    Args:
        call: the attention as it is computed.
        factors: for each row of the batch, or one for all.

    Raises:
        RecordingError: another number of rows.
    """
    rows = len(call.query)
    if len(factors) != rows and (factors != factors[0]).any():
        raise RecordingError(
            f"expected a timestep for each of {rows} rows, got {len(factors)}: pass one for each image"
        )
    factors = factors.to(call.key) if len(factors) == rows else factors[:1].to(call.key).expand(rows)
    inside = torch.zeros(call.key.shape[2], dtype=torch.bool, device=call.key.device)
    inside[call.text] = True
    key = call.key * torch.where(inside, factors[:, None], 1.0)[:, None, :, None]

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        return observed_attention(query, key, value, mask, call.scale)[:2]

    every = slice(None)
    if call.bias is None:
        mask = None if call.mask is None else mask_part(call.mask, call.image, every)
        output, lse = attend(call.query[:, :, call.image], key, call.value, mask)
    else:
        whole = call.bias.run(attend, (call.query,), (key, call.value), call.mask)
        output, lse = (each[:, :, call.image] for each in whole)
    return replace(
        call,
        key=key,
        output=_put(call.output, output, call.image),
        raw_lse=_put(call.raw_lse, lse, call.image),
        replaced=True,
    )


def _put(whole: Tensor, part: Tensor, places: slice) -> Tensor:
    """Return a copy of `whole` with `part` at some places of its token axis."""
    return torch.cat([whole[:, :, : places.start], part.to(whole), whole[:, :, places.stop :]], dim=2)
