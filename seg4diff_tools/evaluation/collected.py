"""Counts of the images of a run, collected into an `Evaluation`."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int

from seg4diff_tools.evaluation import metrics
from seg4diff_tools.evaluation.counts import ImageCounts, Shard
from seg4diff_tools.evaluation.results import UNMATCHED, Evaluation


class Collected:
    """Pixel counts of a run's images; `faults` has index and message of each unreadable sample."""

    def __init__(self, rows: pd.MultiIndex, metric_names: Sequence[str] = ()) -> None:
        self.rows, self.metric_names = rows, tuple(metric_names)
        self.faults: dict[int, str] = {}
        self._records: list[tuple[int, str]] = []
        self._values: list[np.ndarray] = []
        self._cells: list[tuple[int, str]] = []
        self._counts: list[Int[np.ndarray, "row 3"]] = []
        self._pairs: dict[tuple[str, str], Int[np.ndarray, " row"]] = {}
        self._background: set[str] = set()
        self._first: dict[str, np.ndarray] = {}

    @property
    def images(self) -> int:
        """Number of images so far."""
        return len(self._records)

    def add(self, shard: Shard, only: Collection[int] | None = None) -> None:
        """Add the images of a shard, all or those with the given indices."""
        self.faults |= {index: told for index, told in shard.faults.items() if only is None or index in only}
        for record in shard.records:
            if only is None or record.index in only:
                self._add(record)

    def _add(self, record: ImageCounts) -> None:
        counts: dict[str, np.ndarray] = {}
        for column, name in ((1, record.true), (2, record.predicted)):
            sums = record.confusion.sum(3 - column)
            for place, own in enumerate(name):
                if sums[:, place].any():
                    counts.setdefault(own, np.zeros((len(self.rows), 3), np.int32))[:, column] = sums[:, place]
        for row, column in np.argwhere(record.confusion.any(0)):
            pair, pixels = (record.true[row], record.predicted[column]), record.confusion[:, row, column]
            self._pairs[pair] = self._pairs.get(pair, 0) + pixels
            if pair[0] == pair[1]:
                counts[pair[0]][:, 0] = pixels
        counts.pop(UNMATCHED, None)
        for own, cell in counts.items():
            self._cells.append((len(self._records), own))
            self._counts.append(cell)
            self._first[own] = self._first.get(own, 0) + cell[0].astype(np.int64)
        self._records.append((record.index, record.fingerprint))
        self._values.append(record.values)
        self._background.update(record.background)

    def running(self) -> float:
        """Return the mIoU of the first row so far, for the progress bar."""
        if not self._first:
            return float("nan")
        return metrics.score(torch.from_numpy(np.stack(list(self._first.values())))).item()

    def evaluation(
        self,
        settings: dict[str, Any],
        done: int = 0,
        seconds: Mapping[str, float] | None = None,
        pace: Mapping[tuple[Any, ...], float] | None = None,
    ) -> Evaluation:
        """Return the collected counts as an `Evaluation`."""
        names = sorted({name for _, name in self._cells})
        place = {name: index for index, name in enumerate(names)}
        cells = np.array([(image, place[name]) for image, name in self._cells], np.int64).reshape(-1, 2)
        counts = np.array(self._counts, np.int32).reshape(len(cells), len(self.rows), 3)
        pixels = np.array(list(self._pairs.values()), np.int64).reshape(len(self._pairs), len(self.rows))
        shape = self.images, len(self.rows), len(self.metric_names)
        values = np.array(self._values, np.float64).reshape(shape) if self.metric_names else np.zeros(shape)
        return Evaluation(
            rows=self.rows,
            images=np.array([index for index, _ in self._records], np.int64),
            fingerprints=tuple(told for _, told in self._records),
            class_names=tuple(names),
            background=tuple(sorted(self._background)),
            cells=cells,
            counts=counts,
            pairs=tuple(self._pairs),
            pair_pixels=pixels,
            values={name: values[..., index] for index, name in enumerate(self.metric_names)},
            settings=settings,
            skipped=dict(self.faults),
            done=done,
            seconds=dict(seconds or {}),
            pace=dict(pace or {}),
        )
