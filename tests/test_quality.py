"""What a model card says is measured: on other scenes than the layer was chosen on, and equal to plain sweeps."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny_run import SCENES, tiny_clip

from seg4diff_tools.errors import InputError
from seg4diff_tools.evaluation.counts import stored_shards
from seg4diff_tools.evaluation.sweeps import SCORES, layer_step_sweep
from seg4diff_tools.generation.clip import clip_scores, load_clip
from seg4diff_tools.pretrain.report import SEARCH_FROM, _psnr, measure
from seg4diff_tools.scenes import Scenes, scene
from seg4diff_tools.scenes.drawings import concepts
from seg4diff_tools.segmentation.options import OpenVocabulary

OPTIONS = {"scenes": 5, "search_scenes": 3, "search_steps": (3, 8), "generated": 3, "steps": 9, "progress": False}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return load_clip(tiny_clip(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def quality(tiny_backbone, clip, out):
    return measure(tiny_backbone, clip, SCENES, out=out, **OPTIONS)


def plain(backbone, samples, layers, steps_from_end, **options):
    axes = {"layers": layers, "steps_from_end": steps_from_end}
    return layer_step_sweep(backbone, samples, OpenVocabulary(steps=9), progress=False, **axes, **options).table()


def test_layer_and_step_are_the_best_of_other_scenes(tiny_backbone, quality):
    others = [scene("test", SEARCH_FROM + index, SCENES) for index in range(3)]
    search = plain(tiny_backbone, others, None, (3, 8))
    pd.testing.assert_frame_equal(quality.search, search[quality.search.columns])
    assert len(search) == 5 * 2
    best = search.sort_values("object_mIoU").iloc[-1]
    assert (quality.layer, quality.steps_from_end) == (best["layer"], best["steps_from_end"])


def test_scores_are_those_of_plain_sweeps(tiny_backbone, quality):
    steps = sorted({8, quality.steps_from_end})
    test, vocabulary = Scenes("test", 5, SCENES), [*SCENES.concepts, *SCENES.backgrounds]
    sweeps = {
        ("test", "present"): plain(tiny_backbone, test, [quality.layer], steps),
        ("test-style", "present"): plain(tiny_backbone, Scenes("test-style", 5, SCENES), [quality.layer], steps),
        ("test", "full"): plain(tiny_backbone, test, [quality.layer], steps, vocabulary=vocabulary),
    }
    for (scenes, protocol), table in sweeps.items():
        found = quality.scores[(quality.scores["scenes"] == scenes) & (quality.scores["protocol"] == protocol)]
        np.testing.assert_allclose(found[[*SCORES]].to_numpy(), table[[*SCORES]].to_numpy(), atol=2e-3)
    novel = quality.scores[quality.scores["scenes"] == "novel"]
    assert len(novel) == len(steps)
    assert set(quality.scores["images"]) == {5}
    assert len(quality.scores) == 4 * len(steps)
    assert sorted(set(quality.layers["layer"])) == [0, 1, 2, 3, 4]


def test_novel_scenes_show_nothing_that_the_model_was_trained_on(out):
    (novel,) = out.glob("*/novel-*")
    counts = [record for shard in stored_shards(novel) for record in shard.records]
    assert len(counts) == 5
    names = {name for each in counts for name in each.true}
    assert names <= (set(concepts()) - set(SCENES.concepts)) | set(SCENES.backgrounds)


def test_a_second_run_reads_what_the_first_one_wrote(tiny_backbone, clip, out, quality):
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert sum(len(shard.records) for run in out.glob("*/*") for shard in stored_shards(run)) == 3 + 4 * 5
    again = measure(tiny_backbone, clip, SCENES, out=out, **OPTIONS)
    assert json.dumps(again.to_dict()) == json.dumps(quality.to_dict())
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")} == written


def test_pictures_are_judged_with_own_and_with_other_captions(tiny_backbone, clip, quality):
    test = Scenes("test", 3, SCENES)
    images, texts = clip.embed_images([s.image for s in test]), clip.embed_texts([s.caption for s in test])
    found = quality.pictures
    assert found["CLIPScore_scenes"] == pytest.approx(clip_scores(images, texts).mean().item(), abs=1e-5)
    shuffled = clip_scores(images, texts[[2, 0, 1]]).mean().item()
    assert found["CLIPScore_scenes_shuffled"] == pytest.approx(shuffled, abs=1e-5)
    made = tiny_backbone.generate([s.caption for s in test], seed=[0, 1, 2], steps=9, progress=False)
    expected = clip_scores(clip.embed_images(made), texts).mean().item()
    assert found["CLIPScore_generated"] == pytest.approx(expected, abs=1e-3)
    assert 0 <= found["retrieval_top1"] <= 1
    assert found["retrieval_group"] == 5
    assert found["generated"] == 3
    assert 0 < found["VAE_PSNR"] < 30


def test_psnr_by_hand():
    images = [np.full((4, 4, 3), 100, np.uint8), np.zeros((4, 4, 3), np.uint8)]
    decoded = [Image.fromarray(np.full((4, 4, 3), 110, np.uint8)), Image.fromarray(np.full((4, 4, 3), 255, np.uint8))]
    torch.testing.assert_close(_psnr(decoded, images), torch.tensor([20 * math.log10(25.5), 0.0]))


def test_the_result_is_plain_json(quality):
    told = json.loads(json.dumps(quality.to_dict(), allow_nan=False))
    assert told["layer"] == quality.layer
    assert len(told["search"]) == 10
    assert told["scores"][0]["object_mIoU"] == round(quality.scores["object_mIoU"][0], 4)


@pytest.mark.parametrize("wrong", [{"scenes": 1}, {"generated": 6}, {"generated": 1}, {"scenes": 10_001}])
def test_numbers_that_make_no_sense_are_refused(tiny_backbone, clip, wrong):
    with pytest.raises(InputError, match="expected (scenes|generated) from 2 to"):
        measure(tiny_backbone, clip, SCENES, **(OPTIONS | wrong))
