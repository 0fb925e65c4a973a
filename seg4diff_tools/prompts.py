"""Prompts and their tokens: what each text column of a joint attention map stands for."""

import difflib
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any, Literal

import regex
from transformers import PreTrainedTokenizerBase

from seg4diff_tools.errors import InputError, PromptError
from seg4diff_tools.indices import as_int

# of a word, in every script: re's \w would leave out the vowel signs of Indic ones, and regex' own numbers such as ²
LETTER = r"[\w\p{N}]"
NO_SPACES = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\u30fc]"
"""A letter of a script that writes words without spaces."""
Kind = Literal["start", "word", "end", "pad", "zero", "template"]


@dataclass(frozen=True)
class Token:
    """One text token of the joint attention.

    Args:
        index: position among the text tokens (a column of I2T, a row of T2I).
        text: the piece of the prompt that it covers, or `<start>`, `<end>`, `<pad>`, `<zero>`, or of a chat template.
        kind: "word" is of the prompt, "start", "end" and "pad" are put around it; "template" is the frame that a
            language model's prompt stands in, and "zero" a zero vector in place of a T5 token.
        start: first character of `text` in the prompt (0 for anything but a word).
        stop: one past its last character.
        reader: which tokenizer made it, such as "CLIP", "T5" or "Qwen2"; none made a zero vector.
    """

    index: int
    text: str
    kind: Kind
    start: int = 0
    stop: int = 0
    reader: str = ""


