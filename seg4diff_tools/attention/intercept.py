"""The one interception point: joint attention, seen with its log-sum-exp while the model's output stays bit-identical.

Every joint attention ends in `torch.nn.functional.scaled_dot_product_attention`. Hooks on the joint-attention modules
say which layer runs, a `TorchFunctionMode` inside them sees that call. The attention operator also returns the
log-sum-exp of each query's scores, from which any part of the joint map follows exactly without the N x N matrix:
A_I2T = exp(q_img k_txt^T scale - lse)  (Seg4Diff, arXiv 2509.18096, section 3).
"""

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from seg4diff_tools.attention.bias import AttentionBias
from seg4diff_tools.attention.concepts import Concepts
from seg4diff_tools.attention.groups import GroupBias, Rule, group_bias
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.attention.operators import (
    CLOSED,
    added_mask,
    autocast_inputs,
    observed_attention,
    repeated,
    without_autocast,
)
from seg4diff_tools.attention.turns import Turn, Turns
from seg4diff_tools.errors import InputError, RecordingError, instance_of, list_of
from seg4diff_tools.families import Family, Layout, family_of, model_lock, transformer_of
from seg4diff_tools.families._private import add_hook, native_dispatch, native_processors, uncompiled
from seg4diff_tools.indices import as_indices, as_int

Biases = Callable[[Layout, Turn], AttentionBias | Iterable[AttentionBias]]


class StopForward(Exception):
    """Ends a forward after the last wanted layer; `intercept(stop_after=...)` swallows its own."""


@dataclass(eq=False)
class _Request:
    """What one `intercept` asked for."""

    on_attention: Callable[[JointAttention], Tensor | None] | None
    layers: frozenset[int]
    bias: Sequence[AttentionBias]
    bias_of: Biases | None
    concepts: Concepts | None
    stop_after: int | None

    def concerns(self, layer: int) -> bool:
        return layer in self.layers or self.biased or self.concepts is not None or self.stops(layer)

    @property
    def read_text(self) -> Concepts | None:
        """The text outside the prompt, if image tokens read it."""
        return self.concepts if self.concepts is not None and self.concepts.readers is not None else None

    @property
    def biased(self) -> bool:
        return bool(self.bias) or self.bias_of is not None

    def stops(self, layer: int) -> bool:
        return self.stop_after is not None and layer >= self.stop_after


@contextmanager
def intercept(
    transformer: nn.Module,
    on_attention: Callable[[JointAttention], Tensor | None] | None = None,
    *,
    layers: int | Iterable[int] | None = None,
    bias: AttentionBias | Iterable[AttentionBias] | Biases | None = None,
    concepts: Concepts | None = None,
    stop_after: int | None = None,
) -> Iterator[None]:
    """See, and if wanted change, the joint attention of every forward inside the `with`.

    Interceptions of one model can be nested: biases add up, and every observer sees the attention that is computed.
    Threads take turns; one that waits for a `with` in which nothing is computed gets a RecordingError that names its
    thread. Everything is undone on leaving, also after an exception. Inside the `with`, compiled modules run eagerly
    and diffusers' native attention replaces other backends: neither can be seen. Copies of the model carry no hooks.

    Args:
        transformer: a supported diffusers transformer.
        on_attention: called with each `JointAttention` of the wanted layers, as it is computed. Returns None to
            observe, or an output [batch heads tokens dim] that the model goes on with instead.
        layers: layers that `on_attention` wants: one, several or a range; None wants all.
        bias: what is added to the scores of some queries with some keys: one `AttentionBias`, several, or a function
            from the `Layout` and `Turn` of a forward to one, several or an empty list. Gradients flow through the
            attention to everything else.
        concepts: words outside the prompt, from `encode_concepts`, that the calls' `outside_prompt` shows.
        stop_after: end the forward inside this layer's attention, right after `on_attention` has seen it. The forward
            has no result then, and the rest of the `with` body is skipped; the code after it goes on.

    Raises:
        UnknownArchitectureError: the transformer is of no known family.
        InputError: a layer is out of range, a bias does not fit the joint sequence, or words outside the prompt the
            model.
        RecordingError: the attention of a wanted layer does not pass the interception point, a CUDA graph captures the
            forward, or there are other words outside the prompt already.
    """
    transformer = transformer_of(transformer)
    family = family_of(transformer)
    depth = family.layers(transformer)
    wanted = range(depth) if layers is None else as_indices(layers, "layers", depth)
    if stop_after is not None:
        stop_after = as_int(stop_after, "stop_after", 0, depth - 1)
    if on_attention is not None and not callable(on_attention):
        raise InputError(
            f"expected on_attention, a function of a JointAttention, got {on_attention!r}: pass one or None"
        )
    if concepts is not None:
        instance_of(concepts, Concepts, "concepts", "encode_concepts(model, ['sky'])")
    bias_of = bias if callable(bias) else None
    biases = [] if bias is None or bias_of is not None else _listed(bias, depth)
    asked = frozenset(wanted if on_attention else ())
    request = _Request(on_attention, asked, biases, bias_of, concepts, stop_after)
    with model_lock(transformer).hold("an interception of attention"):
        tap = _TAPS.get(transformer)
        if tap is None:
            tap = _TAPS[transformer] = _Tap(transformer, family)
        if concepts is not None and tap.concepts is not None:
            raise RecordingError(
                "expected text outside the prompt from one `with`, got a second one: pass all words in one list, and "
                "leave regional_prompts out where concepts are asked for"
            )
        tap.requests.append(request)
        try:
            with nullcontext() if concepts is None else concepts.appended(transformer, family):
                yield
        except StopForward as stop:
            if stop.args[0] is not request:
                raise
        finally:
            tap.requests.remove(request)
            if not tap.requests:
                del _TAPS[transformer]
                tap.remove()


