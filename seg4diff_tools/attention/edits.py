"""Change what the image reads from words inside a layer, exactly and with no N x N map: edits, and guidance by them.

An edit is a matrix M on the text axis, A_I2T becomes A_I2T M, so that the output of an image token changes by
A_I2T (M - 1) V_text, and only this thin product is computed. The model itself is never touched.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv1d, pad

from seg4diff_tools.attention.intercept import announce, intercept
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.attention.shapes import JointHeads
from seg4diff_tools.errors import InputError
from seg4diff_tools.families import family_of, guidance_weight, transformer_of, uncompiled

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

    Source: Seg4Diff, arXiv 2509.18096, section 3.3, Fig 5 (sigma 9, kernel 5). Reflection alone changes the sum of a row
    a little; it is scaled back, since the paper keeps each image token's share of text.
    """
    if sigma <= 0 or kernel < 1 or kernel % 2 == 0:
        raise InputError(f"expected a positive sigma and an odd kernel, got sigma={sigma} and kernel={kernel}")

    def matrix(tokens: int) -> TextMap:
        if kernel // 2 >= tokens:
            raise InputError(f"expected a kernel that {tokens} text tokens can reflect, got {kernel}")
        distance = torch.arange(kernel) - kernel // 2
        weights = (-0.5 * (distance / sigma) ** 2).softmax(0)
        padded = pad(torch.eye(tokens)[:, None], (kernel // 2, kernel // 2), mode="reflect")
        return conv1d(padded, weights[None, None]).squeeze(1)

    return Edit(f"blur {sigma:g}", matrix)


def drop(tokens: Sequence[int] | None = None, keep: Keep = "joint") -> Edit:
    """No attention of image tokens to these text tokens.

    Args:
        tokens: positions in the text; None for all of it, which cuts the image off from the words.
        keep: "joint" shares out what they got over all other keys, as masking them would (an image token that gives
            nearly all to them leaves few exact digits); "nothing" lets it be missing.
    """
    return Edit("drop", lambda count: torch.eye(count).index_fill(1, _positions(tokens, count), 0.0), keep)


def swap(first: Sequence[int], second: Sequence[int]) -> Edit:
    """Two words trade the attention that they get; a span of several tokens shares it out evenly.

    Args:
        first, second: positions in the text, from `Prompt.span`; none may be in both.
    """
    if set(first) & set(second):
        raise InputError(f"expected two spans with no token in common, got {tuple(first)} and {tuple(second)}")

    def matrix(count: int) -> TextMap:
        one, other = _positions(first, count), _positions(second, count)
        moved = torch.eye(count)
        moved[torch.cat([one, other])] = 0.0
        moved[one[:, None], other] = 1 / len(other)
        moved[other[:, None], one] = 1 / len(one)
        return moved

    return Edit("swap", matrix)


def average(tokens: Sequence[int] | None = None) -> Edit:
    """All these text tokens get the mean of the attention that they got, so that words cannot be told apart.

    Args:
        tokens: positions in the text; None for all of it.
    """

    def matrix(count: int) -> TextMap:
        chosen = _positions(tokens, count)
        mean = torch.eye(count)
        mean[chosen[:, None], chosen] = 1 / len(chosen)
        return mean

    return Edit("average", matrix)


def edited_output(call: JointAttention, edit: Edit) -> JointHeads:
    """What the attention would put out if its image-to-text part were edited.

    Args:
        call: the attention as it is computed.
        edit: what to change.

    Returns:
        The output, [batch heads tokens dim]; what text tokens read is as it was.
    """
    value = call.value[:, :, call.text].float()
    matrix = edit.matrix(call.text_tokens).to(value)
    # the last column counts mass: what an image token gives to all text, before and after
    before = torch.cat([value, value.new_ones(*value.shape[:3], 1)], -1)
    after = matrix @ before
    output = call.output.clone()
    for head in range(value.shape[1]):
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
def apply_edit(model: Any, edit: Edit, layers: int | Sequence[int] | None = None) -> Iterator[None]:
    """Edits the image-to-text attention of some layers in every forward inside the `with`.

    Recorders inside or around it see the attention before the edit.

    Args:
        model: backbone, pipeline or transformer.
        edit: what to change.
        layers: 0-based; None for all.

    Raises:
        InputError: a layer out of range, or tokens that the text does not have.

    Source: Seg4Diff, arXiv 2509.18096, section 3.3, figures 5 and 18.
    """
    wanted = [layers] if isinstance(layers, int) else layers
    with intercept(transformer_of(model), lambda call: edited_output(call, edit), layers=wanted):
        yield


@contextmanager
def perturbed_guidance(model: Any, edit: Edit, layers: int | Sequence[int] | None, scale: float) -> Iterator[None]:
    """Guides every forward inside the `with` away from what the model predicts with its attention perturbed.

    The prediction becomes eps + scale (eps - eps_perturbed). In a pipeline that runs with classifier-free guidance of
    weight w the perturbed prediction is the prompt's, and the whole is
    eps_uncond + w (eps_cond - eps_uncond) + scale (eps_cond - eps_perturbed). Each step costs one further forward of the
    prompt's part: twice without classifier-free guidance, one and a half times with it.

    Args:
        model: backbone or pipeline (a bare transformer, outside of a sampling loop).
        edit: the perturbation.
        layers: 0-based layers to perturb; None for all.
        scale: strength; 0 changes nothing.

    Raises:
        InputError: a negative scale, or as in `apply_edit`.

    Source: Seg4Diff, arXiv 2509.18096, section 3.3, figures 6 and 32.
    """
    if scale < 0:
        raise InputError(f"expected a guidance scale of at least 0, got {scale}")
    transformer, pipeline = transformer_of(model), getattr(model, "pipe", model)
    family, turns = family_of(transformer), Counter[float]()

    def guide(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        inputs = family.forward_inputs(module, args, kwargs)
        if inputs.get("skip_layers"):
            return
        batch, weight = len(inputs[family.latents]), guidance_weight(pipeline)
        rows = slice(0, batch)
        if weight is not None and family.sequential:
            # the branch of this forward follows from how many ran at its timestep before
            timestep = family.timesteps(inputs)[0].item()
            branch = family.branches[turns[timestep] % len(family.branches)]
            turns[timestep] += 1
            if branch != "cond":
                return
        elif weight is not None:
            share = batch // len(family.branches)
            rows = slice(family.branches.index("cond") * share, (family.branches.index("cond") + 1) * share)
        part = {
            name: value[rows] if isinstance(value, (Tensor, list)) and _rows_of(value) == batch else value
            for name, value in inputs.items()
        }
        with apply_edit(module, edit, layers):
            # not module(...): for its hooks, recorders among them, this is no step of its own
            announce(module, (), part)
            worse = module.forward(**(part | {"return_dict": False}))[0]
        strength = scale / (1.0 if weight is None else weight + family.surplus)
        for sample, other in zip(output[0][rows], worse, strict=True):
            sample += strength * (sample - other)

    handle = transformer.register_forward_hook(guide, with_kwargs=True)
    try:
        with uncompiled():
            yield
    finally:
        handle.remove()


def _rows_of(value: Tensor | list) -> int | None:
    return None if isinstance(value, Tensor) and not value.ndim else len(value)


def _positions(tokens: Sequence[int] | None, count: int) -> Tensor:
    chosen = list(range(count) if tokens is None else tokens)
    if not chosen or min(chosen) < 0 or max(chosen) >= count or len(set(chosen)) < len(chosen):
        raise InputError(f"expected text tokens from 0 to {count - 1}, each one once, got {chosen}")
    return torch.tensor(chosen)
