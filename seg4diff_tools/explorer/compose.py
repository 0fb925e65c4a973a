"""Compose a scene interactively, and explore the model's attention on it."""

import json
from collections.abc import Sequence
from typing import Any

import traitlets

from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.loading import as_backbone
from seg4diff_tools.errors import InputError
from seg4diff_tools.explorer.live import STEPS, LiveExplorer
from seg4diff_tools.explorer.words import known_phrases
from seg4diff_tools.images import ImageLike
from seg4diff_tools.indices import as_int
from seg4diff_tools.scenes import BACKGROUNDS, BASE_CONCEPTS, Scene, compose

DEFAULTS = {"mode": "masks"}
Objects = Sequence[tuple[str, tuple[float, float], float]]


class Composer(LiveExplorer):
    """An explorer of an editable scene, made by `compose_scene`.

    Attributes:
        objects: for each object, back to front, a dictionary of its name, and x, y and side in shares of the picture.
        background: one of `scenes.BACKGROUNDS`.
    """

    objects = traitlets.List(traitlets.Dict()).tag(sync=True)
    background = traitlets.Unicode().tag(sync=True)
    stock = traitlets.Dict().tag(sync=True)

    def __init__(self, backbone: Backbone, objects: Objects, background: str, seed: int, **arguments: Any):
        self.defaults = self.defaults | DEFAULTS
        self._size = min(backbone.image_size, 256)
        self._draw(objects, background)
        things = [{"name": name, "x": x, "y": y, "side": side} for name, (x, y), side in objects]
        phrases = known_phrases()  # of all things that can be drawn
        super().__init__(backbone, self._scene.image, self._scene.caption, seed, phrases=phrases, **arguments)
        self.stock = {"names": list(BASE_CONCEPTS), "backgrounds": list(BACKGROUNDS)}
        self.objects, self.background = things, background
        self.observe(self._compose, ["objects", "background"])

    def _draw(self, placed: Objects, background: str) -> None:
        self._scene = compose(placed, background, size=self._size)
        listed = ", ".join(f"({json.dumps(name)}, ({x:.2f}, {y:.2f}), {side:.2f})" for name, (x, y), side in placed)
        self._made = f"compose_scene(backbone, [{listed}], {json.dumps(background)}"

    @property
    def scene(self) -> Scene:
        """The current scene, with its exact masks."""
        return self._scene

    def _compose(self, change: object) -> None:
        try:
            placed: Any = [
                (each.get("name"), (each.get("x"), each.get("y")), each.get("side")) for each in self.objects
            ]
            self._draw(placed, self.background)
        except InputError as error:
            self.message = str(error)
            return
        self.picture, self.prompt = self._scene.image, self._scene.caption

    def _code(self, picture: ImageLike | None, prompt: str, seed: int) -> str:
        _, steps, options, _ = self._recipe
        left = steps - options["steps"][0]
        schedule = (f", steps={steps}" if steps != STEPS else "") + (f", steps_from_end={left}" if left != 8 else "")
        return f"{self._made}, seed={seed}{schedule}"


def compose_scene(
    backbone: Backbone,
    objects: Objects = (("cat", (0.3, 0.62), 0.5), ("tree", (0.7, 0.42), 0.6)),
    background: str = "grass",
    *,
    steps: int = STEPS,
    steps_from_end: int = 8,
    seed: int = 0,
    store: int = 1 << 20,
    **settings: Any,
) -> Composer:
    """Show a scene whose objects can be dragged, resized, added and removed; the masks are updated.

    Args:
        backbone: the model.
        objects: (name, (x, y), side) each, back to front, as for `scenes.compose`.
        background: one of `scenes.BACKGROUNDS`.
        steps: length of the schedule.
        steps_from_end: noise level of the scene; a single step, for fast updates of the masks.
        seed: of the noise.
        store: see `explore`.
        settings: attributes of `Explorer`.

    Returns:
        The viewer. `view.scene` is the scene with its exact masks, `view.objects = [...]` changes it.

    Raises:
        InputError: an unknown name or background, no object, or a side outside 0..1.

    Example: `compose_scene(load_backbone("mini"), [("dog", (0.5, 0.5), 0.6)], "snow")`.
    """
    backbone, steps = as_backbone(backbone), as_int(steps, "steps", 1, 1000)
    options = {"steps": [steps - as_int(steps_from_end, "steps_from_end", 1, steps)]}
    settings = DEFAULTS | settings
    return Composer(backbone, objects, background, seed, steps=steps, options=options, store=store, **settings)
