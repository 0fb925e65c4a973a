"""Record joint attention while a model runs: labeled arrays, reduced on the device at once."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from seg4diff_tools.attention.exact import default_workspace
from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.attention.pieces import Pieces, nothing_recorded
from seg4diff_tools.attention.recording import Recording
from seg4diff_tools.attention.request import OUTSIDE, checked_request
from seg4diff_tools.attention.tokens import check_texts
from seg4diff_tools.attention.turns import PERTURBED
from seg4diff_tools.errors import InputError, RecordingError
from seg4diff_tools.families import SamplingLoop, model_lock, sampling_loop
from seg4diff_tools.families._private import add_hook
from seg4diff_tools.prompts import Prompt

Indices = int | Iterable[int]


WAITING = 256 << 20
"""Bytes of maps that may lie on the device before the end of a forward."""


class AttentionRecorder:
    """Record the joint attention of every forward inside the `with`; the model's output stays bit-identical.

    Maps are reduced on the device layer by layer, and only the reduced ones are kept, in main memory; the joint map is
    never materialized, and no layer waits for the device. Compiled modules run eagerly meanwhile, with diffusers'
    native attention. Entering again starts a new recording.

    Maps of a model of videos have an axis "frame" before y and x: its latent frames, of which the first is the video's
    first frame and each other one stands for several.

    A forward of the transformer is one step. With classifier-free guidance, the forward's batch holds all branches, or
    several forwards at one timestep hold one branch each; the pipeline that runs is asked which. A branch that did not
    run in a step, such as "uncond" after guidance has stopped, is NaN there, and so are the text columns that a branch
    lacks. Extra forwards with skipped layers (skip-layer guidance) are not recorded.

    Args:
        model: backbone, pipeline or transformer of a supported family.
        layers: 0-based layers, one or several; None records all (up to `stop_after`).
        direction: "i2t", "t2i", "masses" (of all four directions), "i2c" and "c2i" (with `concepts`), or several.
        heads: "mean" over heads (Seg4Diff, arXiv 2509.18096, Eq 9), "all", or heads to keep apart, in ascending order.
        tokens: "words" of the prompt, "all" text tokens, indices, or phrases of the prompt such as ["cat", "red car"],
            whose tokens are averaged (Eq 10). A mapping from names to indices or phrases names these means. None takes
            the words of the prompt, and all tokens without one.
        prompt: text or encoded prompt whose words label the tokens, or a list with one per image. It has to be the one
            that the model reads. Without it, tokens are labeled by their index.
        steps: steps to record, counted from 0 in the order of forwards; None records all.
        branches: guidance branches in the order of the batch, such as ("uncond", "cond") for SD3, for a sampling loop
            of your own. None takes those of the pipeline that runs, and else calls everything "cond".
        stop_after: end the forward inside this layer: it has no result then, and the rest of the `with` body is
            skipped.
        on_device: leave the maps on the model's device, as `tensors`, until the recording is read: for a loop of your
            own that goes on with them there. Otherwise each forward's maps leave by one copy.
        concepts: words outside the prompt, such as ["sky", "red car"], for SD3 and FLUX.1: they read the image, and
            neither image nor prompt reads them, so that picture and other maps are those without them, within rounding.
            "c2i" is what they give to image tokens, "i2c" is exp(q k scale - lse), what image tokens would give to
            them relative to all that they read. Biases and edits of image-to-text attention do not concern them;
            heads that are ablated are so for them too.
        memory_budget: bytes that results and working memory may take together. The whole need is estimated at the first
            forward: of a pipeline's sampling loop all steps, else the steps that have come.

    Raises:
        InputError: a layer, head, token, direction, prompt or budget that cannot be.
        PromptError: a phrase that is not in the prompt.
        RecordingError: inside the `with`, when a forward cannot be recorded as asked, reads another prompt, or the
            recording does not fit into the budget.

    Example:
        >>> with AttentionRecorder(backbone, prompt="a red car", layers=9) as recorder:  # doctest: +SKIP
        ...     image = backbone.generate("a red car")[0]
        >>> recorder.maps.sel(token="car"), recorder.recording.phrase("red car")  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        *,
        layers: Indices | None = None,
        direction: str | Sequence[str] = "i2t",
        heads: str | Indices = "mean",
        tokens: str | int | Iterable[int] | Iterable[str] | Mapping[str, str | Indices] | None = None,
        prompt: str | Prompt | Sequence[str | Prompt] | None = None,
        steps: Indices | None = None,
        branches: str | Sequence[str] | None = None,
        stop_after: int | None = None,
        on_device: bool = False,
        concepts: Sequence[str] | None = None,
        memory_budget: int = 2 << 30,
    ):
        if not isinstance(on_device, bool):
            raise InputError(f"expected on_device, True or False, got {on_device!r}: pass on_device=True")
        self._on_device = on_device
        self._request = checked_request(
            model,
            layers=layers,
            direction=direction,
            heads=heads,
            tokens=tokens,
            prompt=prompt,
            steps=steps,
            branches=branches,
            stop_after=stop_after,
            memory_budget=memory_budget,
            concepts=concepts,
        )
        self._stack: ExitStack | None = None
        self._clear()

    def __repr__(self) -> str:
        request = self._request
        steps = len(self._pieces.branches) if self._pieces else 0
        if self._recording is not None:
            steps = self._recording[request.directions[0]].sizes["step"]
        heads = "the mean of heads" if request.mean else f"{len(request.heads)} heads"
        recorded = f"{', '.join(request.directions)}, {len(request.layers)} layers, {heads}, {steps} steps so far"
        return f"AttentionRecorder({request.family.name}: {recorded})"

    def _clear(self) -> None:
        self._pieces: Pieces | None = None
        self._recording: Recording | None = None
        self._step = -1
        self._guided = False
        self._awaited: list[str] = []
        self._awaited_at: np.ndarray | None = None
        self._forward: tuple[str, ...] = ()
        self._free = self._request.budget
        self._checked: list[Any] = []
        self._weights: dict[Any, Tensor | None] = {}

    def __enter__(self) -> "AttentionRecorder":  # noqa: PYI034 - the run-time type check cannot resolve Self
        if self._stack is not None:
            raise RecordingError(
                "expected a recorder that is free, got one that is already recording: make a second one"
            )
        self._clear()
        request = self._request
        with ExitStack() as stack:
            stack.enter_context(model_lock(request.transformer).hold("an AttentionRecorder"))
            asked: dict[str, Any] = {"layers": request.layers, "stop_after": request.stop_after}
            stack.enter_context(intercept(request.transformer, self._on_attention, concepts=request.concepts, **asked))
            stack.callback(add_hook(request.transformer, self._on_forward, before=True, with_kwargs=True))
            # first of all hooks: what a later one computes beside the forward, as perturbed guidance does, is no step
            stack.callback(add_hook(request.transformer, self._after_forward, prepend=True))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> bool:  # noqa: PYI036 - ExitStack wants the three apart
        stack, self._stack = self._stack, None
        self._checked = []
        ended = bool(stack and stack.__exit__(*exception))
        if self._pieces is not None and not self._on_device and (ended or exception[0] is None):
            self._pieces.send()
            self._pieces.receive()
        return ended

    def _on_forward(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        request, family = self._request, self._request.family
        inputs = family.forward_inputs(module, args, kwargs)
        self._forward = ()
        if inputs.get("skip_layers"):
            return
        latents = inputs[family.latents]
        latents = torch.stack(latents) if isinstance(latents, list) else latents
        timesteps = family.timesteps(inputs).expand(latents.shape[0])
        loop = sampling_loop(request.transformer)
        branches, batched = self._branches(latents, loop)
        forward = branches if batched else self._sequential(branches, timesteps.numpy())
        if batched:
            self._check_awaited(branches)
            self._step += 1
        images, layout = latents.shape[0] // len(forward), family.layout(module, inputs)
        size = images, layout.grid
        if self._pieces is not None and size != (before := (self._pieces.images, self._pieces.grid)):
            raise RecordingError(
                f"expected forwards of one size in a recording, got {before[0]} images of {before[1]} tokens first, "
                f"now "
                f"{images} of {layout.grid}: use a recorder for each"
            )
        if request.steps is not None and self._step not in request.steps:
            return
        text = layout.text.stop - layout.text.start
        self._check_text(inputs, forward, images, text, loop)
        columns = text if request.columns.names is None else len(request.columns.names)
        if self._pieces is None:
            steps = 1 if loop is None or loop.steps is None else loop.steps
            if request.steps is not None:
                steps = max(1, len([step for step in request.steps if step < steps]))
            self._free = request.check_budget(
                images, len(branches), steps, columns, layout.image.stop - layout.image.start
            )
            self._pieces = Pieces(request, *size)
        self._pieces.timesteps[self._step] = timesteps[:images].numpy()
        self._pieces.branches.setdefault(self._step, branches)
        for branch in forward:
            self._pieces.count_text(branch, text)
        self._forward = forward

    def _after_forward(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._forward = ()
        if self._pieces is not None and not self._on_device:
            # the device is still busy with this forward while the last one's maps are received
            self._pieces.send()

    def _check_text(
        self, inputs: dict[str, Any], forward: tuple[str, ...], images: int, text: int, loop: SamplingLoop | None
    ) -> None:
        """Check that the model reads the prompt, and that it has the tokens that are asked for."""
        columns, family = self._request.columns, self._request.family
        read = [at for at, branch in enumerate(forward) if branch not in ("uncond", PERTURBED)]
        if not read:
            return
        outside = [index for index in columns.text or () if index >= text]
        if outside:
            raise InputError(f"expected tokens from 0 to {text - 1}, got {outside}: the text has no more")
        states = [inputs[name] for name in family.streams or family.text_inputs[:1]]
        if columns.prompts and not (
            len(states) == len(self._checked) and all(a is b for a, b in zip(states, self._checked, strict=True))
        ):
            for at in read:
                check_texts(family, inputs, columns.prompts, range(at * images, (at + 1) * images), loop)
            self._checked = states

    def _branches(self, latents: Tensor, loop: SamplingLoop | None) -> tuple[tuple[str, ...], bool]:
        """The branches of a step, and whether this forward's batch holds them all."""
        request = self._request
        guided = loop is not None and loop.weight is not None
        perturbed = loop is not None and loop.perturbed
        branches = request.branches or (request.family.branches if guided else ("cond",))
        if request.branches is None and perturbed:
            branches = (*branches, PERTURBED)
        if loop is not None and not guided and self._guided and "cond" in branches and not perturbed:
            # guidance has stopped midway
            branches = ("cond",)
        self._guided = self._guided or guided
        batched = latents.shape[0] % len(branches) == 0 and not (guided and request.family.sequential)
        if batched and len(branches) > 1:
            first, *others = latents.chunk(len(branches))
            batched = all(torch.equal(first, other) for other in others)
        if not batched and request.branches is None and not request.family.sequential:
            raise RecordingError(
                f"expected a batch of {' and '.join(branches)} with the same latents, got {latents.shape[0]} latents "
                f"of "
                "another order: name what the batch holds with branches="
            )
        return branches, batched

    def _sequential(self, branches: tuple[str, ...], timesteps: np.ndarray) -> tuple[str, ...]:
        """The one branch of this forward, where branches come one forward after the other."""
        if not self._awaited:
            self._step += 1
            self._awaited, self._awaited_at = list(branches), timesteps
        elif self._awaited_at is None or not np.array_equal(timesteps, self._awaited_at):
            self._check_awaited(branches)
        return (self._awaited.pop(0),)

    def _check_awaited(self, branches: tuple[str, ...]) -> None:
        if self._awaited:
            raise RecordingError(
                f"expected branches={branches} at each timestep, in one batch with the same latents or one after the "
                f"other, got the next timestep: {', '.join(self._awaited)} did not come; name the branches that run"
            )

    def _on_attention(self, call: JointAttention) -> None:
        with torch.no_grad():
            self._keep(call)

    def _keep(self, call: JointAttention) -> None:
        pieces, request, forward = self._pieces, self._request, self._forward
        if not forward or pieces is None:
            return
        batch = len(call.query)
        if batch == pieces.images * (len(forward) - 1) and forward[-1] == PERTURBED:
            # a processor of PAG: perturbed images attend to themselves alone, in an attention of their own
            forward = forward[:-1]
        elif batch != pieces.images * len(forward):
            raise RecordingError(
                f"expected {pieces.images * len(forward)} rows in layer {call.layer}, {pieces.images} images of "
                f"{' and '.join(forward)}, got {batch}: use the model's default attention processors"
            )
        columns = call.text_tokens if request.columns.names is None else len(request.columns.names)
        for direction in request.directions:
            size = request.bytes_of(direction, batch, columns, call.image_tokens)
            free = min(self._free, request.budget - pieces.held - 2 * size)
            if free < 0:
                raise RecordingError(
                    f"expected a recording within memory_budget={request.budget}, got one that needs more in step "
                    f"{self._step}, layer {call.layer}: record fewer layers, steps or tokens, heads='mean', or raise it"
                )
            result = self._reduced(call, direction, min(default_workspace(call.query.device), free))
            # made contiguous on the device: a copy that turns axes around is slow, and waits
            whole = result.float().contiguous().view(len(forward), pieces.images, *result.shape[1:])
            pieces.add([(direction, self._step, branch, call.layer) for branch in forward], whole)
        if not self._on_device and pieces.waiting > WAITING:
            pieces.send()

    def _reduced(self, call: JointAttention, direction: str, workspace: int) -> Tensor:
        """Masses [batch head? direction], or maps [batch head? token frame? y x]."""
        request, pieces = self._request, self._pieces
        assert pieces is not None
        if direction == "masses":
            masses = call.masses(request.heads, workspace=workspace)
            return masses.mean(dim=1) if request.mean else masses
        if direction in OUTSIDE and request.concepts is not None:
            outside = call.outside_prompt()
            reduce = outside.head_mean if request.mean else outside.weights
            spans = self._span_weights(call.query.device, outside=True)
            maps = reduce(OUTSIDE[direction], heads=request.heads, spans=spans, workspace=workspace)
            return (maps.mT if direction == "i2c" else maps).unflatten(-1, pieces.grid)
        columns, weights = request.columns, self._span_weights(call.query.device)
        text = columns.text
        here = text if text is None else [index for index in text if index < call.text_tokens]
        if here is not None and len(here) < len(text or ()):
            weights = None
        if here == []:
            heads = () if request.mean else (len(request.heads),)
            shape = (len(call.query), *heads, len(columns.groups[0]), *pieces.grid)
            return torch.full(shape, torch.nan, dtype=torch.float32, device=call.query.device)
        reduce = call.head_mean if request.mean else call.weights
        maps = reduce(direction, heads=request.heads, text=here, spans=weights, workspace=workspace)  # type: ignore[arg-type]
        maps = (maps.mT if direction == "i2t" else maps).unflatten(-1, pieces.grid)
        if here is None or weights is not None or (columns.singles and len(here) == len(text or ())):
            return maps
        return columns.combine(maps, here, pieces.images, len(pieces.grid))

    def _span_weights(self, device: torch.device, outside: bool = False) -> Tensor | None:
        """The weights of spans, or of words outside the prompt, on a device, copied there once."""
        if (outside, device) not in self._weights:
            concepts = self._request.concepts if outside else None
            weights = self._request.columns.weights() if concepts is None else concepts.weights
            self._weights[outside, device] = None if weights is None else weights.to(device)
        return self._weights[outside, device]

    @property
    def tensors(self) -> dict[tuple[str, int, str, int], Tensor]:
        """Maps that are still on the device, with on_device=True all of them until the recording is read.

        Keys are (direction, step, branch, layer); a map is [image head? token frame? y x], a mass [image head?
        direction].
        """
        kept = [] if self._pieces is None else self._pieces.on_device
        return {key: piece for keys, whole in kept for key, piece in zip(keys, whole, strict=True)}

    @property
    def recording(self) -> Recording:
        """What was recorded so far, which is all steps whose wanted layers and branches are complete.

        Raises:
            RecordingError: there is no complete step.
        """
        if self._recording is not None:
            return self._recording
        if self._pieces is None:
            raise nothing_recorded()
        recording = self._pieces.recording(keep=self._stack is not None)
        if self._stack is None:
            self._recording, self._pieces = recording, None
        return recording

    @property
    def maps(self) -> xr.DataArray:
        """The recorded "i2t" or "t2i" maps."""
        return self.recording.maps

    @property
    def masses(self) -> xr.DataArray:
        """The recorded attention masses."""
        return self.recording.masses

    def save(self, path: str | Path) -> Path:
        """Save the recording; see `Recording.save`."""
        return self.recording.save(path)
