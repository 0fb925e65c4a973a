import math

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
        (lambda: metrics.table(torch.zeros(3, 3, dtype=torch.int64), ["cat"]), "3 class names"),
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


def test_bootstrap_draws_images():
    confusions = torch.randint(0, 100, (7, 3, 3), generator=torch.Generator().manual_seed(0))
    draws = metrics.bootstrap_miou(confusions, draws=300, seed=5)
    assert draws.shape == (300,)
    assert torch.equal(draws, metrics.bootstrap_miou(confusions, draws=300, seed=5))
    assert not torch.equal(draws, metrics.bootstrap_miou(confusions, draws=300, seed=6))
    assert draws.min() < metrics.miou(confusions.sum(0)) < draws.max()
    # every draw of equal images is the set itself
    equal = metrics.bootstrap_miou(confusions[:1].expand(5, 3, 3), draws=11)
    torch.testing.assert_close(equal, metrics.miou(confusions[0]).expand(11))


def test_bootstrap_by_a_plain_loop():
    counts = torch.from_numpy(np.random.default_rng(1).integers(0, 50, (7, 3, 3)))
    counts[:5, 2] = 0  # a class that some draws miss
    drawn = torch.randint(7, (13, 7), generator=torch.Generator().manual_seed(0))
    assert (drawn < 5).all(1).any()
    expected = []
    for draw in drawn:
        total = sum(counts[image] for image in draw)
        ious = [
            total[k, k] / (total[k].sum() + total[:, k].sum() - total[k, k]) for k in range(3) if total[k].sum() > 0
        ]
        expected.append(float(sum(ious) / len(ious)))
    np.testing.assert_allclose(metrics.bootstrap_miou(counts, 13), expected, rtol=1e-6)


def test_bootstrap_with_two_images_by_hand():
    # one pixel each, one right and one wrong: of two draws 0, 1 or 2 are right
    confusions = torch.tensor([[[1, 0], [0, 0]], [[0, 1], [0, 0]]])
    draws = metrics.bootstrap_miou(confusions, draws=400)
    shares = [(draws == value).double().mean().item() for value in (0, 0.5, 1)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.08)


def test_interval_reflects_the_draws():
    low, high = metrics.interval(np.array([0.5, 0.2]), np.stack([np.linspace(0.5, 0.7, 101), np.linspace(0, 0.4, 101)]))
    np.testing.assert_allclose(low, [0.305, 0.01])
    np.testing.assert_allclose(high, [0.495, 0.39])


def test_interval_makes_up_for_classes_that_few_images_show():
    # of 400 images every one shows an easy class, and every twentieth a hard one
    generator = np.random.default_rng(0)
    images = np.zeros((400, 9, 3))
    images[:, 0] = [90, 100, 100]
    for hard in range(1, 9):
        shown = generator.random(400) < 0.05
        images[shown, hard, 1:] = 50
        images[shown, hard, 0] = generator.integers(0, 30, shown.sum())
    counts = torch.from_numpy(images)

    def score(some):
        hits, true, predicted = some.sum(0).T
        return (hits / (true + predicted - hits)).nanmean().item()

    held = []
    for _ in range(60):
        some = counts[generator.choice(400, 24, replace=False)]
        drawn = metrics.bootstrap(*some.unbind(-1), draws=200, seed=1).numpy()
        ends = metrics.interval(score(some), drawn), np.quantile(drawn, [0.025, 0.975])
        held.append([low <= score(counts) <= high for low, high in ends])
    reflected, plain = np.mean(held, axis=0)
    assert reflected > 0.75
    assert plain < 0.6


def test_matching_takes_the_most_pixels_in_all():
    target = torch.tensor([[0] * 5 + [1] * 4])
    groups = torch.tensor([[0] * 4 + [1] + [0] * 4])
    # group 0 covers class 0 and 1 four times each, group 1 covers class 0 alone: together 1 + 4 is most
    assert metrics.match(groups, target, 2).tolist() == [[1] * 4 + [0] + [1] * 4]
