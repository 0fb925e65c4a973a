"""The one interception point: joint attention, seen with its log-sum-exp while the model's output stays bit-identical.

Every joint attention ends in `torch.nn.functional.scaled_dot_product_attention`. Hooks on the joint-attention modules
say which layer runs, a `TorchFunctionMode` inside them sees that call. The attention operator also returns the
log-sum-exp of each query's scores, from which any part of the joint map follows exactly without the N x N matrix:
A_I2T = exp(q_img k_txt^T scale - lse)  (Seg4Diff, arXiv 2509.18096, section 3).
"""

import functools
import math
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import attention_backend
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from seg4diff_tools.attention.joint import JointAttention, checked_indices
from seg4diff_tools.attention.operators import attention_with_lse, autocast_inputs
from seg4diff_tools.attention.shapes import KeyBias
from seg4diff_tools.errors import InputError, RecordingError
from seg4diff_tools.families import Family, Layout, family_of, model_lock, transformer_of, uncompiled


class StopForward(Exception):
    """Ends a forward after the last wanted layer; `intercept(stop_after=...)` swallows its own."""


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
    Threads take turns: another one's interception or forward of the same model waits. Everything is undone on leaving, also
    after an exception. What torch.compile has compiled runs as it was written inside
    the `with`, and another attention backend of diffusers gives way to the native one: neither can be seen.

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
    transformer = transformer_of(transformer)
    family = family_of(transformer)
    depth = family.layers(transformer)
    wanted: Collection[int] = range(depth) if layers is None else checked_indices(layers, depth, "layer")
    if stop_after is not None:
        checked_indices([stop_after], depth, "layer")
    if on_attention is None:
        wanted = ()
    request = _Request(on_attention, frozenset(wanted), key_bias, stop_after)
    with model_lock(transformer):
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


def announce(transformer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Tells interceptions of a forward that goes past the transformer's hooks, as `transformer.forward(...)` does.

    Args:
        transformer: the model.
        args, kwargs: of the call.
    """
    if transformer in _TAPS:
        _TAPS[transformer].see_forward(transformer, args, kwargs)


class _Tap(TorchFunctionMode):
    """The hooks on one transformer, and the mode that is active while one of its joint-attention modules runs."""

    def __init__(self, transformer: nn.Module, family: Family):
        super().__init__()
        self.requests: list[_Request] = []
        self._family = family
        self._layout: Layout | None = None
        self._running: int | None = None
        self._entered = 0
        self._backends: list[tuple[Any, Any]] = []
        self._handles = [transformer.register_forward_pre_hook(self.see_forward, with_kwargs=True)]
        for layer, module in family.joint_attention(transformer):
            before = functools.partial(self._before, layer)
            self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(module.register_forward_hook(functools.partial(self._after, layer)))
            # Also after an exception: the mode must not outlive the module's forward.
            self._handles.append(module.register_forward_hook(self._leave, always_call=True))
            # Other backends compute attention where it cannot be seen.
            processor = getattr(module, "processor", None)
            if getattr(processor, "_attention_backend", None) not in (None, "native"):
                self._backends.append((processor, processor._attention_backend))
                processor._attention_backend = "native"
        self._stance = ExitStack()
        self._stance.enter_context(uncompiled())

    def remove(self) -> None:
        while self._entered:
            self._leave()
        for handle in self._handles:
            handle.remove()
        for processor, backend in self._backends:
            processor._attention_backend = backend
        self._stance.close()

    def see_forward(self, transformer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        inputs = self._family.forward_inputs(transformer, args, kwargs)
        self._layout = self._family.layout(transformer, inputs)

    def _before(self, layer: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._layout is None:
            raise RecordingError(
                f"Layer {layer} ran outside of a forward of its transformer, so that nobody knows where its text tokens "
                "stand; call the transformer itself."
            )
        if self._layout.text.start == self._layout.text.stop:
            raise RecordingError(f"Layer {layer} was called without text tokens, so that there is no joint attention.")
        self._running = layer
        # Diffusers asks for the backend at each call.
        self._dispatch = attention_backend("native")
        self._dispatch.__enter__()
        self.__enter__()
        self._entered += 1

    def _after(self, layer: int, *_: Any) -> None:
        if self._running is not None and any(request.concerns(layer) for request in self.requests):
            raise RecordingError(
                f"Layer {layer} did not compute its attention with scaled_dot_product_attention; set the model's "
                "default attention processor, and leave fused kernels out."
            )

    def _leave(self, *_: Any) -> None:
        if self._entered:
            self._entered -= 1
            self._running = None
            self.__exit__(None, None, None)
            self._dispatch.__exit__(None, None, None)

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or self._running is None:
            return func(*args, **kwargs)
        # Only the first attention of the module is the joint one; adapters add others after it.
        layer, self._running = self._running, None
        return self._attend(layer, self._layout, *args, **kwargs)

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
        mask = self._mask(attn_mask, query, key)
        observers = [request for request in self.requests if layer in request.layers]
        if observers:
            if dropout_p or is_causal or not query.shape[2] == key.shape[2] == layout.tokens:
                text, image = (part.stop - part.start for part in (layout.text, layout.image))
                raise RecordingError(
                    f"Layer {layer} does not compute plain joint attention over {layout.tokens} tokens, {image} of the image "
                    f"and {text} of the text: it has {query.shape[2]} queries, {key.shape[2]} keys, dropout {dropout_p}, "
                    f"causal {is_causal}. Use the model's default attention processors."
                )
            if enable_gqa:
                key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
            query, key, value, mask = autocast_inputs(query, key, value, mask)
            scale = query.shape[-1] ** -0.5 if scale is None else scale
            with torch.autocast(query.device.type, enabled=False):
                output, lse = attention_with_lse(query, key, value, mask, scale)
                call = JointAttention(layer, layout.image, layout.text, query, key, value, lse, scale, mask, output)
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
