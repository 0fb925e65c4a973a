"""Plans of scenes: objects, places and captions, determined by the split, the index and the settings."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from seg4diff_tools.errors import InputError, as_names, instance_of, list_of, one_of
from seg4diff_tools.indices import as_float, as_int
from seg4diff_tools.scenes.drawings import COLORS, concepts, styles
from seg4diff_tools.scenes.textures import NOISE_SIDE, TEXTURES

Number = TypeVar("Number", int, float)

BACKGROUNDS = tuple(TEXTURES)
BASE_CONCEPTS = tuple(concepts())[:32]
"""Concepts in the embedded model's training vocabulary; it never saw the words of the others."""
SPLITS = ("train", "test", "test-style", "gallery")
CAPTIONS = ("short", "rich")
LARGEST = 4096
"""Largest side of an image in pixels; drawings have 96."""
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
        degrees: largest rotation of an object to either side, in degrees.
        twins: chance (0 to 1) that the first two objects are of the same kind.
        colored: chance (0 to 1) that an object which can be recolored gets another color.
        related: chance (0 to 1) that the caption of two objects names their relation, such as "left of".
        captions: "short" (things, counts, colors, relations of some pairs) or "rich" (also sizes, places and what is in
            front, see `describe`).
        triples: chance (0 to 1) that the third object of a scene with twins is of their kind.
        recolorable: chance (0 to 1) that a scene shows only things that can be recolored.

    Raises:
        InputError: an unknown name, or a number out of range.
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
    captions: str = "short"
    triples: float = 0.0
    recolorable: float = 0.0

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {"size": as_int(self.size, "size", 8, LARGEST)}
        for name, known in ("concepts", tuple(concepts())), ("backgrounds", BACKGROUNDS):
            checked[name] = as_names(getattr(self, name), name, example=str(list(known[:2])))
            for value in checked[name]:
                check_known(value, name, known)
        checked["objects"] = _ends(self.objects, "objects", "(1, 3)", partial(as_int, low=1))
        checked["object_side"] = _ends(self.object_side, "object_side", "(0.3, 0.6)", as_share)
        checked["degrees"] = as_float(self.degrees, "degrees", 0.0, 180.0)
        for name in ("twins", "colored", "related", "triples", "recolorable"):
            checked[name] = as_float(getattr(self, name), name, 0.0, 1.0)
        one_of(self.captions, "captions", CAPTIONS)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.recolorable and not any(concepts()[name].recolor for name in self.concepts):
            raise InputError(
                f"expected concepts that can be recolored for recolorable={self.recolorable}, got {self.concepts}: add "
                "one, such as 'car'"
            )


def check_known(value: Any, name: str, known: Collection[str]) -> None:
    """Raise an InputError for a name that cannot be drawn; the message has the most similar one."""
    if not isinstance(value, str) or value not in known:
        close = get_close_matches(value, known, n=1) if isinstance(value, str) else []
        hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(list(known)[:8])} ..."
        raise InputError(f"expected {name} that can be drawn, got {value!r}: {hint}")


def _ends(value: Any, name: str, example: str, check: Callable[[Any, str], Number]) -> tuple[Number, Number]:
    """Return the two ends of a range, each one checked."""
    ends = list(value) if isinstance(value, (list, tuple, np.ndarray)) else []
    if len(ends) == 2:
        least, most = (check(end, name) for end in ends)
        if least <= most:
            return least, most
    raise InputError(f"expected {name} as (smallest, largest), got {value!r}: pass {name}={example}")


def as_share(value: Any, name: str) -> float:
    """Return a share of the image side, above 0 and up to 1."""
    share = as_float(value, name, 0.0, 1.0)
    if not share:
        raise InputError(f"expected {name}, a share above 0 of the image side, got {value!r}: pass {name}=0.5")
    return share


