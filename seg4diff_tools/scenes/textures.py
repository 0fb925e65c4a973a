"""Procedural textures of eight backgrounds; each scene's noise varies them."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

NOISE_SIDE = 32
"""Side of the random fields (two per scene, uniform in 0..1) that a texture is drawn from."""

Field = Float[Tensor, "batch side side"]
Picture = Float[Tensor, "batch 3 side side"]


def _resize(field: Tensor, side: int) -> Field:
    return torch.nn.functional.interpolate(field[:, None], size=(side, side), mode="bicubic", antialias=True)[:, 0]


def _between(low: tuple[float, float, float], high: tuple[float, float, float], mix: Field) -> Picture:
    start, end = (mix.new_tensor(color)[None, :, None, None] for color in (low, high))
    return start + (end - start) * mix.clamp(0, 1)[:, None]


def _grass(x: Field, y: Field, soft: Field, fine: Field) -> Picture:
    blades = 0.5 + 0.5 * torch.sin(70 * x + 9 * soft + 6 * fine)
    return _between((0.16, 0.42, 0.12), (0.45, 0.72, 0.25), 0.35 * blades + 0.3 * fine + 0.35 * soft)


def _sand(x: Field, y: Field, soft: Field, fine: Field) -> Picture:
    dunes = 0.5 + 0.5 * torch.sin(22 * y + 10 * soft)
    return _between((0.76, 0.62, 0.38), (0.96, 0.86, 0.62), 0.5 * dunes + 0.5 * fine)


def _water(x: Field, y: Field, soft: Field, fine: Field) -> Picture:
    waves = 0.5 + 0.5 * torch.sin(40 * y + 3 * torch.sin(9 * x + 6 * soft))
    return _between((0.08, 0.36, 0.62), (0.42, 0.74, 0.88), 0.65 * waves + 0.35 * soft)


def _snow(x: Field, y: Field, soft: Field, fine: Field) -> Picture:
    return _between((0.80, 0.86, 0.94), (1.0, 1.0, 1.0), 1.4 * soft - 0.4 + 0.25 * fine)


def _road(x: Field, y: Field, soft: Field, fine: Field) -> Picture:
    dashes = ((x - 0.5 + 0.3 * (soft.mean((1, 2), keepdim=True) - 0.5)).abs() < 0.025) & ((4 * y) % 1 < 0.6)
    return torch.where(dashes[:, None], 0.92, _between((0.24, 0.24, 0.26), (0.44, 0.44, 0.46), 0.7 * fine + 0.3 * soft))


def _brick(x: Field, y: Field, soft: Field, fine: Field) -> Picture:
    row = torch.floor(9 * y)
    mortar = ((9 * y) % 1 < 0.16) | ((4.5 * x + 0.5 * (row % 2)) % 1 < 0.08)
    return torch.where(mortar[:, None], 0.78, _between((0.52, 0.18, 0.13), (0.78, 0.36, 0.26), 0.5 * fine + 0.5 * soft))


def _wood(x: Field, y: Field, soft: Field, fine: Field) -> Picture:
    grain = 0.5 + 0.5 * torch.sin(14 * x + 16 * soft + 1.5 * y)
    return _between((0.36, 0.21, 0.10), (0.66, 0.44, 0.24), 0.75 * grain + 0.25 * fine)


def _night_sky(x: Field, y: Field, soft: Field, fine: Field) -> Picture:
    return torch.where((fine > 0.97)[:, None], 0.95, _between((0.02, 0.03, 0.12), (0.12, 0.10, 0.32), soft))


TEXTURES: dict[str, Callable[[Field, Field, Field, Field], Picture]] = {
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "snow": _snow,
    "road": _road,
    "brick": _brick,
    "wood": _wood,
    "night sky": _night_sky,
}


def draw(name: str, noise: Float[Tensor, "batch 2 noise noise"], side: int) -> Picture:
    """Draw the texture of one background for several scenes, from 0 to 1.

    Args:
        name: one of `TEXTURES`.
        noise: two uniform random fields for each scene; the same noise gives the same picture.
        side: pixels of the square picture.
    """
    soft = _resize(_resize(noise[:, 0], 6), side)
    soft = (soft - 0.5) * 2.5 + 0.5
    fine = _resize(noise[:, 1], side)
    axis = (torch.arange(side, dtype=noise.dtype, device=noise.device) + 0.5) / side
    x, y = axis.expand(len(noise), side, side), axis[:, None].expand(len(noise), side, side)
    return TEXTURES[name](x + noise[:, 0, :1, :1], y + noise[:, 0, :1, 1:2], soft, fine).clamp(0, 1)
