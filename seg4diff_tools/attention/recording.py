"""Recorded attention as labeled arrays, in memory and in files."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from seg4diff_tools._netcdf import read_netcdf, write_netcdf
from seg4diff_tools.errors import InputError, PromptError, RecordingError, one_of
from seg4diff_tools.prompts import Prompt, Token

FORMAT, FORMAT_VERSION = "seg4diff_tools recording", 1


@dataclass(frozen=True, eq=False)
class Recording:
    """Recorded attention, with no reference to the model.

    Args:
        arrays: "i2t" and "t2i" maps with dims (image, branch, step, layer, head, token, y, x) and "masses" with dims
            (image, branch, step, layer, head, direction); "i2c" and "c2i" of words outside the prompt with dims (image,
            branch, step, layer, head, concept, y, x); no head axis where the mean over heads was recorded. Maps of a
            video have an axis "frame", its latent frames, before y.
            Coordinates are the token words or span names (`token_index`: position in the text; `token_start` and
            `token_stop`: its characters in the prompt; `token_reader`: its tokenizer; with a second axis `image`, and
            -1 for none, where images have different prompts), the `prompt` of each image, and the `timestep` of each
            step, with a second axis `image` if images of one batch were at different timesteps.
    """

    arrays: Mapping[str, xr.DataArray]

    def __getitem__(self, name: str) -> xr.DataArray:
        if name not in self.arrays:
            raise RecordingError(
                f"expected a recorded direction, got {name!r}: choose from {', '.join(self.arrays)}, or record it too"
            )
        return self.arrays[name]

    @property
    def maps(self) -> xr.DataArray:
        """The recorded maps, if only one direction was recorded."""
        if len(self.map_blocks) != 1:
            count = len(self.map_blocks)
            raise RecordingError(
                f"expected maps of one direction, got {count}: use recording['i2t'], recording['t2i'] or another"
            )
        return next(iter(self.map_blocks.values()))

    @property
    def map_blocks(self) -> dict[str, xr.DataArray]:
        """The recorded maps by direction."""
        return {name: array for name, array in self.arrays.items() if name != "masses"}

    @property
    def masses(self) -> xr.DataArray:
        """The recorded attention masses of the four directions."""
        return self["masses"]

    def __repr__(self) -> str:
        sizes = next(iter(self.arrays.values())).sizes
        return f"Recording({', '.join(self.arrays)}: {', '.join(f'{count} {name}' for name, count in sizes.items())})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Recording):
            return NotImplemented
        return list(self.arrays) == list(other.arrays) and all(
            array.identical(other.arrays[name]) for name, array in self.arrays.items()
        )

    __hash__ = None  # type: ignore[assignment]

    def phrase(self, phrase: str, direction: str | None = None, reader: str | None = None) -> xr.DataArray:
        """Return the mean map over the tokens of a word or phrase (Seg4Diff, arXiv 2509.18096, Eq 10).

        Args:
            phrase: of the prompt, such as "red cat", without regard to case; all of its occurrences count.
            direction: such as "i2t"; None for the one that was recorded. Of "i2c" or "c2i", `phrase` is a concept.
            reader: the tokenizer whose tokens count, of several such as CLIP and T5; None for all of them.

        Returns:
            The maps without the token or concept axis; NaN for images whose prompt lacks the phrase.

        Raises:
            PromptError: the phrase is in no prompt of the recording.
            RecordingError: its tokens were not all recorded, or the recording has no prompt.
        """
        if not isinstance(phrase, str):
            raise InputError(f"expected phrase, a text such as 'red cat', got {phrase!r}: pass phrase='cat'")
        maps = self.maps if direction is None else self[direction]
        if "concept" in maps.dims:
            one_of(phrase, "phrase", maps.concept.values.tolist())
            return maps.sel(concept=phrase, drop=True)
        if "token_start" not in maps.coords:
            if reader is not None:
                raise RecordingError(
                    f"expected reader with recorded tokens, got {reader!r} with named spans: record "
                    f"tokens=['{phrase}@{reader}'], or tokens='words'"
                )
            if phrase in maps.token.values.tolist():
                return maps.sel(token=phrase)
            raise RecordingError(
                f"expected one of the recorded tokens {maps.token.values.tolist()}, got {phrase!r}: record with "
                f"prompt=..."
            )
        found, problems = [], []
        for image in range(maps.sizes["image"]):
            one = maps.isel(image=[image])
            try:
                found.append(one.isel(token=_tokens_of(one, phrase, reader)).mean("token", skipna=False))
            except PromptError as error:
                problems.append(error)
                found.append(one.mean("token") * float("nan"))
        if len(problems) == maps.sizes["image"]:
            raise problems[0]
        return (
            xr.concat(found, "image").transpose(*(dim for dim in maps.dims if dim != "token")).assign_attrs(maps.attrs)
        )

    def save(self, path: str | os.PathLike) -> Path:
        """Write a netCDF file (read again with `open_recording`, or by any netCDF 4 reader); return its path."""
        return write_netcdf(xr.Dataset(dict(self.arrays)), path, FORMAT, FORMAT_VERSION)


def open_recording(path: str | os.PathLike) -> Recording:
    """Read a recording that `Recording.save` wrote.

    Raises:
        RecordingError: there is no such file, it is damaged, or it is no recording of a version this package reads.
    """
    dataset = read_netcdf(path, FORMAT, FORMAT_VERSION, RecordingError)
    text = {name: values.astype(str) for name, values in dataset.coords.items() if values.dtype == object}
    dataset = dataset.assign_coords(text)
    return Recording({str(name): array for name, array in dataset.data_vars.items()})


def _tokens_of(maps: xr.DataArray, phrase: str, reader: str | None) -> list[int]:
    """Columns of one image's tokens that spell a phrase."""
    rows = zip(*(maps[f"token_{name}"].values.ravel() for name in ("start", "stop", "reader")), strict=True)
    tokens = [
        Token(at, "", "word" if start < stop else "pad", int(start), int(stop), str(read_by))
        for at, (start, stop, read_by) in enumerate(rows)
    ]
    prompt = Prompt(str(maps.prompt.values.item()), tuple(tokens), {})
    chosen = prompt.span(phrase, reader=reader)
    read = sorted({place for at in chosen for place in range(tokens[at].start, tokens[at].stop)})
    spelled = "".join(prompt.text[place] for place in read).casefold()
    if "".join(phrase.split()).casefold() not in "".join(spelled.split()):
        raise RecordingError(
            f"expected all tokens of {phrase!r} in the recording, got {spelled!r}: record with tokens='words' or 'all'"
        )
    return list(chosen)
