import base64
import json

import numpy as np
import pytest
import xarray as xr

from seg4diff_tools.errors import InputError
from seg4diff_tools.explorer.maps import MapSource, quantize
from seg4diff_tools.explorer.words import Word, content_words, listed

TOKENS = ["<start>", "a", "ze", "bra", "bra#2", ",", "<end>", "<pad>", "<pad>#2", "<zero>"]
KINDS = ["start", "word", "word", "word", "word", "word", "end", "pad", "pad", "zero"]
STARTS = [0, 0, 2, 4, 8, 11, 0, 0, 0, 0]  # "a zebra bra,"
STOPS = [0, 1, 4, 7, 11, 12, 0, 0, 0, 0]


@pytest.fixture
def maps():
    values = np.random.default_rng(0).random((2, 3, 5, 4, 10, 8, 6), dtype=np.float32)
    coords = {
        "branch": ["uncond", "cond"],
        "step": [4, 8, 20],
        "layer": [0, 1, 2, 3, 9],
        "head": [0, 1, 2, 7],
        "token": TOKENS,
        "token_kind": ("token", KINDS),
        "token_start": ("token", STARTS),
        "token_stop": ("token", STOPS),
    }
    return xr.DataArray(values, coords, ("branch", "step", "layer", "head", "token", "y", "x"))


@pytest.fixture
def atlas(maps):
    return MapSource({"": {"i2t": maps}})


def values_of(content, shape):
    """The maps that a viewer gets back, by the formula in the docstring of Quantized."""
    count = shape[0]
    low, high = np.frombuffer(content[: 8 * count], "<f4").reshape(2, count, 1, 1)
    codes = np.frombuffer(content[8 * count :], np.uint8).reshape(shape)
    return np.where(codes == 255, np.nan, low + codes / np.float32(254) * (high - low))


def test_quantized_by_hand():
    nan, inf = np.nan, np.inf
    maps = [[[0.0, 0.5], [1.0, 0.25]], [[3, 3], [3, 3]], [[-1, 1], [-inf, nan]], [[nan, nan], [nan, nan]]]
    found = quantize(np.array(maps, np.float16))
    assert found.codes[:2].tolist() == [[[0, 127], [254, 64]], [[0, 0], [0, 0]]]
    # a cell without a value leaves the others their map
    assert found.codes[2:].tolist() == [[[0, 254], [255, 255]], [[255, 255], [255, 255]]]
    assert (found.low[:3].tolist(), found.high[:3].tolist()) == ([0, 3, -1], [1, 3, 1])
    assert np.isnan([found.low[3], found.high[3]]).all()
    assert found.content[:16] == np.array([0, 3, -1, nan], "<f4").tobytes()
    assert len(found.content) == 2 * 4 * 4 + 4 * 4


def test_no_value_moves_by_more_than_half_a_code(atlas):
    maps = atlas.maps(atlas.default())
    error = np.abs(values_of(quantize(maps).content, maps.shape) - maps)
    assert (error <= 0.501 / 254 * (maps.max((1, 2)) - maps.min((1, 2)))[:, None, None]).all()


def test_pieces_make_words_and_padding_is_one(atlas):
    assert [(word.label, word.tokens, word.kind) for word in atlas.words] == [
        ("<start>", (0,), "start"),
        ("a", (1,), "word"),
        ("zebra", (2, 3), "word"),
        ("bra#2", (4,), "word"),
        (",", (5,), "word"),
        ("<end>", (6,), "end"),
        ("<pads>", (7, 8), "pad"),
        ("<zeros>", (9,), "zero"),
    ]
    assert content_words(atlas.words) == ["zebra", "bra#2"]
    assert content_words([Word("the", (0,)), Word("<end>", (1,), "end")]) == ["the"]
    assert atlas.find("bra").tokens == (3,)
    with pytest.raises(InputError, match="zebra.*got 'lion'"):
        atlas.find("lion")


def test_a_label_is_never_given_twice(maps):
    labels = ["ab", "a", "b", "c"]
    coords = {"token": labels, "token_start": ("token", [0, 3, 4, 6]), "token_stop": ("token", [2, 4, 5, 7])}
    words = MapSource({"": {"i2t": xr.DataArray(np.zeros((4, 2, 2)), coords, ("token", "y", "x"))}}).words
    assert [(word.label, word.tokens) for word in words] == [("ab", (0,)), ("ab#2", (1, 2)), ("c", (3,))]


