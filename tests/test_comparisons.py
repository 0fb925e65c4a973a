"""Scores of readings against segment and metrics, and the bootstrap against a plain loop."""

from functools import partial

import numpy as np
import pytest
import torch
from conftest import tiny_pipeline
from tiny_parts import sharpened

from seg4diff_tools import metrics, readings
from seg4diff_tools.backbones import wrap_pipeline
from seg4diff_tools.comparisons import reading_scores
from seg4diff_tools.datasets import LabelledImage
from seg4diff_tools.errors import InputError
from seg4diff_tools.segmentation import segment

VOCABULARY = ["cat", "dog", "grass", "tree"]
READINGS = {
    "one": {"layers": [3]},
    "all": {"reading": "daam", "steps_from_end": [2, 5]},
    "spread": {"reading": partial(readings.refined, times=1), "layers": [2]},
}


@pytest.fixture(scope="module")
def samples():
    generator = np.random.default_rng(0)
    found = []
    for names, size in ((["dog", "grass"], (23, 31)), (["cat", "tree"], (37, 19)), (["tree", "grass"], (29, 41))):
        label_map = generator.integers(0, len(names), size)
        label_map[:3, 5:7] = metrics.IGNORE
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        found.append(LabelledImage(pixels, tuple(names), label_map, background=("grass",)))
    return found


@pytest.fixture(scope="module")
def backbone():
    """A random model whose readings differ in their label maps."""
    pipe = tiny_pipeline()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sharpened(pipe.transformer)
    return wrap_pipeline(pipe)


def test_rows_equal_segment_and_metrics(backbone, samples):
    table = reading_scores(backbone, samples, READINGS, steps_from_end=4, seed=5, draws=11, progress=False)
    assert table["reading"].tolist() == list(READINGS)
    for row, options in zip(table.itertuples(), READINGS.values(), strict=True):
        total = torch.zeros(4, 4, dtype=torch.int64)
        for sample in samples:
            result = segment(
                backbone, sample.image, sample.class_names, options.get("layers"), options.get("steps_from_end", 4),
                reading=options.get("reading", "layer"), seed=5,
            )  # fmt: skip
            for true, found in zip(sample.label_map.flat, result.label_map.flat, strict=True):
                if true != metrics.IGNORE:
                    names = sample.class_names
                    total[VOCABULARY.index(names[true]), VOCABULARY.index(names[found])] += 1
        assert row.mIoU == pytest.approx(metrics.miou(total).item(), abs=2e-3)
        assert row.object_mIoU == pytest.approx(metrics.miou(total, [0, 1, 3]).item(), abs=2e-3)
        assert row.pACC == pytest.approx(metrics.pixel_accuracy(total).item(), abs=2e-3)
        assert row.gain == row.mIoU - table.mIoU[0]
        assert row.low <= row.high and row.seconds > 0 and row.images == 3
    assert table.loc[0, ["gain", "gain_low", "gain_high"]].tolist() == [0, 0, 0]
    # the comparison is not one of a reading with itself
    assert (table.mIoU.nunique(), (table.gain_low < table.gain_high)[1:].all()) == (3, True)


def test_same_image_again_has_no_interval(backbone, samples):
    table = reading_scores(backbone, samples[:1] * 3, READINGS, draws=17, progress=False)
    np.testing.assert_allclose(table.low, table.mIoU)
    np.testing.assert_allclose(table.high, table.mIoU)


def test_nothing_to_compare_is_refused(backbone, samples):
    with pytest.raises(InputError, match="got 0 samples and 3 readings"):
        reading_scores(backbone, [], READINGS)
    with pytest.raises(InputError, match="got 3 samples and 0 readings"):
        reading_scores(backbone, samples, {})
