import math
import time

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, jaccard_score
from torchmetrics.functional.classification import multiclass_confusion_matrix

from seg4diff_tools.datasets.labels import IGNORE, renumber, true_classes
from seg4diff_tools.errors import InputError
from seg4diff_tools.evaluation import metrics

# 2 x 5 pixels, classes 0, 1, 2 and one ignored pixel
TARGET = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 0, 0, 255]])
PREDICTION = torch.tensor([[0, 0, 1, 1, 1], [1, 0, 2, 0, 2]])


def test_scores_by_hand():
    counts = metrics.confusion(PREDICTION, TARGET, 3)
    assert counts.tolist() == [[3, 1, 1], [1, 3, 0], [0, 0, 0]]
    assert metrics.pixel_accuracy(counts).item() == pytest.approx(6 / 9)
    assert metrics.class_accuracy(counts)[:2].tolist() == pytest.approx([3 / 5, 3 / 4])
    assert metrics.mean_accuracy(counts).item() == pytest.approx((3 / 5 + 3 / 4) / 2)
    assert metrics.class_iou(counts)[:2].tolist() == pytest.approx([3 / 6, 3 / 5])
    # class 2 is predicted once but never true: it lowers class 0 and adds no zero of its own
    assert math.isnan(metrics.class_iou(counts)[2])
    assert metrics.miou(counts).item() == pytest.approx((3 / 6 + 3 / 5) / 2)
    assert metrics.miou(counts, classes=[1]).item() == pytest.approx(3 / 5)
    assert metrics.miou(counts, classes=[0, 2]).item() == pytest.approx(3 / 6)
    assert math.isnan(metrics.miou(counts, classes=[2]))
    assert math.isnan(metrics.pixel_accuracy(torch.zeros(3, 3, dtype=torch.int64)))


def test_many_predictions_at_once():
    predictions = torch.randint(0, 5, (2, 3, 11, 13))
    target = torch.randint(0, 5, (11, 13))
    target[2, 3:7] = IGNORE
    counts = metrics.confusion(predictions, target, 5)
    assert counts.shape == (2, 3, 5, 5)
    for i in range(2):
        for j in range(3):
            assert torch.equal(counts[i, j], metrics.confusion(predictions[i, j], target, 5))
    assert metrics.miou(counts).shape == (2, 3)


@pytest.mark.parametrize("seed", range(7))
def test_agrees_with_torchmetrics_and_sklearn(seed):
    generator = torch.Generator().manual_seed(seed)
    classes = 2 + seed
    target = torch.randint(0, classes, (17, 19), generator=generator)
    ignored = torch.rand(17, 19, generator=generator) < 0.1 * seed
    target = torch.where(ignored, IGNORE, target)
    prediction = torch.where(
        torch.rand(17, 19, generator=generator) < 0.5, torch.randint(0, classes, (17, 19), generator=generator), target
    )
    prediction = torch.where(prediction == IGNORE, 0, prediction)
    counts = metrics.confusion(prediction, target, classes)
    assert torch.equal(counts, multiclass_confusion_matrix(prediction, target, classes, ignore_index=IGNORE).long())
    true, guessed = target[~ignored].numpy(), prediction[~ignored].numpy()
    assert (counts.numpy() == confusion_matrix(true, guessed, labels=range(classes))).all()
    assert metrics.pixel_accuracy(counts).item() == pytest.approx(accuracy_score(true, guessed))
    assert metrics.mean_accuracy(counts).item() == pytest.approx(balanced_accuracy_score(true, guessed))
    assert metrics.miou(counts).item() == pytest.approx(jaccard_score(true, guessed, average="macro"))


def test_matrices_of_images_add_up():
    target, prediction = torch.randint(0, 3, (2, 11, 13)), torch.randint(0, 3, (2, 11, 13))
    total = sum(metrics.confusion(prediction[i], target[i], 3) for i in range(2))
    assert torch.equal(total, metrics.confusion(prediction.reshape(22, 13), target.reshape(22, 13), 3))


def test_renumber_maps_names_onto_the_vocabulary():
    target = torch.tensor([[0, 1, 255], [2, 1, 0]])
    numbers = renumber(target, ["cat", "grass", "dog"], ["dog", "bus", "cat", "grass"])
    assert numbers.tolist() == [[2, 3, 255], [0, 3, 2]]


