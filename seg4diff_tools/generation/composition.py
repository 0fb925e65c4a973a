"""Does a picture hold what its prompt says? Prompts of six kinds about scenes, and a judge that reads the pictures.

In the spirit of GenEval (Ghosh et al., "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment",
NeurIPS 2023) and T2I-CompBench++ (Huang et al., arXiv 2307.06350), for models that are trained on captions of scenes:
prompts are worded like these captions, and `detector` finds things in place of detectors trained on photographs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from PIL.Image import Image
from scipy.stats import binomtest

from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.loading import as_backbone
from seg4diff_tools.errors import InputError, instance_of, list_of, one_of, require_columns
from seg4diff_tools.generation.detector import DetectedScene, SceneDetector
from seg4diff_tools.images import ImageLike, open_images
from seg4diff_tools.indices import as_indices, as_int
from seg4diff_tools.scenes import (
    BACKGROUNDS,
    BASE_CONCEPTS,
    RELATIONS,
    Placement,
    Plan,
    draw_scenes,
    phrase,
    relation,
    sentence,
)
from seg4diff_tools.scenes.drawings import COLORS, concepts, drawing, styles
from seg4diff_tools.scenes.textures import NOISE_SIDE

CATEGORIES = ("single object", "two objects", "counting", "color binding", "relation", "complex")
_HARDLY = 0.12  # mean difference, 0 to 1, below which a recolored drawing looks as it does anyway


@dataclass(frozen=True)
class Asked:
    """Things of one kind that a prompt asks for; without a color, any will do."""

    concept: str
    color: str | None = None
    count: int = 1


@dataclass(frozen=True)
class CompositionPrompt:
    """A prompt and what it means: the first of two objects lies in `relation` to the second."""

    category: str
    objects: tuple[Asked, ...]
    background: str
    relation: str | None = None

    def __post_init__(self) -> None:
        one_of(self.category, "category", CATEGORIES)
        asked = list_of(self.objects, Asked, "objects", "objects=(Asked('cat'),)")
        object.__setattr__(self, "objects", tuple(asked))

    @property
    def text(self) -> str:
        """Caption that a scene with these things would have."""
        phrases = [phrase(asked.concept, asked.color, asked.count) for asked in self.objects]
        return sentence(phrases, self.background, self.relation)


def prompts(count_per_category: int = 16, seed: int = 0) -> list[CompositionPrompt]:
    """Draw prompts in the words of captions, no text twice in a category.

    - single object: "a cat on grass".
    - two objects: "a cat and a dog on grass", of two kinds.
    - counting: "two cats on grass", two or three of a kind.
    - color binding: "a green car and a blue apple on grass", of two recolorable kinds, never in a thing's own color, so
      that only a model that reads the color is right.
    - relation: "a cat left of a dog on grass", of two kinds.
    - complex: two or three things, one of them colored or two of a kind, over a background that is judged too.

    Args:
        count_per_category: 1 to 200, which nearly exhausts the shortest categories; a smaller number gives the first
            prompts of a larger one.
        seed: of the draw.

    Raises:
        InputError: a number out of range.
    """
    count_per_category, seed = as_int(count_per_category, "count_per_category", 1, 200), as_int(seed, "seed", 0)
    drawn: list[CompositionPrompt] = []
    for number, category in enumerate(CATEGORIES):
        rng = np.random.default_rng([seed, number])
        texts: dict[str, CompositionPrompt] = {}
        while len(texts) < count_per_category:
            prompt = _prompt(category, rng)
            texts.setdefault(prompt.text, prompt)
        drawn += texts.values()
    return drawn


def _prompt(category: str, rng: np.random.Generator) -> CompositionPrompt:
    kinds = [str(kind) for kind in rng.choice(BASE_CONCEPTS, 3, replace=False)]
    colored = [name for name in BASE_CONCEPTS if concepts()[name].recolor]
    first, second = (str(name) for name in rng.choice(colored, 2, replace=False))
    background = str(rng.choice(BACKGROUNDS))
    where = None
    if category == "single object":
        objects = [Asked(kinds[0])]
    elif category == "counting":
        objects = [Asked(kinds[0], count=int(rng.integers(2, 4)))]
    elif category == "color binding":
        color = str(rng.choice(visible_colors(first)))
        other = str(rng.choice([each for each in visible_colors(second) if each != color]))
        objects = [Asked(first, color), Asked(second, other)]
    elif category == "complex":
        others = [Asked(kind) for kind in kinds if kind != first][:2]
        if rng.random() < 0.5:
            objects = [Asked(first, str(rng.choice(visible_colors(first)))), *others[: rng.integers(1, 3)]]
        else:
            objects = [Asked(kinds[0], count=2), Asked(kinds[1])]
        objects = [objects[number] for number in rng.permutation(len(objects))]
    else:
        objects = [Asked(kind) for kind in kinds[:2]]
        where = str(rng.choice(RELATIONS)) if category == "relation" else None
    return CompositionPrompt(category, tuple(objects), background, where)


@cache
def visible_colors(concept: str) -> tuple[str, ...]:
    """Return the colors that differ visibly from a thing's own, in every style."""

    def looks_the_same(style: str, color: str) -> bool:
        own, other = (drawing(concept, style, each) / 255 for each in (None, color))
        difference = np.average(np.abs(own - other)[..., :3].mean(-1), weights=own[..., 3])
        return bool(difference < _HARDLY)

    return tuple(color for color in COLORS if not any(looks_the_same(style, color) for style in styles()))


