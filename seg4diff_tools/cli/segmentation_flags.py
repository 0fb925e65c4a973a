"""Flags of the command line for every field of `OpenVocabulary`; a test keeps the two alike."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from seg4diff_tools.errors import InputError

FLAGS: dict[str, tuple[Any, str]] = {
    "method": (str, "layer (default), daam, concept, goca, cosine or refined."),
    "layers": (str, "0-based, such as 4 or 4,5 (mean); the method's own choice by default."),
    "steps_from_end": (str, "Noise levels, such as 8 (default) or 4,8 (mean)."),
    "steps": (int, "Length of the schedule; 28 by default."),
    "seeds": (str, "Of the noise, such as 0 (default) or 0,1,2 (mean)."),
    "heads": (str, "mean (default), or heads to average such as 3,7."),
    "direction": (str, "i2t (default) or t2i."),
    "normalize": (str, "softmax (default) or scores."),
    "minmax": (bool, "Scale each class map to 0..1 before classes are compared."),
    "merge_scaled": (bool, "Scale each token's map to 0..1 before the mean over a class's tokens."),
    "synonyms": (Path, 'JSON file of words that replace class names: {"cat": ["cat", "kitten"]}.'),
    "prompt_sets": (bool, "One synonym of each class in a prompt, instead of all in one."),
    "classes_per_prompt": (int, "Largest number of words in a prompt; as many as fit by default."),
    "second_pass": (float, "Drop classes below this share of the image and prompt again."),
    "cut_prompt": (bool, "One prompt, cut where the text encoder stops reading."),
    "zero_tokens": (int, "Zero vectors in place of T5's tokens; 77 by default."),
    "fit": (str, "resize (default) or crop."),
    "size": (str, "Pixels at which the model reads images, such as 1024 or 768,1024."),
    "tiles": (int, "2 also reads nine windows of half the image's side; 1 by default."),
    "upsampling": (str, "bilinear (default) or guided, along edges of the image."),
    "background": (str, "word (default), words joined by commas, or a number of even shares of attention."),
}
_LISTS = "layers", "steps_from_end", "seeds", "heads", "size"


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command a flag for each field of `OpenVocabulary`; it gets those that were given as `options`.

    Args:
        command: with a keyword argument `options`, a dict of fields.
    """

    def run(**arguments: Any) -> None:
        given = {name: arguments.pop(name) for name in FLAGS}
        command(**arguments, options=_parsed({name: value for name, value in given.items() if value is not None}))

    own = [each for each in inspect.signature(command).parameters.values() if each.name != "options"]
    flags = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(name))
        for name in FLAGS
    ]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]  # what Typer reads
    run.__annotations__ = {each.name: each.annotation for each in (*own, *flags)}
    return run


def _annotation(name: str) -> Any:
    kind, text = FLAGS[name]
    flag = f"--{name.replace('_', '-')}"
    return Annotated[kind | None, typer.Option(flag, help=text, show_default=False)]


def _parsed(given: dict[str, Any]) -> dict[str, Any]:
    """Turn text into lists, numbers and words."""
    parsed = dict(given)
    for name in _LISTS:
        if name in given and given[name] not in ("expert", "mean"):
            try:
                numbers = [int(part) for part in given[name].split(",")]
            except ValueError:
                flag = f"--{name.replace('_', '-')}"
                raise InputError(f"expected {flag} as numbers, got {given[name]!r}: pass {flag} 4,5") from None
            parsed[name] = numbers[0] if len(numbers) == 1 else tuple(numbers)
    if "background" in given:
        parsed["background"] = _background(given["background"])
    if "synonyms" in given:
        try:
            parsed["synonyms"] = json.loads(given["synonyms"].expanduser().read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            file = given["synonyms"]
            raise InputError(f"expected --synonyms, a JSON file, got {file} ({error}): check it") from error
    return parsed


def _background(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return "word" if text == "word" else tuple(word.strip() for word in text.split(","))
