"""Captioned scenes of several objects over a background, with exact masks.

A scene is planned first (which objects, where, which words) and drawn second, many scenes at once and on any device.
Everything follows from (split, index): the same pair gives the same scene on every machine.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from seg4diff_tools.errors import InputError
from seg4diff_tools.scenes.drawings import COLORS, concepts, premultiplied, styles
from seg4diff_tools.scenes.textures import NOISE_SIDE, TEXTURES, draw

BACKGROUNDS = tuple(TEXTURES)
BASE_CONCEPTS = tuple(concepts())[:32]
"""The concepts of the embedded model's training vocabulary; all others are novel words to it."""
SPLITS = ("train", "test", "test-style", "gallery")
RELATIONS = ("left of", "right of", "above", "below")
CAPTIONS = ("short", "rich")

_PLACES = {"grass": "on", "sand": "on", "water": "in", "snow": "in", "road": "on", "brick": "on", "wood": "on"}
_COUNTS = {2: "two", 3: "three", 4: "four"}
_VISIBLE = 0.1  # an object of which less than this share can be seen is not listed as present


@dataclass(frozen=True)
class SceneConfig:
    """How hard scenes are. Shares and chances are in 0..1, sizes are shares of the image side.

    `captions` is "short" (things, counts, colors, relations of some pairs) or "rich" (also sizes, places, and what is
    in front, as `describe` draws them). `triples` is the share of twins that get a third of their kind where there are
    three objects, `recolorable` the chance that a scene shows nothing but things that other colors exist of.
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
        unknown = [c for c in self.concepts if c not in concepts()] + [b for b in self.backgrounds if b not in TEXTURES]
        if unknown:
            raise InputError(f"no drawing or texture is named {unknown[0]!r}; see drawings.concepts() and BACKGROUNDS")
        if not 1 <= self.objects[0] <= self.objects[1]:
            raise InputError(f"objects must be a range (least, most) from 1, got {self.objects}")
        if self.captions not in CAPTIONS:
            raise InputError(f"captions must be one of {', '.join(CAPTIONS)}, got {self.captions!r}")
        if self.recolorable and not any(concepts()[name].recolor for name in self.concepts):
            raise InputError("recolorable needs a concept that can be recolored, such as 'car'")


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


@dataclass(frozen=True)
class Plan:
    """Everything that decides a scene; objects are drawn in order, later ones in front."""

    placements: tuple[Placement, ...]
    background: str
    caption: str
    noise: Float[np.ndarray, "2 noise noise"] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Scene:
    """A drawn scene.

    `label_map` holds indices into `class_names`, present objects first, then the background; 255 (ignore) marks what is
    left of an object that is too hidden to be listed.
    """

    image: UInt8[np.ndarray, "height width 3"] = field(repr=False)
    caption: str
    class_names: tuple[str, ...]
    label_map: UInt8[np.ndarray, "height width"] = field(repr=False)
    masks: Bool[np.ndarray, "objects height width"] = field(repr=False)
    objects: tuple[str, ...]
    background: str

    @property
    def pil(self) -> Image.Image:
        return Image.fromarray(self.image)

    @property
    def prompt(self) -> str:
        """The plain class-name prompt: names joined by a space (section 4.1 of the paper)."""
        return " ".join(self.class_names)

    @cached_property
    def boxes(self) -> Int[np.ndarray, "objects 4"]:
        """Boxes of the visible part of every object: left, top, right, bottom in pixels, the last two exclusive."""
        boxes = np.zeros((len(self.masks), 4), dtype=np.int64)
        for box, mask in zip(boxes, self.masks, strict=True):
            if mask.any():
                (rows,), (columns,) = np.nonzero(mask.any(1)), np.nonzero(mask.any(0))
                box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return boxes


def plan(split: str, index: int, config: SceneConfig = SceneConfig()) -> Plan:
    """Decide the scene number `index` of a split.

    Args:
        split: "train", "test" (unseen seeds), "test-style" (drawings of a style kept out of training) or "gallery".
        index: any number from 0.
        config: how hard the scene is.

    Raises:
        InputError: unknown split or negative index.
    """
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if index < 0:
        raise InputError(f"a scene's index starts from 0, got {index}")
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
    caption = _caption(placements, background, config.related, rng)
    noise = rng.random((2, NOISE_SIDE, NOISE_SIDE), dtype=np.float32)
    if config.captions == "rich":
        # after everything else, so that both kinds of captions belong to the same pictures
        caption = describe(placements, background, rng)
    return Plan(tuple(placements), background, caption, noise)


def _free_place(rng: np.random.Generator, side: float, others: list[Placement]) -> tuple[float, float]:
    """The least crowded of some random centers: objects may overlap, few are hidden."""
    centers = rng.uniform(side / 2 - 0.03, 1.03 - side / 2, (12, 2))
    room = np.full(len(centers), np.inf)
    for other in others:
        distance = np.abs(centers - np.array(other.center)).max(1)
        room = np.minimum(room, distance - 0.45 * (side + other.side))
    best = centers[int(np.argmax(np.minimum(room, 0.0)))]
    return float(best[0]), float(best[1])


def _caption(
    placements: list[Placement], background: str, related: float = 0.0, rng: np.random.Generator | None = None
) -> str:
    counts = Counter((p.concept, p.color) for p in placements)
    phrases = [phrase(concept, color, count) for (concept, color), count in counts.items()]
    if rng and len(placements) == len(counts) == 2 and rng.random() < related:
        return sentence(phrases, background, relation(placements[0].center, placements[1].center))
    if rng:
        phrases = [phrases[i] for i in rng.permutation(len(phrases))]
    return sentence(phrases, background)


def describe(placements: Sequence[Placement], background: str, rng: np.random.Generator) -> str:
    """Draw a rich caption: each time other details of the same scene, all of them true.

    Three in ten say no more than a short caption. The others name a size ("small" below 0.38 of the image side, "large"
    above 0.52) and a place ("at the top left", "in the middle") of half of the single things, or in place of the places
    how two of them stand to each other, in either order: a direction, or "in front of" and "behind" where they overlap.

    Args:
        placements: of a scene, back to front.
        background: its name.
        rng: decides which details are told.

    Returns:
        A sentence such as "a small red car at the left and two dogs on grass".
    """
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
    """The word that fits all of these things, if there is one."""
    if max(each.side for each in things) < 0.38:
        return "small"
    return "large" if min(each.side for each in things) > 0.52 else None


def _place(thing: Placement) -> str:
    """Where in the picture a thing is: "at the top left", "at the right", "in the middle"."""
    x, y = thing.center
    across = "left" if x < 0.4 else "right" if x > 0.6 else ""
    down = "top" if y < 0.4 else "bottom" if y > 0.6 else ""
    return f"at the {down} {across}".replace("  ", " ").strip() if across or down else "in the middle"


def _overlap(first: Placement, second: Placement) -> bool:
    """Whether one thing lies over part of the other, as far as their squares tell."""
    distance = max(abs(a - b) for a, b in zip(first.center, second.center, strict=True))
    return distance < 0.42 * (first.side + second.side)


def relation(first: tuple[float, float], second: tuple[float, float]) -> str:
    """How a caption says where the first of two centers lies: one of `RELATIONS`, along the longer way."""
    (x0, y0), (x1, y1) = first, second
    if abs(x0 - x1) > abs(y0 - y1):
        return "left of" if x0 < x1 else "right of"
    return "above" if y0 < y1 else "below"


def sentence(phrases: Sequence[str], background: str, relation: str | None = None) -> str:
    """The caption of things that were put into words by `phrase`: in a relation (two of them), or listed."""
    if relation:
        listed = f" {relation} ".join(phrases)
    else:
        listed = phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    return f"{listed} {_PLACES.get(background, 'under a')} {background}"


def phrase(name: str, color: str | None = None, count: int = 1, size: str | None = None) -> str:
    """What a caption calls some things of a kind: "a cat", "two red cars", "a small red car"."""
    plural = concepts()[name].plural
    noun = name if count == 1 else plural
    described = " ".join(word for word in (size, color, noun) if word)
    if count > 1:
        return f"{_COUNTS.get(count, str(count))} {described}"
    if name == plural and name.endswith("s"):  # grapes, scissors
        return described
    return f"{'an' if described[0] in 'aeiou' else 'a'} {described}"


def render(
    plans: Sequence[Plan], size: int, device: torch.device | str = "cpu"
) -> tuple[Float[Tensor, "batch 3 size size"], Int[Tensor, "batch size size"]]:
    """Draw many scenes at once.

    Returns:
        Images in 0..1, and for every pixel the number of the placement that is seen there, -1 for background.
    """
    noise = torch.from_numpy(np.stack([p.noise for p in plans])).to(device)
    images = torch.empty(len(plans), 3, size, size, device=device)
    for name in sorted({p.background for p in plans}):
        rows = torch.tensor([i for i, p in enumerate(plans) if p.background == name], device=device)
        images[rows] = draw(name, noise[rows], size)
    owners = torch.full((len(plans), size, size), -1, dtype=torch.long, device=device)
    drawing_side = 48 if size <= 128 else 96  # near the drawn size, or small objects would alias
    for slot in range(max(len(p.placements) for p in plans)):
        rows = torch.tensor([i for i, p in enumerate(plans) if len(p.placements) > slot], device=device)
        placed = [p.placements[slot] for p in plans if len(p.placements) > slot]
        drawings = torch.stack([premultiplied(p.concept, p.style, p.color, drawing_side) for p in placed]).to(device)
        grid = torch.nn.functional.affine_grid(
            torch.tensor([_inverse(p) for p in placed], dtype=torch.float32, device=device),
            [len(placed), 4, size, size],
            align_corners=False,
        )
        layer = torch.nn.functional.grid_sample(drawings, grid, align_corners=False)
        alpha = layer[:, 3:]
        images[rows] = images[rows] * (1 - alpha) + layer[:, :3]
        owners[rows] = torch.where(alpha[:, 0] > 0.5, slot, owners[rows])
    return images.clamp(0, 1), owners


def _inverse(p: Placement) -> list[list[float]]:
    """The affine map from image to drawing coordinates, both in -1..1."""
    x, y = 2 * p.center[0] - 1, 2 * p.center[1] - 1
    cos, sin = np.cos(np.deg2rad(p.degrees)) / p.side, np.sin(np.deg2rad(p.degrees)) / p.side
    mirror = -1.0 if p.flipped else 1.0
    return [[mirror * cos, mirror * sin, -mirror * (cos * x + sin * y)], [-sin, cos, sin * x - cos * y]]


def draw_scenes(plans: Sequence[Plan], size: int) -> list[Scene]:
    """Draw plans and work out labels, masks and present classes."""
    images, owners = render(plans, size)
    pixels = rearrange((images * 255).round().byte(), "batch color y x -> batch y x color").numpy()
    return [_scene(p, image, owner) for p, image, owner in zip(plans, pixels, owners.numpy(), strict=True)]


def visible(p: Plan, owner: Int[np.ndarray, "y x"]) -> list[int]:
    """Numbers of the placements that are not too hidden to be listed as present.

    Args:
        p: the plan.
        owner: of its pixels, as `render` returns them.
    """
    # an empty drawing cell covers about half of its square, hence the factor
    whole = [0.5 * (placement.side * owner.shape[0]) ** 2 for placement in p.placements]
    return [k for k, area in enumerate(whole) if (owner == k).sum() > _VISIBLE * area]


def _scene(p: Plan, image: UInt8[np.ndarray, "y x 3"], owner: Int[np.ndarray, "y x"]) -> Scene:
    masks, seen = owner == np.arange(len(p.placements))[:, None, None], visible(p, owner)
    names = (*dict.fromkeys(p.placements[k].concept for k in seen), p.background)
    lookup = np.full(len(p.placements) + 1, 255, dtype=np.uint8)  # the rest of a hidden object is of no listed class
    lookup[-1] = len(names) - 1  # owner -1, the background, reads the last entry
    for k in seen:
        lookup[k] = names.index(p.placements[k].concept)
    return Scene(
        image=image,
        caption=p.caption,
        class_names=names,
        label_map=lookup[owner],
        masks=masks[seen],
        objects=tuple(p.placements[k].concept for k in seen),
        background=p.background,
    )


def scene(split: str, index: int, config: SceneConfig = SceneConfig()) -> Scene:
    """Draw the scene number `index` of a split; see `plan` for the arguments."""
    return draw_scenes([plan(split, index, config)], config.size)[0]


@dataclass(frozen=True)
class Scenes(Sequence):
    """The first `length` scenes of a split as a sequence; scenes are drawn when they are asked for."""

    split: str = "test"
    length: int = 500
    config: SceneConfig = SceneConfig()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The whole vocabulary: all objects that scenes may show, then all backgrounds."""
        return self.config.concepts + self.config.backgrounds

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Scene:
        if not -self.length <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        return scene(self.split, index % self.length, self.config)

    def __iter__(self) -> Iterator[Scene]:
        return (self[i] for i in range(self.length))


