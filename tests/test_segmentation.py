import json
import pickle
from copy import deepcopy
from dataclasses import fields, replace
from io import BytesIO
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import xarray as xr
from torch.nn.functional import interpolate

from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.backbones import checks
from seg4diff_tools.backbones.loading import load_backbone
from seg4diff_tools.caching import remember
from seg4diff_tools.errors import InputError, PromptError
from seg4diff_tools.scenes import BACKGROUNDS, BASE_CONCEPTS
from seg4diff_tools.segmentation import Segmentation, group, masks, open_segmentation
from seg4diff_tools.segmentation.class_maps import read_class_maps
from seg4diff_tools.segmentation.options import OpenVocabulary, Unsupervised
from seg4diff_tools.segmentation.segment import segment

NAMES = ["cat", "red car", "grass"]


@pytest.fixture(scope="module")
def photograph():
    pixels = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def materialized(backbone, image, names, layer, steps_from_end=8, steps=28, seed=0, fit="resize"):
    """The whole joint map of every head of a layer, [head token token], after and before the softmax, in float64."""
    found: dict[str, torch.Tensor] = {}

    def keep(call):
        scores = call.query[0].double() @ call.key[0].double().mT * call.scale
        found.update(softmax=scores.softmax(-1), scores=scores)

    (prompt,) = backbone.class_prompts(names)
    noisy, timestep = backbone.add_noise(backbone.encode_image(image, fit=fit), steps_from_end, steps, seed)
    with intercept(backbone.transformer, keep, layers=[layer]):
        backbone.predict_velocity(noisy, timestep, prompt)
    return found, [prompt.classes[name] for name in names]


@pytest.mark.parametrize("head", ["mean", 2])
@pytest.mark.parametrize("direction", ["i2t", "t2i"])
@pytest.mark.parametrize(
    ("normalize", "minmax"), [("softmax", False), ("softmax", True), ("scores", False), ("scores", True)]
)
def test_equals_a_materialized_map(tiny_backbone, photograph, head, direction, normalize, minmax):
    result = segment(
        tiny_backbone, photograph, NAMES,
        OpenVocabulary(
            layers=3, steps_from_end=5, steps=11, seeds=7, heads=head, direction=direction, normalize=normalize,
            minmax=minmax,
        ),
    )  # fmt: skip
    found, spans = materialized(tiny_backbone, photograph, NAMES, 3, 5, 11, 7)
    joint = found[normalize].mean(0) if head == "mean" else found[normalize][head]
    text = joint[:49, 49:] if direction == "i2t" else joint[49:, :49].mT
    maps = torch.stack([text[:, list(span)].mean(-1).reshape(7, 7) for span in spans])
    if minmax:
        low, high = maps.amin((1, 2), True), maps.amax((1, 2), True)
        maps = (maps - low) / (high - low)
    np.testing.assert_allclose(result.class_maps.values, maps, atol=1e-5 if normalize == "scores" or minmax else 1e-7)
    pixels = interpolate(maps[None], size=(61, 83), mode="bilinear")[0]
    np.testing.assert_allclose(result.upsampled().values, pixels, atol=1e-5)
    # rounding may decide a tie otherwise, on a pixel or two
    assert (result.label_map == pixels.argmax(0).numpy()).mean() > 0.999


def test_result_is_labeled_and_tells_its_settings(tiny_backbone, photograph):
    result = segment(tiny_backbone, photograph, NAMES, OpenVocabulary(layers=1))
    assert isinstance(result.class_maps, xr.DataArray)
    assert result.class_maps.dims == ("class", "y", "x")
    assert result.class_maps.sel({"class": "red car"}).shape == (7, 7)
    assert result.upsampled().sel({"class": "grass"}).shape == (61, 83)
    assert result.class_names == tuple(NAMES)
    assert result.label_map.shape == (61, 83)
    assert result.label_map.dtype == np.int64
    expected = {"layers": [1], "steps_from_end": [8], "steps": 28, "seeds": [0], "prompts": ["cat red car grass"]}
    assert expected.items() <= result.settings.items()
    assert result.settings["model"] == tiny_backbone.name


def test_crop_covers_the_centred_square(tiny_backbone, photograph):
    result = segment(tiny_backbone, photograph, NAMES, OpenVocabulary(layers=1, fit="crop"))
    assert result.label_map.shape == (61, 61)
    assert result.settings["frame"] == [11, 0, 72, 61]
    square = segment(tiny_backbone, photograph.crop((11, 0, 72, 61)), NAMES, OpenVocabulary(layers=1))
    # not equal to the bit: resampling a part of the image sees the pixels beyond its edge
    np.testing.assert_allclose(result.class_maps, square.class_maps, atol=1e-5)


