"""Copy the chapters as notebooks."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from seg4diff_tools.cli.stripped import stripped
from seg4diff_tools.errors import InputError


def chapters(folder: Annotated[Path, typer.Argument(help="Target folder; created if missing.")]) -> None:
    """Write the chapters, without outputs, as notebooks to run and change; existing files are never overwritten."""
    package = Path(str(files("seg4diff_tools")))
    shipped = package / "chapters"  # in a wheel; a checkout has them beside the package
    sources = sorted((shipped if shipped.is_dir() else package.parent / "notebooks").glob("*.ipynb"))
    folder = folder.expanduser()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"expected a folder, got the file {folder}: name another")
    if there := [source.name for source in sources if (folder / source.name).exists()]:
        raise InputError(f"expected a folder without {there[0]}, got {folder}: name another, nothing was written")
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        (folder / source.name).write_text(stripped(source.read_text(encoding="utf-8")), encoding="utf-8")
    typer.echo(f"{len(sources)} chapters in {folder}: jupyter lab {folder}")
