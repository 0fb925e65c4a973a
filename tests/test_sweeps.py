import json
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from pandas.testing import assert_frame_equal

from seg4diff_tools.backbones.loading import load_backbone
from seg4diff_tools.datasets import LabeledImage
from seg4diff_tools.datasets.labels import IGNORE, renumber
from seg4diff_tools.errors import CheckpointError, InputError
from seg4diff_tools.evaluation import counts, metrics, runs, sweeps
from seg4diff_tools.evaluation.runs import read_evaluation
from seg4diff_tools.segmentation.options import OpenVocabulary
from seg4diff_tools.segmentation.segment import segment

VOCABULARY = ["grass", "cat", "red car", "dog", "tree"]


def sample(index, names, size=(23, 31)):
    generator = np.random.default_rng(index)
    label_map = generator.integers(0, len(names), size)
    label_map[: index + 1, 3:7] = IGNORE
    pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
    return LabeledImage(pixels, tuple(names), label_map, background=("grass",))


@pytest.fixture(scope="module")
def samples():
    names = (["cat", "grass"], ["red car", "dog", "grass"], ["dog"], ["cat", "tree"], ["tree", "grass"])
    sizes = ((23, 31), (29, 23), (56, 56), (37, 19), (23, 31))
    return [sample(index, *each) for index, each in enumerate(zip(names, sizes, strict=True))]


def swept(model, samples, fit="resize", **kwargs):
    return sweeps.layer_step_sweep(model, samples, OpenVocabulary(fit=fit), progress=False, **kwargs)


