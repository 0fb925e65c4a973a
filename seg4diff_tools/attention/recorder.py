"""Record joint attention while a model runs: labeled arrays, reduced on the device at once."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.joint import DIRECTIONS, JointAttention
from seg4diff_tools.attention.operators import default_workspace
from seg4diff_tools.attention.recording import Recording
from seg4diff_tools.errors import InputError, RecordingError
from seg4diff_tools.families import family_of, guidance_weight, transformer_of
from seg4diff_tools.prompts import Prompt

RECORDED = ("i2t", "t2i", "masses")


class AttentionRecorder:
    """Records the joint attention of every forward inside its `with`; the model's output stays bit-identical.

    What torch.compile has compiled runs as it was written meanwhile, and diffusers' native attention stands in for other
    backends, so that the output is that of the model without either.

    Maps are reduced on the device layer by layer and only the reduced ones are kept, in main memory; the joint map is
    never materialized. A forward of the transformer is one step. With classifier-free guidance, the forward's batch
    holds all branches one after the other, or several forwards at one timestep hold one branch each; the recorder tells
    these apart by whether the parts of the batch are the same latents. Text columns are those of the prompt; a branch
    with fewer text tokens, as some models give to the empty prompt, has NaN in the rest, one with more is cut. Extra forwards with skipped layers (skip-layer
    guidance) are not recorded. Entering again starts a new recording.

    Args:
        model: backbone, pipeline or transformer of a supported family.
        layers: layers to record, 0-based; None records all (up to `stop_after`).
        direction: "i2t", "t2i", "masses" (of all four directions), or several of these.
        heads: "mean" over heads (Seg4Diff, arXiv 2509.18096, Eq 9), "all", or heads to keep apart, in ascending order.
        tokens: text tokens to record; None records all. A dictionary from a name to the tokens of its span records the
            mean over each span (Eq 10).
        prompt: encoded prompt whose words label the tokens; without it, tokens are labeled by their index.
        steps: steps to record, counted from 0 in the order of forwards; None records all.
        branches: guidance branches in the order of the batch, such as ("uncond", "cond") for SD3, or ("cond",). None
            takes the family's branches while the pipeline's own sampling loop runs with guidance, and else calls
            everything "cond". In a sampling loop of your own, or with a bare transformer, name them.
        stop_after: end the forward inside this layer: it has no result then, and the rest of the `with` body is skipped.
        memory_budget: bytes that results and working memory may take together.

    Raises:
        InputError: a layer, head, token, direction or budget that cannot be.
        RecordingError: inside the `with`, when a forward cannot be recorded as asked, or the budget is used up.
    """

    def __init__(
        self,
        model: Any,
        *,
        layers: int | Sequence[int] | None = None,
        direction: str | Sequence[str] = "i2t",
        heads: str | Sequence[int] = "mean",
        tokens: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
        prompt: Prompt | None = None,
        steps: Sequence[int] | None = None,
        branches: Sequence[str] | None = None,
        stop_after: int | None = None,
        memory_budget: int = 2 << 30,
    ):
        self._transformer = transformer_of(model)
        self._pipeline = None if isinstance(model, nn.Module) else getattr(model, "pipe", model)
        self._family = family_of(self._transformer)
        self._blocks = (direction,) if isinstance(direction, str) else tuple(direction)
        unknown = [name for name in self._blocks if name not in RECORDED]
        if unknown or not self._blocks:
            raise InputError(f"direction takes {', '.join(RECORDED)} or several of them; got {direction!r}.")
        last = self._family.layers(self._transformer) - 1 if stop_after is None else stop_after
        wanted = range(last + 1) if layers is None else (layers,) if isinstance(layers, int) else layers
        self._layers = _ascending("layers", wanted, self._family.layers(self._transformer))
        if self._layers[-1] > last:
            raise InputError(f"Layer {self._layers[-1]} cannot be recorded when the forward stops after layer {last}.")
        self._mean = isinstance(heads, str) and heads == "mean"
        if isinstance(heads, str) and heads not in ("mean", "all"):
            raise InputError(f'heads takes "mean", "all" or a list of heads; got {heads!r}.')
        count = self._family.heads(self._transformer)
        self._heads = _ascending("heads", range(count) if isinstance(heads, str) else heads, count)
        self._tokens, self._prompt = tokens, prompt
        self._steps = None if steps is None else _ascending("steps", steps, None)
        self._stated = None if branches is None else (branches,) if isinstance(branches, str) else tuple(branches)
        if self._stated is not None and not len(set(self._stated)) == len(self._stated) > 0:
            raise InputError(f"branches needs names that differ, such as ('uncond', 'cond'); got {branches!r}.")
        self._stop_after = stop_after
        if memory_budget <= 0:
            raise InputError(f"memory_budget is in bytes and has to be positive; got {memory_budget}.")
        self._budget = memory_budget
        self._stack: ExitStack | None = None
        self._clear()

    def _clear(self) -> None:
        self._pieces: dict[tuple[str, int, str, int], np.ndarray] = {}
        self._timesteps: dict[int, np.ndarray] = {}
        self._held = 0
        self._step = -1
        self._awaited: list[str] = []
        self._forward: tuple[str, ...] = ()
        self._layout: tuple[int, tuple[int, int]] | None = None
        self._text_tokens: dict[tuple[str, ...], int] = {}
        self._recording: Recording | None = None

    def __enter__(self) -> "AttentionRecorder":  # noqa: PYI034 - the run-time type check cannot resolve Self
        if self._stack is not None:
            raise RecordingError("This recorder is already recording; use a second one inside its `with`.")
        self._clear()
        with ExitStack() as stack:
            stack.enter_context(
                intercept(self._transformer, self._on_attention, layers=self._layers, stop_after=self._stop_after)
            )
            stack.callback(self._transformer.register_forward_pre_hook(self._on_forward, with_kwargs=True).remove)
            # First of all hooks: what a later one computes beside the forward, as perturbed guidance does, is no step.
            stack.callback(self._transformer.register_forward_hook(self._after_forward, prepend=True).remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> bool:
        stack, self._stack = self._stack, None
        return stack.__exit__(*exception)

    def _on_forward(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        inputs = self._family.forward_inputs(module, args, kwargs)
        self._forward = ()
        if inputs.get("skip_layers"):
            return
        latents = inputs[self._family.latents]
        latents = torch.stack(latents) if isinstance(latents, list) else latents
        timesteps = self._family.timesteps(inputs).expand(latents.shape[0])
        branches, batched = self._branches(latents)
        if len(branches) > 1 and not batched:
            branches = self._sequential(branches, timesteps.numpy())
        else:
            self._step += 1
        images = latents.shape[0] // len(branches)
        layout = images, self._family.layout(module, inputs).grid
        if self._layout not in (None, layout):
            raise RecordingError(
                f"One recording holds forwards of one size: first came {self._layout[0]} images of {self._layout[1]} "
                f"tokens, now {layout[0]} of {layout[1]}. Use a recorder for each."
            )
        if self._steps is not None and self._step not in self._steps:
            return
        self._layout = layout
        self._timesteps[self._step] = timesteps[:images].numpy()
        self._forward = branches

    def _after_forward(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._forward = ()

    def _branches(self, latents: Tensor) -> tuple[tuple[str, ...], bool]:
        """The branches of a step, and whether this forward's batch holds them all."""
        guiding = self._pipeline is not None and guidance_weight(self._pipeline) is not None
        branches = self._stated or (self._family.branches if guiding else ("cond",))
        batched = latents.shape[0] % len(branches) == 0 and not (guiding and self._family.sequential)
        if batched:
            first, *others = latents.chunk(len(branches))
            batched = all(torch.equal(first, other) for other in others)
        if self._stated is None and not batched and not self._family.sequential:
            return ("cond",), True
        return branches, batched

    def _sequential(self, branches: tuple[str, ...], timesteps: np.ndarray) -> tuple[str, ...]:
        """The one branch of this forward, where branches come one forward after the other."""
        if not self._awaited:
            self._step += 1
            self._awaited = list(branches)
            self._awaited_at = timesteps
        elif not np.array_equal(timesteps, self._awaited_at):
            raise RecordingError(
                f"branches={branches} promises {len(branches)} branches at each timestep, in one batch with the same "
                f"latents or one after the other; {', '.join(self._awaited)} did not come. Name the branches that run."
            )
        return (self._awaited.pop(0),)

    @torch.no_grad()
    def _on_attention(self, call: JointAttention) -> None:
        if not self._forward:
            return
        images, grid = self._layout
        before = self._text_tokens.setdefault(self._forward, call.text_tokens)
        if before != call.text_tokens:
            raise RecordingError(
                f"One recording holds prompts of one length: first {before} text tokens, now {call.text_tokens}. Use a "
                "recorder for each."
            )
        self._check_prompt(call.text_tokens)
        text, spans = self._text_selection()
        tokens = call.text_tokens if text is None else len(text) if spans is None else spans.shape[1]
        rows = images * len(self._forward) * (1 if self._mean else len(self._heads))
        for direction in self._blocks:
            size = 4 * rows * (len(DIRECTIONS) if direction == "masses" else tokens * call.image_tokens)
            free = self._budget - self._held - 2 * size  # a result, and its copy in the order of the arrays
            if free < 0:
                raise RecordingError(
                    f"The recording needs more than its memory_budget of {self._budget} bytes (step {self._step}, layer "
                    f"{call.layer}); record fewer layers, steps or tokens, the mean over heads, or raise the budget."
                )
            workspace = min(default_workspace(call.query.device), free)
            if direction == "masses":
                result = call.masses(self._heads, workspace=workspace)
                result = result.mean(dim=1) if self._mean else result
            else:
                reduce = call.head_mean if self._mean else call.weights
                weights = None if spans is None else spans.to(call.query.device)
                result = reduce(direction, heads=self._heads, text=text, spans=weights, workspace=workspace)
                result = (result.mT if direction == "i2t" else result).unflatten(-1, grid)
            pieces = result.float().cpu().contiguous().numpy().reshape(len(self._forward), images, *result.shape[1:])
            for branch, piece in zip(self._forward, pieces, strict=True):
                self._pieces[direction, self._step, branch, call.layer] = piece
            self._held += size

    def _check_prompt(self, text_tokens: int) -> None:
        """Labels must not be guessed: a prompt that labels the tokens has to be as long as the text the model got."""
        if self._prompt is not None and self._forward != ("uncond",) and len(self._prompt.tokens) != text_tokens:
            raise InputError(
                f"The prompt that labels the tokens has {len(self._prompt.tokens)} tokens, the model got "
                f"{text_tokens}. Encode it with as many zero vectors as the pipeline appends, or leave it out."
            )

    def _text_selection(self) -> tuple[list[int] | None, Tensor | None]:
        """Text tokens to take, and the weights that average them into spans."""
        if not isinstance(self._tokens, Mapping):
            return (None if self._tokens is None else list(self._tokens)), None
        empty = [name for name, span in self._tokens.items() if not len(span)]
        if empty or not self._tokens:
            raise InputError(f"Every span needs at least one token; got {dict(self._tokens)}.")
        text = sorted({index for span in self._tokens.values() for index in span})
        weights = torch.zeros(len(text), len(self._tokens))
        for column, span in enumerate(self._tokens.values()):
            weights[[text.index(index) for index in span], column] = 1 / len(span)
        return text, weights

    @property
    def recording(self) -> Recording:
        """What was recorded so far: all steps whose wanted layers and branches are complete.

        Raises:
            RecordingError: there is no complete step.
        """
        if self._recording is not None:
            return self._recording
        branches = list(self._stated or dict.fromkeys(branch for _, _, branch, _ in self._pieces))
        steps = [step for step in self._timesteps if self._is_complete(step, branches)]
        if not steps:
            raise RecordingError(
                "Nothing was recorded: no wanted step ran all of its layers and guidance branches inside the `with`."
            )
        recording = Recording({direction: self._array(direction, steps, branches) for direction in self._blocks})
        if self._stack is None:
            self._recording, self._pieces = recording, {}
        return recording

    def _is_complete(self, step: int, branches: list[str]) -> bool:
        return all(
            (direction, step, branch, layer) in self._pieces
            for direction in self._blocks
            for branch in branches
            for layer in self._layers
        )

    @property
    def maps(self) -> xr.DataArray:
        """The recorded "i2t" or "t2i" maps."""
        return self.recording.maps

    @property
    def masses(self) -> xr.DataArray:
        """The recorded attention masses."""
        return self.recording.masses

    def save(self, path: str | os.PathLike) -> Path:
        """Save the recording; see `Recording.save`."""
        return self.recording.save(path)

    def _array(self, direction: str, steps: list[int], branches: list[str]) -> xr.DataArray:
        images = self._layout[0]
        sample = self._pieces[direction, steps[0], branches[0], self._layers[0]]
        shape = list(sample.shape[1:])
        if direction != "masses" and self._tokens is None:
            shape[-3] = self._columns()
        values = np.full((images, len(branches), len(steps), len(self._layers), *shape), np.nan, sample.dtype)
        for s, step in enumerate(steps):
            for b, branch in enumerate(branches):
                for i, layer in enumerate(self._layers):
                    key = direction, step, branch, layer
                    # Handed over piece by piece, so that a finished recording is never held twice.
                    piece = self._pieces[key] if self._stack is not None else self._pieces.pop(key)
                    if direction == "masses":
                        values[:, b, s, i] = piece
                    else:
                        tokens = min(piece.shape[-3], shape[-3])
                        values[:, b, s, i, ..., :tokens, :, :] = piece[..., :tokens, :, :]
        head = () if self._mean else ("head",)
        tail = ("direction",) if direction == "masses" else ("token", "y", "x")
        timesteps = np.stack([self._timesteps[step] for step in steps])
        together = (timesteps == timesteps[:, :1]).all()
        coords: dict[str, Any] = {
            "image": np.arange(images),
            "branch": branches,
            "step": steps,
            "timestep": ("step", timesteps[:, 0]) if together else (("step", "image"), timesteps),
            "layer": self._layers,
        }
        if head:
            coords["head"] = self._heads
        coords |= {"direction": list(DIRECTIONS)} if direction == "masses" else self._token_coordinates()
        attributes = {"family": self._family.name, "heads": "mean" if self._mean else "apart"}
        dims = ("image", "branch", "step", "layer", *head, *tail)
        return xr.DataArray(values, coords, dims, name=direction, attrs=attributes)

    def _columns(self) -> int:
        """Number of text tokens: those of the prompt, where branches differ."""
        named = [count for forward, count in self._text_tokens.items() if "cond" in forward]
        return max(named or self._text_tokens.values())

    def _token_coordinates(self) -> dict[str, Any]:
        if isinstance(self._tokens, Mapping):
            return {"token": list(self._tokens)}
        indices = list(range(self._columns()) if self._tokens is None else self._tokens)
        if self._prompt is None:
            return {"token": indices, "token_index": ("token", indices)}
        tokens = [self._prompt.tokens[index] for index in indices]
        return {
            "token": _unique([token.text for token in tokens]),
            "token_index": ("token", indices),
            "token_kind": ("token", [token.kind for token in tokens]),
            "token_reader": ("token", [token.reader for token in tokens]),
            "token_start": ("token", [token.start for token in tokens]),
            "token_stop": ("token", [token.stop for token in tokens]),
        }


def _unique(words: Sequence[str]) -> list[str]:
    """OpenVocabulary that differ: the second "cat" becomes "cat#2"."""
    seen: Counter[str] = Counter()
    labels = []
    for word in words:
        seen[word] += 1
        labels.append(word if seen[word] == 1 else f"{word}#{seen[word]}")
    return labels


def _ascending(name: str, values: Sequence[int], length: int | None) -> list[int]:
    values = sorted(set(values))
    if not values or values[0] < 0 or (length is not None and values[-1] >= length):
        upper = "" if length is None else f" to {length - 1}"
        raise InputError(f"{name} takes at least one number from 0{upper}; got {values}.")
    return values