def judge(
    detector: SceneDetector, images: ImageLike | Sequence[ImageLike], prompts: Sequence[CompositionPrompt]
) -> pd.DataFrame:
    """Judge whether each picture shows all that its prompt asks for.

    A single thing is there if at least one is found, in the asked color if there is one; two or three are there if
    exactly so many are found, as GenEval counts. A relation holds between the surest detections of either kind, along
    the axis in which their centers differ more. Other things do no harm. The background counts in the category
    "complex" alone.

    Args:
        detector: finds things.
        images: one for each prompt.
        prompts: what was asked for.

    Returns:
        A row for each picture: category, prompt, correct, wrong (the first error, or empty), found (detections) and
        background.

    Raises:
        InputError: not one image for each prompt.
    """
    instance_of(detector, SceneDetector, "detector", "load_detector()")
    prompts, pictures = _checked(prompts), open_images(images)
    if len(pictures) != len(prompts):
        raise InputError(
            f"expected one image for each prompt, got {len(pictures)} images for {len(prompts)} prompts: pass as many"
        )
    scenes = detector.detect(pictures)
    rows = []
    for prompt, scene in zip(prompts, scenes, strict=True):
        wrong = fault(prompt, scene)
        found = ", ".join(phrase(thing.concept, thing.color) for thing in scene.objects)
        rows.append((prompt.category, prompt.text, not wrong, wrong, found, scene.background))
    return pd.DataFrame(rows, columns=["category", "prompt", "correct", "wrong", "found", "background"])


def _checked(prompts: Sequence[CompositionPrompt]) -> list[CompositionPrompt]:
    return list_of(prompts, CompositionPrompt, "prompts", "generation.prompts(16)")


def fault(prompt: CompositionPrompt, scene: DetectedScene) -> str:
    """Return the first thing that differs from the prompt, or an empty text."""
    surest = []
    for asked in prompt.objects:
        of_kind = [thing for thing in scene.objects if thing.concept == asked.concept]
        fitting = [thing for thing in of_kind if asked.color in (None, thing.color)]
        if not of_kind:
            return f"no {asked.concept}"
        if not fitting:
            return f"{asked.concept} in {of_kind[0].color or 'its own color'}"
        if asked.count > 1 and len(fitting) != asked.count:
            return f"count of {concepts()[asked.concept].plural}: {len(fitting)}"
        surest.append(fitting[0])
    if prompt.relation and (seen := relation(surest[0].center, surest[1].center)) != prompt.relation:
        return f"relation: {seen}"
    if prompt.category == "complex" and scene.background != prompt.background:
        return f"background: {scene.background}"
    return ""


