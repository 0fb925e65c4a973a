"""Scenes: the same on every machine, with labels that match the picture and captions that tell the truth."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from seg4diff_tools import scenes
from seg4diff_tools.errors import InputError
from seg4diff_tools.scenes import Placement, Plan, SceneConfig, Scenes, plan, render, scene
from seg4diff_tools.scenes.drawings import COLORS, concepts, drawing, styles

HARD = SceneConfig(concepts=tuple(concepts()), objects=(1, 4), object_side=(0.15, 0.7), twins=0.4, colored=0.6)
NUMBERS = {"two": 2, "three": 3, "four": 4}


def phrases() -> dict[str, tuple[str, str | None, int]]:
    """Everything that a caption may call some objects, with what it means."""
    meanings = {}
    for concept in concepts().values():
        for color in (None, *(COLORS if concept.recolor else ())):
            word = f"{color} " if color else ""
            one = f"{word}{concept.name}"
            article = (
                ""
                if concept.name == concept.plural and concept.name[-1] == "s"
                else "an "
                if one[0] in "aeiou"
                else "a "
            )
            meanings[article + one] = (concept.name, color, 1)
            meanings |= {f"{n} {word}{concept.plural}": (concept.name, color, count) for n, count in NUMBERS.items()}
    return meanings


PHRASES = phrases()


def read(caption: str) -> tuple[Counter, str | None, list[tuple], str]:
    """What a caption says: how many of what, in which relation, which objects in order, on which background."""
    match = re.fullmatch(rf"(.+) (on|in|under a) ({'|'.join(scenes.BACKGROUNDS)})", caption)
    assert match, caption
    listed, _, background = match.groups()
    relation = next((r for r in ("left of", "right of", "above", "below") if f" {r} " in listed), None)
    parts = re.split(f" {relation} " if relation else ", | and ", listed)
    told = [PHRASES[part] for part in parts]
    counts = Counter()
    for name, color, count in told:
        counts[name, color] += count
    return counts, relation, told, background


@pytest.mark.parametrize("split", ["train", "test", "test-style"])
@pytest.mark.parametrize("config", [SceneConfig(), HARD], ids=["easy", "hard"])
def test_captions_tell_the_truth(split, config):
    relations = Counter()
    for index in range(200):
        p = plan(split, index, config)
        counts, relation, told, background = read(p.caption)
        assert counts == Counter((o.concept, o.color) for o in p.placements)
        assert background == p.background
        relations[relation] += 1
        if relation:
            center = {(o.concept, o.color): o.center for o in p.placements}
            (x0, y0), (x1, y1) = (center[name, color] for name, color, _ in told)
            holds = {"left of": x0 < x1, "right of": x0 > x1, "above": y0 < y1, "below": y0 > y1}
            assert holds[relation]
            # the relation is along the longer way
            assert (abs(x0 - x1) > abs(y0 - y1)) == (relation in ("left of", "right of"))
    assert set(relations) == {None, "left of", "right of", "above", "below"}


def test_plans_keep_to_their_configuration():
    config = replace(HARD, concepts=("cat", "dog", "car", "tree", "fish"), backgrounds=("sand", "snow"))
    plans = [plan("train", index, config) for index in range(300)]
    assert {len(p.placements) for p in plans} == {1, 2, 3, 4}
    assert {p.background for p in plans} == {"sand", "snow"}
    objects = [o for p in plans for o in p.placements]
    assert {o.concept for o in objects} == set(config.concepts)
    assert {o.flipped for o in objects} == {True, False}
    assert all(0.15 <= o.side <= 0.7 and abs(o.degrees) <= config.degrees for o in objects)
    assert {o.color for o in objects if not concepts()[o.concept].recolor} == {None}
    assert {o.color for o in objects if o.concept == "car"} == {None, *COLORS}
    twins = [p for p in plans if max(Counter(o.concept for o in p.placements).values()) > 1]
    assert 0.3 < len(twins) / len(plans) < 0.8
    # an object in front is never larger than one behind it
    assert all(a.side >= b.side for p in plans for a, b in zip(p.placements, p.placements[1:], strict=False))


def test_held_out_drawings_are_only_in_test_style():
    held_out = set(styles(held_out=True))
    for split in scenes.SPLITS:
        drawn = {o.style for index in range(150) for o in plan(split, index, HARD).placements}
        assert drawn == (held_out if split == "test-style" else set(styles()))


def test_a_scene_follows_from_split_and_index():
    # these captions are part of what model cards measure on: they must not change
    assert [plan("test", index).caption for index in range(3)] == [
        "a purple balloon above a pineapple in water",
        "a car on brick",
        "a blue balloon, a balloon and a pizza on wood",
    ]
    first, again = (scene("train", 5) for _ in range(2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.label_map, again.label_map)
    captions = {split: [plan(split, index).caption for index in range(40)] for split in scenes.SPLITS}
    assert len({tuple(told) for told in captions.values()}) == len(scenes.SPLITS)
    # reading one scene does not move another
    late = plan("train", 1_000_003)
    assert plan("train", 1_000_003) == late
    assert np.array_equal(plan("train", 1_000_003).noise, late.noise)


@pytest.mark.parametrize("config", [SceneConfig(), HARD], ids=["easy", "hard"])
def test_labels_masks_and_boxes_agree(config):
    for sample in Scenes("train", 30, replace(config, size=53)):
        assert sample.image.shape == (53, 53, 3)
        assert sample.label_map.shape == (53, 53)
        assert sample.masks.shape == (len(sample.objects), 53, 53)
        assert sample.masks.sum(0).max() <= 1
        assert sample.class_names == (*dict.fromkeys(sample.objects), sample.background)
        assert sample.prompt == " ".join(sample.class_names)
        of_objects = sample.masks.any(0)
        for number, name in enumerate(sample.class_names[:-1]):
            union = np.any([mask for mask, of in zip(sample.masks, sample.objects, strict=True) if of == name], 0)
            np.testing.assert_array_equal(sample.label_map == number, union)
        assert set(np.unique(sample.label_map[~of_objects])) <= {len(sample.class_names) - 1, 255}
        for (left, top, right, bottom), mask in zip(sample.boxes, sample.masks, strict=True):
            assert mask[top:bottom, left:right].sum() == mask.sum()
            assert mask[top].any()
            assert mask[bottom - 1].any()
            assert mask[:, left].any()
            assert mask[:, right - 1].any()


def test_labels_are_where_the_picture_changes():
    """Drawn over another texture, a scene keeps its objects' pixels and changes all of its background's."""
    p = plan("test", 2)
    other = replace(p, background="night sky")
    (image, changed), (owner, same) = render([p, other], 64)
    torch.testing.assert_close(owner, same)
    difference = (image - changed).abs().amax(0)
    assert difference[owner == -1].quantile(0.05) > 0.05
    assert difference[owner >= 0].quantile(0.8) < 0.01


def test_composed_by_hand():
    # this donut touches all four sides of its drawing: half of 96 pixels, centered, is 24 to 72
    donut = scenes.compose([("donut", (0.5, 0.5), 0.5)], background="snow", style="noto")
    assert donut.boxes.tolist() == [[24, 24, 72, 72]]
    assert donut.class_names == ("donut", "snow")
    assert donut.caption == "a donut in snow"
    assert set(np.unique(donut.label_map)) == {0, 1}
    assert donut.label_map[25, 48] == 0
    assert donut.label_map[2, 2] == 1
    # its hole shows the ground
    assert donut.pil.size == (96, 96)
    alpha = drawing("donut", "noto")[..., 3] > 127
    assert donut.masks.sum() == pytest.approx(alpha.sum() / 4, rel=0.02)

    # moved by a quarter of the side to the left and cut at the edge
    cut = scenes.compose([("donut", (0.125, 0.75), 0.5)], background="snow", style="noto")
    assert cut.boxes.tolist() == [[0, 48, 36, 96]]


def test_objects_are_drawn_back_to_front():
    one = [("cat", (0.5, 0.5), 0.6)]
    both = scenes.compose([*one, ("car", (0.6, 0.6), 0.5)])
    car = scenes.compose([("car", (0.6, 0.6), 0.5)])
    np.testing.assert_array_equal(both.masks[1], car.masks[0])
    np.testing.assert_array_equal(both.masks[0], scenes.compose(one).masks[0] & ~car.masks[0])
    assert both.caption == "a cat and a car on grass"
    assert scenes.compose([*one, *one, ("car", (0.2, 0.2), 0.3)]).caption == "two cats and a car on grass"


def test_what_is_hidden_is_not_listed():
    front = ("bear", (0.5, 0.5), 0.9)
    hidden = scenes.compose([("apple", (0.5, 0.5), 0.2), front])
    assert hidden.class_names == ("bear", "grass")
    assert hidden.objects == ("bear",)
    # almost hidden: the few pixels that can be seen belong to no listed class
    almost = scenes.compose([("fish", (0.62, 0.5), 0.9), ("bear", (0.5, 0.5), 1.0)])
    assert almost.class_names == ("bear", "grass")
    plain = scenes.compose([("bear", (0.5, 0.5), 1.0)])
    assert (almost.label_map == 255).sum() > 5
    np.testing.assert_array_equal(almost.label_map == 0, plain.label_map == 0)
    np.testing.assert_array_equal(almost.label_map == 255, (almost.label_map != plain.label_map))
    outside = scenes.compose([("cat", (0.5, 0.5), 0.4), ("car", (3.0, 0.5), 0.4)])
    assert outside.objects == ("cat",)


def test_flips_and_turns():
    def owner(**change) -> torch.Tensor:
        noise = np.zeros((2, 32, 32), dtype=np.float32)
        placement = replace(Placement("guitar", "noto", (0.5, 0.5), 0.8), **change)
        return render([Plan((placement,), "sand", "", noise)], 64)[1][0]

    straight = owner()
    torch.testing.assert_close(owner(flipped=True), straight.flip(1))
    assert (owner(degrees=90.0) == straight.rot90(-1)).float().mean() > 0.995
    assert (owner(degrees=90.0) == straight.rot90(1)).float().mean() < 0.95


def test_a_batch_equals_single_scenes():
    plans = [plan("train", index, HARD) for index in range(23)]
    images, owners = render(plans, 61)
    assert images.shape == (23, 3, 61, 61)
    assert images.min() >= 0
    assert images.max() <= 1
    for number, p in enumerate(plans):
        image, owner = render([p], 61)
        torch.testing.assert_close(image[0], images[number], rtol=0, atol=1e-6)
        torch.testing.assert_close(owner[0], owners[number], rtol=0, atol=0)


def test_a_sequence_of_scenes():
    test = Scenes("test", 7)
    assert len(test) == 7
    assert len(list(test)) == 7
    np.testing.assert_array_equal(test[-1].image, scene("test", 6).image)
    with pytest.raises(IndexError, match="index below 7, got 7"):
        test[7]
    part = test[np.int64(4) :]
    assert (len(part), part.class_names) == (3, test.class_names)
    for found, index in ((part[-1], 6), (part[np.int32(0)], 4), (test[::-2][1], 4)):
        np.testing.assert_array_equal(found.image, scene("test", index).image)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_of_torch_changes_no_scene(dtype):
    expected = [scene("test", index) for index in range(5)]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        drawn = [scene("test", index) for index in range(5)]
    finally:
        torch.set_default_dtype(before)
    for one, other in zip(drawn, expected, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.label_map, other.label_map)


def test_the_gallery_is_24_scenes_of_two_or_three_objects():
    gallery = scenes.gallery()
    assert len(gallery) == 24
    assert {len(plan("gallery", i).placements) for i in range(24)} == {2, 3}
    assert gallery[21].caption == "a strawberry, an airplane and a penguin on grass"
    assert len({sample.background for sample in gallery}) >= 6
    assert len({name for sample in gallery for name in sample.objects}) >= 20
    # one scene, whichever way it is asked for, and whatever the number of objects elsewhere
    for config in (SceneConfig(), SceneConfig(size=64, objects=(1, 1))):
        for sample in (scene("gallery", 21, config), Scenes("gallery", 24, config)[21]):
            np.testing.assert_array_equal(sample.image, scenes.gallery(config)[21].image)
            assert sample.caption == gallery[21].caption


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan("valid", 0), "split, one of 'train', 'test', 'test-style', 'gallery', got 'valid'"),
        (lambda: plan("test", -1), "index from 0 .*got -1"),
        (lambda: SceneConfig(concepts=("cat", "dragonfruit")), "'dragonfruit'"),
        (lambda: SceneConfig(backgrounds=("lava",)), "'lava'"),
        (lambda: SceneConfig(objects=(0, 2)), "objects 1 or more, got 0"),
        (lambda: SceneConfig(objects=(3, 2)), "smallest, largest"),
        (
            lambda: scenes.compose([("cat", (0.5, 0.5), 0.5)], background="lava"),
            "background that can be drawn, got 'lava'",
        ),
        (lambda: scenes.compose([]), "at least one"),
        (lambda: scenes.compose([("dragonfruit", (0.5, 0.5), 0.5)]), "objects that can be drawn, got 'dragonfruit'"),
        (lambda: scenes.compose([("cat", (0.5, 0.5), 0.5)], style="oil"), "style, one of .*got 'oil'"),
        (lambda: scenes.compose([("cat", (0.5, 0.5), 1.5)]), "side, a number from 0 to 1, got 1.5"),
        (lambda: scenes.compose([("cat", (0.5, 0.5), 0.0)]), "side, a share above 0 .*got 0.0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("split", ["train", "test"])
def test_rich_captions_tell_the_truth(split):
    config = SceneConfig(captions="rich", twins=0.3, triples=0.5, colored=0.5, recolorable=0.2, object_side=(0.33, 0.7))
    kinds = {scenes.phrase(name, color, count, size): (name, color, count, size)
             for name in config.concepts for color in (None, *COLORS) for count in (1, 2, 3)
             for size in (None, "small", "large")}  # fmt: skip
    between = {*scenes.RELATIONS, "in front of", "behind"}
    told_in_all = Counter()
    for index in range(400):
        p = plan(split, index, config)
        text = re.sub(rf" (on|in|under a) {p.background}$", "", p.caption)
        assert text != p.caption
        counted = Counter()
        things = []
        for part in re.split(rf", and | and |, | (?={'|'.join(between)})", text):
            match = re.fullmatch(rf"(?:({'|'.join(between)}) )?(.+?)(?: (at the .+|in the middle))?", part)
            where, name, place = match.groups()
            concept, color, count, size = kinds[name]
            found = [o for o in p.placements if (o.concept, o.color) == (concept, color)]
            assert len(found) == count
            assert size != "small" or max(o.side for o in found) < 0.38
            assert size != "large" or min(o.side for o in found) > 0.52
            if place:
                (x, y) = found[0].center
                assert ("left" in place) == (x < 0.4)
                assert ("right" in place) == (x > 0.6)
                assert ("top" in place) == (y < 0.4)
                assert ("bottom" in place) == (y > 0.6)
            if where:
                other = things[-1][0]
                first, second = p.placements.index(other), p.placements.index(found[0])
                if where in scenes.RELATIONS:
                    assert scenes.relation(other.center, found[0].center) == where
                else:
                    assert (first > second) == (where == "in front of")
            things.append(found)
            counted[concept, color] += count
            told_in_all.update([size, place and place.split()[1], where, count])
        assert counted == Counter((o.concept, o.color) for o in p.placements)
    assert set(told_in_all) >= {"small", "large", *between, 1, 2, 3}


def test_both_kinds_of_captions_belong_to_the_same_pictures():
    for index in range(20):
        short, rich = (plan("train", index, SceneConfig(captions=kind)) for kind in scenes.CAPTIONS)
        assert short.placements == rich.placements
        assert short.background == rich.background
        np.testing.assert_array_equal(short.noise, rich.noise)
    with pytest.raises(InputError, match="expected captions, one of 'short', 'rich'"):
        SceneConfig(captions="long")
    with pytest.raises(InputError, match="concepts that can be recolored"):
        SceneConfig(concepts=("cat",), recolorable=0.5)


def test_a_third_of_a_kind_and_nothing_but_recolored_things():
    plans = [plan("train", i, SceneConfig(twins=1.0, triples=1.0, recolorable=1.0)) for i in range(60)]
    assert all(len({o.concept for o in p.placements}) == 1 for p in plans)
    assert {len(p.placements) for p in plans} == {1, 2, 3}
    assert all(concepts()[o.concept].recolor for p in plans for o in p.placements)
