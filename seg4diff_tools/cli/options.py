"""What several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from seg4diff_tools.errors import Seg4DiffError, missing_extra


class _Group(TyperGroup):
    """Shows an error that was raised on purpose as one line, without a trace."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Seg4DiffError as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from None
        except ModuleNotFoundError as error:
            if (named := missing_extra(error)) is error:
                raise
            typer.echo(f"error: {named}", err=True)
            raise typer.Exit(2) from None


SHARED: dict[str, Any] = {"cls": _Group, "no_args_is_help": True, "rich_markup_mode": None}
ModelName = Annotated[str, typer.Option(help="mini, a folder in diffusers' layout, or a hub name.")]
Lora = Annotated[str | None, typer.Option(help="Folder of a LoRA to put on, or mini-magnet.")]


def coco(root: Path, split: str, captions: Path | None = None) -> Any:
    """COCO with panoptic masks, in the folders of its archives."""
    from seg4diff_tools import datasets

    # the official archives unpack into a folder of their own
    where = root / "annotations" if (root / "annotations" / f"panoptic_{split}").is_dir() else root
    panoptic = where / f"panoptic_{split}"
    return datasets.coco_panoptic(root / split, panoptic, panoptic.with_suffix(".json"), captions)
