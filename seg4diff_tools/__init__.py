"""See, measure and use the segmentation that emerges in the attention of text-to-image diffusion transformers.

Importing the package is light: a module, and torch with it, loads when one of its names is first used.
"""

from importlib import import_module

__version__ = "0.1.0"

_EXPORTS = {
    "atlas": (),
    "attention": ("intercept",),
    "backbones": ("Backbone",),
    "cache": ("remember",),
    "charts": (),
    "clipscore": ("Clip", "load_clip"),
    "combination": ("choose_combination",),
    "composer": ("compose_scene",),
    "composition": ("composition_scores",),
    "counts": (),
    "datasets": ("Sample",),
    "distances": ("frechet_distance", "kernel_distance"),
    "effects": ("guidance_effects", "layer_effects"),
    "errors": (
        "CheckpointError",
        "InputError",
        "PromptError",
        "RecordingError",
        "Seg4DiffError",
        "TrainingError",
        "UnknownArchitectureError",
    ),
    "evaluation": ("evaluate", "read_evaluation"),
    "explorer": ("explore",),
    "families": ("Family", "family_of"),
    "features": ("attention_budget", "image_features", "value_norms"),
    "generation": ("generate_benchmark",),
    "grouping": ("Grouping", "group"),
    "heads": (),
    "images": (),
    "joint": ("JointAttention",),
    "live": (),
    "loading": ("load_backbone", "wrap_pipeline"),
    "lora": (),
    "losses": (),
    "magnet": ("MagnetConfig", "finetune"),
    "masks": (),
    "methods": ("Pads", "Words"),
    "metrics": (),
    "operators": ("attention_with_lse",),
    "pages": (),
    "paper": (),
    "parser": ("SceneParser", "load_parser"),
    "perturb": ("Edit", "perturbed_guidance"),
    "plots": (),
    "prompt_lists": (),
    "prompts": ("Prompt",),
    "readings": (),
    "recorder": ("AttentionRecorder",),
    "recordings": ("Recording", "open_recording"),
    "scenes": ("Scene", "SceneConfig", "Scenes", "compose"),
    "segmentation": ("Segmentation", "segment"),
    "sliders": (),
    "sweeps": ("layer_step_sweep",),
    "verification": ("verify",),
    "viewer": ("Explorer",),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["__version__", *_EXPORTS, *_HOME]  # noqa: PLE0604 - the names are in the table


def __getattr__(name: str):
    if name in _EXPORTS:
        return import_module(f"{__name__}.{name}")
    if name in _HOME:
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
