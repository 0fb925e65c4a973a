"""Generate the pictures of benchmarks."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from seg4diff_tools.cli.options import T5, Dtype, Lora, ModelName, loaded


def generate(
    layout: Annotated[Literal["geneval", "t2i-compbench"], typer.Option(help="Benchmark that judges the pictures.")],
    prompts: Annotated[
        Path,
        typer.Option(
            exists=True, dir_okay=False, help="GenEval's evaluation_metadata.jsonl, or a text file of T2I-CompBench++."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")],
    model: ModelName = "mini",
    lora: Lora = None,
    dtype: Dtype = "auto",
    t5: T5 = False,
    images: Annotated[
        int | None, typer.Option(min=1, help="Per prompt; 4 for GenEval, 10 for T2I-CompBench++ by default.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of sampling.")] = 28,
    guidance_scale: Annotated[float | None, typer.Option(help="The model's own by default.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of each prompt's first picture; seed + k of picture k.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 8,
) -> None:
    """Generate pictures for GenEval or T2I-CompBench++; several GPUs: accelerate launch -m seg4diff_tools generate.

    An interrupted run resumes when the same command is given again.
    """
    from seg4diff_tools._runs import processes, refuse_other
    from seg4diff_tools.generation.benchmarks import generate_benchmark, read_prompts

    # before the model is loaded
    read_prompts(prompts, layout)
    refuse_other(out, {"layout": layout, "steps": steps, "seed": seed}, "a benchmark's pictures")
    with loaded(model, dtype, lora, t5) as backbone:
        folder = generate_benchmark(
            backbone,
            layout,
            prompts,
            out,
            images=images,
            steps=steps,
            guidance_scale=guidance_scale,
            seed=seed,
            batch=batch,
        )
    if processes().is_main_process:
        typer.echo(f"{folder}: now judge it with the benchmark's own code")
