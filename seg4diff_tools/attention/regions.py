"""Second prompts and LoRAs that are confined to a part of the picture while it is drawn.

A second prompt is text outside the prompt (see `concepts`) that the image tokens of its area read. A LoRA adds to the
outputs of linear layers; here it does so in the rows of an area's image tokens alone. The model is never touched.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from seg4diff_tools.attention.areas import Area, as_area, grid_mask
from seg4diff_tools.attention.concepts import Readers, encode_outside
from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.errors import InputError, RecordingError, instance_of, list_of, shown, some_of
from seg4diff_tools.families import Layout, family_of, model_lock, transformer_of
from seg4diff_tools.families._private import add_hook, uncompiled
from seg4diff_tools.indices import as_indices, scalar
from seg4diff_tools.prompts import Kind

Regions = Mapping[str, Area]
Role = Literal["image", "joint", "other"]
TEXT_LAYERS = {"add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context"}
"""Parts of a double-stream block that see text tokens alone."""


@contextmanager
def regional_prompts(
    model: Any,
    regions: Regions | Sequence[Regions],
    *,
    strength: float = 0.0,
    alone: bool = False,
    confined: bool = False,
    kinds: Kind | Sequence[Kind] = ("start", "word", "end"),
    steps: int | Sequence[int] | None = None,
) -> Iterator[None]:
    """Let parts of the picture read prompts of their own in every forward inside the `with`, beside the one that runs.

    The tokens of such a second prompt run through the model beside those of the first. The image tokens of its area
    read them, in the branches that read the prompt; no other token does. They read the image and each other, not the
    first prompt. The pooled text that scales and shifts all tokens stays that of the first prompt.

    Args:
        model: backbone or pipeline of SD3 or FLUX.1, whose text tokens have no positions.
        regions: for each second prompt the part of the picture that reads it: a boolean mask [y x] of any size, or a
            box (left, top, right, bottom) with values from 0 to 1; or a list of such mappings, one for each image of
            a batch. With an empty mask the picture stays as it is, within rounding.
        strength: added to the scores of the area's image tokens with the second prompt's tokens, a log: log 2 counts
            each of them twice.
        alone: whether the area's image tokens read the second prompt in place of the first.
        confined: whether the second prompt reads its area alone, and not the whole image.
        kinds: kinds of the second prompt's tokens that run along; without pads they are few.
        steps: of sampling, counted from 0 in each pipeline call; None for all.

    Raises:
        InputError: no region, an area that is neither mask nor box, a prompt without letters, a strength that is no
            finite number, or a family whose text cannot be appended to.
        RecordingError: inside the `with`, a recorder asks for words outside the prompt.

    Source: the idea of regional prompting. Departure: pictures are drawn in one pass with one pooled text.

    Example:
        >>> with regional_prompts(pipe, {"a red car": (0, 0, 0.5, 1), "a blue bus": (0.5, 0, 1, 1)}):
        ...     pipe("a red car and a blue bus on road")
    """
    each = [regions] if isinstance(regions, Mapping) else regions
    listed = list_of(each, Mapping, "regions", "regions={'a cat': (0.0, 0.0, 0.5, 1.0)}", "mappings")
    if not all(listed) or not all(isinstance(text, str) for own in listed for text in own):
        raise InputError(
            f"expected regions, a mapping with a second prompt for each image, got {shown(regions)}: pass "
            "regions={'a cat': (0.0, 0.0, 0.5, 1.0)}"
        )
    areas = tuple(
        {text: as_area(area, f"regions[{text!r}]", empty=True) for text, area in own.items()} for own in listed
    )
    number = scalar(strength)
    if isinstance(number, bool) or not isinstance(number, Real) or not math.isfinite(number):
        raise InputError(f"expected strength, a finite number, got {shown(strength)}: pass strength=0.0")
    for name, value in (("alone", alone), ("confined", confined)):
        instance_of(value, bool, name, f"{name}=True")
    chosen = some_of(kinds, "kinds", get_args(Kind))
    wanted = None if steps is None else frozenset(as_indices(steps, "steps"))
    texts = list(dict.fromkeys(text for own in areas for text in own))
    readers = Readers(areas, float(number), alone, confined, wanted)
    concepts = encode_outside(model, texts, chosen, together=False, readers=readers)
    with intercept(transformer_of(model), concepts=concepts):
        yield


@contextmanager
def confine_lora(
    model: Any, area: Area | Sequence[Area] | Mapping[str, Area | Sequence[Area]], *, others: bool = False
) -> Iterator[None]:
    """Apply the model's active LoRA to the image tokens of an area alone in every forward inside the `with`.

    What the LoRA adds to the outputs of linear layers is kept in the rows of these image tokens and dropped in all
    others. Attention still carries it further: tokens elsewhere read keys and values of the area. Parts of a LoRA in
    text encoders are not held back.

    Args:
        model: backbone, pipeline or transformer of SD3 or FLUX.1 with a LoRA, as inside `apply_lora`.
        area: a boolean mask [y x] of any size, or a box (left, top, right, bottom) with values from 0 to 1; a list of
            one for each image of a batch; or either by the name of the adapter, where there are several. An empty mask
            drops all.
        others: whether everything else that the LoRA changes is changed whole: rows of text tokens and of reference
            images, modulation and embedding layers. With an area of everything the model then runs as without
            confinement.

    Raises:
        InputError: a model without a LoRA, an adapter that it lacks, an area that is neither mask nor box, weights
            that are fused or of another kind than plain LoRA, or another family.
        RecordingError: another thread holds the model; inside the `with`, a batch of another number of images than
            areas.

    Example:
        >>> with apply_lora(backbone, "style"), confine_lora(backbone, (0, 0, 0.5, 1)):
        ...     backbone.generate("a cat and a dog on grass")
    """
    transformer = transformer_of(model)
    family = family_of(transformer)
    if family.name not in ("sd3", "flux"):
        raise InputError(
            f"expected confine_lora with SD3 or FLUX.1, whose layers of text and image tokens are known, got one of "
            f"the family {family.name}: apply the LoRA whole"
        )
    instance_of(others, bool, "others", "others=True")
    layers = _lora_layers(transformer)
    present = list(dict.fromkeys(adapter for _, adapter, _ in layers))
    if not present:
        raise InputError("expected a model with a LoRA, got one without: call it inside apply_lora(model, source)")
    given = area if isinstance(area, Mapping) else dict.fromkeys(present, area)
    if unknown := [name for name in given if name not in present]:
        raise InputError(f"expected adapters from {', '.join(present)}, got {unknown[0]!r}: name one of them")
    places = {name: _areas(each, f"area[{name!r}]") for name, each in given.items()}
    running = _Running(others)

    def see(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        running.layout = family.layout(module, family.forward_inputs(module, args, kwargs))

    with ExitStack() as undo:
        undo.enter_context(model_lock(transformer).hold("a LoRA in its place"))
        undo.enter_context(uncompiled())
        undo.callback(add_hook(transformer, see, before=True, with_kwargs=True))
        for role, adapter, module in layers:
            if adapter in places:
                undo.callback(add_hook(module, _Held(running, role, places[adapter])))
        yield


@dataclass(eq=False)
class _Running:
    """The forward that is running."""

    others: bool
    layout: Layout | None = field(default=None, compare=False)


@dataclass(eq=False)
class _Held:
    """Drops what a LoRA adds to rows of tokens outside of an area; a hook on its second matrix."""

    running: _Running
    role: Role
    areas: tuple[Area, ...]

    def __call__(self, module: nn.Module, args: tuple, added: Tensor) -> Tensor:
        if self.role == "other":
            return added if self.running.others else torch.zeros_like(added)
        layout = self.running.layout
        if layout is None or len(added) % len(self.areas):
            raise RecordingError(
                f"expected a forward of the transformer with {len(self.areas)} images or a multiple, got "
                f"{len(added)} rows: give one area, or one for each image"
            )
        kept = self._kept(layout, added.shape[1]).repeat(len(added) // len(self.areas), 1)
        return added.masked_fill(~kept.to(added.device)[..., None], 0)

    def _kept(self, layout: Layout, tokens: int) -> Bool[Tensor, "image token"]:
        """Which rows are kept; reference images stand behind the image, text in front of it."""
        image, behind = layout.image.stop - layout.image.start, 0
        if layout.text.start < layout.image.start:
            behind = layout.tokens - layout.image.stop
        start = tokens - behind - image if self.role == "joint" else 0
        kept = torch.full((len(self.areas), tokens), self.running.others, dtype=torch.bool, device="cpu")
        for row, area in zip(kept, self.areas, strict=True):
            row[start : start + image] = grid_mask(area, layout.grid, empty=True).ravel()
        return kept


def _lora_layers(transformer: nn.Module) -> list[tuple[Role, str, nn.Module]]:
    """Return the second matrix of each active adapter in each layer that has a LoRA, with the tokens that it sees."""
    found: list[tuple[Role, str, nn.Module]] = []
    module: Any
    for name, module in transformer.named_modules():
        second = getattr(module, "lora_B", None)
        if not isinstance(second, nn.ModuleDict) or not len(second) or module.disable_adapters:
            continue
        adapters = [adapter for adapter in module.active_adapters if adapter in second]
        dora = getattr(module, "use_dora", {})
        if module.merged or any(dora.get(adapter) for adapter in adapters):
            raise InputError(
                f"expected a plain LoRA in {name}, got weights that are fused or scaled anew (DoRA): unfuse them, or "
                "apply it whole"
            )
        found += [(_role(name), adapter, second[adapter]) for adapter in adapters]
    return found


def _role(name: str) -> Role:
    """Return which tokens a layer sees, from its name in SD3 or FLUX.1."""
    stack, *inside = name.split(".")
    parts = set(inside)
    if any(part.startswith("norm") for part in parts) or parts & TEXT_LAYERS:
        return "other"
    if stack == "single_transformer_blocks":
        return "joint"
    return "image" if stack in ("transformer_blocks", "x_embedder", "proj_out") else "other"


def _areas(given: Any, name: str) -> tuple[Area, ...]:
    """Return one area for all images, or one for each."""
    if isinstance(given, (list, tuple)) and given and not isinstance(scalar(given[0]), Real):
        return tuple(as_area(each, name, empty=True) for each in given)
    return (as_area(given, name, empty=True),)
