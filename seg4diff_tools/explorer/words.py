"""The words of recorded maps: tokens put together to what a reader would click."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import regex
import xarray as xr

GROUPS = {"pad": "<pads>", "zero": "<zeros>"}
# They join words, and have a map, but name nothing that a picture shows.
JOINING = {"a", "an", "the", "and", "or", "of", "on", "in", "at", "to", "by", "with", "from", "for", "is", "are"}
JOINING |= {"under", "above", "below", "over", "behind", "near", "beside", "between", "left", "right"}


@dataclass(frozen=True)
class Word:
    """Something to click: a word, a part of one, or all padding.

    Args:
        label: what it is called; no two words or tokens share one.
        tokens: places of its tokens on the axis of tokens; its map is the mean of theirs (Seg4Diff, Eq 10).
        kind: as `prompts.Token.kind`, "word" where that is not known.
    """

    label: str
    tokens: tuple[int, ...]
    kind: str = "word"


def tokens_of(maps: xr.DataArray) -> tuple[Word, ...]:
    labels = maps["token"].values.tolist() if "token" in maps.coords else ["map"]
    kinds = maps["token_kind"].values.tolist() if "token_kind" in maps.coords else ["word"] * len(labels)
    return tuple(Word(str(label), (i,), kind) for i, (label, kind) in enumerate(zip(labels, kinds, strict=True)))


def words_of(maps: xr.DataArray, phrases: Sequence[str] = ()) -> tuple[Word, ...]:
    """Tokens put together that follow each other in the prompt without a gap, padding, and the words of phrases."""
    tokens = tokens_of(maps)
    starts, stops = (
        maps[name].values.tolist() if name in maps.coords else [None] * len(tokens)
        for name in ("token_start", "token_stop")
    )
    groups: list[list[int]] = []
    for i, token in enumerate(tokens):
        last = groups[-1][-1] if groups else 0
        joined = groups and token.kind == tokens[last].kind
        if joined and token.kind == "word":
            # tokens of one letter's bytes have the same range; no word holds a part of a letter
            start, stop = starts[i], stops[last]
            overlap = start is not None and stop is not None and start < stop
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
    for phrase in phrases:
        words = _join_phrase(words, phrase, taken)
    return tuple(words)


def _join_phrase(words: list[Word], phrase: str, taken: set[str]) -> list[Word]:
    """Put the first words that spell a phrase into one, unless something else is called like it."""
    parts = phrase.split()
    for at in range(len(words) - len(parts) + 1):
        group = words[at : at + len(parts)]
        spelled = [word.label.split("#")[0].lower() for word in group]
        if len(parts) > 1 and spelled == [part.lower() for part in parts] and phrase not in taken:
            taken.add(phrase)
            joined = Word(phrase, tuple(i for word in group for i in word.tokens))
            return [*words[:at], joined, *words[at + len(parts) :]]
    return words


def _spells(token: Word) -> bool:
    return regex.search(r"[\w\p{N}]", token.label.split("#")[0] or "#") is not None


def _join(parts: Sequence[Word], ranges: Sequence[tuple[Any, Any]], taken: set[str]) -> Word:
    if len(parts) == 1 and parts[0].kind not in GROUPS:
        return parts[0]
    plain = GROUPS.get(parts[0].kind) or _spelling(parts, ranges)
    label, count = plain, 1
    while label in taken:
        count += 1
        label = f"{plain}#{count}"
    taken.add(label)
    return Word(label, tuple(i for part in parts for i in part.tokens), parts[0].kind)


def _spelling(parts: Sequence[Word], ranges: Sequence[tuple[int, int]]) -> str:
    """Return the letters of some tokens in order, those that several tokens share once."""
    text, end = "", ranges[0][0]
    for part, (start, stop) in zip(parts, ranges, strict=True):
        text += part.label.split("#")[0][max(0, end - start) :]
        end = max(end, stop)
    return text


def content_words(words: Sequence[Word]) -> list[str]:
    """Labels of the words that may name something in a picture: not articles, prepositions or punctuation."""
    named = [word.label for word in words if word.kind == "word"]
    telling = [n for n in named if regex.search(r"\p{L}", n) and n.split("#")[0].lower() not in JOINING]
    return telling or named or [word.label for word in words]


def listed(words: Sequence[Word]) -> list[dict[str, Any]]:
    """Words as the front end reads them.

    Returns:
        Of each word label, tokens and kind; "count": how many tokens its map is the mean of; "color": its place among
            the colors of masks, of which words that may name something get the first.
    """
    telling = content_words(words)
    order = sorted(words, key=lambda word: word.label not in telling)
    color = {word.label: i for i, word in enumerate(order)}
    return [vars(word) | {"count": len(word.tokens), "color": color[word.label]} for word in words]
