"""Effects of words that are kept in their place on pictures: are more of them right, and do things stand there?"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool
from PIL.Image import Image
from tqdm.auto import tqdm

from seg4diff_tools.attention.placing import lock_layout, place_words
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.loading import as_backbone
from seg4diff_tools.errors import InputError, instance_of, list_of
from seg4diff_tools.generation.composition import Asked, CompositionPrompt, fault, fitting_plan
from seg4diff_tools.generation.detector import DetectedScene, SceneDetector
from seg4diff_tools.indices import as_int, as_positive
from seg4diff_tools.scenes.drawings import concepts

Places = dict[str, Bool[np.ndarray, "y x"]]
Way = Callable[[Backbone, Sequence[str], Sequence[Places]], AbstractContextManager]
"""From the model, prompts and the places of their things to a `with` in which pictures are drawn."""
SIDE = 96
"""Side of the masks of `asked_places`."""


@dataclass(frozen=True)
class Placing:
    """How words are kept in their place.

    Args:
        strength: see `place_words`, infinite ones too; 0 for pictures without it.
        lock: step whose attention tells where words stand, see `lock_layout`; None for places that are given.

    Raises:
        InputError: a value out of range.
    """

    strength: float = 2.0
    lock: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", as_positive(self.strength, "strength", zero=True))
        if self.lock is not None:
            object.__setattr__(self, "lock", as_int(self.lock, "lock", 0))


def asked_places(prompt: CompositionPrompt, seed: int = 0) -> Places:
    """Draw places for the things of a prompt, as in a scene that fulfills it: squares that hardly overlap.

    Args:
        prompt: what is asked for.
        seed: of the draw.

    Returns:
        For the words of each thing, such as "red car" or "cats", the squares of all of its kind.
    """
    instance_of(prompt, CompositionPrompt, "prompt", "one of generation.prompts(16)")
    placements, places = iter(fitting_plan(prompt, seed).placements), {}
    centers = (np.arange(SIDE) + 0.5) / SIDE
    for asked in prompt.objects:
        mask = np.zeros((SIDE, SIDE), dtype=bool)
        for _ in range(asked.count):
            thing = next(placements)
            across, down = (np.abs(centers - center) <= thing.side / 2 for center in thing.center)
            mask |= down[:, None] & across
        places[_words(asked)] = mask
    return places


def placing_effects(
    backbone: Backbone,
    detector: SceneDetector,
    prompts: Sequence[CompositionPrompt],
    settings: Mapping[str, Placing | Way],
    *,
    steps: int = 28,
    guidance_scale: float | None = None,
    batch: int = 8,
    progress: bool = True,
) -> pd.DataFrame:
    """Generate the same pictures without and with words kept in their place, and judge them.

    Args:
        backbone: the model.
        detector: finds things.
        prompts: one picture each; the prompt's number is the seed of its noise and of its places.
        settings: to compare, by name: how words are kept in their place, or a function of the backbone, the prompts and
            the places of their things that gives a context manager, such as one with `regional_prompts`.
        steps: of sampling.
        guidance_scale: None for the backbone's own.
        batch: pictures at once.
        progress: show a progress bar.

    Returns:
        A row for each setting and prompt: setting, prompt (its number), category, text, correct (see `judge`), wrong,
        asked (how many kinds of things) and placed (of how many the surest one found has its center in its place).

    Raises:
        InputError: arguments of another kind.
    """
    backbone, batch = as_backbone(backbone), as_int(batch, "batch", 1)
    instance_of(detector, SceneDetector, "detector", "load_detector()")
    prompts = list_of(prompts, CompositionPrompt, "prompts", "generation.prompts(16)")
    if not isinstance(settings, Mapping) or not all(
        isinstance(each, Placing) or callable(each) for each in settings.values()
    ):
        raise InputError(f"expected settings, Placing by name, got {settings!r}: pass settings={{'placed': Placing()}}")
    places = [asked_places(prompt, number) for number, prompt in enumerate(prompts)]
    rows = []
    with tqdm(total=len(settings) * len(prompts), unit="picture", disable=not progress, desc="placing") as bar:
        for name, setting in settings.items():
            made: list[Image] = []
            for start in range(0, len(prompts), batch):
                part = slice(start, start + batch)
                texts = [prompt.text for prompt in prompts[part]]
                with _placed(backbone, prompts[part], places[part], setting):
                    seeds = list(range(start, start + len(texts)))
                    made += backbone.generate(
                        texts, steps=steps, guidance_scale=guidance_scale, seed=seeds, progress=False
                    )
                bar.update(len(texts))
            found = detector.detect(made)
            for number, (prompt, own, scene) in enumerate(zip(prompts, places, found, strict=True)):
                wrong, placed = fault(prompt, scene), things_in_place(prompt, own, scene)
                rows.append((name, number, prompt.category, prompt.text, not wrong, wrong, len(prompt.objects), placed))
    columns = ["setting", "prompt", "category", "text", "correct", "wrong", "asked", "placed"]
    return pd.DataFrame(rows, columns=columns)


def _placed(
    backbone: Backbone, prompts: Sequence[CompositionPrompt], places: Sequence[Places], setting: Placing | Way
) -> AbstractContextManager:
    texts = [prompt.text for prompt in prompts]
    if not isinstance(setting, Placing):
        return setting(backbone, texts, places)
    if setting.strength == 0:
        return nullcontext()
    if setting.lock is None:
        return place_words(backbone, texts, list(places), strength=setting.strength)
    words = [[*own, prompt.background] for prompt, own in zip(prompts, places, strict=True)]
    return lock_layout(backbone, texts, words, setting.lock, strength=setting.strength)


def _words(asked: Asked) -> str:
    known = concepts()[asked.concept]
    noun = known.plural if asked.count > 1 else known.name
    return f"{asked.color} {noun}" if asked.color else noun


def things_in_place(prompt: CompositionPrompt, places: Places, scene: DetectedScene) -> int:
    """Count the kinds of things whose surest detection has its center in its place, from `asked_places`."""
    count = 0
    for asked in prompt.objects:
        found = [thing.center for thing in scene.objects if thing.concept == asked.concept][:1]
        x, y = (min(SIDE - 1, max(0, int(side * SIDE))) for side in (found or [(0.0, 0.0)])[0])
        count += bool(found) and bool(places[_words(asked)][y, x])
    return count
