"""Words outside the prompt: text tokens that read the image while neither image nor prompt reads them.

They run through the model beside the prompt, so that any list of words can be asked of one forward: the prediction and
the maps of the prompt are those without them, within rounding (ConceptAttention, Helbling et al., arXiv 2502.04320).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seg4diff_tools.attention.groups import Rule
from seg4diff_tools.attention.tokens import encoded_prompts, span_weights
from seg4diff_tools.errors import InputError, as_names
from seg4diff_tools.families import FAMILIES, Family, Layout, family_of, transformer_of
from seg4diff_tools.families._private import add_hook


@dataclass(frozen=True, eq=False)
class Concepts:
    """Words outside the prompt, encoded.

    Args:
        names: the words or phrases.
        states: features of their tokens, as the transformer reads those of a prompt, one concept after the other.
        spans: tokens of each.
    """

    names: tuple[str, ...]
    states: Float[Tensor, "token feature"]
    spans: tuple[tuple[int, ...], ...]

    @property
    def weights(self) -> Float[Tensor, "token concept"]:
        """Weights that average the tokens of each (Seg4Diff, arXiv 2509.18096, equation 10)."""
        return span_weights(self.spans, len(self.states))

    def places(self, layout: Layout) -> slice:
        """Return where their tokens stand in the joint sequence: right after the text."""
        return slice(layout.text.stop, layout.text.stop + len(self.states))

    def outside(self, layout: Layout, rules: Sequence[Rule]) -> tuple[Layout, list[Rule]]:
        """Return layout and rules of a forward with these tokens, which read the image and their own concept alone.

        Args:
            layout: of the forward without them.
            rules: other biases, which do not concern them.
        """
        places, count = self.places(layout), len(self.states)
        moved = count if layout.image.start >= places.start else 0
        image = slice(layout.image.start + moved, layout.image.stop + moved)
        whole = replace(layout, image=image, tokens=layout.tokens + count)
        inside = torch.zeros(whole.tokens, dtype=torch.bool, device="cpu")
        inside[places] = True
        closing = [Rule(-math.inf, ~inside, inside)]
        for span in self.spans:
            own = torch.zeros_like(inside)
            own[places.start + span[0] : places.start + span[-1] + 1] = True
            read = own.clone()
            read[image] = True
            closing.append(Rule(-math.inf, own, ~read))
        return whole, [rule.with_gap(places.start, count) for rule in rules] + closing

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
    names = as_names(names, "concepts", example="['sky', 'cat']")
    family = family_of(transformer_of(model))
    check_appendable(family)
    states, spans, count = [], [], 0
    for name in names:
        (prompt,) = encoded_prompts(model, family, name)
        words = prompt.indices("word")
        if not prompt.words:
            raise InputError(f"expected concepts with letters, got {name!r}: name things such as 'sky'")
        states.append(prompt.inputs[(family.streams or family.text_inputs)[0]][0][list(words)])
        spans.append(tuple(range(count, count + len(words))))
        count += len(words)
    return Concepts(names, torch.cat(states), tuple(spans))
