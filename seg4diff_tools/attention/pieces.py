"""What a recorder has received: maps by direction, step, branch and layer, put together into labeled arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from seg4diff_tools.attention.joint import DIRECTIONS
from seg4diff_tools.attention.recording import Recording
from seg4diff_tools.attention.request import OUTSIDE, Request
from seg4diff_tools.attention.transfer import Transfer
from seg4diff_tools.attention.turns import PERTURBED
from seg4diff_tools.errors import RecordingError

Key = tuple[str, int, str, int]
"""Direction, step, branch, layer."""


@dataclass(eq=False)
class Pieces:
    """Received maps of one recording.

    Args:
        request: what is wanted.
        images: number of images.
        grid: rows and columns of image tokens; of a video, frames before them.
    """

    request: Request
    images: int
    grid: tuple[int, ...]
    held: int = 0
    timesteps: dict[int, np.ndarray] = field(default_factory=dict)
    branches: dict[int, tuple[str, ...]] = field(default_factory=dict)
    text_tokens: dict[str, int] = field(default_factory=dict)
    maps: dict[Key, np.ndarray] = field(default_factory=dict)
    on_device: list[tuple[list[Key], Tensor]] = field(default_factory=list)
    _sent: list[list[Key]] = field(default_factory=list)
    _transfer: Transfer = field(default_factory=Transfer)

    @property
    def waiting(self) -> int:
        """Bytes that are still on the device."""
        return sum(whole.nbytes for _, whole in self.on_device)

    def add(self, keys: list[Key], whole: Tensor) -> None:
        """Keep a map on its device.

        Args:
            keys: one for each branch.
            whole: fp32, [branch image head? token frame? y x] (or concept) or [branch image head? direction].
        """
        self.on_device.append((keys, whole))
        self.held += whole.nbytes

    def send(self) -> None:
        """Start to copy what is on the device to main memory, after what was sent before has come."""
        self.receive()
        self._sent = [keys for keys, _ in self.on_device]
        self._transfer.send([whole for _, whole in self.on_device])
        self.on_device = []

    def receive(self) -> None:
        """Wait for what was sent."""
        for keys, whole in zip(self._sent, self._transfer.receive(), strict=True):
            self.maps.update(zip(keys, whole, strict=True))
        self._sent = []

    def count_text(self, branch: str, tokens: int) -> None:
        """Keep the number of text tokens of a branch.

        Raises:
            RecordingError: it was another one before.
        """
        before = self.text_tokens.setdefault(branch, tokens)
        if before != tokens:
            raise RecordingError(
                f"expected prompts of one length in a recording, got {before} text tokens first, now {tokens}: use a "
                "recorder for each"
            )

    def recording(self, *, keep: bool) -> Recording:
        """Put the complete steps together.

        Args:
            keep: whether the pieces are needed again; if not, each is given up as it is copied.

        Raises:
            RecordingError: no step is complete.
        """
        self.send()
        self.receive()
        steps = [step for step in self.branches if self._is_complete(step)]
        if not steps:
            raise nothing_recorded()
        ran = {branch for step in steps for branch in self.branches[step]}
        order = self.request.branches or (*self.request.family.branches, PERTURBED)
        branches = [branch for branch in order if branch in ran] + sorted(ran - set(order))
        return Recording(
            {direction: self._array(direction, steps, branches, keep) for direction in self.request.directions}
        )

    def _is_complete(self, step: int) -> bool:
        return all(
            (direction, step, branch, layer) in self.maps
            for direction in self.request.directions
            for branch in self.branches[step]
            for layer in self.request.layers
            if branch != PERTURBED
        )

    def _array(self, direction: str, steps: Sequence[int], branches: Sequence[str], keep: bool) -> xr.DataArray:
        request = self.request
        sample = next(piece for (name, step, *_), piece in self.maps.items() if name == direction and step in steps)
        shape, places = list(sample.shape[1:]), ("frame", "y", "x")[-len(self.grid) :]
        token = -1 - len(places)
        if direction in DIRECTIONS and request.columns.names is None:
            shape[token] = self._columns()
        values = np.empty((self.images, len(branches), len(steps), len(request.layers), *shape), sample.dtype)
        for s, step in enumerate(steps):
            for b, branch in enumerate(branches):
                for i, layer in enumerate(request.layers):
                    key = direction, step, branch, layer
                    piece = self.maps.get(key) if keep else self.maps.pop(key, None)
                    place = values[:, b, s, i]
                    if piece is None:
                        place[...] = np.nan
                    elif direction not in DIRECTIONS or piece.shape == place.shape:
                        place[...] = piece
                    else:
                        tokens = min(piece.shape[token], shape[token])
                        place, piece = np.moveaxis(place, token, 0), np.moveaxis(piece, token, 0)
                        place[:tokens] = piece[:tokens]
                        place[tokens:] = np.nan
        head = () if request.mean else ("head",)
        axis = "concept" if direction in OUTSIDE else "token"
        tail = ("direction",) if direction == "masses" else (axis, *places)
        timesteps = np.stack([self.timesteps[step] for step in steps])
        together = (timesteps == timesteps[:, :1]).all()
        coords: dict[str, Any] = {
            "image": np.arange(self.images),
            "branch": branches,
            "step": steps,
            "timestep": ("step", timesteps[:, 0]) if together else (("step", "image"), timesteps),
            "layer": request.layers,
        }
        if texts := request.columns.texts(self.images):
            coords["prompt"] = "image", texts
        if head:
            coords["head"] = request.heads
        if direction != "masses" and "frame" in places:
            # a part of the frames still tells how many there were
            coords["frame"] = "frame", np.arange(self.grid[0]), {"count": self.grid[0]}
        if direction == "masses":
            coords["direction"] = list(DIRECTIONS)
        elif request.concepts is not None and direction in OUTSIDE:
            coords["concept"] = list(request.concepts.names)
        else:
            coords |= request.columns.coordinates(self._columns(), self.images)
        attributes = {"family": request.family.name, "heads": "mean" if request.mean else "apart"}
        dims = ("image", "branch", "step", "layer", *head, *tail)
        return xr.DataArray(values, coords, dims, name=direction, attrs=attributes)

    def _columns(self) -> int:
        """Number of text tokens: those of the prompt, where branches differ."""
        return self.text_tokens.get("cond") or max(self.text_tokens.values())


def nothing_recorded() -> RecordingError:
    """Return the error of a recording without a complete step."""
    return RecordingError(
        "expected at least one wanted step with all of its layers and guidance branches inside the `with`, got none: "
        "Nothing was recorded; run the model inside the `with`, and look at steps="
    )
