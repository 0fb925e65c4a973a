"""Models: loading, prompts, noise, one denoising step, generation, LoRA weights, verification of a family."""

from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checks import check_heads, check_layers
from seg4diff_tools.backbones.loading import as_backbone, load_backbone, wrap_pipeline
from seg4diff_tools.backbones.lora import apply_lora, attach
from seg4diff_tools.backbones.lora_files import LoraWeights, read_lora, save_lora
from seg4diff_tools.backbones.verify import verify

__all__ = [
    "Backbone",
    "LoraWeights",
    "apply_lora",
    "as_backbone",
    "attach",
    "check_heads",
    "check_layers",
    "load_backbone",
    "read_lora",
    "save_lora",
    "verify",
    "wrap_pipeline",
]
