"""Heads against maps that were made by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from seg4diff_tools.analysis.heads import choose_heads, cross_validated, head_class_maps, part_scores
from seg4diff_tools.analysis.search import greedy
from seg4diff_tools.attention.recorder import AttentionRecorder
from seg4diff_tools.errors import InputError
from seg4diff_tools.scenes import Scene, SceneConfig, Scenes


def square_scene() -> Scene:
    """A cat of 4 x 4 tokens in the middle of 8 x 8 tokens of 5 x 5 pixels, on grass."""
    labels = np.ones((40, 40), np.uint8)
    labels[10:30, 10:30] = 0
    return Scene(
        image=np.zeros((40, 40, 3), np.uint8),
        caption="a cat on grass",
        class_names=("cat", "grass"),
        label_map=labels,
        masks=(labels == 0)[None],
        objects=("cat",),
        background="grass",
    )


def square_maps() -> torch.Tensor:
    """One layer of four heads: the whole cat, its upper half, its right half, and nothing of it."""
    cat = torch.zeros(4, 8, 8)
    cat[0, 2:6, 2:6] = 1
    cat[1, 2:4, 2:6] = 1
    cat[2, 2:6, 4:6] = 1
    return torch.stack([cat, torch.full_like(cat, 0.5)], 1)[None]


def test_part_scores_by_hand():
    table = part_scores([square_maps()], [square_scene()]).set_index("head")
    assert table.whole.tolist() == pytest.approx([1.0, 0.75, 0.75, 0.5])
    assert table.upper.tolist() == pytest.approx([0.5, 1.0, 0.5, 0.5])
    assert table.left.tolist() == pytest.approx([0.5, 0.5, 0.0, 0.5])
    assert table.things.tolist() == [1] * 4
    with pytest.raises(InputError, match="at least 17 image tokens, got none in 1"):
        part_scores([square_maps()], [square_scene()], least=17)


def test_part_scores_of_scenes_with_other_numbers_of_classes():
    more = torch.cat([square_maps(), torch.zeros(1, 4, 1, 8, 8)], dim=2)
    labels = square_scene().label_map
    other = replace(square_scene(), class_names=("cat", "grass", "dog"), label_map=labels)
    maps, scenes = [square_maps(), more] * 20, [square_scene(), other] * 20
    table = part_scores(maps, scenes).set_index("head")
    assert table.whole.tolist() == pytest.approx([1.0, 0.75, 0.75, 0.5])
    assert table.things.tolist() == [40] * 4


def test_choice_by_hand():
    labels = torch.ones(8, 8, dtype=torch.int64)
    labels[2:6, 2:6] = 0
    moves = choose_heads([square_maps()], [labels])
    assert list(moves.columns) == ["heads", "mIoU"]
    assert moves.heads.tolist() == [((0, 0),)]
    assert moves.mIoU.tolist() == [1.0]
    # without the whole, upper half and right half are better together than each: three quarters of the cat
    parts = square_maps()[:, 1:].clone()
    parts[:, :, 1] = 0.4
    moves = choose_heads([parts], [labels], count=3)
    assert moves.heads.tolist()[:2] == [((0, 0),), ((0, 0), (0, 1))]
    # half of 16 tokens of cat: IoU 8/16 and 48/56; three quarters: 12/16 and 48/52
    assert moves.mIoU.tolist()[:2] == pytest.approx([(8 / 16 + 48 / 56) / 2, (12 / 16 + 48 / 52) / 2])
    assert len(choose_heads([parts], [labels], count=1)) == 1


def test_greedy_by_hand():
    gains = {"a": 3.0, "b": 5.0, "c": -1.0, "d": 5.0}

    def extend(chosen):
        return [(*chosen, name) for name in gains if name not in chosen]

    def score(choices):
        return [sum(gains[name] for name in choice) for choice in choices]

    moves = greedy(extend(()), extend, score)
    assert moves == [(("b",), 5.0), (("b", "d"), 10.0), (("b", "d", "a"), 13.0)]
    assert greedy(extend(()), extend, score, most=2) == moves[:2]
    assert greedy([], extend, score) == []


def test_cross_validation_scores_what_chose_nothing():
    scenes = [square_scene() for _ in range(4)]
    good, bad = square_maps(), square_maps().flip(1)
    # in even images head 0 is the cat, in odd ones it is head 3: each fold chooses what is wrong for the other
    table, chosen = cross_validated([good, bad, good, bad], scenes, layer=0)
    assert chosen == [[(0, 3)], [(0, 0)]]
    scores = table.set_index("heads").mIoU
    assert scores["chosen heads"] == pytest.approx(scores["best head"])
    everything = [m.mean((0, 1), keepdim=True) for m in (good, bad, good, bad)]
    mean, _ = cross_validated(everything, scenes, layer=0)
    assert scores["mean of all layers"] == pytest.approx(mean.set_index("heads").mIoU["mean of layer 0"])
    table, chosen = cross_validated([good] * 4, scenes, layer=0)
    assert chosen == [[(0, 0)], [(0, 0)]]
    assert table.set_index("heads").pACC["chosen heads"] > 0.9
    with pytest.raises(InputError, match="from 2 to 4 folds"):
        cross_validated([good] * 4, scenes, layer=0, folds=5)


def test_cross_validation_in_hundreds_of_classes():
    # each image names fewer than 255, the set more
    others = [tuple(f"thing {i}" for i in part) for part in (range(200), range(200, 400))]
    scenes = [replace(square_scene(), class_names=("cat", "grass", *own)) for own in others]
    maps = torch.nn.functional.pad(square_maps(), (0, 0, 0, 0, 0, 200))
    few, _ = cross_validated([square_maps()] * 2, [square_scene()] * 2, layer=0)
    many, _ = cross_validated([maps] * 2, scenes, layer=0)
    assert many.equals(few)


def test_maps_are_those_of_the_attention(tiny_backbone):
    samples = Scenes("test", 2, SceneConfig(size=56))
    maps = head_class_maps(tiny_backbone, samples, [1, 3], progress=False)
    (names,) = tiny_backbone.class_prompts(samples[1].class_names)
    with AttentionRecorder(tiny_backbone, layers=3, heads="all", prompt=names, tokens=names.classes) as recorder:
        tiny_backbone.predict_velocity(*tiny_backbone.add_noise(tiny_backbone.encode_image(samples[1].image), 8), names)
    np.testing.assert_allclose(maps[1][1], recorder.maps.squeeze().values, atol=1e-6)
