"""Results as netCDF files: written whole or not at all, checked when opened."""

import os
from pathlib import Path

import xarray as xr

from seg4diff_tools._runs import as_path, written_whole
from seg4diff_tools.errors import Seg4DiffError


def write_netcdf(dataset: xr.Dataset, path: str | os.PathLike[str], kind: str, version: int) -> Path:
    """Write a compressed netCDF 4 file of a kind, such as "seg4diff_tools recording", and a format version; return its
    path.

    Raises:
        InputError: something that is no path.
        CheckpointError: the file cannot be written.
    """
    path = as_path(path)
    encoding = {str(name): {"zlib": True, "complevel": 1, "shuffle": True} for name in dataset.data_vars}
    with written_whole(path) as partial:
        dataset.assign_attrs(format=kind, format_version=version).to_netcdf(
            partial, engine="h5netcdf", encoding=encoding
        )
    return path


def read_netcdf(path: str | os.PathLike[str], kind: str, version: int, error: type[Seg4DiffError]) -> xr.Dataset:
    """Read all of a file that `write_netcdf` wrote.

    Raises:
        InputError: something that is no path.
        Seg4DiffError: as `error`: no such file, a damaged one, or one of another kind or version.
    """
    path = as_path(path)
    if not path.is_file():
        raise error(f"expected a {kind}, got {path}, where there is no file: pass the path that it was saved to")
    try:
        dataset = xr.load_dataset(path, engine="h5netcdf")
    except Exception as problem:  # each damage of the file has its own error in HDF5
        text = f"expected a {kind}, got {path}, not a readable netCDF file ({problem}): save it again"
        raise error(text) from problem
    found = dataset.attrs.get("format"), dataset.attrs.get("format_version")
    if found != (kind, version):
        raise error(
            f"expected a {kind} of format version {version}, got {path} of format {found[0]}, version {found[1]}: save "
            "it again with this version"
        )
    return dataset
