"""Attention with biases between groups of tokens, exact and without an N x N map.

Queries that have the same bias for every key form a group. Each group runs the attention operator with a mask
[1 1 1 keys], or, where keys are closed to it, on its open keys alone; outputs and log-sum-exps go back to their places.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seg4diff_tools.attention.exact import as_slice, index_on, mask_part, working_dtype
from seg4diff_tools.attention.operators import CLOSED, added_mask
from seg4diff_tools.errors import InputError

Positions: TypeAlias = slice | Tensor


def with_gap(chosen: Bool[Tensor, " token"], start: int, length: int) -> Bool[Tensor, " wider"]:
    """Return a choice of tokens in a joint sequence in which others, which are not chosen, are put in."""
    return torch.cat([chosen[:start], chosen.new_zeros(length), chosen[start:]])


@dataclass(frozen=True, eq=False)
class Rule:
    """What a bias adds in one forward.

    Args:
        weight: a number, or one for each of the keys.
        queries, keys: which tokens of the joint sequence, on the CPU.
        layers: None for all.
        rows: of the batch; None for all.
    """

    weight: float | Float[Tensor, " chosen"]
    queries: Bool[Tensor, " token"]
    keys: Bool[Tensor, " token"]
    layers: frozenset[int] | None = None
    rows: frozenset[int] | None = None

    def with_gap(self, start: int, length: int) -> "Rule":
        """Return the rule of a joint sequence in which other tokens, which it does not concern, are put in."""
        queries, keys = (with_gap(chosen, start, length) for chosen in (self.queries, self.keys))
        return Rule(self.weight, queries, keys, self.layers, self.rows)

    @property
    def closed(self) -> Bool[Tensor, " token"]:
        """Keys that it closes, on the CPU."""
        if not isinstance(self.weight, Tensor):
            return self.keys & (self.weight == -math.inf)
        closed = torch.zeros_like(self.keys)
        closed[self.keys] = (self.weight.detach() == -math.inf).cpu()
        return closed

    def values(self, like: Tensor) -> Float[Tensor, " token"]:
        """What it adds to the score of each key, on the device of `like`, in at least fp32, within what `like`
        holds."""
        places = index_on(tuple(self.keys.nonzero()[:, 0].tolist()), like.device)
        added = like.new_zeros(len(self.keys), dtype=working_dtype(like))
        if isinstance(self.weight, Tensor):
            weight = self.weight.to(like.device, torch.promote_types(self.weight.dtype, added.dtype))
            return added.index_put((places,), _held(weight, like.dtype).to(added))
        largest = torch.finfo(like.dtype).max
        weight = self.weight if self.weight == -math.inf else max(-largest, min(largest, self.weight))
        return added.index_fill(0, places, weight)


@dataclass(frozen=True, eq=False)
class Group:
    """Queries with one bias, their open keys, and what is `added` to these keys' scores; None for nothing."""

    queries: Positions
    open_keys: Positions
    added: Float[Tensor, " open"] | None


@dataclass(frozen=True, eq=False)
class Rows:
    """Images of a batch with one bias, and the groups of their queries.

    `back` goes from the queries in the order of the groups to their order in the joint sequence; None for one group.
    """

    rows: Positions
    groups: Sequence[Group]
    back: Int[Tensor, " query"] | None


@dataclass(frozen=True, eq=False)
class GroupBias:
    """The biases of one layer, by groups of queries.

    Args:
        table: what is added to the score of each key, a row for each group.
        index: row of the table for each query, of each row of the batch or of all alike.
        rows: the same, as attention is computed.
        back: from the rows of the batch in the order of `rows` to their own order; None if all are alike.
    """

    table: Float[Tensor, "group key"]
    index: Int[Tensor, "row query"]
    rows: Sequence[Rows]
    back: Int[Tensor, " row"] | None

    def part(self, queries: Positions, keys: Positions) -> Float[Tensor, "row 1 query key"]:
        """Return what is added to the scores of some queries with some keys."""
        return self.table[:, keys][self.index[:, queries]][:, None]

    def run(
        self,
        compute: Callable[..., Sequence[Tensor]],
        of_queries: Sequence[Tensor],
        of_keys: Sequence[Tensor],
        mask: Tensor | None,
    ) -> list[Tensor]:
        """Compute something for each group of queries apart, and put the results together.

        `compute` goes from the parts of `of_queries` and `of_keys`, tensors [batch heads token ...], and an additive
        mask to results [batch heads query ...]; `mask` is additive or boolean and broadcasts to [batch heads query
        key].
        """
        # finite: cuDNN does not take minus infinity in every release
        mask = added_mask(mask, of_queries[0].dtype, CLOSED)
        mask = mask if mask is None else mask[(None,) * (4 - mask.ndim)]
        whole = []
        for alike in self.rows:
            here = mask if mask is None or len(mask) == 1 else mask[alike.rows]
            parts = [
                compute(
                    *(tensor[alike.rows][:, :, group.queries] for tensor in of_queries),
                    *(tensor[alike.rows][:, :, group.open_keys] for tensor in of_keys),
                    _with_bias(here, group, of_queries[0].dtype),
                )
                for group in alike.groups
            ]
            whole.append([_joined(each, alike.back, 2) for each in zip(*parts, strict=True)])
        return [_joined(each, self.back, 0) for each in zip(*whole, strict=True)]


