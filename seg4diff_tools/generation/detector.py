"""Scene detector: positions, concepts and colors of things in a picture of a scene, and its background.

A small convolutional network similar to CenterNet (Zhou et al., "Objects as Points", arXiv 1904.07850). Pictures of
96 x 96 pixels are reduced to 6 x 6 cells and upsampled to 24 x 24. Each cell has a center score for each of the 32
concepts, and color scores; the mean over all cells gives the background. Things are the peaks of the concepts' maps.
`scripts/train_parser.py` trained it.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from seg4diff_tools._runs import as_path, make_folder, replace_file
from seg4diff_tools.backbones.loading import as_device
from seg4diff_tools.errors import CheckpointError, InputError, instance_of, list_of
from seg4diff_tools.images import ImageLike, open_images, square_pixels
from seg4diff_tools.indices import as_int
from seg4diff_tools.scenes import BACKGROUNDS, BASE_CONCEPTS, Placement, Plan, relation, render, visible
from seg4diff_tools.scenes.drawings import COLORS, concepts

FOLDER = Path(__file__).parents[1] / "models" / "scene-parser"
NEAR = 0.15
"""Largest distance of a detected center from a thing's, as a share of the image side."""


@dataclass(frozen=True)
class DetectorConfig:
    """Words, size and thresholds of a detector.

    Attributes:
        concepts, colors, backgrounds: in the order of the network's outputs; "its own" precedes the colors.
        side: of the square input pictures in pixels; others are stretched to it.
        widths: channels at 1/2, 1/4, 1/8 and 1/16 of the side.
        threshold: lowest score of a thing, 0 to 1.
        apart: smallest distance of two peaks in cells of 4 pixels; of closer ones, only the higher is a thing.
    """

    concepts: tuple[str, ...] = BASE_CONCEPTS
    colors: tuple[str, ...] = tuple(COLORS)
    backgrounds: tuple[str, ...] = BACKGROUNDS
    side: int = 96
    widths: tuple[int, int, int, int] = (24, 48, 80, 96)
    threshold: float = 0.25
    apart: float = 3.0


@dataclass(frozen=True)
class Found:
    """A detected thing: center (x, y) in shares of the side, color (None: its own) and score (0 to 1)."""

    concept: str
    center: tuple[float, float]
    color: str | None = None
    score: float = 1.0


@dataclass(frozen=True)
class DetectedScene:
    """Detected things of a picture, highest score first, and its background."""

    objects: tuple[Found, ...]
    background: str


