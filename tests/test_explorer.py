import base64
import io
import json
import re
import threading

import ipywidgets
import numpy as np
import PIL.Image
import pytest
import tiny_models
import traitlets
import xarray as xr
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

from seg4diff_tools import AttentionRecorder, explore, open_recording, scenes
from seg4diff_tools.backbones.loading import as_backbone
from seg4diff_tools.datasets import LabeledImage
from seg4diff_tools.errors import InputError, RecordingError
from seg4diff_tools.explorer import page
from seg4diff_tools.explorer.live import record_live
from seg4diff_tools.explorer.maps import AXES, quantize
from seg4diff_tools.explorer.preview import preview

IMAGE = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
SENTENCE = "a red car left of a zebra"  # the tiny tokenizer spells zebra in pieces


@pytest.fixture(scope="module")
def recording(tiny_backbone):
    prompt, latents = tiny_backbone.encode_prompt(SENTENCE, zero_tokens=5), tiny_backbone.encode_image(IMAGE)
    with AttentionRecorder(
        tiny_backbone, prompt=prompt, tokens="all", heads="all", direction=["i2t", "t2i", "masses"]
    ) as recorder:
        for step in (20, 8):
            tiny_backbone.predict_velocity(*tiny_backbone.add_noise(latents, step), prompt)
    return recorder.recording


@pytest.fixture
def view(recording):
    view = explore(recording, IMAGE)
    yield view
    view.close()


def ask(view, **question):
    """What the front end gets for a question, and its bytes."""
    sent = []
    view.send = lambda content, buffers=None: sent.append((content, buffers))
    view._handle_custom_msg(question, [])
    ((content, buffers),) = sent
    assert content["question"] == question
    return content, buffers and buffers[0]


def test_it_begins_with_a_telling_word(view):
    assert (view.direction, view.branch, view.layer, view.step, view.head) == ("i2t", "cond", 1, 1, "mean")
    assert (view.token, view.classes) == ("red", ["red", "car", "zebra"])
    assert view.axes["head"] == ["mean", 0, 1, 2]
    assert "masses" not in view.axes["direction"]
    assert len(view.tokens) == 77 + 5
    labels = [word["label"] for word in view.words]
    assert labels == ["<start>", *["a", "red", "car", "left", "of", "a#2", "zebra"], "<end>", "<pads>", "<zeros>"]


def test_the_bytes_are_those_of_the_chosen_maps(view, recording):
    for layer, step, head, direction in [(0, 0, "mean", "i2t"), (4, 1, 2, "t2i"), (3, 0, 1, "i2t")]:
        view.layer, view.step, view.head, view.direction = layer, step, head, direction
        content, sent = ask(view, ask="slice", selection=view.selection)
        plain = recording[direction].sel(layer=layer, step=step, branch="cond", image=0)
        plain = plain.mean("head") if head == "mean" else plain.sel(head=head)
        assert content["shape"] == (82, 7, 7)
        assert sent == quantize(plain.values).content


def test_small_maps_are_the_mean_of_a_words_tokens(view, recording):
    tokens = next(word["tokens"] for word in view.words if word["label"] == "zebra")
    assert len(tokens) > 1
    _, sent = ask(view, ask="along", axis="layer", selection=view.selection, tokens=tokens)
    plain = recording["i2t"].sel(step=1, branch="cond", image=0).mean("head").isel(token=list(tokens)).mean("token")
    codes = np.frombuffer(sent[2 * 4 * 5 :], np.uint8).astype(int)
    assert np.abs(codes - quantize(plain.values).codes.ravel().astype(int)).max() <= 1


