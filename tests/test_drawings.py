"""Drawings: enough of them, all of them drawn, and recolored as their name says."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import rgb_to_hsv

import seg4diff_tools
from seg4diff_tools.scenes import drawings

PACKAGE = Path(seg4diff_tools.__file__).parent
EVERY = [(c.name, style) for c in drawings.concepts().values() for style in c.drawings]


def test_there_are_enough_concepts_with_three_drawings():
    concepts = drawings.concepts()
    assert sum(len(set(c.drawings)) >= 3 for c in concepts.values()) >= 96
    assert len(drawings.styles(held_out=True)) == 1
    assert set(drawings.styles()).isdisjoint(drawings.styles(held_out=True))
    # every concept can be trained on and tested with drawings kept out of training
    for concept in concepts.values():
        assert set(concept.drawings) & set(drawings.styles()), concept.name
        assert set(concept.drawings) & set(drawings.styles(held_out=True)), concept.name


def test_names_are_plain_words_that_differ():
    names = list(drawings.concepts())
    assert len(set(names)) == len(names)
    assert all(name == name.lower() and name.replace(" ", "").isalpha() for name in names)
    assert not set(names) & set(drawings.COLORS)


def test_every_drawing_shows_one_thing_on_transparent_ground():
    for name, style in EVERY:
        rgba = drawings.drawing(name, style)
        assert rgba.shape == (96, 96, 4)
        assert rgba.dtype == np.uint8
        solid = rgba[..., 3] > 127
        # less would be an empty cell, more a tile behind the drawing
        assert 0.2 < solid.mean() < 0.95, (name, style)
        rows, columns = np.nonzero(solid.any(1))[0], np.nonzero(solid.any(0))[0]
        assert max(np.ptp(rows), np.ptp(columns)) >= 90, (name, style)
        # strictly between: the outline is smooth
        assert ((rgba[..., 3] > 0) & (rgba[..., 3] < 255)).any(), (name, style)


def test_styles_draw_the_same_thing_differently():
    for concept in drawings.concepts().values():
        pictures = {drawings.drawing(concept.name, style).tobytes() for style in concept.drawings}
        assert len(pictures) == len(concept.drawings), concept.name


@pytest.mark.parametrize(("color", "hue"), drawings.COLORS.items())
def test_recoloring_changes_saturated_parts_and_nothing_else(color, hue):
    plain, colored = (drawings.drawing("car", "noto", chosen) for chosen in (None, color))
    before, after = (rgb_to_hsv(rgba[..., :3] / 255) for rgba in (plain, colored))
    solid = plain[..., 3] == 255
    body = solid & (before[..., 1] > 0.3) & (before[..., 2] > 0.2)
    assert body.mean() > 0.1
    distance = np.abs(after[..., 0] - hue)[body]
    assert np.minimum(distance, 1 - distance).max() < 0.04
    assert after[..., 1][body].min() > 0.7
    np.testing.assert_array_equal(colored[..., 3], plain[..., 3])
    grey = solid & (before[..., 1] <= 0.25)
    assert np.abs(colored[..., :3].astype(int) - plain[..., :3])[grey].max() <= 1


def test_premultiplied_is_the_area_mean():
    # 96 to 48: every pixel is the mean of 2 x 2, with color weighted by alpha
    rgba = drawings.drawing("cat", "noto") / 255.0
    weighted = np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], -1)
    expected = weighted.reshape(48, 2, 48, 2, 4).mean((1, 3))
    found = drawings.premultiplied("cat", "noto", None, 48).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_sprites_are_small_and_their_authors_are_named():
    sprites = PACKAGE / "scenes" / "sprites"
    assert sum(path.stat().st_size for path in sprites.iterdir()) < 6_000_000
    notice = (PACKAGE.parent / "NOTICE").read_text(encoding="utf-8")
    for path in sprites.glob("*.png"):
        assert path.name in notice
