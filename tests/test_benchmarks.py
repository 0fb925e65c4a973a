"""The benchmarks' own arithmetic; what they measure is run by hand."""

from benchmarks.gpu import Size, floor


def test_the_counted_floor_by_hand():
    # 2 heads of 3 channels, 4 image and 5 text tokens
    counted = floor(Size(directions=(1, 0), expert=0, heads=2, dim=3, side=2, text=5))
    # q k^T of 4 x 5 pairs over 6 channels, 2 operations each, and 2 for each of 4 x 5 x 2 exponentials
    assert counted["recording"] == 240 + 80
    # 9 tokens: 24 w^2 = 864 and 4 n w = 216 each
    assert counted["direction"] == 9 * (864 + 216)
    assert counted["ratio"] == 1 + 320 / 9720
    # queries and keys of 9 tokens in 2 bytes, 4 x 2 log-sum-exps and 4 x 5 numbers of the map in 4
    assert counted["bytes"] == 108 + 32 + 80
    assert counted["map bytes"] == 2 * 2 * 81