def test_data_are_what_is_shown(view, recording):
    plain = recording["i2t"].sel(step=1, branch="cond", image=0).mean("head")
    view.token = "car"
    np.testing.assert_allclose(view.data.values, plain.sel(layer=1, token="car").values, rtol=1e-5)
    assert view.data.attrs == {"recording": "", "image": 0, "token": "car"} | {
        axis: getattr(view, axis) for axis in ("direction", "branch", "layer", "step", "head")
    }
    view.mode, view.beside = "masks", {"layer": 4}
    assert dict(view.data.sizes) == {"layer": 2, "class": 3, "y": 7, "x": 7}
    np.testing.assert_allclose(view.data.sel({"layer": 4, "class": "red"}), plain.sel(layer=4, token="red"), rtol=1e-5)


def test_data_of_other_settings_leave_the_view(view):
    before = {name: getattr(view, name) for name in view.SETTINGS}
    view.layer, view.mode, view.beside = 3, "masks", {"step": 0}
    wanted = view.data
    view.layer, view.mode, view.beside = before["layer"], "map", {}
    xr.testing.assert_identical(view.data_at(layer=3, mode="masks", beside={"step": 0}), wanted)
    assert {name: getattr(view, name) for name in view.SETTINGS} == before


def test_the_file_holds_the_data(view, tmp_path):
    _, content = ask(view, ask="file")
    (tmp_path / "view.nc").write_bytes(content)
    xr.testing.assert_identical(xr.load_dataarray(tmp_path / "view.nc"), view.data)


def test_settings_are_traits(recording):
    seen = []
    first = explore(recording, IMAGE, layer=3, token="zebra", opacity=0.5, beside={"step": 0}, multiples="")
    second = explore(recording)
    box = ipywidgets.HBox([first, second])
    first.observe(lambda change: seen.append((change.name, change.new)), ["layer", "token", "head", "step"])
    first.layer, first.token, first.head, first.step = 4, "car", 2, 0
    assert seen == [("layer", 4), ("token", "car"), ("head", 2), ("step", 0)]
    assert (second.layer, second.token, second.pictures) == (1, "red", [])
    box.close()
    first.close()
    assert first.comm is None


def test_what_was_not_recorded_is_refused(view):
    for name, value, said in [
        ("layer", 5, "a recorded layer .0, 1, 2, 3, 4., got 5"),
        ("head", "median", "a recorded head .mean, 0, 1, 2."),
        ("token", "lion", "got 'lion'"),
        ("classes", ["car", "lion"], "got 'lion'"),
        ("beside", {"step": 7}, "a recorded step"),
        ("beside", {"step": 0, "layer": 1}, "at most one of"),
        ("multiples", "word", "multiples"),
    ]:
        before = getattr(view, name)
        with pytest.raises(InputError, match=said):
            setattr(view, name, value)
        assert getattr(view, name) == before
    with pytest.raises(traitlets.TraitError):
        view.colors = "jet"


def test_a_stale_question_gets_a_sentence(view):
    content, _ = ask(view, ask="slice", selection=view.selection | {"layer": 11})
    assert content["error"].startswith("expected a recorded layer")


def test_everything_recorded_can_be_shown(recording, tiny_backbone, tmp_path):
    saved = recording.save(tmp_path / "cat.nc")
    assert explore(saved).call == f'explore("{saved}"'
    assert explore(recording["t2i"], IMAGE).call == "explore(maps, image"
    assert explore(open_recording(saved)).axes == explore(recording).axes
    both = explore({"before": recording, "after": saved}, IMAGE, beside={"recording": "after"})
    assert both.axes["recording"] == ["before", "after"]
    assert (both.data.sel(recording="before") == both.data.sel(recording="after")).all()
    spans = tiny_backbone.encode_prompt(SENTENCE)
    with AttentionRecorder(tiny_backbone, prompt=spans, tokens={"red car": spans.span("red car")}) as recorder:
        tiny_backbone.generate(spans, steps=2, progress=False)
    assert explore(recorder).token == "red car"


