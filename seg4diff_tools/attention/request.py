"""What a recorder is asked for: layers, heads, directions, tokens, steps, branches and memory, checked at the call."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from seg4diff_tools.attention.concepts import Concepts, encode_concepts
from seg4diff_tools.attention.joint import DIRECTIONS, Direction
from seg4diff_tools.attention.tokens import Columns, choose_columns, encoded_prompts
from seg4diff_tools.errors import InputError, RecordingError, readable
from seg4diff_tools.families import Family, family_of, transformer_of
from seg4diff_tools.indices import as_indices, as_int

OUTSIDE: dict[str, Direction] = {"i2c": "i2t", "c2i": "t2i"}
"""Directions of words outside the prompt, and what they are with these words in the place of the text."""
RECORDED = ("i2t", "t2i", "masses", *OUTSIDE)


@dataclass(frozen=True, eq=False)
class Request:
    """The checked arguments of an `AttentionRecorder`.

    Layers and heads are ascending, `mean` keeps the mean over these heads, `columns` is the token axis, and `budget`
    counts bytes. None stands for all steps, for the branches of the pipeline that runs, and for no words outside the
    prompt.
    """

    transformer: nn.Module
    family: Family
    directions: tuple[str, ...]
    layers: list[int]
    heads: list[int]
    mean: bool
    columns: Columns
    steps: frozenset[int] | None
    branches: tuple[str, ...] | None
    stop_after: int | None
    budget: int
    concepts: Concepts | None = None

    def columns_of(self, direction: str, columns: int) -> int:
        """Return the length of the token axis of a direction, `columns` within the prompt."""
        return len(self.concepts.names) if self.concepts is not None and direction in OUTSIDE else columns

    def bytes_of(self, direction: str, rows: int, columns: int, places: int) -> int:
        """Return the bytes of one layer of one step; rows are images times branches, places image tokens."""
        columns = self.columns_of(direction, columns)
        entries = len(DIRECTIONS) if direction == "masses" else columns * places
        return 4 * rows * (1 if self.mean else len(self.heads)) * entries

    def check_budget(self, images: int, branches: int, steps: int, columns: int, places: int) -> int:
        """Return the bytes that the budget leaves beside a whole recording; places are image tokens.

        Raises:
            RecordingError: the recording does not fit; the message says what to change.
        """
        sizes = [self.bytes_of(direction, images * branches, columns, places) for direction in self.directions]
        need = sum(sizes) * steps * len(self.layers) + max(sizes)
        if need <= self.budget:
            return self.budget - need
        ways = [f"memory_budget={need}"]
        if self.columns.names is None and columns > 20:
            ways.insert(0, "tokens='words' with a prompt" if self.columns.prompts else "prompt=... for its words alone")
        if not self.mean:
            ways.insert(0, "heads='mean'")
        if len(self.layers) > 1:
            ways.insert(0, f"layers={self.layers[len(self.layers) // 2]}")
        if steps > 1:
            ways.insert(0, f"steps=range(0, {steps}, {max(2, -(-need // self.budget))})")
        raise RecordingError(
            f"expected a recording within memory_budget={self.budget} ({readable(self.budget)}), got one of "
            f"{readable(need)}: {steps} steps x {branches} branches x {images} images x {len(self.layers)} layers x "
            f"{1 if self.mean else len(self.heads)} heads x {columns} tokens x {places} places x 4 bytes; pass "
            f"{' or '.join(ways)}"
        )


def checked_request(
    model: Any,
    *,
    layers: Any,
    direction: Any,
    heads: Any,
    tokens: Any,
    prompt: Any,
    steps: Any,
    branches: Any,
    stop_after: Any,
    memory_budget: Any,
    concepts: Any = None,
) -> Request:
    """Return the arguments of `AttentionRecorder` in one form.

    Raises:
        InputError: one that cannot be.
        PromptError: a phrase that is not in the prompt.
    """
    transformer = transformer_of(model)
    family = family_of(transformer)
    count, depth = family.heads(transformer), family.layers(transformer)
    if stop_after is not None:
        stop_after = as_int(stop_after, "stop_after", 0, depth - 1)
    last = depth - 1 if stop_after is None else stop_after
    wanted = sorted(as_indices(range(last + 1) if layers is None else layers, "layers", depth))
    if wanted[-1] > last:
        raise InputError(f"expected layers up to stop_after={last}, got {wanted[-1]}: the forward ends before it")
    if isinstance(heads, str) and heads not in ("mean", "all"):
        raise InputError(f'expected heads, "mean", "all", a head or a list, got {heads!r}: pass heads="mean"')
    directions = _directions(direction)
    if (concepts is None) == any(name in OUTSIDE for name in directions):
        raise InputError(
            f"expected concepts= together with direction 'i2c' or 'c2i', got concepts={concepts!r} and "
            f"{', '.join(directions)}: pass direction='c2i', concepts=['sky']"
        )
    prompts = encoded_prompts(model, family, prompt)
    if len({one.text for one in prompts}) == 1:
        prompts = prompts[:1]
    return Request(
        transformer,
        family,
        directions,
        wanted,
        sorted(as_indices(range(count) if isinstance(heads, str) else heads, "heads", count)),
        isinstance(heads, str) and heads == "mean",
        choose_columns(tokens, prompts, bool(family.optional_parts)),
        None if steps is None else frozenset(as_indices(steps, "steps")),
        _branches(branches),
        stop_after,
        as_int(memory_budget, "memory_budget", 1),
        None if concepts is None else encode_concepts(model, concepts),
    )


def _directions(direction: Any) -> tuple[str, ...]:
    names = (direction,) if isinstance(direction, str) or not isinstance(direction, Iterable) else tuple(direction)
    if not names or any(name not in RECORDED for name in names) or len(set(names)) < len(names):
        raise InputError(f"expected direction, {', '.join(RECORDED)} or several of them, got {direction!r}: pass 'i2t'")
    return names


def _branches(branches: Any) -> tuple[str, ...] | None:
    if branches is None:
        return None
    names = (branches,) if isinstance(branches, str) or not isinstance(branches, Iterable) else tuple(branches)
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise InputError(
            f"expected branches, names that differ, got {branches!r}: pass ('uncond', 'cond') or ('cond',)"
        )
    return names
