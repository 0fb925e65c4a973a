"""The module that MAGNET trains: the transformer with its LoRA, what reads masks from it, and the losses."""

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.magnet.alignment import ConvHead, mask_logits, mask_losses
from seg4diff_tools.magnet.config import MagnetConfig
from seg4diff_tools.magnet.targets import Target


class Student(nn.Module):
    """The transformer and what reads masks from it, as one module for processes to share."""

    def __init__(self, backbone: Backbone, config: MagnetConfig, layers: list[int], head: ConvHead | None) -> None:
        super().__init__()
        self.transformer, self.head, self.config, self.layers = backbone.transformer, head, config, layers
        self.read_velocity = backbone.family.velocity
        self.clip_tokens = backbone.family.clip_tokens

    def forward(
        self,
        inputs: dict[str, Any],
        velocity: Float[Tensor, "image ..."],
        targets: Sequence[Target],
        grid: tuple[int, int],
        count: float | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """The losses of a batch, not yet weighted; differentiate them inside of `watching`."""
        self._seen: dict[int, list[Tensor]] = {}
        self._read = functools.partial(
            mask_logits, targets=targets, config=self.config, grid=grid, clip_tokens=self.clip_tokens
        )
        predicted = self.read_velocity(self.transformer(**inputs)[0])
        found = {"flow": (predicted.float() - velocity).square().mean()}
        with torch.autocast(predicted.device.type, enabled=False):
            parts = [mask_losses(self._seen[layer], targets, self.config, self.head, count) for layer in self.layers]
        for name in ("focal", "dice") if parts else ():
            found[name] = torch.stack([part[name] for part in parts]).mean()
        return found

    def watching(self) -> AbstractContextManager:
        """Keep maps of the wanted layers; checkpointed blocks, which run again in the backward pass, need it too."""
        return intercept(self.transformer, self._keep, layers=self.layers) if self.layers else nullcontext()

    def _keep(self, call: JointAttention) -> None:
        maps = self._read(call)
        self._seen.setdefault(call.layer, maps)
