"""One training loop for every stage: resumable, with a log, a moving average and a progress bar."""

import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from seg4diff_tools._runs import append_row, truncate_log
from seg4diff_tools.errors import CheckpointError
from seg4diff_tools.families._private import foreach
from seg4diff_tools.pretrain.config import StageConfig
from seg4diff_tools.pretrain.muon import BatchedMuon
from seg4diff_tools.pretrain.speed import Speed

Visit = Callable[[int, int, nn.Module], None]
"""Called after each step with the number of finished steps, the images seen, and the averaged model."""

_log = logging.getLogger(__name__)


@runtime_checkable
class Stage(Protocol):
    """Interface of a stage for the training loop."""

    model: nn.Module

    def losses(self, indices: range, generator: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        """Return losses on the scenes with these indices; the first is minimized, the others are logged."""
        ...

    def prepare(self, speed: Speed) -> None:
        """Prepare `model` for fast training, after its average was copied from it."""
        ...


def train(
    stage: Stage,
    config: StageConfig,
    folder: Path,
    *,
    device: torch.device,
    save_every: int = 500,
    speed: Speed | None = None,
    modulation: bool = False,
    visit: Visit | None = None,
) -> nn.Module:
    """Train a stage, or resume an interrupted run of it; return the moving average of its weights as a module.

    Every random number follows from the seed and the step, so that a resumed run ends with the same weights as an
    uninterrupted one, given deterministic operators. Weights, moments and averages are fp32; the forward runs in bf16
    where the hardware is fast at it.

    Args:
        stage: model and losses.
        config: steps, rates and batch size.
        folder: gets `state.pt` (replaced atomically every `save_every` steps), `log.csv` and, separately since it
            differs between runs, `speed.csv` with images per second.
        device: of the model.
        save_every: steps between two checkpoints.
        speed: settings of computation; None for the fastest on the device.
        modulation: whether Muon also trains the blocks' modulation.
        visit: called with the average after each step, before the checkpoint.

    Raises:
        CheckpointError: `state.pt` is unreadable or belongs to another model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    speed = Speed.best(device) if speed is None else speed
    _log.info("%s: %s", folder.name, speed.describe(device))
    state, log, rates = folder / "state.pt", folder / "log.csv", folder / "speed.csv"
    optimizers = _optimizers(stage.model, config, speed, modulation)
    average = AveragedModel(stage.model, multi_avg_fn=_moving_average(config.ema))
    first = _resume(state, stage.model, average, optimizers)
    stage.prepare(speed)
    truncate_log(log, first)
    truncate_log(rates, first)
    progress = tqdm(range(first, config.steps), initial=first, total=config.steps, desc=folder.name, mininterval=5)
    began, since = time.perf_counter(), first
    for step in progress:
        generator = torch.Generator().manual_seed(config.seed * 1_000_000_007 + step)
        torch.manual_seed(config.seed * 1_000_000_007 + step)
        with torch.autocast(device.type, torch.bfloat16, enabled=speed.dtype == torch.bfloat16):
            losses = stage.losses(range(step * config.batch, (step + 1) * config.batch), generator)
        next(iter(losses.values())).backward()
        norm = nn.utils.clip_grad_norm_(stage.model.parameters(), config.clip_gradients)
        rate = _rate(step, config)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.update_parameters(stage.model)
        done = step + 1
        if done % 20 == 0 or done == config.steps:
            row: dict[str, int | float] = {
                "step": done,
                "images": done * config.batch,
                "rate": rate,
                "gradient": norm.item(),
            }
            row |= {name: loss.item() for name, loss in losses.items()}
            append_row(log, row)
            progress.set_postfix({name: f"{row[name]:.4f}" for name in losses}, refresh=False)
        if visit:
            visit(done, done * config.batch, average.module)
        if done % save_every == 0 or done == config.steps:
            _save(state, done, stage.model, average, optimizers)
            now = time.perf_counter()
            per_second = (done - since) * config.batch / (now - began)
            append_row(rates, {"step": done, "images": done * config.batch, "images_per_second": round(per_second, 2)})
            began, since = now, done
    return average.module.eval()


def _moving_average(decay: float) -> Callable[[Iterable[Tensor], Iterable[Tensor], Tensor | int], None]:
    """Return an exponential moving average whose decay grows with the number of updates up to `decay`."""

    def update(averaged: Iterable[Tensor], current: Iterable[Tensor], updates: Tensor | int) -> None:
        done = int(updates)
        foreach("lerp_")(list(averaged), list(current), 1 - min(decay, (1 + done) / (10 + done)))

    return torch.no_grad()(update)


def _optimizers(model: nn.Module, config: StageConfig, speed: Speed, modulation: bool = False) -> list[Optimizer]:
    """Return AdamW, or Muon for attention and MLP matrices (and modulation, in chunks) with AdamW for the rest."""
    groups: dict[int, list[nn.Parameter]] = {}
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        chunks = 0
        if config.muon_learning_rate and parameter.ndim == 2:
            if ".attn." in name or ".ff." in name or ".ff_context." in name:
                chunks = 1
            elif modulation and name.endswith((".norm1.linear.weight", ".norm1_context.linear.weight")):
                chunks = parameter.shape[0] // parameter.shape[1]
        (groups.setdefault(chunks, []) if chunks else rest).append(parameter)
    betas = (0.9, 0.99)
    optimizers: list[Optimizer] = [
        AdamW(rest, config.learning_rate, betas, weight_decay=config.weight_decay, fused=True)
    ]
    if groups and config.muon_learning_rate:
        rate = config.muon_learning_rate
        if speed.batched:
            parts = [{"params": params, "chunks": chunks} for chunks, params in groups.items()]
            optimizers.append(BatchedMuon(parts, rate, config.weight_decay, dtype=speed.dtype))
        else:
            optimizers.append(Muon(groups[1], rate, config.weight_decay, adjust_lr_fn="match_rms_adamw"))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def _rate(step: int, config: StageConfig) -> float:
    """Return the learning rate: linear warm-up, plateau, linear decay over the last `cooldown` steps."""
    return min(1.0, (step + 1) / config.warmup, (config.steps - step) / config.cooldown)


def _save(path: Path, step: int, model: nn.Module, average: AveragedModel, optimizers: list[Optimizer]) -> None:
    parts = {"model": model.state_dict(), "average": average.state_dict()}
    part = path.with_suffix(".part")
    torch.save({"step": step, "optimizers": [o.state_dict() for o in optimizers], **parts}, part)
    os.replace(part, path)


def _resume(path: Path, model: nn.Module, average: AveragedModel, optimizers: list[Optimizer]) -> int:
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        peaks = [[group["peak"] for group in optimizer.param_groups] for optimizer in optimizers]
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for optimizer, own in zip(optimizers, peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, own, strict=True):
                group["peak"] = peak  # the rate of this run, not of the checkpoint
    except Exception as error:
        # torch's own message advises loading such a file unsafely
        unreadable = isinstance(error, (UnpicklingError, EOFError))
        reason = "it is no whole checkpoint" if unreadable else " ".join(str(error).split())
        raise CheckpointError(
            f"cannot go on from {path}: {reason}. Delete the file to start this stage anew"
        ) from error
    return state["step"]
