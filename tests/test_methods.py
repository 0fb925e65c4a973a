"""Each choice of a method against a plain computation with segment, on a random model whose maps differ."""

import math
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import tiny_pipeline
from tiny_parts import sharpened

from seg4diff_tools.backbones.loading import wrap_pipeline
from seg4diff_tools.errors import InputError
from seg4diff_tools.evaluation.grouping_scores import pad_confusion
from seg4diff_tools.segmentation import masks
from seg4diff_tools.segmentation.engine import Workbench, label_maps, pad_groups
from seg4diff_tools.segmentation.options import OpenVocabulary, Unsupervised
from seg4diff_tools.segmentation.segment import segment
from seg4diff_tools.segmentation.unsupervised import group

NAMES = ("cat", "red car", "dog", "tree")


@pytest.fixture(scope="module")
def backbone():
    pipe = tiny_pipeline()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sharpened(pipe.transformer)
    return replace(wrap_pipeline(pipe), expert_layer=3)


@pytest.fixture(scope="module")
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels).resize((46, 38), PIL.Image.Resampling.BICUBIC)


def labels(backbone, picture, names, **options):
    (found,) = label_maps(Workbench(backbone), [picture], [names], OpenVocabulary(**options), batch=1)
    return found


def maps(backbone, picture, names, **options):
    return torch.from_numpy(segment(backbone, picture, names, **options).class_maps.values)


def share(one, other):
    """Of pixels that agree; rounding may decide a tie otherwise."""
    return (torch.as_tensor(one) == torch.as_tensor(other)).double().mean().item()


@pytest.mark.parametrize("fit", ["resize", "crop"])
@pytest.mark.parametrize("reading", ["layer", "goca"])
def test_as_it_stands_it_is_segment(backbone, picture, fit, reading):
    layers = None if reading == "layer" else (1, 2)
    found = labels(backbone, picture, NAMES, fit=fit, reading=reading, layers=layers)
    expected = segment(backbone, picture, NAMES, layers, reading=reading, fit=fit).label_map
    assert torch.equal(found, torch.from_numpy(expected))
    assert len(found.unique()) > 1


def test_several_pictures_at_once(backbone, picture):
    pictures, names = [picture, picture.rotate(180), picture], [NAMES, NAMES[:2], NAMES[1:]]
    found = label_maps(Workbench(backbone), pictures, names, OpenVocabulary(), batch=5)
    for one, own, result in zip(pictures, names, found, strict=True):
        assert share(result, labels(backbone, one, own)) > 0.99


def test_layers_steps_and_seeds_are_averaged(backbone, picture):
    options = {"layers": (1, 4), "steps_from_end": (3, 8), "seeds": (0, 5)}
    parts = [
        maps(backbone, picture, NAMES, layer=layer, steps_from_end=step, seed=seed)
        for layer in options["layers"]
        for step in options["steps_from_end"]
        for seed in options["seeds"]
    ]
    expected = masks.label_map(torch.stack(parts).mean(0), (38, 46))
    assert share(labels(backbone, picture, NAMES, **options), expected) > 0.99
    assert share(labels(backbone, picture, NAMES), expected) < 0.99


def test_synonyms_are_averaged(backbone, picture):
    synonyms = {"dog": ("dog", "grass"), "tree": ("tree", "sky", "grass")}
    # grass stands for two classes and is asked for once
    words = ["cat", "red car", "dog", "grass", "tree", "sky"]
    one = maps(backbone, picture, words)
    expected = torch.stack([one[0], one[1], (one[2] + one[3]) / 2, (one[4] + one[5] + one[3]) / 3])
    expected = masks.label_map(expected, (38, 46))
    assert share(labels(backbone, picture, NAMES, synonyms=synonyms), expected) > 0.99


def test_prompt_sets_name_each_class_once(backbone, picture):
    synonyms = {"dog": ("dog", "grass"), "tree": ("tree", "sky", "water")}
    turns = [["cat", "red car", "dog", "tree"], ["cat", "red car", "grass", "sky"], ["cat", "red car", "dog", "water"]]
    expected = torch.stack([maps(backbone, picture, words) for words in turns]).mean(0)
    found = labels(backbone, picture, NAMES, synonyms=synonyms, prompt_sets=True)
    assert share(found, masks.label_map(expected, (38, 46))) > 0.99