def test_vocabularies_of_hundreds_of_classes_need_another_ignore_label():
    numbers = renumber(torch.tensor([[0, -1, 1]]), ["255", "7"], [str(i) for i in range(300)], ignore=-1)
    assert numbers.tolist() == [[255, -1, 7]]
    assert metrics.confusion(numbers.clamp(min=0), numbers, 300, ignore=-1).sum() == 2
    stored = np.array([[0, 255, 1]], np.uint8)
    assert torch.equal(true_classes(stored, ["255", "7"], [str(i) for i in range(300)]), numbers)


def test_table_has_a_row_for_each_class():
    rows = metrics.table(metrics.confusion(PREDICTION, TARGET, 3), ["cat", "dog", "bus"]).set_index("class")
    assert rows.loc["cat", "pixels"] == 5
    assert rows.loc["cat", "predicted"] == 4
    assert rows.loc["dog", "IoU"] == pytest.approx(3 / 5)
    assert math.isnan(rows.loc["bus", "accuracy"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.confusion(PREDICTION[:, :4], TARGET, 3), "label map's size"),
        (lambda: metrics.confusion(PREDICTION, TARGET, 2), "predicted classes from 0 to 1"),
        (lambda: metrics.confusion(PREDICTION, TARGET + 1, 3), "labels from 0 to 2"),
        (lambda: renumber(TARGET, ["cat", "dog"], ["cat", "bus"]), "outside it"),
        (lambda: renumber(TARGET, ["cat"], ["cat", "bus"]), "labels from 0 to 0"),
        (lambda: renumber(TARGET, ["1"], [str(i) for i in range(300)]), "pass ignore=-1"),
        (lambda: metrics.table(torch.zeros(3, 3, dtype=torch.int64), ["cat"]), "3 class_names"),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_matching_by_hand():
    target = torch.tensor([[0, 0, 2, 2, 2, 255]])
    groups = torch.tensor([[4, 4, 4, 1, 0, 3]])
    # group 4 gets class 0; of groups 1 and 0, which have one pixel of class 2 each, the first in order gets it
    named = metrics.match(groups, target, 3)
    assert named[0, :3].tolist() == [0, 0, 0]
    assert sorted(named[0, 3:5].tolist()) == [2, 3]
    assert named[0, 5].item() == 3
    counts = metrics.confusion(named, target, 4)
    assert metrics.pixel_accuracy(counts).item() == 3 / 5
    # class 0: 2 of 3 pixels; class 2: 1 of 3; class 1 and the leftovers are absent
    torch.testing.assert_close(metrics.miou(counts).item(), (2 / 3 + 1 / 3) / 2)


def test_matching_rows_by_hand():
    target = torch.tensor([[0, 0, 1, 255], [1, 1, 1, 0]])
    groups = torch.tensor([[3, 3, 3, 0], [3, 3, 3, 3]])
    # the first row calls group 3 class 0, the second class 1; the other classes get groups that are not in the row
    counts = metrics.match_rows(groups, target, 2)
    assert counts.tolist() == [[2, 1, 0], [1, 3, 0], [0, 0, 0]]
    # as one row, group 3 is class 1 for the whole image
    assert metrics.match_rows(groups.view(1, 8), target.view(1, 8), 2).tolist() == [[0, 3, 0], [0, 4, 0], [0, 0, 0]]


def test_matching_rows_also_names_groups_for_absent_classes():
    target = torch.tensor([[0, 0, 0, 0, 0, 0]])
    groups = torch.tensor([[0, 0, 0, 1, 1, 2]])
    counts = metrics.match_rows(groups, target, 2)
    # one of groups 1 and 2 stands for class 1, which is nowhere; the other has no class
    assert counts[0, 0] == 3
    assert sorted(counts[0, 1:].tolist()) == [1, 2]
    assert counts[1:].sum() == 0


def test_absent_classes_that_were_predicted_may_count():
    counts = metrics.confusion(PREDICTION, TARGET, 3)
    # class 2 has no true pixel, and one pixel was taken for it
    assert metrics.miou(counts, absent="zero").item() == pytest.approx((3 / 6 + 3 / 5 + 0) / 3)
    assert metrics.miou(torch.tensor([[3, 0, 0], [0, 5, 0], [0, 0, 0]]), absent="zero").item() == 1


def test_leaving_one_out_by_a_plain_loop():
    counts = torch.from_numpy(np.random.default_rng(1).integers(0, 50, (7, 2, 3, 3)))
    counts[:6, :, 2] = 0  # a class that one image shows
    found = metrics.leave_one_out(metrics.margins(counts))
    assert found.shape == (2, 7)
    for image in range(7):
        rest = torch.cat([counts[:image], counts[image + 1 :]]).sum(0)
        torch.testing.assert_close(found[:, image], metrics.miou(rest))
    objects = metrics.leave_one_out(metrics.margins(counts), classes=[2])
    assert torch.isnan(objects).tolist() == [[False] * 6 + [True]] * 2


def test_interval_by_hand():
    # the mean of 1, 2, 6: standard error sqrt(7 / 3), t of 2 degrees of freedom 4.3027
    low, high = metrics.interval(3.0, np.array([4.0, 3.5, 1.5]))
    np.testing.assert_allclose([low, high], [3 - 4.302653 * (7 / 3) ** 0.5, 3 + 4.302653 * (7 / 3) ** 0.5], rtol=1e-6)
    wide = metrics.interval(3.0, np.array([4.0, 3.5, 1.5]), comparisons=5)
    narrow = metrics.interval(3.0, np.array([4.0, 3.5, 1.5]), level=0.99)
    np.testing.assert_allclose(wide, narrow)
    alone = metrics.interval(np.array([0.5, 0.2]), np.full((2, 1), np.nan))
    assert np.isnan(alone).all()
    assert alone[0].shape == (2,)


def population(seed, classes, shown, spread):
    """Counts of 1,500 images by two methods: [method image class 3]; frequent and rare, easy and hard classes."""
    generator = np.random.default_rng(seed)
    share, skill = generator.dirichlet(np.full(classes, 2.0)), generator.normal(0.7, 0.8, classes)
    counts = np.zeros((2, 1500, classes, 3))
    for image in range(1500):
        own = generator.choice(classes, shown, replace=False, p=share)
        pixels = np.maximum(1, generator.dirichlet(np.full(shown, 1.5)) * 9216 // 1)
        easy = generator.normal(0, spread)
        for method in range(2):
            chance = 1 / (1 + np.exp(-(skill[own] + easy + generator.normal(0.3 * method, 0.7, shown))))
            hits = pixels * chance // 1
            counts[method, image, own] = np.stack([hits, pixels, hits + np.roll(pixels - hits, 1)], -1)
    return torch.from_numpy(counts)


@pytest.mark.parametrize(("classes", "shown", "spread"), [(12, 3, 0.8), (40, 4, 0.5)])
def test_intervals_hold_the_true_value(classes, shown, spread):
    images = population(3, classes, shown, spread)
    generator = np.random.default_rng(0)
    for name in ("mIoU", "pACC"):
        true = metrics.score(images.sum(1), name).numpy()
        held = []
        for _ in range(400):
            some = images[:, torch.from_numpy(generator.integers(1500, size=64))].movedim(0, 1)
            scores, left = metrics.score(some.sum(0), name).numpy(), metrics.leave_one_out(some, name).numpy()
            low, high = metrics.interval(scores, left)
            worse, better = metrics.interval(scores[1] - scores[0], left[1] - left[0])
            held.append([*((low <= true) & (true <= high)), worse <= true[1] - true[0] <= better])
        assert (np.mean(held, 0) >= 0.93).all(), (name, np.mean(held, 0))


def test_many_images_take_no_time():
    images = population(0, 40, 3, 0.5)[0].repeat(2, 1, 1)
    began = time.perf_counter()
    assert metrics.leave_one_out(images).shape == (3000,)
    assert time.perf_counter() - began < 1


def test_verdict_in_words():
    assert metrics.verdict("a", "b", 0.032, 0.01, 0.054) == "a is better than b by 3.2 points (1.0 to 5.4)"
    assert metrics.verdict("a", "b", -0.032, -0.054, -0.01) == "a is worse than b by 3.2 points (1.0 to 5.4)"
    unsure = "a and b cannot be told apart: the difference is +1.2 points (-0.5 to +2.9)"
    assert metrics.verdict("a", "b", 0.012, -0.005, 0.029) == unsure
    assert "too few images" in metrics.verdict("a", "b", 0.012, float("nan"), float("nan"))


def test_matching_takes_the_most_pixels_in_all():
    target = torch.tensor([[0] * 5 + [1] * 4])
    groups = torch.tensor([[0] * 4 + [1] + [0] * 4])
    # group 0 covers class 0 and 1 four times each, group 1 covers class 0 alone: together 1 + 4 is most
    assert metrics.match(groups, target, 2).tolist() == [[1] * 4 + [0] + [1] * 4]
