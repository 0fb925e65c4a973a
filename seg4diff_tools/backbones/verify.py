"""Verify a family's record on a model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.errors import RecordingError

PROMPT = "a red car and a tree"
# Largest change of the other side's keys, as a share of the intended change.
LEAK = 1e-2


def verify(backbone: Backbone, prompt: str = PROMPT) -> dict[str, float]:
    """Verify a family's record: change a latent cell and a word's features, and compare the first layer's keys.

    Four forwards of random latents, on an image one token wider than high, or on a video of three latent frames.

    Args:
        backbone: of any family, such as one whose record was just written.
        prompt: with at least one word.

    Returns:
        Deviations: "output" (largest difference of the model's output under observation; exactly 0), "rows" (deviation
        from 1 of the sum of an image token's attention), "image leak" and "text leak" (change of the other side's keys,
        as a share of the change of the expected key).

    Raises:
        RecordingError: token positions differ from the record; it names the key that changed instead.
    """
    channels, *frames, rows, columns = backbone.latent_shape
    side = backbone.family.patch_size
    shape = 1, channels, *(3 for _ in frames), rows, columns + (0 if frames else side)
    latents = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    encoded = backbone.encode_prompt(prompt)
    inputs = backbone.inputs(latents, 500.0, encoded)
    with torch.no_grad():
        plain = _output(backbone, inputs)
    first, watched = _first_attention(backbone, inputs)
    rows_sum = (first.weights("i2t", heads=[0]).sum(-1) + first.weights("i2i", heads=[0]).sum(-1)).mean()

    grid = backbone.token_grid(latents)
    row, column = grid[-2] // 2, grid[-1] - 2
    place = *(1 for _ in frames), row, column
    changed = latents.clone()
    last = changed[:, :, 1] if frames else changed
    last[..., row * side : (row + 1) * side, column * side : (column + 1) * side] += 3
    moved = _moved(first, backbone, backbone.inputs(changed, 500.0, encoded))
    image_leak = _check(
        moved, first.image.start + int(np.ravel_multi_index(place, grid)), first.text, f"image token {place}"
    )

    # of several text inputs the first is changed
    held = len(encoded.inputs[backbone.family.text_inputs[0]][0])
    word = encoded.tokens[[index for index in encoded.indices("word") if index < held][-1]]
    moved = _moved(first, backbone, inputs | _with_changed_word(backbone, inputs, word.index))
    text_leak = _check(moved, first.text.start + word.index, first.image, f"word {word.text!r}")
    others = 1.0 - float(rows_sum) if first.image_tokens + first.text_tokens == first.query.shape[2] else 0.0
    return {
        "output": max(float((one - other).abs().max()) for one, other in zip(plain, watched, strict=True)),
        "rows": abs(others),
        "image leak": image_leak,
        "text leak": text_leak,
    }


def _output(backbone: Backbone, inputs: dict[str, Any]) -> list[Tensor]:
    return list(backbone.transformer(**inputs)[0])


def _first_attention(backbone: Backbone, inputs: dict[str, Any]) -> tuple[JointAttention, list[Tensor]]:
    seen: list[JointAttention] = []
    keep: Callable[[JointAttention], None] = seen.append
    with torch.no_grad(), intercept(backbone.transformer, keep, layers=[0]):
        output = _output(backbone, inputs)
    return seen[0], output


def _moved(before: JointAttention, backbone: Backbone, inputs: dict[str, Any]) -> Tensor:
    after, _ = _first_attention(backbone, inputs)
    return (after.key.float() - before.key.float()).abs().amax(dim=(0, 1, 3))


def _check(moved: Tensor, expected: int, other: slice, name: str) -> float:
    found = int(moved.argmax())
    if found != expected:
        raise RecordingError(
            f"expected the {name} at position {expected} of the joint sequence, but there position {found} moved: the "
            "family's layout is not that of the model"
        )
    leak = float(moved[other].max() / moved.max())
    if leak > LEAK:
        raise RecordingError(
            f"expected a change of the {name} to leave keys of the other side alone, but they moved by {leak:.1%} of "
            "it: the family's layout is not that of the model, or its first layer is no joint attention"
        )
    return leak


def _with_changed_word(backbone: Backbone, inputs: dict[str, Any], place: int) -> dict[str, Any]:
    name = backbone.family.text_inputs[0]
    given = inputs[name]
    features = torch.stack(given) if isinstance(given, list) else given.clone()
    features[:, place] += 3
    return {name: list(features) if isinstance(given, list) else features}