def test_classes_of_a_prompt(backbone, picture):
    expected = torch.cat([maps(backbone, picture, NAMES[:3]), maps(backbone, picture, NAMES[3:])])
    found = labels(backbone, picture, NAMES, classes_per_prompt=3)
    assert share(found, masks.label_map(expected, (38, 46))) > 0.99


def test_second_pass_asks_for_what_won(backbone, picture):
    won = masks.label_map(maps(backbone, picture, NAMES)).flatten().bincount(minlength=4) / 49
    assert len(set(won.tolist())) == 4
    cut = sorted(won.tolist())[1] + 1e-6  # two of four classes stay
    kept = [i for i in range(4) if won[i] >= cut]
    expected = torch.tensor(kept)[labels(backbone, picture, [NAMES[i] for i in kept])]
    assert torch.equal(labels(backbone, picture, NAMES, second_pass=cut), expected)
    # where none has enough, the largest stays
    assert labels(backbone, picture, NAMES, second_pass=0.99).unique().tolist() == [int(won.argmax())]


def test_background_by_words(backbone, picture):
    names = ("cat", "background", "dog")
    asked = labels(backbone, picture, ("cat", "sky", "grass", "dog"))
    expected = torch.tensor([0, 1, 1, 2])[asked]
    assert torch.equal(labels(backbone, picture, names, background=("sky", "grass")), expected)
    plain = segment(backbone, picture, names, 3).label_map
    assert torch.equal(labels(backbone, picture, names), torch.from_numpy(plain))


def test_background_by_threshold(backbone, picture):
    names = ("cat", "background", "dog")
    asked = maps(backbone, picture, ("cat", "dog"))
    keys = asked[0].numel() + 154
    large = masks.upsample(asked, (38, 46)) * keys
    cut = large.amax(0).median().item()
    expected = torch.where(large.amax(0) < cut, 1, torch.tensor([0, 2])[large.argmax(0)])
    found = labels(backbone, picture, names, background=cut)
    assert share(found, expected) > 0.99
    assert 0.4 < (found == 1).double().mean() < 0.6
    # an image with nothing else in it, beside one that has
    both = label_maps(Workbench(backbone), [picture, picture], [["background"], names], OpenVocabulary(background=cut))
    assert both[0].unique().tolist() == [0]
    assert both[0].shape == (38, 46)
    assert share(both[1], expected) > 0.99


def test_tiles_by_hand(backbone, picture):
    whole = masks.upsample(maps(backbone, picture, NAMES), (14, 14))
    canvas, times = torch.zeros(4, 14, 14), torch.zeros(14, 14)
    for row, top in enumerate((0, 3, 7)):
        for column, left in enumerate((0, 3, 7)):
            box = (round(11.5 * column), round(9.5 * row), round(11.5 * (column + 2)), round(9.5 * (row + 2)))
            canvas[:, top : top + 7, left : left + 7] += maps(backbone, picture.crop(box), NAMES)
            times[top : top + 7, left : left + 7] += 1
    expected = masks.label_map((whole + canvas / times) / 2, (38, 46))
    assert share(labels(backbone, picture, NAMES, tiles=2), expected) > 0.99


def test_tiles_of_a_cropped_picture_are_those_of_its_frame(backbone, picture):
    found = labels(backbone, picture, NAMES, tiles=2, fit="crop")
    left, top, right, bottom = segment(backbone, picture, NAMES, 3, fit="crop").settings["frame"]
    assert (bottom - top, right - left) == (38, 38)
    assert torch.equal(found, labels(backbone, picture.crop((left, top, right, bottom)), NAMES, tiles=2))


def test_pictures_are_not_taken_for_each_other(backbone, picture):
    work = Workbench(backbone)
    for turn in range(12):
        # crops and pictures come and go, and memory is used again
        other = picture.rotate(30 * turn)
        (found,) = label_maps(work, [other], [NAMES], OpenVocabulary(tiles=2), batch=1)
        assert torch.equal(found, labels(backbone, other, NAMES, tiles=2))


