"""Options of segmentation: one frozen object each for open-vocabulary and for unsupervised segmentation."""

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from numbers import Real
from types import FunctionType
from typing import Any, Literal, SupportsIndex, get_args

from seg4diff_tools.caching import fingerprint
from seg4diff_tools.errors import InputError, as_names, one_of
from seg4diff_tools.images import Fit, Size
from seg4diff_tools.indices import as_float, as_indices, as_int
from seg4diff_tools.prompts import Kind
from seg4diff_tools.segmentation.attribution import METHODS, PROBABILITIES
from seg4diff_tools.segmentation.class_maps import DIRECTIONS, NORMALIZATIONS, Direction, Normalize
from seg4diff_tools.segmentation.concepts import concept
from seg4diff_tools.segmentation.masks import Merging
from seg4diff_tools.segmentation.watching import Attribution

BACKGROUND = "background"
"""Name of the class of unlabeled stuff."""

Indices = SupportsIndex | Iterable[SupportsIndex]
"""One whole number or several: an int, a NumPy number, a range, a list or an array."""
Layers = Literal["expert"] | Indices | Sequence[int | Literal["expert"]] | None
Matching = Literal["image", "rows"]


@dataclass(frozen=True, kw_only=True)
class OpenVocabulary:
    """Options of segmentation by class names; the defaults are the paper's (arXiv 2509.18096, Fig 7, Table 1).

    Args:
        method: how attention becomes class maps: "layer" (mean probability of the chosen layers), "daam" (the same over
            all layers), "concept" (words outside the prompt, as released for SD3 and FLUX.1), "concept-in-prompt",
            "goca", "cosine", "refined", or a function such as `partial(attribution.refined, times=4)`.
        layers: 0-based layers whose maps are averaged, or "expert"; None for the method's own choice.
        steps_from_end: noise levels whose maps are averaged; 8 of 28 is the paper's.
        steps: length of the schedule, 1 to 1000.
        seeds: of the noise; maps of several are averaged.
        heads: "mean" over all heads (equation 9), or the heads to average. Heads, direction and normalize belong to the
            methods "layer" and "daam".
        direction: "i2t", attention from image to text tokens, or "t2i", from text to image tokens (Fig 16).
        normalize: "softmax" for probabilities over all joint keys, "scores" for q k^T / sqrt(dim) (Table 5).
        minmax: scale each class map to 0..1 before the classes are compared (Table 5).
        merge_scaled: scale each token's map to 0..1 before the mean over a class's tokens, the released code's
            NORM_BEFORE_MERGE (Table 5).
        synonyms: words that replace a class name, by class name; their maps are averaged.
        prompt_sets: give each prompt one word of every class, and the next prompt the next words, instead of all words
            to one prompt. A class with fewer words starts again with its first.
        classes_per_prompt: largest number of words in a prompt; None for as many as fit. Each prompt has a softmax of
            its own; probabilities of different prompts are compared as they are.
        second_pass: drop classes that win less than this share (0..1) of the image tokens and prompt again with the
            rest; 0 for one pass.
        cut_prompt: put all names into one prompt, cut where the text encoder stops reading, as the released code does.
            The map of a name past the cut is NaN, and the first such name gets every pixel.
        stop_words: further words at the end of each prompt, such as ("and", "the"), which no class has. They can draw
            attention of the background away from the classes (RefAM, Kukleva et al., arXiv 2509.22650).
        zero_tokens: number of zero vectors in place of T5's tokens (0..512); 77 in the released code.
        reader: the tokenizer whose tokens count where several read the prompt: "CLIP" or "T5" of SD3 with T5; None for
            all of them.
        fit: "resize" stretches the image to the model's square, as the released code does; "crop" takes the largest
            centered square, as the paper says, and the label map covers that square.
        size: height and width in pixels at which the model reads the image, or the side of a square; None for its own.
        tiles: 2 also reads nine overlapping windows of half the image's side, each at full resolution; n reads
            (2 n - 1)^2 windows, up to n = 16. Maps are averaged.
        upsampling: "bilinear" (equation 11), or "guided": bilinear, then a guided filter along edges of the image.
        background: what stands for the class "background". "word": the word itself, as in the released code; several
            words: the best of them; a number: pixels where no class gets that many times an even share of attention.

    Raises:
        InputError: a value of another type or out of range.
    """

    method: str | Attribution = "layer"
    layers: Layers = None
    steps_from_end: Indices = (8,)
    steps: int = 28
    seeds: Indices = (0,)
    heads: Literal["mean"] | Indices = "mean"
    direction: Direction = "i2t"
    normalize: Normalize = "softmax"
    minmax: bool = False
    merge_scaled: bool = False
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    prompt_sets: bool = False
    classes_per_prompt: int | None = None
    second_pass: float = 0.0
    cut_prompt: bool = False
    stop_words: Sequence[str] = ()
    zero_tokens: int = 77
    reader: str | None = None
    fit: Fit = "resize"
    size: Size | None = None
    tiles: int = 1
    upsampling: Literal["bilinear", "guided"] = "bilinear"
    background: Literal["word"] | Sequence[str] | float = "word"

    def __post_init__(self) -> None:
        if callable(self.method):
            _check_function(self.method)
        else:
            one_of(self.method, "method", METHODS, "one of them, or a function of the kind of attribution.refined")
        _common(self)
        if isinstance(self.heads, str):
            one_of(self.heads, "heads", ("mean",), "'mean', or a number such as heads=0")
        else:
            _set(self, "heads", tuple(as_indices(self.heads, "heads")))
        one_of(self.direction, "direction", DIRECTIONS)
        one_of(self.normalize, "normalize", NORMALIZATIONS)
        one_of(self.upsampling, "upsampling", ("bilinear", "guided"))
        for name in ("minmax", "merge_scaled", "prompt_sets", "cut_prompt"):
            one_of(getattr(self, name), name, (False, True))
        _set(self, "tiles", as_int(self.tiles, "tiles", 1, 16))
        if self.classes_per_prompt is not None:
            _set(self, "classes_per_prompt", as_int(self.classes_per_prompt, "classes_per_prompt", 1))
        _set(self, "second_pass", as_float(self.second_pass, "second_pass"))
        if not self.second_pass < 1:
            raise InputError(f"expected second_pass, a share from 0 to less than 1, got {self.second_pass}: pass 0.05")
        if not isinstance(self.synonyms, Mapping):
            raise InputError(
                f"expected synonyms as a dict such as {{'cat': ('cat', 'kitten')}}, got {self.synonyms!r}: pass a dict"
            )
        as_names(tuple(self.synonyms), "class names in synonyms", empty=True)
        words = {name: as_names(words, f"synonyms[{name!r}]") for name, words in self.synonyms.items()}
        _set(self, "synonyms", words)
        _set(self, "stop_words", as_names(self.stop_words, "stop_words", empty=True, example="['and', 'the']"))
        if isinstance(self.background, Real):
            _set(self, "background", as_float(self.background, "background"))
        elif isinstance(self.background, str):
            one_of(self.background, "background", ("word",), "'word', a list of words, or a number above 0")
        else:
            _set(self, "background", as_names(self.background, "background"))
        self._check_together()

    def _check_together(self) -> None:
        """Refuse combinations of values that exclude each other."""
        probabilities = self.method in PROBABILITIES
        attention = ("heads", "mean"), ("direction", "i2t"), ("normalize", "softmax"), ("merge_scaled", False)
        if not probabilities and (changed := [name for name, usual in attention if getattr(self, name) != usual]):
            raise InputError(
                f"expected {' and '.join(changed)} with method 'layer' or 'daam' alone, got method={self.method!r}: "
                f"leave {'it' if len(changed) == 1 else 'them'} out"
            )
        outside = ("classes_per_prompt", None), ("cut_prompt", False), ("stop_words", ()), ("reader", None)
        is_concept = self.method == "concept" or _unwrapped(self.method) is concept
        if is_concept and (changed := [name for name, usual in outside if getattr(self, name) != usual]):
            raise InputError(
                f"expected {' and '.join(changed)} with a prompt that names the classes, got method='concept', whose "
                "classes stand outside of it: leave them out, or pass method='concept-in-prompt'"
            )
        if self.stop_words and self.cut_prompt:
            raise InputError("expected stop_words with whole prompts, got cut_prompt=True: leave one of them out")
        if isinstance(self.background, float):
            if not self.background:
                raise InputError(
                    f"expected background, a number above 0, got {self.background}: pass 1.0 for an even share"
                )
            if not probabilities or self.normalize == "scores" or self.minmax or self.merge_scaled:
                raise InputError(
                    f"expected probabilities with a number for background, got method={self.method!r}, "
                    f"normalize={self.normalize!r}, minmax={self.minmax}, merge_scaled={self.merge_scaled}: pass "
                    "background='word' or words"
                )


