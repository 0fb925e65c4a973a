"""Pictures for GenEval and T2I-CompBench++, in the folder layouts of the benchmarks' own evaluations."""

import hashlib
import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import PIL.Image
from tqdm.auto import tqdm

from seg4diff_tools._runs import as_path, open_run, processes, replace_file
from seg4diff_tools.backbones import as_backbone
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.caching import model_fingerprint
from seg4diff_tools.datasets.files import read_text
from seg4diff_tools.errors import InputError, PromptError, one_of
from seg4diff_tools.images import encode
from seg4diff_tools.indices import as_float, as_int
from seg4diff_tools.prompts import check_prompt

Layout = Literal["geneval", "t2i-compbench"]
IMAGES: dict[Layout, int] = {"geneval": 4, "t2i-compbench": 10}
"""Number of pictures for each prompt, by benchmark."""


@dataclass(frozen=True)
class BenchmarkPrompt:
    """A prompt of a benchmark: its text, its line in the file (from 1), and GenEval's metadata."""

    text: str
    line: int
    metadata: dict[str, Any] | None = None


def read_prompts(path: str | Path, layout: Layout) -> list[BenchmarkPrompt]:
    """Read a benchmark's prompts.

    Args:
        path: GenEval's `evaluation_metadata.jsonl`, one JSON object with "prompt" a line; or a text file of
            T2I-CompBench++, such as `color_val.txt`, one prompt a line (up to the first tab). Empty lines are skipped.
        layout: the benchmark.

    Raises:
        InputError: no such file, no or malformed lines, or a prompt that cannot be part of a file's name.
    """
    one_of(layout, "layout", get_args(Layout))
    path = as_path(path, "prompts")
    lines = read_text(path, "a text file of prompts").splitlines()
    read = _from_json if layout == "geneval" else _from_text
    found = [read(line, number, path) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise InputError(f"expected prompts in {path}, got an empty file: write one prompt a line")
    return found


def _from_json(line: str, number: int, path: Path) -> BenchmarkPrompt:
    try:
        told = json.loads(line)
    except ValueError as error:
        raise InputError(f"line {number} of {path} is not JSON ({error}): fetch the file again") from error
    if not isinstance(told, dict) or not isinstance(told.get("prompt"), str) or not told["prompt"].strip():
        raise InputError(f'expected a JSON object with "prompt" in line {number} of {path}, got {line[:60]}')
    return BenchmarkPrompt(told["prompt"], number, told)


def _from_text(line: str, number: int, path: Path) -> BenchmarkPrompt:
    text = line.split("\t", maxsplit=1)[0].strip()
    # the benchmark's evaluation reads the prompt from a file's name up to the first "_"
    if not text or set(text) & set("/\\_\0") or len(_name(text, 0).encode()) > 251:
        raise InputError(
            "expected a prompt that can be a file's name, short and without '/', '\\' and '_', "
            f"in line {number} of {path}, got {text[:60]!r}"
        )
    return BenchmarkPrompt(text, number)


def generate_benchmark(
    backbone: Backbone,
    layout: Layout,
    prompts: str | Path,
    out: str | Path,
    *,
    images: int | None = None,
    steps: int = 28,
    guidance_scale: float | None = None,
    seed: int = 0,
    batch: int = 8,
    progress: bool = True,
) -> Path:
    """Generate the pictures of a benchmark, or the missing ones of an interrupted run.

    Under `accelerate launch`, process i of n makes the pictures of prompts i, i + n, i + 2n and so on. Picture k of
    every prompt starts from the noise of seed + k in any process or batch, since the benchmarks' own scripts reseed for
    every prompt; another batch size may change the last bits of a picture.

    Args:
        backbone: the model, with its LoRA if it has one.
        layout: "geneval" writes OUT/00000/metadata.jsonl and OUT/00000/samples/0000.png; "t2i-compbench" writes
            OUT/samples/{prompt}_000000.png, numbered through all prompts as in the benchmark's own script.
        prompts: file for `read_prompts`.
        out: folder; files are written atomically. Readable pictures are kept.
        images: per prompt; None for the benchmark's own number, 4 or 10.
        steps: of sampling.
        guidance_scale: None for the backbone's own.
        seed: of each prompt's first picture.
        batch: pictures at once.
        progress: show a progress bar, in the first process.

    Raises:
        InputError: as in `read_prompts`; or the folder holds other files, or pictures with other settings.
        PromptError: a prompt does not fit; the message names its line.
    """
    out, prompts = as_path(out, "out"), as_path(prompts, "prompts")
    asked = read_prompts(prompts, layout)
    images = as_int(IMAGES[layout] if images is None else images, "images", 1)
    batch, steps, seed = as_int(batch, "batch", 1), as_int(steps, "steps", 1), as_int(seed, "seed", 0)
    backbone = as_backbone(backbone)
    _check_length(backbone, asked, prompts)
    guidance_scale = as_float(backbone.guidance_scale if guidance_scale is None else guidance_scale, "guidance_scale")
    settings = {
        "layout": layout,
        "prompts": hashlib.sha256(prompts.read_bytes()).hexdigest()[:16],
        "images": images,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "seed": seed,
        "model": backbone.name,
        "weights": model_fingerprint(backbone),
    }
    state = processes()
    open_run(out, settings, "a benchmark's pictures")

    jobs = []
    for number in range(state.process_index, len(asked), state.num_processes):
        folder = out / f"{number:05d}" if layout == "geneval" else out
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        if layout == "geneval":
            replace_file(folder / "metadata.jsonl", json.dumps(asked[number].metadata).encode())
        for k in range(images):
            name = f"{k:04d}.png" if layout == "geneval" else _name(asked[number].text, number * images + k)
            jobs.append((asked[number].text, seed + k, folder / "samples" / name))
    waiting = [job for job in jobs if not _readable(job[2])]
    shown = progress and state.is_main_process
    with tqdm(total=len(jobs), initial=len(jobs) - len(waiting), unit="picture", desc=layout, disable=not shown) as bar:
        for start in range(0, len(waiting), batch):
            texts, seeds, paths = zip(*waiting[start : start + batch], strict=True)
            pictures = backbone.generate(
                list(texts), seed=list(seeds), steps=steps, guidance_scale=guidance_scale, progress=False
            )
            for path, picture in zip(paths, pictures, strict=True):
                replace_file(path, encode(picture))
            bar.update(len(paths))
    state.wait_for_everyone()
    return out


def _name(prompt: str, number: int) -> str:
    return f"{prompt}_{number:06d}.png"


def _check_length(backbone: Backbone, prompts: list[BenchmarkPrompt], path: Path) -> None:
    """Check that all prompts fit, before generation."""
    for prompt in prompts:
        try:
            check_prompt(*backbone.family.tokenizer_and_limit(backbone.pipe), unicodedata.normalize("NFC", prompt.text))
        except PromptError as error:
            raise PromptError(f"line {prompt.line} of {path}: {error}") from error


def _readable(path: Path) -> bool:
    try:
        with PIL.Image.open(path) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True
