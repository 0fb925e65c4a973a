"""Distances between sets of pictures: formulas on numbers worked out by hand, and features that are the CLIP's own."""

import math

import numpy as np
import pytest
import torch
from tiny_run import tiny_clip
from torchmetrics.image.kid import KernelInceptionDistance

from seg4diff_tools.backbones.checkpoints import MINI
from seg4diff_tools.errors import InputError
from seg4diff_tools.generation.clip import load_clip
from seg4diff_tools.generation.distances import clip_features, frechet_distance, kernel_distance, picture_distances
from seg4diff_tools.scenes import Scenes


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return load_clip(tiny_clip(tmp_path_factory.mktemp("model")))


def cross(a: float, b: float, center: tuple[float, float] = (0.0, 0.0)) -> torch.Tensor:
    """Four points with this mean and the covariance diag(2 a^2 / 3, 2 b^2 / 3)."""
    return torch.tensor([[a, 0.0], [-a, 0.0], [0.0, b], [0.0, -b]]) + torch.tensor(center)


def test_frechet_distance_by_hand():
    # one dimension: means 0 and 3, variances 2 and 8: 9 + (sqrt 8 - sqrt 2)^2
    assert frechet_distance(torch.tensor([[-1.0], [1.0]]), torch.tensor([[1.0], [5.0]])) == pytest.approx(11)
    one, other = cross(1, 2), cross(3, 2, (1, -2))
    expected = 1 + 4 + (3 * math.sqrt(2 / 3) - math.sqrt(2 / 3)) ** 2
    assert frechet_distance(one, other) == pytest.approx(expected)
    # a turn moves both sets alike
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    assert frechet_distance(one @ turn, other @ turn) == pytest.approx(expected, rel=1e-5)


def test_equal_sets_have_no_frechet_distance():
    features = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    # also where there are fewer features than dimensions
    assert frechet_distance(features[:3], features[:3]) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_by_hand():
    # (xy + 1)^3: within {0, 1} 1, within {1, 2} 27, between them 1, 1, 8 and 27
    one, other = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    assert kernel_distance(one, other) == pytest.approx(1 + 27 - 2 * 37 / 4)
    assert kernel_distance(other, one) == pytest.approx(9.5)
    # sets of two sizes: within {0, 0, 0} 1, between them 1
    assert kernel_distance(torch.zeros(3, 1), other) == pytest.approx(1 + 27 - 2)


def test_kernel_distance_is_kid_of_one_subset():
    random = torch.Generator().manual_seed(0)
    one, other = torch.randn(31, 5, generator=random), torch.randn(31, 5, generator=random) + 0.3
    with pytest.warns(UserWarning, match="save all extracted features"):
        kid = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=1, subset_size=31)
    kid.update(one, real=True)
    kid.update(other, real=False)
    assert kernel_distance(one, other) == pytest.approx(kid.compute()[0].item(), rel=1e-4)


def test_kernel_distance_has_no_bias():
    random = torch.Generator().manual_seed(0)
    values = [kernel_distance(*torch.randn(2, 20, 3, generator=random)) for _ in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(len(values))
    assert min(values) < 0


def test_features_are_those_before_normalization(clip):
    images = list(np.random.default_rng(0).integers(0, 256, (5, 28, 28, 3), dtype=np.uint8))
    features = clip_features(clip, images, batch=2)
    assert features.shape == (5, 13)
    units = torch.nn.functional.normalize(features, dim=-1)
    torch.testing.assert_close(units, clip.embed_images(images), rtol=0, atol=1e-6)
    assert (features.norm(dim=-1) - 1).abs().max() > 0.01


def test_other_pictures_are_further_away():
    clip = load_clip(MINI)
    pictures = [scene.image for scene in Scenes("test", 60)]
    negatives = [255 - image for image in pictures[:30]]
    alike, other = (picture_distances(clip, images, pictures[30:]) for images in (pictures[:30], negatives))
    assert alike.distance.tolist() == ["Fréchet distance of CLIP features", "kernel distance of CLIP features"]
    assert (other.value > 1.5 * alike.value).all()
    assert alike[["images", "reference"]].to_numpy().tolist() == [[30, 30]] * 2


def test_bad_input_is_one_clear_error(clip):
    with pytest.raises(InputError, match="at least two features of the same length, got"):
        kernel_distance(torch.zeros(1, 3), torch.zeros(4, 3))
    with pytest.raises(InputError, match=r"got \[4, 3\] and \[4, 2\]"):
        frechet_distance(torch.zeros(4, 3), torch.zeros(4, 2))
    with pytest.raises(InputError, match="expected finite features"):
        frechet_distance(torch.zeros(4, 2), torch.full((4, 2), math.nan))
    with pytest.raises(InputError, match="at least one image"):
        clip_features(clip, [])
