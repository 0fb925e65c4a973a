"""Latents of training scenes: encoded at first use, then read from disk."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from seg4diff_tools._runs import replace_file
from seg4diff_tools.errors import instance_of
from seg4diff_tools.indices import as_float
from seg4diff_tools.pretrain.config import ModelConfig

BLOCK = 32
"""Scenes drawn and encoded together: fixed blocks, so that a latent depends on its number only."""


def pool_size(gigabytes: float | int, config: ModelConfig) -> int:
    """Return the number of scenes whose latents fit on disk: a power of two, at least one block.

    Args:
        gigabytes: largest size on disk, in 10^9 bytes.
        config: of the model.

    Raises:
        InputError: an invalid number or configuration.
    """
    instance_of(config, ModelConfig, "config", "config=RunConfig().model")
    gigabytes = as_float(gigabytes, "gigabytes")
    fitting = int(gigabytes * 1e9 / (2 * 16 * config.latent_side**2))
    return max(BLOCK, 1 << max(fitting, 1).bit_length() - 1)


def slots(indices: Sequence[int], pool: int) -> list[int]:
    """Return the scene numbers of the training samples with these indices, from 0.

    The first pass through the pool is in order, each further pass in another order; a pool of 0 never repeats a scene.
    """
    if not pool:
        return list(indices)

    def slot(index: int) -> int:
        turn, place = divmod(index, pool)
        # an odd stride visits every number of a power of two once
        stride = 1 if turn == 0 else int(np.random.default_rng(turn).integers(pool)) | 1
        return place * stride % pool

    return [slot(index) for index in indices]


class LatentCache:
    """Latents in half precision in one file, filled block by block.

    Files of another VAE or of other scenes are emptied. A block is marked as filled only after its latents are written,
    so that a killed process leaves a valid cache.

    Args:
        folder: gets `latents.f16`, `filled.u8` and `latents.json`.
        pool: number of scenes.
        shape: of one latent.
        key: of the settings, from `cache_key`.
        encode: draws and encodes the scenes with given numbers.
    """

    def __init__(
        self,
        folder: Path,
        pool: int,
        shape: tuple[int, ...],
        key: str,
        encode: Callable[[Sequence[int]], Float[Tensor, "batch channels y x"]],
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        settings = json.dumps({"key": key, "pool": pool, "shape": shape}).encode()
        data, filled, told = folder / "latents.f16", folder / "filled.u8", folder / "latents.json"
        same = told.is_file() and told.read_bytes() == settings and data.is_file() and filled.is_file()
        mode: Literal["r+", "w+"] = "r+" if same else "w+"
        self._data = np.memmap(data, np.float16, mode, shape=(pool, *shape))
        self._filled = np.memmap(filled, np.uint8, mode, shape=(-(-pool // BLOCK),))
        if not same:
            replace_file(told, settings)
        self._encode = encode

    def __call__(self, numbers: Sequence[int]) -> Float[Tensor, "batch channels y x"]:
        """Return the latents of scenes, in fp32 on the CPU."""
        for block in sorted({number // BLOCK for number in numbers}):
            if not self._filled[block]:
                first, last = block * BLOCK, min((block + 1) * BLOCK, len(self._data))
                self._data[first:last] = self._encode(range(first, last)).half().cpu().numpy()
                self._data.flush()
                self._filled[block] = 1
        return torch.from_numpy(self._data[np.asarray(numbers)].astype(np.float32))


def cache_key(config: ModelConfig, vae: AutoencoderKL, dtype: torch.dtype) -> str:
    """Return a hash of the settings that determine latents."""
    found = hashlib.sha256(repr((asdict(config.scenes), config.recipe.easy, str(dtype), dict(vae.config))).encode())
    for value in vae.state_dict().values():
        found.update(value.float().cpu().numpy().tobytes())
    return found.hexdigest()
