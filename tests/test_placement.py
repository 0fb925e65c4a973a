"""Words kept in their place: where they are asked to be, and how pictures are judged."""

import math

import numpy as np
import pytest
from pandas.testing import assert_frame_equal

from seg4diff_tools.analysis.placement import Placing, asked_places, placing_effects, things_in_place
from seg4diff_tools.attention.placing import place_words
from seg4diff_tools.generation.composition import Asked, CompositionPrompt, fitting_plan, judge, prompts
from seg4diff_tools.generation.detector import load_detector
from seg4diff_tools.scenes import draw_scenes, relation


def center(mask):
    rows, columns = np.nonzero(mask)
    return (columns.mean() + 0.5) / mask.shape[1], (rows.mean() + 0.5) / mask.shape[0]


def test_places_are_those_of_a_scene_that_fulfills_the_prompt():
    for number, prompt in enumerate(prompts(4)):
        places, plan = asked_places(prompt, number), fitting_plan(prompt, number)
        assert len(places) == len(prompt.objects)
        assert all(word in prompt.text for word in places)
        area = sum(min(1.0, thing.side) ** 2 for thing in plan.placements)
        assert sum(mask.mean() for mask in places.values()) == pytest.approx(area, rel=0.1)
        if prompt.relation:
            first, second = map(center, places.values())
            assert relation(first, second) == prompt.relation


def test_pictures_are_those_of_the_model_with_words_in_place(tiny_backbone):
    asked = [
        CompositionPrompt("two objects", (Asked("cat"), Asked("dog")), "grass"),
        CompositionPrompt("counting", (Asked("apple", count=2),), "snow"),
        CompositionPrompt("color binding", (Asked("car", "red"), Asked("bus", "blue")), "road"),
    ]
    detector, sampling = load_detector(), {"steps": 2, "progress": False}
    settings = {"without": Placing(0.0), "placed": Placing(2.5), "locked": Placing(2.5, lock=0)}
    looks = []
    handle = detector.net.register_forward_hook(lambda *_: looks.append(1))
    table = placing_effects(tiny_backbone, detector, asked, settings, batch=2, **sampling)
    handle.remove()
    assert len(looks) == len(settings)
    assert list(table.setting) == [name for name in settings for _ in asked]
    assert (table.asked == [2, 1, 2] * 3).all()
    assert (table.placed <= table.asked).all()
    texts, places = [one.text for one in asked], [asked_places(one, number) for number, one in enumerate(asked)]
    assert list(places[1]) == ["apples"] and list(places[2]) == ["red car", "blue bus"]
    made = []
    for part in (slice(0, 2), slice(2, 3)):
        seeds = list(range(3))[part]
        with place_words(tiny_backbone, texts[part], places[part], strength=2.5):
            made += tiny_backbone.generate(texts[part], seed=seeds, **sampling)
    wanted = judge(detector, made, asked)
    found = table[table.setting == "placed"].reset_index(drop=True)
    assert_frame_equal(found[["correct", "wrong"]], wanted[["correct", "wrong"]])


def test_an_infinite_strength_closes_the_ways_outside(tiny_backbone):
    asked, sampling = prompts(1)[:1], {"steps": 2, "progress": False}
    table = placing_effects(tiny_backbone, load_detector(), asked, {"closed": Placing(math.inf)}, **sampling)
    with place_words(tiny_backbone, [asked[0].text], [asked_places(asked[0])], strength=math.inf):
        made = tiny_backbone.generate([asked[0].text], seed=[0], **sampling)
    assert table.correct.tolist() == judge(load_detector(), made, asked).correct.tolist()


def test_things_count_where_they_are_asked_to_be():
    detector, asked = load_detector(), prompts(2)
    plans = [fitting_plan(prompt, number) for number, prompt in enumerate(asked)]
    found = detector.detect([scene.pil for scene in draw_scenes(plans, detector.config.side)])
    counts = [
        things_in_place(prompt, asked_places(prompt, number), scene)
        for number, (prompt, scene) in enumerate(zip(asked, found, strict=True))
    ]
    # the detector finds nearly all things of drawn scenes, and where they were drawn
    assert sum(counts) >= 0.8 * sum(len(prompt.objects) for prompt in asked)
    nowhere = [{word: ~mask for word, mask in asked_places(prompt, n).items()} for n, prompt in enumerate(asked)]
    elsewhere = [things_in_place(*each) for each in zip(asked, nowhere, found, strict=True)]
    assert all(one + other <= len(prompt.objects) for one, other, prompt in zip(counts, elsewhere, asked, strict=True))
    assert sum(elsewhere) < sum(counts) / 4