@dataclass(frozen=True, kw_only=True)
class Unsupervised:
    """Options of segmentation by the pads of an empty prompt, without class names; defaults are those of Table 2.

    Args:
        layers: 0-based layers whose maps are averaged; None or "expert" for the expert layer.
        steps_from_end: noise levels whose maps are averaged.
        steps: length of the schedule, 1 to 1000.
        seeds: of the noise; maps of several are averaged.
        prompt: the text; empty in the paper.
        kinds: kinds of text tokens whose maps are merged; pads in the paper.
        threshold, rounds, merging: as in `masks.merge_maps`.
        matching: how groups are matched with classes when they are scored: once for each image, as the paper says, or
            in every row of pixels, as its released code does (`metrics.match_rows`).
        zero_tokens: number of zero vectors in place of T5's tokens (0..512).
        reader: as in `OpenVocabulary`; the paper's pads are CLIP's.
        fit, size: as in `OpenVocabulary`.

    Raises:
        InputError: a value of another type or out of range.
    """

    layers: Layers = None
    steps_from_end: Indices = (8,)
    steps: int = 28
    seeds: Indices = (0,)
    prompt: str = ""
    kinds: Sequence[Kind] = ("pad",)
    threshold: float = 0.035
    rounds: int = 3
    merging: Merging = "published"
    matching: Matching = "image"
    zero_tokens: int = 77
    reader: str | None = None
    fit: Fit = "resize"
    size: Size | None = None

    def __post_init__(self) -> None:
        _common(self)
        if not isinstance(self.prompt, str):
            raise InputError(f"expected prompt as text, got {self.prompt!r}: pass a string")
        _set(self, "kinds", as_names(self.kinds, "kinds", example="['pad']"))
        for kind in self.kinds:
            one_of(kind, "kinds", get_args(Kind))
        _set(self, "threshold", as_float(self.threshold, "threshold"))
        _set(self, "rounds", as_int(self.rounds, "rounds", 1))
        one_of(self.merging, "merging", get_args(Merging))
        one_of(self.matching, "matching", get_args(Matching))


