"""Which outputs of joint attention an edit or a recording concerns: layers, heads, tokens, steps and branches."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from seg4diff_tools.attention.bias import AttentionBias, JointTokens
from seg4diff_tools.attention.groups import with_gap
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.attention.turns import PERTURBED, Turn
from seg4diff_tools.errors import instance_of, some_of
from seg4diff_tools.families import Layout, family_of
from seg4diff_tools.indices import as_indices


@dataclass(eq=False)
class Forward:
    """The forward that is running; its `see` is the function of biases that notes it.

    Args:
        of: for a further forward, the place of the one that it stands beside.
        layout: of its tokens.
        turn: its place in sampling.
    """

    # the running forward is no part of what `caching` tells it by
    of: Turn | None = field(default=None, compare=False)
    layout: Layout | None = field(default=None, compare=False)
    turn: Turn | None = field(default=None, compare=False)

    def see(self, layout: Layout, turn: Turn) -> list[AttentionBias]:
        """Note a forward; it adds nothing to scores."""
        self.layout, self.turn = layout, turn if self.of is None else replace(turn, step=self.of.step)
        return []

    def choose(self, tokens: JointTokens, call: JointAttention) -> Bool[Tensor, " token"]:
        """Return which tokens of an attention of this forward they are; text outside the prompt is none of them."""
        assert self.layout is not None
        chosen = tokens.select(self.layout)
        if call.concepts is not None:
            chosen = with_gap(chosen, call.concepts.start, call.concepts.stop - call.concepts.start)
        return chosen.to(call.output.device)


@dataclass(frozen=True, eq=False)
class Selection:
    """The checked arguments of an edit or a recording.

    Args:
        layers, heads: in the order in which they came.
        tokens: whose outputs; None for all.
        steps, branches: None for all.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    tokens: JointTokens | None
    steps: tuple[int, ...] | None
    branches: tuple[str, ...] | None

    @property
    def timed(self) -> bool:
        """Whether it depends on the forward."""
        return any(limit is not None for limit in (self.tokens, self.steps, self.branches))

    def rows(self, turn: Turn, batch: int) -> Mapping[str, slice]:
        """Return the rows of each wanted branch in a forward; empty in a step that is not wanted.

        Args:
            turn: of the forward.
            batch: rows of the attention, which lacks those of PAG's perturbed branch.

        Raises:
            RecordingError: steps of a batch whose images are at different ones.
        """
        if not turn.is_in(self.steps):
            return {}
        found = {branch: turn.rows_of(branch) for branch in self.branches or turn.branches}
        return {name: slice(rows.start, rows.stop) for name, rows in found.items() if rows and rows.stop <= batch}

    def mask(self, call: JointAttention, forward: Forward) -> Bool[Tensor, "batch token"]:
        """Return which outputs of an attention it concerns, in its layers and heads."""
        assert forward.turn is not None
        chosen = torch.zeros(call.output.shape[0], call.output.shape[2], dtype=torch.bool, device=call.output.device)
        tokens = chosen.new_ones(chosen.shape[1]) if self.tokens is None else forward.choose(self.tokens, call)
        for rows in self.rows(forward.turn, len(chosen)).values():
            chosen[rows] = tokens
        return chosen


def select(transformer: nn.Module, layers: Any, heads: Any, tokens: Any, steps: Any, branches: Any) -> Selection:
    """Return the arguments of an edit or a recording in one form.

    Raises:
        InputError: one that cannot be.
    """
    family = family_of(transformer)
    depth, count = family.layers(transformer), family.heads(transformer)
    if tokens is not None:
        instance_of(tokens, JointTokens, "tokens", "JointTokens(image=True)")
    return Selection(
        tuple(range(depth) if layers is None else as_indices(layers, "layers", depth)),
        tuple(range(count) if heads is None else as_indices(heads, "heads", count)),
        tokens,
        None if steps is None else tuple(as_indices(steps, "steps")),
        None if branches is None else tuple(some_of(branches, "branches", ("cond", "uncond", PERTURBED))),
    )
