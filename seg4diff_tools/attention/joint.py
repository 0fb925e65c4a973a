"""One joint attention as it is computed, with the log-sum-exp from which each part of its map follows exactly.

A_I2T = exp(q_img k_txt^T scale - lse), and so for every part, without the N x N matrix (Seg4Diff, arXiv 2509.18096,
section 3)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seg4diff_tools.attention.exact import (
    as_slice,
    chunks,
    default_workspace,
    exact_products,
    index_on,
    mask_part,
    probabilities,
    working_dtype,
)
from seg4diff_tools.attention.groups import GroupBias
from seg4diff_tools.attention.operators import CLOSED, differentiable_lse, observed_attention
from seg4diff_tools.attention.shapes import AttentionBlock, JointHeads, LogSumExp
from seg4diff_tools.errors import InputError, RecordingError
from seg4diff_tools.indices import as_indices

Direction = Literal["i2i", "i2t", "t2i", "t2t"]
DIRECTIONS: tuple[Direction, ...] = ("i2i", "i2t", "t2i", "t2t")


@dataclass(eq=False)
class JointAttention:
    """One joint-attention call as seen at the interception point.

    Blocks are named by query side, then key side: `i2t` is what image tokens give to text tokens. Probabilities are
    those of the softmax over all keys, image and text, in fp32 (fp64 for an fp64 model).

    Args:
        layer: 0-based index of the MM-DiT block.
        image, text: positions of the image tokens and of the text tokens in the joint sequence. There may be others,
            such as registers or the tokens of a reference image.
        query, key, value: [batch heads tokens dim] as they enter the attention.
        raw_lse: log-sum-exp of each query's scores, [batch heads tokens], with or without a gradient.
        scale: factor on the scores.
        mask: additive mask that broadcasts to [batch heads query key], or None.
        output: [batch heads tokens dim], what the model goes on with.
        bias: what is added to the scores beside the mask, by groups of queries; None for nothing.
        concepts: positions of words outside the prompt, see `outside_prompt`; None without any.
        replaced: whether `output` is another one than query, key and value give: another interception edited it.
    """

    layer: int
    image: slice
    text: slice
    query: JointHeads
    key: JointHeads
    value: JointHeads
    raw_lse: LogSumExp
    scale: float
    mask: Tensor | None
    output: JointHeads
    bias: GroupBias | None = None
    concepts: slice | None = None
    replaced: bool = False

    @property
    def lse(self) -> LogSumExp:
        """Log-sum-exp of each query's scores, [batch heads tokens]; read while autograd records, it has its
        gradient."""
        # made on demand: an observer without gradients must leave the graph as it is, or checkpointing fails later
        if self.raw_lse.requires_grad:
            return self.raw_lse
        if self.bias is None:
            return differentiable_lse(self.query, self.key, self.raw_lse, self.mask, self.scale)

        def of_group(query: Tensor, lse: Tensor, key: Tensor, mask: Tensor | None) -> tuple[Tensor]:
            return (differentiable_lse(query, key, lse, mask, self.scale),)

        return self.bias.run(of_group, (self.query, self.raw_lse), (self.key,), self.mask)[0]

    def added(
        self, queries: slice | Tensor, keys: slice | Tensor, heads: slice | Tensor = slice(None)
    ) -> Tensor | None:
        """Return what mask and biases add to the scores of some queries with some keys, [batch heads query key] or
        broadcast to it; None for nothing."""
        mask = None if self.mask is None else mask_part(_head_part(self.mask, heads), queries, keys)
        if self.bias is None:
            return mask
        bias = self.bias.part(queries, keys)
        return bias if mask is None else mask + bias

    def without_keys(self, closed: Bool[Tensor, "batch key"]) -> JointHeads:
        """Compute the output with further keys closed to every query, beside mask and biases.

        Args:
            closed: which of the joint keys, for each row of the batch.

        Returns:
            The output, [batch heads tokens dim]; of a query without any other key, the mean over its closed ones.
        """

        def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor]:
            return (observed_attention(query, key, value, mask, self.scale)[0],)

        mask = torch.zeros_like(closed, dtype=self.query.dtype).masked_fill(closed, CLOSED)[:, None, None]
        mask = mask if self.mask is None else self.mask + mask
        if self.bias is None:
            return attend(self.query, self.key, self.value, mask)[0]
        return self.bias.run(attend, (self.query,), (self.key, self.value), mask)[0]

    def outside_prompt(self) -> "JointAttention":
        """Return this attention with the words outside the prompt in the place of its text.

        Then `t2i` is what these words give to image tokens, a probability; `i2t` is what image tokens would give to
        them relative to all that they read, exp(q k scale - lse): not a share, since image tokens do not read them.

        Raises:
            RecordingError: there are none in this forward.
        """
        if self.concepts is None:
            raise RecordingError("expected words outside the prompt, got none: pass concepts= to intercept")
        return replace(self, text=self.concepts, raw_lse=self.lse, bias=None, concepts=None)

    @property
    def image_tokens(self) -> int:
        """Number of image tokens."""
        return _length(self.image)

    @property
    def text_tokens(self) -> int:
        """Number of text tokens."""
        return _length(self.text)

    def i2t(self, heads: Sequence[int] | None = None, text: Sequence[int] | None = None) -> AttentionBlock:
        """Compute image-to-text attention, [batch heads image text], of some heads (default all) and text tokens
        (all)."""
        return self.weights("i2t", heads=heads, text=text)

    def t2i(self, heads: Sequence[int] | None = None, text: Sequence[int] | None = None) -> AttentionBlock:
        """Compute text-to-image attention, [batch heads text image], of some heads (default all) and text tokens
        (all)."""
        return self.weights("t2i", heads=heads, text=text)

    def i2i(self, heads: Sequence[int] | None = None) -> AttentionBlock:
        """Compute image-to-image attention, [batch heads image image]: the large part, for small models and tests."""
        return self.weights("i2i", heads=heads)

    def t2t(self, heads: Sequence[int] | None = None) -> AttentionBlock:
        """Compute text-to-text attention, [batch heads text text]."""
        return self.weights("t2t", heads=heads)

    def weights(
        self,
        name: Direction,
        *,
        heads: Sequence[int] | None = None,
        text: Sequence[int] | None = None,
        spans: Float[Tensor, "text span"] | None = None,
        workspace: int | None = None,
    ) -> AttentionBlock:
        """Compute a part of the joint map, its text side reduced on the way if asked.

        Args:
            name: "i2i", "i2t", "t2i" or "t2t".
            heads: heads to take; None takes all.
            text: text tokens to take, on the text side of "i2t" or "t2i"; None takes all.
            spans: weights that turn the taken text tokens into spans, [text span]: the text axis becomes a span axis.
            workspace: bytes for intermediate results; smaller means more, smaller pieces. None: what suits the device.

        Returns:
            Probabilities, [batch heads query key].
        """
        _check_direction(name)
        pieces = self._pieces(name, range(self.query.shape[1]) if heads is None else heads, text, spans, workspace)
        by_rows: dict[int, list[Tensor]] = {}
        for _, rows, piece in pieces:
            by_rows.setdefault(rows.start, []).append(piece)
        return _join([_join(parts, dim=1) for parts in by_rows.values()], dim=2)

    def head_mean(
        self,
        name: Direction,
        *,
        heads: Sequence[int] | None = None,
        text: Sequence[int] | None = None,
        spans: Float[Tensor, "text span"] | None = None,
        workspace: int | None = None,
    ) -> Float[Tensor, "batch query key"]:
        """Compute the mean of a direction over heads (Seg4Diff, Eq 9), never holding more heads at once than
        `workspace` allows.

        Args:
            name, heads, text, spans, workspace: see `weights`.

        Returns:
            Mean probabilities, [batch query key].
        """
        _check_direction(name)
        heads = range(self.query.shape[1]) if heads is None else heads
        sums: dict[int, Tensor] = {}
        for _, rows, piece in self._pieces(name, heads, text, spans, workspace):
            piece = piece.squeeze(1) if piece.shape[1] == 1 else piece.sum(dim=1)
            if rows.start not in sums:
                sums[rows.start] = piece
            elif piece.requires_grad:
                sums[rows.start] = sums[rows.start] + piece
            else:
                sums[rows.start].add_(piece)
            del piece
        return _join(list(sums.values()), dim=1) / len(heads)

    def masses(
        self, heads: Sequence[int] | None = None, *, workspace: int | None = None
    ) -> Float[Tensor, "batch heads 4"]:
        """Compute how much attention image and text queries give to image and text keys, in the order of `DIRECTIONS`
        (Fig 2).

        A mass is the sum over keys, averaged over queries. Image keys get what other keys do not, so that neither of
        the directions with image keys is needed. Where there are registers or reference images beside image and text,
        what they get is missing from the sums.
        """
        ones = self.query.new_ones(self.text_tokens, 1, dtype=working_dtype(self.query))
        i2t = self.weights("i2t", heads=heads, spans=ones, workspace=workspace).mean(dim=(2, 3))
        t2t = self.weights("t2t", heads=heads, workspace=workspace).sum(dim=3).mean(dim=2)
        i2i = 1 - i2t - self.mass_of_others("i", heads, workspace=workspace)
        t2i = 1 - t2t - self.mass_of_others("t", heads, workspace=workspace)
        return torch.stack([i2i, i2t, t2i, t2t], dim=-1)

    def mass_of_others(
        self, side: Literal["i", "t"], heads: Sequence[int] | None = None, *, workspace: int | None = None
    ) -> Float[Tensor, "batch heads"]:
        """Compute what queries of a side give to keys that are neither image nor text: sum over keys, mean over
        queries.

        Args:
            side: "i" for image queries, "t" for text queries.
            heads, workspace: see `weights`.
        """
        heads = range(self.query.shape[1]) if heads is None else heads
        if self.image_tokens + self.text_tokens == self.query.shape[2]:
            return self.query.new_zeros(len(self.query), len(heads), dtype=working_dtype(self.query))
        sums = [
            sum(piece.sum(dim=(1, 2, 3)) for *_, piece in self._pieces(f"{side}2o", [head], None, None, workspace))
            for head in heads
        ]
        return torch.stack(sums, dim=1) / _length(self._positions(side, None))

    def received(
        self, given: Float[Tensor, "batch given_heads start query"], *, workspace: int | None = None
    ) -> Float[Tensor, "batch heads start key"]:
        """Compute what each joint key gets if queries hold these weights: given @ A, head by head.

        Args:
            given: weights of all joint queries, several distributions at once; one head stands for all.
            workspace: see `weights`.
        """
        given = given.to(working_dtype(self.query)).expand(-1, self.query.shape[1], -1, -1)
        sums: dict[int, Tensor] = {}
        for heads, rows, piece in self._pieces("a2a", range(self.query.shape[1]), None, None, workspace):
            with exact_products(piece.device):
                got = given[:, heads, :, rows] @ piece
            sums[heads.start] = sums[heads.start] + got if heads.start in sums else got
            del piece
        return _join(list(sums.values()), dim=1)

    def averaged(
        self, values: Float[Tensor, "batch value_heads key column"], *, workspace: int | None = None
    ) -> Float[Tensor, "batch heads query column"]:
        """Compute the mean of values of joint keys that each query's attention takes: A @ values, head by head.

        Args:
            values: of all joint keys; one head stands for all.
            workspace: see `weights`.
        """
        values = values.to(working_dtype(self.query)).expand(-1, self.query.shape[1], -1, -1)
        blocks: dict[int, list[Tensor]] = {}
        for heads, _, piece in self._pieces("a2a", range(self.query.shape[1]), None, None, workspace):
            with exact_products(piece.device):
                blocks.setdefault(heads.start, []).append(piece @ values[:, heads])
            del piece
        return _join([_join(parts, dim=2) for parts in blocks.values()], dim=1)

    def _pieces(
        self, name: str, heads: Sequence[int], text: Sequence[int] | None, spans: Tensor | None, workspace: int | None
    ) -> Iterator[tuple[slice, slice, Tensor]]:
        """Probabilities of a few heads and queries at a time: (slices of the heads and of the queries taken, [batch
        heads query key])."""
        if text is not None and name not in ("i2t", "t2i"):
            raise InputError(f"expected text tokens with i2t or t2i, got them with {name}: leave text out")
        heads = as_indices(heads, "heads", self.query.shape[1])
        sides = [self._positions(side, text) for side in (name[0], name[2])]
        keys, dtype = sides[1], working_dtype(self.query)
        queries, lse = _length(sides[0]), self.lse
        row_bytes = self.query.shape[0] * _length(keys) * dtype.itemsize
        workspace = default_workspace(self.query.device) if workspace is None else workspace
        # Without a text axis among the keys, all text queries are needed to form a span.
        rows_at_once = queries if spans is not None and name[0] == "t" else max(1, workspace // row_bytes)
        heads_at_once = max(1, workspace // (row_bytes * min(rows_at_once, queries)))
        for taken in chunks(len(heads), heads_at_once):
            chosen = as_slice(heads[taken])
            chosen = chosen if isinstance(chosen, slice) else index_on(tuple(chosen), self.query.device)
            key = self.key[:, chosen][:, :, keys].to(dtype).flatten(0, 1).mT
            for rows in chunks(queries, rows_at_once):
                places = _narrowed(sides[0], rows)
                query = self.query[:, chosen][:, :, places].to(dtype)
                offset = -lse[:, chosen][:, :, places].to(dtype).unsqueeze(-1)
                if (added := self.added(places, keys, chosen)) is not None:
                    offset = offset + added
                offset = offset.expand(*query.shape[:3], -1)
                piece = probabilities(query.flatten(0, 1), key, offset.flatten(0, 1), self.scale)
                piece = piece.unflatten(0, query.shape[:2])
                if spans is not None:
                    with exact_products(piece.device):
                        piece = piece @ spans.to(piece) if name[2] == "t" else spans.to(piece).mT @ piece
                yield taken, rows, piece
                del piece  # or it would live on beside the next one

    def _positions(self, side: str, text: Sequence[int] | None) -> slice | Tensor:
        """Positions in the joint sequence of one side of a direction, "o" for others, "a" for all: a slice where they
        are consecutive."""
        if side == "a":
            return slice(0, self.query.shape[2])
        if side == "o":
            first, second = sorted((self.image, self.text), key=lambda part: part.start)
            gaps = (0, first.start), (first.stop, second.start), (second.stop, self.query.shape[2])
            kind = {"dtype": torch.long, "device": self.query.device}
            return torch.cat([torch.arange(start, stop, **kind) for start, stop in gaps])
        if side == "i" or text is None:
            return self.image if side == "i" else self.text
        chosen = as_indices(text, "text", self.text_tokens)
        positions = as_slice([self.text.start + index for index in chosen])
        return positions if isinstance(positions, slice) else index_on(tuple(positions), self.query.device)


def _check_direction(name: str) -> None:
    if name not in DIRECTIONS:
        raise InputError(f"expected one of the directions {', '.join(DIRECTIONS)}, got {name!r}: pass one of them")


def _length(positions: slice | Tensor) -> int:
    return positions.stop - positions.start if isinstance(positions, slice) else len(positions)


def _narrowed(positions: slice | Tensor, part: slice) -> slice | Tensor:
    if isinstance(positions, slice):
        return slice(positions.start + part.start, positions.start + part.stop)
    return positions[part]


def _head_part(mask: Tensor, heads: slice | Tensor) -> Tensor:
    mask = mask[(None,) * (4 - mask.ndim)]
    return mask if mask.shape[1] == 1 else mask[:, heads]


def _join(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)
