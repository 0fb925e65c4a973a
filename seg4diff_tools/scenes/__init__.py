"""Captioned scenes of several objects over a background, with exact masks."""

from seg4diff_tools.scenes.drawings import COLORS, concepts, styles
from seg4diff_tools.scenes.planning import (
    BACKGROUNDS,
    BASE_CONCEPTS,
    CAPTIONS,
    RELATIONS,
    SPLITS,
    Placement,
    Plan,
    SceneConfig,
    describe,
    phrase,
    plan,
    relation,
    sentence,
)
from seg4diff_tools.scenes.scenes import Scene, Scenes, compose, draw_scenes, gallery, render, scene, visible

__all__ = [
    "BACKGROUNDS",
    "BASE_CONCEPTS",
    "CAPTIONS",
    "COLORS",
    "RELATIONS",
    "SPLITS",
    "Placement",
    "Plan",
    "Scene",
    "SceneConfig",
    "Scenes",
    "compose",
    "concepts",
    "describe",
    "draw_scenes",
    "gallery",
    "phrase",
    "plan",
    "relation",
    "render",
    "scene",
    "sentence",
    "styles",
    "visible",
]
