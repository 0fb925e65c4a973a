"""The module that MAGNET trains: the transformer with its LoRA, what reads its attention, and the losses."""

import functools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from seg4diff_tools.attention.bias import AttentionBias, JointTokens
from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.attention.temperature import factors_at, tempered
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.magnet.alignment import (
    ConvHead,
    mask_logits,
    mask_losses,
    region_losses,
    token_maps,
    word_losses,
)
from seg4diff_tools.magnet.config import MASK_LOSSES, MagnetConfig
from seg4diff_tools.magnet.memory import zeros_as_one
from seg4diff_tools.magnet.targets import Target


class Student(nn.Module):
    """The transformer and what reads its attention, as one module for processes to share.

    The zero vectors in T5's place have no position and stay alike in every block, so that one of them, its attention
    weighted by their number, stands for all: the same result from a shorter sequence.
    """

    def __init__(self, backbone: Backbone, config: MagnetConfig, layers: list[int], head: ConvHead | None) -> None:
        super().__init__()
        self.transformer, self.head, self.config, self.layers = backbone.transformer, head, config, layers
        self.family = backbone.family
        weights = torch.tensor(config.layer_weights or [1.0] * len(layers), dtype=torch.float32)
        self.layer_weights = (weights / weights.sum()).to(backbone.device)
        self.zeros = zeros_as_one(backbone, config.zero_tokens, config.size)

    def forward(
        self,
        inputs: dict[str, Any],
        velocity: Float[Tensor, "image ..."],
        targets: Sequence[Target],
        grid: tuple[int, int],
        count: float | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """The losses of a batch, not yet weighted; differentiate them inside of `watching`."""
        config = self.config
        self._seen: dict[int, tuple[list[Tensor] | None, list[Tensor] | None]] = {}
        self._read = functools.partial(
            mask_logits, targets=targets, config=config, grid=grid, clip_tokens=self.family.clip_tokens
        )
        self._targets = targets
        self._factors = factors_at(self.family.timesteps(inputs), config.temperature, config.temperature_above)
        predicted = self.family.velocity(self.transformer(**self._shortened(inputs))[0])
        errors = (predicted.float() - velocity).square()
        found = {"flow": errors.mean()}
        with torch.autocast(predicted.device.type, enabled=False):
            if config.regions_weight:
                found["regions"] = region_losses(_on_grid(errors, grid), targets, config, count)
            return found | self._aligned(targets, grid, count)

    def watching(self) -> AbstractContextManager:
        """Keep maps of the wanted layers; checkpointed blocks, which run again in the backward pass, need it too."""
        bias = None
        if self.zeros:
            bias = AttentionBias(math.log(self.zeros), keys=JointTokens(text=[self.family.clip_tokens]))
        everywhere = self.config.temperature != 1
        if not self.layers and not everywhere:
            return nullcontext() if bias is None else intercept(self.transformer, bias=bias)
        return intercept(self.transformer, self._keep, layers=None if everywhere else self.layers, bias=bias)

    def _keep(self, call: JointAttention) -> Tensor | None:
        changed = bool((self._factors != 1).any())
        if changed:
            call = tempered(call, self._factors)
        if call.layer in self.layers:
            # one log-sum-exp for all that is read
            call = replace(call, raw_lse=call.lse) if self.config.reads_words else call
            logits = self._read(call) if self.config.reads_masks else None
            words = token_maps(call, self._targets) if self.config.reads_words else None
            self._seen.setdefault(call.layer, (logits, words))
        return call.output if changed else None

    def _aligned(self, targets: Sequence[Target], grid: tuple[int, int], count: float | None) -> dict[str, Tensor]:
        """The losses that read attention, as the weighted mean over layers."""
        seen = [self._seen[layer] for layer in self.layers]
        found: dict[str, Tensor] = {}
        if self.config.reads_masks:
            parts = [mask_losses(logits, targets, self.config, self.head, count) for logits, _ in seen if logits]
            for name in MASK_LOSSES:
                if name in self.config.aligned:
                    found[name] = self.layer_weights @ torch.stack([part[name] for part in parts])
        if self.config.reads_words:
            maps = [words for _, words in seen if words]
            found |= word_losses(maps, targets, self.config, grid, self.layer_weights, count)
        return found

    def _shortened(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs with one zero vector for all."""
        if not self.zeros:
            return inputs
        (name,) = self.family.streams or self.family.text_inputs[:1]
        return inputs | {name: inputs[name][:, : self.family.clip_tokens + 1]}


def _on_grid(errors: Float[Tensor, "image ..."], grid: tuple[int, int]) -> Float[Tensor, "image y x"]:
    """Mean over channels of errors of latents [image channel row column] or of tokens [image token channel]."""
    if errors.ndim == 3:
        return errors.mean(-1).unflatten(-1, grid)
    return adaptive_avg_pool2d(errors.mean(1), grid)
