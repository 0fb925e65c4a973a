"""Results of evaluations: scores with intervals, by class, object size and image."""

import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from seg4diff_tools.errors import InputError, one_of
from seg4diff_tools.evaluation import metrics
from seg4diff_tools.evaluation.metrics import ScoreName
from seg4diff_tools.indices import as_indices

SCORES = ("pACC", "mACC", "mIoU", "object_mIoU", "background_mIoU")
UNMATCHED = "(no class)"
"""Predicted class of the pixels of an unmatched group."""
SIZES = {"under 1 %": 0.01, "1 to 5 %": 0.05, "5 to 20 %": 0.2, "over 20 %": 1.0}
"""Object sizes, each with its largest share of the image's pixels."""
KINDS: dict[str, ScoreName] = {"pACC": "pACC", "mACC": "mACC"}
KINDS.update(dict.fromkeys(SCORES[2:], "mIoU"))

Row = str | int | Sequence[Any] | Mapping[str, Any] | None
"""A row: a method's name, its position, its values in column order, or some of them by column."""


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """Pixel counts of every image, and their scores.

    Attributes:
        rows: method and protocol, or the axes of a sweep.
        images, fingerprints: of each image, its index in the samples and a hash of it, its label map and its class
            names.
        class_names: the classes that occur or were predicted, sorted.
        background: those of them that are stuff.
        cells: position of the image and of the class of each entry of `counts`.
        counts: hits, true pixels and predicted pixels.
        pairs, pair_pixels: true and predicted class, and their pixels in the whole set.
        values: of custom metrics, by name.
        settings: JSON-serializable settings that determine the result.
        skipped: index and message of each sample that could not be read.
        done, seconds: number of images that this process computed, and their time, by kind of work.
        pace: seconds per image of each row, from encoded image and prompts to the label map.
    """

    rows: pd.MultiIndex
    images: Int[np.ndarray, " image"]
    fingerprints: tuple[str, ...]
    class_names: tuple[str, ...]
    background: tuple[str, ...]
    cells: Int[np.ndarray, "cell 2"]
    counts: Int[np.ndarray, "cell row 3"]
    pairs: tuple[tuple[str, str], ...]
    pair_pixels: Int[np.ndarray, "pair row"]
    values: dict[str, Float[np.ndarray, "image row"]]
    settings: dict[str, Any]
    skipped: dict[int, str]
    done: int
    seconds: dict[str, float]
    pace: dict[tuple[Any, ...], float]

    @property
    def pixels(self) -> xr.DataArray:
        """Pixel counts by image, row, class and kind ("hits", "true", "predicted")."""
        result = np.zeros((len(self.images), len(self.rows), len(self.class_names), 3), np.int64)
        result[self.cells[:, 0], :, self.cells[:, 1]] = self.counts
        coords = {
            "image": self.images,
            "row": self.rows,
            "class": list(self.class_names),
            "count": ["hits", "true", "predicted"],
        }
        return xr.DataArray(result, xr.Coordinates(coords), ("image", "row", "class", "count"), name="pixels")

    @property
    def totals(self) -> pd.DataFrame:
        """Scores (0..1) of each row from the pixels of the whole set, then the means of custom metrics."""
        total = np.zeros((len(self.class_names), len(self.rows), 3), np.int64)
        np.add.at(total, self.cells[:, 1], self.counts)
        counts = torch.from_numpy(total).movedim(0, 1)
        found = {name: metrics.score(counts, KINDS[name], self._classes(name)).numpy() for name in SCORES}
        return pd.DataFrame(found | {name: _mean(values, 0) for name, values in self.values.items()})

    def table(
        self, score: str = "mIoU", *, level: float = 0.95, reference: Row = None, simultaneous: bool = False
    ) -> pd.DataFrame:
        """Return one row for each method and protocol, or for each setting of a sweep.

        Args:
            score: the score with intervals: one of `SCORES`, or a custom metric.
            level: of the intervals.
            reference: the baseline row of gains; the first one of the same protocol if None.
            simultaneous: widen the intervals of gains to simultaneous coverage at this level (Bonferroni), for rankings
                of many rows.

        Returns:
            Columns model, those of the row, the score with low and high (jackknife interval over images), for evaluated
            methods or with a reference also gain (score minus that of the reference, on the same images) with gain_low,
            gain_high and comparisons (number of rows in the gain's correction), then the other scores (0..1), images
            and skipped.

        Raises:
            InputError: an unknown score or reference.
        """
        one_of(simultaneous, "simultaneous", (False, True))
        scores, left = self.leave_one_out(score)
        low, high = metrics.interval(scores, left, level)
        columns: dict[str, Any] = {score: scores, "low": low, "high": high}
        if reference is not None or "method" in self.rows.names:
            protocols = self.rows.get_level_values("protocol")
            firsts = [int(np.flatnonzero(protocols == protocol)[0]) for protocol in protocols]
            base = firsts if reference is None else [self._place(reference)] * len(self.rows)
            compared = sum(place != own for own, place in enumerate(base))
            comparisons = max(1, compared) if simultaneous else 1
            gain = scores - scores[base]
            ends = metrics.interval(gain, left - left[base], level, comparisons)
            columns |= {"gain": gain, "gain_low": ends[0], "gain_high": ends[1], "comparisons": comparisons}
        totals = self.totals
        order = ("object_mIoU", "background_mIoU", "mIoU", "mACC", "pACC", *self.values)
        others = [name for name in order if name != score]
        return pd.DataFrame(
            {"model": self.settings["model"]}
            | {name: self.rows.get_level_values(name) for name in self.rows.names}
            | columns
            | {name: totals[name].to_numpy() for name in others}
            | {"images": len(self.images), "skipped": len(self.skipped)}
        )

    def sel(self, **wanted: Any) -> "Evaluation":
        """Return the evaluation of some rows alone, such as `sweep.sel(direction="i2t", layer=[4, 5])`.

        Args:
            wanted: for columns of the row, the value to keep, or several.

        Raises:
            InputError: no such column, a value that no row has, or values that do not occur together.
        """
        kept = np.ones(len(self.rows), bool)
        for name, value in wanted.items():
            one_of(name, "a column", list(self.rows.names), "sel(layer=4)")
            own = self.rows.get_level_values(name)
            known = own.unique().tolist()
            values = [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
            if absent := [each for each in values if each not in known]:
                listed = ", ".join(map(repr, known))
                raise InputError(f"expected {name} from {listed}, got {absent[0]!r}: pass {name}={known[0]!r}")
            kept &= own.isin(values)
        if not kept.any():
            raise InputError(f"expected rows with {wanted}, got none: ask for values that occur together")
        rows = self.rows[kept]
        return replace(
            self,
            rows=rows,
            counts=self.counts[:, kept],
            pair_pixels=self.pair_pixels[:, kept],
            values={name: values[:, kept] for name, values in self.values.items()},
            pace={row: self.pace[row] for row in rows if row in self.pace},
        )

    def verdict(self, a: Row, b: Row, score: str = "mIoU", *, level: float = 0.95, comparisons: int = 1) -> str:
        """Describe the comparison of two rows on the same images.

        Args:
            a, b: rows, for instance names of methods, or {"layer": 4} and {"layer": 7} of a sweep.
            score: one of `SCORES`, or a custom metric.
            level: of the interval of the difference.
            comparisons: as in `metrics.interval`.

        Returns:
            See `metrics.verdict`.

        Raises:
            InputError: no such row, several, or an unknown score.
        """
        one, other = self._place(a), self._place(b)
        scores, left = self.leave_one_out(score)
        gain = float(scores[one] - scores[other])
        low, high = metrics.interval(gain, left[one] - left[other], level, comparisons)
        unit = "points" if score in SCORES else score
        return metrics.verdict(self._name(one), self._name(other), gain, float(low), float(high), unit)

    def confusion(self, row: Row = None, *, share: bool = False) -> pd.DataFrame:
        """Return the confusion matrix: pixels of each true class (rows) by predicted class (columns).

        Args:
            row: of the table; the only one if None.
            share: divide by the pixels of the true class (0..1).

        Raises:
            InputError: no such row, or several.
        """
        place = self._place(row)
        names = [*self.class_names, UNMATCHED]
        true = sorted({pair[0] for pair in self.pairs})
        table = np.zeros((len(true), len(names)), np.int64)
        for (one, other), pixels in zip(self.pairs, self.pair_pixels[:, place], strict=True):
            table[true.index(one), names.index(other)] = pixels
        shown = [column for column in range(len(names)) if names[column] in true or table[:, column].any()]
        found = pd.DataFrame(table[:, shown], pd.Index(true, name="true"), [names[column] for column in shown])
        found.columns.name = "predicted"
        return found.div(found.sum(axis=1), axis=0) if share else found

    def by_class(self) -> pd.DataFrame:
        """Return IoU and accuracy (0..1) of every class that occurs: the row, class, IoU, accuracy, pixels, images."""
        pixels = self.pixels
        hits, true, predicted = (
            pixels.sum("image").sel(count=name, drop=True) for name in ("hits", "true", "predicted")
        )
        shown = (pixels.sel(count="true", drop=True) > 0).sum("image")
        columns = {"IoU": hits / (true + predicted - hits), "accuracy": hits / true, "pixels": true, "images": shown}
        table = xr.Dataset(columns).to_dataframe().query("pixels > 0").reset_index()
        return table[[*self.rows.names, "class", *columns]]

    def by_size(self) -> pd.DataFrame:
        """Return IoU of objects by their share of the image.

        Returns:
            The row, size (`SIZES`), IoU (0..1, mean over objects), objects. An object is all pixels in an image of a
            class that is not stuff.
        """
        things = [name for name in self.class_names if name not in self.background]
        pixels = self.pixels
        hits, true, predicted = (pixels.sel({"class": things, "count": c}, drop=True) for c in pixels["count"].values)
        # the share of the pixels that are not ignored
        share = true / pixels.sel(count="true", drop=True).sum("class")
        objects = xr.Dataset({"IoU": hits / (true + predicted - hits), "share": share.where(true > 0)})
        table = objects.to_dataframe().dropna(subset=["share"])
        table["size"] = pd.cut(table["share"], [0, *SIZES.values()], labels=list(SIZES)).astype(str)
        keys = [*self.rows.names, "size"]
        found = table.groupby(keys, sort=False)["IoU"].agg(IoU="mean", objects="size")
        order = pd.MultiIndex.from_tuples([(*row, size) for row in self.rows for size in SIZES], names=keys)
        return found.reindex(order).fillna({"objects": 0}).reset_index()

    def of_images(self) -> pd.DataFrame:
        """Return scores of each image, over its own classes, for best and worst cases.

        Returns:
            Columns image, class_names (joined by a comma), the row, `SCORES` and custom metrics.
        """
        named, tables = self._shown_names(), []
        for place, row in enumerate(self.rows):
            counts = self._counts(place)
            found = {name: metrics.score(counts, KINDS[name], self._classes(name)).numpy() for name in SCORES}
            own = {name: values[:, place] for name, values in self.values.items()}
            keys = {"image": self.images, "class_names": named} | dict(zip(self.rows.names, row, strict=True))
            tables.append(pd.DataFrame(keys | found | own))
        return pd.concat(tables, ignore_index=True).sort_values("image", kind="stable", ignore_index=True)

    def leave_one_out(
        self, score: str = "mIoU", images: Sequence[int] | None = None
    ) -> tuple[Float[np.ndarray, " row"], Float[np.ndarray, "row image"]]:
        """Return a score of each row, and what it is without each image, for `metrics.interval`.

        Args:
            score: one of `SCORES`, or a custom metric.
            images: positions of the images that count; None for all.

        Raises:
            InputError: an unknown score, or no such image.
        """
        one_of(score, "score", (*SCORES, *self.values), "score='mIoU'")
        places = list(range(len(self.images))) if images is None else as_indices(images, "images", len(self.images))
        if score in self.values:
            values = self.values[score][places]
            without = [_mean(np.delete(values, index, 0), 0) for index in range(len(values))]
            return _mean(values, 0), np.stack(without, -1)
        found, left = [], []
        for row in range(len(self.rows)):
            counts = self._counts(row)[places]
            found.append(metrics.score(counts.sum(0), KINDS[score], self._classes(score)).item())
            left.append(metrics.leave_one_out(counts, KINDS[score], self._classes(score)).numpy())
        return np.array(found), np.stack(left)

    def throughput(self) -> str:
        """Report the images per second, and the share of time of each kind of work."""
        total = sum(self.seconds.values())
        if not self.done or not total:
            return "all images were done before"
        shares = ", ".join(f"{work} {seconds / total:.0%}" for work, seconds in sorted(self.seconds.items()))
        return f"{self.done} images at {self.done / total:.2f} a second: {shares}"

    def __repr__(self) -> str:
        scores = self.totals["mIoU"]
        best = "" if scores.isna().all() else f", best mIoU {scores.max():.1%} ({self._name(int(scores.argmax()))})"
        return f"Evaluation({self.settings['model']}, {len(self.images)} images, {len(self.rows)} rows{best})"

    def _repr_html_(self) -> str:
        scores = self.rows.to_frame(index=False).join((100 * self.totals[list(SCORES)]).round(1))
        return f"<div>{repr(self).replace('<', '&lt;')}, in %</div>{scores.to_html(index=False, max_rows=20)}"

    def _classes(self, score: str) -> list[int] | None:
        """Return the positions of the classes that a score averages over."""
        if score not in ("object_mIoU", "background_mIoU"):
            return None
        stuff = score == "background_mIoU"
        return [place for place, name in enumerate(self.class_names) if (name in self.background) == stuff]

    def _counts(self, row: int) -> Int[Tensor, "image class 3"]:
        result = np.zeros((len(self.images), len(self.class_names), 3), np.int64)
        result[self.cells[:, 0], self.cells[:, 1]] = self.counts[:, row]
        return torch.from_numpy(result)

    def _place(self, row: Row) -> int:
        """Return the position of a row."""
        names, chosen = list(self.rows.names), row
        if isinstance(row, Integral) and not isinstance(row, bool) and 0 <= int(row) < len(self.rows):
            return int(row)
        if row is None:
            chosen = {}
        elif isinstance(row, str):
            chosen = {names[0]: row}
        elif isinstance(row, Sequence) and len(row) <= len(names):
            chosen = dict(zip(names, row, strict=False))
        told = "; ".join(self._name(place) for place in range(min(6, len(self.rows))))
        if not isinstance(chosen, Mapping) or (set(chosen) - set(names)):
            raise InputError(
                f"expected a row by {', '.join(names)}, got {row!r}: pass a dict such as {{{names[0]!r}: ...}}"
            )
        places = [
            place
            for place, own in enumerate(self.rows)
            if all(isinstance(value, Hashable) and own[names.index(name)] == value for name, value in chosen.items())
        ]
        if len(places) != 1:
            raise InputError(
                f"expected one row, got {len(places)} for {row!r}: choose one by {', '.join(names)} ({told})"
            )
        return places[0]

    def _name(self, place: int) -> str:
        """Name a row by the values that distinguish it."""
        own = dict(zip(self.rows.names, self.rows[place], strict=True))
        differing = [name for name in self.rows.names if self.rows.get_level_values(name).nunique() > 1]
        if "method" in own:
            return " ".join([str(own["method"]), *([str(own["protocol"])] if "protocol" in differing else [])])
        return ", ".join(f"{name.replace('_', ' ')} {own[name]}" for name in differing or ["layer"])

    def _shown_names(self) -> list[str]:
        names: list[list[str]] = [[] for _ in self.images]
        for (image, place), counts in zip(self.cells, self.counts, strict=True):
            if counts[:, 1].any():
                names[image].append(self.class_names[place])
        return [", ".join(sorted(own)) for own in names]


def _mean(values: Float[np.ndarray, "*shape"], axis: int) -> Float[np.ndarray, "*less"]:
    """Return the mean without NaN; NaN where all values are NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(values, axis))