def generate_pictures(
    backbone: Backbone,
    prompts: Sequence[CompositionPrompt],
    seeds: Sequence[int] = (0,),
    *,
    steps: int = 28,
    guidance_scale: float | None = None,
    batch: int = 8,
    progress: bool = True,
) -> list[Image]:
    """Generate a picture of each prompt for each seed: all prompts with the first seed, then all with the next.

    The noise of a picture depends on its prompt's number and its seed alone: two models start from the same noise.

    Args: as for `composition_scores`.
    """
    backbone, seeds = as_backbone(backbone), as_indices(seeds, "seeds", 1 << 46)
    texts = [prompt.text for prompt in _checked(prompts)]
    noise = [100_000 * seed + number for seed in seeds for number in range(len(texts))]
    settings: dict[str, Any] = {"steps": steps, "guidance_scale": guidance_scale, "batch": batch, "progress": progress}
    return backbone.generate(texts * len(seeds), seed=noise, **settings)


def composition_scores(
    backbone: Backbone,
    detector: SceneDetector,
    prompts: Sequence[CompositionPrompt],
    seeds: Sequence[int] = (0,),
    *,
    steps: int = 28,
    guidance_scale: float | None = None,
    batch: int = 8,
    progress: bool = True,
) -> pd.DataFrame:
    """Generate pictures of the prompts and judge them.

    Args:
        backbone: the model.
        detector: finds things.
        prompts: from `prompts`.
        seeds: a picture of each prompt for each.
        steps: of sampling.
        guidance_scale: None for the backbone's own.
        batch: pictures at once; another number may change last bits.
        progress: show a progress bar.

    Returns:
        What `judge` returns, and the columns model and seed; `summary` sums it up.
    """
    instance_of(detector, SceneDetector, "detector", "load_detector()")
    backbone, prompts, seeds = as_backbone(backbone), _checked(prompts), as_indices(seeds, "seeds", 1 << 46)
    shared: dict[str, Any] = {"steps": steps, "guidance_scale": guidance_scale, "batch": batch, "progress": progress}
    table = judge(detector, generate_pictures(backbone, prompts, seeds, **shared), prompts * len(seeds))
    return table.assign(model=backbone.name, seed=np.repeat(seeds, len(prompts)))


def summary(table: pd.DataFrame, by: Sequence[str] = ("category",)) -> pd.DataFrame:
    """Return shares of correct pictures, with 95 % Wilson intervals.

    Args:
        table: from `judge` or `composition_scores`.
        by: columns to group by, such as ("model", "category"), or ("model",) for all categories at once.

    Returns:
        These columns, then correct, low and high (0 to 1), and pictures. Pictures count as independent: with several
        seeds for a prompt the intervals are somewhat too narrow.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927; by scipy.
    """
    columns = [by] if isinstance(by, str) else list_of(by, str, "by", "by=['category']", "names of columns")
    require_columns(table, [*columns, "correct"], numeric=["correct"])
    rows = []
    for names, group in table.groupby(columns, sort=False):
        right, pictures = int(group["correct"].sum()), len(group)
        interval = binomtest(right, pictures).proportion_ci(method="wilson")
        rows.append((*names, right / pictures, interval.low, interval.high, pictures))
    return pd.DataFrame(rows, columns=[*columns, "correct", "low", "high", "pictures"])