def test_same_arguments_give_the_same_result_and_the_seed_counts(tiny_backbone, photograph):
    first, again = (segment(tiny_backbone, photograph, NAMES, OpenVocabulary(layers=2)) for _ in range(2))
    other = segment(tiny_backbone, photograph, NAMES, OpenVocabulary(layers=2, seeds=1))
    xr.testing.assert_identical(first.class_maps, again.class_maps)
    assert not first.class_maps.equals(other.class_maps)


def test_expert_layer_by_name(build_backbone, photograph):
    backbone = replace(build_backbone(), expert_layer=3)
    by_name, by_number = (segment(backbone, photograph, NAMES, OpenVocabulary(layers=layer)) for layer in ("expert", 3))
    xr.testing.assert_identical(by_name.class_maps, by_number.class_maps)
    assert by_name.settings["layers"] == [3]


def test_blocks_after_the_layer_never_run(build_backbone, photograph):
    backbone = build_backbone()
    ran = []
    for layer, block in enumerate(backbone.transformer.transformer_blocks):
        block.attn.to_q.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    segment(backbone, photograph, NAMES, OpenVocabulary(layers=2))
    assert ran == [0, 1, 2]


def test_names_that_need_several_prompts(tiny_backbone, photograph):
    names = [f"{color} {thing} number {i}" for i, color in enumerate(("red", "blue", "green", "grey"))
             for thing in ("fire engine", "bus", "tree", "dog", "cat")]  # fmt: skip
    result = segment(tiny_backbone, photograph, names, OpenVocabulary(layers=2))
    assert len(result.settings["prompts"]) > 1
    assert list(result.class_maps["class"].values) == names
    # each prompt is a forward of its own, with its own softmax
    prompts = tiny_backbone.class_prompts(names)
    last = segment(tiny_backbone, photograph, list(prompts[-1].classes), OpenVocabulary(layers=2))
    np.testing.assert_allclose(result.class_maps[-len(last.class_names) :], last.class_maps, atol=1e-6)


