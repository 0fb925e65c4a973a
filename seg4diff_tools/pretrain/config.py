"""Sizes of a small Stable Diffusion 3, and training settings of its parts."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from seg4diff_tools._runs import as_path, make_folder
from seg4diff_tools.errors import CheckpointError, InputError, instance_of, one_of
from seg4diff_tools.indices import as_float, as_int
from seg4diff_tools.scenes import SceneConfig
from seg4diff_tools.scenes.drawings import concepts

EARLIER = "earlier_training.json"
"""File of a run with the training of the model from which it started."""


def _check_fields(config: Any, counts: Mapping[str, int], rates: Mapping[str, float | None]) -> None:
    """Check integers against smallest values, and numbers of 0 or more against largest values."""
    for name, low in counts.items():
        object.__setattr__(config, name, as_int(getattr(config, name), name, low))
    for name, high in rates.items():
        object.__setattr__(config, name, as_float(getattr(config, name), name, high=high))


@dataclass(frozen=True)
class Recipe:
    """Training settings of the transformer, other than sizes and rates.

    Attributes:
        shift: of the noise levels in training; a pipeline's scheduler has its own.
        direction: weight of 1 - cosine between predicted and true velocity over channels, beside the squared error
            (LightningDiT, arXiv 2501.01423).
        lists: share of prompts, in the batches with all text columns, that name the classes among many absent ones.
        easy: number of initial scenes with one large object each.
        pool: number of different training scenes, a power of two, with latents on disk; 0 for a new scene each time.
        columns: text columns, enough for almost all prompts; batches with longer prompts get all 77.
        modulation: whether Muon also trains the blocks' modulation (CMuon, arXiv 2608.02502), in place of AdamW.
        crowded: number of images until each pad has its full weight in the attention; 0 to train a model further.
    """

    shift: float = 3.0
    direction: float = 0.0
    lists: float = 0.0
    easy: int = 0
    pool: int = 0
    columns: int = 22
    modulation: bool = False
    crowded: int = 30_000

    def __post_init__(self) -> None:
        counts = {"easy": 0, "pool": 0, "columns": 1, "crowded": 0}
        _check_fields(self, counts, {"shift": None, "direction": None, "lists": 1.0})
        one_of(self.modulation, "modulation", (False, True))
        if self.pool & (self.pool - 1):
            raise InputError(f"expected pool, a power of two or 0, got {self.pool}: pass what pool_size returns")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the embedded model. The VAE divides the image side, `scenes.size`, by four, patches by two again."""

    scenes: SceneConfig = field(default_factory=SceneConfig)
    text_width: int = 128
    text_layers: int = (
        1  # token states come from the layer before the last: with a deeper tower, every pad encodes the prompt
    )
    text_heads: int = 4
    image_layers: int = 4
    image_patch: int = 12
    vae_channels: tuple[int, ...] = (16, 32, 64)
    width: int = 128
    heads: int = 4
    layers: int = 12
    recipe: Recipe = Recipe()

    def __post_init__(self) -> None:
        counts = ("text_width", "text_layers", "text_heads", "image_layers", "image_patch", "width", "heads", "layers")
        _check_fields(self, dict.fromkeys(counts, 1), {})
        instance_of(self.scenes, SceneConfig, "scenes", "scenes=SceneConfig(size=96)")
        instance_of(self.recipe, Recipe, "recipe", "recipe=Recipe()")
        for name, heads in (("width", "heads"), ("text_width", "text_heads")):
            whole, count = getattr(self, name), getattr(self, heads)
            if whole % count:
                raise InputError(f"expected {name} in multiples of {heads}={count}, got {whole}: choose another one")

    @property
    def test_scenes(self) -> SceneConfig:
        """Settings of the scenes that judge the model: what it may show as in training, all chances as by default."""
        own = self.scenes
        return SceneConfig(own.size, own.concepts, own.backgrounds, own.objects, own.object_side, own.degrees)

    @property
    def latent_side(self) -> int:
        """Side of a latent in cells."""
        return self.scenes.size // 4


@dataclass(frozen=True)
class StageConfig:
    """One run of optimization. In the last `cooldown` steps the rate falls to zero."""

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

    def __post_init__(self) -> None:
        rates = {"learning_rate": None, "weight_decay": None, "ema": 1.0, "clip_gradients": None}
        _check_fields(self, {"steps": 1, "batch": 1, "warmup": 1, "cooldown": 1, "seed": 0}, rates)


@dataclass(frozen=True)
class RunConfig:
    """A whole pretraining run; the same code runs both presets."""

    model: ModelConfig = ModelConfig()
    clip: StageConfig = StageConfig(steps=900, batch=64, learning_rate=1e-3, cooldown=300)
    vae: StageConfig = StageConfig(steps=3000, batch=8, learning_rate=2e-3, weight_decay=0.0, ema=0.995, cooldown=1000)
    transformer: StageConfig = StageConfig(
        steps=62_500, batch=32, learning_rate=1e-3, muon_learning_rate=5e-3, cooldown=16_000, ema=0.9995
    )

    def __post_init__(self) -> None:
        instance_of(self.model, ModelConfig, "model", "model=ModelConfig()")
        for name in ("clip", "vae", "transformer"):
            instance_of(getattr(self, name), StageConfig, name, f"{name}=StageConfig(1000, 64, 1e-3)")

    def save(self, folder: str | Path) -> None:
        """Write the configuration into the folder of a run, created if missing."""
        path = make_folder(as_path(folder, "folder")) / "config.json"
        path.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "RunConfig":
        """Read the configuration of a run; raise a CheckpointError if there is none, or a damaged one."""
        path = as_path(folder, "folder") / "config.json"
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


def _further(config: RunConfig, steps: int) -> RunConfig:
    """Half of the rates, more colors and things of one kind, long lists of names, and pads at full weight."""
    scenes = replace(config.model.scenes, **{**_RICH, "captions": "short"})
    model = replace(config.model, scenes=scenes, recipe=Recipe(lists=0.4, pool=1 << 16, crowded=0))
    stage = config.transformer
    transformer = replace(
        stage,
        steps=steps,
        cooldown=steps * 3 // 10,
        learning_rate=stage.learning_rate / 2,
        muon_learning_rate=(stage.muon_learning_rate or 0.0) / 2,
    )
    return replace(config, model=model, transformer=transformer)


PRESETS = {
    "cpu": RunConfig(),
    "gpu": _GPU,
    "cpu-rich": _rich(RunConfig()),
    "gpu-rich": _rich(_GPU, columns=36, pool=0),
    "cpu-further": _further(RunConfig(), 12_500),
}


def preset(name: str) -> RunConfig:
    """Return a configuration.

    Args:
        name: "cpu" for two CPU cores, "gpu" for one GPU; "cpu-rich" and "gpu-rich" train on longer captions and on
            scenes with more things of one kind and more colors; "cpu-further" trains a finished model further, see
            `init` of `run_stage`.

    Raises:
        InputError: an unknown name.
    """
    one_of(name, "name", list(PRESETS))
    return PRESETS[name]
