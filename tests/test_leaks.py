"""The leak test against maps worked out by hand, and the bootstrap of means."""

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose

from seg4diff_tools.analysis import leakage, mean_intervals
from seg4diff_tools.datasets import LabeledImage
from seg4diff_tools.segmentation import class_maps


@pytest.fixture(scope="module")
def samples():
    """Two images of 7 x 7 tokens, in which a cat, a dog and grass cover whole tokens; the second has no dog."""
    labels = np.full((56, 56), 2)
    labels[8:24, 8:24], labels[24:40, 32:56] = 0, 1
    alone = np.where(labels == 0, 0, 1)
    picture = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    return [LabeledImage(picture, ("cat", "dog", "grass"), labels), LabeledImage(picture, ("cat", "grass"), alone)]


def test_leaks_are_means_over_the_other_thing(tiny_backbone, samples):
    table = leakage(tiny_backbone, samples, [1, 3], progress=False)
    assert len(table) == 2 * (6 + 2)
    row = table.set_index(["image", "layer", "word", "other"]).loc[0, 3, "cat", "dog"]
    names = list(samples[0].class_names)
    latents = tiny_backbone.encode_image(samples[0].image)
    (maps,) = class_maps.read_class_maps(tiny_backbone, latents, [tiny_backbone.class_prompts(names)], layers=[3])
    cat = maps[0, 0, 0, 0, 0].double()
    truth = torch.from_numpy(samples[0].label_map[::8, ::8].copy())
    on, other = cat[truth == 0].mean(), cat[truth == 1].mean()
    assert_allclose(row.leak, other / (on + other), rtol=1e-6)
    assert_allclose(row.share, cat[truth == 1].sum() / cat.sum(), rtol=1e-6)
    assert_allclose(row.area, (truth == 1).double().mean(), rtol=1e-6)


def test_intervals_draw_whole_units():
    # a unit's rows go together: repeating them changes nothing
    values = np.random.default_rng(1).normal(size=40)
    table = pd.DataFrame({"image": range(40), "layer": 0, "leak": values})
    once = mean_intervals(table, "leak", unit="image")
    twice = mean_intervals(pd.concat([table] * 2), "leak", unit="image")
    pd.testing.assert_frame_equal(once, twice)
    row = once.iloc[0]
    assert_allclose(row.leak, values.mean())
    # the bootstrap's deviation of a mean is sigma / sqrt(n)
    assert_allclose(row.high - row.low, 2 * 1.96 * values.std() / np.sqrt(40), rtol=0.1)
    assert row.units == 40
    two = pd.DataFrame({"image": [0, 1, 1], "layer": [0, 1, 1], "part": list("aab"), "leak": [1.0, 2.0, 4.0]})
    assert mean_intervals(two, "leak", ["layer", "part"], unit="image").leak.tolist() == [1.0, 2.0, 4.0]