def test_maps_of_a_setting(atlas, maps):
    assert atlas.axes == {
        "recording": [""],
        "direction": ["i2t"],
        "image": [None],
        "frame": [None],
        "branch": ["uncond", "cond"],
        "layer": [0, 1, 2, 3, 9],
        "step": [4, 8, 20],
        "head": ["mean", 0, 1, 2, 7],
    }
    setting = atlas.default()
    assert (setting["branch"], setting["layer"], setting["step"], setting["head"]) == ("cond", 1, 20, "mean")
    np.testing.assert_allclose(atlas.maps(setting), maps.values[1, 2, 1].mean(0), rtol=1e-6)
    setting |= {"layer": 9, "step": 8, "head": 7, "branch": "uncond"}
    assert (atlas.maps(setting) == maps.values[0, 1, 4, 3]).all()
    assert (atlas.maps(setting, [5, 2]) == maps.values[0, 1, 4, 3, [5, 2]]).all()
    np.testing.assert_allclose(atlas.word_map(setting, "zebra"), maps.values[0, 1, 4, 3, 2:4].mean(0), rtol=1e-6)
    found = atlas.along("layer", setting, (2, 3))
    np.testing.assert_allclose(found, maps.values[0, 1, :, 3, 2:4].mean(1), rtol=1e-6)


def test_an_unknown_value_is_refused(atlas):
    with pytest.raises(InputError, match=r"expected a recorded layer \(0, 1, 2, 3, 9\), got 4"):
        atlas.maps(atlas.default() | {"layer": 4})


def test_recordings_share_what_both_have(maps):
    both = MapSource({"before": {"i2t": maps, "t2i": maps}, "after": {"t2i": 2 * maps.isel(layer=slice(1, None))}})
    assert both.axes["recording"] == ["before", "after"]
    assert (both.axes["direction"], both.axes["layer"]) == (["t2i"], [1, 2, 3, 9])
    setting = both.default() | {"layer": 9}
    np.testing.assert_array_equal(both.maps(setting | {"recording": "after"}), 2 * both.maps(setting))


def test_what_does_not_belong_together_is_refused(maps):
    with pytest.raises(InputError, match="the same prompt, got other tokens in 'after'"):
        MapSource({"before": {"i2t": maps}, "after": {"i2t": maps.isel(token=slice(1, None))}})
    with pytest.raises(InputError, match="the same image size"):
        MapSource({"before": {"i2t": maps}, "after": {"i2t": maps.isel(y=slice(2))}})
    with pytest.raises(InputError, match="a common step"):
        MapSource({"before": {"i2t": maps.sel(step=[4])}, "after": {"i2t": maps.sel(step=[8])}})


def test_other_arrays_are_refused(maps):
    with pytest.raises(InputError, match="axes y and x"):
        MapSource({"": {"i2t": maps.isel(x=0)}})
    with pytest.raises(InputError, match="none of them empty"):
        MapSource({"": {"i2t": maps.isel(token=slice(0))}})
    with pytest.raises(InputError, match="got an axis 'seed': select one entry"):
        MapSource({"": {"i2t": maps.expand_dims("seed")}})
    with pytest.raises(InputError, match="distinct labels"):
        MapSource({"": {"i2t": maps.assign_coords(token=["cat"] * 10)}})
    with pytest.raises(InputError, match="got a recording without any"):
        MapSource({"": {}})


def test_class_maps_and_single_maps():
    one = MapSource({"": {"maps": xr.DataArray(np.eye(3), dims=("y", "x"))}})
    assert (one.words[0].label, set(map(str, one.default().values()))) == ("map", {"", "maps", "None"})
    classes = MapSource(
        {"": {"maps": xr.DataArray(np.zeros((2, 3, 3)), {"class": ["cat", "fire engine"]}, ("class", "y", "x"))}}
    )
    assert [word.label for word in classes.words] == ["cat", "fire engine"]


def test_a_page_keeps_everything_that_fits(atlas):
    setting = atlas.default()
    stored = json.loads(json.dumps(atlas.stored(10**9, setting)))
    assert stored["axes"] == atlas.axes
    assert (
        stored["kept"]
        == "This page keeps one average map of all padding tokens; run in a notebook, the explorer has all."
    )
    assert stored["shape"] == [9, 8, 6]
    content = base64.b64decode(
        stored["slices"][",".join(str(atlas.axes[axis].index(value)) for axis, value in setting.items())]
    )
    found, words = values_of(content, stored["shape"]), {word["label"]: word["tokens"] for word in stored["words"]}
    for label in ("zebra", "<pads>", "<end>"):
        np.testing.assert_allclose(found[words[label]].mean(0), atlas.word_map(setting, label), atol=0.003)
    assert [token["label"] for token in stored["tokens"]][2:5] == ["ze", "bra", "bra#2"]


