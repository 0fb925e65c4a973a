"""The benchmark of composition: prompts that are captions, rules on scenes of which all is known, intervals by hand."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from test_scenes import read

from seg4diff_tools.errors import InputError
from seg4diff_tools.generation.composition import (
    CATEGORIES,
    Asked,
    CompositionPrompt,
    composition_scores,
    fitting_plan,
    generate_pictures,
    judge,
    near_miss,
    prompts,
    summary,
    validation,
)
from seg4diff_tools.generation.detector import load_detector
from seg4diff_tools.scenes import BASE_CONCEPTS, Placement, Plan, draw_scenes, relation
from seg4diff_tools.scenes.drawings import concepts


@pytest.fixture(scope="module")
def detector():
    return load_detector()


def test_prompts_are_captions_that_mean_what_is_judged():
    drawn = prompts(60)
    assert Counter(prompt.category for prompt in drawn) == dict.fromkeys(CATEGORIES, 60)
    assert len({(prompt.category, prompt.text) for prompt in drawn}) == len(drawn)
    for prompt in drawn:
        counts, where, told, background = read(prompt.text)  # as the tests of scenes read captions
        assert counts == {(asked.concept, asked.color): asked.count for asked in prompt.objects}
        assert (where, background) == (prompt.relation, prompt.background)
        assert [name for name, _, _ in told] == [asked.concept for asked in prompt.objects]
        assert {asked.concept for asked in prompt.objects} <= set(BASE_CONCEPTS)
        for asked in prompt.objects:
            assert asked.color is None or concepts()[asked.concept].recolor
    groups = {name: [prompt for prompt in drawn if prompt.category == name] for name in CATEGORIES}
    assert {prompt.objects[0].count for prompt in groups["counting"]} == {2, 3}
    assert {prompt.relation for prompt in groups["relation"]} == {"left of", "right of", "above", "below"}
    assert all(one.color != other.color for one, other in (p.objects for p in groups["color binding"]))
    for prompt in groups["complex"]:
        assert sum(asked.count for asked in prompt.objects) in (2, 3)
        assert any(asked.color or asked.count > 1 for asked in prompt.objects)


def test_prompts_depend_on_the_seed_alone():
    assert prompts(7, seed=3) == prompts(7, seed=3) != prompts(7, seed=4)
    more = prompts(20, seed=3)
    assert [p for k in range(6) for p in more[20 * k : 20 * k + 7]] == prompts(7, seed=3)
    for number in (0, 201):
        with pytest.raises(InputError, match=f"expected count_per_category from 1 to 200, got {number}"):
            prompts(number)


@pytest.mark.parametrize(
    ("prompt", "wrong"),
    [
        (CompositionPrompt("single object", (Asked("cat"),), "snow"), ""),
        (CompositionPrompt("single object", (Asked("fish"),), "sand"), "no fish"),
        (CompositionPrompt("two objects", (Asked("car"), Asked("cat")), "sand"), ""),
        (CompositionPrompt("counting", (Asked("cat", count=2),), "sand"), ""),
        (CompositionPrompt("counting", (Asked("cat", count=3),), "sand"), "count of cats: 2"),
        (CompositionPrompt("counting", (Asked("car", count=2),), "sand"), "count of cars: 1"),
        (CompositionPrompt("color binding", (Asked("car", "green"), Asked("cat")), "sand"), ""),
        (CompositionPrompt("color binding", (Asked("car", "blue"), Asked("cat")), "sand"), "car in green"),
        (CompositionPrompt("relation", (Asked("car"), Asked("turtle")), "sand", "above"), ""),
        (CompositionPrompt("relation", (Asked("turtle"), Asked("car")), "sand", "above"), "relation: below"),
        (CompositionPrompt("complex", (Asked("car", "green"), Asked("cat", count=2)), "sand"), ""),
        (CompositionPrompt("complex", (Asked("car", "green"), Asked("cat")), "snow"), "background: sand"),
    ],
)
def test_rules_on_one_scene(detector, prompt, wrong):
    """Two cats below, a green car above a turtle in the middle."""
    placements = (
        Placement("cat", "noto", (0.2, 0.8), 0.36),
        Placement("cat", "fluent-flat", (0.8, 0.8), 0.36),
        Placement("turtle", "noto", (0.5, 0.6), 0.36),
        Placement("car", "noto", (0.5, 0.2), 0.36, color="green"),
    )
    scene = Plan(placements, "sand", "", fitting_plan(prompt).noise)
    (row,) = judge(detector, draw_scenes([scene], 96)[0].image, [prompt]).itertuples()
    assert (row.wrong, row.correct) == (wrong, wrong == "")
    assert (row.category, row.prompt, row.background) == (prompt.category, prompt.text, "sand")
    assert Counter(row.found.split(", ")) == {"a cat": 2, "a turtle": 1, "a green car": 1}


def test_fitting_scenes_show_what_was_asked_for():
    for seed, prompt in enumerate(prompts(9, seed=1)):
        plan = fitting_plan(prompt, seed)
        shown = Counter((thing.concept, thing.color) for thing in plan.placements)
        assert shown == {(asked.concept, asked.color): asked.count for asked in prompt.objects}
        assert (plan.background, plan.caption) == (prompt.background, prompt.text)
        if prompt.relation:
            assert relation(*(thing.center for thing in plan.placements)) == prompt.relation
        assert near_miss(prompt, seed) == near_miss(prompt, seed) != prompt


def test_the_judge_tells_right_from_wrong(detector):
    """Scenes that fit are correct nearly always; other prompts' scenes and near misses nearly never."""
    found = validation(detector, prompts(12, seed=2), seed=5)
    assert found.category.tolist() == list(CATEGORIES)
    assert (found.pictures == 12).all()
    assert found.fitting.mean() > 0.9
    assert found.fitting.min() >= 0.75
    assert found.shuffled.mean() < 0.05
    assert found["near miss"].mean() < 0.05
    # what is done to the pictures first is what is judged
    blank = validation(detector, prompts(2), through=lambda images: [np.zeros_like(image) for image in images])
    assert (blank[["fitting", "shuffled", "near miss"]] == 0).all(axis=None)