def _held(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Finite values within what a dtype holds; minus infinity stays."""
    largest = torch.finfo(dtype).max
    return torch.where(values == -math.inf, values, values.clamp(-largest, largest))


def _with_bias(mask: Tensor | None, group: Group, dtype: torch.dtype) -> Tensor | None:
    part = None if mask is None else mask_part(mask, group.queries, group.open_keys)
    if group.added is None:
        return part
    added = group.added.to(dtype).view(1, 1, 1, -1)
    return added if part is None else part + added


def _joined(parts: Sequence[Tensor], back: Tensor | None, dim: int) -> Tensor:
    return parts[0] if back is None else torch.cat(list(parts), dim).index_select(dim, back)


def _back(positions: Sequence[Sequence[int]], device: torch.device) -> Tensor | None:
    """The inverse of an order that is given in parts; None for one part."""
    order = [index for each in positions for index in each]
    places = sorted(range(len(order)), key=order.__getitem__)
    return None if len(positions) == 1 else index_on(tuple(places), device)


def group_bias(rules: Sequence[Rule], batch: int, like: Tensor) -> GroupBias | Float[Tensor, " key"] | None:
    """Put rules of one layer together.

    Args:
        rules: what is added.
        batch: number of rows of the attention.
        like: a tensor of the device and dtype of the result.

    Returns:
        A bias by groups of queries; one value for each key where all queries and images have the same and no key is
        closed; None where there are no rules.

    Raises:
        InputError: a query to which all keys are closed.
    """
    if not rules:
        return None
    patterns: dict[tuple[int, ...], list[int]] = {}
    for row in range(batch):
        concerned = tuple(at for at, rule in enumerate(rules) if rule.rows is None or row in rule.rows)
        patterns.setdefault(concerned, []).append(row)
    device, tokens = like.device, len(rules[0].queries)
    values, closed = [rule.values(like) for rule in rules], [rule.closed for rule in rules]
    no_key = torch.zeros(tokens, dtype=torch.bool, device="cpu")
    index = torch.zeros(batch, tokens, dtype=torch.long, device="cpu")
    table: list[Tensor] = []
    alike: list[Rows] = []
    for concerned, rows in patterns.items():
        members = torch.stack([no_key, *(rules[at].queries for at in concerned)])
        kinds, kind = members.unique(dim=1, return_inverse=True)
        queries = [(kind == column).nonzero()[:, 0].tolist() for column in range(kinds.shape[1])]
        groups = []
        for members_of, places in zip(kinds[1:].mT.tolist(), queries, strict=True):
            own = [at for at, inside in zip(concerned, members_of, strict=True) if inside]
            added = sum((values[at] for at in own), like.new_zeros(tokens, dtype=working_dtype(like)))
            added = _held(added, like.dtype).to(like.dtype)
            free = ~sum((closed[at] for at in own), no_key)
            if not free.any():
                raise InputError("expected an open key for each query, got a bias that closes all: leave some open")
            open_keys = _positions(free.nonzero()[:, 0].tolist(), device)
            finite = any(isinstance(rules[at].weight, Tensor) or rules[at].weight not in (0, -math.inf) for at in own)
            groups.append(Group(_positions(places, device), open_keys, added[open_keys] if finite else None))
            index[rows] = index[rows].index_fill(1, torch.tensor(places, dtype=torch.long, device="cpu"), len(table))
            table.append(added)
        alike.append(Rows(_positions(rows, device), groups, _back(queries, device)))
    if len(table) == 1 and alike[0].groups[0].open_keys == slice(0, tokens):
        return table[0]
    index = (index if len(alike) > 1 else index[:1]).to(device)
    return GroupBias(torch.stack(table), index, alike, _back(list(patterns.values()), device))


def _positions(places: Sequence[int], device: torch.device) -> Positions:
    positions = as_slice(places)
    return positions if isinstance(positions, slice) else index_on(tuple(positions), device)
