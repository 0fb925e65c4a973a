"""Validation of a fine-tuning: segmentation, pictures of prompts and their judge, and the measure that joins both."""

import csv
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seg4diff_tools._runs import append_row, processes
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.datasets import Sample
from seg4diff_tools.errors import InputError, list_of
from seg4diff_tools.evaluation.sweeps import SCORES, layer_step_sweep
from seg4diff_tools.generation.clip import Clip, clip_scores
from seg4diff_tools.generation.composition import CompositionPrompt, judge
from seg4diff_tools.generation.detector import SceneDetector
from seg4diff_tools.indices import as_int
from seg4diff_tools.plotting import static
from seg4diff_tools.segmentation.options import OpenVocabulary
from seg4diff_tools.segmentation.segment import segment

EVALUATION = "evaluation.csv"
"""File of a run with its evaluations."""
SMALLEST = 0.01
"""Added to both parts of a gain: from a score of 0 there is one, too."""
DRAWN = 3
"""Evaluation images that are drawn with their label maps."""


@dataclass(frozen=True, eq=False)
class PictureTest:
    """Prompts whose pictures are judged while a LoRA is trained, each from noise of its own, the same every time.

    Args:
        prompts: those of `generation.prompts` for a scene detector; any texts for a CLIP.
        judge: "are all things there?" for scenes (`generation.load_detector`), or a CLIP (`generation.load_clip`).
        steps: of sampling.
        seed: of the noise.
        batch: pictures at once.

    Raises:
        InputError: no prompt, prompts that the judge cannot read, or a number out of range.
    """

    prompts: Sequence[CompositionPrompt] | Sequence[str]
    judge: SceneDetector | Clip
    steps: int = 14
    seed: int = 0
    batch: int = 8

    def __post_init__(self) -> None:
        scenes = isinstance(self.judge, SceneDetector)
        if not scenes and not isinstance(self.judge, Clip):
            raise InputError(
                f"expected judge, a SceneDetector or a Clip, got {self.judge!r}: pass load_detector() or load_clip(...)"
            )
        kind, way_out = (CompositionPrompt, "generation.prompts(8)") if scenes else (str, "prompts=['a cat']")
        object.__setattr__(self, "prompts", tuple(list_of(self.prompts, kind, "prompts", way_out)))
        for name, least in {"steps": 1, "seed": 0, "batch": 1}.items():
            object.__setattr__(self, name, as_int(getattr(self, name), name, least))

    @property
    def _texts(self) -> list[str]:
        return [one if isinstance(one, str) else one.text for one in self.prompts]

    def score(self, backbone: Backbone) -> float:
        """Return the share of pictures that are right, or with a CLIP the mean CLIPScore.

        Args:
            backbone: draws the pictures, with whatever is applied to it.
        """
        texts = self._texts
        seeds = [100_000 * self.seed + number for number in range(len(texts))]
        pictures = backbone.generate(texts, seed=seeds, steps=self.steps, batch=self.batch, progress=False)
        if isinstance(self.judge, Clip):
            vectors = self.judge.embed_images(pictures), self.judge.embed_texts(texts)
            return float(clip_scores(*vectors).mean())
        asked = [one for one in self.prompts if isinstance(one, CompositionPrompt)]
        return float(judge(self.judge, pictures, asked)["correct"].mean())

    def settings(self) -> dict[str, Any]:
        """Return what determines the scores, for the settings of a run."""
        return {"prompts": self._texts, "judge": type(self.judge).__name__, "steps": self.steps, "seed": self.seed}


def both(segmentation: tuple[float, float], pictures: tuple[float, float]) -> float:
    """Return the smaller of two gains, of segmentation and of pictures: above 1 only if both are better than before.

    Args:
        segmentation, pictures: score before training and now, each 0 or more.

    Raises:
        InputError: a score below 0, or one that is not a number.
    """
    gains = []
    for name, (before, now) in {"segmentation": segmentation, "pictures": pictures}.items():
        if not (before >= 0 and now >= 0):
            raise InputError(f"expected {name}, scores of 0 or more, got {(before, now)}: pass shares of 0 to 1")
        gains.append((now + SMALLEST) / (before + SMALLEST))
    return min(gains)


class Validation:
    """What is measured while a LoRA is trained, a row of `EVALUATION` each time."""

    def __init__(
        self, backbone: Backbone, samples: Sequence[Sample], pictures: PictureTest | None, layer: int, folder: Path
    ) -> None:
        self.backbone, self.samples, self.pictures, self.layer = backbone, samples, pictures, layer
        self.log, self.folder = folder / EVALUATION, folder / "pictures"

    def measure(self, step: int) -> bool:
        """Append a row, draw label maps, and return whether this is the best evaluation so far.

        Processes share the images to segment; the first one does the rest, and knows the answer.

        Args:
            step: of training; the gains of `both` are those since step 0.
        """
        scores = self._scores()
        if not processes().is_main_process:
            return False
        row = {"step": step, "layer": self.layer} | {name: float(scores[name]) for name in SCORES}
        if self.pictures is not None:
            row["pictures"] = self.pictures.score(self.backbone)
            if math.isnan(row["object_mIoU"]):
                raise InputError("expected an object in an image of evaluation with pictures, got none: add one")
            first = self._rows()[0] if step else row
            row["both"] = both(*((first[name], row[name]) for name in ("object_mIoU", "pictures")))
        append_row(self.log, row)
        self._draw(step)
        return self.pictures is not None and self.since_best() == 0

    def _scores(self) -> pd.Series:
        """Scores of segmentation; several processes put their counts into a folder that is removed again."""
        state = processes()
        shared = self.log.with_name("counts") if state.num_processes > 1 else None
        if shared is not None:
            with state.main_process_first():
                if state.is_main_process:
                    shutil.rmtree(shared, ignore_errors=True)
        found = layer_step_sweep(self.backbone, self.samples, layers=[self.layer], out=shared, progress=False)
        if shared is not None:
            state.wait_for_everyone()
            if state.is_main_process:
                shutil.rmtree(shared, ignore_errors=True)
        return found.totals.iloc[0]

    def since_best(self) -> int:
        """Return how many evaluations after the first step came since the best of them; the earliest of equal ones."""
        values = [row["both"] for row in self._rows() if row["step"] > 0]
        return len(values) - 1 - int(np.argmax(values)) if values else 0

    def _rows(self) -> list[dict[str, float]]:
        with self.log.open(encoding="utf-8", newline="") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]

    def _draw(self, step: int) -> None:
        for number in range(min(DRAWN, len(self.samples))):
            sample = self.samples[number]
            found = segment(self.backbone, sample.image, sample.class_names, OpenVocabulary(layers=self.layer))
            maps = {"true": np.asarray(sample.label_map), f"step {step}": found.label_map}
            self.folder.mkdir(exist_ok=True)
            static.label_maps(found.image, maps, found.class_names).savefig(self.folder / f"{number}-{step:06d}.png")
