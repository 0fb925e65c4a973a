"""See, measure and use the segmentation that emerges in the attention of text-to-image diffusion transformers.

Importing the package is light: a name's module, and torch with it, loads when the name is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seg4diff_tools import (
        analysis,
        attention,
        backbones,
        datasets,
        errors,
        evaluation,
        explorer,
        families,
        generation,
        images,
        magnet,
        paper,
        plotting,
        pretrain,
        prompts,
        scenes,
        segmentation,
    )
    from seg4diff_tools.attention import AttentionRecorder, Recording, intercept, open_recording
    from seg4diff_tools.backbones import Backbone, apply_lora, load_backbone, verify, wrap_pipeline
    from seg4diff_tools.caching import remember
    from seg4diff_tools.datasets import Sample
    from seg4diff_tools.errors import Seg4DiffError
    from seg4diff_tools.evaluation import Evaluation, evaluate, layer_step_sweep, read_evaluation
    from seg4diff_tools.explorer import Explorer, compose_scene, explore
    from seg4diff_tools.magnet import MagnetConfig, finetune
    from seg4diff_tools.prompts import Prompt
    from seg4diff_tools.segmentation import (
        Grouping,
        OpenVocabulary,
        Segmentation,
        Unsupervised,
        group,
        segment,
    )

__version__ = "0.2.0"

_PACKAGES = (
    *("analysis", "attention", "backbones", "datasets", "errors", "evaluation", "explorer", "families", "generation"),
    *("images", "magnet", "paper", "plotting", "pretrain", "prompts", "scenes", "segmentation"),
)
_HOMES = {
    "attention": ("AttentionRecorder", "Recording", "intercept", "open_recording"),
    "backbones": ("Backbone", "apply_lora", "load_backbone", "verify", "wrap_pipeline"),
    "caching": ("remember",),
    "datasets": ("Sample",),
    "errors": ("Seg4DiffError",),
    "evaluation": ("Evaluation", "evaluate", "layer_step_sweep", "read_evaluation"),
    "explorer": ("Explorer", "compose_scene", "explore"),
    "magnet": ("MagnetConfig", "finetune"),
    "prompts": ("Prompt",),
    "segmentation": ("Grouping", "OpenVocabulary", "Segmentation", "Unsupervised", "group", "segment"),
}
_HOME = {name: package for package, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_PACKAGES, *_HOME]  # noqa: PLE0604 - the names are in the tables


def __getattr__(name: str):
    if name in _HOME:
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        return value
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
