"""What MAGNET trains, by which losses and for how long: the paper's settings, those of its code, and one for the
embedded model."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from seg4diff_tools.attention.temperature import ABOVE
from seg4diff_tools.errors import InputError, one_of
from seg4diff_tools.indices import as_float, as_indices, as_int
from seg4diff_tools.magnet.losses import Focal

Maps = Literal["words", "heads"]
Reading = Literal["scores", "softmax", "shares"]
Text = Literal["classes", "caption"]
Average = Literal["images", "masks"]
Unlabeled = Literal["ignored", "outside"]
ClassTokens = Literal["span", "any"]
Resize = Literal["nearest-exact", "nearest"]
Noise = Literal["logit-normal", "uniform", "early", "late"]
Levels = Literal["all", "early", "late"]

MASK_LOSSES = ("focal", "dice")
"""Losses that compare log odds with masks."""
WORD_LOSSES = ("places", "entropy", "apart", "agree")
"""Losses that read the attention to words."""
LOSSES = ("flow", "regions", *MASK_LOSSES, *WORD_LOSSES)
"""Every loss; the weight of "dice" is the field dice_weight of `MagnetConfig`, and so on."""

_CHOICES: dict[str, Any] = {
    "maps": Maps,
    "text": Text,
    "reading": Reading,
    "focal": Focal,
    "average": Average,
    "unlabeled": Unlabeled,
    "class_tokens": ClassTokens,
    "match_resize": Resize,
    "noise": Noise,
    "align_at": Levels,
}
# smallest whole numbers, and ranges of others
_WHOLE = {"steps": 1, "batch": 1, "warmup": 0, "rank": 1, "alpha": 1, "most_masks": 1, "mask_side": 1, "size": 1}
_WHOLE |= {"zero_tokens": 0, "seed": 0, "patience": 0}
_REAL: dict[str, tuple[float, float | None]] = dict.fromkeys(
    ("learning_rate", "head_learning_rate", "weight_decay", "clip_gradients"), (0.0, None)
)
_REAL |= dict.fromkeys((*(f"{name}_weight" for name in LOSSES), "match_focal", "match_dice"), (0.0, None))
_REAL |= {"least_area": (0.0, 1.0), "flip": (0.0, 1.0), "sigma_mean": (float("-inf"), None), "sigma_std": (0.0, None)}
_REAL |= {"temperature": (0.0, None), "temperature_above": (0.0, 1000.0)}
# and what to pass in place of 0
_ABOVE_ZERO = {"learning_rate": "1e-5", "head_learning_rate": "1e-4", "clip_gradients": "0.01", "shift": "1.0"}
_ABOVE_ZERO |= {"temperature": "1.2"}


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
        layer_weights: of these layers' losses, whose weighted mean counts; empty for equal ones.
        maps: "words": the mean over heads and over a class's tokens should show that class. "heads": every head's map
            of every CLIP token (of a model without them, every text token) is a candidate, each mask trains the one
            that fits it best (Hungarian matching), no name needed.
        text: the prompt: "classes" for the names that the image shows, joined by a space, or "caption". With words, a
            class that the caption does not name trains nothing.
        reading: log odds of a mask: "scores", q k^T / sqrt(dim) before the softmax, as in the paper's code; "softmax",
            the log odds of the attention itself; "shares", of its share among the image's classes, which is what an
            argmax over classes reads (words only).
        conv_head: add a 3-layer convolution of the map to it before focal and dice, trained along, as the paper's code
            does.
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
        flow_weight, focal_weight, dice_weight: of the paper's three losses. Without a loss on attention (all 0) it is
            plain LoRA fine-tuning, the control.
        places_weight, entropy_weight: of TokenCompose's two, which read the attention to words over places
            (`losses.places_loss` for each layer and head, `losses.entropy_loss` for the mean map of all).
        apart_weight, agree_weight: of FOCUS's two, which need no masks but names: words look at different places, the
            tokens of one word at the same (`losses.apart_loss`, `losses.agree_loss`).
        regions_weight: of the flow loss once more, as the mean over masks of its mean within each.
        match_focal, match_dice: weights of the matching cost.
        most_masks: masks of an image, the largest.
        least_area: share of the image below which a mask is dropped.
        noise: distribution of the noise level before the shift: "logit-normal"; "uniform" from 0 to 1; "early", its
            noisy half; "late", the other half. With the scheduler's shift, "uniform" draws levels as often as sampling
            visits them.
        sigma_mean, sigma_std: of the logit of the noise level with noise="logit-normal".
        shift: of the noise level, s t / (1 + (s - 1) t); None for the scheduler's, 1 for none.
        align_at: noise levels at which masks and words count: "all", "early" (the noisy half of sampling, in which a
            layout emerges) or "late". At the others an image trains the flow loss alone.
        temperature, temperature_above: factor on the scores of image tokens with text tokens, and the timestep from
            which on there is one (`attention.temperature`); 1 for none. Sample with the same.
        patience: evaluations without a better `both` after which training stops, see `finetune`; 0 never stops it.
        mask_side: side of the square at which maps and masks are compared, in pixels; None for the image's own.
        size: side of the square training images in pixels; None for the model's own.
        crop: (side, corner): bring the shorter side of an image to `side` pixels, cut a square of that side at a random
            place, and take its top left square of `corner` pixels, as the released code does for COCO; None for the
            whole image, stretched.
        flip: share of images that are mirrored left to right, after the random cut and before the corner is taken.
        zero_tokens: zero vectors that stand for T5's tokens.
        seed: of everything random.

    Raises:
        InputError: a value of another type or out of range, or two that exclude each other.

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
    layer_weights: tuple[float, ...] = ()
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
    places_weight: float = 0.0
    entropy_weight: float = 0.0
    apart_weight: float = 0.0
    agree_weight: float = 0.0
    regions_weight: float = 0.0
    match_focal: float = 0.02
    match_dice: float = 1.0
    most_masks: int = 32
    least_area: float = 0.0
    noise: Noise = "logit-normal"
    sigma_mean: float = 0.0
    sigma_std: float = 0.5
    shift: float | None = None
    align_at: Levels = "all"
    temperature: float = 1.0
    temperature_above: float = ABOVE
    patience: int = 0
    mask_side: int | None = None
    size: int | None = None
    crop: tuple[int, int] | None = None
    flip: float = 0.0
    zero_tokens: int = 77
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            one_of(getattr(self, name), name, get_args(kind))
        for name in ("conv_head", "conv_first"):
            one_of(getattr(self, name), name, (False, True))
        for name, least in _WHOLE.items():
            if getattr(self, name) is not None or name not in ("mask_side", "size"):
                self._set(name, as_int(getattr(self, name), name, least))
        for name, (low, high) in _REAL.items():
            self._set(name, as_float(getattr(self, name), name, low, high))
        if self.shift is not None:
            self._set("shift", as_float(self.shift, "shift"))
        for name, usual in _ABOVE_ZERO.items():
            if getattr(self, name) == 0:
                raise InputError(f"expected {name} above 0, got 0: pass a number such as {name}={usual}")
        empty = isinstance(self.layers, (tuple, list)) and not self.layers
        self._set("layers", () if empty else tuple(as_indices(self.layers, "layers")))
        self._check_layer_weights()
        if self.crop is not None:
            if not isinstance(self.crop, (tuple, list)) or len(self.crop) != 2:
                raise InputError(
                    f"expected crop, the side of a square and of its corner, got {self.crop!r}: pass crop=(1024, 640)"
                )
            side = as_int(self.crop[0], "crop", 1)
            self._set("crop", (side, as_int(self.crop[1], "crop", 1, side)))
        self._check_together()

    def _check_layer_weights(self) -> None:
        given = self.layer_weights
        if not isinstance(given, (tuple, list)):
            raise InputError(
                f"expected layer_weights, a number for each layer, got {given!r}: pass layer_weights=(1.0, 0.5)"
            )
        weights = tuple(as_float(weight, "layer_weights") for weight in given)
        if weights and (len(weights) != len(self.layers) or not sum(weights)):
            raise InputError(
                f"expected layer_weights for each of {len(self.layers)} layers, not all 0, got {weights}: pass as many"
            )
        self._set("layer_weights", weights)

    def _check_together(self) -> None:
        """Refuse combinations of values that exclude each other."""
        if self.maps == "heads" and self.reading == "shares":
            raise InputError(
                "expected reading='scores' or 'softmax' with maps='heads', got reading='shares': masks without names "
                "have no shares"
            )
        if self.conv_first and (self.reading != "scores" or not self.conv_head):
            raise InputError(
                f"expected conv_head=True and reading='scores' with conv_first=True, got conv_head={self.conv_head} "
                f"and reading={self.reading!r}: leave conv_first out"
            )
        if not self.weights:
            raise InputError("expected at least one loss with a weight above 0, got 0 for all: pass flow_weight=1.0")
        if self.maps == "heads" and (of_words := [name for name in self.aligned if name in WORD_LOSSES]):
            raise InputError(
                f"expected maps='words' with {of_words[0]}_weight, got maps='heads': masks without names have no words"
            )
        if self.maps == "heads" and not self.match_focal and not self.match_dice:
            raise InputError(
                "expected match_focal or match_dice above 0 with maps='heads', got 0 for both: pass match_dice=1.0"
            )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def weights(self) -> dict[str, float]:
        """The losses that train, by name, and their weights."""
        every = {name: float(getattr(self, f"{name}_weight")) for name in LOSSES}
        return {name: weight for name, weight in every.items() if weight > 0}

    @property
    def aligned(self) -> tuple[str, ...]:
        """The losses that read attention and train."""
        return tuple(name for name in (*MASK_LOSSES, *WORD_LOSSES) if name in self.weights)

    @property
    def reads_masks(self) -> bool:
        """Whether a loss compares log odds with masks, which a convolution may change first."""
        return any(name in MASK_LOSSES for name in self.aligned)

    @property
    def reads_words(self) -> bool:
        """Whether a loss reads the attention to words."""
        return any(name in WORD_LOSSES for name in self.aligned)

    @property
    def has_masks(self) -> bool:
        """Whether a loss reads attention at all."""
        return bool(self.aligned)


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
    "coco-released": MagnetConfig(batch=8, crop=(1024, 640), flip=0.5, mask_side=640, **_CODE),
    "sa1b-released": MagnetConfig(
        steps=1000, batch=4, maps="heads", text="caption", least_area=0.005, flip=0.5, **_CODE
    ),
    "mini": MagnetConfig(steps=600, batch=8, learning_rate=1e-3, warmup=20, clip_gradients=1.0, reading="shares"),
}
"""Settings by name: the paper's two data sets, each by the paper's text and by its code, and the embedded model's.

The released presets have the code's losses, averages, tokens, matching, pictures and effective batch (detectron2
ignores its gradient accumulation). Noise, order of images, cuts and flips are other draws. Of SA-1B the code reads the
first two sentences of a caption and pads images to the largest of the batch; these read what fits, and stretch each
image.
"""


def preset(name: str) -> MagnetConfig:
    """One of `PRESETS`.

    Args:
        name: "coco", "sa1b", "coco-released", "sa1b-released" or "mini".

    Raises:
        InputError: another name.
    """
    one_of(name, "preset", tuple(PRESETS))
    return PRESETS[name]
