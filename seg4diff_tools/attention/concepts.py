"""Text outside the prompt: tokens that read the image while prompt and image, or most of it, do not read them.

They run through the model beside the prompt. With no reader, any list of words can be asked of one forward: the
prediction and the maps of the prompt are those without them, within rounding (ConceptAttention, Helbling et al., arXiv
2502.04320). With a part of the image as reader, they are a second prompt of that part (see `regions`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seg4diff_tools.attention.areas import Area, grid_mask
from seg4diff_tools.attention.groups import Rule
from seg4diff_tools.attention.tokens import encoded_prompts, span_weights
from seg4diff_tools.attention.turns import PERTURBED, Turn
from seg4diff_tools.errors import InputError, as_names
from seg4diff_tools.families import FAMILIES, Family, Layout, family_of, transformer_of
from seg4diff_tools.families._private import add_hook
from seg4diff_tools.prompts import Kind


@dataclass(frozen=True, eq=False)
class Readers:
    """Image tokens that read text outside the prompt, in the branches of guidance that read the prompt.

    Args:
        areas: for each image, or for all alike, the part of the picture that reads each text, by name.
        strength: added to the scores of these image tokens with the text's tokens.
        alone: whether these image tokens do not read the prompt then.
        confined: whether the text reads no other image tokens than these.
        steps: of sampling; None for all.
    """

    areas: tuple[Mapping[str, Area], ...]
    strength: float = 0.0
    alone: bool = False
    confined: bool = False
    steps: frozenset[int] | None = None

    def rows(self, turn: Turn) -> list[tuple[frozenset[int], Mapping[str, Area]]]:
        """Return the rows of a forward whose image tokens read, with the areas of each image."""
        if not turn.is_in(self.steps):
            return []
        if len(self.areas) not in (1, turn.images):
            raise InputError(
                f"expected regions of one image or of each, got {len(self.areas)} for a batch of {turn.images}: draw "
                "as many at once"
            )
        found = [turn.rows_of(branch) for branch in ("cond", PERTURBED)]
        return [
            (frozenset(rows[image] for rows in found if rows), self.areas[image % len(self.areas)])
            for image in range(turn.images)
            if any(found)
        ]


@dataclass(frozen=True, eq=False)
class Concepts:
    """Text outside the prompt, encoded: words, or whole prompts of parts of the picture.

    Args:
        names: the words or phrases.
        states: features of their tokens, as the transformer reads those of a prompt, one concept after the other.
        spans: tokens of each.
        together: whether all of these tokens read each other, or each those of its own concept alone.
        readers: image tokens that read them; None for none.
    """

    names: tuple[str, ...]
    states: Float[Tensor, "token feature"]
    spans: tuple[tuple[int, ...], ...]
    together: bool = False
    readers: Readers | None = None

    @property
    def weights(self) -> Float[Tensor, "token concept"]:
        """Weights that average the tokens of each (Seg4Diff, arXiv 2509.18096, equation 10)."""
        return span_weights(self.spans, len(self.states))

    def places(self, layout: Layout) -> slice:
        """Return where their tokens stand in the joint sequence: right after the text."""
        return slice(layout.text.stop, layout.text.stop + len(self.states))

    def outside(self, layout: Layout, rules: Sequence[Rule], turn: Turn) -> tuple[Layout, list[Rule]]:
        """Return layout and rules of a forward with these tokens, which read the image and their own concept.

        Args:
            layout: of the forward without them.
            rules: other biases, which do not concern them.
            turn: of the forward, which says whose image tokens read them.
        """
        places, count = self.places(layout), len(self.states)
        moved = count if layout.image.start >= places.start else 0
        image = slice(layout.image.start + moved, layout.image.stop + moved)
        whole = replace(layout, image=image, tokens=layout.tokens + count)
        nowhere = torch.zeros(whole.tokens, dtype=torch.bool, device="cpu")
        inside, pixels, prompt = nowhere.clone(), nowhere.clone(), nowhere.clone()
        inside[places], pixels[image], prompt[layout.text] = True, True, True
        own = {}
        for name, span in zip(self.names, self.spans, strict=True):
            own[name] = nowhere.clone()
            own[name][places.start + span[0] : places.start + span[-1] + 1] = True
        reading = [] if self.readers is None else self.readers.rows(turn)
        closed = frozenset(range(turn.rows)) - {row for rows, _ in reading for row in rows}
        closing = [Rule(-math.inf, ~inside & ~pixels, inside)]
        if closed:
            closing.append(Rule(-math.inf, pixels, inside, rows=closed if reading else None))
        groups = [inside] if self.together else own.values()
        closing += [Rule(-math.inf, tokens, ~(tokens | pixels)) for tokens in groups]
        for rows, areas in reading:
            closing += self._read(rows, areas, own, whole, pixels, prompt)
        return whole, [rule.with_gap(places.start, count) for rule in rules] + closing

    def _read(
        self,
        rows: frozenset[int],
        areas: Mapping[str, Area],
        own: Mapping[str, Tensor],
        layout: Layout,
        pixels: Tensor,
        prompt: Tensor,
    ) -> Iterator[Rule]:
        """Yield the rules of one image, some of whose tokens read some of the texts."""
        assert self.readers is not None
        read = torch.zeros_like(pixels)
        for name, tokens in own.items():
            readers = torch.zeros_like(pixels)
            if name in areas:
                readers[layout.image] = grid_mask(areas[name], layout.grid, empty=True).ravel()
            read |= readers
            yield Rule(-math.inf, pixels & ~readers, tokens, rows=rows)
            if self.readers.strength and readers.any():
                yield Rule(self.readers.strength, readers, tokens, rows=rows)
            if self.readers.confined:
                yield Rule(-math.inf, tokens, pixels & ~readers, rows=rows)
        if self.readers.alone and read.any():
            yield Rule(-math.inf, read, prompt, rows=rows)

    @contextmanager
    def appended(self, transformer: nn.Module, family: Family) -> Iterator[None]:
        """Append their tokens to the text of every forward inside the `with`, after the transformer's own inputs.

        Args:
            transformer: the model.
            family: of it.
        """
        check_appendable(family)
        width = transformer.config.joint_attention_dim
        if self.states.shape[1] != width:
            raise InputError(
                f"expected concepts of {width} features a token, got {self.states.shape[1]}: pass "
                "encode_concepts(model, ['sky']) of the same model"
            )
        embedder, *positions = (getattr(transformer, name) for name in family.appendable)
        length = 0

        def append(module: nn.Module, args: tuple) -> tuple:
            nonlocal length
            text, *others = args
            length = text.shape[1]
            return torch.cat([text, self.states.to(text).expand(len(text), -1, -1)], dim=1), *others

        def place(module: nn.Module, args: tuple) -> tuple:
            # text has no place of its own there: its ids are zeros
            ids, *others = args
            return torch.cat([ids[:length], ids.new_zeros(len(self.states), ids.shape[1]), ids[length:]]), *others

        with ExitStack() as undo:
            undo.callback(add_hook(embedder, append, before=True))
            for module in positions:
                undo.callback(add_hook(module, place, before=True))
            yield


def check_appendable(family: Family) -> None:
    """Raise an InputError where a family's text tokens have positions, so that none can be appended."""
    if not family.appendable:
        able = " and ".join(known.name for known in FAMILIES if known.appendable)
        raise InputError(
            f"expected a model whose text tokens have no positions with concepts, got one of the family {family.name}: "
            f"use one of {able}, or put the words into the prompt"
        )


