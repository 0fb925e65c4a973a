"""Recording a backbone at one go: what it attends to while it looks at a picture, or draws one."""

from collections.abc import Callable, Mapping
from typing import Any

import PIL.Image

from seg4diff_tools.backbones import Backbone
from seg4diff_tools.images import ImageLike, open_image
from seg4diff_tools.recorder import AttentionRecorder, Recording


def record_live(
    backbone: Backbone,
    steps: int,
    options: Mapping[str, Any],
    picture: ImageLike | None,
    prompt: str,
    seed: int,
    report: Callable[[int, int], None],
) -> tuple[Recording, PIL.Image.Image]:
    """Records a backbone while it looks at a picture, or draws one.

    Args:
        backbone: the model.
        steps: length of the schedule.
        options: arguments of `AttentionRecorder`. Without any, all layers and steps are recorded, the mean of heads, and
            every token that was read; padding is left out where there are more than CLIP's 77.
        picture: what it looks at, with the noise of each wanted step; None for what it draws.
        prompt: what it reads.
        seed: of the noise.
        report: called after each step with the number of steps that are done and that there are; may raise to stop.

    Returns:
        The recording, its steps counted from the beginning of the schedule, and the picture.
    """
    encoded = backbone.encode_prompt(prompt)
    read = encoded.indices("start", "word", "end", "template")
    tokens = encoded.indices("start", "word", "end", "template", "pad")
    options = {"prompt": encoded, "tokens": tokens if len(tokens) <= 77 else read, **options}
    if picture is None:
        with AttentionRecorder(backbone, **options) as recorder:
            (drawn,) = backbone.generate(
                encoded, steps=steps, seed=seed, progress=False, callback=lambda step, *_: report(step + 1, steps)
            )
        return recorder.recording, drawn
    wanted = sorted(options.pop("steps", None) or range(steps))
    shown = open_image(picture)
    latents = backbone.encode_image(shown)
    with AttentionRecorder(backbone, **options) as recorder:
        for done, step in enumerate(wanted, start=1):
            backbone.denoise(*backbone.noised(latents, steps - step, steps, seed), encoded)
            report(done, len(wanted))
    arrays = {name: array.assign_coords(step=wanted) for name, array in recorder.recording.arrays.items()}
    return Recording(arrays), shown
