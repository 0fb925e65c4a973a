"""Train a very small Stable Diffusion 3 on captioned scenes: the embedded model, or another one.

`run_stage` trains one part (clip, then vae, then transformer), `export` writes the diffusers pipeline, and
`report.measure` measures its quality.
"""

import json
import shutil
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seg4diff_tools._runs import as_path, replace_file
from seg4diff_tools.backbones.checkpoints import MINI, read_card
from seg4diff_tools.backbones.loading import as_device
from seg4diff_tools.errors import CheckpointError, instance_of, one_of
from seg4diff_tools.indices import as_indices, as_int
from seg4diff_tools.pretrain.config import EARLIER, RunConfig, preset
from seg4diff_tools.pretrain.latents import pool_size
from seg4diff_tools.pretrain.loop import Stage, train
from seg4diff_tools.pretrain.speed import Speed, pin
from seg4diff_tools.pretrain.stages import STAGES, VaeStage, export
from seg4diff_tools.pretrain.watch import Watch, images_of

__all__ = ["RunConfig", "Speed", "export", "images_of", "pin", "pool_size", "preset", "run_stage", "start_from"]

WORTH_COMPILING = 500
"""Smallest number of steps for which compiling the blocks saves time."""


def run_stage(
    name: str,
    run: str | Path,
    config: RunConfig | None = None,
    device: str | None = None,
    save_every: int = 500,
    *,
    init: str | Path | None = None,
    keep: Sequence[int] = (),
    watch_every: int = 0,
    speed: Speed | None = None,
    compiled: bool | None = None,
    cache: str | Path | None = None,
) -> Path:
    """Train one part of the model, or resume its training, and save its averaged weights.

    Args:
        name: "clip", "vae" or "transformer"; the last needs the others.
        run: folder of the whole run. An existing run resumes with its own configuration, unless `config` is given.
        config: sizes and steps; for a new run "cpu" of `preset` by default.
        device: by default the best available.
        save_every: steps between checkpoints.
        init: "mini", or the folder of a model or a run with finished weights of this part; a new run starts from them
            with fresh optimizers, a run with a checkpoint ignores them. A transformer's run without a CLIP and a VAE
            takes them, and the tokenizer, from the same folder.
        keep: numbers of images at which the transformer's averaged weights are kept.
        watch_every: images between two evaluations of the transformer (object mIoU by layer, pictures); 0 for none.
        speed: settings of computation; by default the fastest for the device.
        compiled: whether blocks are compiled, without `speed`; by default where a compiler is found and the run is long
            enough.
        cache: folder for the transformer's latents; successive runs on the same scenes may share it.

    Returns:
        The folder of the finished part.

    Raises:
        InputError: an unknown part, or an argument of another type or out of range.
        CheckpointError: an earlier part is missing, or a checkpoint is unreadable.
    """
    one_of(name, "name", list(STAGES))
    run, save_every = as_path(run, "run"), as_int(save_every, "save_every", 1)
    init = None if init is None else MINI if str(init) == "mini" else as_path(init, "init")
    cache = None if cache is None else as_path(cache, "cache")
    keep = as_indices(keep, "keep", low=1) if isinstance(keep, Integral) or len(keep) else []
    watch_every = as_int(watch_every, "watch_every", 0)
    one_of(compiled, "compiled", (None, False, True))
    place = as_device(device)
    for value, kind, example in ((config, RunConfig, "config=preset('cpu')"), (speed, Speed, "speed=Speed()")):
        if value is not None:
            instance_of(value, kind, example.partition("=")[0], example)
    if config is None:
        config = RunConfig.load(run) if (run / "config.json").exists() else preset("cpu")
    config.save(run)
    if speed is None:
        short = getattr(config, name).steps < WORTH_COMPILING
        speed = Speed.best(place, False if compiled is None and short else compiled)
    watching = name == "transformer"
    own: dict[str, Any] = {"cache": cache} if watching else {}
    visit = Watch(run, config, keep, watch_every) if watching else None
    fresh = not (run / name / "state.pt").exists()
    if init is not None and fresh and watching:
        _take_parts(run, init)
    part: Any = STAGES[name]
    stage: Stage = part(config.model, run, place, **own)
    if init is not None and fresh:
        start_from(stage.model, init, name)
    model = train(
        stage,
        getattr(config, name),
        run / name,
        device=place,
        save_every=save_every,
        speed=speed,
        modulation=config.model.recipe.modulation,
        visit=visit,
    )
    if isinstance(stage, VaeStage):
        stage.calibrate(model)
    model.save_pretrained(run / name)
    return run / name


def _take_parts(run: Path, init: Path) -> None:
    """Copy the parts of a model that a transformer's run lacks, and what its card says of their training."""
    missing = [part for part in ("clip", "vae", "tokenizer") if (init / part).is_dir() and not (run / part).exists()]
    trained = read_card(init).get("training", {})
    earlier = {name: entry for name, entry in trained.items() if name in missing or name.startswith("transformer")}
    # first, and once: after a kill the parts that were copied are no longer missing
    if earlier and not (run / EARLIER).exists():
        replace_file(run / EARLIER, json.dumps(earlier, indent=1).encode())
    for part in missing:
        copy = run / f"{part}.partial"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(init / part, copy)
        copy.rename(run / part)


def start_from(model: nn.Module, folder: str | Path, part: str) -> None:
    """Load finished weights of one part into a model of the same sizes.

    Args:
        model: gets the weights.
        folder: a model or a run, with a folder for each part, or the folder of the part itself.
        part: "clip", "vae" or "transformer".

    Raises:
        InputError: no model, or an unknown part.
        CheckpointError: the folder holds no such part, or one of other sizes.
    """
    instance_of(model, nn.Module, "model", "the model of a stage")
    one_of(part, "part", list(STAGES))
    folder = as_path(folder, "folder")
    place = folder / part if (folder / part).is_dir() else folder
    if not place.is_dir():
        raise CheckpointError(f"expected the folder of a model or a run, got {folder}, no folder: check the path")
    try:
        loaded = type(model).from_pretrained(place, torch_dtype=torch.float32)
        model.load_state_dict(loaded.state_dict())
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"cannot start from {place}: {reason}. Give the folder of a model with a {part} of this run's sizes"
        ) from error