def encode_concepts(model: Any, names: Sequence[str]) -> Concepts:
    """Encode words outside the prompt, each as a prompt of its own, of which the word's tokens are taken.

    Args:
        model: backbone or pipeline of a family whose text tokens have no positions: SD3 and FLUX.1.
        names: words or phrases, such as ["sky", "red car"].

    Raises:
        InputError: no names, one twice or one without letters, a model without text encoders, or a family whose text
            cannot be appended to.
    """
    return encode_outside(model, as_names(names, "concepts", example="['sky', 'cat']"), ("word",))


def encode_outside(
    model: Any, names: Sequence[str], kinds: Sequence[Kind], *, together: bool = False, readers: Readers | None = None
) -> Concepts:
    """Encode texts outside the prompt, each as a prompt of its own.

    Args:
        model: see `encode_concepts`.
        names: texts, each one once.
        kinds: of the tokens that are taken of each.
        together, readers: see `Concepts`.
    """
    family = family_of(transformer_of(model))
    check_appendable(family)
    states, spans, count = [], [], 0
    for name in names:
        (prompt,) = encoded_prompts(model, family, name)
        tokens = prompt.indices(*kinds)
        if not prompt.words:
            raise InputError(f"expected concepts with letters, got {name!r}: name things such as 'sky'")
        if not tokens:
            own = ", ".join(dict.fromkeys(token.kind for token in prompt.tokens))
            raise InputError(f"expected kinds of tokens that {name!r} has, {own}, got {', '.join(kinds)}: name 'word'")
        states.append(prompt.inputs[(family.streams or family.text_inputs)[0]][0][list(tokens)])
        spans.append(tuple(range(count, count + len(tokens))))
        count += len(tokens)
    return Concepts(tuple(names), torch.cat(states), tuple(spans), together, readers)
