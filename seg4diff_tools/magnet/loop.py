"""The fine-tuning loop: resumable, on one process or many, with a log, pictures and a progress bar."""

import functools
import io
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, is_tensorboard_available
from diffusers import DiffusionPipeline
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import cast_training_params
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from torch.optim import AdamW
from tqdm.auto import tqdm

from seg4diff_tools._runs import append_row, as_path, open_run, refuse_other, replace_file, truncate_log
from seg4diff_tools.attention.temperature import temperature
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checks import check_layers, check_zeros
from seg4diff_tools.backbones.loading import as_backbone
from seg4diff_tools.backbones.lora import ADAPTER, attach, check_free, trained
from seg4diff_tools.backbones.lora_files import LoraWeights, save_lora
from seg4diff_tools.caching import model_settings
from seg4diff_tools.datasets import Sample
from seg4diff_tools.errors import CheckpointError, InputError, TrainingError, instance_of, one_of
from seg4diff_tools.evaluation.evaluate import check_samples
from seg4diff_tools.families._private import allow_precision
from seg4diff_tools.indices import as_int
from seg4diff_tools.magnet.alignment import ConvHead
from seg4diff_tools.magnet.config import MagnetConfig
from seg4diff_tools.magnet.memory import images_that_fit
from seg4diff_tools.magnet.student import Student
from seg4diff_tools.magnet.targets import Target, counts, noise, target
from seg4diff_tools.magnet.validation import EVALUATION, PictureTest, Validation

STATE, LOG = "state.pt", "log.csv"
RUN = "a fine-tuning"
NO_CHECKPOINTING = ("hunyuan-image",)
"""Families whose blocks diffusers calls with arguments that its checkpointing does not take."""


