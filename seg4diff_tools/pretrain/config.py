"""What a small Stable Diffusion 3 is made of, and how long each part is trained."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from seg4diff_tools.errors import CheckpointError, InputError
from seg4diff_tools.scenes.drawings import concepts
from seg4diff_tools.scenes.scenes import SceneConfig


@dataclass(frozen=True)
class Recipe:
    """How the transformer is trained, beside sizes and rates.

    Attributes:
        shift: of the noise levels that are drawn in training; a pipeline's scheduler has its own.
        direction: weight of 1 - cosine between predicted and true velocity over channels, beside the squared error
            (LightningDiT, arXiv 2501.01423).
        lists: share of prompts, in the batches with all text columns, that name the classes among many absent ones.
        easy: the scenes before this one hold one large object each; they come first.
        pool: different scenes to train on, a power of two whose latents are kept on disk; 0 for a new one each time.
        columns: text columns in which the words of almost all prompts fit; batches with longer prompts get all 77.
        modulation: whether Muon also trains the blocks' modulation (CMuon, arXiv 2608.02502), in place of AdamW.
    """

    shift: float = 3.0
    direction: float = 0.0
    lists: float = 0.0
    easy: int = 0
    pool: int = 0
    columns: int = 22
    modulation: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the embedded model. The VAE divides the image side, `scenes.size`, by four, patches by two again."""

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
    recipe: Recipe = Recipe()

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
        steps=62_500, batch=32, learning_rate=1e-3, muon_learning_rate=5e-3, cooldown=16_000, ema=0.9995
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
    recipe = Recipe(**model.pop("recipe", {}))
    return RunConfig(model=ModelConfig(scenes=scenes, recipe=recipe, **_tuples(model)), **stages)


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

_RICH: dict[str, Any] = {"captions": "rich", "twins": 0.2, "triples": 0.4, "colored": 0.5, "recolorable": 0.15}
_RECIPE = Recipe(lists=0.4, columns=28, pool=1 << 16)


def _rich(config: RunConfig, **recipe: Any) -> RunConfig:
    scenes = replace(config.model.scenes, **_RICH)
    return replace(config, model=replace(config.model, scenes=scenes, recipe=replace(_RECIPE, **recipe)))


PRESETS = {"cpu": RunConfig(), "gpu": _GPU, "cpu-rich": _rich(RunConfig()), "gpu-rich": _rich(_GPU, columns=36, pool=0)}


def preset(name: str) -> RunConfig:
    """The configuration for two CPU cores ("cpu") or for one GPU ("gpu").

    With "-rich", captions say more and scenes show more twins and colors.
    """
    if name not in PRESETS:
        raise InputError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]