def test_a_page_gives_up_heads_then_steps_then_detail(atlas):
    setting = atlas.default() | {"head": 1, "layer": 3}

    def kept(limit):
        found = atlas.stored(limit, setting)
        size = sum(map(len, found["slices"].values()))
        return size <= limit * 1.05, found["axes"], found["shape"][1:], found["kept"]

    slice_size = 9 * (8 * 6 + 8) * 4 // 3
    fits, axes, grid, _ = kept(2 * 5 * 3 * 3 * slice_size)
    assert (fits, axes["head"], axes["layer"], grid) == (True, ["mean", 1, 7], [0, 1, 2, 3, 9], [8, 6])
    fits, axes, grid, said = kept(slice_size)
    assert fits
    assert all(len(values) == 1 for values in axes.values())
    assert (axes["head"], axes["layer"], axes["step"], axes["branch"]) == ([1], [3], [20], ["cond"])
    assert said == (
        "This page keeps 1 of 2 branches, 1 of 5 layers, 1 of 3 steps, 1 of 5 heads and one average map of all padding "
        "tokens; run in a notebook, the explorer has all."
    )
    fits, _, grid, said = kept(slice_size // 2)
    assert (fits, grid) == (True, [4, 3])
    assert "1 of 5 heads, 4 x 3 of 8 x 6 image tokens and one average" in said


def test_coarser_maps_are_means_of_cells(atlas):
    setting = atlas.default()
    stored = atlas.stored(500, setting)
    (content,) = (base64.b64decode(content) for content in stored["slices"].values())
    plain = atlas.maps(setting)[1].reshape(4, 2, 3, 2).mean((1, 3))
    np.testing.assert_allclose(values_of(content, stored["shape"])[1], plain, atol=0.003)


def test_no_word_holds_half_a_letter():
    # "a café": two tokens hold one byte each of the last letter
    tokens = {"token": ["a", "caf", "é", "é#2"], "token_kind": ("token", ["word"] * 4)}
    ranges = {"token_start": ("token", [0, 2, 5, 5]), "token_stop": ("token", [1, 5, 6, 6])}
    maps = xr.DataArray(np.zeros((4, 2, 3), np.float32), tokens | ranges, ("token", "y", "x"))
    words = MapSource({"": {"i2t": maps}}).words
    assert [(word.label, word.tokens) for word in words] == [("a", (0,)), ("café", (1, 2, 3))]


def test_phrases_are_words(maps):
    coords = {"token": ["a", "night", "sky", "and", "sky#2", "Night", "sky#3"]}
    values = np.arange(7, dtype=np.float32)[:, None, None] * np.ones((2, 2), np.float32)
    array = xr.DataArray(values, coords, ("token", "y", "x"))
    atlas = MapSource({"": {"i2t": array}}, ["night sky", "tree house", "sky"])
    assert [(word.label, word.tokens) for word in atlas.words] == [
        ("a", (0,)),
        ("night sky", (1, 2)),
        ("and", (3,)),
        ("sky#2", (4,)),
        ("night sky#2", (5, 6)),
    ]
    assert (atlas.word_map(atlas.default(), "night sky") == 1.5).all()
    assert atlas.find("night").tokens == (1,)


def test_what_names_something_gets_the_first_colors(atlas):
    told = {word["label"]: word for word in listed(atlas.words)}
    assert sorted(told, key=lambda label: told[label]["color"])[:4] == ["zebra", "bra#2", "<start>", "a"]
    assert (told["<pads>"]["count"], told["zebra"]["count"], told["a"]["count"]) == (2, 2, 1)


def test_the_schedule_is_known_or_told(maps, atlas):
    assert (atlas.schedule, MapSource({"": {"i2t": maps}}, schedule=28).schedule) == (0, 28)
    counted = maps.assign_coords(step=[0, 1, 2])
    for times, known in [
        (None, 3),
        ([1000.0, 857.1, 600.0], 3),  # 3 steps, shifted by 3
        ([1.0, 0.86, 0.6], 3),
        ([893.6, 750.0, 545.5], 0),  # begins later
        ([1000.0, 987.8, 975.0], 0),  # the first 3 of 28
        ([1000.0, 300.0, 600.0], 0),
    ]:
        told = counted if times is None else counted.assign_coords(timestep=("step", times))
        assert MapSource({"": {"i2t": told}}).schedule == known
