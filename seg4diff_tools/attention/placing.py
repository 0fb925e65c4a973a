"""Keep words in their place while a picture is drawn, lock a layout that has emerged, leave kinds of text tokens out.

All three close or weigh the ways between image tokens and text tokens by additive biases (see `AttentionBias`), in the
branch that reads the prompt, and in that of perturbed attention guidance (PAG) but for its perturbed layers. The model
is never touched.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seg4diff_tools.attention.areas import Area, as_area, grid_mask
from seg4diff_tools.attention.bias import AttentionBias, JointTokens
from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.attention.tokens import check_texts, encoded_prompts, fitted, span_weights
from seg4diff_tools.attention.turns import PERTURBED, Turn
from seg4diff_tools.errors import InputError, RecordingError, as_names, list_of, shown, some_of
from seg4diff_tools.families import Family, Layout, family_of, sampling_loop, transformer_of
from seg4diff_tools.families._private import add_hook
from seg4diff_tools.indices import as_indices, as_int, as_positive
from seg4diff_tools.prompts import Kind, Prompt

Indices = int | Iterable[int]
Prompts = str | Prompt | Sequence[str | Prompt]
Masks = dict[str, Bool[Tensor, "image y x"]]
PROMPTED = ("cond", PERTURBED)
"""Branches that read the prompt."""


@contextmanager
def place_words(
    model: Any,
    prompt: Prompts,
    places: Mapping[str, Area] | Sequence[Mapping[str, Area]],
    *,
    strength: float = 2.0,
    layers: Indices | None = None,
    steps: Indices | None = None,
) -> Iterator[None]:
    """Keep words in their place in every forward inside the `with`: image tokens elsewhere do not read them.

    To the scores of image tokens with a word's tokens, `strength` is added inside of its place and subtracted outside;
    so it is to those of the word's tokens with image tokens. An infinite strength closes both ways outside and leaves
    those inside as they are. Other text tokens, pads among them, have read the same words and are not held back.

    Args:
        model: backbone or pipeline, or, with encoded prompts, a transformer.
        prompt: text or encoded prompt that the model reads, or a list of them, one for each image of a batch.
        places: for words or phrases of the prompt the part of the picture where each belongs: a boolean mask [y x] of
            any size, or a box (left, top, right, bottom) with values from 0 to 1; for several prompts one mapping each.
            Image tokens of which at least half lies in it belong to it.
        strength: above 0, a log: the attention that is held back shrinks by about exp(-strength). On the embedded model
            2 keeps words in their place (chapter 16).
        layers: 0-based; None for all.
        steps: of sampling, counted from 0 in each pipeline call; None for all.

    Raises:
        PromptError: a phrase that is not in the prompt.
        InputError: a place that is neither mask nor box, a strength, layer or step that cannot be.
        RecordingError: inside the `with`, the model reads another prompt.

    Source: the idea of regional prompting and of Dense Diffusion (Kim et al., arXiv 2308.12964), whose strengths follow
        the range of the scores, the size of the place and the step.
    """
    text = _Text(model, prompt)
    strength = as_positive(strength, "strength")
    each = [places] * len(text.prompts) if isinstance(places, Mapping) else places
    mappings = list_of(each, Mapping, "places", "places={'cat': (0.0, 0.0, 0.5, 1.0)}", "mappings")
    if len(mappings) != len(text.prompts) or not all(mappings):
        raise InputError(
            f"expected places, a mapping with words for each of {len(text.prompts)} prompts, got {shown(places)}: pass "
            "places={'cat': (0.0, 0.0, 0.5, 1.0)}"
        )
    areas = [
        {phrase: (prompt.span(phrase), as_area(area, f"places[{phrase!r}]")) for phrase, area in own.items()}
        for prompt, own in zip(text.prompts, mappings, strict=True)
    ]
    limits = _limits(text.transformer, layers, steps)

    def biases(layout: Layout, turn: Turn) -> list[AttentionBias]:
        return [
            bias
            for own, images in zip(areas, text.images(turn), strict=True)
            for span, area in own.values()
            for bias in held(span, grid_mask(area, layout.grid[-2:]), strength, images=images, **limits)
        ]

    with text.biased(biases):
        yield


@contextmanager
def lock_layout(
    model: Any,
    prompt: Prompts,
    words: Sequence[str] | Sequence[Sequence[str]],
    step: int,
    *,
    read: Indices | None = None,
    strength: float = 2.0,
    layers: Indices | None = None,
    steps: Indices | None = None,
) -> Iterator[Masks]:
    """Read where words stand at one step of sampling, and keep them there in the later ones.

    A word's place are the image tokens where its map (image-to-text attention, mean over heads and layers) is above its
    mean over the picture and above those of the other words. A word without any is not held.

    Args:
        model: backbone or pipeline, or, with encoded prompts, a transformer.
        prompt: text or encoded prompt that the model reads, or a list of them, one for each image of a batch.
        words: words or phrases of the prompt, best with the background among them; for several prompts one list for
            all or one each.
        step: whose attention is read, counted from 0 in each pipeline call.
        read: 0-based layers whose maps are averaged; None for the backbone's expert layer, and all where none is known.
        strength, layers: see `place_words`.
        steps: in which words are held; None for all after `step`.

    Yields:
        The masks by word, [image y x], once they are read; those of the latest generation. Empty for an image without
        the word.

    Raises:
        PromptError: a phrase that is not in the prompt.
        InputError: a strength, layer or step that cannot be, or a model of videos.
        RecordingError: inside the `with`, the model reads another prompt, or images are at different steps.

    Warns:
        At the end, if no forward came after `step`, so that no word was held.
    """
    text = _Text(model, prompt)
    if text.family.frame_axis is not None:
        raise InputError(f"expected a model of images with lock_layout, got {text.family.name}: use place_words")
    lists = [words] * len(text.prompts) if isinstance(words, str) or isinstance(next(iter(words), ""), str) else words
    names = [as_names(each, "words") for each in lists]
    if len(names) != len(text.prompts):
        raise InputError(f"expected words for each of {len(text.prompts)} prompts, got {len(names)}: pass as many")
    spans = [[p.span(name) for name in own] for p, own in zip(text.prompts, names, strict=True)]
    step, strength = as_int(step, "step", 0), as_positive(strength, "strength")
    expert = getattr(model, "expert_layer", None)
    depth = text.family.layers(text.transformer)
    read_layers = as_indices((range(depth) if expert is None else expert) if read is None else read, "read", depth)
    limits = _limits(text.transformer, layers, steps)
    maps: dict[int, list[Tensor]] = {}
    masks: Masks = {}

    def see(call: JointAttention) -> None:
        turn = text.turn
        rows = turn.rows_of("cond")
        if turn.step != step or call.layer in maps or not rows:
            return
        weights = span_weights([span for own in spans for span in own], call.text_tokens).to(call.query.device)
        with torch.no_grad():
            mean = call.head_mean("i2t", spans=weights)[rows.start : rows.stop]
        parts = mean.split([len(own) for own in spans], dim=-1)
        maps[call.layer] = [
            part[images.start : images.stop] for part, images in zip(parts, text.images(turn), strict=True)
        ]

    def biases(layout: Layout, turn: Turn) -> list[AttentionBias]:
        if turn.step is None:
            raise RecordingError(
                "expected one timestep for all images with lock_layout, got several in a batch: give all the same"
            )
        if turn.step == 0 and turn.rows_of("cond") and not turn.beside:
            maps.clear()
            masks.clear()
        if turn.step <= step or len(maps) < len(read_layers):
            return []
        images = text.images(turn)
        if not masks:
            for at, own in enumerate(names):
                mean = torch.stack([each[at] for each in maps.values()]).mean(0).mT.unflatten(-1, layout.grid)
                for name, found in zip(own, layout_masks(mean).unbind(1), strict=True):
                    empty = torch.zeros(turn.images, *layout.grid, dtype=torch.bool, device="cpu")
                    masks.setdefault(name, empty)[images[at].start : images[at].stop] = found
        return [
            bias
            for own, listed, some in zip(spans, names, images, strict=True)
            for image in some
            for span, name in zip(own, listed, strict=True)
            if masks[name][image].any()
            for bias in held(span, masks[name][image], strength, images=[image], **limits)
        ]

    with text.biased(biases, see, read_layers):
        yield masks
    if text.turn.images and not masks:
        warnings.warn(f"no word was held, since no forward came after step {step}: pass an earlier one", stacklevel=3)


@contextmanager
def without(
    model: Any,
    *kinds: Kind,
    prompt: Prompts,
    negative_prompt: str | Prompt | None = None,
    layers: Indices | None = None,
    steps: Indices | None = None,
) -> Iterator[None]:
    """Leave kinds of text tokens out of every forward inside the `with`: no token of image or text reads them.

    Args:
        model: backbone or pipeline, or, with encoded prompts, a transformer.
        kinds: of `Token.kind`: "start", "word", "end", "pad", "zero" or "template".
        prompt: text or encoded prompt that the model reads, or a list of them, one for each image of a batch.
        negative_prompt: that the model reads in classifier-free guidance, where its tokens of these kinds, if any,
            are left out too; None for the default of `Backbone.generate`.
        layers: 0-based; None for all.
        steps: of sampling, counted from 0 in each pipeline call; None for all.

    Raises:
        InputError: a kind that no token of a prompt has (at the first forward, if that depends on its length), a layer
            or step that cannot be.
        RecordingError: inside the `with`, the model reads another prompt or negative prompt. With guidance, so are
            refused Lumina 2, whose negative prompt has no template, and Bria, whose empty one is zero vectors.
    """
    chosen = some_of(kinds, "kinds", get_args(Kind))
    text = _Text(model, prompt)
    avoided = (text.family.negative or "") if negative_prompt is None else negative_prompt
    if not isinstance(avoided, (str, Prompt)):
        raise InputError(
            f"expected negative_prompt, one text or encoded prompt for all images, got {avoided!r}: pass "
            "negative_prompt='blurry'"
        )

    # with encoded prompts alone there may be no text encoder, and only guidance needs one
    if any(isinstance(each, str) for each in ([prompt] if isinstance(prompt, (str, Prompt)) else prompt)):
        text.negative(avoided)
    limits = _limits(text.transformer, layers, steps)
    zeros = bool(text.family.optional_parts)
    filling = "zero" if zeros else "pad"
    for each in text.prompts:
        _present(each, {token.kind for token in each.tokens} | {filling}, chosen)

    def biases(layout: Layout, turn: Turn) -> list[AttentionBias]:
        length = layout.text.stop - layout.text.start
        found = []
        read: list[tuple[tuple[str, ...], Prompt, range]] = []
        if turn.rows_of("cond"):
            read += [(PROMPTED, own, images) for own, images in zip(text.prompts, text.images(turn), strict=True)]
        if turn.rows_of("uncond"):
            negative = text.negative(avoided)
            text.check("uncond", [negative], "negative_prompt")
            read.append((("uncond",), negative, range(turn.images)))
        for branches, own, images in read:
            tokens = fitted(own.tokens, length, zeros, left=text.family.pads_left)
            if branches == PROMPTED:
                _present(own, {token.kind for token in tokens}, chosen)
            closed = [token.index for token in tokens if token.kind in chosen]
            if closed:
                keys = JointTokens(text=closed)
                found.append(AttentionBias(-math.inf, keys=keys, branches=branches, images=images, **limits))
        return found

    with text.biased(biases):
        yield


def held(span: Sequence[int], mask: Bool[Tensor, "y x"], strength: float, **limits: Any) -> Iterator[AttentionBias]:
    """Yield the biases that keep a word's text tokens at a mask of image tokens: see `place_words`."""
    word = JointTokens(text=span)
    for area, weight in ((mask, strength), (~mask, -strength)):
        if weight < math.inf and area.any():
            place = JointTokens(image=area)
            yield AttentionBias(weight, place, word, branches=PROMPTED, **limits)
            yield AttentionBias(weight, word, place, branches=PROMPTED, **limits)


