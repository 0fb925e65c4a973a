"""Flags for every field of `OpenVocabulary` and `Unsupervised`; a test keeps them in sync."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from seg4diff_tools.cli.data import words
from seg4diff_tools.errors import InputError

FLAGS: dict[str, tuple[Any, str]] = {
    "method": (str, "layer (default), daam, concept, concept-in-prompt, goca, cosine or refined."),
    "layers": (str, "0-based, such as 4 or 4,5 (mean), or expert; the method's own choice by default."),
    "steps_from_end": (str, "Noise levels, such as 8 (default) or 4,8 (mean)."),
    "steps": (int, "Length of the schedule; 28 by default."),
    "seeds": (str, "Of the noise, such as 0 (default) or 0,1,2 (mean)."),
    "heads": (str, "mean (default), or heads to average such as 3,7."),
    "direction": (str, "i2t (default) or t2i."),
    "normalize": (str, "softmax (default) or scores."),
    "minmax": (bool, "Scale each class map to 0..1 before classes are compared."),
    "merge_scaled": (bool, "Scale each token's map to 0..1 before the mean over a class's tokens."),
    "synonyms": (
        str,
        'JSON file of words that replace class names, {"cat": ["cat", "kitten"]}; or everyday, of published data sets.',
    ),
    "prompt_sets": (bool, "One synonym of each class in a prompt, instead of all in one."),
    "classes_per_prompt": (int, "Largest number of words in a prompt; as many as fit by default."),
    "second_pass": (float, "Drop classes below this share of the image and prompt again."),
    "cut_prompt": (bool, "One prompt, cut where the text encoder stops reading."),
    "stop_words": (str, "Further words at the end of each prompt, joined by commas, such as and,the."),
    "zero_tokens": (int, "Zero vectors in place of T5's tokens; 77 by default."),
    "reader": (str, "Tokenizer whose tokens count, CLIP or T5, with --t5; both by default."),
    "fit": (str, "resize (default) or crop."),
    "size": (str, "Pixels at which the model reads images, such as 1024 or 768,1024."),
    "tiles": (int, "2 also reads nine windows of half the image's side; 1 by default."),
    "upsampling": (str, "bilinear (default) or guided, along edges of the image."),
    "background": (str, "word (default), words joined by commas, or a number of even shares of attention."),
}
"""Of open-vocabulary segmentation."""
PAD_FLAGS: dict[str, tuple[Any, str]] = {
    "prompt": (str, "With --unsupervised: the text; empty by default."),
    "kinds": (str, "With --unsupervised: kinds of tokens to merge, such as pad (default) or pad,word."),
    "threshold": (float, "With --unsupervised: of merging; 0.035 by default."),
    "rounds": (int, "With --unsupervised: of merging; 3 by default."),
    "merging": (str, "With --unsupervised: published (default) or released."),
    "matching": (str, "With --unsupervised: groups to classes by image (default) or by rows, as the released code."),
}
"""Of unsupervised segmentation alone."""
_LISTS = {"layers": "expert", "steps_from_end": "", "seeds": "", "heads": "mean", "size": ""}


def with_options(flags: Mapping[str, tuple[Any, str]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add flags for fields of segmentation options to a command; the given ones arrive as its dict `options`.

    Args:
        flags: type and help text by field name.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(**arguments: Any) -> None:
            given = {name: arguments.pop(name) for name in flags}
            command(**arguments, options=_parsed({name: value for name, value in given.items() if value is not None}))

        own = [each for each in inspect.signature(command).parameters.values() if each.name != "options"]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(name, *about))
            for name, about in flags.items()
        ]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]  # what Typer reads
        run.__annotations__ = {each.name: each.annotation for each in (*own, *added)}
        return run

    return decorate


def refuse_idle(options: Any, names: Sequence[str]) -> None:
    """Refuse options that have no effect with these class names."""
    from seg4diff_tools.segmentation.options import BACKGROUND

    if options.background != "word" and BACKGROUND not in names:
        raise InputError(
            f"expected a class called {BACKGROUND!r} with --background, got {_listed(names)}: add that class, or leave "
            "--background out"
        )
    if options.synonyms and not set(options.synonyms) & set(names):
        raise InputError(
            f"expected --synonyms of the classes, got words for {_listed(list(options.synonyms))}, none of which is "
            f"among {_listed(names)}: leave --synonyms out"
        )
    if options.prompt_sets and not options.synonyms:
        raise InputError("expected --synonyms with --prompt-sets, got none to take turns: add --synonyms")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def flag_of(name: str) -> str:
    """Return the flag of an argument."""
    return f"--{name.replace('_', '-')}"


def _annotation(name: str, kind: Any, text: str) -> Any:
    return Annotated[kind | None, typer.Option(flag_of(name), help=text, show_default=False)]


def _parsed(given: dict[str, Any]) -> dict[str, Any]:
    """Turn text into lists, numbers and words."""
    parsed = dict(given)
    for name, word in _LISTS.items():
        if name in given and given[name] != word:
            parsed[name] = numbers(given[name], flag_of(name))
    if len(parsed.get("size", ())) == 1:
        (parsed["size"],) = parsed["size"]
    if "background" in given:
        parsed["background"] = _background(given["background"])
    if "kinds" in given:
        parsed["kinds"] = words(given["kinds"], "--kinds")
    if "stop_words" in given:
        parsed["stop_words"] = words(given["stop_words"], "--stop-words")
    if "synonyms" in given:
        parsed["synonyms"] = _synonyms(given["synonyms"])
    return parsed


def numbers(text: str, flag: str) -> tuple[int, ...]:
    """Split whole numbers at commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"expected {flag} as numbers, got {text!r}: pass {flag} 4 or {flag} 4,5") from None


def _background(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return "word" if text == "word" else words(text, "--background")


def _synonyms(text: str) -> Any:
    if text == "everyday":
        from seg4diff_tools.datasets import SYNONYMS

        return SYNONYMS
    try:
        return json.loads(Path(text).expanduser().read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"expected --synonyms, a JSON file or everyday, got {text} ({error}): check it") from error
