"""Prompts and their tokens: what each text column of a joint attention map stands for."""

import difflib
import math
import re
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from seg4diff_tools.errors import InputError, PromptError

Kind = Literal["start", "word", "end", "pad", "zero"]


@dataclass(frozen=True)
class Token:
    """One text token of the joint attention.

    Args:
        index: position among the text tokens (a column of I2T, a row of T2I).
        text: the piece of the prompt that it covers, or `<start>`, `<end>`, `<pad>`, `<zero>`.
        kind: "start", "word", "end" and "pad" come from CLIP; "zero" is a zero vector in place of a T5 token.
        start: first character of `text` in the prompt (0 for anything but a word).
        stop: one past its last character.
    """

    index: int
    text: str
    kind: Kind
    start: int = 0
    stop: int = 0


@dataclass(frozen=True, eq=False)
class Prompt:
    """An encoded prompt, ready for the transformer, whose tokens are known by name.

    Args:
        text: the prompt.
        tokens: one per text token of the transformer, in order.
        embeds: text features, zero vectors included.
        pooled: the pooled CLIP features.
        classes: exact token indices of each class name, for prompts made by `Backbone.class_prompts`; none for a name
            that was cut off.
    """

    text: str
    tokens: tuple[Token, ...] = field(repr=False)
    embeds: Float[Tensor, "1 text width"] = field(repr=False)
    pooled: Float[Tensor, "1 pooled"] = field(repr=False)
    classes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the prompt in order, punctuation left out."""
        return tuple(re.findall(r"\w+(?:['’-]\w+)*", self.text))

    @property
    def pads(self) -> tuple[int, ...]:
        """Indices of CLIP's padding (the `<pad>` tokens of the paper's Fig 9b and Table 2)."""
        return self.indices("pad")

    def indices(self, *kinds: Kind) -> tuple[int, ...]:
        """Indices of the tokens of the given kinds, in order.

        Args:
            kinds: any of "start", "word", "end", "pad", "zero".
        """
        return tuple(token.index for token in self.tokens if token.kind in kinds)

    def span(self, phrase: str, occurrence: int | None = None) -> tuple[int, ...]:
        """Indices of the tokens of a word or phrase.

        The phrase is looked up in the text, on word boundaries and without regard to case or to the amount of white
        space. For class prompts `classes` is the exact answer where one class name contains another.

        Args:
            phrase: such as "car" or "red car".
            occurrence: 0-based, which one to take if the phrase is repeated; None takes the tokens of all.

        Returns:
            Token indices in ascending order.

        Raises:
            PromptError: the phrase, or that occurrence of it, is not in the prompt.
        """
        parts = unicodedata.normalize("NFC", phrase).split()
        if not parts:
            raise PromptError("expected a word or phrase of the prompt, got an empty one")
        pattern = r"(?<!\w)" + r"\s+".join(map(re.escape, parts)) + r"(?!\w)"
        found = [match.span() for match in re.finditer(pattern, self.text, re.IGNORECASE)]
        if not found:
            raise PromptError(self._missing(" ".join(parts)))
        if occurrence is not None:
            if not 0 <= occurrence < len(found):
                raise PromptError(
                    f"'{phrase}' occurs {len(found)} time(s) in the prompt '{self.text}': "
                    f"expected an occurrence from 0 to {len(found) - 1}, got {occurrence}"
                )
            found = found[occurrence : occurrence + 1]
        return tuple(sorted({index for start, stop in found for index in _covering(self.tokens, start, stop)}))

    def _missing(self, phrase: str) -> str:
        words, length = self.words, len(phrase.split())
        if not words:
            return f"'{phrase}' is not in the prompt, which has no words"
        phrases = [" ".join(words[i : i + length]) for i in range(len(words) - length + 1)] + list(words)
        by_lower = {candidate.lower(): candidate for candidate in phrases}
        close = difflib.get_close_matches(phrase.lower(), by_lower, n=1)
        hint = f"; did you mean '{by_lower[close[0]]}'?" if close else ""
        return f"'{phrase}' is not in the prompt, whose words are: {', '.join(words)}{hint}"


def label_tokens(
    tokenizers: Sequence[PreTrainedTokenizerBase], text: str, zero_tokens: int, cut: bool = False
) -> tuple[Token, ...]:
    """Names every text token that an SD3 pipeline without T5 gives to its transformer.

    Kinds go by position, not by id: one tokenizer pads with the end token, the other with "!".

    Args:
        tokenizers: the pipeline's CLIP tokenizers; the first one labels.
        text: the prompt, in Unicode NFC.
        zero_tokens: how many zero vectors follow in place of T5's tokens.
        cut: leave out what does not fit, in place of an error.

    Returns:
        start, words, end, pads up to the tokenizer's length, then zeros.

    Raises:
        PromptError: the prompt is too long, or holds something that the tokenizer takes for the end of the prompt.
    """
    pieces = [_pieces(tokenizer, text, cut) for tokenizer in tokenizers]
    if any(other != pieces[0] for other in pieces[1:]):
        warnings.warn(
            f"the text encoders split '{text}' into different tokens, so some columns mix two words; "
            "tokens are labelled by the first tokenizer",
            stacklevel=3,
        )
    spans, length = pieces[0], tokenizers[0].model_max_length
    tokens = [Token(0, "<start>", "start")]
    tokens += [Token(i, text[start:stop], "word", start, stop) for i, (start, stop) in enumerate(spans, start=1)]
    tokens.append(Token(len(tokens), "<end>", "end"))
    tokens += [Token(i, "<pad>", "pad") for i in range(len(tokens), length)]
    tokens += [Token(i, "<zero>", "zero") for i in range(length, length + zero_tokens)]
    return tuple(tokens)


def _pieces(tokenizer: PreTrainedTokenizerBase, text: str, cut: bool = False) -> list[tuple[int, int]]:
    """Character range of every token between start and end; with `cut`, of those that the text encoder reads."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans = [(start, stop) for start, stop in encoding["offset_mapping"]]
    room = tokenizer.model_max_length - 2
    if len(spans) > room and not cut:
        lost = [word.group() for word in re.finditer(r"\S+", text) if word.end() > spans[room][0]]
        raise PromptError(
            f"the prompt has {len(spans)} tokens and the text encoder reads {room}: "
            f"these words do not fit: {' '.join(lost)}; shorten the prompt, or split class names with class_prompts"
        )
    # an unknown piece becomes the end token, and everything after it would be read as padding
    reserved = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    unread = [text[a:b] for (a, b), token in zip(spans, encoding["input_ids"], strict=True) if token in reserved]
    if unread:
        raise PromptError(f"the tokenizer has no token for '{unread[0]}' in the prompt '{text}': leave it out")
    return spans[:room]


