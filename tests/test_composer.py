import numpy as np
import pytest

from seg4diff_tools import compose_scene
from seg4diff_tools.errors import InputError
from seg4diff_tools.scenes import compose


@pytest.fixture
def view(tiny_backbone):
    view = compose_scene(tiny_backbone, [("cat", (0.25, 0.5), 0.5)], "snow", steps=5, steps_from_end=2, layer=1)
    yield view
    view.close()
    view.wait()


def test_it_shows_the_scene_at_one_step(view):
    plain = compose([("cat", (0.25, 0.5), 0.5)], "snow", size=56)
    assert (view.scene.image == plain.image).all()
    assert (view.prompt, view.axes["step"], view.layer) == (plain.caption, [3], 1)
    assert (view.mode, view.classes) == ("masks", ["cat", "snow"])
    assert (
        view.call == 'compose_scene(backbone, [("cat", (0.25, 0.50), 0.50)], "snow", seed=0, steps=5, steps_from_end=2'
    )


def test_masks_follow_the_things(view):
    before = view.data
    view.objects = [*view.objects, {"name": "dog", "x": 0.75, "y": 0.5, "side": 0.5}]
    view.wait()
    assert view.classes == ["cat", "dog", "snow"]
    assert (
        view.scene.label_map
        == compose([("cat", (0.25, 0.5), 0.5), ("dog", (0.75, 0.5), 0.5)], "snow", size=56).label_map
    ).all()
    view.objects = [{"name": "cat", "x": 0.75, "y": 0.5, "side": 0.5}]
    view.background = "sand"
    view.wait()
    assert (view.classes, view.progress, view.message) == (["cat", "sand"], 1, "")
    assert not np.allclose(view.data.sel({"class": "cat"}), before.sel({"class": "cat"}))


def test_a_background_of_two_words_is_one_class(tiny_backbone):
    view = compose_scene(tiny_backbone, [("cat", (0.25, 0.5), 0.5)], "night sky", layer=1)
    assert (view.classes, view.schedule, view.axes["step"]) == (["cat", "night sky"], 28, [20])
    view.close()


def test_what_cannot_be_drawn_says_so(view, tiny_backbone):
    view.objects = [{"name": "lion-fish", "x": 0.5, "y": 0.5, "side": 0.5}]
    assert "got 'lion-fish': did you mean 'lion'" in view.message
    assert view.scene.objects == ("cat",)
    with pytest.raises(InputError, match="expected background that can be drawn"):
        compose_scene(tiny_backbone, background="moon")
    with pytest.raises(InputError, match="steps_from_end from 1 to 28"):
        compose_scene(tiny_backbone, steps_from_end=0)