def test_what_cannot_be_shown_says_so(recording, tiny_backbone, tmp_path):
    saved = recording.save(tmp_path / "cat.nc")
    with pytest.raises(RecordingError, match="no file"):
        explore(tmp_path / "dog.nc")
    (tmp_path / "cut.nc").write_bytes(saved.read_bytes()[:5000])
    with pytest.raises(RecordingError, match="not a readable netCDF file"):
        explore(tmp_path / "cut.nc")
    dataset = xr.load_dataset(saved)
    dataset.attrs["format_version"] = 9
    dataset.to_netcdf(tmp_path / "new.nc", engine="h5netcdf")
    with pytest.raises(RecordingError, match="version 9"):
        explore(tmp_path / "new.nc")
    for source, settings, said in [
        (recording["masses"], {}, "axes y and x"),
        (recording["i2t"].isel(layer=slice(0)), {}, "none of them empty"),
        (type(recording)({"masses": recording["masses"]}), {}, "without any"),
        (recording, {"prompt": "a cat"}, "expected a backbone as source"),
        (recording, {"layers": 3}, "settings from .*got layers"),
        (recording, {"image": [IMAGE, IMAGE]}, "one picture or one for each of 1 images"),
        ({"a": recording, "b": recording["i2t"].isel(token=slice(3))}, {}, "other tokens in 'b'"),
        (tiny_backbone, {"image": IMAGE}, "expected prompt as text"),
        ({"a": 3.5}, {}, "expected source, a backbone, a recorder.*got 3.5"),
    ]:
        with pytest.raises(InputError, match=said):
            explore(source, **settings)


def test_the_notebook_keeps_what_a_page_needs(view, recording, tmp_path):
    view.token, view.beside = "car", {"layer": 4}
    data, _ = view._repr_mimebundle_()
    stored = json.loads(json.dumps(data[page.STORED], sort_keys=True))
    assert "application/vnd.jupyter.widget-view+json" in data
    with PIL.Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) as picture:
        assert picture.width == 320
    assert (stored["token"], stored["beside"], stored["layer"]) == ("car", {"layer": 4}, 1)
    key = ",".join(str(stored["axes"][axis].index(view.selection[axis])) for axis in AXES)
    assert len(base64.b64decode(stored["slices"][key])) == np.prod(stored["shape"]) + 8 * stored["shape"][0]
    html = view.save_html(tmp_path / "view.html").read_text()
    (content,) = re.findall(r'<script type="application/json">(.*?)</script>', html)
    assert json.loads(content)["slices"] == stored["slices"]
    assert not re.search(r"https?://", html)
    assert page.STORED not in explore(recording, store=0)._repr_mimebundle_()[0]


def test_the_script_serves_a_widget_and_a_page():
    module, script = page.module(), page.script()
    assert {path.stem for path in page.STATIC.glob("*.js")} == {*page.PARTS, "page"}
    assert re.findall(r"(?m)^[ \t]*(?:export|import)\b.*", module) == ["export default { render };"]
    assert not re.search(r"(?m)^[ \t]*(?:export|import)\b", script)


def test_a_setting_that_is_refused_leaves_the_one_before(view):
    for wrong in (
        {"layer": 77},
        {"token": "lion"},
        {"beside": {"layer": 77}},
        {"cell": [3, 20]},
        {"multiples": "words"},
    ):
        before = {name: getattr(view, name) for name in wrong}
        with pytest.raises(InputError), view.hold_trait_notifications():
            for name, value in wrong.items():
                setattr(view, name, value)
        assert {name: getattr(view, name) for name in wrong} == before
    view.set_state({"cell": [6, 6]})
    assert view.cell == [6, 6]
    assert view.data.shape == (7, 7)


def test_a_page_finds_maps_by_place(recording):
    maps = recording["i2t"].squeeze(["image", "branch"], drop=True).assign_coords(step=[1000.0, 750.5])
    named = {"für später": maps, "before": maps * 2}
    stored = explore(named, layer=2, recording="before").stored()
    places = [stored["axes"][axis].index(stored[axis]) for axis in AXES]
    assert ",".join(map(str, places)) in stored["slices"]
    assert places[0] == 1


