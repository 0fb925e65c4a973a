"""Plans of scenes: objects, places and captions, which follow from the split, the index and the settings."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

import numpy as np
from jaxtyping import Float

from seg4diff_tools.errors import InputError
from seg4diff_tools.indices import as_int
from seg4diff_tools.scenes.drawings import COLORS, concepts, styles
from seg4diff_tools.scenes.textures import NOISE_SIDE, TEXTURES

BACKGROUNDS = tuple(TEXTURES)
BASE_CONCEPTS = tuple(concepts())[:32]
"""Concepts in the embedded model's training vocabulary; it never saw the words of the others."""
SPLITS = ("train", "test", "test-style", "gallery")
RELATIONS = ("left of", "right of", "above", "below")

_PLACES = {"grass": "on", "sand": "on", "water": "in", "snow": "in", "road": "on", "brick": "on", "wood": "on"}
_COUNTS = {2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class SceneConfig:
    """Settings of scenes: what they may show, and how hard they are.

    Attributes:
        size: pixels of the square image.
        concepts: names of the objects, of `drawings.concepts`.
        backgrounds: of `BACKGROUNDS`.
        objects: smallest and largest number of objects.
        object_side: smallest and largest side of an object, in shares of the image side.
        degrees: largest turn of an object, in degrees to either side.
        twins: chance (0 to 1) that the first two objects are of one kind.
        colored: chance (0 to 1) that an object which can be recolored gets another color.
        related: chance (0 to 1) that the caption of two objects says how they lie.

    Raises:
        InputError: an unknown name, or numbers that cannot be.
    """

    size: int = 96
    concepts: tuple[str, ...] = BASE_CONCEPTS
    backgrounds: tuple[str, ...] = BACKGROUNDS
    objects: tuple[int, int] = (1, 3)
    object_side: tuple[float, float] = (0.3, 0.6)
    degrees: float = 12.0
    twins: float = 0.08
    colored: float = 0.15
    related: float = 0.35

    def __post_init__(self) -> None:
        as_int(self.size, "size", 8)
        for name, values, known in (
            ("concepts", self.concepts, concepts()),
            ("backgrounds", self.backgrounds, dict(TEXTURES)),
        ):
            if isinstance(values, str) or not values:
                raise InputError(f"expected {name} as a tuple of names, got {values!r}: pass {name}={tuple(known)[:2]}")
            if unknown := [value for value in values if value not in known]:
                raise InputError(f"expected {name} that are drawn, got {unknown[0]!r}: {near(unknown[0], known)}")
        if not _is_range(self.objects) or self.objects[0] < 1:
            raise InputError(f"expected objects as (least, most) from 1, got {self.objects}: pass objects=(1, 3)")
        if not _is_range(self.object_side) or not 0 < self.object_side[0] <= self.object_side[1] <= 1:
            raise InputError(
                f"expected object_side as (least, most) from 0 to 1, got {self.object_side}: pass (0.3, 0.6)"
            )
        for name in ("twins", "colored", "related"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"expected {name} from 0 to 1, got {getattr(self, name)}: pass {name}=0.1")


def near(name: object, known: Iterable[str]) -> str:
    """Return the end of an error message: the known name that is nearest to a mistyped one, or some of them."""
    names = tuple(known)
    close = get_close_matches(str(name), names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(names[:8])} ..."


def _is_range(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2 and value[0] <= value[1]


@dataclass(frozen=True)
class Placement:
    """One object: its center and side are shares of the image side, its turn is in degrees."""

    concept: str
    style: str
    center: tuple[float, float]
    side: float
    degrees: float = 0.0
    flipped: bool = False
    color: str | None = None


DEFAULT = SceneConfig()


@dataclass(frozen=True)
class Plan:
    """Everything that decides a scene; objects are drawn in order, later ones in front."""

    placements: tuple[Placement, ...]
    background: str
    caption: str
    noise: Float[np.ndarray, "2 noise noise"] = field(repr=False, compare=False)


def plan(split: str, index: int, config: SceneConfig = DEFAULT) -> Plan:
    """Plan the scene number `index` of a split.

    Args:
        split: "train", "test" (unseen seeds), "test-style" (drawings of a style kept out of training) or "gallery" (the
            scenes that pictures are made of: always two or three objects, whatever `config.objects` is).
        index: any number from 0.
        config: what the scene may show.

    Raises:
        InputError: an unknown split, or an index that is no whole number from 0.
    """
    check_split(split)
    check_config(config)
    index = as_int(index, "index", 0)
    if split == "gallery":
        config = replace(config, objects=(2, 3))
    rng = np.random.Generator(np.random.Philox(key=[SPLITS.index(split), index]))
    names = list(rng.choice(config.concepts, rng.integers(config.objects[0], config.objects[1], endpoint=True)))
    if len(names) > 1 and rng.random() < config.twins:
        names[1] = names[0]
    placements: list[Placement] = []
    for side in sorted(rng.uniform(*config.object_side, len(names)), reverse=True):
        name = str(names[len(placements)])
        concept = concepts()[name]
        color = str(rng.choice(list(COLORS))) if concept.recolor and rng.random() < config.colored else None
        drawn = [style for style in styles(held_out=split == "test-style") if style in concept.drawings]
        placements.append(
            Placement(
                concept=name,
                style=str(rng.choice(drawn)),
                center=_free_place(rng, side, placements),
                side=float(side),
                degrees=float(rng.uniform(-config.degrees, config.degrees)),
                flipped=bool(rng.random() < 0.5),
                color=color,
            )
        )
    background = str(rng.choice(config.backgrounds))
    caption = list_caption(placements, background, config.related, rng)
    return Plan(tuple(placements), background, caption, rng.random((2, NOISE_SIDE, NOISE_SIDE), dtype=np.float32))


def check_split(split: str) -> None:
    """Raise InputError for an unknown split."""
    if split not in SPLITS:
        raise InputError(f"expected split as one of {', '.join(SPLITS)}, got {split!r}: choose one of these")


def check_config(config: SceneConfig) -> None:
    """Raise InputError for something else than a `SceneConfig`."""
    if not isinstance(config, SceneConfig):
        raise InputError(f"expected config as a SceneConfig, got {config!r}: pass config=SceneConfig(size=96)")


def _free_place(rng: np.random.Generator, side: float, others: list[Placement]) -> tuple[float, float]:
    """Return the least crowded of some random centers: objects may overlap, few are hidden."""
    centers = rng.uniform(side / 2 - 0.03, 1.03 - side / 2, (12, 2))
    room = np.full(len(centers), np.inf)
    for other in others:
        distance = np.abs(centers - np.array(other.center)).max(1)
        room = np.minimum(room, distance - 0.45 * (side + other.side))
    best = centers[int(np.argmax(np.minimum(room, 0.0)))]
    return float(best[0]), float(best[1])


def list_caption(
    placements: list[Placement], background: str, related: float = 0.0, rng: np.random.Generator | None = None
) -> str:
    """Return the caption of placed objects: listed, or with a chance of `related` in their relation if they are two."""
    counts = Counter((p.concept, p.color) for p in placements)
    phrases = [phrase(concept, color, count) for (concept, color), count in counts.items()]
    if rng and len(placements) == len(counts) == 2 and rng.random() < related:
        return sentence(phrases, background, relation(placements[0].center, placements[1].center))
    if rng:
        phrases = [phrases[i] for i in rng.permutation(len(phrases))]
    return sentence(phrases, background)


def relation(first: tuple[float, float], second: tuple[float, float]) -> str:
    """Return where the first of two centers lies, one of `RELATIONS`, along the longer way."""
    (x0, y0), (x1, y1) = first, second
    if abs(x0 - x1) > abs(y0 - y1):
        return "left of" if x0 < x1 else "right of"
    return "above" if y0 < y1 else "below"


def sentence(phrases: Sequence[str], background: str, relation: str | None = None) -> str:
    """Join phrases of `phrase` to a caption: two of them in a relation, or listed."""
    if relation:
        listed = f" {relation} ".join(phrases)
    else:
        listed = phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    return f"{listed} {_PLACES.get(background, 'under a')} {background}"


def phrase(name: str, color: str | None = None, count: int = 1) -> str:
    """Return the words for some things of a kind: "a cat", "two red cars"."""
    plural = concepts()[name].plural
    noun = name if count == 1 else plural
    described = f"{color} {noun}" if color else noun
    if count > 1:
        return f"{_COUNTS.get(count, str(count))} {described}"
    if name == plural and name.endswith("s"):  # grapes, scissors
        return described
    return f"{'an' if described[0] in 'aeiou' else 'a'} {described}"
