"""What a small Stable Diffusion 3 is made of, and how long each part is trained."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from seg4diff_tools.errors import CheckpointError, InputError
from seg4diff_tools.scenes.drawings import concepts
from seg4diff_tools.scenes.scenes import SceneConfig


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the embedded model. The image side is `scenes.size`; the VAE divides it by four, patches by two again."""

    scenes: SceneConfig = field(default_factory=SceneConfig)
    text_width: int = 128
    text_layers: int = (
        1  # token states are those before the last layer: a deeper tower writes the prompt into every pad
    )
    text_heads: int = 4
    image_layers: int = 4
    image_patch: int = 12
    vae_channels: tuple[int, ...] = (16, 32, 64)
    width: int = 128
    heads: int = 4
    layers: int = 12

    @property
    def latent_side(self) -> int:
        return self.scenes.size // 4


@dataclass(frozen=True)
class StageConfig:
    """One run of optimization. `cooldown` is the number of last steps in which the rate falls to zero."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 100
    cooldown: int = 500
    weight_decay: float = 0.01
    ema: float = 0.999
    clip_gradients: float = 1.0
    muon_learning_rate: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class RunConfig:
    """A whole pretraining run; the same code runs both presets."""

    model: ModelConfig = ModelConfig()
    clip: StageConfig = StageConfig(steps=900, batch=64, learning_rate=1e-3, cooldown=300)
    vae: StageConfig = StageConfig(steps=3000, batch=8, learning_rate=2e-3, weight_decay=0.0, ema=0.995, cooldown=1000)
    transformer: StageConfig = StageConfig(
        steps=12_000, batch=8, learning_rate=1e-3, muon_learning_rate=5e-3, cooldown=2000
    )

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(asdict(self), indent=2))

    @classmethod
    def load(cls, folder: Path) -> "RunConfig":
        """Read the configuration that a run was started with.

        Raises:
            CheckpointError: the folder holds no run, or its configuration is damaged.
        """
        path = folder / "config.json"
        if not path.is_file():
            raise CheckpointError(f"no pretraining run in {folder}: {path.name} is missing; start with `pretrain clip`")
        try:
            return _from_dict(json.loads(path.read_text()))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path} is damaged: {error!r}; delete it to start the run anew") from error


def _from_dict(values: dict[str, Any]) -> RunConfig:
    model = values.pop("model")
    scenes = SceneConfig(**_tuples(model.pop("scenes")))
    stages = {name: StageConfig(**stage) for name, stage in values.items()}
    return RunConfig(model=ModelConfig(scenes=scenes, **_tuples(model)), **stages)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


_GPU = RunConfig(
    model=ModelConfig(
        scenes=SceneConfig(size=128, concepts=tuple(concepts()), objects=(1, 4), object_side=(0.15, 0.7)),
        image_patch=16,
        vae_channels=(32, 64, 128),
        width=256,
        heads=8,
        image_layers=6,
    ),
    clip=StageConfig(steps=8000, batch=512, learning_rate=1e-3, cooldown=2000),
    vae=StageConfig(steps=10_000, batch=64, learning_rate=1e-3, weight_decay=0.0, cooldown=2000),
    transformer=StageConfig(
        steps=60_000, batch=64, learning_rate=1e-3, muon_learning_rate=5e-3, cooldown=10_000, ema=0.9995
    ),
)

PRESETS = {"cpu": RunConfig(), "gpu": _GPU}


def preset(name: str) -> RunConfig:
    """The configuration for two CPU cores ("cpu") or for one GPU ("gpu")."""
    if name not in PRESETS:
        raise InputError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]
