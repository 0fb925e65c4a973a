"""What MAGNET trains, by which losses and for how long: the paper's settings, those of its code, and one for the
embedded model."""

from dataclasses import dataclass
from typing import Any, Literal

from seg4diff_tools.errors import InputError
from seg4diff_tools.magnet.losses import Focal

Maps = Literal["words", "heads"]
Reading = Literal["scores", "softmax", "shares"]
Text = Literal["classes", "caption"]
Average = Literal["images", "masks"]
Unlabeled = Literal["ignored", "outside"]
ClassTokens = Literal["span", "any"]
Resize = Literal["nearest-exact", "nearest"]


@dataclass(frozen=True)
class MagnetConfig:
    """One fine-tuning. The defaults are the paper's text for COCO, except for `reading`, which is its code's.

    Args:
        steps: updates of the weights.
        batch: images for one update, over all processes.
        learning_rate: peak, of the LoRA; it rises linearly over `warmup` steps and falls along a cosine.
        warmup: steps.
        weight_decay: of AdamW.
        clip_gradients: largest L2 norm of all gradients together.
        rank, alpha: of the LoRA.
        layers: 0-based layers whose attention is aligned with masks; empty for the expert layer alone.
        maps: "words": the mean over heads and over a class's tokens should show that class. "heads": every head's map
            of
            every CLIP token (of a model without them, every text token) is a candidate, each mask trains the one that
            fits it best (Hungarian matching), no name needed.
        text: the prompt: "classes" for the names that the image shows, joined by a space, or "caption". With words, a
            class that the caption does not name trains nothing.
        reading: log odds of a mask: "scores", q k^T / sqrt(dim) before the softmax, as in the paper's code; "softmax",
            the
            log odds of the attention itself; "shares", of its share among the image's classes, which is what an argmax
            over classes reads (words only).
        conv_head: add a 3-layer convolution of the map to it, trained along, as the paper's code does.
        head_learning_rate: of that convolution.
        focal: "published" or "released", see `losses.focal_loss`.
        average: of the mask losses: "images", the mean over an image's masks, then over images; "masks", over all masks
            of the batch, as the released code does.
        unlabeled: pixels without a label: "ignored", or "outside" of every mask as in the released code.
        class_tokens: of a class with maps="words": "span", where its name stands in the prompt; "any", every position
            with a token of its name, as in the released code ("traffic" in "traffic sign" is one of "traffic light").
        conv_first: apply the convolution to each token's map before the mean over a class's tokens, as the released
            code does (reading="scores" only; with heads every map is one token's).
        match_resize: how masks come to the grid of tokens before they are matched: "nearest-exact", or "nearest" as in
            the released code, which takes the corner of each cell.
        flow_weight, focal_weight, dice_weight: of the three losses; without a mask loss (both 0) it is plain LoRA
            fine-tuning, the control.
        match_focal, match_dice: weights of the matching cost.
        most_masks: masks of an image, the largest.
        least_area: share of the image below which a mask is dropped.
        sigma_mean, sigma_std: of the logit of the noise level, before the scheduler's shift.
        mask_side: side of the square at which maps and masks are compared, in pixels; None for the image's own.
        size: side of the square training images in pixels; None for the model's own.
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
    average: Average = "images"
    unlabeled: Unlabeled = "ignored"
    class_tokens: ClassTokens = "span"
    conv_first: bool = False
    match_resize: Resize = "nearest-exact"
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
    size: int | None = None
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
        if self.conv_first and (self.reading != "scores" or not self.conv_head):
            raise InputError(
                f"expected conv_head=True and reading='scores' with conv_first=True, got conv_head={self.conv_head} "
                f"and "
                f"reading={self.reading!r}: leave conv_first out"
            )
        if not self.has_masks and self.flow_weight == 0:
            raise InputError("expected at least one loss with a weight above 0, got none")

    @property
    def has_masks(self) -> bool:
        """Whether attention is aligned with masks at all."""
        return self.focal_weight > 0 or self.dice_weight > 0


_CODE: dict[str, Any] = {
    "conv_head": True,
    "conv_first": True,
    "focal": "released",
    "average": "masks",
    "unlabeled": "outside",
    "class_tokens": "any",
    "match_resize": "nearest",
}
PRESETS = {
    "coco": MagnetConfig(),
    "sa1b": MagnetConfig(steps=1000, maps="heads", text="caption", least_area=0.005),
    "coco-released": MagnetConfig(batch=8, **_CODE),
    "sa1b-released": MagnetConfig(steps=1000, batch=4, maps="heads", text="caption", least_area=0.005, **_CODE),
    "mini": MagnetConfig(steps=600, batch=8, learning_rate=1e-3, warmup=20, clip_gradients=1.0, reading="shares"),
}
"""Settings by name: the paper's two data sets, each by the paper's text and by its code, and the embedded model's.

The released presets have the code's losses, averages, tokens, matching and effective batch (detectron2 ignores its
gradient
accumulation). They differ from it in the pictures of COCO: it trains on the top left 640 pixels of a random 1024 crop,
half of
them flipped, these on the whole image stretched to the model's square. Noise and order of images are other draws.
"""


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