def finetune(
    model: Backbone | DiffusionPipeline | str | Path,
    samples: Sequence[Sample],
    config: MagnetConfig,
    out: str | Path,
    *,
    evaluation: Sequence[Sample] = (),
    pictures: PictureTest | None = None,
    evaluate_every: int = 250,
    save_every: int = 100,
    images_at_once: int | None = None,
    mixed_precision: str | None = None,
    gradient_checkpointing: bool = False,
    tensorboard: bool = False,
    progress: bool = True,
) -> Path:
    """Align the attention of a layer with masks by a LoRA, or go on where an earlier run of it stopped.

    Every random number follows from the seed and from how many images came before, so that a run that was killed, or
    cut between processes by `accelerate launch`, trains on the same noise. The model itself is left as it was.

    Args:
        model: a backbone, a pipeline or a name.
        samples: images with label maps or masks, taken in a new random order each time through, read as they are
            needed. What cannot be read is named in a warning, and the next image takes its place.
        config: see `MagnetConfig`.
        out: folder for the LoRA, `log.csv`, `evaluation.csv`, pictures, and the checkpoint that is replaced atomically.
        evaluation: images to segment while it trains; the prompt names the classes that each one shows. What is chosen
            by them, as with `config.patience`, is to be judged on others.
        pictures: prompts to draw while it trains, and their judge; needs `evaluation`. `evaluation.csv` then also has
            the columns pictures and `both`, the smaller of two gains: object mIoU and pictures, each divided by its
            value before the first step, a hundredth added to both parts. It is above 1 only if both are better. With
            `config.patience` training stops after so many evaluations without a better one, and the LoRA in `out` is
            that of the best.
        evaluate_every: steps between two evaluations; one is made before the first step.
        save_every: steps between two checkpoints.
        images_at_once: for a forward on one process; the rest of a batch follows in further forwards (gradient
            accumulation). None for as many as the free memory holds by an estimate.
        mixed_precision: "bf16" or "fp16", as accelerate takes it; None leaves it to `accelerate launch`.
        gradient_checkpointing: compute each block again in the backward pass instead of keeping what it computed.
        tensorboard: log for TensorBoard too.
        progress: show a progress bar.

    Returns:
        `out`, for `apply_lora(backbone, out)` here and for `pipe.load_lora_weights(out)` of plain diffusers.

    Raises:
        InputError: an argument of another type or out of range, a batch that cannot be cut evenly, no sample that can
            be read, patience or pictures without what they need, or a folder of another run.
        TrainingError: a loss that is not a number; the last checkpoint is kept.
        CheckpointError: a checkpoint that cannot be read.

    Source: Seg4Diff, arXiv 2509.18096, section 3.5, figure 10.
    """
    instance_of(config, MagnetConfig, "config", "MagnetConfig() or magnet.preset('coco')")
    check_samples(samples)
    if len(evaluation):
        check_samples(evaluation)
    folder = as_path(out, "out")
    evaluate_every, save_every = as_int(evaluate_every, "evaluate_every", 1), as_int(save_every, "save_every", 1)
    if pictures is not None:
        instance_of(pictures, PictureTest, "pictures", "PictureTest(generation.prompts(8), load_detector())")
    if (config.patience and pictures is None) or (pictures is not None and not len(evaluation)):
        raise InputError(
            f"expected evaluation and pictures with patience={config.patience}, got {len(evaluation)} images and "
            f"{'no' if pictures is None else 'some'} pictures: pass both"
        )
    if mixed_precision is not None:
        one_of(mixed_precision, "mixed_precision", ("no", "bf16", "fp16"))
    if tensorboard and not is_tensorboard_available():
        raise InputError("expected TensorBoard for tensorboard=True, got none: pip install tensorboard")
    # a wrong folder is refused before a model is loaded by its name
    refuse_other(folder, run_settings(config, samples), RUN)
    backbone = as_backbone(model)
    transformer = backbone.transformer
    if gradient_checkpointing and backbone.family.name in NO_CHECKPOINTING:
        raise InputError(
            f"expected gradient_checkpointing=False with {backbone.family.name}, whose blocks diffusers cannot compute "
            "again, got True: lower images_at_once instead"
        )
    if backbone.family.name == "hidream":
        raise InputError("expected a model with gradients, got hidream, whose experts diffusers runs without them")
    check_free(transformer)
    layers = check_layers(backbone, list(config.layers) or ["expert"]) if config.has_masks else []
    check_zeros(backbone, config.zero_tokens)
    backbone.latent_size(config.size)
    accelerator = _accelerator(backbone, folder, mixed_precision, tensorboard, config.conv_head)
    share = _divided(config.batch, accelerator.num_processes, "a number of processes")
    at_once = images_at_once
    if at_once is None:
        at_once = images_that_fit(backbone, share, config.size, checkpointing=gradient_checkpointing)
    accelerator.gradient_accumulation_steps = _divided(share, as_int(at_once, "images_at_once", 1), "images_at_once")
    settings = run_settings(config, samples) | model_settings(backbone)
    if pictures is not None:
        # `both` compares with the first evaluation, and with patience the result depends on what stops it
        settings |= {"evaluation": len(evaluation), "pictures": pictures.settings()}
        settings |= {"evaluate_every": evaluate_every} if config.patience else {}
    open_run(folder, settings, RUN)
    accelerator.wait_for_everyone()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        attach(transformer, backbone.family, config.rank, config.alpha)
        head = ConvHead().to(backbone.device) if config.conv_head and config.reads_masks else None
    try:
        if gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        if tensorboard:
            accelerator.init_trackers("magnet")
        student = Student(backbone, config, layers, head)
        validation = None
        if len(evaluation):
            shown = layers[0] if layers else check_layers(backbone, ["expert"])[0]
            validation = Validation(backbone, evaluation, pictures, shown, folder)
        run = _Run(backbone, samples, config, folder, accelerator, student, validation)
        run.train(evaluate_every, save_every, progress)
        accelerator.end_training()
    finally:
        transformer.disable_gradient_checkpointing()
        transformer.unload_lora()
        transformer.requires_grad_(False).eval()
    return folder


def run_settings(config: MagnetConfig, samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the settings of a run that need no model."""
    return asdict(config) | {"samples": len(samples)}


def _accelerator(
    backbone: Backbone, folder: Path, mixed_precision: str | None, tensorboard: bool, unused: bool
) -> Accelerator:
    precision = mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    allow_precision(precision)
    try:
        return Accelerator(
            cpu=backbone.device.type == "cpu",
            mixed_precision=precision,
            log_with="tensorboard" if tensorboard else None,
            project_dir=folder if tensorboard else None,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)],
        )
    except ValueError as error:
        raise InputError(
            f"expected a precision for {backbone.device.type}, got mixed_precision={precision!r}: {error}"
        ) from error


class _Run:
    def __init__(
        self,
        backbone: Backbone,
        samples: Sequence[Sample],
        config: MagnetConfig,
        folder: Path,
        accelerator: Accelerator,
        student: Student,
        validation: Validation | None = None,
    ) -> None:
        self.backbone, self.samples, self.config, self.folder = backbone, samples, config, folder
        self.accelerator, self.student, self.validation = accelerator, student, validation
        self.share = config.batch // accelerator.num_processes
        self.at_once = self.share // accelerator.gradient_accumulation_steps
        cast_training_params(backbone.transformer)
        self.weights = config.weights
        self.parameters = [value for value in student.parameters() if value.requires_grad]
        lora = {"params": [value for value in backbone.transformer.parameters() if value.requires_grad]}
        conv = (
            [] if student.head is None else [{"params": [*student.head.parameters()], "lr": config.head_learning_rate}]
        )
        self.optimizer = AdamW([lora, *conv], config.learning_rate, weight_decay=config.weight_decay)
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, config.warmup, config.steps)
        self.model, self.prepared = accelerator.prepare(student, self.optimizer)
        self.skipped: set[int] = set()

    def train(self, evaluate_every: int, save_every: int, progress: bool) -> None:
        accelerator, steps = self.accelerator, self.config.steps
        main = accelerator.is_main_process
        first = self._resume()
        if main:
            # evaluations are made after a step is saved or not: the one at the checkpoint itself stays
            truncate_log(self.folder / LOG, first)
            truncate_log(self.folder / EVALUATION, first)
        if first == 0:
            self._evaluate(0)
        # a run that was stopped early is finished
        last = first if first and self._stalls() else steps
        bar = tqdm(range(first, last), initial=first, total=steps, desc="magnet", disable=not (main and progress))
        for step in bar:
            row = self._step(step)
            done = step + 1
            evaluated = self.validation is not None and (done % evaluate_every == 0 or done == steps)
            if main:
                append_row(self.folder / LOG, row)
                accelerator.log({name: value for name, value in row.items() if name != "step"}, step=done)
                bar.set_postfix({name: f"{row[name]:.4f}" for name in self.weights if name in row}, refresh=False)
            if evaluated:
                self._evaluate(done)
            stopped = evaluated and self._stalls()
            if main and (done % save_every == 0 or done == steps or stopped):
                self._save(done)
            if stopped:
                break
        accelerator.wait_for_everyone()

    def _step(self, step: int) -> dict[str, int | float]:
        """One update of the weights; the losses of the whole batch."""
        accelerator, config = self.accelerator, self.config
        sums: dict[str, Tensor] = {}
        rate = self.schedule.get_last_lr()[0]
        start = step * config.batch + accelerator.process_index * self.share
        batch = [self._target(number) for number in range(start, start + self.share)]
        unnamed = sum(one.unnamed for one in batch)
        # masks of one forward, on average over the whole batch: so cuts change nothing
        masks = torch.tensor(sum(len(one.masks) for one in batch), dtype=torch.float32, device=accelerator.device)
        count = accelerator.reduce(masks, "mean").item() * self.at_once / self.share
        for at in range(0, self.share, self.at_once):
            numbers = range(start + at, start + at + self.at_once)
            targets = batch[at : at + self.at_once]
            with accelerator.accumulate(self.model), self.student.watching():
                losses = self.model(*self._inputs(numbers, targets), count)
                total = sum(self.weights.get(name, 0.0) * loss for name, loss in losses.items())
                if not total.isfinite():
                    raise TrainingError(self._trouble(step, numbers, losses))
                accelerator.backward(total)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self.parameters, config.clip_gradients)
                self.prepared.step()
                self.prepared.zero_grad()
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + loss.detach() * self.at_once / self.share
        self.schedule.step()
        row: dict[str, int | float] = {"step": step + 1, "rate": rate, "gradient": float(norm)}
        row |= {name: accelerator.reduce(value, "mean").item() for name, value in sums.items()}
        counts = torch.tensor([unnamed, len(self.skipped)], device=accelerator.device)
        unnamed, skipped = accelerator.reduce(counts, "sum").tolist()
        return row | {"unnamed": unnamed, "skipped": skipped}

    def _target(self, number: int) -> Target:
        """The image with this number in training, or the next one in the set that can be read."""
        index = self._index(number)
        for shift in range(len(self.samples)):
            place = (index + shift) % len(self.samples)
            if place in self.skipped:
                continue
            try:
                found = target(self.backbone, self.samples[place], self.config, number)
                return found if self._counts(number) else replace(found, masks=found.masks[:0], spans=())
            except InputError as error:
                self.skipped.add(place)
                warnings.warn(f"sample {place} is skipped: {error}", stacklevel=2)
        raise InputError(
            f"expected a sample that can be trained on, got none among {len(self.samples)}: see the warnings"
        )

    def _counts(self, number: int) -> bool:
        """Whether masks count at the noise level of the image with this number in training."""
        if self.config.align_at == "all":
            return True
        sigma = noise(self.backbone, self.backbone.latent_size(self.config.size), number, self.config)[1].item()
        return counts(self.backbone, sigma, self.config)

    def _index(self, number: int) -> int:
        turn, place = divmod(number, len(self.samples))
        return int(_order(self.config.seed, turn, len(self.samples))[place])

    def _inputs(self, numbers: Sequence[int], targets: Sequence[Target]) -> tuple:
        backbone = self.backbone
        latents = backbone.encode_image([one.image for one in targets], self.config.size).float()
        drawn = [noise(backbone, latents.shape[1:], number, self.config) for number in numbers]
        mixed = torch.stack([one for one, _ in drawn]).to(latents)
        sigma = torch.stack([level for _, level in drawn]).to(latents)
        noisy = torch.lerp(latents, mixed, sigma[:, None, None, None])
        inputs = backbone.inputs(noisy, sigma * 1000, [one.prompt for one in targets])
        return inputs, backbone.family.pack(mixed - latents), targets, backbone.token_grid(latents)

    def _trouble(self, step: int, numbers: Sequence[int], losses: dict[str, Tensor]) -> str:
        told = ", ".join(f"{name} {loss.item():g}" for name, loss in losses.items())
        images = [self._index(number) for number in numbers]
        return (
            f"expected finite losses, got {told} in step {step + 1}, samples {images}: the checkpoint before it is in "
            f"{self.folder}; lower the learning rate, or leave these samples out, and start in another folder"
        )

    def _stalls(self) -> bool:
        """Whether so many evaluations as `patience` passed since the best one; every process hears the same."""
        if not self.config.patience:
            return False
        known = self.validation if self.accelerator.is_main_process else None
        stalled = known is not None and known.since_best() >= self.config.patience
        heard = torch.tensor(float(stalled), dtype=torch.float32, device=self.accelerator.device)
        return self.accelerator.reduce(heard, "sum").item() > 0

    def _evaluate(self, step: int) -> None:
        if self.validation is None:
            return
        with temperature(self.backbone, self.config.temperature, above=self.config.temperature_above):
            best = self.validation.measure(step)
        if best and step and self.config.patience:
            self._save_lora()

    def _save(self, step: int) -> None:
        transformer, head = self.backbone.transformer, self.student.head
        state = {
            "step": step,
            "lora": get_peft_model_state_dict(transformer, adapter_name=ADAPTER),
            "head": {} if head is None else head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        replace_file(self.folder / STATE, buffer.getvalue())
        # with patience it is that of the best evaluation
        if not self.config.patience:
            self._save_lora()

    def _save_lora(self) -> None:
        head, weights = self.student.head, trained(self.backbone.transformer, self.config.alpha)
        kept = {} if head is None else {name: value.cpu() for name, value in head.layers.state_dict().items()}
        save_lora(LoraWeights(weights.tensors, weights.rank, kept), self.folder)

    def _resume(self) -> int:
        path = self.folder / STATE
        if not path.exists():
            return 0
        try:
            state = torch.load(path, map_location=self.accelerator.device, weights_only=True)
            set_peft_model_state_dict(self.backbone.transformer, state["lora"], adapter_name=ADAPTER)
            if self.student.head is not None:
                self.student.head.load_state_dict(state["head"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
        except (UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"expected a whole checkpoint in {path}, got one that cannot be read: delete the folder to start anew"
            ) from error
        return state["step"]


def _divided(whole: int, part: int, name: str) -> int:
    if whole % part:
        raise InputError(f"expected {name} that divides {whole} images evenly, got {part}: choose another batch")
    return whole // part


@functools.lru_cache(maxsize=2)
def _order(seed: int, turn: int, count: int) -> np.ndarray:
    """The order of the samples in one time through."""
    return np.random.Generator(np.random.Philox(key=[seed, turn])).permutation(count)
