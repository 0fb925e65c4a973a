"""Grouping without words, step by step against its parts."""

import json
import pickle
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal

from seg4diff_tools.attention.recorder import AttentionRecorder
from seg4diff_tools.datasets.labels import renumber, true_classes
from seg4diff_tools.errors import InputError
from seg4diff_tools.evaluation import metrics
from seg4diff_tools.evaluation.grouping_scores import grouping_scores
from seg4diff_tools.scenes import SceneConfig, Scenes
from seg4diff_tools.segmentation import masks
from seg4diff_tools.segmentation.options import Unsupervised
from seg4diff_tools.segmentation.unsupervised import group


@pytest.fixture(scope="module")
def samples():
    return Scenes("test", 3, SceneConfig(size=56))


def test_group_is_what_its_parts_give(tiny_backbone, samples):
    image = samples[1].image
    found = group(tiny_backbone, image, Unsupervised(layers=2, threshold=0.01))
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
    assert found.settings["frame"] == [0, 0, 56, 56]


def test_result_is_copied_compared_and_shown(tiny_backbone, samples):
    options = Unsupervised(layers=np.int64(2), threshold=0.01)
    found, many = group(tiny_backbone, samples[1].image, options), [samples[1].image, samples[2].image]
    assert pickle.loads(pickle.dumps(found)) == deepcopy(found) == found
    assert found != group(tiny_backbone, samples[1].image, Unsupervised(layers=2, threshold=0.02))
    assert json.loads(json.dumps(found.settings)) == found.settings
    assert group(tiny_backbone, many, options, progress=False)[0] == found
    assert repr(found).endswith(f"56 x 56 px: {len(found.proposals)} groups of 75 tokens)")
    assert found._repr_html_().count("<img") == 2
    assert len(found.plot().axes) == 2


def test_layers_steps_and_seeds_are_averaged(tiny_backbone, samples):
    parts = [
        group(tiny_backbone, samples[1].image, Unsupervised(layers=layer, steps_from_end=step, seeds=seed)).token_maps
        for layer in (1, 3)
        for step in (4, 8)
        for seed in (0, 5)
    ]
    options = Unsupervised(layers=(1, 3), steps_from_end=(4, 8), seeds=(0, 5))
    found = group(tiny_backbone, samples[1].image, options)
    np.testing.assert_allclose(found.token_maps, sum(parts) / 8, atol=1e-7)


def test_crop_and_size(tiny_backbone):
    image = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    assert group(tiny_backbone, image, Unsupervised(layers=0)).label_map.shape == (61, 83)
    assert group(tiny_backbone, image, Unsupervised(layers=0, fit="crop")).label_map.shape == (61, 61)


def test_scores_are_those_of_the_groups(tiny_backbone, samples):
    table = grouping_scores(tiny_backbone, samples, [0.01, 0.1], [1, 3], progress=False)
    assert table[["layer", "threshold"]].values.tolist() == [[1, 0.01], [1, 0.1], [3, 0.01], [3, 0.1]]
    vocabulary = sorted({name for sample in samples for name in sample.class_names})
    total, counts = 0, []
    for sample in samples:
        found = group(tiny_backbone, sample.image, Unsupervised(layers=3, threshold=0.01))
        target = renumber(torch.from_numpy(np.array(sample.label_map)).long(), sample.class_names, vocabulary)
        named = metrics.match(torch.from_numpy(found.label_map), target, len(vocabulary))
        total = total + metrics.confusion(named, target, len(vocabulary) + 1)
        counts.append(len(found.proposals))
    row = table.iloc[2]
    assert row.mIoU == pytest.approx(metrics.miou(total).item())
    assert row.pACC == pytest.approx(metrics.pixel_accuracy(total).item())
    assert row.groups == pytest.approx(np.mean(counts))


def test_scores_take_options_and_any_model(tiny_backbone, tiny_folder, samples):
    options = Unsupervised(layers=(1, 3), threshold=0.5, steps_from_end=(4, 8), seeds=3, fit="crop", size=(40, 64))
    table = grouping_scores(str(tiny_folder), samples, [0.01], options=options, progress=False)
    assert table.layer.tolist() == [1, 3]
    named = grouping_scores(tiny_backbone.pipe, samples, 0.01, 3, replace(options, layers=0), progress=False)
    assert_frame_equal(named, table[1:].reset_index(drop=True))
    vocabulary = sorted({name for sample in samples for name in sample.class_names})
    total = 0
    for sample in samples:
        found = group(tiny_backbone, sample.image, replace(options, layers=3, threshold=0.01))
        left, top, right, bottom = found.settings["frame"]
        target = true_classes(sample.label_map, sample.class_names, vocabulary)[top:bottom, left:right]
        assert target.shape == found.label_map.shape != (56, 56)
        named = metrics.match(torch.from_numpy(found.label_map), target, len(vocabulary), ignore=-1)
        total = total + metrics.confusion(named, target, len(vocabulary) + 1, ignore=-1)
    assert table.mIoU[1] == pytest.approx(metrics.miou(total, range(len(vocabulary))).item())


def test_bad_input(tiny_backbone, samples):
    with pytest.raises(InputError, match="kinds of text tokens that the prompt '' has"):
        group(tiny_backbone, samples[0].image, Unsupervised(layers=0, kinds=("word",)))
    with pytest.raises(InputError, match="expert layer is known"):
        group(tiny_backbone, samples[0].image)
