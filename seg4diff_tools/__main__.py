"""The command line for long runs: `python -m seg4diff_tools --help`."""

import os

import typer

from seg4diff_tools.cli.chapters import chapters
from seg4diff_tools.cli.evaluate import evaluate
from seg4diff_tools.cli.finetune import finetune
from seg4diff_tools.cli.generate import generate
from seg4diff_tools.cli.options import SHARED
from seg4diff_tools.cli.pretrain import pretrain
from seg4diff_tools.cli.segment import segment

app = typer.Typer(**SHARED, add_completion=False, pretty_exceptions_enable=False, help="Long runs of seg4diff_tools.")
app.add_typer(pretrain, name="pretrain")
for command in (segment, finetune, generate, evaluate, chapters):
    app.command()(command)


@app.callback()
def _main() -> None:
    # that there is no T5 and no torchvision is as it should be
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")


if __name__ == "__main__":
    app(prog_name="python -m seg4diff_tools")
