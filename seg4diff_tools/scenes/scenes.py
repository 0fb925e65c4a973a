"""Captioned scenes of several objects over a background, with exact masks.

A scene is first planned (see `planning`), then drawn, many scenes at once and on any device. The same split, index
and settings give the same scene on every machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from seg4diff_tools.errors import InputError, list_of, one_of
from seg4diff_tools.indices import LazySequence, as_int
from seg4diff_tools.scenes.drawings import concepts, premultiplied, styles
from seg4diff_tools.scenes.planning import (
    BACKGROUNDS,
    DEFAULT,
    LARGEST,
    SPLITS,
    Placement,
    Plan,
    SceneConfig,
    as_center,
    as_share,
    check_config,
    check_known,
    list_caption,
    plan,
)
from seg4diff_tools.scenes.textures import NOISE_SIDE, draw

_VISIBLE = 0.1  # an object of which less than this share can be seen is not listed as present
GALLERY = 24
"""Number of scenes in the split "gallery"."""


@dataclass(frozen=True)
class Scene:
    """A drawn scene.

    `label_map` holds indices into `class_names`, present objects first, then the background; 255 (ignore) marks the
    visible rest of objects that are too hidden to be listed.
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
        """The image as a PIL image."""
        return Image.fromarray(self.image)

    @property
    def prompt(self) -> str:
        """The plain class-name prompt, names joined by a space (section 4.1 of the paper)."""
        return " ".join(self.class_names)

    @cached_property
    def boxes(self) -> Int[np.ndarray, "objects 4"]:
        """Boxes of the visible part of every object as left, top, right, bottom in pixels, the last two exclusive."""
        boxes = np.zeros((len(self.masks), 4), dtype=np.int64)
        for box, mask in zip(boxes, self.masks, strict=True):
            if mask.any():
                (rows,), (columns,) = np.nonzero(mask.any(1)), np.nonzero(mask.any(0))
                box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return boxes


def render(
    plans: Sequence[Plan], size: int, device: torch.device | str = "cpu"
) -> tuple[Float[Tensor, "batch 3 size size"], Int[Tensor, "batch size size"]]:
    """Draw many scenes at once.

    Args:
        plans: from `plan`, at least one.
        size: pixels of the square images.
        device: where to draw.

    Returns:
        Images in 0..1, and for every pixel the index of the placement that is seen there, -1 for background.

    Raises:
        InputError: no plans, a size out of range, or another device.
    """
    plans, size = list_of(plans, Plan, "plans", "plans=[scenes.plan('test', 0)]"), as_int(size, "size", 8, LARGEST)
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"expected device, one of torch's, got {device!r}: pass device='cpu'") from error
    noise = torch.from_numpy(np.stack([p.noise for p in plans])).to(device)
    images = torch.empty(len(plans), 3, size, size, dtype=torch.float32, device=device)
    for name in sorted({p.background for p in plans}):
        rows = torch.tensor([i for i, p in enumerate(plans) if p.background == name], dtype=torch.int64, device=device)
        images[rows] = draw(name, noise[rows], size)
    owners = torch.full((len(plans), size, size), -1, dtype=torch.long, device=device)
    drawing_side = 48 if size <= 128 else 96  # near the drawn size, or small objects would alias
    for slot in range(max(len(p.placements) for p in plans)):
        deep = [i for i, p in enumerate(plans) if len(p.placements) > slot]
        rows, placed = torch.tensor(deep, dtype=torch.int64, device=device), [plans[i].placements[slot] for i in deep]
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
    """Return the affine map from image to drawing coordinates, both in -1..1."""
    x, y = 2 * p.center[0] - 1, 2 * p.center[1] - 1
    cos, sin = np.cos(np.deg2rad(p.degrees)) / p.side, np.sin(np.deg2rad(p.degrees)) / p.side
    mirror = -1.0 if p.flipped else 1.0
    return [[mirror * cos, mirror * sin, -mirror * (cos * x + sin * y)], [-sin, cos, sin * x - cos * y]]


def draw_scenes(plans: Sequence[Plan], size: int) -> list[Scene]:
    """Draw plans with their label maps, masks and class names.

    Args:
        plans: at least one.
        size: pixels of the square images.

    Raises:
        InputError: no plans, or a size out of range.
    """
    images, owners = render(plans, size)
    pixels = rearrange((images * 255).round().byte(), "batch color y x -> batch y x color").numpy()
    return [_scene(p, image, owner) for p, image, owner in zip(plans, pixels, owners.numpy(), strict=True)]


