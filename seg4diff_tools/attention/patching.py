"""Outputs of attention heads: record them in one run, put them into another, or take them away.

A head's output is what its attention reads, A V, before the output projection mixes the heads of a layer. Putting that
of another run in its place asks what the head carries (activation patching: Vig et al., arXiv 2004.12265; Meng et al.,
arXiv 2202.05262); taking it away asks what hangs on it (Michel et al., arXiv 1905.10650).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from seg4diff_tools.attention.bias import EVERY_TOKEN, JointTokens
from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.attention.selection import Forward, Selection, select
from seg4diff_tools.attention.shapes import JointHeads
from seg4diff_tools.attention.turns import Turn
from seg4diff_tools.errors import InputError, RecordingError, instance_of, one_of, readable
from seg4diff_tools.families import family_of, sampling_loop, transformer_of
from seg4diff_tools.indices import as_int


@dataclass(eq=False)
class HeadOutputs:
    """Outputs of attention heads of one run, from `record_outputs`.

    Args:
        family: name of the model's family.
        layers, heads: that were recorded, 0-based.
        tokens: whose outputs.
        values: by (step, branch, layer), [image head token dim], in main memory and in the model's number format.
        timesteps: by step, from 0 to 1000.
        every_step: whether each step of the run was wanted.
    """

    family: str
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    tokens: JointTokens
    values: dict[tuple[int, str, int], Tensor] = field(default_factory=dict)
    timesteps: dict[int, float] = field(default_factory=dict)
    every_step: bool = True

    @property
    def branches(self) -> tuple[str, ...]:
        """Branches of guidance that ran."""
        return tuple(dict.fromkeys(branch for _, branch, _ in self.values))

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return sum(value.nbytes for value in self.values.values())

    def __repr__(self) -> str:
        sizes = f"{len(self.layers)} layers, {len(self.heads)} heads, {len(self.timesteps)} steps"
        return f"HeadOutputs({self.family}: {sizes}, {' and '.join(self.branches) or 'nothing yet'})"

    def at(self, turn: Turn, branch: str, layer: int) -> Tensor | None:
        """Return the outputs of a layer at the place of a forward; None where they were not wanted.

        Raises:
            RecordingError: images at different steps, or a run with other steps than the recorded one.
        """
        step, timestep = turn.place("patch")
        recorded = self.timesteps.get(step)
        if recorded is None and not self.every_step:
            return None
        if recorded is None or abs(recorded - timestep) > 1:
            found = "no such step" if recorded is None else f"timestep {recorded:.0f}"
            raise RecordingError(
                f"expected a run with the steps of the recorded one, got timestep {timestep:.0f} in step "
                f"{step}, where the recorded one has {found}: take as many steps in both"
            )
        return self.values.get((step, branch, layer))

    def check(self, selection: Selection, family: str) -> None:
        """Check that they hold what a patch asks for.

        Raises:
            InputError: outputs of another family, none at all, or a layer, head, step or branch that they lack.
        """
        if family != self.family:
            raise InputError(f"expected outputs of a model of family {family}, got {self.family}: record this model")
        if not self.values:
            raise InputError("expected outputs of a run, got none: run the model inside record_outputs first")
        held = {"layers": self.layers, "heads": self.heads, "steps": self.timesteps, "branches": self.branches}
        for name, own in held.items():
            if missing := [each for each in getattr(selection, name) or () if each not in own]:
                raise InputError(f"expected {name} that the outputs hold, {list(own)}, got {missing[0]!r}: record it")


Change = Callable[[JointAttention, Sequence[int], Forward], JointHeads]


@dataclass(frozen=True, eq=False)
class HeadEdit:
    """A change of what heads pass on, for `apply_edit` and `perturbed_guidance`.

    Args:
        name: for titles and tables.
        change: from an attention, heads and the running forward to the new outputs of these heads, [batch heads tokens
            dim].
        source: outputs of another run that it needs; None for none.
    """

    name: str
    change: Change
    source: HeadOutputs | None = None


def ablate(to: Literal["zero", "mean"] = "zero") -> HeadEdit:
    """Take away the outputs of heads.

    Args:
        to: "zero"; or "mean" over the image tokens for each of them, and so for text tokens, for text outside the
            prompt and for all others: what differs from token to token is lost, what all have in common stays.

    Source: Michel et al., arXiv 1905.10650 (zero).
    """
    one_of(to, "to", ("zero", "mean"))

    def change(call: JointAttention, heads: Sequence[int], forward: Forward) -> JointHeads:
        output = call.output[:, list(heads)]
        if to == "zero":
            return torch.zeros_like(output)
        others = torch.ones(output.shape[2], dtype=torch.bool, device=output.device)
        outside = slice(0, 0) if call.concepts is None else call.concepts
        others[call.image] = others[call.text] = others[outside] = False
        means = output.clone()
        for part in (call.image, call.text, outside, others):
            if (own := output[:, :, part]).shape[2]:
                means[:, :, part] = own.mean(2, keepdim=True)
        return means

    return HeadEdit(f"ablate to {to}", change)


def patch(outputs: HeadOutputs, tokens: JointTokens | None = None) -> HeadEdit:
    """Put outputs of heads of another run in the place of a run's own.

    In `apply_edit`, layers, heads and steps are those that were recorded unless named, and so are branches of guidance.

    Args:
        outputs: from `record_outputs`; those of one image serve all images of a batch.
        tokens: where they go: as many tokens as were recorded, in the same order, such as another word of as many
            tokens. None: to the tokens that were recorded.
    """
    instance_of(outputs, HeadOutputs, "outputs", "those of record_outputs(backbone)")
    if tokens is not None:
        instance_of(tokens, JointTokens, "tokens", "JointTokens(image=True)")
    places = outputs.tokens if tokens is None else tokens

    def change(call: JointAttention, heads: Sequence[int], forward: Forward) -> JointHeads:
        turn = forward.turn
        assert turn is not None
        changed = call.output[:, list(heads)]
        at = forward.choose(places, call).nonzero().squeeze(1)
        own = [outputs.heads.index(head) for head in heads]
        for branch in outputs.branches:
            rows = turn.rows_of(branch)
            if not rows or rows.stop > len(changed) or (value := outputs.at(turn, branch, call.layer)) is None:
                continue
            images, _, count, width = value.shape
            wanted = {"images": turn.images, "tokens": len(at), "features a head": changed.shape[3]}
            for (name, number), held in zip(wanted.items(), (images, count, width), strict=True):
                if held != number and not (name == "images" and held == 1):
                    raise InputError(
                        f"expected outputs of {number} {name}, got those of {held} for layer {call.layer}: record and "
                        "patch runs of one size, and as many tokens"
                    )
            changed[rows.start : rows.stop, :, at] = value[:, own].to(changed)
        return changed

    return HeadEdit("patch", change, outputs)


@contextmanager
def record_outputs(
    model: Any,
    layers: int | Iterable[int] | None = None,
    *,
    heads: int | Iterable[int] | None = None,
    tokens: JointTokens | None = None,
    steps: int | Iterable[int] | None = None,
    branches: str | Sequence[str] | None = None,
    memory_budget: int = 2 << 30,
) -> Iterator[HeadOutputs]:
    """Record the outputs of attention heads of the one run inside the `with`, for `patch`.

    Inside an edit they are the edited ones, around it those before. Further forwards, as of perturbed guidance, are
    left out.

    Args:
        model: backbone, pipeline or transformer.
        layers, heads: 0-based; None for all.
        tokens: whose outputs; None for all of image, text and others, without text outside the prompt.
        steps: of sampling, counted from 0; None for all.
        branches: of guidance, "cond" or "uncond"; None for all that run.
        memory_budget: bytes; the need of all steps is estimated before the first output is kept.

    Yields:
        The outputs, filled as the model runs.

    Raises:
        InputError: a layer, head, token, step or branch that cannot be.
        RecordingError: inside the `with`, a second run, images at different steps, or more than the budget.

    Example:
        >>> with record_outputs(backbone, layers=4) as outputs:  # doctest: +SKIP
        ...     backbone.generate("a blue car")
        >>> with apply_edit(backbone, patch(outputs), heads=2):  # doctest: +SKIP
        ...     picture = backbone.generate("a red car")[0]
    """
    transformer = transformer_of(model)
    family, forward = family_of(transformer), Forward()
    selection = select(transformer, layers, heads, tokens, steps, branches)
    budget = as_int(memory_budget, "memory_budget", 1)
    whose = EVERY_TOKEN if tokens is None else tokens
    outputs = HeadOutputs(family.name, selection.layers, selection.heads, whose, every_step=steps is None)

    def check_budget(kept: Tensor) -> None:
        loop = sampling_loop(transformer)
        run = range(1 if loop is None or loop.steps is None else loop.steps)
        count = len(run) if selection.steps is None else len(set(run) & set(selection.steps))
        running = family.branches if loop is not None and loop.weight is not None else ("cond",)
        sides = len(set(running) & set(selection.branches or running))
        need = kept.nbytes * len(selection.layers) * count * sides
        if need > budget:
            raise RecordingError(
                f"expected outputs within memory_budget={budget} ({readable(budget)}), got {readable(need)}: "
                f"{count} steps x {sides} branches x {len(selection.layers)} layers x {readable(kept.nbytes)}; record "
                f"fewer layers, heads, steps or tokens, or pass memory_budget={need}"
            )

    def keep(call: JointAttention) -> None:
        turn = forward.turn
        assert turn is not None
        if turn.beside:
            return
        step, timestep = turn.place("record_outputs")
        at = forward.choose(whose, call).nonzero().squeeze(1)
        for branch, rows in selection.rows(turn, len(call.output)).items():
            key = (step, branch, call.layer)
            if key in outputs.values:
                raise RecordingError(
                    f"expected one run inside record_outputs, got a second one at step {step}: draw all images in "
                    "one batch, or record each run in a `with` of its own"
                )
            kept = call.output[rows, list(selection.heads)][:, :, at].detach()
            if not outputs.values:
                check_budget(kept)
            outputs.values[key], outputs.timesteps[step] = kept.cpu(), timestep

    with intercept(transformer, keep, layers=selection.layers, bias=forward.see):
        yield outputs
