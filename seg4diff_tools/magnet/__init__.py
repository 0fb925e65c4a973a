"""MAGNET: mask alignment of a layer's image-to-text attention by a light LoRA fine-tuning (Seg4Diff, section 3.5)."""

from seg4diff_tools.backbones import LoraWeights, apply_lora, read_lora
from seg4diff_tools.magnet.alignment import ConvHead, mask_logits, mask_losses
from seg4diff_tools.magnet.config import PRESETS, MagnetConfig, preset
from seg4diff_tools.magnet.loop import finetune
from seg4diff_tools.magnet.validation import PictureTest

__all__ = [
    "PRESETS",
    "ConvHead",
    "LoraWeights",
    "MagnetConfig",
    "PictureTest",
    "apply_lora",
    "finetune",
    "mask_logits",
    "mask_losses",
    "preset",
    "read_lora",
]