def test_the_bar_moves_with_each_image_and_each_forward(tiny_backbone, samples, monkeypatch, capsys):
    bars, seen = [], []

    class Bar(runs.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

    monkeypatch.setattr(runs, "tqdm", Bar)
    see = tiny_backbone.transformer.register_forward_pre_hook(lambda *_: seen.append(bars[0].n))
    options = OpenVocabulary(seeds=(0, 1, 2, 3))
    sweeps.layer_step_sweep(tiny_backbone, samples[:4], options, layers=1, vocabulary=VOCABULARY, batch=8)
    see.remove()
    # one group of all images: half of the work is in their VAE, the other in forwards of all of them together
    assert seen == pytest.approx([2.0, 2.4, 2.8, 3.2])
    assert (bars[0].n, bars[0].total) == (4, 4)
    assert "4/4" in capsys.readouterr().err


def sweep(*args, **kwargs):
    return swept(*args, **kwargs).table()


@pytest.mark.parametrize("vocabulary", [None, VOCABULARY])
@pytest.mark.parametrize("fit", ["resize", "crop"])
def test_row_equals_segment_and_metrics(tiny_backbone, samples, vocabulary, fit):
    options = {"layers": [1, 4], "steps_from_end": [8, 3], "heads": ["mean", 2], "directions": ["t2i", "i2t"]}
    variants = ["softmax", "scores+minmax"]
    table = sweep(tiny_backbone, samples, vocabulary=vocabulary, fit=fit, normalize=variants, batch=2, **options)
    assert len(table) == 32
    assert list(table.columns)[:10] == [
        "model", "protocol", "direction", "normalize", "layer", "steps_from_end", "head", "mIoU", "low", "high",
    ]  # fmt: skip
    assert list(table.columns)[10:] == ["object_mIoU", "background_mIoU", "mACC", "pACC", "images", "skipped"]
    assert set(table["protocol"]) == {"present" if vocabulary is None else "full"}
    for row in table.iloc[::5].itertuples():
        total = torch.zeros(5, 5, dtype=torch.int64)
        for each in samples:
            names = vocabulary or list(each.class_names)
            normalize, _, scaled = row.normalize.partition("+")
            result = segment(
                tiny_backbone, each.image, names,
                OpenVocabulary(
                    layers=row.layer, steps_from_end=row.steps_from_end, heads=row.head, direction=row.direction,
                    normalize=normalize, minmax=bool(scaled), fit=fit,
                ),
            )  # fmt: skip
            left, top, right, bottom = result.settings["frame"]
            target = torch.tensor(each.label_map[top:bottom, left:right])
            target = renumber(target, each.class_names, VOCABULARY)
            prediction = renumber(torch.tensor(result.label_map), names, VOCABULARY)
            total += metrics.confusion(prediction, target, 5)
        # a batch of two rounds otherwise than one image on its own: ties may fall differently
        close = {"abs": 5e-3}
        assert row.pACC == pytest.approx(metrics.pixel_accuracy(total).item(), **close)
        assert row.mACC == pytest.approx(metrics.mean_accuracy(total).item(), **close)
        assert row.mIoU == pytest.approx(metrics.miou(total).item(), **close)
        assert row.object_mIoU == pytest.approx(metrics.miou(total, [1, 2, 3, 4]).item(), **close)
        assert row.background_mIoU == pytest.approx(metrics.miou(total, [0]).item(), **close)
        assert row.images == 5


def test_equals_segment_exactly_without_batching(tiny_backbone, samples):
    table = sweep(tiny_backbone, samples[1:2], layers=[3], batch=1)
    result = segment(tiny_backbone, samples[1].image, samples[1].class_names, OpenVocabulary(layers=3))
    pixels = metrics.confusion(torch.tensor(result.label_map), torch.tensor(samples[1].label_map), 3)
    assert table["mIoU"].item() == metrics.miou(pixels).item()
    assert table["background_mIoU"].item() == metrics.miou(pixels, [2]).item()


def test_all_heads_and_layers(tiny_backbone, samples):
    table = sweep(tiny_backbone, samples[:2], heads="all")
    assert table["layer"].tolist() == [layer for layer in range(5) for _ in range(3)]
    assert table["head"].tolist() == [0, 1, 2] * 5
    assert table["mIoU"].between(0, 1).all()


def test_without_background_all_classes_are_objects(tiny_backbone, samples):
    table = sweep(tiny_backbone, [replace(samples[0], background=())], layers=[2])
    assert table["object_mIoU"].item() == table["mIoU"].item()
    assert table["background_mIoU"].isna().all()


@pytest.mark.parametrize("broken", [1, 3, 4])
@pytest.mark.parametrize("batch", [1, 4])
def test_killed_run_resumes_to_the_identical_table(tiny_backbone, samples, tmp_path, broken, batch):
    options = {"layers": [0, 2, 3], "steps_from_end": [8, 20], "heads": "all", "batch": batch}
    straight = sweep(tiny_backbone, samples, out=tmp_path / "straight", **options)
    # the run dies at an image that cannot be read yet
    photograph = PIL.Image.fromarray(samples[broken].image)
    some = [*samples[:broken], replace(samples[broken], image=tmp_path / "late.png"), *samples[broken + 1 :]]
    with pytest.raises(InputError, match="no image file"):
        sweep(tiny_backbone, some, out=tmp_path / "killed", **options)
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed/counts").glob("*.parquet")}
    together = max(1, batch // 2)
    assert len(done) == broken // together
    photograph.save(tmp_path / "late.png")
    resumed = sweep(tiny_backbone, some, out=tmp_path / "killed", **options)
    assert_frame_equal(resumed, straight, check_exact=True)
    assert_frame_equal(resumed, sweep(tiny_backbone, samples, **options), check_exact=True)
    # what was done was not done again
    assert all((tmp_path / "killed/counts" / name).stat().st_mtime_ns == time for name, time in done.items())
    assert_frame_equal(read_evaluation(tmp_path / "killed").table(), straight, check_exact=True)
    assert not list((tmp_path / "killed").rglob("*.partial"))


def test_missing_image_of_a_batch_is_computed_with_its_batch(tiny_backbone, samples, tmp_path):
    straight = sweep(tiny_backbone, samples, out=tmp_path, batch=3)
    path = tmp_path / "counts/000000.parquet"
    counts.write_shard(path, counts.Shard(counts.read_shard(path).records[::2], {}))
    assert_frame_equal(sweep(tiny_backbone, samples, out=tmp_path, batch=3), straight, check_exact=True)


def test_images_may_be_appended(tiny_backbone, samples, tmp_path):
    assert sweep(tiny_backbone, samples[:2], out=tmp_path, batch=1)["images"].unique() == [2]
    longer = sweep(tiny_backbone, samples, out=tmp_path, batch=1)
    assert_frame_equal(longer, sweep(tiny_backbone, samples, batch=1), check_exact=True)


def test_scores_of_images(tiny_backbone, samples):
    found = swept(tiny_backbone, samples, layers=[1, 3], vocabulary=VOCABULARY, batch=1)
    scores = found.of_images()
    assert len(scores) == 2 * len(samples)
    row = scores.query("image == 1 and layer == 3").iloc[0]
    assert row["class_names"] == "dog, grass, red car"
    result = segment(tiny_backbone, samples[1].image, VOCABULARY, OpenVocabulary(layers=3))
    target = renumber(torch.tensor(samples[1].label_map), samples[1].class_names, VOCABULARY)
    pixels = metrics.confusion(torch.tensor(result.label_map), target, 5)
    assert row["mIoU"] == pytest.approx(metrics.miou(pixels).item())
    assert row["object_mIoU"] == pytest.approx(metrics.miou(pixels, [2, 3]).item())
    assert isinstance(scores.sort_values("mIoU").iloc[0]["image"], (int, np.integer))
    alone = swept(tiny_backbone, samples[1:2], layers=[3], vocabulary=VOCABULARY, batch=1)
    taken = alone.confusion()
    for true, predicted in (("dog", "grass"), ("dog", "tree"), ("grass", "grass")):
        expected = pixels[VOCABULARY.index(true), VOCABULARY.index(predicted)].item()
        assert (taken.loc[true, predicted] if predicted in taken else 0) == expected
    np.testing.assert_allclose(alone.confusion({"layer": 3}, share=True).sum(axis=1), 1)
    assert "layer 1" in found.verdict({"layer": 1}, {"layer": 3})
    with pytest.raises(InputError, match="expected one row, got 2"):
        found.confusion()


def test_seeds_are_averaged(tiny_backbone, samples):
    options = OpenVocabulary(seeds=(0, 5), layers=2)
    found = sweeps.layer_step_sweep(
        tiny_backbone, samples[:1], OpenVocabulary(seeds=(0, 5)), layers=2, progress=False, batch=1
    )
    labels = segment(tiny_backbone, samples[0].image, samples[0].class_names, options).label_map
    pixels = metrics.confusion(torch.tensor(labels), torch.tensor(samples[0].label_map), 2)
    assert found.totals["mIoU"][0] == pytest.approx(metrics.miou(pixels).item())


def test_another_run_in_the_folder_is_refused(build_backbone, tiny_backbone, tiny_folder, samples, tmp_path):
    sweep(tiny_backbone, samples[:2], layers=[1], out=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(InputError, match=r"layers: \[1\] there, \[2\] now"):
        sweep(tiny_backbone, samples[:2], layers=[2], out=tmp_path)
    # batches decide which images share a file
    with pytest.raises(InputError, match="batch: 8 there, 2 now"):
        sweep(tiny_backbone, samples[:2], layers=[1], batch=2, out=tmp_path)
    with pytest.raises(InputError, match="protocol: present there, full now"):
        sweep(tiny_backbone, samples[:2], layers=[1], vocabulary=VOCABULARY, out=tmp_path)
    with pytest.raises(InputError, match="another image as number 1"):
        sweep(tiny_backbone, [samples[0], samples[2]], layers=[1], out=tmp_path)
    trained = replace(build_backbone(seed=1), name=tiny_backbone.name)
    reworded, shifted = (load_backbone(tiny_folder) for _ in range(2))
    reworded.pipe.tokenizer.add_tokens(["catdog"])
    shifted.pipe.scheduler.register_to_config(shift=1.0)
    for other in (trained, reworded, shifted):
        with pytest.raises(InputError, match="fingerprint: .* there"):
            sweep(other, samples[:2], layers=[1], out=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


@pytest.mark.parametrize("vocabulary", [None, VOCABULARY])
def test_image_without_a_class_counts_nothing(tiny_backbone, samples, vocabulary, tmp_path):
    empty = LabeledImage(samples[0].image, (), np.full((23, 31), IGNORE))
    options = {"layers": [1, 2], "steps_from_end": (3, 8), "vocabulary": vocabulary}
    table = sweep(tiny_backbone, [empty, *samples[:2]], batch=6, out=tmp_path, **options)
    expected = sweep(tiny_backbone, samples[:2], batch=6, **options)
    other = ["images", "low", "high"]
    assert_frame_equal(table.drop(columns=other), expected.drop(columns=other), atol=5e-3)
    assert set(table["images"]) == {3}
    assert len(read_evaluation(tmp_path).rows) == 4


def test_damaged_folders_are_refused(tiny_backbone, samples, tmp_path):
    with pytest.raises(CheckpointError, match="folder of an evaluation"):
        read_evaluation(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="choose another"):
        sweep(tiny_backbone, samples, out=tmp_path)
    folder = tmp_path / "run"
    sweep(tiny_backbone, samples[:1], layers=[1], out=folder)
    content = (folder / "counts/000000.parquet").read_bytes()
    (folder / "counts/000000.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="delete it and run again"):
        sweep(tiny_backbone, samples[:1], layers=[1], out=folder)
    (folder / "counts/000000.parquet").unlink()
    with pytest.raises(CheckpointError, match="none yet"):
        read_evaluation(folder)
    assert json.loads((folder / "settings.json").read_text())["layers"] == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": []}, "at least one sample"),
        ({"layers": [5]}, "layers? from 0 to 4"),
        ({"layers": []}, "layers"),
        ({"steps_from_end": [29]}, "from 1 to 28"),
        ({"steps_from_end": []}, "name each one once"),
        ({"heads": [3]}, "heads? from 0 to 2"),
        ({"normalize": ["minmax"]}, "softmax.minmax"),
        ({"vocabulary": ["cat", "dog"]}, "outside it"),
        ({"vocabulary": []}, "at least one name"),
        ({"vocabulary": [*VOCABULARY, "cat"]}, "each one once"),
        ({"batch": 0}, "batch 1 or more"),
    ],
)
def test_wrong_input_is_refused(tiny_backbone, samples, arguments, message):
    with pytest.raises(InputError, match=message):
        sweep(tiny_backbone, **({"samples": samples, "layers": [1]} | arguments))


def test_vocabulary_of_hundreds_of_classes(tiny_backbone, samples):
    vocabulary = [f"thing {i}" for i in range(252)] + VOCABULARY
    assert vocabulary[255] == "dog"
    table = sweep(tiny_backbone, samples[2:3], layers=[1], vocabulary=vocabulary)
    result = segment(tiny_backbone, samples[2].image, vocabulary, OpenVocabulary(layers=1))
    assert len(result.settings["prompts"]) > 1
    kept = samples[2].label_map != IGNORE
    assert table["pACC"].item() == pytest.approx((result.label_map[kept] == 255).mean())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"label_map": np.zeros((31, 23), np.int64)}, "image's size"),
        ({"label_map": np.full((23, 31), 2)}, "labels from 0 to 1"),
        ({"class_names": ()}, "one class name for each label"),
    ],
)
def test_wrong_samples_are_refused(tiny_backbone, samples, wrong, message):
    with pytest.raises(InputError, match=message):
        sweep(tiny_backbone, [replace(samples[0], **wrong)], layers=[1])


def test_scenes_are_samples(tiny_backbone):
    from seg4diff_tools.scenes import Scenes

    table = sweep(tiny_backbone, Scenes("test", 2), layers=[1])
    assert table[["object_mIoU", "background_mIoU"]].notna().all(axis=None)
