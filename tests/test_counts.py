"""ImageCounts on disk: what is written is read, damage and second runs are named, nothing is lost."""

import subprocess
import sys
from dataclasses import replace

import filelock
import numpy as np
import pandas as pd
import pytest

from seg4diff_tools._runs import replace_file
from seg4diff_tools.datasets import LabeledImage
from seg4diff_tools.errors import CheckpointError, InputError
from seg4diff_tools.evaluation.collected import Collected
from seg4diff_tools.evaluation.counts import (
    ImageCounts,
    Shard,
    count_images,
    read_shard,
    stored_shards,
    write_shard,
)


def record(index, true=("cat", "grass"), predicted=("grass", "dog", "cat", "tree"), configurations=3):
    confusion = np.random.default_rng(index).integers(0, 9, (configurations, len(true), len(predicted)))
    confusion[:, :, 1:2] = 0  # a class that is never chosen
    return ImageCounts(index, confusion, true, predicted, ("grass",), f"picture {index}")


def cells(record):
    """Pixels of each configuration, true and predicted class, without empty cells."""
    return {
        (configuration, record.true[row], record.predicted[column]): pixels
        for (configuration, row, column), pixels in np.ndenumerate(record.confusion)
        if pixels
    }


def test_round_trip(tmp_path):
    written = Shard([record(4), record(2, true=("dog",)), record(7, true=(), predicted=("cat",))], {5: "it is damaged"})
    write_shard(tmp_path / "000000.parquet", written)
    read = read_shard(tmp_path / "000000.parquet")
    assert read.faults == {5: "it is damaged"}
    for before, after in zip(written.records, read.records, strict=True):
        assert cells(before) == cells(after)
        assert (after.index, after.true, after.background) == (before.index, before.true, before.background)
        assert after.fingerprint == before.fingerprint
        assert "dog" not in after.predicted


def test_any_table_library_opens_it(tmp_path):
    write_shard(tmp_path / "000000.parquet", Shard([record(4), record(2)], {}))
    table = pd.read_parquet(tmp_path)
    assert list(table.columns) == ["image", "configuration", "true", "predicted", "pixels"]
    cell = table.query("image == 2 and configuration == 1 and true == 'grass' and predicted == 'cat'")
    assert cell["pixels"].item() == record(2).confusion[1, 1, 2]
    assert (table["pixels"] > 0).all()


def test_nothing_read_is_still_a_file(tmp_path):
    write_shard(tmp_path / "000000.parquet", Shard([], {3: "gone"}))
    assert read_shard(tmp_path / "000000.parquet").faults == {3: "gone"}


def collected(records):
    found = Collected(pd.MultiIndex.from_tuples([(name, "present") for name in "abc"], names=["method", "protocol"]))
    found.add(Shard(records, {}))
    return found.evaluation({"model": "none"})


def test_scores_do_not_depend_on_the_order():
    records = [record(0), record(1, true=("tree", "dog", "cat")), record(2, true=("dog",))]
    scores = collected(records).totals
    pd.testing.assert_frame_equal(scores, collected(records[::-1]).totals, check_exact=True)
    hits, true, predicted = ({}, {}, {})
    for each in records:
        for (configuration, row, column), pixels in cells(each).items():
            if configuration == 1:
                true[row] = true.get(row, 0) + pixels
                predicted[column] = predicted.get(column, 0) + pixels
                hits[row] = hits.get(row, 0) + pixels * (row == column)
    ious = {name: hits[name] / (true[name] + predicted.get(name, 0) - hits[name]) for name in true}
    assert scores["mIoU"][1] == pytest.approx(np.mean(list(ious.values())))
    assert scores["background_mIoU"][1] == pytest.approx(ious.pop("grass"))
    assert scores["object_mIoU"][1] == pytest.approx(np.mean(list(ious.values())))
    assert scores["pACC"][1] == pytest.approx(sum(hits.values()) / sum(true.values()))
    taken = collected(records).confusion("b")
    assert taken.loc["cat", "tree"] == sum(cells(each).get((1, "cat", "tree"), 0) for each in records)


def sample(index):
    generator = np.random.default_rng(index)
    pixels = generator.integers(0, 256, (7, 11, 3), dtype=np.uint8)
    return LabeledImage(pixels, ("cat", "grass"), generator.integers(0, 2, (7, 11)), background=("grass",))


def compute(group):
    return [replace(record(each.index), fingerprint=each.fingerprint) for each in group]


def indices(shards):
    return [[each.index for each in shard.records] for shard in shards]


