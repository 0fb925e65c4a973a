"""Grouping without words, step by step against its parts."""

import numpy as np
import pytest
import torch

from seg4diff_tools.attention.recorder import AttentionRecorder
from seg4diff_tools.datasets.labels import renumber
from seg4diff_tools.errors import InputError
from seg4diff_tools.evaluation import metrics
from seg4diff_tools.evaluation.grouping_scores import grouping_scores
from seg4diff_tools.scenes.scenes import SceneConfig, Scenes
from seg4diff_tools.segmentation import masks
from seg4diff_tools.segmentation.unsupervised import group


@pytest.fixture(scope="module")
def samples():
    return Scenes("test", 3, SceneConfig(size=56))


def test_group_is_what_its_parts_give(tiny_backbone, samples):
    image = samples[1].image
    found = group(tiny_backbone, image, layer=2, threshold=0.01)
    prompt = tiny_backbone.encode_prompt("")
    assert len(prompt.pads) == 75
    with AttentionRecorder(tiny_backbone, layers=2, prompt=prompt, tokens=prompt.pads) as recorder:
        tiny_backbone.predict_velocity(*tiny_backbone.add_noise(tiny_backbone.encode_image(image), 8), prompt)
    maps = recorder.maps.squeeze().values
    np.testing.assert_allclose(found.token_maps.values, maps, atol=1e-6)
    proposals, groups = masks.merge_maps(torch.from_numpy(found.token_maps.values), 0.01)
    np.testing.assert_allclose(found.proposals.values, proposals, atol=1e-6)
    assert found.groups.tolist() == groups.tolist()
    assert 1 < len(proposals) < 75
    assert np.array_equal(found.label_map, masks.label_map(proposals, (56, 56)))
    assert found.settings["frame"] == (0, 0, 56, 56)


def test_crop_and_size(tiny_backbone):
    image = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    assert group(tiny_backbone, image, layer=0).label_map.shape == (61, 83)
    assert group(tiny_backbone, image, layer=0, fit="crop").label_map.shape == (61, 61)


def test_scores_are_those_of_the_groups(tiny_backbone, samples):
    table = grouping_scores(tiny_backbone, samples, [0.01, 0.1], [1, 3], progress=False)
    assert table[["layer", "threshold"]].values.tolist() == [[1, 0.01], [1, 0.1], [3, 0.01], [3, 0.1]]
    vocabulary = sorted({name for sample in samples for name in sample.class_names})
    total, counts = 0, []
    for sample in samples:
        found = group(tiny_backbone, sample.image, layer=3, threshold=0.01)
        target = renumber(torch.from_numpy(np.array(sample.label_map)).long(), sample.class_names, vocabulary)
        named = metrics.match(torch.from_numpy(found.label_map), target, len(vocabulary))
        total = total + metrics.confusion(named, target, len(vocabulary) + 1)
        counts.append(len(found.proposals))
    row = table.iloc[2]
    assert row.mIoU == pytest.approx(metrics.miou(total).item())
    assert row.pACC == pytest.approx(metrics.pixel_accuracy(total).item())
    assert row.groups == pytest.approx(np.mean(counts))


def test_bad_input(tiny_backbone, samples):
    with pytest.raises(InputError, match="the prompt '' has none of the wanted kinds"):
        group(tiny_backbone, samples[0].image, layer=0, kinds=("word",))
    with pytest.raises(InputError, match="expected one image, got 2"):
        group(tiny_backbone, np.stack([samples[0].image, samples[1].image]), layer=0)
    with pytest.raises(InputError, match="pass layer=0 to 4"):
        group(tiny_backbone, samples[0].image)
    unchecked = getattr(grouping_scores, "__wrapped__", grouping_scores)
    with pytest.raises(InputError, match="matching='image' or matching='rows'"):
        unchecked(tiny_backbone, samples, [0.1], matching="columns")
