"""Shared by commands: flags, one-line errors, model loading."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from seg4diff_tools.errors import InputError, Seg4DiffError, missing_extra

# Typer has it from click or from a copy of click
_UsageError: Any = typer.BadParameter.__base__


class _Group(TyperGroup):
    """Prints errors that a user can fix as one line, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Seg4DiffError as error:
            told = _with_flags(" ".join(str(error).split()), self.commands[ctx.invoked_subcommand].params)
        except ModuleNotFoundError as error:
            if (named := missing_extra(error)) is error:
                raise
            told = str(named)
        except _UsageError as error:
            # a group without a command shows its help
            if "\n" in (message := error.format_message()):
                raise
            told = f"{message.rstrip('.')}: see {(error.ctx or ctx).command_path} --help"
        typer.echo(f"error: {told}", err=True)
        raise typer.Exit(2) from None


def _with_flags(message: str, parameters: Any) -> str:
    """Write the arguments that an error names as the flags of a command."""
    flags = {each.name: each.opts[0] for each in parameters if each.opts[0].startswith("--")}
    if not flags:
        return message
    names = "|".join(sorted(flags, key=len, reverse=True))
    message = re.sub(rf"(?<![\w'\"/.=-])({names})=(?=\S)", lambda found: f"{flags[found[1]]} ", message)
    starts = rf"\b(expected|and|with|for)( an?)? ({names})\b(?![./'\"-])"
    return re.sub(starts, lambda found: f"{found[1]}{found[2] or ''} {flags[found[3]]}", message)


SHARED: dict[str, Any] = {"cls": _Group, "no_args_is_help": True, "rich_markup_mode": None}
ModelName = Annotated[str, typer.Option(help="mini, a folder in diffusers' layout, or a hub name.")]
Lora = Annotated[str | None, typer.Option(help="Folder of a LoRA to apply, or mini-magnet.")]
Dtype = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"],
    typer.Option(help="Of the weights; auto is fp32 on a CPU, else bf16 where supported, else fp16."),
]
MemoryBudget = Annotated[
    int | None, typer.Option(min=1, help="Bytes beside the weights, estimated; most of the free memory by default.")
]
T5 = Annotated[bool, typer.Option("--t5", help="Load the T5 encoder of SD3 and 3.5, which the paper omits.")]


@contextmanager
def loaded(model: str, dtype: str, lora: str | None = None, t5: bool = False) -> Iterator[Any]:
    """Load a model; apply a LoRA, if given, inside the `with`."""
    from contextlib import nullcontext

    from seg4diff_tools._runs import processes
    from seg4diff_tools.backbones import apply_lora
    from seg4diff_tools.backbones.loading import load_backbone
    from seg4diff_tools.backbones.lora_files import lora_file

    if lora is not None:
        lora_file(lora)  # refuse a wrong path before the model is loaded
    weights, device = None if dtype == "auto" else dtype, processes().device
    if dtype == "fp16" and device.type == "cpu":
        raise InputError("expected dtype fp32 or bf16 on a CPU, got fp16, which it computes slowly: pass dtype=fp32")
    backbone = load_backbone(model, device=device, dtype=weights, t5=t5)
    if backbone.is_video:
        raise InputError(f"expected --model, one of images, got {model}, one of videos: segment a Video in Python")
    with nullcontext() if lora is None else apply_lora(backbone, lora):
        yield backbone
