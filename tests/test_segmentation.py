from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
import xarray as xr
from torch.nn.functional import interpolate

from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.backbones import checks
from seg4diff_tools.errors import InputError, PromptError
from seg4diff_tools.segmentation.class_maps import check_kinds, read_class_maps
from seg4diff_tools.segmentation.segment import segment

NAMES = ["cat", "red car", "grass"]


@pytest.fixture(scope="module")
def photograph():
    pixels = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def materialized(backbone, image, names, layer, steps_from_end=8, steps=28, seed=0, fit="resize"):
    """The whole joint map of every head of a layer, [head token token], after and before the softmax, in float64."""
    found = {}

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
        tiny_backbone, photograph, NAMES, layer=3, steps_from_end=5, steps=11, seed=7,
        head=head, direction=direction, normalize=normalize, minmax=minmax,
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
    result = segment(tiny_backbone, photograph, NAMES, layer=1)
    assert isinstance(result.class_maps, xr.DataArray)
    assert result.class_maps.dims == ("class", "y", "x")
    assert result.class_maps.sel({"class": "red car"}).shape == (7, 7)
    assert result.upsampled().sel({"class": "grass"}).shape == (61, 83)
    assert result.class_names == tuple(NAMES)
    assert result.label_map.shape == (61, 83)
    assert result.label_map.dtype == np.int64
    expected = {"layer": 1, "steps_from_end": 8, "steps": 28, "seed": 0, "prompts": ("cat red car grass",)}
    assert expected.items() <= dict(result.settings).items()
    assert result.settings["model"] == tiny_backbone.name
    with pytest.raises(TypeError):
        result.settings["layer"] = 2


def test_crop_covers_the_centred_square(tiny_backbone, photograph):
    result = segment(tiny_backbone, photograph, NAMES, layer=1, fit="crop")
    assert result.label_map.shape == (61, 61)
    assert result.settings["frame"] == (11, 0, 72, 61)
    square = segment(tiny_backbone, photograph.crop((11, 0, 72, 61)), NAMES, layer=1)
    # not equal to the bit: resampling a part of the image sees the pixels beyond its edge
    np.testing.assert_allclose(result.class_maps, square.class_maps, atol=1e-5)


def test_same_arguments_give_the_same_result_and_the_seed_counts(tiny_backbone, photograph):
    first, again = (segment(tiny_backbone, photograph, NAMES, layer=2) for _ in range(2))
    other = segment(tiny_backbone, photograph, NAMES, layer=2, seed=1)
    xr.testing.assert_identical(first.class_maps, again.class_maps)
    assert not first.class_maps.equals(other.class_maps)


def test_expert_layer_by_name(build_backbone, photograph):
    backbone = replace(build_backbone(), expert_layer=3)
    by_name, by_number = (segment(backbone, photograph, NAMES, layer=layer) for layer in ("expert", 3))
    xr.testing.assert_identical(by_name.class_maps, by_number.class_maps)
    assert by_name.settings["layer"] == 3


def test_blocks_after_the_layer_never_run(build_backbone, photograph):
    backbone = build_backbone()
    ran = []
    for layer, block in enumerate(backbone.transformer.transformer_blocks):
        block.attn.to_q.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    segment(backbone, photograph, NAMES, layer=2)
    assert ran == [0, 1, 2]


def test_names_that_need_several_prompts(tiny_backbone, photograph):
    names = [f"{color} {thing} number {i}" for i, color in enumerate(("red", "blue", "green", "grey"))
             for thing in ("fire engine", "bus", "tree", "dog", "cat")]  # fmt: skip
    result = segment(tiny_backbone, photograph, names, layer=2)
    assert len(result.settings["prompts"]) > 1
    assert list(result.class_maps["class"].values) == names
    # each prompt is a forward of its own, with its own softmax
    prompts = tiny_backbone.class_prompts(names)
    last = segment(tiny_backbone, photograph, list(prompts[-1].classes), layer=2)
    np.testing.assert_allclose(result.class_maps[-len(last.class_names) :], last.class_maps, atol=1e-6)


def test_batches_give_what_single_images_give(tiny_backbone, photograph):
    pictures = [photograph, photograph.rotate(90), photograph.rotate(180)]
    names = [["cat"], ["dog", "fire engine", "grass"], ["cat", "tree"]]
    prompts = [tiny_backbone.class_prompts(each) for each in names]
    options = {
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
    single = segment(tiny_backbone, pictures[1], names[1], layer=1, steps_from_end=8, head=1)
    np.testing.assert_allclose(together[1][1, 1, 1, 0], single.class_maps, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"class_names": []}, InputError, "at least one class"),
        ({"class_names": ["cat", "grass", "cat"]}, InputError, "given twice"),
        ({"class_names": ["cat " * 90]}, PromptError, "do not fit"),
        ({"layer": 5}, InputError, "layers from 0 to 4 or 'expert'.*got 5"),
        ({"layer": -1}, InputError, "layers from 0 to 4"),
        ({"layer": "expert"}, InputError, "expert layer is known"),
        ({"steps_from_end": 29}, InputError, "from 1 to 28, got .29."),
        ({"steps_from_end": 0}, InputError, "from 1 to 28"),
        ({"head": 3}, InputError, "heads from 0 to 2"),
        ({"image": "nowhere.png"}, InputError, "no image file"),
        ({"image": [np.zeros((3, 5, 3), np.uint8)] * 2}, InputError, "one image"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused(tiny_backbone, photograph, arguments, error, message):
    arguments = {"image": photograph, "class_names": NAMES, "layer": 1} | arguments
    if isinstance(arguments["image"], list):
        arguments["image"] = np.stack(arguments["image"])
    with pytest.raises(error, match=message):
        segment(tiny_backbone, **arguments)


def test_unknown_options_are_refused(tiny_backbone):
    for kind in (("i2i", "softmax"), ("i2t", "sigmoid")):
        with pytest.raises(InputError, match="expected"):
            check_kinds([kind])
    with pytest.raises(InputError, match="each one once"):
        checks.check_heads(tiny_backbone, ["mean", 1, 1])
    with pytest.raises(InputError, match="each one once"):
        checks.check_layers(tiny_backbone, [])
