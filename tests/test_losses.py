"""Mask losses by hand, and the matching against the loss of every pair."""

import itertools
import math

import pytest
import torch

from seg4diff_tools.errors import InputError
from seg4diff_tools.magnet.losses import dice_loss, focal_loss, match_masks, matching_cost


def logit(*chances: float) -> torch.Tensor:
    return torch.tensor([chances]).logit()


def test_focal_loss_by_hand():
    mask = torch.tensor([[True, False]])
    # p of the truth: 0.8 inside, 0.6 outside
    expected = (0.25 * 0.2**2 * -math.log(0.8) + 0.75 * 0.4**2 * -math.log(0.6)) / 2
    assert focal_loss(logit(0.8, 0.4), mask).item() == pytest.approx(expected, rel=1e-5)


def test_focal_loss_as_released_takes_the_logit_for_a_probability():
    mask = torch.tensor([[True, False]])
    inside, outside = 3.0, -2.0
    # weights (1 - 3)^2 and (-2)^2, where published ones would be near 0
    expected = (0.25 * 4 * math.log1p(math.exp(-3)) + 0.75 * 4 * math.log1p(math.exp(-2))) / 2
    found = focal_loss(torch.tensor([[inside, outside]]), mask, focal="released").item()
    assert found == pytest.approx(expected, rel=1e-5)
    assert found > 50 * focal_loss(torch.tensor([[inside, outside]]), mask).item()


def test_gamma_0_is_weighted_cross_entropy():
    mask = torch.tensor([[True, True, False]])
    expected = 0.5 * -(math.log(0.9) + math.log(0.3) + math.log(0.8)) / 3
    assert focal_loss(logit(0.9, 0.3, 0.2), mask, alpha=0.5, gamma=0.0).item() == pytest.approx(expected, rel=1e-5)


def test_dice_loss_by_hand():
    mask = torch.tensor([[True, True, False]])
    # overlap 0.5 + 0.25, sums 1.5 and 2
    assert dice_loss(logit(0.5, 0.25, 0.75), mask).item() == pytest.approx(1 - 2.5 / 4.5, rel=1e-5)


def test_dice_loss_of_a_perfect_and_of_an_empty_mask():
    assert dice_loss(torch.tensor([[99.0, -99.0]]), torch.tensor([[True, False]])).item() == pytest.approx(0)
    assert dice_loss(torch.tensor([[-99.0, -99.0]]), torch.tensor([[False, False]])).item() == pytest.approx(0)


@pytest.mark.parametrize("focal", ["published", "released"])
def test_cost_of_each_pair_is_its_loss(focal):
    generator = torch.Generator().manual_seed(0)
    maps, masks = torch.randn(5, 31, generator=generator) * 3, torch.rand(3, 31, generator=generator) > 0.6
    cost = matching_cost(maps, masks, focal_weight=0.3, dice_weight=0.7, focal=focal)
    for row, column in itertools.product(range(5), range(3)):
        one, true = maps[row : row + 1], masks[column : column + 1]
        expected = 0.3 * focal_loss(one, true, focal=focal) + 0.7 * dice_loss(one, true)
        torch.testing.assert_close(cost[row, column], expected[0])


def test_match_finds_the_cheapest_pairs():
    generator = torch.Generator().manual_seed(1)
    cost = torch.rand(5, 3, generator=generator)
    rows, columns = match_masks(cost)
    best = min(
        sum(cost[row, column].item() for column, row in enumerate(chosen))
        for chosen in itertools.permutations(range(5), 3)
    )
    assert cost[rows, columns].sum().item() == pytest.approx(best)
    assert sorted(columns.tolist()) == [0, 1, 2]
    assert len(set(rows.tolist())) == 3


def test_fewer_maps_than_masks_leave_masks_over():
    rows, columns = match_masks(torch.tensor([[3.0, 1.0, 2.0]]))
    assert rows.tolist() == [0]
    assert columns.tolist() == [1]


@pytest.mark.parametrize("loss", [focal_loss, dice_loss])
def test_sizes_that_differ_are_refused(loss):
    with pytest.raises(
        InputError, match=r"logits for each of the masks, Tensor .*shape \(2, 5\), got Tensor .*shape \(2, 7\)"
    ):
        loss(torch.zeros(2, 7), torch.zeros(2, 5, dtype=torch.bool))


def test_matching_refuses_other_places_and_costs_that_are_no_numbers():
    with pytest.raises(InputError, match="masks of as many places as logits have, 7, got 5"):
        matching_cost(torch.zeros(2, 7), torch.zeros(2, 5, dtype=torch.bool))
    with pytest.raises(InputError, match="expected finite costs"):
        match_masks(torch.tensor([[math.nan]]))