def test_batches_give_what_single_images_give(tiny_backbone, photograph):
    pictures = [photograph, photograph.rotate(90), photograph.rotate(180)]
    names = [["cat"], ["dog", "fire engine", "grass"], ["cat", "tree"]]
    prompts = [tiny_backbone.class_prompts(each) for each in names]
    options: dict[str, Any] = {
        "layers": [4, 1],
        "steps_from_end": [2, 8, 3],
        "heads": [1, "mean"],
        "kinds": [("t2i", "scores"), ("i2t", "softmax")],
    }
    latents = tiny_backbone.encode_image(pictures)
    together = read_class_maps(tiny_backbone, latents, prompts, batch=7, **options)
    assert [tuple(maps.shape) for maps in together] == [(2, 3, 2, 2, count, 7, 7) for count in (1, 3, 2)]
    alone = read_class_maps(tiny_backbone, latents, prompts, batch=1, **options)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    single = segment(tiny_backbone, pictures[1], names[1], OpenVocabulary(layers=1, heads=1))
    np.testing.assert_allclose(together[1][1, 1, 1, 0], single.class_maps, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"class_names": []}, InputError, "at least one name"),
        ({"class_names": ["cat", "grass", "cat"]}, InputError, "given twice"),
        ({"class_names": ["cat " * 90]}, PromptError, "do not fit"),
        ({"layers": 5}, InputError, r"layers? from 0 to 4.*got 5"),
        ({"layers": -1}, InputError, "layers 0 or more, got -1"),
        ({"layers": "expert"}, InputError, "expert layer is known"),
        ({"steps_from_end": 29}, InputError, "from 1 to 28, got 29"),
        ({"steps_from_end": 0}, InputError, "from 1 to 28"),
        ({"heads": 3}, InputError, "heads? from 0 to 2"),
        ({"images": "nowhere.png"}, InputError, "no image file"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused(tiny_backbone, photograph, arguments, error, message):
    given = {"images": photograph, "class_names": NAMES} | {
        k: arguments[k] for k in arguments if k in ("images", "class_names")
    }
    with pytest.raises(error, match=message):
        segment(
            tiny_backbone,
            **given,
            options=OpenVocabulary(**({"layers": 1} | {k: arguments[k] for k in arguments if k not in given})),
        )


@pytest.mark.usefixtures("unchecked")
def test_unknown_options_are_refused(tiny_backbone):
    latents, prompts = torch.zeros(1, 16, 14, 14), tiny_backbone.class_prompts(["cat"])
    for kind in (("i2i", "softmax"), ("i2t", "sigmoid")):
        with pytest.raises(InputError, match="(direction|normalize), one of"):
            read_class_maps(tiny_backbone, latents, [prompts], layers=[1], kinds=[kind])
    with pytest.raises(InputError, match="each one once"):
        checks.check_heads(tiny_backbone, ["mean", 1, 1])
    with pytest.raises(InputError, match="each one once"):
        checks.check_layers(tiny_backbone, [])


def test_result_is_saved_copied_and_shown(tiny_backbone, photograph, tmp_path):
    result = segment(tiny_backbone, photograph, NAMES, OpenVocabulary(layers=np.array([1, 3]), method="layer"))
    other = segment(tiny_backbone, photograph, NAMES, OpenVocabulary(layers=[1, 3], seeds=1))
    path = result.save(tmp_path / "new" / "photo.nc")
    assert [entry.name for entry in path.parent.iterdir()] == ["photo.nc"]
    for copy in (
        open_segmentation(str(path)),
        Segmentation.open(path),
        pickle.loads(pickle.dumps(result)),
        deepcopy(result),
    ):
        assert copy == result
        assert copy != other
        assert type(copy.settings) is dict
    assert json.loads(json.dumps(result.settings)) == result.settings
    assert OpenVocabulary(**{f.name: result.settings[f.name] for f in fields(OpenVocabulary)}) == OpenVocabulary(
        layers=[1, 3]
    )
    assert np.array_equal(result.image, np.array(photograph))
    assert len(repr(result)) < 120
    assert repr(result).startswith(f"Segmentation({tiny_backbone.name}, 61 x 83 px: ")
    assert sum(result.shares().values()) == pytest.approx(1)
    assert result._repr_html_().count("<img") == 2
    assert len(result.plot(truth=result.label_map, title="photo").axes) == 3
    decoded = PIL.Image.open(BytesIO(result.index_png()))
    assert decoded.mode == "P"
    assert np.array_equal(np.array(decoded), result.label_map)
    with pytest.raises(TypeError, match="unhashable"):
        hash(result)


def test_results_are_remembered(tiny_backbone, photograph, tmp_path, monkeypatch):
    monkeypatch.setenv("SEG4DIFF_CACHE", str(tmp_path))
    arguments = segment, tiny_backbone, photograph, NAMES, OpenVocabulary(layers=1, synonyms={"cat": ("cat", "dog")})
    first = remember(*arguments)
    assert len(list(tmp_path.iterdir())) == 1
    assert remember(*arguments) == first == segment(*arguments[1:])


def test_many_images_and_folders_are_segmented_one_by_one(tiny_backbone, photograph, tmp_path):
    options, turned = OpenVocabulary(layers=2), photograph.rotate(180)
    single = [segment(tiny_backbone, each, NAMES, options) for each in (photograph, turned)]
    pixels = np.stack([np.array(photograph), np.array(turned)])
    with pytest.raises(InputError, match=r"several images as a list, got one ndarray: pass list\(images\)"):
        segment(tiny_backbone, pixels, NAMES, options)
    photograph.save(tmp_path / "a.png")
    turned.save(tmp_path / "b.PNG")
    (tmp_path / "._a.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image", encoding="utf-8")
    for several in ([photograph, turned], list(pixels), tmp_path, str(tmp_path)):
        assert segment(tiny_backbone, several, NAMES, options, progress=False) == single
    assert segment(tiny_backbone, [photograph], NAMES, options, progress=False) == single[:1]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"expected images in .*empty, got no .bmp, .jpeg.*: check the folder"):
        segment(tiny_backbone, empty, NAMES, options)


def test_a_pipeline_and_a_folder_stand_for_a_backbone(tiny_backbone, tiny_folder, photograph):
    expected = segment(tiny_backbone, photograph, NAMES, OpenVocabulary(layers=1))
    for model in (tiny_backbone.pipe, str(tiny_folder)):
        found = segment(model, photograph, NAMES, OpenVocabulary(layers=1))
        xr.testing.assert_identical(found.class_maps, expected.class_maps)


