"""How the detector of scenes was trained: `python scripts/train_parser.py seg4diff_tools/models/scene-parser`.

It sees scenes of the train split with more things, twins and colors than captions usually have, some of them as mini's
VAE gives them back, all of them melted, blurred, dimmed and with noise to a chance degree, since it is to find things
that a model draws badly, too. The same arguments give the same detector, up to rounding. A quarter of an hour on one
CPU core.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from seg4diff_tools import load_backbone
from seg4diff_tools.generation.detector import (
    DetectorConfig,
    DetectorNet,
    SceneDetector,
    detector_accuracy,
    save_detector,
)
from seg4diff_tools.scenes import BASE_CONCEPTS, Plan, SceneConfig, plan, render, visible

BATCH, RATE, SPREAD, SEED = 64, 4e-3, 1.2, 0
MELT = 0.09
"""Largest standard deviation of the shift of outlines, in half sides: generated things have the texture of real ones,
hardly their outline, and are to be found all the same."""
FRESH, KEPT, REUSED = 4, 512, 12
"""Pictures that pass the VAE in each step, how many of these are kept, and how many kept ones a batch has."""
SCENES = SceneConfig(objects=(1, 4), object_side=(0.25, 0.65), twins=0.25, colored=0.5)


def training_plan(index: int) -> Plan:
    """A scene of the train split; in every fourth one there are only two kinds, so that three or four are alike."""
    if index % 4:
        return plan("train", index, SCENES)
    kinds = np.random.default_rng(index).choice(BASE_CONCEPTS, 2, replace=False)
    return plan("train", index, replace(SCENES, concepts=tuple(map(str, kinds))))


class Targets:
    """What the network should say of a batch."""

    def __init__(self, plans: list[Plan], owners: np.ndarray, config: DetectorConfig) -> None:
        cells = config.side // 4
        places = np.arange(cells) + 0.5
        self.centers = torch.zeros(len(plans), len(config.concepts), cells, cells)
        self.colors = torch.full((len(plans), cells, cells), -1)
        self.backgrounds = torch.tensor([config.backgrounds.index(p.background) for p in plans])
        for i, (p, owner) in enumerate(zip(plans, owners, strict=True)):
            for number in visible(p, owner):
                thing = p.placements[number]
                x, y = (share * cells for share in thing.center)
                squared = torch.from_numpy((places[:, None] - y) ** 2 + (places - x) ** 2)
                heat = (-squared / (2 * SPREAD**2)).exp().float()
                heat[int(y), int(x)] = 1
                kind = config.concepts.index(thing.concept)
                self.centers[i, kind] = torch.maximum(self.centers[i, kind], heat)
                color = 0 if thing.color is None else 1 + config.colors.index(thing.color)
                self.colors[i][squared < 1.6**2] = color

    def loss(self, centers: Tensor, colors: Tensor, backgrounds: Tensor) -> Float[Tensor, ""]:
        """Focal loss of CenterNet (its equation 1) and cross entropies of colors, near centers, and backgrounds."""
        hit = self.centers == 1
        log, log_not = functional.logsigmoid(centers), functional.logsigmoid(-centers)
        p = centers.sigmoid()
        focal = torch.where(hit, (1 - p) ** 2 * log, (1 - self.centers) ** 4 * p**2 * log_not)
        color = functional.cross_entropy(colors, self.colors, ignore_index=-1)
        return -focal.sum() / hit.sum() + 0.5 * color + 0.5 * functional.cross_entropy(backgrounds, self.backgrounds)


@torch.no_grad()
def through_vae(vae: AutoencoderKL, images: Tensor, noise: float, random: torch.Generator) -> Tensor:
    """Images as a VAE gives them back; noise in its latents makes flaws as generated pictures have them."""
    latents = vae.encode(images * 2 - 1).latent_dist.mode()
    latents += noise * torch.randn(latents.shape, generator=random) / vae.config.scaling_factor
    return (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)


def worsened(images: Tensor, random: torch.Generator) -> Tensor:
    """Images with melted outlines, blur, contrast, brightness and noise, each drawn anew for every image."""
    melt, blur, contrast, brightness, noise = torch.rand(5, len(images), 1, 1, 1, generator=random)
    side = images.shape[-1]
    shift = torch.randn(len(images), 2, side // 8, side // 8, generator=random) * MELT * (1.5 * melt - 0.5).clamp(min=0)
    shift = functional.interpolate(shift, (side, side), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    straight = functional.affine_grid(
        torch.eye(2, 3).expand(len(images), 2, 3), list(images.shape), align_corners=False
    )
    images = functional.grid_sample(images, straight + shift, padding_mode="reflection", align_corners=False)
    smooth = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = torch.lerp(images, smooth, (1.6 * blur - 0.6).clamp(min=0))
    images = (images - 0.5) * (0.85 + 0.3 * contrast) + 0.5 + 0.1 * (brightness - 0.5)
    return (images + 0.06 * noise**2 * torch.randn(images.shape, generator=random)).clamp(0, 1)


def train(steps: int, vae: AutoencoderKL) -> SceneDetector:
    """A detector, after so many steps."""
    torch.manual_seed(SEED)
    random, config = torch.Generator().manual_seed(SEED), DetectorConfig()
    net = DetectorNet(config).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.01)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
    kept: list[tuple[Plan, Tensor, Tensor]] = []
    began = time.perf_counter()
    for step in range(steps):
        fresh = BATCH - (REUSED - FRESH if step else 0)
        plans = [training_plan(index) for index in range(step * BATCH, step * BATCH + fresh)]
        images, owners = render(plans, config.side)
        noise = 0.6 * torch.rand(1, generator=random).item()
        images[:FRESH] = through_vae(vae, images[:FRESH], noise, random)
        chosen = torch.randint(max(len(kept), 1), (BATCH - fresh,), generator=random).tolist()
        again = [kept[number] for number in chosen]
        kept = [*zip(plans[:FRESH], images[:FRESH], owners[:FRESH], strict=True), *kept][:KEPT]
        plans += [p for p, _, _ in again]
        images = torch.cat([images, *(image[None] for _, image, _ in again)])
        owners = torch.cat([owners, *(owner[None] for _, _, owner in again)])
        targets = Targets(plans, owners.numpy(), config)
        loss = targets.loss(*net(worsened(images, random).contiguous(memory_format=torch.channels_last)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        rates.step()
        if step % 25 == 0:
            print(f"{step} {loss.item():.3f} {time.perf_counter() - began:.0f} s", flush=True)
    net = net.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
    return SceneDetector(net, config)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("out", type=Path, help="folder of the detector")
    arguments.add_argument("--steps", type=int, default=800)
    asked = arguments.parse_args()
    backbone = load_backbone("mini", device="cpu")
    detector = train(asked.steps, backbone.pipe.vae)
    save_detector(detector, asked.out)
    plans = [plan("test", index) for index in range(300)]
    drawn, _ = render(plans, detector.config.side)
    for images in (drawn, backbone.decode(backbone.encode_image(drawn))):
        print(detector_accuracy(detector, plans, images).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
