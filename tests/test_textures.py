"""Backgrounds: each one is its own kind of stuff, drawn anew from noise alone."""

import pytest
import torch

from seg4diff_tools.scenes.textures import NOISE_SIDE, TEXTURES, draw

SIDE = 47


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 2, NOISE_SIDE, NOISE_SIDE, generator=torch.Generator().manual_seed(seed))


def test_there_are_eight_kinds():
    assert len(TEXTURES) >= 8


@pytest.mark.parametrize("name", TEXTURES)
def test_a_texture_follows_from_its_noise(name):
    fields = noise(5)
    pictures = draw(name, fields, SIDE)
    assert pictures.shape == (5, 3, SIDE, SIDE)
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    torch.testing.assert_close(draw(name, fields.clone(), SIDE), pictures, rtol=0, atol=0)
    torch.testing.assert_close(draw(name, fields[3:4], SIDE), pictures[3:4], rtol=0, atol=1e-6)
    for other in range(1, 5):
        assert (pictures[0] - pictures[other]).abs().mean() > 0.005
    # a texture is not one flat color
    assert (pictures.flatten(2).std(-1).amax(1) > 0.01).all()


def test_kinds_can_be_told_apart():
    fields = noise(16)
    looks = {}
    for name in TEXTURES:
        pictures = draw(name, fields, SIDE).flatten(2)
        looks[name] = torch.cat([pictures.mean(-1), pictures.std(-1)], 1)
    centers = torch.stack([look.mean(0) for look in looks.values()])
    nearest = [torch.cdist(look, centers).argmin(1) for look in looks.values()]
    right = torch.stack([(found == number).float().mean() for number, found in enumerate(nearest)])
    assert right.min() > 0.9, dict(zip(TEXTURES, right.tolist(), strict=True))