def _listed(bias: Any, depth: int, name: str = "bias", *, empty: bool = False) -> list[AttentionBias]:
    """Return biases as a list, their layers checked."""
    several = [bias] if isinstance(bias, AttentionBias) else bias
    way_out = "AttentionBias(-1.0, keys=JointTokens(text=[1])), or a list of them"
    listed = list_of(several, AttentionBias, name, way_out, empty=empty)
    for each in listed:
        if each.layers is not None:
            as_indices(each.layers, "layers", depth)
    return listed


def announce(transformer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Tell interceptions of a further forward of the prompt's branch that bypasses the transformer's hooks, as
    `transformer.forward(...)` does.

    Args:
        transformer: the model.
        args, kwargs: of the call.
    """
    if transformer in _TAPS:
        _TAPS[transformer].see_forward(transformer, args, kwargs, beside=True)


def interceptions(transformer: nn.Module) -> list[tuple[Any, ...]]:
    """Return what is intercepted now: for each `intercept`, its callback, layers, biases, function of biases, text
    outside the prompt that image tokens read, and last layer."""
    requests = _TAPS[transformer].requests if transformer in _TAPS else []
    return [(r.on_attention, sorted(r.layers), r.bias, r.bias_of, r.read_text, r.stop_after) for r in requests]


class _Tap(TorchFunctionMode):
    """The hooks on one transformer, and the mode that is active while one of its joint-attention modules runs."""

    def __init__(self, transformer: nn.Module, family: Family):
        super().__init__()
        self.requests: list[_Request] = []
        self._family = family
        self._layout: Layout | None = None
        self._turns = Turns()
        self._rules: list[Rule] = []
        self._biases: dict[tuple, GroupBias | Tensor | None] = {}
        self._running: int | None = None
        self._inside = ExitStack()
        self._undo = ExitStack()
        self._undo.enter_context(uncompiled())
        self._undo.callback(add_hook(transformer, self.see_forward, before=True, with_kwargs=True))
        modules = family.joint_attention(transformer)
        for layer, module in modules:
            self._undo.callback(add_hook(module, functools.partial(self._before, layer), before=True))
            # Also after an exception: the mode must not outlive the module's forward.
            self._undo.callback(add_hook(module, functools.partial(self._after, layer), always_call=True))
        self._undo.enter_context(native_processors(module for _, module in modules))

    def remove(self) -> None:
        self._inside.close()
        self._undo.close()

    @property
    def concepts(self) -> Concepts | None:
        """The words outside the prompt, of any request."""
        return next((request.concepts for request in self.requests if request.concepts is not None), None)

    def see_forward(self, transformer: nn.Module, args: tuple, kwargs: dict[str, Any], *, beside: bool = False) -> None:
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            raise RecordingError(
                "expected a forward of its own, got one that a CUDA graph captures: capture the graph outside, since "
                "its replays run no hooks"
            )
        inputs = self._family.forward_inputs(transformer, args, kwargs)
        self._layout = layout = self._family.layout(transformer, inputs)
        self._rules, self._biases = [], {}
        if self.concepts is not None or any(request.biased for request in self.requests):
            turn = self._turns.see(self._family, transformer, inputs, beside=beside)
            depth = self._family.layers(transformer)
            biases = [bias for request in self.requests for bias in request.bias]
            for given in [request.bias_of(layout, turn) for request in self.requests if request.bias_of is not None]:
                biases += _listed(given, depth, "what the function of biases returns", empty=True)
            self._rules = [rule for bias in biases if (rule := bias.rule(layout, turn)) is not None]
            if self.concepts is not None:
                self._layout, self._rules = self.concepts.outside(layout, self._rules, turn)

    def _before(self, layer: int, module: nn.Module, args: tuple) -> None:
        # Diffusers asks for the backend at each call.
        self._inside.enter_context(native_dispatch())
        # the mode adds a Python call to each operator of the layer
        if not any(request.concerns(layer) for request in self.requests):
            return
        if self._layout is None:
            raise RecordingError(
                f"expected layer {layer} inside a forward of its transformer, got a call of its own: call the "
                f"transformer, "
                "whose inputs tell where text tokens stand"
            )
        if self._layout.text.start == self._layout.text.stop:
            raise RecordingError(f"expected text tokens in layer {layer}, got none: give the transformer a text")
        self._running = layer
        self._inside.enter_context(self)

    def _after(self, layer: int, module: nn.Module, args: tuple, output: Any) -> None:
        missed, self._running = self._running is not None, None
        self._inside.close()
        # without an output, an exception is on its way
        if missed and output is not None:
            raise RecordingError(
                f"expected scaled_dot_product_attention in layer {layer}, got another kernel: set the model's default "
                "attention processor, and leave fused kernels out"
            )

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention or self._running is None or self._layout is None:
            return func(*args) if kwargs is None else func(*args, **kwargs)
        # Only the first attention of the module is the joint one; adapters add others after it.
        layer, self._running = self._running, None
        return self._attend(layer, self._layout, *args, **(kwargs or {}))

    def _attend(
        self,
        layer: int,
        layout: Layout,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        observers = [request for request in self.requests if layer in request.layers]
        rules = [rule for rule in self._rules if rule.layers is None or layer in rule.layers]
        if observers or rules:
            if dropout_p or is_causal or not query.shape[2] == key.shape[2] == layout.tokens:
                text, image = (part.stop - part.start for part in (layout.text, layout.image))
                raise RecordingError(
                    f"expected plain joint attention over {layout.tokens} tokens in layer {layer}, {image} of the "
                    f"image and "
                    f"{text} of the text, got {query.shape[2]} queries, {key.shape[2]} keys, dropout {dropout_p}, "
                    f"causal "
                    f"{is_causal}: use the model's default attention processors"
                )
            query, key, value, attn_mask = autocast_inputs(query, key, value, attn_mask)
        bias = self._bias(rules, query) if rules else None
        mask, groups = attn_mask, bias if isinstance(bias, GroupBias) else None
        if isinstance(bias, Tensor):
            # finite: cuDNN does not take minus infinity in every release
            added, bias = added_mask(mask, query.dtype, CLOSED), bias.view(1, 1, 1, -1)
            mask = bias if added is None else added + bias
        if observers:
            scale = query.shape[-1] ** -0.5 if scale is None else scale
            with without_autocast(query.device):
                output, lse, mask = self._observed(query, key, value, mask, scale, enable_gqa, groups)
                key, value = repeated(key, query), repeated(value, query)
                call = JointAttention(
                    *(layer, layout.image, layout.text, query, key, value, lse, scale, mask, output),
                    bias=groups,
                    concepts=None if self.concepts is None else self.concepts.places(layout),
                )
                for request in observers:
                    replacement = request.on_attention(call) if request.on_attention else None
                    if replacement is not None:
                        call.output, call.replaced = replacement, True
            output = call.output
        elif groups is not None:

            def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor]:
                return (F.scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=enable_gqa),)

            output = groups.run(attend, (query,), (key, value), mask)[0]
        else:
            output = F.scaled_dot_product_attention(
                query, key, value, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        for request in self.requests:
            if request.stops(layer):
                raise StopForward(request)
        return output

    @staticmethod
    def _observed(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        grouped: bool,
        bias: GroupBias | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Output, log-sum-exp and additive mask, see `observed_attention`."""
        if bias is None:
            return observed_attention(query, key, value, mask, scale, grouped)

        def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Sequence[Tensor]:
            return observed_attention(query, key, value, mask, scale, grouped)[:2]

        output, lse = bias.run(attend, (query,), (key, value), mask)
        return output, lse, added_mask(mask, query.dtype, CLOSED)

    def _bias(self, rules: Sequence[Rule], query: Tensor) -> GroupBias | Tensor | None:
        """The rules of a layer put together, once for all layers of a forward with the same ones."""
        key = (*map(id, rules), query.shape[0], query.dtype, query.device)
        if key not in self._biases:
            self._biases[key] = group_bias(rules, query.shape[0], query)
        return self._biases[key]


_TAPS: weakref.WeakKeyDictionary[nn.Module, _Tap] = weakref.WeakKeyDictionary()