def test_guided_upsampling_follows_edges():
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:, 17:] = 255  # an edge that no border of tokens meets
    coarse = torch.zeros(2, 8, 8)
    coarse[1, :, 4:] = 1
    coarse[0] = 1 - coarse[1]
    plain = masks.label_map(coarse, (40, 40))
    guided = masks.label_map(masks.upsample_guided(coarse, PIL.Image.fromarray(pixels)))
    truth = (torch.from_numpy(pixels[..., 0]) > 0).long()
    assert (guided == truth).double().mean() == 1 > (plain == truth).double().mean()
    # of a picture without edges it is a blur that keeps constants
    flat = masks.upsample_guided(torch.full((3, 4, 5), 0.25), PIL.Image.fromarray(pixels[:, :7]))
    torch.testing.assert_close(flat, torch.full((3, 40, 7), 0.25))


def test_pads_are_group(backbone, picture):
    method = Unsupervised(threshold=0.01, layers=2)
    (found,) = pad_groups(Workbench(backbone), [picture], method)
    expected = group(backbone, picture, 2, threshold=0.01)
    assert np.array_equal(found, expected.label_map)


def test_rows_and_images_match_otherwise():
    groups = torch.tensor([[0, 0, 1], [1, 1, 0]])
    target = torch.tensor([[0, 0, 1], [0, 0, 1]])
    # in one image group 0 is class 0 and group 1 is class 1: three pixels are right; row by row all are
    assert pad_confusion(groups, target, 2, Unsupervised()).diagonal().sum() == 3
    assert pad_confusion(groups, target, 2, Unsupervised(matching="rows")).diagonal().sum() == 6


def test_prompts_are_encoded_once(backbone, picture):
    work = Workbench(backbone)
    assert work.prompts(NAMES, OpenVocabulary()) is work.prompts(list(NAMES), OpenVocabulary(seeds=(3,)))
    assert work.prompts(NAMES, OpenVocabulary()) is not work.prompts(NAMES, OpenVocabulary(classes_per_prompt=2))
    label_maps(work, [picture], [NAMES], OpenVocabulary())
    before = work.seconds["latents"]
    assert work.latents([picture, picture], "resize").shape[0] == 2
    assert work.seconds["latents"] - before < before
    assert set(work.seconds) == {"text", "latents", "attention", "labels"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reading": "best"}, "expected a reading from layer"),
        ({"seeds": ()}, "expected seeds"),
        ({"tiles": 0}, "at least one tile"),
        ({"classes_per_prompt": 0}, "at least one tile and class"),
        ({"second_pass": 1.0}, "from 0 to less than 1"),
        ({"upsampling": "bicubic"}, "'bilinear' or 'guided'"),
        ({"background": "sky"}, "'word', words or a number"),
        ({"background": 2.0, "reading": "cosine"}, "reading of probabilities"),
        ({"background": math.nan}, "threshold above 0"),
        ({"synonyms": {"cat": "kitten"}}, "got 'kitten' for 'cat'"),
        ({"synonyms": {"cat": ()}}, r"got \(\) for 'cat'"),
    ],
)
def test_wrong_choices_are_refused(options, message):
    method = OpenVocabulary()
    for name, value in options.items():
        object.__setattr__(method, name, value)  # past the type check, which only tests have
    with pytest.raises(InputError, match=message):
        method.__post_init__()


def test_guided_upsampling_of_many_classes(backbone, picture):
    names = [f"thing {index}" for index in range(37)]
    found = labels(backbone, picture, names, upsampling="guided")
    expected = masks.upsample_guided(maps(backbone, picture, names), picture).argmax(0)
    assert share(found, expected) > 0.99
    assert found.max() >= 16


def test_guided_upsampling_of_a_thin_picture():
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    for size in ((1, 40), (40, 1), (2, 40)):
        assert masks.upsample_guided(maps, PIL.Image.new("RGB", size)).shape == (2, *size[::-1])
