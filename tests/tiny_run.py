"""A pretraining run of a few steps on 56-pixel scenes, and a random CLIP: all real, every axis small and different."""

from pathlib import Path

import torch
from conftest import tiny_tokenizer
from transformers import CLIPConfig, CLIPModel

from seg4diff_tools.pretrain.config import ModelConfig, RunConfig, StageConfig
from seg4diff_tools.scenes import SceneConfig

SCENES = SceneConfig(size=56, concepts=("cat", "dog", "car", "tree", "fish"), backgrounds=("sand", "snow", "grass"))
MODEL = ModelConfig(
    scenes=SCENES,
    text_width=22,
    text_layers=2,
    text_heads=2,
    image_patch=8,
    vae_channels=(8, 16, 24),
    width=60,
    heads=3,
    layers=5,
)
STEPS = {"warmup": 2, "cooldown": 2, "ema": 0.5}
TINY = RunConfig(
    model=MODEL,
    clip=StageConfig(steps=6, batch=7, learning_rate=1e-3, **STEPS),
    vae=StageConfig(steps=6, batch=2, learning_rate=1e-3, weight_decay=0.0, **STEPS),
    transformer=StageConfig(steps=6, batch=3, learning_rate=1e-3, muon_learning_rate=5e-3, **STEPS),
)


def tiny_clip(folder: Path) -> Path:
    """Makes a model folder with a random CLIP for 28-pixel images."""
    tokenizer = tiny_tokenizer()
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 22, "intermediate_size": 31}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(
            CLIPConfig(
                text_config=tower | ids | {"vocab_size": len(tokenizer), "max_position_embeddings": 77},
                vision_config=tower | {"image_size": 28, "patch_size": 7},
                projection_dim=13,
            )
        )
    model.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder
