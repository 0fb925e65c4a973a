"""Monitoring of the transformer's training: kept weights, object mIoU by layer, and a few fixed pictures."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from PIL import Image
from torch import nn

from seg4diff_tools._runs import append_row, truncate_log
from seg4diff_tools.backbones.loading import wrap_pipeline
from seg4diff_tools.errors import InputError
from seg4diff_tools.evaluation.sweeps import layer_step_sweep
from seg4diff_tools.pretrain.config import RunConfig
from seg4diff_tools.pretrain.stages import assemble
from seg4diff_tools.scenes import scene
from seg4diff_tools.segmentation.options import OpenVocabulary

VALIDATE_FROM = 20_000
"""Index of the first validation scene of the test split; no table uses these."""
PICTURES = ("a cat on grass", "a red car and a house on road", "two apples on wood", "a penguin left of a tree in snow")


def images_of(text: str) -> int:
    """Read a number of images: "0.02M", "50k" or "20000".

    Raises:
        InputError: not a positive number.
    """
    plain = str(text)
    factor = {"k": 1e3, "M": 1e6}.get(plain[-1:], 1.0)
    try:
        number = round(float(plain if factor == 1.0 else plain[:-1]) * factor)
    except (ValueError, OverflowError):
        number = 0
    if number < 1:
        raise InputError(f"expected text, a number of images, got {text!r}: pass one such as 0.02M, 50k or 20000")
    return number


class Watch:
    """Evaluation of a run's averaged transformer at chosen numbers of images.

    Args:
        run: folder of the run; `transformer/kept/<images>` gets weights in half precision, `transformer/watch.csv` a
            row for each evaluation, `transformer/pictures/<images>.png` the pictures.
        config: of the run.
        keep: numbers of images at which the averaged weights are kept.
        every: images between two evaluations; 0 for none.
        scenes: number of validation scenes.
        steps: of the schedule, for pictures and for segmentation at step 8 from the end.
    """

    def __init__(
        self,
        run: Path,
        config: RunConfig,
        keep: Sequence[int] = (),
        every: int = 0,
        scenes: int = 24,
        steps: int = 28,
    ) -> None:
        self.run, self.config, self.keep, self.every = run, config, sorted(keep), every
        self.scenes, self.steps = scenes, steps
        self._log = run / "transformer" / "watch.csv"

    def __call__(self, step: int, images: int, average: nn.Module) -> None:
        """Evaluate if this step reached a chosen number of images; the training's random state is unchanged."""
        before = images - self.config.transformer.batch
        for wanted in self.keep:
            if before < wanted <= images:
                self._plain(average).half().save_pretrained(self.run / "transformer" / "kept" / f"{wanted:09d}")
        if self.every and before // self.every < images // self.every:
            with torch.random.fork_rng():
                self.look(step, images, average)

    def look(self, step: int, images: int, average: nn.Module) -> None:
        """Segment the validation scenes at every layer and draw the pictures."""
        backbone = wrap_pipeline(assemble(self.run, self._plain(average)), "training")
        scenes = self.config.model.test_scenes
        samples: list[Any] = [scene("test", VALIDATE_FROM + number, scenes) for number in range(self.scenes)]
        steps_from_end = min(8, self.steps)
        options = OpenVocabulary(steps=self.steps, steps_from_end=steps_from_end)
        table = layer_step_sweep(backbone, samples, options, steps_from_end=steps_from_end, progress=False).table()
        layers = table.sort_values("layer")["object_mIoU"].tolist()
        best = max(range(len(layers)), key=layers.__getitem__)
        row: dict[str, int | float | str] = {"step": step, "images": images, "best_layer": best, "best": layers[best]}
        row |= {f"layer_{number}": value for number, value in enumerate(layers)}
        truncate_log(self._log, step - 1)  # a killed run may have logged this step
        append_row(self._log, {name: round(value, 4) for name, value in row.items() if not isinstance(value, str)})
        seeds = list(range(len(PICTURES)))
        made = backbone.generate(list(PICTURES), steps=self.steps, guidance_scale=4.0, seed=seeds, progress=False)
        sheet = Image.new("RGB", (sum(picture.width for picture in made), made[0].height))
        for number, picture in enumerate(made):
            sheet.paste(picture, (number * picture.width, 0))
        folder = self.run / "transformer" / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        sheet.save(folder / f"{images:09d}.png")

    @staticmethod
    def _plain(average: nn.Module) -> SD3Transformer2DModel:
        """Return a copy with diffusers' own attention, uncompiled."""
        model = SD3Transformer2DModel.from_config(copy.deepcopy(dict(average.config)))
        model.load_state_dict(average.state_dict())
        return model.eval()