def test_groups_in_any_order(tmp_path):
    samples = [sample(index) for index in range(5)]
    order = [3, 0, 4, 1, 2]
    assert indices(count_images(samples, compute, order, folder=tmp_path, at_once=2)) == [[3, 0], [4, 1], [2]]
    assert indices(stored_shards(tmp_path)) == [[3, 0], [4, 1], [2]]

    def never(group):
        raise AssertionError(group)

    assert indices(count_images(samples, never, order, folder=tmp_path, at_once=2)) == [[3, 0], [4, 1], [2]]
    # fewer images use what is there, and leave it there
    assert indices(count_images(samples, never, order[:1], folder=tmp_path, at_once=2)) == [[3]]
    assert indices(stored_shards(tmp_path)) == [[3, 0], [4, 1], [2]]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"image": "late.jpg"}, "late.jpg"),
        ({"label_map": np.zeros((11, 7), np.int64)}, r"image's size \(7, 11\) for sample 1, got \(11, 7\)"),
        ({"label_map": np.full((7, 11), 2)}, "labels from 0 to 1"),
    ],
)
def test_samples_that_cannot_be_read(tmp_path, broken, message):
    samples = [sample(0), replace(sample(1), **broken), sample(2)]
    with pytest.raises(InputError, match=message):
        list(count_images(samples, compute, at_once=3))
    (shard,) = count_images(samples, compute, folder=tmp_path, at_once=3, skip=True)
    assert indices([shard]) == [[0, 2]]
    assert list(shard.faults) == [1]
    (stored,) = stored_shards(tmp_path)
    assert stored.faults == shard.faults
    # repaired, it is computed with its group, and no fault is left
    (shard,) = count_images([sample(0), sample(1), sample(2)], compute, folder=tmp_path, at_once=3, skip=True)
    assert indices([shard]) == [[0, 1, 2]]
    assert shard.faults == {}
    assert indices(stored_shards(tmp_path)) == [[0, 1, 2]]
    # broken after it was counted, its counts stay
    (shard,) = count_images(samples, compute, folder=tmp_path, at_once=3, skip=True)
    assert indices([shard]) == [[0, 1, 2]]
    assert shard.faults == {}


def test_what_was_counted_stays_when_its_group_is_done_again(tmp_path):
    samples = [sample(index) for index in range(4)]
    broken = {index: [replace(each, image="late.jpg") if i == index else each for i, each in enumerate(samples)]
              for index in (0, 3)}  # fmt: skip
    list(count_images(samples, compute, range(3), folder=tmp_path, at_once=4, skip=True))
    # the group grows by an image, and another one of it cannot be read any more
    (shard,) = count_images(broken[0], compute, folder=tmp_path, at_once=4, skip=True)
    assert indices([shard]) == indices(stored_shards(tmp_path)) == [[0, 1, 2, 3]]
    assert shard.faults == {}


def test_a_smaller_run_that_mends_leaves_the_rest(tmp_path):
    samples = [sample(index) for index in range(4)]
    broken = [replace(samples[0], image="late.jpg"), *samples[1:3], replace(samples[3], image="late.jpg")]
    list(count_images(broken, compute, folder=tmp_path, at_once=4, skip=True))
    (shard,) = count_images(samples, compute, range(2), folder=tmp_path, at_once=4, skip=True)
    assert indices([shard]) == [[0, 1]]
    assert shard.faults == {}
    (stored,) = stored_shards(tmp_path)
    assert indices([stored]) == [[0, 1, 2]]
    assert list(stored.faults) == [3]


def test_second_run_on_a_folder_is_refused(tmp_path):
    holder = (
        "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); "
        "print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", holder, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="no other run writes to"):
            list(count_images([sample(0)], compute, folder=tmp_path))
        other.kill()
    # a run that was killed holds nothing
    assert indices(count_images([sample(0)], compute, folder=tmp_path)) == [[0]]
    assert not filelock.FileLock(tmp_path / ".lock").is_locked


@pytest.mark.parametrize("content", [b"", b"PAR1 and so on", None])
def test_damaged_files_are_named(tmp_path, content):
    list(count_images([sample(0)], compute, folder=tmp_path))
    path = tmp_path / "counts/000000.parquet"
    path.write_bytes(path.read_bytes()[:-9] if content is None else content)
    with pytest.raises(CheckpointError, match="000000.parquet .*delete it and run again"):
        list(count_images([sample(0)], compute, folder=tmp_path))


def test_table_of_another_kind_is_named(tmp_path):
    pd.DataFrame({"image": [1]}).to_parquet(tmp_path / "000000.parquet")
    with pytest.raises(CheckpointError, match="delete it"):
        read_shard(tmp_path / "000000.parquet")


def test_a_file_that_cannot_be_written_keeps_what_was_there(tmp_path):
    resource = pytest.importorskip("resource", reason="files are limited by a POSIX call")
    path = tmp_path / "table.csv"
    replace_file(path, b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        with pytest.raises(CheckpointError, match="File too large.*make room"):
            replace_file(path, b"after")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