class DetectorNet(nn.Module):
    """The network: images to logits of centers, colors and backgrounds."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        a, b, c, d = config.widths
        self.quarter = nn.Sequential(_block(3, a, 2), _block(a, b, 2), _Residual(b))
        self.eighth = nn.Sequential(_block(b, c, 2), _Residual(c), _Residual(c))
        self.sixteenth = nn.Sequential(_block(c, d, 2), _Residual(d))
        self.from_sixteenth, self.from_eighth = nn.Conv2d(d, c, 1), nn.Conv2d(c, b, 1)
        self.merge = _block(b, 64)
        self.center = nn.Conv2d(64, len(config.concepts), 1)
        self.color = nn.Conv2d(64, 1 + len(config.colors), 1)
        self.background = nn.Linear(64, len(config.backgrounds))
        nn.init.constant_(self.center.bias, -4.0)  # prior: few cells are centers

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch concept y x"], Float[Tensor, "batch color y x"], Float[Tensor, "batch background"]]:
        """Return logits; images are in 0..1, y and x count cells of 4 pixels."""
        fine = self.quarter(images * 2 - 1)
        middle = self.eighth(fine)
        middle = middle + _doubled(self.from_sixteenth(self.sixteenth(middle)))
        features = self.merge(fine + _doubled(self.from_eighth(middle)))
        return self.center(features), self.color(features), self.background(features.mean((2, 3)))


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(_block(width, width), _block(width, width))

    def forward(self, features: Tensor) -> Tensor:
        return features + self.blocks(features)


def _doubled(features: Tensor) -> Tensor:
    return nn.functional.interpolate(features, scale_factor=2.0, mode="nearest")


@dataclass(frozen=True, eq=False)
class SceneDetector:
    """A trained network with its words."""

    net: DetectorNet
    config: DetectorConfig = DetectorConfig()

    @torch.no_grad()
    def detect(self, images: ImageLike | Sequence[ImageLike], batch: int = 64) -> list[DetectedScene]:
        """Detect the things and the background of each picture.

        Args:
            images: paths, PIL images, uint8 arrays [y x 3], float tensors [3 y x] from 0 to 1, or lists of these; each
                is stretched to the detector's square.
            batch: pictures at once.

        Raises:
            InputError: an unreadable image.
        """
        pictures, device, batch = open_images(images), next(self.net.parameters()).device, as_int(batch, "batch", 1)
        found = []
        for start in range(0, len(pictures), batch):
            pixels = square_pixels(pictures[start : start + batch], self.config.side)
            centers, colors, backgrounds = (logits.cpu() for logits in self.net(pixels.to(device)))
            named = [self.config.backgrounds[number] for number in backgrounds.argmax(1).tolist()]
            for scores, color, background in zip(centers.sigmoid(), colors, named, strict=True):
                found.append(DetectedScene(self._things(scores, color), background))
        return found

    def _things(self, scores: Float[Tensor, "concept y x"], colors: Float[Tensor, "color y x"]) -> tuple[Found, ...]:
        """Return the peaks of square maps, highest first."""
        highest = nn.functional.max_pool2d(scores, 3, 1, 1)
        peaks = torch.nonzero((scores == highest) & (scores > self.config.threshold)).tolist()
        things: list[Found] = []
        cells = scores.shape[-1]
        middles = (torch.arange(cells, dtype=scores.dtype) + 0.5) / cells
        for number, y, x in sorted(peaks, key=lambda peak: -scores[tuple(peak)].item()):
            rows, columns = slice(max(y - 1, 0), y + 2), slice(max(x - 1, 0), x + 2)
            near = scores[number, rows, columns] / scores[number, rows, columns].sum()
            # the center of mass of a peak gives its position within the cell
            center = ((near.sum(0) @ middles[columns]).item(), (near.sum(1) @ middles[rows]).item())
            if any(_distance(center, thing.center) * cells < self.config.apart for thing in things):
                continue
            color = (None, *self.config.colors)[int(colors[:, y, x].argmax())]
            things.append(Found(self.config.concepts[number], center, color, scores[number, y, x].item()))
        return tuple(things)


def load_detector(folder: str | Path | None = None, device: str | torch.device = "cpu") -> SceneDetector:
    """Load a scene detector.

    Args:
        folder: from `save_detector`; None for the packaged detector.
        device: for computation.

    Raises:
        CheckpointError: no detector, or a damaged one.
    """
    folder, device = FOLDER if folder is None else as_path(folder, "folder"), as_device(device)
    try:
        told: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in told.items()}
        config = DetectorConfig(**plain)
        net = DetectorNet(config)
        # weights are assigned and then widened, independent of the default dtype
        net.load_state_dict(load_file(folder / "model.safetensors"), assign=True)
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"expected the folder of a scene detector, got {folder} ({reason}): check the path"
        ) from error
    return SceneDetector(net.to(device, torch.float32).eval().requires_grad_(False), config)


def save_detector(detector: SceneDetector, folder: str | Path) -> None:
    """Write `config.json` and, in half precision, `model.safetensors`.

    Args:
        detector: to write.
        folder: created if missing.

    Raises:
        InputError: no detector, or a path that cannot be a folder.
    """
    instance_of(detector, SceneDetector, "detector", "load_detector()")
    folder = make_folder(as_path(folder, "folder"))
    half = {
        name: value.half() if value.is_floating_point() else value for name, value in detector.net.state_dict().items()
    }
    save_file({name: value.cpu().contiguous() for name, value in half.items()}, folder / "model.safetensors")
    replace_file(folder / "config.json", json.dumps(asdict(detector.config), indent=1).encode())


def detector_accuracy(
    detector: SceneDetector, plans: Sequence[Plan], images: Sequence[ImageLike] | None = None
) -> pd.DataFrame:
    """Measure the accuracy of a detector on scenes with known content.

    Args:
        detector: to test.
        plans: of the scenes, from `scenes.plan`; mostly hidden things do not count.
        images: pictures of them, such as after a VAE; None draws them.

    Returns:
        A row for each measure, with the columns measure, value (0 to 1) and of (number of cases).
        precision, recall: of things; a detection matches a thing of its concept within `NEAR` of its center.
        counting: pictures with the right number of things of every kind.
        color: found recolorable things with the right color (or none).
        relation: pictures of two things of two kinds that are both found, with the right spatial relation.
        background: pictures with the right background.

    Raises:
        InputError: no plans, or not one image for each.
    """
    instance_of(detector, SceneDetector, "detector", "load_detector()")
    plans = list_of(plans, Plan, "plans", "plans=[scenes.plan('test', 0)]")
    pictures = None if images is None else open_images(images)
    if pictures is not None and len(pictures) != len(plans):
        raise InputError(f"expected an image for each plan, got {len(pictures)} for {len(plans)} plans: pass as many")
    drawn, owners = render(plans, detector.config.side)
    results: dict[str, list[bool]] = {
        measure: [] for measure in ("precision", "recall", "counting", "color", "relation", "background")
    }
    parsed = detector.detect(drawn if pictures is None else pictures)
    for plan, owner, scene in zip(plans, owners.numpy(), parsed, strict=True):
        true = [plan.placements[number] for number in visible(plan, owner)]
        pairs = _pairs(true, scene.objects)
        results["precision"] += [number < len(pairs) for number in range(len(scene.objects))]
        results["recall"] += [number < len(pairs) for number in range(len(true))]
        kinds, told = (Counter(thing.concept for thing in things) for things in (true, scene.objects))
        results["counting"].append(kinds == told)
        results["color"] += [a.color == b.color for a, b in pairs if concepts()[a.concept].recolor]
        if len(true) == len(kinds) == 2:
            both = len(pairs) == 2 and relation(*(a.center for a, _ in pairs)) == relation(
                *(b.center for _, b in pairs)
            )
            results["relation"].append(both)
        results["background"].append(scene.background == plan.background)
    rows = [(name, float(np.mean(right)) if right else np.nan, len(right)) for name, right in results.items()]
    return pd.DataFrame(rows, columns=["measure", "value", "of"])


def _pairs(true: Sequence[Placement], found: Sequence[Found]) -> list[tuple[Placement, Found]]:
    """Pair things with detections, nearest first."""
    near = [(_distance(a.center, b.center), i, j) for i, a in enumerate(true) for j, b in enumerate(found)]
    pairs: dict[int, int] = {}
    for distance, i, j in sorted(near):
        if distance < NEAR and true[i].concept == found[j].concept and i not in pairs and j not in pairs.values():
            pairs[i] = j
    return [(true[i], found[j]) for i, j in sorted(pairs.items())]


def _distance(one: tuple[float, float], other: tuple[float, float]) -> float:
    return float(np.hypot(one[0] - other[0], one[1] - other[1]))