Options = OpenVocabulary | Unsupervised


def option_settings(options: Options) -> dict[str, Any]:
    """Return options as JSON-serializable settings: "kind", the name of the class, then every field.

    A function counts by its name and the arguments of its `partial`.

    Raises:
        InputError: a method that is neither a name nor a function.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, partial):
            return {"function": plain(value.func), **value.keywords}
        if not isinstance(value, FunctionType):
            raise InputError(f"expected method, a name or a function, got a {type(value).__name__}: pass a function")
        name = f"{value.__module__}.{value.__qualname__}"
        # a function from elsewhere may change under its name
        return name if name.startswith("seg4diff_tools.") else {"function": name, "content": fingerprint(value)}

    values = {each.name: getattr(options, each.name) for each in fields(options)}
    return {"kind": type(options).__name__} | json.loads(json.dumps(values, default=plain))


def _check_function(method: Any) -> None:
    """Refuse a method that is no function of a backbone, latents, timesteps, prompts and layers."""
    function = _unwrapped(method)
    try:
        if not isinstance(function, FunctionType):
            raise TypeError(f"{function!r} is no Python function")
        inspect.signature(method).bind(*Attribution.__args__[:-1])  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"expected method, a name or a function of (backbone, noisy, timestep, prompts, layers), got another "
            f"({error}): pass one of the kind of attribution.refined"
        ) from error


def _unwrapped(method: Any) -> Any:
    """Return the function inside of every `partial`."""
    return _unwrapped(method.func) if isinstance(method, partial) else method


def _common(options: Options) -> None:
    """Check and normalize the fields that both kinds of options have."""
    if isinstance(options.layers, str):
        one_of(options.layers, "layers", ("expert",), "'expert', or a number such as layers=4")
    elif options.layers is not None:
        _set(options, "layers", _layers(options.layers))
    _set(options, "steps", as_int(options.steps, "steps", 1, 1000))
    _set(
        options, "steps_from_end", tuple(as_indices(options.steps_from_end, "steps_from_end", options.steps + 1, low=1))
    )
    _set(options, "seeds", tuple(as_indices(options.seeds, "seeds", 1 << 63)))
    _set(options, "zero_tokens", as_int(options.zero_tokens, "zero_tokens", 0, 512))
    if options.reader is not None and (not isinstance(options.reader, str) or not options.reader):
        raise InputError(f"expected reader, the name of a tokenizer, got {options.reader!r}: pass reader='T5' or None")
    one_of(options.fit, "fit", get_args(Fit))
    if isinstance(options.size, Sequence) and not isinstance(options.size, str) and len(options.size) == 2:
        _set(options, "size", tuple(as_int(side, "size", 1) for side in options.size))
    elif options.size is not None:
        _set(options, "size", as_int(options.size, "size", 1))


def _layers(layers: Any) -> tuple[int | str, ...]:
    if isinstance(layers, (list, tuple)) and "expert" in layers:
        numbers = [layer for layer in layers if layer != "expert"]
        return ("expert", *(as_indices(numbers, "layers") if numbers else ()))
    return tuple(as_indices(layers, "layers"))


def _set(options: Options, name: str, value: Any) -> None:
    object.__setattr__(options, name, value)
