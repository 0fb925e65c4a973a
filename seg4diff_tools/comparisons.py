"""Several readings of the same attention, scored on the same images with the same noise."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from seg4diff_tools import masks, metrics
from seg4diff_tools.backbones import Backbone
from seg4diff_tools.datasets import Sample, background_of
from seg4diff_tools.errors import InputError
from seg4diff_tools.readings import read


def reading_scores(
    backbone: Backbone,
    samples: Sequence[Sample],
    readings: Mapping[str, Mapping[str, Any]],
    *,
    steps_from_end: int | Sequence[int] = 8,
    steps: int = 28,
    seed: int = 0,
    zero_tokens: int = 77,
    draws: int = 2000,
    progress: bool = True,
) -> pd.DataFrame:
    """Scores of several readings on the same images with the same noise; each prompt names the classes that an image shows.

    Args:
        backbone: the model.
        samples: images with label maps.
        readings: what to call each reading, and its options of `readings.read`, such as {"reading": "daam"} or {"layers": [3]};
            the others are compared with the first.
        steps_from_end, steps, seed: as for `readings.read`, of each reading that does not set its own.
        zero_tokens: zero vectors that stand for T5's tokens.
        draws: of the bootstrap, which draws images with replacement, the same ones for each reading.
        progress: show a progress bar.

    Returns:
        One row for each reading: reading, mIoU, object_mIoU, pACC (0..1, from the confusion matrix of the whole set, as in
        `sweeps.layer_step_sweep`), low and high (95 % interval of the mIoU), gain (mIoU minus that of the first reading) with
        gain_low and gain_high, seconds (median time for an image, without encoding it) and images.

    Raises:
        InputError: no samples or readings, or as in `readings.read`.
    """
    if len(samples) == 0 or not readings:
        raise InputError(f"expected samples and readings, got {len(samples)} samples and {len(readings)} readings")
    common: dict[str, Any] = {"steps_from_end": steps_from_end, "steps": steps, "seed": seed}
    vocabulary = sorted({name for sample in samples for name in sample.class_names})
    things = [i for i, name in enumerate(vocabulary) if all(name not in background_of(sample) for sample in samples)]
    counts = torch.zeros(len(readings), len(samples), len(vocabulary), len(vocabulary), dtype=torch.int64)
    seconds = np.zeros((len(readings), len(samples)))
    for index, sample in enumerate(tqdm(samples, unit="image", disable=not progress, desc=f"{backbone.name} readings")):
        latents = backbone.encode_image(sample.image)
        prompts = backbone.class_prompts(sample.class_names, zero_tokens=zero_tokens)
        target = metrics.true_classes(sample.label_map, sample.class_names, vocabulary)
        for row, options in enumerate(readings.values()):
            began = time.perf_counter()
            maps = read(backbone, latents, prompts, **{**common, **options})
            labels = masks.label_map(maps, tuple(target.shape)).cpu()
            seconds[row, index] = time.perf_counter() - began
            found = metrics.renumber(labels, sample.class_names, vocabulary, ignore=-1)
            counts[row, index] = metrics.confusion(found, target, len(vocabulary), ignore=-1)
    totals = counts.sum(1)
    drawn = np.stack([metrics.bootstrap_miou(each, draws).numpy() for each in counts])
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=1)
    gain_low, gain_high = np.nanquantile(drawn - drawn[0], [0.025, 0.975], axis=1)
    scores = metrics.miou(totals).numpy()
    return pd.DataFrame(
        {
            "reading": list(readings),
            "mIoU": scores,
            "low": low,
            "high": high,
            "gain": scores - scores[0],
            "gain_low": gain_low,
            "gain_high": gain_high,
            "object_mIoU": metrics.miou(totals, things).numpy(),
            "pACC": metrics.pixel_accuracy(totals).numpy(),
            "seconds": np.median(seconds, axis=1),
            "images": len(samples),
        }
    )
