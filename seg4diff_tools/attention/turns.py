"""Which sampling step and which branches of guidance a forward of the transformer holds."""

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from torch import nn

from seg4diff_tools.errors import RecordingError
from seg4diff_tools.families import Family, sampling_loop

PERTURBED = "perturbed"
"""Branch of perturbed attention guidance (PAG); its perturbed layers have no joint attention of their own."""


@dataclass(frozen=True)
class Turn:
    """A forward's place in sampling.

    Args:
        step: counted from 0; it begins anew with each pipeline call and where the timestep rises. None where the images
            of a batch are at different ones.
        branches: of the batch in order, each with the same number of rows.
        rows: of the batch.
        beside: whether it is a further forward of the prompt's branch, as of perturbed guidance.
        timestep: from 0 to 1000; None where the images of a batch are at different ones.
    """

    step: int | None
    branches: tuple[str, ...]
    rows: int
    beside: bool = False
    timestep: float | None = None

    @property
    def images(self) -> int:
        """Number of images."""
        return self.rows // len(self.branches)

    def rows_of(self, branch: str) -> range:
        """Rows of a branch, one for each image; none where it does not run."""
        if branch not in self.branches:
            return range(0)
        start = self.branches.index(branch) * self.images
        return range(start, start + self.images)

    def place(self, name: str) -> tuple[int, float]:
        """Return step and timestep; `name` is what needs them, for the error.

        Raises:
            RecordingError: images at different ones.
        """
        if self.step is None or self.timestep is None:
            raise RecordingError(f"expected one timestep for all images with {name}, got several: give all the same")
        return self.step, self.timestep

    def is_in(self, steps: Container[int] | None) -> bool:
        """Return whether its step is one of these; None stands for all.

        Raises:
            RecordingError: steps of a batch whose images are at different ones.
        """
        if steps is not None and self.step is None:
            raise RecordingError(
                "expected one timestep for all images with steps=, got several in a batch: leave steps out"
            )
        return steps is None or self.step in steps


class Turns:
    """Follows the forwards of one transformer."""

    def __init__(self) -> None:
        self._time: float | None = None
        self._timesteps: Any = None
        self._step = self._branch = 0

    def see(self, family: Family, transformer: nn.Module, inputs: dict[str, Any], *, beside: bool = False) -> Turn:
        """Return the place of a forward.

        Args:
            family: of the transformer.
            transformer: that runs.
            inputs: of the forward, by name.
            beside: see `Turn`; so are forwards with skipped layers.

        Raises:
            RecordingError: a batch that the branches of the pipeline cannot share.
        """
        times, rows = family.timesteps(inputs).tolist(), len(inputs[family.latents])
        if len(set(times)) > 1:
            return Turn(None, ("cond",), rows)
        if beside or inputs.get("skip_layers"):
            return Turn(self._step, ("cond",), rows, beside=True, timestep=times[0])
        time, loop = times[0], sampling_loop(transformer)
        timesteps = None if loop is None else loop.timesteps
        if self._time is None or time > self._time or timesteps is not self._timesteps:
            self._step = self._branch = 0
        elif time < self._time:
            self._step, self._branch = self._step + 1, 0
        self._time, self._timesteps = time, timesteps
        branches: tuple[str, ...] = ("cond",)
        if loop is not None and loop.weight is not None:
            branches = family.branches
            if family.sequential:
                branches = (branches[self._branch % len(branches)],)
                self._branch += 1
        if loop is not None and loop.perturbed:
            branches = (*branches, PERTURBED)
        if rows % len(branches):
            raise RecordingError(
                f"expected a batch of {' and '.join(branches)}, got {rows} rows: use the pipeline's own guidance"
            )
        return Turn(self._step, branches, rows, timestep=time)
