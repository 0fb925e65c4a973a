"""Edit attention inside a layer, exactly and without an N x N map, and guide sampling by such edits.

An edit of image-to-text attention is a matrix M on the text axis, A_I2T becomes A_I2T M, so that the output of an image
token changes by A_I2T (M - 1) V_text, and only this thin product is computed. Edits of whole heads are in `patching`.
The model itself is never touched.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv1d, pad

from seg4diff_tools.attention.bias import JointTokens
from seg4diff_tools.attention.intercept import announce, intercept
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.attention.patching import HeadEdit
from seg4diff_tools.attention.selection import Forward, Selection, select
from seg4diff_tools.attention.shapes import JointHeads
from seg4diff_tools.attention.turns import Turns
from seg4diff_tools.errors import InputError, RecordingError, shown
from seg4diff_tools.families import family_of, model_lock, sampling_loop, transformer_of, uncompiled
from seg4diff_tools.families._private import add_hook
from seg4diff_tools.indices import as_indices, as_int, as_positive

Indices = int | Iterable[int]
TextMap = Float[Tensor, "text edited"]
Keep = Literal["text", "joint", "nothing"]


@dataclass(frozen=True, eq=False)
class Edit:
    """A linear change of image-to-text attention along the text axis.

    Args:
        name: for titles and tables.
        matrix: from the number of text tokens to M, [text text]; column j says what the new attention to token j is
            made of.
        keep: which sum stays as it was. "text": what an image token gives to all text together; "joint": what it gives
            to all keys, image and text, which is 1; "nothing": neither, what is taken away is missing.
    """

    name: str
    matrix: Callable[[int], TextMap]
    keep: Keep = "text"


def blur(sigma: float = 9.0, kernel: int = 5) -> Edit:
    """Gaussian blur along the text axis, after the softmax, edges reflected.

    Args:
        sigma: deviation in tokens.
        kernel: how many tokens the blur reaches over; odd.

    Source: Seg4Diff, arXiv 2509.18096, section 3.3, Fig 5 (sigma 9, kernel 5). Reflection alone changes the sum of a
    row a little; it is scaled back, since the paper keeps each image token's share of text.
    """
    sigma = as_positive(sigma, "sigma")
    kernel = as_int(kernel, "kernel", 1)
    if kernel % 2 == 0:
        raise InputError(f"expected kernel, an odd number, got {kernel}: pass kernel={kernel + 1}")

    def matrix(tokens: int) -> TextMap:
        if kernel // 2 >= tokens:
            raise InputError(
                f"expected a kernel below {2 * tokens}, got {kernel}: {tokens} text tokens reflect no more"
            )
        distance = torch.arange(kernel, **_PLAIN) - kernel // 2
        weights = (-0.5 * (distance / sigma) ** 2).softmax(0)
        padded = pad(_identity(tokens)[:, None], (kernel // 2, kernel // 2), mode="reflect")
        return conv1d(padded, weights[None, None]).squeeze(1)

    return Edit(f"blur {sigma:g}", matrix)


def drop(tokens: Sequence[int] | None = None, keep: Keep = "joint") -> Edit:
    """Remove the attention of image tokens to these text tokens.

    Args:
        tokens: positions in the text; None for all of it, which cuts the image off from the words.
        keep: "joint" shares out what they got over all other keys, as masking them would (an image token that gives
            nearly all to them leaves few exact digits); "nothing" lets it be missing.
    """
    if keep not in ("joint", "nothing"):
        raise InputError(f"expected keep, 'joint' or 'nothing', got {keep!r}: pass one of them")
    chosen = _tokens(tokens, "tokens")
    return Edit("drop", lambda count: _identity(count).index_fill(1, _positions(chosen, count), 0.0), keep)


def swap(first: Sequence[int], second: Sequence[int]) -> Edit:
    """Exchange the attention that two words get; a span of several tokens shares it out evenly.

    Args:
        first, second: positions in the text, from `Prompt.span`; none may be in both.
    """
    first, second = as_indices(first, "first"), as_indices(second, "second")
    if set(first) & set(second):
        raise InputError(
            f"expected first and second without a common token, got {first} and {second}: choose two words"
        )

    def matrix(count: int) -> TextMap:
        one, other = _positions(first, count), _positions(second, count)
        moved = _identity(count)
        moved[torch.cat([one, other])] = 0.0
        moved[one[:, None], other] = 1 / len(other)
        moved[other[:, None], one] = 1 / len(one)
        return moved

    return Edit("swap", matrix)


def average(tokens: Sequence[int] | None = None) -> Edit:
    """Give all these text tokens the mean of their attention, so that words cannot be told apart.

    Args:
        tokens: positions in the text; None for all of it.
    """
    wanted = _tokens(tokens, "tokens")

    def matrix(count: int) -> TextMap:
        chosen = _positions(wanted, count)
        mean = _identity(count)
        mean[chosen[:, None], chosen] = 1 / len(chosen)
        return mean

    return Edit("average", matrix)


def edited_output(call: JointAttention, edit: Edit, heads: Sequence[int] | None = None) -> JointHeads:
    """Compute the output of an attention whose image-to-text part is edited.

    Args:
        call: the attention as it is computed.
        edit: what to change.
        heads: that are edited; None for all.

    Returns:
        The output, [batch heads tokens dim]; what text tokens read is as it was.
    """
    value = call.value[:, :, call.text].float()
    matrix = edit.matrix(call.text_tokens).to(value)
    # the last column counts mass: what an image token gives to all text, before and after
    before = torch.cat([value, value.new_ones(*value.shape[:3], 1)], -1)
    after = matrix @ before
    output = call.output.clone()
    for head in range(value.shape[1]) if heads is None else heads:
        attention = call.weights("i2t", heads=[head]).squeeze(1)
        read, mass = (attention @ before[:, head]).split([value.shape[-1], 1], -1)
        reads, masses = (attention @ after[:, head]).split([value.shape[-1], 1], -1)
        whole = call.output[:, head, call.image].float()
        if edit.keep == "text":
            changed = whole - read + reads * (mass / masses.clamp(min=torch.finfo(masses.dtype).tiny))
        else:
            changed = whole - read + reads
            # of an image token that looked at text alone, nothing is left to share out
            changed = changed / (1 - mass + masses).clamp(min=1e-6) if edit.keep == "joint" else changed
        output[:, head, call.image] = changed.to(output)
    return output


@contextmanager
def apply_edit(
    model: Any,
    edit: Edit | HeadEdit,
    layers: Indices | None = None,
    *,
    heads: Indices | None = None,
    tokens: JointTokens | None = None,
    steps: Indices | None = None,
    branches: str | Sequence[str] | None = None,
) -> Iterator[None]:
    """Edit the attention of some layers and heads in every forward inside the `with`.

    Recorders inside or around it see the attention before the edit. Edits of different heads go together; of several
    edits of one head, each starts from the output that those entered before it left, but what an `Edit` moves in it is
    worked out from the attention before all of them.

    Args:
        model: backbone, pipeline or transformer.
        edit: what to change: image-to-text attention, or the outputs of heads (`ablate`, `patch`).
        layers, heads: 0-based; None for all, with `patch` for those that were recorded.
        tokens: whose outputs change; None for all that the edit concerns.
        steps: of sampling, counted from 0; None for all.
        branches: of guidance, "cond" or "uncond"; None for all that run.

    Raises:
        InputError: a layer or head out of range, tokens that the text does not have, or outputs that do not fit.
        RecordingError: inside the `with`, steps of a batch whose images are at different ones, or `patch` in a run with
            other steps than the recorded one.

    Source: Seg4Diff, arXiv 2509.18096, section 3.3, figures 5 and 18.
    """
    transformer = transformer_of(model)
    selection = _selection(transformer, edit, layers, heads, tokens, steps, branches)
    with _applied(transformer, edit, selection, Forward()):
        yield


@contextmanager
def perturbed_guidance(
    model: Any,
    edit: Edit | HeadEdit,
    layers: Indices | None,
    scale: float,
    *,
    heads: Indices | None = None,
    tokens: JointTokens | None = None,
    steps: Indices | None = None,
) -> Iterator[None]:
    """Guide every forward inside the `with` away from what the model predicts with its attention perturbed.

    The prediction becomes eps + scale (eps - eps_perturbed). In a pipeline that runs with classifier-free guidance of
    weight w the perturbed prediction is the prompt's, and the whole is eps_uncond + w (eps_cond - eps_uncond) + scale
    (eps_cond - eps_perturbed). Each step costs one further forward of the prompt's part: twice without classifier-free
    guidance, one and a half times with it.

    Args:
        model: backbone, pipeline or transformer; the weight w is that of the pipeline that runs.
        edit: the perturbation.
        layers: 0-based layers to perturb; None for all.
        scale: strength; 0 changes nothing.
        heads, tokens: that are perturbed, see `apply_edit`.
        steps: of sampling that are guided; the others cost nothing. None for all.

    Raises:
        InputError: a negative scale, a layer or head out of range, or tokens that the text does not have.
        RecordingError: the pipeline runs with perturbed attention guidance of its own (PAG).

    Source: Seg4Diff, arXiv 2509.18096, section 3.3, figures 6 and 32.
    """
    transformer = transformer_of(model)
    selection = _selection(transformer, edit, layers, heads, tokens, steps, None)
    scale = as_positive(scale, "scale", zero=True)
    family, turns = family_of(transformer), Turns()

    def guide(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        inputs = family.forward_inputs(module, args, kwargs)
        if inputs.get("skip_layers"):
            return
        loop = sampling_loop(transformer)
        weight = None if loop is None else loop.weight
        if loop is not None and loop.perturbed:
            raise RecordingError(
                "expected perturbed_guidance with a plain pipeline, got one with PAG, perturbed attention guidance of "
                "its own: pass pag_scale=0.0, or leave perturbed_guidance out"
            )
        turn = turns.see(family, transformer, inputs)
        if not (read := selection.rows(turn, turn.rows).get("cond")):
            return
        part = {name: _part(value, read, turn.rows, family.image_axis.get(name, 0)) for name, value in inputs.items()}
        with _applied(module, edit, selection, Forward(of=turn)):
            # not module(...): for its hooks, recorders among them, this is no step of its own
            announce(module, (), part)
            worse = module.forward(**(part | {"return_dict": False}))[0]
        strength = scale / (1.0 if weight is None else weight + family.guidance_offset)
        for sample, other in zip(output[0][read], worse, strict=True):
            sample += strength * (sample - other)

    # another thread's forwards would be guided too
    with model_lock(transformer).hold("perturbed guidance"), uncompiled():
        remove = add_hook(transformer, guide, with_kwargs=True)
        try:
            yield
        finally:
            remove()


def check_edit(edit: Any) -> None:
    """Raise an InputError for something else than an edit."""
    if not isinstance(edit, Edit | HeadEdit):
        raise InputError(
            f"expected edit, an Edit or a HeadEdit, got {shown(edit)}: pass blur(), drop(), swap(...), average(), "
            "ablate() or patch(...)"
        )


def _selection(
    transformer: nn.Module, edit: Edit | HeadEdit, layers: Any, heads: Any, tokens: Any, steps: Any, branches: Any
) -> Selection:
    """Check an edit and where it applies."""
    check_edit(edit)
    source = edit.source if isinstance(edit, HeadEdit) else None
    if source is not None:
        layers = source.layers if layers is None else layers
        heads = source.heads if heads is None else heads
    selection = select(transformer, layers, heads, tokens, steps, branches)
    if source is not None:
        source.check(selection, family_of(transformer).name)
    return selection


@contextmanager
def _applied(transformer: nn.Module, edit: Edit | HeadEdit, selection: Selection, forward: Forward) -> Iterator[None]:
    """Apply an edit where it was selected; the forward is looked at only where something depends on it."""
    heads = list(selection.heads)

    def change(call: JointAttention) -> Tensor | None:
        chosen = selection.mask(call, forward)[:, None, :, None] if selection.timed else None
        if chosen is not None and not chosen.any():
            return None
        if isinstance(edit, Edit):
            output = edited_output(call, edit, heads)
        else:
            output = call.output.clone()
            output[:, heads] = edit.change(call, heads, forward)
        return output if chosen is None else output.where(chosen, call.output)

    looks = selection.timed or (isinstance(edit, HeadEdit) and edit.source is not None)
    with intercept(transformer, change, layers=selection.layers, bias=forward.see if looks else None):
        yield


def _part(value: Any, rows: slice, batch: int, axis: int) -> Any:
    """The rows of an input that has one for each of the batch; another input as it is."""
    if isinstance(value, list):
        return value[rows] if len(value) == batch else value
    if isinstance(value, Tensor) and value.ndim > axis and value.shape[axis] == batch:
        return value[(slice(None),) * axis + (rows,)]
    return value


_PLAIN: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}


def _identity(count: int) -> TextMap:
    return torch.eye(count, **_PLAIN)


def _tokens(tokens: Any, name: str) -> list[int] | None:
    return None if tokens is None else as_indices(tokens, name)


def _positions(tokens: Sequence[int] | None, count: int) -> Tensor:
    chosen = list(range(count)) if tokens is None else as_indices(tokens, "tokens", count)
    return torch.tensor(chosen, dtype=torch.long, device="cpu")