def test_latents_save_the_encoder(tiny_backbone, photograph, monkeypatch):
    options = OpenVocabulary(layers=1, fit="crop")
    expected = segment(tiny_backbone, photograph, NAMES, options)
    latents = tiny_backbone.encode_image(photograph, fit="crop")
    monkeypatch.setattr(type(tiny_backbone), "encode_image", None)
    assert segment(tiny_backbone, photograph, NAMES, options, latents=latents) == expected


def test_another_size_has_another_grid(tiny_backbone, photograph):
    result = segment(tiny_backbone, photograph, NAMES, OpenVocabulary(layers=1, size=(40, 64), fit="crop"))
    assert result.class_maps.shape == (3, 5, 8)
    assert result.settings["frame"] == [0, 4, 83, 56]
    assert result.label_map.shape == (52, 83)
    square = segment(tiny_backbone, photograph, NAMES, OpenVocabulary(layers=1, size=56))
    xr.testing.assert_identical(
        square.class_maps, segment(tiny_backbone, photograph, NAMES, OpenVocabulary(layers=1)).class_maps
    )


def test_heads_are_averaged(tiny_backbone, photograph):
    one, two = (segment(tiny_backbone, photograph, NAMES, OpenVocabulary(layers=3, heads=head)) for head in (0, 2))
    both = segment(tiny_backbone, photograph, NAMES, OpenVocabulary(layers=3, heads=[0, 2]))
    np.testing.assert_allclose(both.class_maps, (one.class_maps + two.class_maps) / 2, atol=1e-7)


def test_token_maps_scaled_before_the_merge(tiny_backbone, photograph):
    result = segment(tiny_backbone, photograph, NAMES, OpenVocabulary(layers=3, merge_scaled=True))
    found, spans = materialized(tiny_backbone, photograph, NAMES, 3)
    text = found["softmax"].mean(0)[:49, 49:]
    text = (text - text.amin(0)) / (text.amax(0) - text.amin(0))
    expected = torch.stack([text[:, list(span)].mean(-1).reshape(7, 7) for span in spans])
    assert len(spans[1]) == 2
    np.testing.assert_allclose(result.class_maps.values, expected, atol=1e-5)


def test_other_default_dtypes_change_nothing(tiny_backbone, photograph):
    options = OpenVocabulary(layers=1, merge_scaled=True), Unsupervised(layers=1, threshold=0.01)
    expected = segment(tiny_backbone, photograph, NAMES, options[0]), group(tiny_backbone, photograph, options[1])
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            found = segment(tiny_backbone, photograph, NAMES, options[0]), group(tiny_backbone, photograph, options[1])
        finally:
            torch.set_default_dtype(torch.float32)
        assert found == expected


def test_classes_left_out_of_the_second_pass_have_no_map(tiny_backbone, photograph):
    plain = segment(tiny_backbone, photograph, NAMES, OpenVocabulary(layers=3))
    won = np.bincount(masks.label_map(torch.from_numpy(plain.class_maps.values)).ravel(), minlength=3) / 49
    result = segment(tiny_backbone, photograph, NAMES, OpenVocabulary(layers=3, second_pass=np.median(won) + 1e-6))
    kept = int(won.argmax())
    assert np.isnan(result.class_maps.values).all((1, 2)).tolist() == [index != kept for index in range(3)]
    assert result.settings["prompts"] == [NAMES[kept]]
    assert set(result.label_map.flat) == {kept}


def test_words_that_the_model_never_saw_are_told_once_per_call(tiny_backbone):
    mini, picture = load_backbone("mini"), PIL.Image.new("RGB", (96, 96))
    options = OpenVocabulary(synonyms={"car": ("car", "limousine")})
    for _ in range(2):
        with pytest.warns(UserWarning) as warned:
            segment(mini, [picture] * 2, ["cat", "ballon", "a red car", "car", "dogs"], options, progress=False)
        (warning,) = warned
        assert str(warning.message) == (
            "mini never saw 'ballon', 'limousine' in training: their masks mean nothing. It knows 40 names, listed in "
            "scenes.BASE_CONCEPTS and scenes.BACKGROUNDS."
        )
    assert len(BASE_CONCEPTS) + len(BACKGROUNDS) == 40
    # a warning would be an error
    segment(mini, picture, ["Cat", "balloons", "night sky", "background"], options)
    segment(tiny_backbone, picture, ["ballon", "limousine"], OpenVocabulary(layers=1))
