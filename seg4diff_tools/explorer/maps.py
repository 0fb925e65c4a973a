"""Recorded maps for a viewer: all words of one setting at a time, in 8 bits."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float, Float32, UInt8

from seg4diff_tools.attention.request import OUTSIDE
from seg4diff_tools.errors import InputError, shown
from seg4diff_tools.explorer.words import GROUPS, Word, listed, tokens_of, words_of
from seg4diff_tools.plotting.checks import check_maps

AXES = ("recording", "direction", "image", "frame", "branch", "layer", "step", "head")
"""Axes of a viewer's settings, in order: all recorded ones except words and positions."""
# Axes to thin out where the maps do not fit, in order, each with the number of entries to keep before going on.
LADDER = (
    *(("head", 1), ("step", 7), ("grid", 16), ("branch", 1), ("frame", 5), ("image", 1), ("layer", 8)),
    *(("step", 1), ("layer", 1), ("frame", 1), ("direction", 1), ("recording", 1), ("grid", 1)),
)
Selection = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Quantized:
    """Maps in 8 bits, each with its own scale: value = low + code / 254 * (high - low).

    Args:
        codes: 0 for the smallest value of a map, 254 for its largest, 255 for NaN or infinite values.
        low, high: smallest and largest value of each map; both NaN for one that was not recorded.
    """

    codes: UInt8[np.ndarray, "map y x"]
    low: Float32[np.ndarray, " map"]
    high: Float32[np.ndarray, " map"]

    @property
    def content(self) -> bytes:
        """Return all lows, all highs (float32, little-endian), then the codes."""
        return b"".join(part.tobytes() for part in (self.low.astype("<f4"), self.high.astype("<f4"), self.codes))


def quantize(maps: Float[np.ndarray, "map y x"]) -> Quantized:
    """Quantize maps to 8 bits, with errors of at most 1/508 of each map's range."""
    maps = maps.astype(np.float32, copy=False)
    there = np.isfinite(maps)
    low = np.where(there, maps, np.float32(np.inf)).min((1, 2))
    high = np.where(there, maps, np.float32(-np.inf)).max((1, 2))
    low, high = (np.where(np.isfinite(ends), ends, np.float32(np.nan)) for ends in (low, high))
    scale = np.float32(254) / np.where(high > low, high - low, np.float32(1))
    codes = np.rint((maps - low[:, None, None]) * scale[:, None, None])
    return Quantized(np.where(there, codes, 255).astype(np.uint8), low, high)


