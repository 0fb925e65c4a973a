"""The words of recorded maps: tokens joined into selectable words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import regex
import xarray as xr

from seg4diff_tools.scenes import BACKGROUNDS
from seg4diff_tools.scenes.drawings import concepts

GROUPS = {"pad": "<pads>", "zero": "<zeros>"}
LABEL_END = r"(?<=.)(@[A-Z]\w*)?(?:#[0-9]+)?$"
# Function words have a map, but name nothing that a picture shows.
JOINING = {"a", "an", "the", "and", "or", "of", "on", "in", "at", "to", "by", "with", "from", "for", "is", "are"}
JOINING |= {"under", "above", "below", "over", "behind", "near", "beside", "between", "left", "right"}


@dataclass(frozen=True)
class Word:
    """A selectable item: a word, a part of one, or all padding.

    Args:
        label: unique among words and tokens.
        tokens: their positions on the token axis; the map is the mean of theirs (Seg4Diff, Eq 10).
        kind: as `prompts.Token.kind`, "word" if unknown.
    """

    label: str
    tokens: tuple[int, ...]
    kind: str = "word"


def tokens_of(maps: xr.DataArray) -> tuple[Word, ...]:
    labels = maps["token"].values.tolist() if "token" in maps.coords else ["map"]
    kinds = maps["token_kind"].values.tolist() if "token_kind" in maps.coords else ["word"] * len(labels)
    return tuple(Word(str(label), (i,), kind) for i, (label, kind) in enumerate(zip(labels, kinds, strict=True)))


def known_phrases() -> tuple[str, ...]:
    """Return the class names of several words that scenes draw, such as "night sky"."""
    return tuple(name for name in (*concepts(), *BACKGROUNDS) if " " in name)


def told_phrases(phrases: Sequence[str]) -> str:
    """Return phrases as an argument in a line of code; "" for the known ones."""
    return "" if tuple(phrases) == known_phrases() else f", phrases={list(phrases)!r}"


def words_of(maps: xr.DataArray, phrases: Sequence[str] = ()) -> tuple[Word, ...]:
    """Join tokens that are contiguous in the prompt, padding, and the words of phrases."""
    tokens = tokens_of(maps)
    starts, stops = (
        maps[name].values.tolist() if name in maps.coords else [None] * len(tokens)
        for name in ("token_start", "token_stop")
    )
    readers = maps["token_reader"].values.tolist() if "token_reader" in maps.coords else [""] * len(tokens)
    groups: list[list[int]] = []
    for i, token in enumerate(tokens):
        last = groups[-1][-1] if groups else 0
        joined = groups and (token.kind, readers[i]) == (tokens[last].kind, readers[last])
        if joined and token.kind == "word":
            # byte tokens of one letter have the same range; a word has whole letters only
            start, stop = starts[i], stops[last]
            overlap = start is not None and stop is not None and starts[last] <= start < stop
            joined = overlap or (starts[i] == stops[last] is not None and _spells(tokens[last]) and _spells(token))
        elif joined:
            joined = token.kind in GROUPS
        if joined:
            groups[-1].append(i)
        else:
            groups.append([i])
    taken = {token.label for token in tokens}
    ranges = list(zip(starts, stops, strict=True))
    words = [_join([tokens[i] for i in group], [ranges[i] for i in group], taken) for group in groups]
    for phrase in sorted(phrases, key=lambda phrase: -len(phrase.split())):
        words = _join_phrase(words, phrase, taken)
    return tuple(words)


def _join_phrase(words: list[Word], phrase: str, taken: set[str]) -> list[Word]:
    """Join the words that spell a phrase, wherever they do."""
    parts, joined = phrase.lower().split(), list[Word]()
    rest = list(words)
    while rest:
        group = rest[: len(parts)]
        spelled = [_plain(word.label).lower() for word in group]
        if len(parts) > 1 and spelled == parts:
            label = _unused(" ".join(phrase.split()), taken)
            joined.append(Word(label, tuple(i for word in group for i in word.tokens)))
            del rest[: len(parts)]
        else:
            joined.append(rest.pop(0))
    return joined


def _spells(token: Word) -> bool:
    return regex.search(r"[\w\p{N}]", _plain(token.label)) is not None


def _plain(label: str) -> str:
    """Return what a label spells, without the reader and the number of "cat@T5#2"."""
    return regex.sub(LABEL_END, "", label)


def _join(parts: Sequence[Word], ranges: Sequence[tuple[Any, Any]], taken: set[str]) -> Word:
    if len(parts) == 1 and parts[0].kind not in GROUPS:
        return parts[0]
    reader = regex.search(LABEL_END, parts[0].label)[1] or ""
    label = _unused((GROUPS.get(parts[0].kind) or _spelling(parts, ranges)) + reader, taken)
    return Word(label, tuple(i for part in parts for i in part.tokens), parts[0].kind)


def _unused(plain: str, taken: set[str]) -> str:
    """Return a label that no word has yet, and take it."""
    label, count = plain, 1
    while label in taken:
        count += 1
        label = f"{plain}#{count}"
    taken.add(label)
    return label


def _spelling(parts: Sequence[Word], ranges: Sequence[tuple[int, int]]) -> str:
    """Return the letters of tokens in order, shared ones once."""
    text, end = "", ranges[0][0]
    for part, (start, stop) in zip(parts, ranges, strict=True):
        text += _plain(part.label)[max(0, end - start) :]
        end = max(end, stop)
    return text


def content_words(words: Sequence[Word]) -> list[str]:
    """Return the labels of words that may name something in a picture: no articles, prepositions or punctuation."""
    named = [word.label for word in words if word.kind == "word"]
    telling = [n for n in named if regex.search(r"\p{L}", n) and _plain(n).lower() not in JOINING]
    return telling or named or [word.label for word in words]


def listed(words: Sequence[Word]) -> list[dict[str, Any]]:
    """Return words for the front end: label, tokens, kind, "count" (tokens in the mean of its map) and "color" (its
    index in the colors of masks, content words first).
    """
    telling = content_words(words)
    order = sorted(words, key=lambda word: word.label not in telling)
    color = {word.label: i for i, word in enumerate(order)}
    return [vars(word) | {"count": len(word.tokens), "color": color[word.label]} for word in words]