def layout_masks(maps: Float[Tensor, "image word y x"]) -> Bool[Tensor, "image word y x"]:
    """Return the places of words: where a map is above its own mean and above those of the other words.

    Args:
        maps: of all words.
    """
    highest = maps == maps.amax(1, keepdim=True)
    return (highest & (maps > maps.mean((-2, -1), keepdim=True))).cpu()


@dataclass(init=False, eq=False)
class _Text:
    """The prompts that a model has to read inside a `with`, and the forward that is running."""

    # fields that are compared are what `caching` tells it by
    family: Family
    prompts: list[Prompt]
    turn: Turn = field(compare=False)

    def __init__(self, model: Any, prompt: Any) -> None:
        self._model = model
        self._negative: Prompt | None = None
        self.transformer: nn.Module = transformer_of(model)
        self.family = family_of(self.transformer)
        self.prompts = encoded_prompts(model, self.family, prompt)
        if not self.prompts:
            raise InputError("expected prompt, a text or an encoded prompt, got None: pass prompt='a cat'")
        self.turn = Turn(None, ("cond",), 0)
        self._inputs: dict[str, Any] = {}
        self._checked: dict[str, Any] = {}

    def negative(self, prompt: str | Prompt) -> Prompt:
        """The one negative prompt, encoded when it is first asked for."""
        if self._negative is None:
            self._negative = encoded_prompts(self._model, self.family, prompt)[0]
        return self._negative

    def images(self, turn: Turn) -> list[range]:
        """The images of each prompt in a forward."""
        share = turn.images // len(self.prompts)
        if share * len(self.prompts) != turn.images:
            raise InputError(
                f"expected one prompt or one for each image, got {len(self.prompts)} for a batch of {turn.images}: "
                "draw as many at once"
            )
        return [range(at * share, (at + 1) * share) for at in range(len(self.prompts))]

    @contextmanager
    def biased(
        self,
        biases: Callable[[Layout, Turn], list[AttentionBias]],
        see: Callable[[JointAttention], None] | None = None,
        layers: Sequence[int] | None = None,
    ) -> Iterator[None]:
        """Apply biases that follow from each forward, and check that it reads the prompts."""

        def of_forward(layout: Layout, turn: Turn) -> list[AttentionBias]:
            self.turn = turn
            self.images(turn)
            self.check("cond", self.prompts, "prompt")
            return biases(layout, turn)

        with intercept(self.transformer, see, layers=layers, bias=of_forward):
            # before the hook of the interception, which asks for biases
            remove = add_hook(self.transformer, self._see_inputs, before=True, with_kwargs=True, prepend=True)
            try:
                yield
            finally:
                remove()

    def _see_inputs(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._inputs = self.family.forward_inputs(module, args, kwargs)

    def check(self, branch: str, prompts: Sequence[Prompt], argument: str) -> None:
        """Check that a branch of the forward, if it runs, reads these prompts."""
        rows, states = self.turn.rows_of(branch), self._inputs[(self.family.streams or self.family.text_inputs)[0]]
        if rows and not self.turn.beside and states is not self._checked.get(branch):
            check_texts(self.family, self._inputs, prompts, rows, sampling_loop(self.transformer), argument)
            self._checked[branch] = states


def _present(prompt: Prompt, present: Iterable[str], kinds: Sequence[str]) -> None:
    """Check that the prompt has tokens of these kinds."""
    if missing := [kind for kind in kinds if kind not in present]:
        own = dict.fromkeys(token.kind for token in prompt.tokens)
        raise InputError(
            f"expected kinds of tokens that {prompt.text!r} has, {', '.join(own)}, got {missing[0]!r}: name one of them"
        )


def _limits(transformer: nn.Module, layers: Any, steps: Any) -> dict[str, Any]:
    depth = family_of(transformer).layers(transformer)
    return {
        "layers": None if layers is None else as_indices(layers, "layers", depth),
        "steps": None if steps is None else as_indices(steps, "steps"),
    }