def test_scores_are_judged_pictures(tiny_backbone, detector):
    asked = prompts(1)[:3]
    settings = {"steps": 2, "guidance_scale": 1.0, "progress": False}
    found = composition_scores(tiny_backbone, detector, asked, (0, 4), batch=4, **settings)
    assert found.seed.tolist() == [0, 0, 0, 4, 4, 4]
    assert found.prompt.tolist() == [p.text for p in asked] * 2
    assert set(found.model) == {tiny_backbone.name}
    made = generate_pictures(tiny_backbone, asked, (0, 4), batch=4, **settings)
    pd.testing.assert_frame_equal(found[["correct", "found"]], judge(detector, made, asked * 2)[["correct", "found"]])
    # another batch gives the same pictures, and the noise follows from prompt and seed
    (alone,) = tiny_backbone.generate(asked[1].text, seed=400_001, **settings)
    assert np.abs(np.asarray(made[4], int) - np.asarray(alone, int)).max() <= 1
    with pytest.raises(InputError, match="a list of CompositionPrompt, at least one"):
        generate_pictures(tiny_backbone, [], **settings)
    with pytest.raises(InputError, match="got 6 images for 3 prompts"):
        judge(detector, made, asked)


def test_summary_by_hand():
    table = pd.DataFrame(
        {"category": ["b", "a", "b", "b", "b"], "correct": [True, True, True, True, False], "model": "m"}
    )
    found = summary(table)
    assert found.category.tolist() == ["b", "a"]
    assert found.pictures.tolist() == [4, 1]
    assert found.correct.tolist() == [0.75, 1.0]
    # Wilson: (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    z, p, n = 1.959964, 0.75, 4
    middle, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    ends = [(middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)]
    np.testing.assert_allclose(found.loc[0, ["low", "high"]].astype(float), ends, rtol=1e-5)
    both = summary(table, ("model",))
    assert both[["model", "correct", "pictures"]].to_numpy().tolist() == [["m", 0.8, 5]]