@dataclass(frozen=True)
class Placement:
    """One object: center and side in shares of the image side, rotation in degrees."""

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
    """Everything that determines a scene; objects are drawn in order, later ones in front."""

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
        InputError: an unknown split, or an index that is not a whole number from 0.
    """
    one_of(split, "split", SPLITS)
    check_config(config)
    index = as_int(index, "index", 0, (1 << 63) - 1)
    if split == "gallery":
        config = replace(config, objects=(2, 3))
    rng = np.random.Generator(np.random.Philox(key=[SPLITS.index(split), index]))
    names = list(rng.choice(config.concepts, rng.integers(config.objects[0], config.objects[1], endpoint=True)))
    if config.recolorable and rng.random() < config.recolorable:
        names = list(rng.choice([name for name in config.concepts if concepts()[name].recolor], len(names)))
    if len(names) > 1 and rng.random() < config.twins:
        names[1] = names[0]
        if config.triples and len(names) > 2 and rng.random() < config.triples:
            names[2] = names[0]
    placements: list[Placement] = []
    for side in sorted(rng.uniform(*config.object_side, len(names)), reverse=True):
        name = str(names[len(placements)])
        concept = concepts()[name]
        color = str(rng.choice(list(COLORS))) if concept.recolor and rng.random() < config.colored else None
        drawn = [style for style in styles(held_out=split == "test-style") if style in concept.drawings]
        style, center = str(rng.choice(drawn)), _free_place(rng, side, placements)
        degrees, flipped = float(rng.uniform(-config.degrees, config.degrees)), bool(rng.random() < 0.5)
        placements.append(Placement(name, style, center, float(side), degrees, flipped, color))
    background = str(rng.choice(config.backgrounds))
    caption = list_caption(placements, background, config.related, rng)
    noise = rng.random((2, NOISE_SIDE, NOISE_SIDE), dtype=np.float32)
    if config.captions == "rich":
        # drawn last, so that both kinds of captions belong to the same pictures
        caption = describe(placements, background, rng)
    return Plan(tuple(placements), background, caption, noise)


def check_config(config: SceneConfig) -> None:
    """Raise an InputError for anything but a `SceneConfig`."""
    instance_of(config, SceneConfig, "config", "config=SceneConfig(size=96)")


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


def describe(placements: Sequence[Placement], background: str, rng: np.random.Generator) -> str:
    """Draw a rich caption: random details of the scene, all of them true.

    Three in ten say no more than a short caption. The others name a size ("small" below 0.38 of the image side, "large"
    above 0.52) and a place ("at the top left", "in the middle") of half of the single things, or in place of the places
    how two of them lie, in either order: a direction, or "in front of" and "behind" where they overlap.

    Args:
        placements: of a scene, back to front.
        background: its name.
        rng: draws the details.

    Returns:
        A sentence such as "a small red car at the left and two dogs on grass".
    """
    placements = list_of(placements, Placement, "placements", "those of a plan")
    instance_of(rng, np.random.Generator, "rng", "np.random.default_rng(0)")
    groups: dict[tuple[str, str | None], list[Placement]] = {}
    for each in placements:
        groups.setdefault((each.concept, each.color), []).append(each)
    things = list(groups.values())
    things = [things[number] for number in rng.permutation(len(things))]
    detailed = bool(rng.random() >= 0.3)
    phrases = [
        phrase(thing[0].concept, thing[0].color, len(thing), _size(thing) if detailed and rng.random() < 0.5 else None)
        for thing in things
    ]
    pair = [number for number, thing in enumerate(things) if len(thing) == 1][:2]
    if len(pair) == 2 and rng.random() < 0.4:
        first, second = (things[number][0] for number in pair)
        where = relation(first.center, second.center)
        if rng.random() < 0.5 and _overlap(first, second):
            order = {id(each): number for number, each in enumerate(placements)}
            where = "in front of" if order[id(first)] > order[id(second)] else "behind"
        related = f" {where} ".join(phrases[number] for number in pair)
        others = [text for number, text in enumerate(phrases) if number not in pair]
        return sentence([", and ".join([related, *others])], background)
    if detailed:
        for number, thing in enumerate(things):
            if len(thing) == 1 and rng.random() < 0.5:
                phrases[number] += f" {_place(thing[0])}"
    return sentence(phrases, background)


def _size(things: Sequence[Placement]) -> str | None:
    """Return the word that fits all of these things, if there is one."""
    if max(each.side for each in things) < 0.38:
        return "small"
    return "large" if min(each.side for each in things) > 0.52 else None


def _place(thing: Placement) -> str:
    """Return where in the picture a thing is: "at the top left", "at the right", "in the middle"."""
    x, y = thing.center
    across = "left" if x < 0.4 else "right" if x > 0.6 else ""
    down = "top" if y < 0.4 else "bottom" if y > 0.6 else ""
    return f"at the {down} {across}".replace("  ", " ").strip() if across or down else "in the middle"


def _overlap(first: Placement, second: Placement) -> bool:
    """Tell whether the squares of two things overlap."""
    distance = max(abs(a - b) for a, b in zip(first.center, second.center, strict=True))
    return distance < 0.42 * (first.side + second.side)


def as_center(value: Any, name: str) -> tuple[float, float]:
    """Return a center (x, y); raise InputError for something else."""
    try:
        x, y = value
    except (TypeError, ValueError):
        raise InputError(f"expected {name}, a center (x, y), got {value!r}: pass {name}=(0.5, 0.5)") from None
    return as_float(x, f"x of {name}", -10.0, 10.0), as_float(y, f"y of {name}", -10.0, 10.0)


def relation(first: tuple[float, float], second: tuple[float, float]) -> str:
    """Return where the first of two centers lies, one of `RELATIONS`, along the axis in which they differ more.

    Raises:
        InputError: a center that is not a pair of numbers.
    """
    (x0, y0), (x1, y1) = as_center(first, "first"), as_center(second, "second")
    if abs(x0 - x1) > abs(y0 - y1):
        return "left of" if x0 < x1 else "right of"
    return "above" if y0 < y1 else "below"


def sentence(phrases: Sequence[str], background: str, relation: str | None = None) -> str:
    """Join phrases of `phrase` to a caption: two of them in a relation, or listed.

    Raises:
        InputError: no phrases, an unknown background, or a relation that is not text.
    """
    phrases = list_of(phrases, str, "phrases", "phrases=['a cat']", "texts")
    instance_of(relation or "", str, "relation", "relation='left of'")
    check_known(background, "background", BACKGROUNDS)
    if relation:
        listed = f" {relation} ".join(phrases)
    else:
        listed = phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    return f"{listed} {_PLACES.get(background, 'under a')} {background}"


def phrase(name: str, color: str | None = None, count: int = 1, size: str | None = None) -> str:
    """Return the words for some things of a kind: "a cat", "two red cars", "a small red car".

    Args:
        name: of `drawings.concepts`.
        color: one of `COLORS`, or none.
        count: how many, from 1.
        size: "small", "large" or none.

    Raises:
        InputError: any other value.
    """
    check_known(name, "name", concepts())
    one_of(color, "color", (None, *COLORS))
    one_of(size, "size", (None, "small", "large"))
    count = as_int(count, "count", 1)
    plural = concepts()[name].plural
    noun = name if count == 1 else plural
    described = " ".join(word for word in (size, color, noun) if word)
    if count > 1:
        return f"{_COUNTS.get(count, str(count))} {described}"
    if name == plural and name.endswith("s"):  # grapes, scissors
        return described
    return f"{'an' if described[0] in 'aeiou' else 'a'} {described}"