def test_a_page_keeps_both_panels(recording):
    view = explore(recording, layer=3, beside={"layer": 1}, store=6_000, direction="i2t")
    stored = view.stored()
    assert {1, 3} <= set(stored["axes"]["layer"])
    assert len(stored["axes"]["layer"]) < 5


def test_a_page_that_leaves_out_leaves_out_the_same_everywhere(recording):
    one = recording["i2t"].isel(image=0, branch=0, drop=True)
    batch = xr.concat([one * scale for scale in (1, 2, 3, 4)], "image").assign_coords(image=range(4))
    batch = batch.pad(y=(0, 1), x=(0, 1), mode="edge")
    pictures = [np.full((56, 56, 3), 60 * i, np.uint8) for i in range(4)]
    pads = [label for label in one.token.values.tolist() if label.startswith("<pad>")]
    view = explore(batch, pictures, show={"image": 2}, token=pads[3], classes=[pads[1], "red"], cell=[7, 5], store=500)
    stored = view.stored()
    assert stored["axes"]["image"] == [2]
    assert stored["pictures"] == [view.pictures[2]]
    assert (stored["token"], stored["classes"]) == ("<pads>", ["<pads>", "red"])
    rows, columns = stored["shape"][1:]
    assert rows < 8
    assert stored["cell"] == [7 * rows // 8, 5 * columns // 8]


def test_mean_is_that_of_the_heads_that_all_have(recording):
    maps = recording["i2t"].isel(image=0, branch=0, drop=True)
    view = explore({"all": maps, "two": maps.sel(head=[0, 1])}, beside={"recording": "two"})
    assert view.axes["head"] == ["mean", 0, 1]
    np.testing.assert_allclose(*view.data.values)
    view = explore(maps, head="mean", beside={"head": 2})
    assert view.data["head"].values.tolist() == ["mean", 2]
    assert ask(view, ask="file")[1][:4] == b"\x89HDF"


@pytest.fixture
def live(tiny_backbone):
    view = explore(tiny_backbone, IMAGE, prompt="a cat and a dog", steps=3)
    yield view
    view.close()
    view.wait()


def test_live_records_what_a_recorder_does(live, tiny_backbone):
    prompt = tiny_backbone.encode_prompt("a cat and a dog")
    with AttentionRecorder(tiny_backbone, prompt=prompt) as recorder:
        for step in (3, 2, 1):
            noisy = tiny_backbone.add_noise(tiny_backbone.encode_image(IMAGE), step, 3)
            tiny_backbone.predict_velocity(*noisy, prompt)
    live.token, live.step, live.layer = "dog", 2, 3
    plain = recorder.maps.sel(token="dog", step=2, layer=3).squeeze()
    np.testing.assert_allclose(live.data.values, plain.values, rtol=1e-5)
    assert (live.axes["step"], len(live.tokens)) == ([0, 1, 2], 77)


def test_live_records_again_only_for_another_question(live):
    first, seen = live.data, []
    live.observe(lambda change: seen.append(change.new), "progress")
    live.layer, live.token, live.opacity = 2, "cat", 0.1
    assert live._thread is None
    live.seed = 1
    live.wait()
    assert seen == [0.0, *[pytest.approx(done / 3) for done in (1, 2)], 1.0]
    assert (live.revision, live.layer, live.token) == (1, 2, "cat")
    assert not np.allclose(live.data, first)
    live.prompt = "a red car"
    live.wait()
    assert (live.token, live.classes, live.call) == (
        "red",
        ["red", "car"],
        'explore(backbone, image, prompt="a red car", seed=1, steps=3',
    )


def test_live_can_be_stopped(live):
    before, started, go = live.data, threading.Event(), threading.Event()

    def hold(change):
        if 0 < change.new < 1:
            started.set()
            go.wait(10)

    live.observe(hold, "progress")
    live.seed = 5
    assert started.wait(10)
    live._handle_custom_msg({"ask": "cancel"}, [])
    go.set()
    live.wait()
    assert live.message == "Stopped: the maps are those from before."
    assert (live.progress, live.revision) == (1, 0)
    assert (live.data == before).all()


def test_live_keeps_chosen_classes(live):
    live.classes = ["dog"]
    live.seed = 2
    live.wait()
    assert live.classes == ["dog"]
    live.prompt = "a red dog and a cat"
    live.wait()
    # what is new competes, what was taken out does not
    assert live.classes == ["red", "dog"]


def test_live_tries_again_and_says_every_error(live, monkeypatch):
    def broken(*_):
        raise AttributeError("no such thing")

    monkeypatch.setattr("seg4diff_tools.explorer.live.record_live", broken)
    live.seed = 4
    live.wait()
    assert (live.message, live.revision) == ("no such thing", 0)
    monkeypatch.undo()
    live._handle_custom_msg({"ask": "record"}, [])
    live.wait()
    assert (live.message, live.revision) == ("", 1)
    live.close()
    live.seed = 6
    live.wait()
    assert live.revision == 1


def test_live_and_the_notebook_take_turns(live, tiny_backbone):
    prompt, latents = tiny_backbone.encode_prompt("a zebra"), tiny_backbone.encode_image(IMAGE)

    def recorded():
        with AttentionRecorder(tiny_backbone, prompt=prompt) as recorder:
            for step in (3, 2, 1):
                tiny_backbone.predict_velocity(*tiny_backbone.add_noise(latents, step, 3), prompt)
        return recorder.maps

    expected = recorded()
    for seed in range(10, 16):
        live.seed = seed
        xr.testing.assert_identical(recorded(), expected)
        live.wait()
        assert (live.message, live.revision) == ("", seed - 9)


def test_live_refuses_before_it_records(tiny_backbone, monkeypatch):
    monkeypatch.setattr("seg4diff_tools.explorer.live.record_live", None)
    for arguments, message in (
        ({"image": "a cat", "layers": 3}, "settings from .*got layers"),
        ({"image": "photo.jgp", "prompt": "a cat"}, "no image file 'photo.jgp'"),
        ({"image": "a cat", "record": {"stop_after": 2}}, "keys of record, one of .*got 'stop_after'"),
    ):
        with pytest.raises(InputError, match=message):
            explore(tiny_backbone, **arguments)


def test_live_says_what_is_wrong_with_a_prompt(live):
    live.prompt = "cat " * 90
    live.wait()
    assert "these words do not fit" in live.message
    live.prompt = "a dog"
    live.wait()
    assert (live.message, live.token) == ("", "dog")


def test_live_draws_where_there_is_no_picture(tiny_backbone):
    view = explore(
        tiny_backbone, "a cat", steps=2, seed=3, record={"heads": "all", "direction": ["i2t", "t2i"]}, layer=0
    )
    assert (view.axes["branch"], view.branch) == (["uncond", "cond"], "cond")
    assert (view.axes["direction"], view.axes["head"]) == (["i2t", "t2i"], ["mean", 0, 1, 2])
    told = """, steps=2, record={'heads': 'all', 'direction': ['i2t', 't2i']}"""
    assert view.call == 'explore(backbone, prompt="a cat", seed=3' + told
    assert len(view.pictures) == 1
    with pytest.raises(InputError, match="no image file"):
        explore(tiny_backbone, "missing.jpg", prompt="a cat")


def distance(one, other):
    return np.abs(np.asarray(one, int) - np.asarray(other, int)).max()


@pytest.mark.parametrize("family", ["sd3", "flux-dev"])
def test_every_step_has_the_picture_that_it_predicts(family):
    backbone, seen = as_backbone(tiny_models.build(family)), []
    weight = backbone.guidance_scale + backbone.family.guidance_offset

    def see(module, args, arguments, output):
        seen.append((arguments["hidden_states"].float(), output[0].float()))

    hook = backbone.transformer.register_forward_hook(see, with_kwargs=True)
    _, drawn, found = record_live(backbone, 3, {"steps": [0, 2]}, True, None, "a cat", 0, lambda *_: None)
    hook.remove()
    sigmas = backbone.schedule(3)[1]
    for picture, step in zip(found, (0, 2), strict=True):
        noisy, velocity = seen[step]
        if len(noisy) == 2:
            velocity = velocity[:1] + weight * (velocity[1:] - velocity[:1])
        clean = backbone.family.unpack(noisy[:1] - sigmas[step] * velocity, backbone.token_grid())
        assert distance(picture, *backbone.decode(clean)) <= 1
    assert distance(found[1], drawn) <= 1
    assert distance(found[0], drawn) > 9


def test_a_given_picture_is_predicted_too(tiny_backbone):
    (found,) = record_live(tiny_backbone, 2, {"steps": [1]}, True, IMAGE, "a cat", 0, lambda *_: None)[2]
    prompt, latents = tiny_backbone.encode_prompt("a cat"), tiny_backbone.encode_image(IMAGE)
    noisy, time = tiny_backbone.add_noise(latents, 1, 2)
    clean = noisy - tiny_backbone.schedule(2)[1][1] * tiny_backbone.predict_velocity(noisy, time, prompt)
    assert distance(found, *tiny_backbone.decode(clean)) <= 1


def test_pictures_of_steps_are_kept_where_they_are_asked_for(tiny_backbone):
    drawn = explore(tiny_backbone, "a cat", steps=3, record={"steps": [0, 2]}, step=0)
    first, last = drawn.step_pictures
    assert (drawn.stored(1)["step_pictures"], first != last) == ([first], True)
    drawn.seed = 1
    drawn.wait()
    assert first not in drawn.step_pictures
    assert explore(tiny_backbone, "a cat", steps=1, step_pictures=False).step_pictures == []
    assert explore(tiny_backbone, IMAGE, prompt="a cat", steps=1).step_pictures == []
    asked = explore(tiny_backbone, IMAGE, prompt="a cat", steps=1, step_pictures=True)
    assert len(asked.step_pictures) == 1
    assert asked.call.endswith("steps=1, step_pictures=True")


@pytest.mark.parametrize("kind", ["heun", "stochastic"])
def test_steps_that_are_not_straight_tell_no_pictures(kind):
    backbone = as_backbone(tiny_models.build("sd3"))
    euler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    backbone.pipe.scheduler = scheduler = FlowMatchHeunDiscreteScheduler() if kind == "heun" else euler
    view = explore(backbone, "a cat", steps=2)
    assert (view.step_pictures, view.call) == ([], 'explore(backbone, prompt="a cat", seed=0, steps=2')
    with pytest.raises(InputError, match=f"FlowMatchEuler.*got {type(scheduler).__name__}: pass step_pictures=False"):
        explore(backbone, "a cat", steps=2, step_pictures=True)
    # of a picture that is given, the noise is known
    assert len(explore(backbone, IMAGE, prompt="a cat", steps=2, step_pictures=True).step_pictures) == 2


def test_words_outside_the_prompt_are_explored_alone(tiny_backbone, monkeypatch):
    outside = {"direction": ["i2c", "c2i"], "concepts": ["a sky", "tree"]}
    view = explore(
        tiny_backbone, IMAGE, prompt="a cat", steps=1, record=outside, layer=2, token="tree", direction="c2i"
    )
    with AttentionRecorder(tiny_backbone, prompt="a cat", **outside) as recorder:
        noisy = tiny_backbone.add_noise(tiny_backbone.encode_image(IMAGE), 1, 1)
        tiny_backbone.predict_velocity(*noisy, "a cat")
    wanted = recorder.recording["c2i"].sel(layer=2, concept="tree").squeeze()
    np.testing.assert_allclose(view.data.values, wanted, rtol=1e-5)
    assert [token["label"] for token in view.tokens] == ["a sky", "tree"]
    assert explore(recorder, IMAGE, direction="i2c").axes["direction"] == ["i2c", "c2i"]
    both = outside | {"direction": ["i2t", "c2i"]}
    with AttentionRecorder(tiny_backbone, prompt="a cat", **both) as recorder:
        tiny_backbone.predict_velocity(*noisy, "a cat")
    with pytest.raises(InputError, match=r"got both: i2t, c2i: pass one direction, such as recording\['c2i'\]"):
        explore(recorder)
    assert explore(recorder.recording["c2i"], token="tree").token == "tree"
    # a live one says so before it generates
    monkeypatch.setattr("seg4diff_tools.explorer.live.record_live", None)
    with pytest.raises(InputError, match="got both: i2t, c2i"):
        explore(tiny_backbone, "a cat", record=both)


def test_names_of_several_words_are_one(tiny_backbone, recording):
    drawn = scenes.compose([("cat", (0.5, 0.5), 0.5)], "night sky", size=56)
    view = explore(tiny_backbone, drawn, steps=1)
    assert (view.prompt, view.classes) == ("a cat under a night sky", ["cat", "night sky"])
    assert "phrases" not in view.call
    view.prompt = "a fire engine"
    view.wait()
    assert view.classes == ["fire engine"]
    view = explore(recording, phrases=["red car"])
    assert view.classes == ["red car", "zebra"]
    assert view.call == "explore(recording, phrases=['red car']"
    named = LabeledImage(IMAGE, ("hot dog",), np.zeros((56, 56), int), caption="a hot dog")
    view = explore(tiny_backbone, named, steps=1)
    assert view.classes == ["hot dog"]
    assert view.call.endswith("'hot dog']")
    assert explore(tiny_backbone, named, steps=1, phrases=[]).classes == ["hot", "dog"]
    assert len(explore(recording, named).pictures) == 1


def test_a_segmentation_is_shown_as_masks_over_its_image(tmp_path):
    from seg4diff_tools.segmentation.results import Segmentation

    maps = np.random.default_rng(0).random((2, 3, 5), dtype=np.float32)
    coords = {"class": ["cat", "night sky"], "y": np.arange(3) + 0.5, "x": np.arange(5) + 0.5}
    array = xr.DataArray(maps, coords, ("class", "y", "x"), name="i2t")
    image = np.zeros((3, 5, 3), np.uint8)
    view = explore(Segmentation(array, maps.argmax(0), ("cat", "night sky"), {}, image))
    assert (view.mode, view.classes, len(view.pictures)) == ("masks", ["cat", "night sky"], 1)
    np.testing.assert_array_equal(view.data.values, maps)
    assert "night sky" in view.save_html(tmp_path / "view.html").read_text(encoding="utf-8")


def test_masks_without_a_class_can_be_shown(view):
    view.mode, view.classes = "masks", []
    assert view.data.sizes["class"] == 0
    assert "image/png" in str(view._repr_mimebundle_())


def test_a_preview_of_a_single_row_of_places():
    assert preview(None, np.eye(1, 700), 0.5).startswith(b"\x89PNG")


def test_a_preview_shows_the_map_over_its_picture():
    maps = np.zeros((4, 4), np.float32)
    maps[0, 0] = 1
    with PIL.Image.open(io.BytesIO(preview(PIL.Image.new("RGB", (64, 32), "white"), maps, 1.0))) as picture:
        drawn = np.asarray(picture.convert("RGB"), int)
    assert drawn.shape == (160 + 26, 320, 3)
    assert np.abs(drawn[0, 0] - [253, 231, 37]).max() < 12
    assert np.abs(drawn[150, 300] - [68, 1, 84]).max() < 12
    masks = np.stack([maps, np.full_like(maps, 0.5)])
    with PIL.Image.open(io.BytesIO(preview(None, masks, 0.3))) as picture:
        drawn = np.asarray(picture.convert("RGB"), int)
    assert np.abs(drawn[4, 4] - [0, 114, 178]).max() < 12
    assert np.abs(drawn[300, 300] - [230, 159, 0]).max() < 12
