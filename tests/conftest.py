"""What every test needs: an offline environment and a tiny, random, real Stable Diffusion 3 pipeline."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import jaxtyping
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

SENTENCES = [
    "a photo of a cat and a dog on the grass",
    "a red car left of a blue car",
    "two cats near a tree and a bus",
    "a fire engine and a fire at night",
    "cat tree grass water sand snow road sky",
]


TWO_PROCESSES = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
"""Starts the script or module that follows twice, as one run."""


def tiny_tokenizer(pad_token: str = "<|endoftext|>", max_length: int = 77) -> CLIPTokenizer:
    """A CLIPTokenizer made of SENTENCES; every byte, with and without the word end, is in the vocabulary."""
    merges = byte_pairs(Counter(" ".join(SENTENCES).split()))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *map("".join, merges)]
    vocab = {piece: i for i, piece in enumerate(["<|startoftext|>", "<|endoftext|>", *pieces])}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad_token, model_max_length=max_length)


def byte_pairs(words: Counter[str]) -> list[tuple[str, str]]:
    """Merges that spell each word with one piece; ties go by the alphabet (a library's trainer breaks them at
    random)."""
    spelled = {(*word[:-1], f"{word[-1]}</w>"): count for word, count in words.items()}
    merges = []
    while pairs := Counter({pair: 0 for word in spelled for pair in pairwise(word)}):
        for word, count in spelled.items():
            pairs.update(dict.fromkeys(pairwise(word), count))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = {_merged(word, best): count for word, count in spelled.items()}
    return merges


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    at = next((i for i in range(len(word) - 1) if word[i : i + 2] == pair), None)
    return word if at is None else (*word[:at], "".join(pair), *_merged(word[at + 2 :], pair))


def tiny_text_encoder(tokenizer: CLIPTokenizer, width: int, projection: int) -> CLIPTextModelWithProjection:
    """A two-layer, two-head CLIP text encoder with random weights."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width + 1,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=projection,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def tiny_pipeline(folder: Path | None = None, seed: int = 0, **transformer) -> StableDiffusion3Pipeline:
    """A random SD3: 56 px images, 4 px VAE cells, patch 2 (7 x 7 image tokens), 5 directions, 3 heads of 20.

    Args:
        folder: saved there in diffusers' layout where given.
        seed: of all weights.
        transformer: overrides of SD3Transformer2DModel's arguments, such as dual_attention_layers=(0, 1).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer, tokenizer_2 = tiny_tokenizer(), tiny_tokenizer(pad_token="!")
        sizes = {
            "sample_size": 14,
            "patch_size": 2,
            "in_channels": 16,
            "num_layers": 5,
            "attention_head_dim": 20,
            "num_attention_heads": 3,
            "joint_attention_dim": 43,
            "caption_projection_dim": 60,
            "pooled_projection_dim": 11 + 17,
            "out_channels": 16,
            "pos_embed_max_size": 11,
        }
        pipe = StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(**(sizes | transformer)).eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                block_out_channels=(4, 6, 10),
                layers_per_block=1,
                latent_channels=16,
                norm_num_groups=2,
                sample_size=56,
                scaling_factor=1.5305,
                shift_factor=0.0609,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ).eval(),
            text_encoder=tiny_text_encoder(tokenizer, width=14, projection=11).eval(),
            tokenizer=tokenizer,
            text_encoder_2=tiny_text_encoder(tokenizer_2, width=26, projection=17).eval(),
            tokenizer_2=tokenizer_2,
            text_encoder_3=None,
            tokenizer_3=None,
        )
    pipe.set_progress_bar_config(disable=True)
    if folder is not None:
        pipe.save_pretrained(folder)
    return pipe


@pytest.fixture
def unchecked():
    """No run-time type checks, as a user runs the package: so that wrong types reach the package's own errors."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A saved checkpoint of the tiny pipeline; copy it before changing it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_backbone(tiny_folder):
    """The tiny pipeline as a backbone, loaded from disk as a user would."""
    # imported here: a conftest is read before the type-checking import hook is in place
    from seg4diff_tools.backbones.loading import load_backbone

    backbone = load_backbone(tiny_folder)
    backbone.pipe.set_progress_bar_config(disable=True)
    return backbone


@pytest.fixture(scope="session")
def build_backbone():
    """A function that makes tiny backbones of other shapes: build_backbone(dual_attention_layers=(0, 1), seed=3)."""

    from seg4diff_tools.backbones.loading import wrap_pipeline

    def build(seed: int = 0, **transformer):
        return wrap_pipeline(tiny_pipeline(seed=seed, **transformer), name="tiny")

    return build
