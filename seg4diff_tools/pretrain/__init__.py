"""Train a very small Stable Diffusion 3 on captioned scenes: the embedded model, or one of your own.

`run_stage` trains one part (clip, then vae, then transformer), `export` writes the diffusers pipeline, and
`report.measure` says how good it is.
"""

from pathlib import Path

import torch

from seg4diff_tools.backbones.checkpoints import best_device
from seg4diff_tools.errors import InputError
from seg4diff_tools.pretrain.config import RunConfig, preset
from seg4diff_tools.pretrain.loop import train
from seg4diff_tools.pretrain.stages import STAGES, VaeStage, export

__all__ = ["RunConfig", "export", "preset", "run_stage"]


def run_stage(
    name: str, run: Path, config: RunConfig | None = None, device: str | None = None, save_every: int = 500
) -> Path:
    """Train one part of the model, or go on with it, and save its averaged weights.

    Args:
        name: "clip", "vae" or "transformer"; the last needs the others.
        run: folder of the whole run. An existing run goes on with its own configuration, unless `config` is given.
        config: sizes and steps; for a new run "cpu" of `preset` by default.
        device: by default the best at hand.
        save_every: steps between checkpoints.

    Returns:
        The folder of the finished part.

    Raises:
        InputError: unknown part.
        CheckpointError: an earlier part is missing, or a checkpoint cannot be read.
    """
    if name not in STAGES:
        raise InputError(f"a part to train is one of {', '.join(STAGES)}, got {name!r}")
    if config is None:
        config = RunConfig.load(run) if (run / "config.json").exists() else preset("cpu")
    config.save(run)
    place = torch.device(device) if device else torch.device(best_device())
    stage = STAGES[name](config.model, run, place)
    model = train(stage, getattr(config, name), run / name, device=place, save_every=save_every)
    if isinstance(stage, VaeStage):
        stage.calibrate(model)
    model.save_pretrained(run / name)
    return run / name
