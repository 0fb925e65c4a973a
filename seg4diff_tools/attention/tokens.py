"""Text columns of a recording: which tokens it takes, what they are called, and whether their prompt is the one that
runs."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seg4diff_tools.attention.exact import index_on
from seg4diff_tools.errors import InputError, PromptError, RecordingError
from seg4diff_tools.families import Family, SamplingLoop
from seg4diff_tools.families.capture import encode_text
from seg4diff_tools.families.record import Inputs
from seg4diff_tools.indices import as_indices
from seg4diff_tools.prompts import Prompt, Token, numbered

TOLERANCE = 0.1
"""Relative difference of a text token's features up to which two runs read the same prompt: batches round
differently."""
Maps = Float[Tensor, "batch ... y x"]


def span_weights(spans: Sequence[Sequence[int]], tokens: int) -> Float[Tensor, "token span"]:
    """Return the matrix that averages token values over each of several spans, such as those of class names.

    Args:
        spans: indices of the tokens of each span, 0 to tokens - 1.
        tokens: how many tokens there are.

    Returns:
        Matrix whose columns sum to 1.

    Raises:
        InputError: no class, a class without tokens, or an index out of range.

    Source: Seg4Diff, arXiv 2509.18096, equation 10 (mean over the tokens of a class).
    """
    if not spans:
        raise InputError("expected the token span of at least one class, got none: pass one span for each class")
    weights = torch.zeros(tokens, len(spans), dtype=torch.float32, device="cpu")
    for column, span in enumerate(spans):
        if len(span) == 0:
            raise InputError(f"expected tokens for every class, got an empty span for class {column}: drop that class")
        if min(span) < 0 or max(span) >= tokens:
            raise InputError(
                f"expected token indices from 0 to {tokens - 1}, got {tuple(span)} for class {column}: "
                "take the span from the prompt that made these maps"
            )
        weights[list(span), column] = 1 / len(span)
    return weights


@dataclass(frozen=True, eq=False)
class Columns:
    """The token axis of a recording.

    Args:
        names: label of each column; None where every token of the text is a column.
        groups: for each prompt (one in all without any) the text tokens of which a column is the mean; none where the
            prompt lacks the word.
        prompts: whose tokens they are, one for all images or one each.
        spans: whether columns were named by the user.
        zero_text: whether zero vectors, not pads, fill a text that one tokenizer reads.
    """

    names: list[str] | list[int] | None
    groups: list[list[tuple[int, ...]]]
    prompts: tuple[Prompt, ...] = ()
    spans: bool = False
    zero_text: bool = False

    @property
    def text(self) -> list[int] | None:
        """Text tokens to take, each one once; None for all."""
        if self.names is None:
            return None
        if self.singles:
            return [group[0] for group in self.groups[0]]
        return sorted({index for groups in self.groups for group in groups for index in group})

    @property
    def singles(self) -> bool:
        """Whether columns are tokens that are the same for all images."""
        return len(self.groups) == 1 and all(len(group) == 1 for group in self.groups[0])

    def weights(self) -> Float[Tensor, "text span"] | None:
        """Return weights that average the tokens of `text` into columns, the same for all images; None where none
        can."""
        if self.names is None or self.singles or len(self.groups) > 1:
            return None
        text = self.text or []
        return span_weights([[text.index(index) for index in group] for group in self.groups[0]], len(text))

    def combine(self, maps: Maps, text: Sequence[int], images: int, places: int) -> Maps:
        """Average single tokens into the columns of each image; a column without all of its tokens is NaN.

        Args:
            maps: of the tokens in `text`, [batch head? token frame? y x], one row per image of each branch.
            text: text tokens.
            images: number of images.
            places: number of axes of the grid of image tokens.

        Returns:
            [batch head? column frame? y x].
        """
        token = -1 - places
        place = {index: at for at, index in enumerate(text)}
        rows = []
        for row, one in enumerate(maps):
            groups = self.groups[row % images * len(self.groups) // images]
            columns = [
                one.index_select(token, index_on(tuple(place[index] for index in group), one.device)).mean(dim=token)
                if group and all(index in place for index in group)
                else one.new_full((*one.shape[:token], *one.shape[-places:]), torch.nan)
                for group in groups
            ]
            rows.append(torch.stack(columns, dim=token))
        return torch.stack(rows)

    def texts(self, images: int) -> list[str]:
        """Return the prompt of each image; nothing without prompts."""
        return (
            [self.prompts[image * len(self.prompts) // images].text for image in range(images)] if self.prompts else []
        )

    def coordinates(self, length: int, images: int) -> dict[str, Any]:
        """Return the coordinates of the token axis.

        Args:
            length: number of text tokens that the model got.
            images: number of images.
        """
        if self.spans:
            return {"token": self.names}
        if not self.prompts:
            indices = list(range(length)) if self.names is None else self.names
            return {"token": indices, "token_index": ("token", indices)}
        if len(self.prompts) == 1:
            tokens = fitted(self.prompts[0].tokens, length, self.zero_text)
            tokens = tokens if self.names is None else tuple(tokens[group[0]] for group in self.groups[0])
            return {"token": labels(tokens, self.prompts[0])} | _about(tokens, ("token",))
        nothing = Token(-1, "", "pad", -1, -1)
        rows = [
            [prompt.tokens[group[0]] if group else nothing for group in groups]
            for prompt, groups in zip(self.prompts, self.groups, strict=True)
        ]
        rows = [rows[image * len(rows) // images] for image in range(images)]
        return {"token": self.names} | _about(rows, ("image", "token"))


def _about(tokens: Sequence[Any], dims: tuple[str, ...]) -> dict[str, Any]:
    """Coordinates that say where tokens come from."""

    def values(name: str) -> list:
        return [[getattr(t, name) for t in row] if isinstance(row, list) else getattr(row, name) for row in tokens]

    return {f"token_{name}": (dims, values(name)) for name in ("index", "kind", "reader", "start", "stop")}


def choose_columns(tokens: Any, prompts: Sequence[Prompt], zero_text: bool = False) -> Columns:
    """Return the columns that the `tokens` argument of a recorder asks for.

    Args:
        tokens: "words", "all", indices, phrases of the prompt, or a mapping from names to indices or phrases; None for
            the words of a prompt, and for all tokens without one.
        prompts: one for all images, one each, or none.
        zero_text: see `Columns`.

    Raises:
        InputError: another value.
        PromptError: a phrase that no prompt has.
    """
    if tokens is None:
        tokens = "words" if prompts else "all"
    if isinstance(tokens, str) and tokens not in ("words", "all"):
        raise InputError(
            f"expected tokens, 'words', 'all', indices or phrases of the prompt, got {tokens!r}: pass "
            f"tokens=[{tokens!r}]"
        )
    spans = _spans(tokens)
    if not prompts and (tokens == "words" if isinstance(tokens, str) else _any_phrase(spans)):
        raise InputError(f"expected a prompt with tokens={tokens!r}, got none: pass prompt=... or indices of tokens")
    if isinstance(tokens, str) and tokens == "all" and len(prompts) < 2:
        return Columns(None, [[]], tuple(prompts), zero_text=zero_text)
    if spans is not None:
        groups = [[_group(span, prompt, len(prompts)) for span in spans.values()] for prompt in prompts or (None,)]
        missing = [name for name, *found in zip(spans, *groups, strict=True) if not any(found)]
        if missing:
            texts = "; ".join(repr(prompt.text) for prompt in prompts)
            raise PromptError(
                f"expected tokens of the prompts, got {missing[0]!r}, which none has: choose from {texts}"
            )
        return Columns(list(spans), groups, tuple(prompts), spans=True)
    indices = None if isinstance(tokens, str) else as_indices(tokens, "tokens")
    if not prompts:
        chosen = indices or []
        return Columns(list(chosen), [[(index,) for index in chosen]])
    named = [_named(prompt, tokens if indices is None else indices) for prompt in prompts]
    if not any(named):
        raise InputError(f"expected a prompt with words, got {prompts[0].text!r}: pass tokens='all' or another prompt")
    names = list(dict.fromkeys(name for one in named for name in one))
    groups = [[one.get(name, ()) for name in names] for one in named]
    return Columns(names, groups, tuple(prompts), zero_text=zero_text)


def _spans(tokens: Any) -> dict[str, Any] | None:
    """Named spans, as indices or phrases; None where tokens are asked for one by one."""
    if isinstance(tokens, Mapping):
        if not tokens:
            raise InputError("expected tokens, at least one named span, got {}: pass tokens=['cat'] or leave it out")
        return {
            str(name): span if isinstance(span, str) else tuple(as_indices(span, f"tokens[{name!r}]"))
            for name, span in tokens.items()
        }
    if isinstance(tokens, str) or hasattr(tokens, "shape") or not isinstance(tokens, Iterable):
        return None
    tokens = list(tokens)
    if not any(isinstance(token, str) for token in tokens):
        return None
    if not all(isinstance(token, str) for token in tokens) or len(set(tokens)) < len(tokens):
        raise InputError(f"expected tokens, phrases or indices, each one once, got {tokens}: do not mix or repeat them")
    return {token: token for token in tokens}


def _any_phrase(spans: dict[str, Any] | None) -> bool:
    return spans is not None and any(isinstance(span, str) for span in spans.values())


def _group(span: Any, prompt: Prompt | None, prompts: int) -> tuple[int, ...]:
    if not isinstance(span, str) or prompt is None:
        return span
    try:
        return prompt.span(span)
    except PromptError:
        if prompts == 1:
            raise
        return ()


def _named(prompt: Prompt, tokens: Any) -> dict[str, tuple[int, ...]]:
    chosen = (
        {"words": prompt.indices("word"), "all": range(len(prompt.tokens))}[tokens]
        if isinstance(tokens, str)
        else tokens
    )
    outside = [index for index in chosen if index >= len(prompt.tokens)]
    if outside:
        raise InputError(f"expected tokens from 0 to {len(prompt.tokens) - 1}, got {outside}: the prompt has no more")
    named = labels([prompt.tokens[index] for index in chosen], prompt)
    return {label: (index,) for label, index in zip(named, chosen, strict=True)}


def labels(tokens: Sequence[Token], prompt: Prompt) -> list[str]:
    """Return distinct labels of tokens: the second "cat" is "cat#2", that of a second tokenizer "cat@T5"."""
    seen: Counter[str] = Counter()
    found = []
    for token in tokens:
        label = f"{token.text}@{token.reader}" if token.reader in prompt.readers[1:] else token.text
        seen[label] += 1
        found.append(label if seen[label] == 1 else f"{label}#{seen[label]}")
    return found


def fitted(tokens: Sequence[Token], length: int, zero_text: bool, *, left: bool = False) -> tuple[Token, ...]:
    """Return a prompt's tokens for a text of another length: pads or zeros are added or left out.

    Args:
        tokens: of the prompt.
        length: of the text.
        zero_text: see `Columns`.
        left: whether pads stand before the prompt, as of `Family.pads_left`; else they do behind it.

    Raises:
        InputError: the text is too short for the prompt.
    """
    lost = [
        token.text for token in (tokens[:-length] if left else tokens[length:]) if token.kind not in ("pad", "zero")
    ]
    if lost:
        raise InputError(
            f"expected a text of {len(tokens)} tokens as the prompt's, got one of {length}, without {' '.join(lost)}: "
            "pass the prompt that the model reads"
        )
    zeros = zero_text and len({token.reader for token in tokens} - {""}) == 1
    filling = Token(0, "<zero>", "zero") if zeros else Token(0, "<pad>", "pad", reader=tokens[-1].reader)
    added = [filling] * (length - len(tokens))
    return numbered([*added, *tokens[-length:]] if left else [*tokens[:length], *added])


def check_texts(
    family: Family,
    inputs: Inputs,
    prompts: Sequence[Prompt],
    rows: range,
    loop: SamplingLoop | None,
    argument: str = "",
) -> None:
    """Compare what the model reads with the prompts that it has to read.

    Args:
        family: of the transformer.
        inputs: of the forward, by name.
        prompts: one for all images, or one each.
        rows: rows of the batch that read the prompt, one per image.
        loop: of the pipeline that runs, to name its prompt.
        argument: "prompt" or "negative_prompt", for the error; a recorder's prompt where empty.

    Raises:
        InputError: a number of prompts that the images cannot share evenly.
        RecordingError: an image reads another text.
    """
    if len(rows) % len(prompts):
        raise InputError(
            f"expected one prompt or one per image, got {len(prompts)} for {len(rows)} images: pass as many"
        )
    share, zeros = len(rows) // len(prompts), bool(family.optional_parts)
    for image, row in enumerate(rows):
        prompt = prompts[image // share]
        # what is longer than a prompt without pads holds zeros there, or further words
        filled = zeros or (prompt.tokens[-1].kind != "pad" and not family.pads_left)
        for name in family.streams or family.text_inputs[:1]:
            read, wanted = inputs[name][row], prompt.inputs.get(name)
            if wanted is not None and not _same(read, wanted[0], filled, left=family.pads_left):
                text = None if loop is None or argument == "negative_prompt" else loop.prompt
                if isinstance(text, (list, tuple)) and text and len(rows) % len(text) == 0:
                    text = text[image // (len(rows) // len(text))]
                running = repr(text) if isinstance(text, str) and text != prompt.text else "another text"
                way_out = {
                    "": "prompt that runs (a list has one per image), or leave prompt out and name tokens by index",
                    "prompt": "prompt that runs (a list has one per image)",
                    "negative_prompt": "negative_prompt that runs, or run without guidance",
                }
                whose = f"expected {argument}" if argument else "expected the recorder's prompt"
                raise RecordingError(
                    f"{whose} {prompt.text!r} for image {image}, got {running} in the model: pass the "
                    f"{way_out[argument]}"
                )


def encoded_prompts(model: Any, family: Family, prompt: Any) -> list[Prompt]:
    """Encode prompts with a model's own text encoders.

    Args:
        model: backbone or pipeline, or, with encoded prompts, a transformer.
        family: of it.
        prompt: text, encoded prompt, a list of them, or None for none.

    Returns:
        The prompts; where pads stand before the text, with the tokens that they have in one batch.

    Raises:
        InputError: something else, or a text that the model cannot encode.
    """
    if prompt is None:
        return []
    several = isinstance(prompt, Sequence) and not isinstance(prompt, str)
    prompts: list[Any] = list(prompt) if several else [prompt]
    if not prompts or not all(isinstance(one, (str, Prompt)) for one in prompts):
        raise InputError(
            f"expected prompt, a text, an encoded prompt or a list of them, got {prompt!r}: pass prompt='a cat'"
        )
    pipe = None if isinstance(model, nn.Module) else getattr(model, "pipe", model)
    extra = [name for name in family.omitted_parts if getattr(pipe, name, None) is not None]
    if extra:
        raise InputError(
            f"expected a prompt with a pipeline without {' and '.join(extra)}, got one with it, whose tokens the "
            "prompt's labels do not cover: load the pipeline without it, or, in a recorder, leave prompt out and name "
            "tokens by index"
        )
    encoded: dict[str, Prompt] = {}
    for one in prompts:
        if isinstance(one, str) and one not in encoded:
            if pipe is None:
                raise InputError(
                    f"expected an encoded prompt with a bare transformer, got the text {one!r}: pass a backbone or a "
                    "pipeline with text encoders, or prompt=Backbone.encode_prompt(...)"
                )
            encoded[one] = encode_text(pipe, family, unicodedata.normalize("NFC", one))
    found = [encoded[one] if isinstance(one, str) else one for one in prompts]
    longest = max(len(one.tokens) for one in found)
    if not family.pads_left:
        return found
    return [replace(one, tokens=fitted(one.tokens, longest, False, left=True)) for one in found]


def _same(found: Tensor, wanted: Tensor, zeros: bool, *, left: bool) -> bool:
    if found.shape[1:] != wanted.shape[1:]:
        return False
    length = min(len(found), len(wanted))
    if zeros and any(rest.count_nonzero() for rest in (found[length:], wanted[length:])):
        return False
    part = slice(-length, None) if left else slice(length)
    read, labeled = (x[part].detach().flatten(1).float() for x in (found, wanted.to(found.device)))
    size = labeled.norm(dim=1)
    return bool(((read - labeled).norm(dim=1) <= TOLERANCE * size + 1e-3 * size.mean()).all())
