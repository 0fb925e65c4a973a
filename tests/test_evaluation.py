"""Evaluations against segment and metrics; runs that are killed, split and damaged end with the same table."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TWO_PROCESSES, tiny_pipeline
from pandas.testing import assert_frame_equal
from PIL import Image
from tiny_models import BUILDERS, build
from tiny_parts import sharpened

from seg4diff_tools.analysis.search import choose_combination
from seg4diff_tools.backbones.loading import wrap_pipeline
from seg4diff_tools.datasets import LabeledImage, folder
from seg4diff_tools.datasets.labels import IGNORE
from seg4diff_tools.errors import CheckpointError, InputError
from seg4diff_tools.evaluation import metrics
from seg4diff_tools.evaluation.comparison import compare
from seg4diff_tools.evaluation.evaluate import evaluate
from seg4diff_tools.evaluation.grouping_scores import grouping_scores
from seg4diff_tools.evaluation.runs import read_evaluation
from seg4diff_tools.evaluation.sweeps import layer_step_sweep
from seg4diff_tools.segmentation import attribution, masks
from seg4diff_tools.segmentation.options import OpenVocabulary, Unsupervised
from seg4diff_tools.segmentation.segment import segment

VOCABULARY = ["cat", "dog", "grass", "red car", "tree"]
METHODS = {
    "one": OpenVocabulary(layers=(3,), steps_from_end=(4,)),
    "all": OpenVocabulary(method="daam", steps_from_end=(2, 5)),
    "spread": OpenVocabulary(method=partial(attribution.refined, times=1), layers=(2,)),
}


@pytest.fixture(scope="module")
def samples():
    found = []
    for index, (names, size) in enumerate(
        ((["dog", "grass"], (23, 31)), (["cat", "tree"], (37, 19)), (["tree", "grass", "red car"], (29, 41)))
    ):
        generator = np.random.default_rng(index)
        label_map = generator.integers(0, len(names), size)
        label_map[:3, 5:7] = IGNORE
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        found.append(LabeledImage(pixels, tuple(names), label_map, background=("grass",)))
    return found


@pytest.fixture(scope="module")
def backbone():
    """A random model whose readings differ in their label maps."""
    pipe = tiny_pipeline()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sharpened(pipe.transformer)
    return replace(wrap_pipeline(pipe), expert_layer=3)


def run(*args, **kwargs):
    return evaluate(*args, progress=False, **kwargs)


def counted(pairs):
    """A confusion matrix by a plain loop over pixels."""
    total = torch.zeros(5, 5, dtype=torch.int64)
    for sample, label_map, names in pairs:
        for true, found in zip(sample.label_map.flat, label_map.flat, strict=True):
            if true != IGNORE:
                total[VOCABULARY.index(sample.class_names[true]), VOCABULARY.index(names[found])] += 1
    return total


def test_rows_equal_segment_and_metrics(backbone, samples):
    result = run(backbone, samples, METHODS, ["present", "full"], VOCABULARY)
    table = result.table()
    assert table["method"].tolist() == ["one", "one", "all", "all", "spread", "spread"]
    assert table["protocol"].tolist() == ["present", "full"] * 3
    for row in table.itertuples():
        method = METHODS[row.method]
        pairs = []
        for sample in samples:
            names = VOCABULARY if row.protocol == "full" else sample.class_names
            pairs.append((sample, segment(backbone, sample.image, names, method).label_map, names))
        total = counted(pairs)
        close = {"abs": 4e-3}
        assert row.mIoU == pytest.approx(metrics.miou(total).item(), **close)
        assert row.object_mIoU == pytest.approx(metrics.miou(total, [0, 1, 3, 4]).item(), **close)
        assert row.background_mIoU == pytest.approx(metrics.miou(total, [2]).item(), **close)
        assert row.mACC == pytest.approx(metrics.mean_accuracy(total).item(), **close)
        assert row.pACC == pytest.approx(metrics.pixel_accuracy(total).item(), **close)
        first = table.query("method == 'one' and protocol == @row.protocol").iloc[0]
        assert row.gain == row.mIoU - first.mIoU
        assert row.low <= row.high
        assert row.images == 3
        assert row.skipped == 0
    assert (table.loc[:1, ["gain", "gain_low", "gain_high"]] == 0).all(axis=None)
    wide = result.table(simultaneous=True)
    assert (wide.gain_high - wide.gain_low > table.gain_high - table.gain_low)[2:].all()
    assert set(wide.comparisons) == {4}
    assert table.mIoU.nunique() == 6
    assert (table.gain_low < table.gain_high)[2:].all()
    assert set(result.pace) == {(row.method, row.protocol) for row in table.itertuples()}
    assert min(result.pace.values()) > 0
    assert "3 images at" in result.throughput()


def test_some_rows_are_the_evaluation_of_these_alone(backbone, samples):
    both = layer_step_sweep(backbone, samples, layers=[1, 3], directions=("i2t", "t2i"), progress=False)
    alone = layer_step_sweep(backbone, samples, layers=[3], directions="t2i", progress=False)
    part = both.sel(direction="t2i", layer=np.int64(3))
    assert_frame_equal(part.table(), alone.table())
    assert_frame_equal(part.of_images(), alone.of_images())
    assert_frame_equal(part.confusion(), alone.confusion())
    assert list(both.sel(layer=[3, 1]).rows) == list(both.rows)
    assert len(both.rows) == 4
    with pytest.raises(InputError, match="expected layer from 1, 3, got 2: pass layer=1$"):
        both.sel(layer=2)
    own = run(backbone, samples, METHODS, metrics={"pixels": lambda found, true: found.size}).sel(method="all")
    assert list(own.pace) == list(own.rows)
    assert own.table("pixels").pixels.tolist() == [own.values["pixels"].mean()]


@pytest.mark.parametrize("vocabulary", [None, VOCABULARY])
def test_as_it_stands_it_is_the_sweep(backbone, samples, vocabulary):
    row = (
        run(backbone, samples, protocol="full" if vocabulary else "present", vocabulary=vocabulary, batch=2)
        .table()
        .iloc[0]
    )
    swept = layer_step_sweep(backbone, samples, layers=[3], vocabulary=vocabulary, batch=2, progress=False)
    swept = swept.table().iloc[0]
    for score in ("pACC", "mACC", "mIoU", "object_mIoU", "background_mIoU", "images"):
        assert row[score] == swept[score]


@pytest.mark.parametrize("matching", ["image", "rows"])
def test_pads_are_grouping_scores(backbone, samples, matching):
    method = Unsupervised(layers=2, threshold=0.01, matching=matching)
    row = run(backbone, samples, {"pads": method}, vocabulary=VOCABULARY, batch=1).table().iloc[0]
    expected = grouping_scores(backbone, samples, [0.01], options=method, progress=False).iloc[0]
    assert row["protocol"] == "matched"
    for score in ("pACC", "mACC", "mIoU"):
        assert row[score] == pytest.approx(expected[score])


def test_by_class_size_and_image(backbone, samples):
    result = run(backbone, samples, {"one": METHODS["one"]})
    options = OpenVocabulary(layers=3, steps_from_end=4)
    label_maps = [segment(backbone, s.image, s.class_names, options).label_map for s in samples]
    tree = result.by_class().query("`class` == 'tree'").iloc[0]
    hits = union = 0
    for sample, labels in zip(samples, label_maps, strict=True):
        kept = sample.label_map != IGNORE
        names = np.array(sample.class_names)
        true, found = names[np.where(kept, sample.label_map, 0)] == "tree", names[labels] == "tree"
        hits, union = hits + (true & found & kept).sum(), union + ((true | found) & kept).sum()
    assert tree["IoU"] == pytest.approx(hits / union, abs=4e-3)
    assert tree["images"] == 2
    assert result.by_class()["pixels"].sum() == sum((s.label_map != IGNORE).sum() for s in samples)
    # grass is stuff, and every other class covers more than a fifth of its image
    sizes = result.by_size().set_index("size")
    assert sizes["objects"].to_dict() == {"under 1 %": 0, "1 to 5 %": 0, "5 to 20 %": 0, "over 20 %": 5}
    assert sizes["IoU"].isna().tolist() == [True, True, True, False]
    images = result.of_images().set_index("image")["mIoU"]
    total = counted([(samples[1], label_maps[1], samples[1].class_names)])
    assert images[1] == pytest.approx(metrics.miou(total).item(), abs=4e-3)


def test_same_image_again_has_no_interval(backbone, samples):
    table = run(backbone, samples[:1] * 3, METHODS, batch=1).table()
    np.testing.assert_allclose(table.low, table.mIoU)
    np.testing.assert_allclose(table.high, table.mIoU)


def test_metrics_of_ones_own(backbone, samples, tmp_path):
    def right(label_map, truth):
        return (label_map == truth)[truth >= 0].mean()

    methods = {"one": METHODS["one"], "pads": Unsupervised(layers=2, threshold=0.01)}
    found = run(backbone, samples, methods, metrics={"right": right}, out=tmp_path, batch=1)
    images = found.of_images()
    np.testing.assert_allclose(images["right"], images["pACC"])
    table = found.table("right")
    np.testing.assert_allclose(table["right"], images.groupby("method")["right"].mean()[["one", "pads"]])
    assert (table.low < table.right).all()
    assert_frame_equal(read_evaluation(tmp_path).table("right"), table, check_exact=True)
    assert "right" in found.verdict("one", "pads", "right") or "told apart" in found.verdict("one", "pads", "right")
    with pytest.raises(InputError, match="metrics: .* there"):
        run(backbone, samples, methods, metrics={"right": lambda a, b: 1.0}, out=tmp_path, batch=1)
    with pytest.raises(InputError, match=r"a number from metrics\['text'\]"):
        run(backbone, samples, metrics={"text": lambda a, b: "much"})


def test_two_models_are_compared_on_the_same_images(backbone, samples):
    methods = {"one": METHODS["one"]}
    here = run(backbone, samples, methods, batch=1)
    other = run(backbone, samples, {"one": OpenVocabulary(layers=1)}, batch=1)
    row = compare(here, other, names=("here", "there")).iloc[0]
    both = run(backbone, samples, {"one": OpenVocabulary(layers=1), "two": METHODS["one"]}, batch=1)
    expected = both.table().iloc[1]
    np.testing.assert_allclose(
        row[["gain", "low", "high"]].astype(float), expected[["gain", "gain_low", "gain_high"]].astype(float)
    )
    assert row["verdict"] == both.verdict("two", "one").replace("two", "here").replace("one", "there")
    some = compare(here, run(backbone, samples[:2], methods, batch=1))
    assert some["images"].item() == 2
    assert some["gain"].item() == 0
    with pytest.raises(InputError, match="the same samples"):
        compare(here, run(backbone, samples[::-1], methods, batch=1))
    copy = pickle.loads(pickle.dumps(here))
    assert_frame_equal(copy.table(), here.table(), check_exact=True)
    assert repr(copy).startswith("Evaluation(pipeline, 3 images, 1 rows, best mIoU")
    assert "<table" in copy._repr_html_()


def test_limit_and_order(backbone, samples, tmp_path):
    methods = {"one": METHODS["one"]}
    order = np.random.default_rng(5).permutation(3).tolist()
    assert order != [0, 1, 2]
    result = run(backbone, samples, methods, out=tmp_path, limit=2, shuffle_seed=5, batch=1)
    assert result.pixels["image"].values.tolist() == order[:2]
    assert_frame_equal(result.table(), run(backbone, [samples[i] for i in order[:2]], methods, batch=1).table())
    # the rest may follow in the same folder
    whole = run(backbone, samples, methods, out=tmp_path, shuffle_seed=5, batch=1)
    assert whole.done == 1
    assert_frame_equal(whole.table(), run(backbone, samples, methods, shuffle_seed=5, batch=1).table())
    with pytest.raises(InputError, match="shuffle_seed: 5 there, 6 now"):
        run(backbone, samples, methods, out=tmp_path, shuffle_seed=6, batch=1)


def test_folder_says_all(backbone, samples, tmp_path):
    result = run(backbone, samples, METHODS, ["present", "full"], VOCABULARY, out=tmp_path)
    told = json.loads((tmp_path / "result.json").read_text())
    assert told["settings"]["methods"]["spread"]["method"] == {
        "function": "seg4diff_tools.segmentation.attribution.refined",
        "times": 1,
    }
    assert told["settings"]["methods"]["one"]["layers"] == [3]
    assert told["versions"]["torch"] == torch.__version__
    assert told["settings"]["rows"][1] == ["one", "full"]
    assert told["processes"] == 1
    stored = read_evaluation(tmp_path)
    assert_frame_equal(stored.table(), result.table(), check_exact=True)
    assert_frame_equal(stored.by_size(), result.by_size(), check_exact=True)
    assert stored.throughput() == "all images were done before"
    assert_frame_equal(pd.read_csv(tmp_path / "table.csv"), result.table())
    with pytest.raises(InputError, match="methods: .* there"):
        run(backbone, samples, {"one": OpenVocabulary(layers=(1,))}, ["present", "full"], VOCABULARY, out=tmp_path)
    with pytest.raises(CheckpointError, match="folder of an evaluation"):
        read_evaluation(tmp_path / "nowhere")


def test_nothing_that_can_be_read(backbone, samples):
    with pytest.raises(InputError, match="none among 1: .*nowhere"):
        run(backbone, [replace(samples[0], image="nowhere.png")])


def test_a_reading_of_ones_own_is_told_by_its_content(backbone, samples, tmp_path):
    def with_reading(reading, out=tmp_path):
        return run(backbone, samples[:1], {"own": OpenVocabulary(method=reading, layers=(2,))}, out=out)

    def spread(times):
        return lambda *arguments: attribution.refined(*arguments, times=times)

    assert with_reading(spread(1)).table()["mIoU"].item() == with_reading(spread(1)).table()["mIoU"].item()
    with pytest.raises(InputError, match="methods: .* there"):
        with_reading(spread(6))


def test_folders_of_other_runs_and_of_no_image(backbone, samples, tmp_path):
    swept = layer_step_sweep(backbone, samples[:1], layers=[2], out=tmp_path / "sweep", progress=False)
    assert_frame_equal(read_evaluation(tmp_path / "sweep").table(), swept.table(), check_exact=True)
    # refused before a model of that name is looked for
    with pytest.raises(InputError, match="methods: None there"):
        run("no-such/model", samples[:1], METHODS, out=tmp_path / "sweep")
    with pytest.raises(InputError, match="nowhere"):
        run(backbone, [replace(samples[0], image="nowhere.png")], out=tmp_path / "none")
    with pytest.raises(CheckpointError, match="none that could be read: .*nowhere"):
        read_evaluation(tmp_path / "none")


def test_image_without_a_class_counts_nothing(backbone, samples):
    empty = LabeledImage(samples[0].image, (), np.full((23, 31), IGNORE))
    with_it = run(backbone, [empty, *samples], {"one": METHODS["one"]}, batch=4)
    without = run(backbone, samples, {"one": METHODS["one"]}, batch=3)
    assert with_it.table()["mIoU"].item() == without.table()["mIoU"].item()
    assert len(with_it.skipped) == 0


def photographs_in(path):
    """A data set of 11 small photographs as files."""
    generator = np.random.default_rng(0)
    for name in ("images", "masks"):
        (path / name).mkdir(parents=True, exist_ok=True)
    for index in range(11):
        pixels = generator.integers(0, 256, (19, 23, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / "images" / f"{index:02d}.jpg")
        Image.fromarray(generator.integers(0, 5, (19, 23), dtype=np.uint8)).save(path / "masks" / f"{index:02d}.png")
    (path / "classes.txt").write_text("\n".join(VOCABULARY))
    return path


def read(photographs):
    return folder(photographs / "images", photographs / "masks", VOCABULARY)


def damage(path: Path, how: str):
    if how == "truncated image":
        (path / "images/04.jpg").write_bytes((path / "images/04.jpg").read_bytes()[:200])
    elif how == "size":
        Image.new("L", (23, 20)).save(path / "masks/04.png")
    elif how == "value":
        Image.new("L", (23, 19), 7).save(path / "masks/04.png")
    elif how == "truncated mask":
        (path / "masks/04.png").write_bytes((path / "masks/04.png").read_bytes()[:60])
    elif how == "gone":
        (path / "masks/04.png").unlink()


@pytest.mark.parametrize("how", ["truncated image", "truncated mask", "size", "value", "gone"])
def test_damaged_samples_are_named_and_left_out(backbone, tmp_path, how):
    photographs = photographs_in(tmp_path / "set")
    methods, sound = {"one": METHODS["one"]}, read(photographs)
    others = [sound[index] for index in range(11) if index != 4]
    expected = run(backbone, others, methods, vocabulary=VOCABULARY, batch=1).table()
    whole = run(backbone, sound, methods, batch=1).table()
    damage(photographs, how)
    with pytest.warns(UserWarning, match=r"1 of 11 samples .* number 4: .*04\.(jpg|png)"):
        result = run(backbone, sound, methods, out=tmp_path / "run", batch=1)
    table = result.table()
    assert table["skipped"].item() == 1
    assert list(result.skipped) == [4]
    assert_frame_equal(table.drop(columns="skipped"), expected.drop(columns="skipped"))
    assert read_evaluation(tmp_path / "run").table()["skipped"].item() == 1
    # mended, the same run takes it in
    photographs_in(photographs)
    again = run(backbone, sound, methods, out=tmp_path / "run", batch=1)
    assert again.done == 1
    assert_frame_equal(again.table(), whole)


def command(model, photographs, out, *more):
    words = ["-m", "seg4diff_tools", "evaluate", "--model", model, "--dataset", "folder", "--root", photographs]
    words += ["--classes", photographs / "classes.txt", "--out", out, "--layers", 3, "--batch", 2]
    words += ["--protocol", "present", "--protocol", "full", *more]
    return [str(word) for word in words]


QUIET = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def stored(out):
    """The table of a run of the command, and the counts of each image."""
    counts = pd.read_parquet(out / "counts").astype({"true": str, "predicted": str})
    return (out / "table.csv").read_text(), counts.sort_values(list(counts)[:4], ignore_index=True)


@pytest.fixture(scope="module")
def straight(tiny_folder, tmp_path_factory):
    """Photographs, and a run of the command over them without a stop."""
    path = tmp_path_factory.mktemp("straight")
    words = [sys.executable, *command(tiny_folder, photographs_in(path / "set"), path / "run")]
    subprocess.run(words, env=QUIET, check=True, capture_output=True, timeout=300)
    return path / "set", stored(path / "run")


def same(one, other):
    assert one[0] == other[0]
    assert_frame_equal(one[1], other[1])


def test_two_processes_end_with_the_table_of_one(tiny_folder, straight, tmp_path):
    words = [*TWO_PROCESSES, *command(tiny_folder, straight[0], tmp_path / "two")]
    result = subprocess.run(words, env=QUIET, check=False, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("table.csv, result.json") == 1
    same(stored(tmp_path / "two"), straight[1])
    assert json.loads((tmp_path / "two/result.json").read_text())["processes"] == 2


def test_killed_command_goes_on(tiny_folder, straight, tmp_path):
    words, counts = [sys.executable, *command(tiny_folder, straight[0], tmp_path)], tmp_path / "counts"
    with subprocess.Popen(words, env=QUIET, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        # killed as soon as anything is there
        deadline = time.monotonic() + 120
        while not list(counts.glob("*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert 0 < len(list(counts.glob("*.parquet"))) < 6
    subprocess.run(words, env=QUIET, check=True, capture_output=True, timeout=300)
    same(stored(tmp_path), straight[1])


def test_combination_is_the_best_of_plain_means(backbone, samples):
    moves = choose_combination(backbone, samples, [0, 2, 3], (3, 8), progress=False)
    assert moves["mIoU"].is_monotonic_increasing
    assert moves["mIoU"].is_unique

    def plain(layers, steps):
        pairs = []
        for sample in samples:
            parts = [
                torch.from_numpy(
                    segment(
                        backbone, sample.image, sample.class_names, OpenVocabulary(layers=layer, steps_from_end=step)
                    ).class_maps.values
                )
                for layer in layers
                for step in steps
            ]
            labels = masks.label_map(torch.stack(parts).mean(0), sample.label_map.shape)
            pairs.append((sample, labels.numpy(), sample.class_names))
        return metrics.miou(counted(pairs)).item()

    single = {((layer,), (step,)): plain((layer,), (step,)) for layer in (0, 2, 3) for step in (3, 8)}
    first = moves.iloc[0]
    assert single[first["layers"], first["steps_from_end"]] == pytest.approx(max(single.values()), abs=4e-3)
    last = moves.iloc[-1]
    assert plain(last["layers"], last["steps_from_end"]) == pytest.approx(last["mIoU"], abs=4e-3)
    for _, row in moves.iterrows():
        assert list(row["layers"]) == sorted(row["layers"])
        assert set(row["layers"]) <= {0, 2, 3}
    with pytest.raises(InputError, match="at least one sample"):
        choose_combination(backbone, [])
    turned = replace(samples[0], label_map=samples[0].label_map.T)
    for score in (choose_combination, partial(grouping_scores, thresholds=[0.1])):
        with pytest.raises(InputError, match=r"image's size \(23, 31\) for sample 1"):
            score(backbone, [samples[1], turned], progress=False)
    empty = LabeledImage(samples[0].image, (), np.full((23, 31), IGNORE))
    some = choose_combination(backbone, [empty, *samples], [0, 2, 3], (3, 8), progress=False)
    assert_frame_equal(some, moves)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": []}, "got 0 samples"),
        ({"limit": -1}, "limit 1 or more"),
        ({"methods": {}}, "methods, at least one"),
        ({"protocol": []}, "protocol from present, full"),
        ({"protocol": "full"}, "pass vocabulary="),
        ({"protocol": "full", "vocabulary": VOCABULARY[1:]}, "outside it"),
        ({"methods": {"deep": OpenVocabulary(layers=(7,))}}, "layers? from 0 to 4"),
    ],
)
def test_wrong_input_is_refused(backbone, samples, arguments, message):
    with pytest.raises(InputError, match=message):
        run(backbone, **({"samples": samples} | arguments))


def test_gaps_of_a_metric_are_told_by_each_run(backbone, samples, tmp_path):
    def nothing(labels, truth):
        return float("nan")

    for _ in range(2):  # the second reads what the first has stored
        with pytest.warns(
            UserWarning, match=r"metrics\['none'\] is NaN for 3 of 3 images, and its mean leaves them out$"
        ):
            run(backbone, samples, {"one": METHODS["one"]}, metrics={"none": nothing}, out=tmp_path / "run")


def test_a_metric_that_fails_later_costs_its_value_alone(backbone, samples):
    methods, seen = {"one": METHODS["one"]}, []

    def share(labels, truth):
        seen.append(truth.shape)
        return 1 / (2 - len(seen))

    with pytest.warns(UserWarning, match=r"metrics\['share'\] is NaN for 1 of 3 .*sample 1, got ZeroDiv"):
        found = run(backbone, samples, methods, metrics={"share": share})
    np.testing.assert_array_equal(found.values["share"][:, 0], [1, np.nan, -1])
    assert_frame_equal(found.table().drop(columns="share"), run(backbone, samples, methods).table())


# cast by .to, Krea 2 loses the norms that loading keeps in fp32
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight", "ignore:.*upcast_vae:FutureWarning")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", BUILDERS)
def test_every_family_is_segmented_and_scored_in_half_precision(name, dtype, samples):
    sample, options = samples[0], OpenVocabulary(layers=1)
    usual = segment(wrap_pipeline(build(name)), sample.image, sample.class_names, options).class_maps
    backbone = wrap_pipeline(build(name).to(dtype))
    half = segment(backbone, sample.image, sample.class_names, options)
    np.testing.assert_allclose(half.class_maps, usual, rtol=0.2)
    hits = np.sum(half.label_map == sample.label_map)
    for found in (run(backbone, [sample], options), layer_step_sweep(backbone, [sample], layers=1, progress=False)):
        assert found.pixels.sel(count="hits").sum() == hits > 0