@dataclass(frozen=True, eq=False)
class Prompt:
    """An encoded prompt, ready for the transformer, whose tokens are known by name.

    Args:
        text: the prompt.
        tokens: one per text token of the transformer, in order.
        inputs: what the transformer gets of it, by the name of its argument, for one image.
        classes: exact token indices of each class name, for prompts made by `Backbone.class_prompts`; none for a name
            that was cut off.
    """

    text: str
    tokens: tuple[Token, ...] = field(repr=False)
    inputs: Mapping[str, Any] = field(repr=False)
    classes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the prompt in order, punctuation left out."""
        return tuple(regex.findall(rf"{LETTER}+(?:['’-]{LETTER}+)*", self.text))

    @property
    def pads(self) -> tuple[int, ...]:
        """Indices of the padding of every tokenizer (of CLIP, the `<pad>` tokens of the paper's Fig 9b and Table 2)."""
        return self.indices("pad")

    @property
    def readers(self) -> tuple[str, ...]:
        """The tokenizers that read the words, in the order of their tokens: ("CLIP", "T5") of SD3 with T5."""
        return tuple(dict.fromkeys(token.reader for token in self.tokens if token.kind == "word"))

    def indices(self, *kinds: Kind, reader: str | None = None) -> tuple[int, ...]:
        """Return the indices of the tokens of the given kinds, in order, made by a tokenizer, `reader`, or by any.

        Raises:
            InputError: no token of the prompt has that reader.
        """
        self._check_reader(reader)
        return tuple(t.index for t in self.tokens if t.kind in kinds and reader in (None, t.reader))

    def _check_reader(self, reader: str | None) -> None:
        made = tuple(dict.fromkeys(token.reader for token in self.tokens if token.reader))
        if reader is not None and reader not in made:
            raise InputError(f"expected reader, one of {', '.join(made)}, got {reader!r}: leave it out for all tokens")

    def span(self, phrase: str, occurrence: int | None = None, reader: str | None = None) -> tuple[int, ...]:
        """Return the indices of the tokens of a word or phrase.

        The phrase is found on word boundaries, whatever its case and white space; in scripts that write words without
        spaces (Chinese, Japanese, Thai, ...) it is found anywhere. For class prompts, `classes` is exact where one name
        contains another.

        Args:
            phrase: such as "car" or "red car"; "cat#2" is the second "cat" and "cat@T5" what T5 read of it, as maps
                label them.
            occurrence: 0-based occurrence to take; None takes the tokens of all.
            reader: the tokenizer whose tokens to take, of several such as CLIP and T5; None takes those of all.

        Returns:
            Token indices in ascending order.

        Raises:
            PromptError: the phrase, or that occurrence of it, is not in the prompt, or not in what the reader reads.
            InputError: no token of the prompt has that reader.
        """
        if not isinstance(phrase, str) or not phrase.strip():
            raise PromptError(f"expected phrase, a word or several of the prompt, got {phrase!r}: pass text")
        parts = unicodedata.normalize("NFC", phrase).split()
        found = self._places(parts)
        label = regex.fullmatch(r"(.+?)(?:@(\w+))?(?:#([1-9][0-9]*))?", parts[-1])
        if not found and label and label[2] in (None, *self.readers) and None in (label[3], occurrence):
            parts, reader = [*parts[:-1], label[1]], label[2] or reader
            occurrence = int(label[3]) - 1 if label[3] else occurrence
            found = self._places(parts)
        if not found:
            raise PromptError(self._missing(" ".join(parts)))
        if occurrence is not None:
            try:
                chosen = as_int(occurrence, "occurrence", 0, len(found) - 1)
            except InputError as error:
                raise PromptError(
                    f"'{' '.join(parts)}' occurs {len(found)} time(s) in the prompt '{self.text}': "
                    f"expected an occurrence from 0 to {len(found) - 1}, got {occurrence}"
                ) from error
            found = found[chosen : chosen + 1]
        self._check_reader(reader)
        covering = {index for start, stop in found for index in _covering(self.tokens, start, stop)}
        taken = tuple(sorted(i for i in covering if reader in (None, self.tokens[i].reader)))
        if covering and not taken:
            raise PromptError(
                f"'{' '.join(parts)}' is not in what {reader} reads of the prompt, which is longer: leave reader out"
            )
        return taken

    def _places(self, parts: Sequence[str]) -> list[tuple[int, int]]:
        """Return the character ranges of a phrase in the text."""
        pattern = r"\s+".join(map(regex.escape, parts))
        # where words are written without spaces, a neighbouring letter may belong to another one
        before, after = (rf"(?<!{LETTER})", rf"(?!{LETTER})")
        before = "" if regex.match(NO_SPACES, parts[0][0]) else before
        after = "" if regex.match(NO_SPACES, parts[-1][-1]) else after
        return [match.span() for match in regex.finditer(before + pattern + after, self.text, regex.IGNORECASE)]

    def _missing(self, phrase: str) -> str:
        words, length = self.words, len(phrase.split())
        if not words:
            return f"'{phrase}' is not in the prompt, which has no words"
        phrases = [" ".join(words[i : i + length]) for i in range(len(words) - length + 1)] + list(words)
        by_lower = {candidate.lower(): candidate for candidate in phrases}
        close = difflib.get_close_matches(phrase.lower(), by_lower, n=1)
        hint = f"; did you mean '{by_lower[close[0]]}'?" if close else ""
        return f"'{phrase}' is not in the prompt, whose words are: {', '.join(words)}{hint}"


def reader_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the name of a tokenizer in labels: that of its class, in short, and "LLM" of a general class."""
    name = type(tokenizer).__name__.removesuffix("Fast").removesuffix("Tokenizer")
    return "LLM" if name in ("PreTrained", "TokenizersBackend") else name


def label_template(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    length: int,
    template: str = "{}",
    *,
    skipped: int = 0,
    room: int | None = None,
    specials: bool = True,
    left: bool = False,
) -> tuple[Token, ...]:
    """Label every text token of a prompt that one tokenizer reads, alone or inside a chat template.

    Args:
        tokenizer: with character offsets ("fast").
        text: the prompt, in Unicode NFC.
        length: number of text tokens; what the prompt does not fill are pads, `left` of the text or after it.
        template: with {} where the prompt stands.
        skipped: tokens at the start of the template whose features the pipeline cuts off.
        room: how many tokens of the whole text the encoder reads; `length` where None.
        specials: whether the tokenizer adds its own special tokens.

    Raises:
        PromptError: the prompt is too long.
    """
    before, after = template.split("{}")
    whole, first, last = before + text + after, len(before), len(before) + len(text)
    encoding = tokenizer(whole, add_special_tokens=specials, return_offsets_mapping=True, verbose=False)
    pieces = list(zip(encoding["offset_mapping"], encoding["input_ids"], strict=True))
    room = skipped + (length if room is None else room)
    if len(pieces) > room:
        # what stands after the prompt has to fit too
        tail = sum(start >= last or token == tokenizer.eos_token_id for (start, _), token in pieces)
        lost = min(last, pieces[max(0, room - tail)][0][0]) - first
        raise PromptError(too_long(text, len(pieces) - skipped - tail, room - skipped - tail, max(0, lost)))
    tokens: list[Token] = []
    reader = reader_name(tokenizer)
    for (start, stop), token in pieces[skipped:]:
        piece = whole[start:stop]
        # sentence pieces carry the space before them, and a space alone belongs to no word
        start += len(piece) - len(piece.lstrip())
        if first < stop and start < min(stop, last):
            start, stop = max(start, first) - first, min(stop, last) - first
            tokens.append(Token(len(tokens), text[start:stop], "word", start, stop, reader))
        elif piece or specials is False:
            tokens.append(Token(len(tokens), piece, "template", reader=reader))
        else:
            kind: Kind = "end" if token == tokenizer.eos_token_id else "start"
            tokens.append(Token(len(tokens), f"<{kind}>", kind, reader=reader))
    pads = [Token(0, "<pad>", "pad", reader=reader)] * (length - len(tokens))
    return numbered([*pads, *tokens] if left else [*tokens, *pads])


def numbered(tokens: Sequence[Token]) -> tuple[Token, ...]:
    """Return tokens in this order, each with its place as index."""
    return tuple(replace(token, index=index) for index, token in enumerate(tokens))


def too_long(text: str, count: int, room: int, lost: int) -> str:
    """Return the message about a prompt whose characters from `lost` on do not fit."""
    words = [word.group() for word in regex.finditer(r"\S+", text) if word.end() > lost]
    return (
        f"the prompt has {count} tokens and the text encoder reads {room}: these words do not fit: {' '.join(words)}; "
        "shorten the prompt, or split class names with class_prompts"
    )


def check_prompt(tokenizer: PreTrainedTokenizerBase, room: int, text: str, cut: bool = False) -> list[tuple[int, int]]:
    """Return the character range of every token of a prompt in Unicode NFC, special tokens left out.

    At most `room` tokens fit; `cut` leaves out the rest, in place of an error.

    Raises:
        PromptError: the prompt is too long, or holds something that the tokenizer takes for the end of the prompt.
    """
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans = [(start, stop) for start, stop in encoding["offset_mapping"]]
    if len(spans) > room and not cut:
        raise PromptError(too_long(text, len(spans), room, spans[room][0]))
    # an unknown piece becomes the end token, and everything after it would be read as padding
    reserved = {tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}
    unread = [text[a:b] for (a, b), token in zip(spans, encoding["input_ids"], strict=True) if token in reserved]
    if unread:
        raise PromptError(f"the tokenizer has no token for '{unread[0]}' in the prompt '{text}': leave it out")
    return spans[:room]


def class_texts(
    tokenizer: PreTrainedTokenizerBase, room: int, class_names: Sequence[str]
) -> list[tuple[str, dict[str, tuple[int, int]]]]:
    """Join class names by spaces, the paper's segmentation prompt, into as few texts of `room` tokens as hold all
    names.

    Names stay in order, and each text gets about as many tokens as the next.

    Returns:
        Texts, each with the character range of each of its names.

    Raises:
        InputError: no names, an empty name, or a name twice.
        PromptError: one name alone is longer than a prompt.
    """
    _check_names(class_names)
    # words are tokenized one by one, so the length of a joined text is the sum of its names' lengths
    lengths = [len(check_prompt(tokenizer, room, _plain(name))) for name in class_names]
    texts = len(_pack(lengths, room))
    even = max(*lengths, math.ceil(sum(lengths) / texts))
    while len(_pack(lengths, even)) > texts:
        even += 1
    return [_join([class_names[i] for i in group]) for group in _pack(lengths, even)]


def cut_class_text(
    tokenizer: PreTrainedTokenizerBase, class_names: Sequence[str]
) -> tuple[str, dict[str, tuple[int, ...]]]:
    """Join all class names in one text, with the token indices that the paper's released code reads for each.

    The text may be longer than a prompt of the pipeline's first CLIP tokenizer. The last index, where the end token
    stands then, counts for the name that is cut there; names past it have no token.

    Raises:
        InputError, PromptError: as `class_texts`.
    """
    _check_names(class_names)
    room = tokenizer.model_max_length - 2
    lengths = (len(check_prompt(tokenizer, room, _plain(name))) for name in class_names)
    edges = [min(edge, room + 2) for edge in accumulate(lengths, initial=1)]
    text, _ = _join(class_names)
    return text, {name: tuple(range(*ends)) for name, ends in zip(class_names, pairwise(edges), strict=True)}


def _check_names(class_names: Sequence[str]) -> None:
    if isinstance(class_names, str):
        listed = [name.strip() for name in class_names.split(",")]
        raise InputError(f"expected class_names, a list, got the string '{class_names}': write {listed}")
    if not isinstance(class_names, Sequence) or not all(isinstance(name, str) for name in class_names):
        raise InputError(f"expected class_names, a list of texts, got {class_names!r}: write ['cat', 'grass']")
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
    groups: list[list[int]] = [[]]
    used = 0
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


def class_tokens(
    prompt: Prompt, ranges: dict[str, tuple[int, int]], reader: str | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the token indices of each class name, by its character range from `class_texts` and not by search.

    Raises:
        InputError: no token of the prompt has that reader.
    """
    words = [prompt.tokens[index] for index in prompt.indices("word", reader=reader)]
    return {name: _covering(words, start, stop) for name, (start, stop) in ranges.items()}


def _covering(tokens: Sequence[Token], start: int, stop: int) -> tuple[int, ...]:
    return tuple(t.index for t in tokens if t.kind == "word" and t.start < stop and t.stop > start)


def _plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).split())
