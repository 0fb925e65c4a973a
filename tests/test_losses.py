"""Mask losses by hand, and the matching against the loss of every pair."""

import itertools
import math

import pytest
import torch

from seg4diff_tools.errors import InputError
from seg4diff_tools.magnet.losses import (
    agree_loss,
    apart_loss,
    dice_loss,
    divergence,
    entropy_loss,
    focal_loss,
    match_masks,
    matching_cost,
    places_loss,
    regions_loss,
)


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


def test_places_loss_by_hand():
    maps = torch.tensor([[[0.2, 0.3, 0.5], [0.1, 0.1, 0.2]], [[1.0, 0.0, 0.0], [0.0, 0.0, 4.0]]])
    shares = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.5, 1.0]])
    # shares inside: (0.2 + 0.3) / 1, (0.05 + 0.2) / 0.4; 1, 1
    expected = torch.tensor([[0.5**2, 0.375**2], [0.0, 0.0]])
    torch.testing.assert_close(places_loss(maps, shares), expected)
    # attention as a whole does not matter
    torch.testing.assert_close(places_loss(maps * 7, shares), expected)


def test_entropy_loss_by_hand():
    maps, shares = torch.tensor([[0.8, 0.4]]), torch.tensor([[1.0, 0.25]])
    expected = -(math.log(0.8) + 0.25 * math.log(0.4) + 0.75 * math.log(0.6)) / 2
    assert entropy_loss(maps, shares).item() == pytest.approx(expected, rel=1e-6)


def test_divergence_by_hand():
    # p = (0.5, 0.5), q = (1, 0), m = (0.75, 0.25); in units of log 2
    kl_p = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    expected = (kl_p + math.log(1 / 0.75)) / 2 / math.log(2)
    maps = torch.tensor([[2.0, 2.0], [3.0, 0.0]])
    assert divergence(maps, power=1.0).item() == pytest.approx(expected, rel=1e-5)
    # cubed: (8, 8) and (27, 0) are the same distributions, (1, 2) is (1, 8) / 9
    assert divergence(maps).item() == pytest.approx(expected, rel=1e-5)
    cubed = divergence(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    plain = divergence(torch.tensor([[1.0, 8.0], [3.0, 0.0]]), power=1.0)
    assert cubed.item() == pytest.approx(plain.item(), rel=1e-5)
    # small attention is attention too
    assert divergence(maps * 1e-9).item() == pytest.approx(expected, rel=1e-4)


def test_words_agree_and_stand_apart():
    same, apart = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    assert apart_loss(same).item() == pytest.approx(1, abs=1e-5)
    assert apart_loss(apart).item() == pytest.approx(0, abs=1e-5)
    assert apart_loss(same[:1]).item() == 0
    tokens = torch.cat([same, apart, torch.ones(1, 3)])
    torch.testing.assert_close(
        agree_loss(tokens, [[0, 1], [2, 3], [4]]), torch.tensor([0.0, 1.0, 0.0]), atol=1e-5, rtol=0
    )
    between = agree_loss(tokens, [[0, 1, 2]])
    assert 0 < between.item() < 1


def test_regions_loss_by_hand():
    errors, shares = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.5, 0.5]])
    assert regions_loss(errors, shares).tolist() == pytest.approx([1.5, 3.0])


def restated(name: str, maps: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """A loss place by place, as its definition reads."""
    total = maps.new_zeros(())
    if name in ("places", "entropy"):
        for one, mask in zip(maps, shares, strict=True):
            if name == "places":
                inside = sum(a * m for a, m in zip(one, mask, strict=True)) / sum(one)
                total = total + (1 - inside) ** 2
            else:
                costs = [m * -a.log() + (1 - m) * -(1 - a).log() for a, m in zip(one, mask, strict=True)]
                total = total + sum(costs) / len(costs)
        return total
    each = [[a**3 for a in one] for one in maps]
    each = [[a / sum(one) for a in one] for one in each]
    mean = [sum(column) / len(each) for column in zip(*each, strict=True)]
    distance = sum(a * (a / m).log() for one in each for a, m in zip(one, mean, strict=True))
    return distance / len(each) / math.log(len(each))


@pytest.mark.parametrize("name", ["places", "entropy", "apart", "agree"])
def test_values_and_gradients_are_those_of_the_definition(name):
    generator = torch.Generator().manual_seed(5)
    maps = (torch.rand(3, 11, generator=generator, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
    shares = torch.rand(3, 11, generator=generator, dtype=torch.float64)
    losses = {
        "places": lambda: places_loss(maps, shares).sum(),
        "entropy": lambda: entropy_loss(maps, shares).sum(),
        "apart": lambda: 1 - apart_loss(maps),
        "agree": lambda: agree_loss(maps, [[0, 1, 2]]).sum(),
    }
    found, expected = losses[name](), restated(name, maps, shares)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    ours, theirs = (torch.autograd.grad(value, maps)[0] for value in (found, expected))
    assert theirs.abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_gradients_of_empty_attention_are_finite():
    maps = torch.zeros(2, 5, requires_grad=True)
    total = places_loss(maps, torch.ones(2, 5)).sum() + entropy_loss(maps, torch.ones(2, 5)).sum() + apart_loss(maps)
    (gradient,) = torch.autograd.grad(total, maps)
    assert gradient.isfinite().all()