def fitting_plan(prompt: CompositionPrompt, seed: int = 0) -> Plan:
    """Plan a scene that fulfills a prompt, with things that do not overlap; the seed draws the rest."""
    rng = np.random.default_rng(seed)
    things = [asked for asked in prompt.objects for _ in range(asked.count)]
    while True:
        sides = rng.uniform(0.3, 0.4, len(things))
        x, y = rng.uniform(sides / 2, 1 - sides / 2, (2, len(things)))
        apart = np.maximum(np.abs(x[:, None] - x), np.abs(y[:, None] - y)) - 0.45 * (sides[:, None] + sides)
        centers = list(zip(x.tolist(), y.tolist(), strict=True))
        free = (apart[~np.eye(len(things), dtype=bool)] > 0).all()
        if free and (prompt.relation is None or relation(centers[0], centers[1]) == prompt.relation):
            break
    placements = [
        Placement(
            asked.concept,
            str(rng.choice(styles())),
            center,
            float(side),
            float(rng.uniform(-12, 12)),
            color=asked.color,
        )
        for asked, center, side in zip(things, centers, sides, strict=True)
    ]
    noise = rng.random((2, NOISE_SIDE, NOISE_SIDE), dtype=np.float32)
    return Plan(tuple(placements), prompt.background, prompt.text, noise)


def near_miss(prompt: CompositionPrompt, seed: int = 0) -> CompositionPrompt:
    """Change one thing of a prompt, so that a picture of either is wrong for the other; the seed draws it.

    Another kind (single object), without the second thing (two objects), one more or less (counting), colors exchanged
    (color binding), places exchanged (relation), or another background (complex).
    """
    rng, objects = np.random.default_rng(seed), prompt.objects
    if prompt.category == "single object":
        others = [name for name in BASE_CONCEPTS if name != objects[0].concept]
        return replace(prompt, objects=(Asked(str(rng.choice(others))),))
    if prompt.category == "two objects":
        return replace(prompt, objects=objects[:1])
    if prompt.category == "counting":
        return replace(prompt, objects=(replace(objects[0], count=5 - objects[0].count),))
    if prompt.category == "color binding":
        one, other = objects
        return replace(prompt, objects=(replace(one, color=other.color), replace(other, color=one.color)))
    if prompt.category == "relation":
        return replace(prompt, objects=objects[::-1])
    others = [name for name in BACKGROUNDS if name != prompt.background]
    return replace(prompt, background=str(rng.choice(others)))


def validation(
    detector: SceneDetector,
    prompts: Sequence[CompositionPrompt],
    seed: int = 0,
    through: Callable[[list[np.ndarray]], Sequence[ImageLike]] | None = None,
) -> pd.DataFrame:
    """Measure how often the judge accepts drawn scenes that fulfill the prompt, and others that do not.

    Args:
        detector: finds things.
        prompts: from `prompts`, more than one of each category.
        seed: of the scenes.
        through: applied to the drawn pictures first, such as a VAE's round trip.

    Returns:
        A row for each category: the share of accepted scenes that are fitting (1 is best), shuffled (of the category's
        next prompt, which may fit by chance) and a near miss (0 is best), and pictures (how many of each).
    """

    def judged(shown: Sequence[CompositionPrompt]) -> pd.DataFrame:
        scenes = draw_scenes([fitting_plan(prompt, seed + k) for k, prompt in enumerate(shown)], detector.config.side)
        images = [scene.image for scene in scenes]
        return judge(detector, images if through is None else through(images), prompts)

    groups = pd.DataFrame({"category": [prompt.category for prompt in prompts]}).groupby("category", sort=False).groups
    following = {
        int(k): int(other) for rows in groups.values() for k, other in zip(rows, np.roll(rows, -1), strict=True)
    }
    shown = {
        "fitting": list(prompts),
        "shuffled": [prompts[following[k]] for k in range(len(prompts))],
        "near miss": [near_miss(prompt, seed + k) for k, prompt in enumerate(prompts)],
    }
    tables = {name: judged(each).groupby("category", sort=False)["correct"] for name, each in shown.items()}
    shares = pd.DataFrame({name: table.mean() for name, table in tables.items()})
    return shares.assign(pictures=tables["fitting"].size()).reset_index()
