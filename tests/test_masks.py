import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from seg4diff_tools.attention.tokens import span_weights
from seg4diff_tools.errors import InputError
from seg4diff_tools.segmentation import masks


def test_span_weights_average_the_tokens_of_each_class():
    tokens = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    weights = span_weights([(1, 2), (4,), (0, 2, 4)], 5)
    torch.testing.assert_close(tokens @ weights, torch.tensor([3.0, 16.0, 7.0]))


@pytest.mark.parametrize(
    ("spans", "message"), [([], "at least one class"), ([(0,), ()], "empty span"), ([(0, 5)], "from 0 to 4")]
)
def test_span_weights_refuse_wrong_spans(spans, message):
    with pytest.raises(InputError, match=message):
        span_weights(spans, 5)


def test_minmax_scales_each_map_on_its_own():
    maps = torch.tensor([[[2.0, 4.0], [3.0, 2.0]], [[-1.0, 0.0], [3.0, 1.0]], [[5.0, 5.0], [5.0, 5.0]]])
    expected = torch.tensor([[[0.0, 1.0], [0.5, 0.0]], [[0.0, 0.25], [1.0, 0.5]], [[0.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(masks.minmax(maps), expected)


def test_upsample_by_hand():
    # 1 x 2 -> 1 x 4: pixel centers lie at 1/4 and 3/4 between the two tokens, the outer ones are clamped
    maps = torch.tensor([[[0.0, 8.0]]])
    torch.testing.assert_close(masks.upsample(maps, (1, 4)), torch.tensor([[[0.0, 2.0, 6.0, 8.0]]]))


def test_upsample_agrees_with_pillow():
    maps = torch.rand(2, 3, 7, 5)
    ours = masks.upsample(maps, (53, 41))
    theirs = np.asarray(Image.fromarray(maps[1, 2].numpy()).resize((41, 53), Image.Resampling.BILINEAR))
    torch.testing.assert_close(ours[1, 2], torch.tensor(theirs), atol=1e-5, rtol=0)


def test_upsample_refuses_an_empty_size():
    with pytest.raises(InputError, match="size 1 or more, got 0"):
        masks.upsample(torch.zeros(2, 3, 5), (0, 7))


def test_label_map_is_argmax_with_the_first_of_equals():
    maps = torch.rand(2, 3, 7, 11, 13)
    maps[:, :, 4] = maps[:, :, 2]
    assert torch.equal(masks.label_map(maps), maps.argmax(-3))
    assert not (masks.label_map(maps) == 4).any()


def test_label_map_upsamples_first():
    maps = torch.rand(2, 3, 7, 5)
    labels = masks.label_map(maps, (17, 19))
    assert labels.shape == (2, 17, 19)
    assert torch.equal(labels, masks.upsample(maps, (17, 19)).argmax(-3))


def test_label_map_refuses_nan():
    maps = torch.rand(3, 5, 7)
    maps[1, 2, 3] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        masks.label_map(maps)
    with pytest.raises(InputError, match="float16"):
        masks.label_map(torch.full((3, 5, 7), torch.nan))


def test_label_map_gives_all_to_the_first_class_without_a_token():
    # what NumPy's and torch's argmax do with NaN
    maps = torch.rand(2, 5, 7, 11)
    maps[1, 2:4] = torch.nan
    labels = masks.label_map(maps, (13, 17))
    assert torch.equal(labels[0], masks.label_map(maps[0], (13, 17)))
    assert (labels[1] == 2).all()


def divergence(p: list[float], q: list[float]) -> float:
    return sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True)) / 2


def test_merging_by_hand():
    # stretched to 0..1, the first and third map are the same, the second is their mirror image
    maps = torch.tensor([[[0.0, 1.0]], [[5.0, 3.0]], [[2.0, 4.0]]])
    merged, group = masks.merge_maps(maps, threshold=0.1)
    high = math.e / (1 + math.e)
    assert group.tolist() == [0, 1, 0]
    torch.testing.assert_close(merged, torch.tensor([[[1 - high, high]], [[high, 1 - high]]]))
    apart = divergence([high, 1 - high], [1 - high, high])
    torch.testing.assert_close(torch.tensor(apart), torch.tensor(0.462117), rtol=0, atol=1e-6)
    assert len(masks.merge_maps(maps, threshold=apart + 1e-3)[0]) == 1
    assert len(masks.merge_maps(maps, threshold=apart - 1e-3)[0]) == 2


@pytest.mark.parametrize("threshold", [0.0, 0.005, 0.02, 0.05, 0.2])
def test_merging_follows_its_plain_definition(threshold):
    maps = torch.randn(23, 5, 7, generator=torch.Generator().manual_seed(2))
    flat = masks.minmax(maps).flatten(1).double().softmax(-1)
    groups = [[i] for i in range(23)]
    for _ in range(3):
        waiting, new = list(range(len(flat))), []
        while waiting:
            first = waiting[0]
            near = [i for i in waiting if i == first or divergence(flat[first].tolist(), flat[i].tolist()) <= threshold]
            new.append(near)
            waiting = [i for i in waiting if i not in near]
        groups = [[token for i in near for token in groups[i]] for near in new]
        flat = torch.stack([flat[near].mean(0) for near in new])
    merged, group = masks.merge_maps(maps, threshold)
    torch.testing.assert_close(merged.flatten(1).double(), flat, rtol=0, atol=1e-6)
    assert [sorted(each) for each in groups] == [(group == i).nonzero().flatten().tolist() for i in range(len(groups))]


@pytest.mark.parametrize("threshold", [0.005, 0.02, 0.05, 0.2])
def test_merging_of_the_released_code_follows_its_plain_definition(threshold):
    maps = torch.rand(23, 5, 7, generator=torch.Generator().manual_seed(3)).double()
    stretched = (maps - maps.min(0).values) / (maps.max(0).values - maps.min(0).values + 1e-6)
    flat = stretched.flatten(1).softmax(-1)
    first: dict[int, int] = {}
    expected: list[torch.Tensor] = []
    for anchor in range(23):
        if anchor not in first:
            near = [i for i in range(23) if divergence(flat[anchor].tolist(), flat[i].tolist()) < threshold]
            first = dict.fromkeys(near, len(expected)) | first
            expected.append(flat[near].mean(0))
    merged, group = masks.merge_maps(maps, threshold, merging="released")
    torch.testing.assert_close(merged.flatten(1).double(), torch.stack(expected), rtol=0, atol=1e-6)
    assert group.tolist() == [first[i] for i in range(23)]


def test_merging_refuses():
    with pytest.raises(InputError, match="none of them empty, got torch.float32 of shape"):
        masks.merge_maps(torch.zeros(0, 2, 3))
    with pytest.raises(InputError, match="threshold, a number from 0"):
        masks.merge_maps(torch.zeros(1, 2, 3), threshold=-0.1)
    unchecked: Any = getattr(masks.merge_maps, "__wrapped__", masks.merge_maps)
    with pytest.raises(InputError, match="merging, one of 'published', 'released'"):
        unchecked(torch.zeros(1, 2, 3), merging="other")