class MapSource:
    """The maps of one or several recordings, indexed by the values of their axes.

    Args:
        recordings: for each name of a recording its maps by direction, such as {"before": {"i2t": maps}}; axes y, x,
            and any of image, frame, branch, layer, step, head and token (or class, or concept).
        phrases: phrases that are shown as one word, such as "night sky", where the prompt has them.
        schedule: length of the whole schedule; None infers it from a recording of all steps from 0 on.

    Attributes:
        axes: for each of `AXES` the values that all recordings have; [None] for a missing axis. "mean" among heads is
            the mean over them.
        tokens: one `Word` for each token.
        words: `tokens` with sub-words and phrases joined, and all padding as one.
        grid: rows and columns of image tokens.
        schedule: as given or inferred, 0 if unknown.
        sentence: the prompt, "" if unknown or if the images have several.

    Raises:
        InputError: nothing to show, an unknown axis, or recordings with different words or grids, or without a common
            layer or step; words outside the prompt beside those of the prompt.
    """

    def __init__(
        self,
        recordings: Mapping[str, Mapping[str, xr.DataArray]],
        phrases: Sequence[str] = (),
        schedule: int | None = None,
    ):
        named = {
            (name, direction): maps for name, directions in recordings.items() for direction, maps in directions.items()
        }
        if not named:
            raise InputError("expected recorded maps, got a recording without any: record direction='i2t' or 't2i'")
        for directions in recordings.values():
            check_directions(directions)
        self._maps = {key: _canonical(maps) for key, maps in named.items()}
        first = next(iter(self._maps.values()))
        self.tokens, self.words = tokens_of(first), words_of(first, phrases)
        self.grid = first.sizes["y"], first.sizes["x"]
        self._places: dict[tuple[str, str], dict[str, dict[Any, int]]] = {}
        for key, maps in self._maps.items():
            _check_alike(first, maps, key[0])
            self._places[key] = {axis: {v: i for i, v in enumerate(_values(maps, axis))} for axis in AXES[2:]}
        self.axes: dict[str, list] = {
            "recording": list(recordings),
            "direction": [
                direction
                for direction in next(iter(recordings.values()))
                if all(direction in r for r in recordings.values())
            ],
        }
        for axis in AXES[2:]:
            others = list(self._places.values())
            self.axes[axis] = [v for v in others[0][axis] if all(v in places[axis] for places in others)]
        for axis, values in self.axes.items():
            if not values:
                raise InputError(
                    f"expected recordings with a common {axis}, got none: record one that all of them have"
                )
        if len(_heads := self.axes["head"]) > 1 and "mean" not in _heads:
            self.axes["head"] = ["mean", *_heads]
        self.schedule = _schedule(first) if schedule is None else schedule
        prompts = np.unique(first["prompt"].values).tolist() if "prompt" in first.coords else []
        self.sentence = str(prompts[0]) if len(prompts) == 1 else ""

    def default(self) -> dict[str, Any]:
        """Return the initial setting: conditional branch, layer and step at the paper's depth (9 of 24, 20 of 28)."""
        start = {axis: values[0] for axis, values in self.axes.items()}
        if "cond" in self.axes["branch"]:
            start["branch"] = "cond"
        layers, steps = self.axes["layer"], self.axes["step"]
        return start | {"layer": layers[len(layers) * 3 // 8], "step": steps[len(steps) * 5 // 7]}

    def find(self, label: str) -> Word:
        """Return the word or token with this label.

        Raises:
            InputError: an unknown label; the message names the known ones.
        """
        for word in (*self.words, *self.tokens):
            if word.label == label:
                return word
        known = [word.label for word in self.words if word.kind == "word"]
        raise InputError(f"expected one of the words {known}, got {label!r}: choose one of these")

    def check(self, axis: str, value: Any) -> Any:
        """Return the value of an axis in the form of `axes`.

        Raises:
            InputError: an unknown value.
        """
        values = self.axes[axis]
        if getattr(value, "ndim", 0) or value not in values:
            if values in ([None], [""]):
                raise InputError(f"expected no {axis}, which these maps do not have, got {shown(value)}: leave it out")
            known = f"{values[0]} to {values[-1]}" if len(values) > 9 else ", ".join(map(str, values))
            raise InputError(f"expected a recorded {axis} ({known}), got {shown(value)}: choose one of these")
        return values[values.index(value)]

    def maps(self, selection: Selection, tokens: Sequence[int] | None = None) -> Float[np.ndarray, "token y x"]:
        """Return the maps of one setting, a value for each of `AXES`, of some tokens by position or of all.

        Raises:
            InputError: an unknown value.
        """
        selection = {axis: self.check(axis, selection[axis]) for axis in AXES}
        key = selection["recording"], selection["direction"]
        places = self._places[key]
        *index, head = ((places[axis].get(selection[axis])) for axis in AXES[2:])
        # of a lazily computed array, only this part
        found = np.asarray(self._maps[key].data[tuple(index)])
        found = found if tokens is None else found[:, list(tokens)]
        if head is not None:
            return found[head].astype(np.float32, copy=False)
        shared = [places["head"][value] for value in self.axes["head"] if value in places["head"]]
        return found[shared or slice(None)].mean(0, dtype=np.float32)

    def word_map(self, selection: Selection, label: str) -> Float[np.ndarray, "y x"]:
        """Return the map of one word: the mean over its tokens."""
        return self.maps(selection, self.find(label).tokens).mean(0)

    def along(self, axis: str, selection: Selection, tokens: Sequence[int]) -> Float[np.ndarray, "value y x"]:
        """Return the mean map of tokens for each value of an axis, for small multiples."""
        return np.stack([self.maps({**selection, axis: value}, tokens).mean(0) for value in self.axes[axis]])

    def stored(self, limit: int, *panels: Selection) -> dict[str, Any]:
        """Return the maps that fit into a page, for a viewer without Python.

        Padding is kept as its mean; heads, steps, layers and image tokens are thinned out to fit.

        Args:
            limit: of all maps together, in characters of base64.
            panels: a value for each of `AXES`, for each shown panel; these are always kept.

        Returns:
            The kept axes, tokens and words, in the form of `listed`; "slices": contents of `Quantized` in base64 by the
            positions of their values on the kept axes, such as "0,0,0,1,4,20,0"; "shape": of each; "kept": what was
            omitted, as a sentence, or "".
        """
        columns = [part for word in self.words for part in self._parts(word)]
        kept, cells = dict(self.axes), 1

        def size() -> int:
            slices = prod(len(values) for values in kept.values())
            return slices * len(columns) * (self.grid[0] * self.grid[1] // cells**2 + 8) * 4 // 3

        for axis, least in LADDER:
            if axis == "grid":
                while (
                    size() > limit and min(self.grid) // cells > least and not any(n % (2 * cells) for n in self.grid)
                ):
                    cells *= 2
                continue
            shown = {panel[axis] for panel in panels}
            while size() > limit and len(kept[axis]) > max(least, len(shown)):
                halved = [v for i, v in enumerate(kept[axis]) if i % 2 == 0 or v in shown]
                kept[axis] = halved if len(halved) < len(kept[axis]) else [v for v in kept[axis] if v in shown]
        rows, across = (n // cells for n in self.grid)
        at = {part.label: i for i, part in enumerate(columns)}

        def places(word: Word) -> tuple[int, ...]:
            return tuple(at[part.label] for part in self._parts(word))

        slices = {}
        for at_values in product(*(range(len(values)) for values in kept.values())):
            maps = self.maps({axis: kept[axis][i] for axis, i in zip(kept, at_values, strict=True)})
            means = np.stack([maps[list(column.tokens)].mean(0) for column in columns])
            pooled = means.reshape(len(columns), rows, cells, across, cells).mean((2, 4))
            slices[",".join(map(str, at_values))] = base64.b64encode(quantize(pooled).content).decode()
        return {
            "axes": kept,
            "tokens": [told | {"tokens": (place,)} for place, told in enumerate(listed(columns))],
            "words": [
                told | {"tokens": places(word)} for word, told in zip(self.words, listed(self.words), strict=True)
            ],
            "shape": [len(columns), rows, across],
            "slices": slices,
            "kept": self._kept(kept, len(columns), (rows, across)),
        }

    def _parts(self, word: Word) -> list[Word]:
        """Return the parts of a word that a page keeps: its tokens, or all padding as one."""
        return [word] if word.kind in GROUPS else [self.tokens[i] for i in word.tokens]

    def _kept(self, kept: Mapping[str, list], tokens: int, grid: tuple[int, int]) -> str:
        parts = [
            f"{len(kept[axis])} of {len(values)} {axis}{'es' if axis == 'branch' else 's'}"
            for axis, values in self.axes.items()
            if len(kept[axis]) < len(values)
        ]
        parts += [f"{grid[0]} x {grid[1]} of {self.grid[0]} x {self.grid[1]} image tokens"] if grid != self.grid else []
        parts += ["one average map of all padding tokens"] if tokens < len(self.tokens) else []
        said = " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))
        return f"This page keeps {said}; run in a notebook, the explorer has all." if parts else ""


def check_directions(directions: Iterable[str]) -> None:
    """Check that maps of one recording can have the same words.

    Raises:
        InputError: words of the prompt, and words outside of it.
    """
    directions = list(directions)
    inside, outside = ([name for name in directions if name in kinds] for kinds in (OUTSIDE.values(), OUTSIDE))
    if inside and outside:
        raise InputError(
            f"expected maps of the prompt's words, or of words outside of it, got both: {', '.join(directions)}: pass "
            f"one direction, such as recording[{outside[0]!r}], or record it alone"
        )


def _canonical(maps: xr.DataArray) -> xr.DataArray:
    """Return maps with all axes in one order; missing ones get length 1 and no values."""
    if "token" not in maps.dims:
        maps = maps.rename({name: "token" for name in ("class", "concept") if name in maps.dims})
    order = (*AXES[2:], "token", "y", "x")
    check_maps(maps)
    if unknown := [dim for dim in maps.dims if dim not in order]:
        raise InputError(
            f"expected maps with axes from {', '.join(order)}, got an axis {unknown[0]!r}: select one entry of it with "
            "maps.sel"
        )
    numbered = {d: range(maps.sizes[d]) for d in maps.dims if d not in maps.coords and d not in ("y", "x")}
    maps = maps.assign_coords(numbered)
    labels = maps["token"].values.tolist() if "token" in maps.dims else []
    if len(set(labels)) < len(labels):
        raise InputError(f"expected tokens with distinct labels, got {labels}: assign distinct ones to maps['token']")
    return maps.expand_dims([dim for dim in order if dim not in maps.dims]).transpose(*order)


def _values(maps: xr.DataArray, axis: str) -> list:
    if axis in maps.indexes:
        return maps[axis].values.tolist()
    return ["mean"] if axis == "head" and maps.attrs.get("heads") == "mean" else [None]


def _schedule(maps: xr.DataArray) -> int:
    """Return the length of the schedule if the maps have all of its steps; 0 if unknown."""
    steps = _values(maps, "step")
    count = len(steps)
    if count < 2 or steps != list(range(count)):
        return 0
    if "timestep" in maps.coords:
        times = np.asarray(maps["timestep"].values, np.float64).reshape(count, -1)[:, 0]
        # a whole schedule falls from pure noise to a last step below this, for shifts up to 6
        whole = np.isclose(times[0], (1, 1000)).any() and (np.diff(times) < 0).all()
        return count if whole and times[-1] / times[0] <= 6 / (count + 5) else 0
    return count


def _check_alike(first: xr.DataArray, other: xr.DataArray, name: str) -> None:
    ours, theirs = ([token.label for token in tokens_of(maps)] for maps in (first, other))
    if ours != theirs:
        raise InputError(
            f"expected recordings of the same prompt, got other tokens in {name!r}: {theirs[:9]} in place of "
            f"{ours[:9]}: record the same prompt"
        )
    grids = [(maps.sizes["y"], maps.sizes["x"]) for maps in (first, other)]
    if grids[0] != grids[1]:
        raise InputError(
            f"expected recordings of the same image size, got grids of {grids[0]} and {grids[1]} tokens: record images "
            "of the same size"
        )