def gallery(config: SceneConfig = SceneConfig()) -> list[Scene]:
    """The 24 fixed scenes that pictures are made of: two or three objects each."""
    config = replace(config, objects=(2, 3))
    return draw_scenes([plan("gallery", i, config) for i in range(24)], config.size)


def compose(
    objects: Sequence[tuple[str, tuple[float, float], float]],
    background: str = "grass",
    *,
    style: str | None = None,
    caption: str | None = None,
    size: int = 96,
    seed: int = 0,
) -> Scene:
    """Compose a scene by hand.

    Args:
        objects: (name, (x, y), side) each, back to front; center and side are shares of the image side.
        background: one of `BACKGROUNDS`.
        style: whose drawings, see `drawings.styles`; by default the first style.
        caption: by default "a cat and a tree on grass".
        size: pixels of the square image.
        seed: of the background's texture.

    Raises:
        InputError: unknown name, style or background, no object, or a side that is not in 0..1.

    Example:
        >>> compose([("cat", (0.3, 0.6), 0.5), ("tree", (0.7, 0.4), 0.5)], background="grass").caption
        'a cat and a tree on grass'
    """
    if background not in TEXTURES:
        raise InputError(f"background must be one of {', '.join(BACKGROUNDS)}; got {background!r}")
    if not objects:
        raise InputError("a scene needs at least one object: (name, (x, y), side)")
    chosen = style or styles()[0]
    for name, _, side in objects:
        if name not in concepts():
            raise InputError(f"no drawing is named {name!r}; drawings.concepts() lists {len(concepts())} names")
        if chosen not in concepts()[name].drawings:
            raise InputError(f"{name!r} is drawn in {', '.join(concepts()[name].drawings)}, not in {chosen!r}")
        if not 0 < side <= 1:
            raise InputError(f"an object's side is a share of the image side in 0..1, got {side} for {name!r}")
    placements = [Placement(name, chosen, (float(x), float(y)), float(side)) for name, (x, y), side in objects]
    rng = np.random.default_rng(seed)
    caption = caption or _caption(placements, background)
    noise = rng.random((2, NOISE_SIDE, NOISE_SIDE), dtype=np.float32)
    return draw_scenes([Plan(tuple(placements), background, caption, noise)], size)[0]
