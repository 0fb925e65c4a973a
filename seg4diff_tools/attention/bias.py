"""Additive biases on the scores of joint attention, between groups of tokens, by layers, steps, branches and images."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seg4diff_tools.attention.areas import Area, as_area, grid_mask
from seg4diff_tools.attention.groups import Rule
from seg4diff_tools.attention.turns import PERTURBED, Turn
from seg4diff_tools.errors import InputError, instance_of, shown, some_of
from seg4diff_tools.families import Layout
from seg4diff_tools.indices import as_indices, scalar


@dataclass(frozen=True, eq=False)
class JointTokens:
    """Some tokens of the joint sequence.

    Args:
        image: True for all image tokens, or a mask or box that chooses some, see `grid_mask`; False for none.
        text: True for all text tokens, or the indices of some, as of `Prompt.span`; False for none.
        other: whether all other tokens, such as registers and those of reference images, belong to them.

    Raises:
        InputError: something else, or no token at all.
    """

    image: Area = False
    text: bool | Sequence[int] = False
    other: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.image, bool):
            object.__setattr__(self, "image", as_area(self.image, "image"))
        if not isinstance(self.text, bool):
            object.__setattr__(self, "text", as_indices(self.text, "text"))
        instance_of(self.other, bool, "other", "other=True")
        if self.image is False and self.text is False and not self.other:
            raise InputError("expected JointTokens with at least one kind, got none: pass image=True or text=[1, 2]")

    def select(self, layout: Layout) -> Bool[Tensor, " token"]:
        """Return which tokens of a forward they are.

        Raises:
            InputError: an index that the text does not have.
        """
        chosen = torch.full((layout.tokens,), self.other, dtype=torch.bool, device="cpu")
        chosen[layout.image] = (
            self.image if isinstance(self.image, bool) else grid_mask(self.image, layout.grid).ravel()
        )
        chosen[layout.text] = self.text is True
        if not isinstance(self.text, bool):
            length = layout.text.stop - layout.text.start
            chosen[[layout.text.start + index for index in as_indices(self.text, "text", length)]] = True
        return chosen


EVERY_TOKEN = JointTokens(image=True, text=True, other=True)


@dataclass(frozen=True, eq=False)
class AttentionBias:
    """A number that is added to the scores of some queries with some keys, before the softmax.

    Args:
        weight: log of the factor on the attention before it is normalized: log n makes a key stand for n identical
            ones, -inf closes the way. Or one for each of the keys, [keys], in their order in the joint sequence.
        queries: tokens that attend.
        keys: tokens that are attended to.
        layers: 0-based; None for all.
        steps: of sampling, counted from 0; it begins anew where the timestep rises, as at the start of each pipeline
            call. None for all.
        branches: of guidance, "cond", "uncond" or "perturbed"; None for all. It adds nothing where they do not run.
        images: of the batch; None for all.

    Raises:
        InputError: a weight that is no number or plus infinity, or other arguments of another kind.
    """

    weight: float | Float[Tensor, " keys"]
    queries: JointTokens = EVERY_TOKEN
    keys: JointTokens = EVERY_TOKEN
    layers: int | Iterable[int] | None = None
    steps: int | Iterable[int] | None = None
    branches: str | Sequence[str] | None = None
    images: int | Iterable[int] | None = None

    def __post_init__(self) -> None:
        weight = scalar(self.weight)
        if isinstance(weight, Tensor) and weight.ndim == 1 and weight.is_floating_point():
            right = bool((weight < math.inf).all())
        else:
            right = isinstance(weight, Real) and not isinstance(weight, bool) and weight < math.inf
        if not right:
            raise InputError(
                f"expected weight, a number or one for each key in a 1-D tensor, -inf to close the way, got "
                f"{shown(self.weight)}: pass weight=1.0"
            )
        object.__setattr__(self, "weight", weight if isinstance(weight, Tensor) else float(weight))
        instance_of(self.queries, JointTokens, "queries", "JointTokens(image=True)")
        instance_of(self.keys, JointTokens, "keys", "JointTokens(text=[1, 2])")
        for name in ("layers", "steps", "images"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(as_indices(value, name)))
        if self.branches is not None:
            known = ("cond", "uncond", PERTURBED)
            object.__setattr__(self, "branches", tuple(some_of(self.branches, "branches", known)))

    def rule(self, layout: Layout, turn: Turn) -> Rule | None:
        """Return what it adds in a forward; None where it adds nothing.

        Raises:
            InputError: tokens or images that the forward does not have, or another number of weights than keys.
            RecordingError: steps of a batch whose images are at different ones.
        """
        # checked when it was made
        layers, steps = cast(tuple[tuple[int, ...] | None, ...], (self.layers, self.steps))
        if not turn.is_in(steps):
            return None
        rows = None
        if self.branches is not None or self.images is not None:
            images = range(turn.images) if self.images is None else as_indices(self.images, "images", turn.images)
            branches = turn.branches if self.branches is None else self.branches
            found = [turn.rows_of(branch) for branch in branches]
            rows = frozenset(rows[image] for rows in found if rows for image in images)
            if not rows:
                return None
        queries, keys = self.queries.select(layout), self.keys.select(layout)
        if isinstance(self.weight, Tensor) and len(self.weight) != keys.sum():
            raise InputError(f"expected weight for each of {keys.sum()} keys, got {len(self.weight)}: pass as many")
        return Rule(self.weight, queries, keys, None if layers is None else frozenset(layers), rows)