def class_texts(
    tokenizer: PreTrainedTokenizerBase, class_names: Sequence[str]
) -> list[tuple[str, dict[str, tuple[int, int]]]]:
    """The paper's segmentation prompt, "class names joined by a space", in as few texts as hold all names.

    Names stay in order, and each text gets about as many tokens as the next.

    Args:
        tokenizer: the pipeline's first CLIP tokenizer.
        class_names: distinct names.

    Returns:
        Texts, each with the character range of each of its names.

    Raises:
        InputError: no names, an empty name, or a name twice.
        PromptError: one name alone is longer than a prompt.
    """
    _check_names(class_names)
    # words are tokenised one by one, so the length of a joined text is the sum of its names' lengths
    lengths = [len(_pieces(tokenizer, _plain(name))) for name in class_names]
    texts = len(_pack(lengths, tokenizer.model_max_length - 2))
    room = max(*lengths, math.ceil(sum(lengths) / texts))
    while len(_pack(lengths, room)) > texts:
        room += 1
    return [_join([class_names[i] for i in group]) for group in _pack(lengths, room)]


def cut_class_text(
    tokenizer: PreTrainedTokenizerBase, class_names: Sequence[str]
) -> tuple[str, dict[str, tuple[int, ...]]]:
    """All class names in one text, with the token indices that the paper's released code reads for each.

    The text may be longer than a prompt. The last index, where the end token stands then, counts for the name that is cut
    there; names past it have no token.

    Args:
        tokenizer: the pipeline's first CLIP tokenizer.
        class_names: distinct names.

    Raises:
        InputError, PromptError: as `class_texts`.
    """
    _check_names(class_names)
    lengths = (len(_pieces(tokenizer, _plain(name))) for name in class_names)
    edges = [min(edge, tokenizer.model_max_length) for edge in accumulate(lengths, initial=1)]
    text, _ = _join(class_names)
    return text, {name: tuple(range(*ends)) for name, ends in zip(class_names, pairwise(edges), strict=True)}


def _check_names(class_names: Sequence[str]) -> None:
    if isinstance(class_names, str):
        raise InputError(f"expected a list of class names, got the string '{class_names}': write ['{class_names}']")
    if not class_names:
        raise InputError("expected at least one class name, got an empty list")
    seen = set()
    for name in class_names:
        key = _plain(name).lower()
        if not key:
            raise InputError(f"expected class names with letters in them, got {name!r}")
        if key in seen:
            raise InputError(f"the class '{name}' is given twice: pass each class once, case does not matter")
        seen.add(key)


def _pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    groups, used = [[]], 0
    for i, length in enumerate(lengths):
        if groups[-1] and used + length > room:
            groups.append([])
            used = 0
        groups[-1].append(i)
        used += length
    return groups


def _join(class_names: Sequence[str]) -> tuple[str, dict[str, tuple[int, int]]]:
    text, ranges = "", {}
    for name in class_names:
        start = len(text) + 1 if text else 0
        text = f"{text} {_plain(name)}" if text else _plain(name)
        ranges[name] = (start, len(text))
    return text, ranges


def class_tokens(tokens: Sequence[Token], ranges: dict[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """Token indices of each class name, by where the name was put and not by search.

    Args:
        tokens: of the joined prompt.
        ranges: character range of each name, from `class_texts`.
    """
    return {name: _covering(tokens, start, stop) for name, (start, stop) in ranges.items()}


def stack_prompts(
    prompts: Sequence[Prompt],
) -> tuple[Float[Tensor, "prompt text width"], Float[Tensor, "prompt pooled"]]:
    """Embeds and pooled features of several prompts as one batch.

    Args:
        prompts: of one length.

    Raises:
        InputError: prompts with different numbers of tokens.
    """
    lengths = {len(prompt.tokens) for prompt in prompts}
    if len(lengths) > 1:
        raise InputError(f"expected prompts of one length, got {sorted(lengths)} tokens: use one zero_tokens for all")
    return torch.cat([prompt.embeds for prompt in prompts]), torch.cat([prompt.pooled for prompt in prompts])


def _covering(tokens: Sequence[Token], start: int, stop: int) -> tuple[int, ...]:
    return tuple(t.index for t in tokens if t.kind == "word" and t.start < stop and t.stop > start)


def _plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).split())
