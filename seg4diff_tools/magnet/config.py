"""What MAGNET trains, by which losses and for how long: the paper's settings, those of its code, and one for the embedded model."""

from dataclasses import dataclass
from typing import Literal

from seg4diff_tools.errors import InputError
from seg4diff_tools.magnet.losses import Focal

Maps = Literal["words", "heads"]
Reading = Literal["scores", "softmax", "shares"]
Text = Literal["classes", "caption"]


@dataclass(frozen=True)
class MagnetConfig:
    """One fine-tuning. The defaults are the paper's text for COCO.

    Args:
        steps: updates of the weights.
        batch: images for one update, over all processes.
        learning_rate: peak, of the LoRA; it rises linearly over `warmup` steps and falls along a cosine.
        warmup: steps.
        weight_decay: of AdamW.
        clip_gradients: largest L2 norm of all gradients together.
        rank, alpha: of the LoRA.
        layers: 0-based layers whose attention is aligned with masks; empty for the expert layer alone.
        maps: "words": the mean over heads and over a class's tokens should show that class. "heads": every head's map of
            every CLIP token (of a model without them, every text token) is a candidate, each mask trains the one that fits it best (Hungarian matching), no name needed.
        text: the prompt: "classes" for the names that the image shows, joined by a space, or "caption". With words, a
            class that the caption does not name trains nothing.
        reading: log odds of a mask: "scores", q k^T / sqrt(dim) before the softmax, as in the paper's code; "softmax", the
            log odds of the attention itself; "shares", of its share among the image's classes, which is what an argmax over
            classes reads (words only).
        conv_head: add a 3-layer convolution of the map to it, trained along, as the paper's code does.
        head_learning_rate: of that convolution.
        focal: "published" or "released", see `losses.focal_loss`.
        flow_weight, focal_weight, dice_weight: of the three losses; without a mask loss (both 0) it is plain LoRA
            fine-tuning, the control.
        match_focal, match_dice: weights of the matching cost.
        most_masks: masks of an image, the largest.
        least_area: share of the image below which a mask is dropped.
        sigma_mean, sigma_std: of the logit of the noise level, before the scheduler's shift.
        mask_side: side of the square at which maps and masks are compared, in pixels; None for the image's own.
        zero_tokens: zero vectors that stand for T5's tokens.
        seed: of everything random.

    Source: Seg4Diff, arXiv 2509.18096, section 3.5, equations 13 and 14, appendix A.
    """

    steps: int = 3000
    batch: int = 16
    learning_rate: float = 1e-5
    warmup: int = 500
    weight_decay: float = 1e-4
    clip_gradients: float = 0.01
    rank: int = 16
    alpha: int = 16
    layers: tuple[int, ...] = ()
    maps: Maps = "words"
    text: Text = "classes"
    reading: Reading = "scores"
    conv_head: bool = False
    head_learning_rate: float = 1e-4
    focal: Focal = "published"
    flow_weight: float = 1.0
    focal_weight: float = 0.1
    dice_weight: float = 0.2
    match_focal: float = 0.02
    match_dice: float = 1.0
    most_masks: int = 32
    least_area: float = 0.0
    sigma_mean: float = 0.0
    sigma_std: float = 0.5
    mask_side: int | None = None
    zero_tokens: int = 77
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "rank", "alpha", "most_masks"):
            if getattr(self, name) < 1:
                raise InputError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if self.maps == "heads" and self.reading == "shares":
            raise InputError(
                "expected reading='scores' or 'softmax' with maps='heads': masks without names have no shares"
            )
        if not self.has_masks and self.flow_weight == 0:
            raise InputError("expected at least one loss with a weight above 0, got none")

    @property
    def has_masks(self) -> bool:
        """Whether attention is aligned with masks at all."""
        return self.focal_weight > 0 or self.dice_weight > 0


PRESETS = {
    "coco": MagnetConfig(),
    "sa1b": MagnetConfig(steps=1000, maps="heads", text="caption", least_area=0.005),
    "coco-released": MagnetConfig(conv_head=True, focal="released"),
    "sa1b-released": MagnetConfig(
        steps=1000, batch=8, maps="heads", text="caption", least_area=0.005, conv_head=True, focal="released"
    ),
    "mini": MagnetConfig(steps=600, batch=8, learning_rate=1e-3, warmup=20, clip_gradients=1.0, reading="shares"),
}
"""Settings by name: the paper's two data sets, each by the paper's text and by its code, and the embedded model's."""


def preset(name: str) -> MagnetConfig:
    """One of `PRESETS`.

    Args:
        name: "coco", "sa1b", "coco-released", "sa1b-released" or "mini".

    Raises:
        InputError: another name.
    """
    if name not in PRESETS:
        raise InputError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]
