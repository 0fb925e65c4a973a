"""Losses over places and words, weights of layers, noise levels, temperature and early stopping of fine-tuning."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TWO_PROCESSES
from PIL import Image
from test_magnet import DATA, GRID, HEADS, IMAGE, QUICK, SCRIPT, Dying, assert_same_run, attention, rows, targets
from tiny_models import build
from tiny_run import SCENES, tiny_clip
from torch.nn.functional import adaptive_avg_pool2d

from seg4diff_tools.attention import temperature
from seg4diff_tools.backbones import apply_lora, read_lora
from seg4diff_tools.backbones.loading import wrap_pipeline
from seg4diff_tools.backbones.lora import attach
from seg4diff_tools.datasets import LabeledImage
from seg4diff_tools.errors import InputError
from seg4diff_tools.generation import clip_scores, load_clip, prompts
from seg4diff_tools.generation.composition import judge
from seg4diff_tools.generation.detector import DetectorConfig, DetectorNet, SceneDetector
from seg4diff_tools.magnet import MagnetConfig, PictureTest, finetune
from seg4diff_tools.magnet.alignment import grid_masks, region_losses, token_maps, word_losses
from seg4diff_tools.magnet.losses import divergence, entropy_loss, places_loss, regions_loss
from seg4diff_tools.magnet.student import Student
from seg4diff_tools.magnet.targets import counts, noise, target
from seg4diff_tools.magnet.validation import both
from seg4diff_tools.scenes import Scenes

WORDS = dict.fromkeys(("places_weight", "entropy_weight", "apart_weight", "agree_weight"), 1.0)
ALL = MagnetConfig(**WORDS)
BOTH = dict.fromkeys(("flow_weight", "regions_weight", "focal_weight", "dice_weight"), 1.0) | WORDS


@pytest.fixture
def backbone(build_backbone):
    return build_backbone(qk_norm="rms_norm")


@pytest.mark.parametrize("average", ["images", "masks"])
def test_word_losses_and_gradients_are_those_of_the_whole_map(average):
    config, wanted = replace(ALL, average=average), targets(spans=True)
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64)
    calls = [attention(0), attention(1)]
    maps = [token_maps(call, wanted) for call in calls]
    found = word_losses(maps, wanted, config, GRID, weights)
    ours = torch.autograd.grad(sum(found.values()), [call.query for call in calls])

    calls = [attention(0), attention(1)]
    expected = {name: [] for name in ("places", "entropy", "apart", "agree")}
    for image, one in enumerate(wanted):
        whole = torch.stack([(call.query[image] @ call.key[image].mT * call.scale).softmax(-1) for call in calls])
        part = whole[:, :, :IMAGE, IMAGE:].mT
        words = torch.stack([part[:, :, list(span)].mean(2) for span in one.spans], 2)
        known = adaptive_avg_pool2d(one.known[None].float(), GRID).flatten() >= 0.5
        shares = adaptive_avg_pool2d((one.masks & one.known).float(), GRID).flatten(1)[:, known].double()
        scale = 1 / 5 if average == "masks" else 1 / (2 * len(one.masks))
        each = [[places_loss(head, shares) for head in layer] for layer in words[..., known]]
        each = torch.stack([torch.stack(layer).mean(0) for layer in each])
        expected["places"].append((weights @ each).sum() * scale)
        mean = (weights[:, None, None, None] * words).sum(0).mean(0)
        expected["entropy"].append(entropy_loss(mean[:, known], shares).sum() * scale)
        apart = [1 - divergence(layer.mean(0)) for layer in words]
        expected["apart"].append((weights @ torch.stack(apart)) * scale * len(one.masks))
        several = [list(span) for span in one.spans if len(span) > 1]
        agree = [weights @ torch.stack([divergence(layer.mean(0)[span]) for layer in part]) for span in several]
        expected["agree"].append(sum(agree) * scale)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], sum(values), rtol=1e-5, atol=1e-7)
    total = sum(sum(values) for values in expected.values())
    for one, other in zip(ours, torch.autograd.grad(total, [call.query for call in calls]), strict=True):
        assert other.abs().max() > 1e-5
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_labels_too_sparse_for_any_token_train_nothing():
    wanted = targets(spans=True)
    known = torch.zeros_like(wanted[0].known)
    known[0, 0] = True
    sparse = replace(wanted[0], known=known, masks=wanted[0].masks & known)
    weights, call = torch.ones(1, dtype=torch.float64), attention(0)
    with_it = word_losses([token_maps(call, [sparse, wanted[1]])], [sparse, wanted[1]], ALL, GRID, weights)
    none = replace(sparse, masks=sparse.masks[:0], spans=())
    without = word_losses([token_maps(call, [none, wanted[1]])], [none, wanted[1]], ALL, GRID, weights)
    assert with_it == without
    assert all(loss.isfinite() for loss in with_it.values())


def test_tokens_of_each_image_stand_class_by_class():
    wanted, call = targets(spans=True), attention()
    first, second = token_maps(call, wanted)
    assert first.shape == (HEADS, 6, IMAGE)
    assert second.shape == (HEADS, 3, IMAGE)
    torch.testing.assert_close(second[:, 2], call.i2t(text=[4])[1, :, :, 0])
    nothing = [replace(one, masks=one.masks[:0], spans=()) for one in wanted]
    assert [len(one[0]) for one in token_maps(call, nothing)] == [0, 0]
    losses = word_losses([token_maps(call, nothing)], nothing, ALL, GRID, torch.ones(1))
    assert [value.item() for value in losses.values()] == [0, 0, 0, 0]


def test_regions_weigh_small_masks_like_large_ones():
    errors, wanted = torch.rand(2, *GRID, generator=torch.Generator().manual_seed(2)), targets(spans=False)
    found = region_losses(errors, wanted, MagnetConfig())
    each = []
    for own, one in zip(errors, wanted, strict=True):
        shares, known = grid_masks(one, GRID, errors.device)
        each.append(regions_loss(own.flatten()[known], shares).mean())
    torch.testing.assert_close(found, sum(each) / 2)
    nothing = [replace(one, masks=one.masks[:0]) for one in wanted]
    assert region_losses(errors, nothing, MagnetConfig()) == 0


def first_losses(backbone, config: MagnetConfig, folder: Path) -> dict[str, float]:
    return rows(finetune(backbone, DATA, replace(config, steps=1), folder, progress=False))[0]


def test_every_loss_trains_in_one_run_and_only_what_has_a_weight_is_logged(backbone, tmp_path):
    row = first_losses(backbone, replace(QUICK, zero_tokens=77, **BOTH), tmp_path / "all")
    assert all(row[name] > 0 for name in ("flow", "regions", "focal", "dice", "places", "entropy", "apart"))
    assert {"agree", "gradient"} <= row.keys()
    some = replace(QUICK, focal_weight=0.0, dice_weight=0.0, places_weight=1e-3)
    assert list(first_losses(backbone, some, tmp_path / "some")) == [
        *("step", "rate", "gradient", "flow", "places", "unnamed", "skipped")
    ]


@pytest.mark.parametrize("name", ["places", "entropy", "apart"])
def test_each_loss_falls_when_it_trains_alone(backbone, tmp_path, name):
    own = dict.fromkeys(BOTH, 0.0) | {f"{name}_weight": 1.0}
    config = replace(QUICK, steps=12, learning_rate=0.02, layers=(1, 2), zero_tokens=77, **own)
    few = [DATA[index] for index in range(6)]
    found = [row[name] for row in rows(finetune(backbone, few, config, tmp_path / "run", progress=False))]
    assert np.mean(found[-3:]) < np.mean(found[:2]) - 1e-4


def test_one_zero_vector_stands_for_all_of_them(backbone):
    config = replace(QUICK, zero_tokens=77, layers=(1, 3), reading="softmax", **BOTH)
    attach(backbone.transformer, backbone.family, 2, 2)
    found = []
    for zeros in (77, 0):
        student = Student(backbone, config, [1, 3], None)
        assert student.zeros == 77
        student.zeros = zeros
        wanted = [target(backbone, DATA[index], config) for index in range(2)]
        latents = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
        inputs = backbone.inputs(latents, torch.tensor([700.0, 300.0]), [one.prompt for one in wanted])
        backbone.transformer.zero_grad()
        with student.watching():
            losses = student(inputs, latents, wanted, backbone.token_grid())
            sum(losses.values()).backward()
        gradients = [value.grad for value in backbone.transformer.parameters() if value.grad is not None]
        found.append((losses, gradients))
    backbone.transformer.unload_lora()
    (short, own), (whole, other) = found
    for name, value in whole.items():
        torch.testing.assert_close(short[name], value, rtol=1e-4, atol=1e-6)
    assert len(own) == len(other) > 0
    for one, wanted in zip(own, other, strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-2, atol=1e-5)


def test_few_zero_vectors_stay_as_they_are(backbone):
    assert Student(backbone, QUICK, [1], None).zeros == 0
    with_t5 = wrap_pipeline(build("flux-dev"))
    assert Student(with_t5, replace(QUICK, zero_tokens=77), [1], None).zeros == 0


def test_layers_count_by_their_weights(backbone, tmp_path):
    config = replace(QUICK, **WORDS)
    alone = [first_losses(backbone, replace(config, layers=(layer,)), tmp_path / str(layer)) for layer in (1, 2)]
    both_layers = replace(config, layers=(1, 2), layer_weights=(3.0, 1.0))
    found = first_losses(backbone, both_layers, tmp_path / "both")
    for name in ("focal", "dice", "places", "apart", "agree"):
        assert found[name] == pytest.approx(0.75 * alone[0][name] + 0.25 * alone[1][name], rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(
    ("options", "low", "high", "middle"),
    [
        ({"noise": "uniform", "shift": 1.0}, 0.0, 1.0, 0.5),
        ({"noise": "early", "shift": 1.0}, 0.5, 1.0, 0.75),
        ({"noise": "late", "shift": 1.0}, 0.0, 0.5, 0.25),
        # with a shift of 3 the middle of sampling is at 3 / 4
        ({"noise": "uniform"}, 0.0, 1.0, 0.75),
        ({"noise": "early"}, 0.75, 1.0, 0.9),
        ({"shift": 1.0}, 0.0, 1.0, 0.5),
    ],
    ids=str,
)
def test_noise_levels_have_the_named_distribution(backbone, options, low, high, middle):
    config = replace(QUICK, **options)
    drawn = torch.stack([noise(backbone, (1, 1, 1), number, config)[1] for number in range(400)])
    assert low <= drawn.min() < drawn.max() <= high
    assert drawn.median().item() == pytest.approx(middle, abs=0.06)
    assert torch.equal(noise(backbone, (2, 3, 5), 7, config)[0], noise(backbone, (2, 3, 5), 7, QUICK)[0])


def test_masks_count_at_the_wanted_noise_levels(backbone, tmp_path):
    early, late = (replace(QUICK, align_at=levels) for levels in ("early", "late"))
    assert [counts(backbone, sigma, early) for sigma in (0.74, 0.76)] == [False, True]
    assert [counts(backbone, sigma, late) for sigma in (0.74, 0.76)] == [True, False]
    assert counts(backbone, 0.1, QUICK)
    parts = [first_losses(backbone, config, tmp_path / config.align_at) for config in (early, late, QUICK)]
    assert parts[0]["dice"] > 0 < parts[1]["dice"]
    assert parts[0]["dice"] + parts[1]["dice"] == pytest.approx(parts[2]["dice"], rel=1e-4)
    assert parts[0]["flow"] == pytest.approx(parts[2]["flow"], rel=1e-5)


def test_a_temperature_trains_as_it_samples(backbone):
    config = replace(QUICK, temperature=1.5, temperature_above=600.0, zero_tokens=77)
    attach(backbone.transformer, backbone.family, 2, 2)
    wanted = [target(backbone, DATA[index], config) for index in range(2)]
    latents = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([700.0, 300.0])
    given = [one.prompt for one in wanted]
    plain = backbone.predict_velocity(latents, times, given)
    with temperature(backbone, 1.5, above=600.0):
        warm = backbone.predict_velocity(latents, times, given)
    student = Student(backbone, config, [1], None)
    with student.watching(), torch.no_grad():
        errors = student(backbone.inputs(latents, times, given), warm, wanted, backbone.token_grid())["flow"]
        other = student(backbone.inputs(latents, times, given), plain, wanted, backbone.token_grid())["flow"]
    backbone.transformer.unload_lora()
    assert errors < 1e-9 < other
    assert torch.equal(warm[1], warm[1])
    torch.testing.assert_close(warm[1], plain[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("reading", ["softmax", "scores"])
def test_checkpointed_blocks_and_temperature_change_nothing(backbone, tmp_path, reading):
    config = replace(QUICK, steps=2, temperature=1.4, temperature_above=500.0, zero_tokens=77, reading=reading, **BOTH)
    plain = rows(finetune(backbone, DATA, config, tmp_path / "plain", progress=False))
    again = rows(finetune(backbone, DATA, config, tmp_path / "again", gradient_checkpointing=True, progress=False))
    for one, other in zip(plain, again, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-6)


def test_both_is_the_smaller_gain():
    assert both((0.5, 0.6), (0.2, 0.4)) == pytest.approx(0.61 / 0.51)
    assert both((0.5, 0.6), (0.4, 0.2)) == pytest.approx(0.21 / 0.41)
    assert both((0.5, 0.5), (0.0, 0.0)) == 1
    with pytest.raises(InputError, match="expected pictures, scores of 0 or more, got \\(0.1, nan\\)"):
        both((0.5, 0.5), (0.1, float("nan")))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("judge"))


@pytest.fixture
def pictures(clip_folder):
    return PictureTest(["a cat on grass", "a dog"], load_clip(clip_folder), steps=1)


def test_pictures_are_judged_by_a_clip_or_a_detector(backbone, pictures):
    texts = list(pictures.prompts)
    clip = pictures.judge
    drawn = backbone.generate(texts, seed=[0, 1], steps=1, progress=False)
    by_hand = clip_scores(clip.embed_images(drawn), clip.embed_texts(texts)).mean().item()
    assert pictures.score(backbone) == pytest.approx(by_hand)
    asked = prompts(1)[:2]
    detector = SceneDetector(DetectorNet(DetectorConfig()))
    test = PictureTest(asked, detector, steps=1, seed=3, batch=1)
    drawn = backbone.generate([one.text for one in asked], seed=[300_000, 300_001], steps=1, progress=False)
    assert test.score(backbone) == judge(detector, drawn, asked)["correct"].mean()
    assert test.settings()["prompts"] == [one.text for one in asked]


STOPPING = replace(QUICK, steps=6, learning_rate=0.05, patience=1)


def stopped_early(values: list[float], patience: int) -> int:
    """At which evaluation a run with these values ends, by hand."""
    for index in range(len(values)):
        best = values[: index + 1].index(max(values[: index + 1]))
        if index - best >= patience:
            return index
    return len(values) - 1


def test_a_run_goes_on_with_the_pictures_that_it_began_with(backbone, tmp_path, pictures):
    few = replace(QUICK, steps=1)
    options = {"evaluation": [DATA[3]], "evaluate_every": 1, "progress": False}
    finetune(backbone, list(DATA), few, tmp_path / "run", **options)
    with pytest.raises(InputError, match="expected the settings of a fine-tuning .* pictures: None there"):
        finetune(backbone, list(DATA), few, tmp_path / "run", pictures=pictures, **options)


def test_pictures_need_an_object_in_an_image_of_evaluation(backbone, tmp_path, pictures):
    sky = LabeledImage(Image.new("RGB", (14, 14)), ("sky",), np.zeros((14, 14), np.uint8), background=("sky",))
    with pytest.raises(InputError, match="expected an object in an image of evaluation with pictures, got none"):
        finetune(backbone, list(DATA), QUICK, tmp_path / "run", evaluation=[sky], pictures=pictures, progress=False)


def test_a_convolution_that_no_loss_reads_is_left_out(backbone, tmp_path):
    words = replace(QUICK, steps=1, conv_head=True, focal_weight=0.0, dice_weight=0.0, places_weight=1.0)
    assert not read_lora(finetune(backbone, list(DATA), words, tmp_path / "run", progress=False)).conv_head


@pytest.mark.parametrize("reads", [9, 16])
def test_a_killed_run_stops_where_it_would_have_and_keeps_the_best(backbone, tmp_path, pictures, reads):
    options = {"evaluation": [DATA[3]], "pictures": pictures, "evaluate_every": 1, "save_every": 2, "progress": False}
    whole = finetune(backbone, list(DATA), STOPPING, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        finetune(backbone, Dying(DATA, reads), STOPPING, tmp_path / "killed", **options)
    finetune(backbone, list(DATA), STOPPING, tmp_path / "killed", **options)
    assert_same_run(whole, tmp_path / "killed")
    assert (whole / "evaluation.csv").read_bytes() == (tmp_path / "killed" / "evaluation.csv").read_bytes()
    # once more: it is finished
    finetune(backbone, list(DATA), STOPPING, tmp_path / "killed", **options)
    assert_same_run(whole, tmp_path / "killed")
    found = rows(whole, "evaluation.csv")
    values = [row["both"] for row in found[1:]]
    assert found[0]["both"] == 1
    assert len(values) - 1 == stopped_early(values, 1)
    # the LoRA is that of the best evaluation, not of the last step
    best = found[values.index(max(values)) + 1]
    with apply_lora(backbone, whole):
        assert pictures.score(backbone) == pytest.approx(best["pictures"], rel=1e-5)
    if best is not found[-1]:
        latest = torch.load(whole / "state.pt", weights_only=True)["lora"]
        kept = read_lora(whole).tensors
        assert any(not torch.equal(kept[name], value) for name, value in latest.items() if name in kept)


def test_two_processes_stop_as_one(tiny_folder, tiny_backbone, clip_folder, tmp_path):
    script = SCRIPT.replace(
        "progress=False)",
        "progress=False, evaluation=[Scenes('train', 40, SCENES)[3]], evaluate_every=1,"
        " pictures=PictureTest(['a cat'], load_clip(sys.argv[4]), steps=1))",
    ).replace("import MagnetConfig,", "import MagnetConfig, PictureTest,")
    script = "from seg4diff_tools.generation import load_clip\n" + script
    (tmp_path / "script.py").write_text(script)
    names = ("batch", "learning_rate", "warmup", "clip_gradients", "layers", "patience")
    config = {name: getattr(STOPPING, name) for name in names} | BOTH
    config |= {"steps": 3, "zero_tokens": 77, "rank": 2, "temperature": 1.3, "temperature_above": 600.0}
    run = subprocess.run(
        [
            *TWO_PROCESSES,
            str(tmp_path / "script.py"),
            repr(config),
            str(tiny_folder),
            str(tmp_path / "two"),
            str(clip_folder),
        ],
        env=os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}", "OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert run.returncode == 0, run.stderr[-9000:]
    options = {"evaluation": [Scenes("train", 40, SCENES)[3]], "evaluate_every": 1, "progress": False}
    options["pictures"] = PictureTest(["a cat"], load_clip(clip_folder), steps=1)
    one = finetune(tiny_backbone, DATA, MagnetConfig(**config), tmp_path / "one", **options)
    for name in ("log.csv", "evaluation.csv"):
        ours, theirs = rows(one, name), rows(tmp_path / "two", name)
        assert len(ours) == len(theirs)
        for own, other in zip(ours, theirs, strict=True):
            assert own == pytest.approx(other, rel=2e-3, abs=1e-6)