def visible(p: Plan, owner: Int[np.ndarray, "y x"]) -> list[int]:
    """Return the indices of the placements that are visible enough to be listed.

    Args:
        p: the plan.
        owner: of its pixels, as `render` returns them.

    Raises:
        InputError: not a plan, or owners that are not integers [y x].
    """
    if not isinstance(p, Plan) or getattr(owner, "ndim", 0) != 2:
        found = f"{type(p).__name__} and {type(owner).__name__}"
        raise InputError(
            f"expected a plan and its owners [y x], got {found}: pass those of scenes.plan and scenes.render"
        )
    # an empty drawing cell covers about half of its square, hence the factor
    whole = [0.5 * (placement.side * owner.shape[0]) ** 2 for placement in p.placements]
    return [k for k, area in enumerate(whole) if (owner == k).sum() > _VISIBLE * area]


def _scene(p: Plan, image: UInt8[np.ndarray, "y x 3"], owner: Int[np.ndarray, "y x"]) -> Scene:
    masks, seen = owner == np.arange(len(p.placements))[:, None, None], visible(p, owner)
    objects = tuple(p.placements[k].concept for k in seen)
    names = (*dict.fromkeys(objects), p.background)
    lookup = np.full(len(p.placements) + 1, 255, dtype=np.uint8)  # the rest of a hidden object is of no listed class
    lookup[-1] = len(names) - 1  # owner -1, the background, reads the last entry
    lookup[seen] = [names.index(name) for name in objects]
    return Scene(image, p.caption, names, lookup[owner], masks[seen], objects, p.background)


def scene(split: str, index: int, config: SceneConfig = DEFAULT) -> Scene:
    """Draw the scene number `index` of a split.

    Args:
        split: "train", "test", "test-style" or "gallery", see `plan`.
        index: any number from 0.
        config: what the scene may show.

    Raises:
        InputError: an unknown split, or an index that is not a whole number from 0.
    """
    return draw_scenes([plan(split, index, config)], config.size)[0]


@dataclass(frozen=True)
class Scenes(LazySequence[Scene]):
    """The first `length` scenes of a split as a sequence; scenes are drawn when they are asked for.

    Attributes:
        split: "train", "test", "test-style" or "gallery", see `plan`.
        length: number of scenes.
        config: what the scenes may show.

    Raises:
        InputError: an unknown split, or a length that is not a whole number from 0.
    """

    split: str = "test"
    length: int = 500
    config: SceneConfig = DEFAULT

    def __post_init__(self) -> None:
        one_of(self.split, "split", SPLITS)
        check_config(self.config)
        object.__setattr__(self, "length", as_int(self.length, "length", 0, (1 << 63) - 1))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The whole vocabulary, all objects that scenes may show, then all backgrounds."""
        return self.config.concepts + self.config.backgrounds

    def __len__(self) -> int:
        return self.length

    def _item(self, index: int) -> Scene:
        return scene(self.split, index, self.config)


def gallery(config: SceneConfig = DEFAULT) -> list[Scene]:
    """Draw the 24 scenes of figures and examples: scene i is `scene("gallery", i, config)`.

    Args:
        config: what the scenes may show; `config.objects` does not count.
    """
    check_config(config)
    return draw_scenes([plan("gallery", index, config) for index in range(GALLERY)], config.size)


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
        InputError: unknown name, style or background, no object, a side that is not in 0..1, or a center far outside.

    Example:
        >>> compose([("cat", (0.3, 0.6), 0.5), ("tree", (0.7, 0.4), 0.5)], background="grass").caption
        'a cat and a tree on grass'
    """
    check_known(background, "background", BACKGROUNDS)
    if not isinstance(objects, (list, tuple)) or not objects:
        raise InputError(f"expected objects, at least one, got {objects!r}: pass objects=[('cat', (0.5, 0.5), 0.6)]")
    size, seed = as_int(size, "size", 8, LARGEST), as_int(seed, "seed", 0)
    if not (caption is None or isinstance(caption, str)):
        raise InputError(f"expected caption as text, got {caption!r}: pass caption='a cat on grass'")
    chosen = styles()[0] if style is None else style
    placements = []
    for item in objects:
        try:
            name, center, side = item
        except (TypeError, ValueError):
            raise InputError(
                f"expected objects as (name, (x, y), side), got {item!r}: pass ('cat', (0.5, 0.5), 0.6)"
            ) from None
        check_known(name, "objects", concepts())
        one_of(chosen, "style", concepts()[name].drawings)
        placements.append(Placement(name, chosen, as_center(center, "objects"), as_share(side, "side")))
    rng = np.random.default_rng(seed)
    caption = caption or list_caption(placements, background)
    noise = rng.random((2, NOISE_SIDE, NOISE_SIDE), dtype=np.float32)
    return draw_scenes([Plan(tuple(placements), background, caption, noise)], size)[0]
