"""Recorded attention as labeled arrays, in memory and in files."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from seg4diff_tools.errors import RecordingError

FORMAT, FORMAT_VERSION = "seg4diff_tools recording", 1


@dataclass(frozen=True, eq=False)
class Recording:
    """Recorded attention, with no reference to the model.

    Args:
        arrays: "i2t" and "t2i" maps with dims (image, branch, step, layer, head, token, y, x) and "masses" with dims
            (image, branch, step, layer, head, direction); no head axis where the mean over heads was recorded. Coordinates
            are the token words or span names (`token_index`: position in the text; `token_start` and `token_stop`: its
            characters in the prompt), and the `timestep` of each step, with a second axis `image` if images of one batch
            were at different timesteps.
    """

    arrays: Mapping[str, xr.DataArray]

    def __getitem__(self, name: str) -> xr.DataArray:
        if name not in self.arrays:
            raise RecordingError(f"{name!r} was not recorded; this recording holds {', '.join(self.arrays)}.")
        return self.arrays[name]

    @property
    def maps(self) -> xr.DataArray:
        """The recorded maps, if only one of "i2t" and "t2i" was recorded."""
        if len(self.map_blocks) != 1:
            count = len(self.map_blocks)
            raise RecordingError(f"maps needs one recorded map direction, there are {count}; use recording['i2t'].")
        return next(iter(self.map_blocks.values()))

    @property
    def map_blocks(self) -> dict[str, xr.DataArray]:
        """The recorded maps by direction, "i2t" or "t2i" or both."""
        return {name: array for name, array in self.arrays.items() if name != "masses"}

    @property
    def masses(self) -> xr.DataArray:
        """The recorded attention masses of the four directions."""
        return self["masses"]

    def save(self, path: str | os.PathLike) -> Path:
        """Write a netCDF file (read again with `open_recording`, or by any netCDF 4 reader); returns its path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset = xr.Dataset(dict(self.arrays), attrs={"format": FORMAT, "format_version": FORMAT_VERSION})
        encoding = {name: {"zlib": True, "complevel": 1, "shuffle": True} for name in self.arrays}
        # Written beside its place and moved there, so that a killed run leaves no half file under this name.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            written = Path(folder, "recording.nc")
            dataset.to_netcdf(written, engine="h5netcdf", encoding=encoding)
            written.replace(path)
        return path


def open_recording(path: str | os.PathLike) -> Recording:
    """Read a recording that `Recording.save` wrote.

    Raises:
        RecordingError: there is no such file, it is damaged, or it is no recording of a version this package reads.
    """
    path = Path(path)
    if not path.is_file():
        raise RecordingError(f"There is no file {path}; give the path that the recording was saved to.")
    try:
        dataset = xr.load_dataset(path, engine="h5netcdf")
    except Exception as error:  # each damage of the file has its own error in HDF5
        raise RecordingError(f"{path} is not a readable netCDF file ({error}); record and save it again.") from error
    found = dataset.attrs.get("format"), dataset.attrs.get("format_version")
    if found != (FORMAT, FORMAT_VERSION):
        raise RecordingError(
            f"Expected a {FORMAT} of format version {FORMAT_VERSION}; {path} has format {found[0]}, version {found[1]}."
        )
    text = {name: values.astype(str) for name, values in dataset.coords.items() if values.dtype == object}
    dataset = dataset.assign_coords(text)
    return Recording({str(name): array for name, array in dataset.data_vars.items()})
