"""The one interception point: joint attention, seen with its log-sum-exp while the model's output stays bit-identical.

Every joint attention ends in `torch.nn.functional.scaled_dot_product_attention`. Hooks on the joint-attention modules
say which layer runs, a `TorchFunctionMode` inside them sees that call. The attention operator also returns the
log-sum-exp of each query's scores, from which any block of the joint map follows exactly without the N x N matrix:
A_I2T = exp(q_img k_txt^T scale - lse)  (Seg4Diff, arXiv 2509.18096, section 3).
"""

import functools
import math
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from seg4diff_tools.errors import InputError, RecordingError
from seg4diff_tools.families import Family, family_of
from seg4diff_tools.operators import (
    attention_with_lse,
    autocast_inputs,
    chunks,
    default_workspace,
    mask_part,
    working_dtype,
)
from seg4diff_tools.shapes import AttentionBlock, JointHeads, KeyBias, LogSumExp

Block = Literal["i2i", "i2t", "t2i", "t2t"]
BLOCKS: tuple[Block, ...] = ("i2i", "i2t", "t2i", "t2t")


class StopForward(Exception):
    """Ends a forward after the last wanted layer; `intercept(stop_after=...)` swallows its own."""


@dataclass(eq=False)
class JointAttention:
    """One joint-attention call as seen at the interception point.

    Blocks are named by query side, then key side: `i2t` is what image tokens give to text tokens. Probabilities are
    those of the softmax over all keys, image and text, in fp32 (fp64 for an fp64 model).

    Args:
        layer: 0-based index of the MM-DiT block.
        image_first: whether image tokens stand before text tokens.
        image_tokens, text_tokens: how many there are of each.
        query, key, value: [batch heads tokens dim] as they enter the attention.
        lse: log-sum-exp of each query's scores, [batch heads tokens].
        scale: factor on the scores.
        mask: additive mask that broadcasts to [batch heads query key], or None.
        output: [batch heads tokens dim], what the model goes on with.
    """

    layer: int
    image_first: bool
    image_tokens: int
    text_tokens: int
    query: JointHeads
    key: JointHeads
    value: JointHeads
    lse: LogSumExp
    scale: float
    mask: Tensor | None
    output: JointHeads

    @property
    def image(self) -> slice:
        """Positions of the image tokens in the joint sequence."""
        start = 0 if self.image_first else self.text_tokens
        return slice(start, start + self.image_tokens)

    @property
    def text(self) -> slice:
        """Positions of the text tokens in the joint sequence."""
        start = self.image_tokens if self.image_first else 0
        return slice(start, start + self.text_tokens)

    def i2t(self, heads: Sequence[int] | None = None, text: Sequence[int] | None = None) -> AttentionBlock:
        """Image-to-text attention, [batch heads image text], of some heads (default all) and text tokens (all)."""
        return self.block("i2t", heads=heads, text=text)

    def t2i(self, heads: Sequence[int] | None = None, text: Sequence[int] | None = None) -> AttentionBlock:
        """Text-to-image attention, [batch heads text image], of some heads (default all) and text tokens (all)."""
        return self.block("t2i", heads=heads, text=text)

    def i2i(self, heads: Sequence[int] | None = None) -> AttentionBlock:
        """Image-to-image attention, [batch heads image image]: the large block, for small models and tests."""
        return self.block("i2i", heads=heads)

    def t2t(self, heads: Sequence[int] | None = None) -> AttentionBlock:
        """Text-to-text attention, [batch heads text text]."""
        return self.block("t2t", heads=heads)

    def block(
        self,
        name: Block,
        *,
        heads: Sequence[int] | None = None,
        text: Sequence[int] | None = None,
        spans: Float[Tensor, "text span"] | None = None,
        workspace: int | None = None,
    ) -> AttentionBlock:
        """A block of the joint map, its text side reduced on the way if asked.

        Args:
            name: "i2i", "i2t", "t2i" or "t2t".
            heads: heads to take; None takes all.
            text: text tokens to take, on the text side of "i2t" or "t2i"; None takes all.
            spans: weights that turn the taken text tokens into spans, [text span]: the text axis becomes a span axis.
            workspace: bytes for intermediate results; smaller means more, smaller pieces. None: what suits the device.

        Returns:
            Probabilities, [batch heads query key].
        """
        pieces = self._pieces(name, range(self.query.shape[1]) if heads is None else heads, text, spans, workspace)
        by_rows: dict[int, list[Tensor]] = {}
        for rows, piece in pieces:
            by_rows.setdefault(rows.start, []).append(piece)
        return _join([_join(parts, dim=1) for parts in by_rows.values()], dim=2)

    def head_mean(
        self,
        name: Block,
        *,
        heads: Sequence[int] | None = None,
        text: Sequence[int] | None = None,
        spans: Float[Tensor, "text span"] | None = None,
        workspace: int | None = None,
    ) -> Float[Tensor, "batch query key"]:
        """The mean of a block over heads (Seg4Diff, Eq 9), never holding more heads at once than `workspace` allows.

        Args: as for `block`.

        Returns:
            Mean probabilities, [batch query key].
        """
        heads = range(self.query.shape[1]) if heads is None else heads
        sums: dict[int, Tensor] = {}
        for rows, piece in self._pieces(name, heads, text, spans, workspace):
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
        """How much attention image and text queries give to image and text keys, in the order of `BLOCKS` (Fig 2).

        A mass is the sum over keys, averaged over queries. Image keys get what text keys do not, so that neither of
        the blocks with image keys is needed.
        """
        ones = self.query.new_ones(self.text_tokens, 1, dtype=working_dtype(self.query))
        i2t = self.block("i2t", heads=heads, spans=ones, workspace=workspace).mean(dim=(2, 3))
        t2t = self.block("t2t", heads=heads, workspace=workspace).sum(dim=3).mean(dim=2)
        return torch.stack([1 - i2t, i2t, 1 - t2t, t2t], dim=-1)

    def _pieces(
        self, name: str, heads: Sequence[int], text: Sequence[int] | None, spans: Tensor | None, workspace: int | None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Probabilities of a few heads and queries at a time: (slice of the queries taken, [batch heads query key])."""
        if name not in BLOCKS:
            raise InputError(f"A block is one of {', '.join(BLOCKS)}; got {name!r}.")
        if text is not None and name not in ("i2t", "t2i"):
            raise InputError(f"Text tokens can be chosen in i2t and t2i, not in {name}.")
        heads = _checked_indices(heads, self.query.shape[1], "head")
        sides = [self._positions(side, text) for side in (name[0], name[2])]
        keys, dtype = sides[1], working_dtype(self.query)
        queries = _length(sides[0])
        row_bytes = self.query.shape[0] * _length(keys) * dtype.itemsize
        workspace = default_workspace(self.query.device) if workspace is None else workspace
        # Without a text axis among the keys, all text queries are needed to form a span.
        rows_at_once = queries if spans is not None and name[0] == "t" else max(1, workspace // row_bytes)
        heads_at_once = max(1, workspace // (row_bytes * min(rows_at_once, queries)))
        for taken in chunks(len(heads), heads_at_once):
            chosen = _as_slice(heads[taken])
            key = self.key[:, chosen][:, :, keys].to(dtype).flatten(0, 1).mT
            for rows in chunks(queries, rows_at_once):
                places = _narrowed(sides[0], rows)
                query = self.query[:, chosen][:, :, places].to(dtype)
                offset = -self.lse[:, chosen][:, :, places].to(dtype).unsqueeze(-1)
                if self.mask is not None:
                    offset = offset + mask_part(_head_part(self.mask, chosen), places, keys)
                offset = offset.expand(*query.shape[:3], -1)
                piece = torch.baddbmm(offset.flatten(0, 1), query.flatten(0, 1), key, alpha=self.scale).exp_()
                piece = piece.unflatten(0, query.shape[:2])
                if spans is not None:
                    piece = piece @ spans.to(piece) if name[2] == "t" else spans.to(piece).mT @ piece
                yield rows, piece
                del piece  # or it would live on beside the next one

    def _positions(self, side: str, text: Sequence[int] | None) -> slice | Tensor:
        """Positions in the joint sequence of one side of a block: a slice where they are consecutive."""
        if side == "i" or text is None:
            return self.image if side == "i" else self.text
        chosen = _checked_indices(text, self.text_tokens, "text token")
        positions = _as_slice([self.text.start + index for index in chosen])
        return positions if isinstance(positions, slice) else torch.tensor(positions, device=self.query.device)


def _as_slice(indices: Sequence[int]) -> slice | list[int]:
    """Consecutive indices as a slice, because slicing a tensor copies nothing."""
    consecutive = list(indices) == list(range(indices[0], indices[0] + len(indices)))
    return slice(indices[0], indices[0] + len(indices)) if consecutive else list(indices)


def _length(positions: slice | Tensor) -> int:
    return positions.stop - positions.start if isinstance(positions, slice) else len(positions)


def _narrowed(positions: slice | Tensor, part: slice) -> slice | Tensor:
    if isinstance(positions, slice):
        return slice(positions.start + part.start, positions.start + part.stop)
    return positions[part]


def _head_part(mask: Tensor, heads: slice | list[int]) -> Tensor:
    mask = mask[(None,) * (4 - mask.ndim)]
    return mask if mask.shape[1] == 1 else mask[:, heads]


def _checked_indices(indices: Sequence[int], length: int, name: str) -> list[int]:
    indices = list(indices)
    if not indices:
        raise InputError(f"No {name} was chosen; choose at least one of 0 to {length - 1}, or None for all.")
    wrong = [index for index in indices if not 0 <= index < length]
    if wrong:
        raise InputError(f"There is no {name} {wrong[0]}: this model has {length}, from 0 to {length - 1}.")
    return indices


def _join(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


@dataclass(eq=False)
class _Request:
    """What one `intercept` asked for."""

    on_attention: Callable[[JointAttention], Tensor | None] | None
    layers: frozenset[int]
    key_bias: Tensor | None
    stop_after: int | None

    def concerns(self, layer: int) -> bool:
        return layer in self.layers or self.key_bias is not None or self.stops(layer)

    def stops(self, layer: int) -> bool:
        return self.stop_after is not None and layer >= self.stop_after


@contextmanager
def intercept(
    transformer: nn.Module,
    on_attention: Callable[[JointAttention], Tensor | None] | None = None,
    *,
    layers: Sequence[int] | None = None,
    key_bias: KeyBias | None = None,
    stop_after: int | None = None,
) -> Iterator[None]:
    """See, and if wanted change, the joint attention of every forward inside the `with`.

    Interceptions of one model can be nested: biases add up, and every observer sees the attention that is computed.
    Everything is undone on leaving, also after an exception.

    Args:
        transformer: a supported diffusers transformer.
        on_attention: called with each `JointAttention` of the wanted layers, as it is computed. Returns None to observe,
            or an output [batch heads tokens dim] that the model goes on with instead.
        layers: layers that `on_attention` wants; None wants all.
        key_bias: additive log-weight of each joint key, [keys], in every layer: a bias of log n makes one key stand for n
            identical ones. Gradients flow through the attention to everything else.
        stop_after: end the forward inside this layer's attention, right after `on_attention` has seen it. The forward
            has no result then, and the rest of the `with` body is skipped; the code after it goes on.

    Raises:
        UnknownArchitectureError: the transformer is of no known family.
        InputError: a layer is out of range, or key_bias does not fit the joint sequence.
        RecordingError: the attention of a wanted layer does not pass the interception point.
    """
    family = family_of(transformer)
    depth = family.layers(transformer)
    wanted: Collection[int] = range(depth) if layers is None else _checked_indices(layers, depth, "layer")
    if stop_after is not None:
        _checked_indices([stop_after], depth, "layer")
    if on_attention is None:
        wanted = ()
    request = _Request(on_attention, frozenset(wanted), key_bias, stop_after)
    tap = _TAPS.get(transformer)
    if tap is None:
        tap = _TAPS[transformer] = _Tap(transformer, family)
    tap.requests.append(request)
    try:
        yield
    except StopForward as stop:
        if stop.args[0] is not request:
            raise
    finally:
        tap.requests.remove(request)
        if not tap.requests:
            del _TAPS[transformer]
            tap.remove()


class _Tap(TorchFunctionMode):
    """The hooks on one transformer, and the mode that is active while one of its joint-attention modules runs."""

    def __init__(self, transformer: nn.Module, family: Family):
        super().__init__()
        self.requests: list[_Request] = []
        self._family = family
        self._running: tuple[int, int, int] | None = None
        self._entered = 0
        self._handles = []
        for layer, module in family.joint_attention(transformer):
            before = functools.partial(self._before, layer)
            self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(module.register_forward_hook(functools.partial(self._after, layer)))
            # Also after an exception: the mode must not outlive the module's forward.
            self._handles.append(module.register_forward_hook(self._leave, always_call=True))

    def remove(self) -> None:
        while self._entered:
            self._leave()
        for handle in self._handles:
            handle.remove()

    def _before(self, layer: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        image, text = self._family.token_counts(args, kwargs)
        if text == 0:
            raise RecordingError(f"Layer {layer} was called without text tokens, so that there is no joint attention.")
        self._running = layer, image, text
        self.__enter__()
        self._entered += 1

    def _after(self, layer: int, *_: Any) -> None:
        if self._running is not None and any(request.concerns(layer) for request in self.requests):
            raise RecordingError(
                f"Layer {layer} did not compute its attention with scaled_dot_product_attention; set the model's "
                'attention backend to "native" and its default attention processor.'
            )

    def _leave(self, *_: Any) -> None:
        if self._entered:
            self._entered -= 1
            self._running = None
            self.__exit__(None, None, None)

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or self._running is None:
            return func(*args, **kwargs)
        # Only the first attention of the module is the joint one; adapters add others after it.
        (layer, image, text), self._running = self._running, None
        return self._attend(layer, image, text, *args, **kwargs)

    def _attend(
        self,
        layer: int,
        image: int,
        text: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        mask = self._mask(attn_mask, query, key)
        observers = [request for request in self.requests if layer in request.layers]
        if observers:
            if dropout_p or is_causal or enable_gqa or not query.shape[2] == key.shape[2] == image + text:
                raise RecordingError(
                    f"Layer {layer} does not compute plain joint attention of {image} image and {text} text tokens: it has "
                    f"{query.shape[2]} queries, {key.shape[2]} keys, dropout {dropout_p}, causal {is_causal}, grouped "
                    f"queries {enable_gqa}. Use the model's default attention processors."
                )
            query, key, value, mask = autocast_inputs(query, key, value, mask)
            scale = query.shape[-1] ** -0.5 if scale is None else scale
            with torch.autocast(query.device.type, enabled=False):
                output, lse = attention_with_lse(query, key, value, mask, scale)
                call = JointAttention(
                    layer, self._family.image_first, image, text, query, key, value, lse, scale, mask, output
                )
                for request in observers:
                    replacement = request.on_attention(call)
                    call.output = call.output if replacement is None else replacement
            output = call.output
        else:
            output = F.scaled_dot_product_attention(
                query, key, value, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        for request in self.requests:
            if request.stops(layer):
                raise StopForward(request)
        return output

    def _mask(self, mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
        """The call's own mask and all key biases as one additive mask."""
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -math.inf)
        for request in self.requests:
            if request.key_bias is not None:
                if request.key_bias.shape[0] != key.shape[2]:
                    raise InputError(
                        f"key_bias needs one value for each of {key.shape[2]} joint keys; it has {request.key_bias.shape[0]}."
                    )
                bias = request.key_bias.to(query).view(1, 1, 1, -1)
                mask = bias if mask is None else mask + bias
        return mask


_TAPS: weakref.WeakKeyDictionary[nn.Module, _Tap] = weakref.WeakKeyDictionary()
