"""The three parts of a Stable Diffusion 3, each with the losses that it is trained by."""

import math
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextModelWithProjection, CLIPTokenizer

from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.errors import CheckpointError
from seg4diff_tools.pretrain.config import ModelConfig
from seg4diff_tools.pretrain.vocabulary import MAX_TOKENS, make_tokenizer
from seg4diff_tools.scenes.scenes import Plan, SceneConfig, plan, render

PLAIN, EMPTY = 0.4, 0.1
"""Shares of prompts that are plain class names, and empty; the others are captions."""


def scene_batch(
    indices: range, config: SceneConfig, device: torch.device
) -> tuple[Float[Tensor, "batch 3 side side"], list[Plan]]:
    """Training scenes as images in -1..1. Masks are drawn and dropped here: no loss of this package's models sees them."""
    plans = [plan("train", index, config) for index in indices]
    return render(plans, config.size, device)[0] * 2 - 1, plans


def prompt_of(p: Plan, draw: float, order: np.random.Generator) -> str:
    """The caption, the shuffled class names, or nothing, as `draw` (uniform in 0..1) falls."""
    if draw < EMPTY:
        return ""
    if draw > EMPTY + PLAIN:
        return p.caption
    names = [*dict.fromkeys(placement.concept for placement in p.placements), p.background]
    return " ".join(order.permutation(names))


class ClipStage:
    """Text and image towers, trained contrastively; the text tower then stays as it is."""

    def __init__(self, config: ModelConfig, folder: Path, device: torch.device) -> None:
        self.config, self.device = config, device
        self.tokenizer = make_tokenizer(folder / "tokenizer")
        tower = {
            "hidden_size": config.text_width,
            "intermediate_size": 4 * config.text_width,
            "num_attention_heads": config.text_heads,
            "projection_dim": config.text_width,
        }
        ids = {
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        text = {
            "num_hidden_layers": config.text_layers,
            "vocab_size": len(self.tokenizer),
            "max_position_embeddings": MAX_TOKENS,
            **ids,
        }
        image = {
            "num_hidden_layers": config.image_layers,
            "image_size": config.scenes.size,
            "patch_size": config.image_patch,
        }
        torch.manual_seed(0)
        self.model: nn.Module = CLIPModel(
            CLIPConfig(text_config=tower | text, vision_config=tower | image, projection_dim=config.text_width)
        ).to(device)
        # From CLIP's own small start, a short training writes a prompt's other words over each token's word.
        nn.init.normal_(self.model.text_model.embeddings.token_embedding.weight)

    def losses(self, indices: range, generator: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        images, plans = scene_batch(indices, self.config.scenes, self.device)
        order = np.random.default_rng(indices.start)
        draws = EMPTY + (1 - EMPTY) * torch.rand(len(plans), generator=generator)
        prompts = [prompt_of(p, draw.item(), order) for p, draw in zip(plans, draws, strict=True)]
        tokens = self.tokenizer(prompts, padding=True, return_tensors="pt").input_ids.to(self.device)
        return {"contrastive": self.model(input_ids=tokens, pixel_values=images, return_loss=True).loss}


class VaeStage:
    """Images to 16-channel latents and back: absolute error, with a light pull towards unit Gaussians."""

    kl_weight = 1e-3

    def __init__(self, config: ModelConfig, folder: Path, device: torch.device) -> None:
        self.config, self.device = config, device
        torch.manual_seed(0)
        blocks = len(config.vae_channels)
        self.model: nn.Module = AutoencoderKL(
            block_out_channels=config.vae_channels,
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            layers_per_block=1,
            latent_channels=16,
            norm_num_groups=8,
            sample_size=config.scenes.size,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
        ).to(device, memory_format=torch.channels_last)

    def losses(self, indices: range, generator: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        images, _ = scene_batch(indices, self.config.scenes, self.device)
        side = images.shape[-1] // 2  # convolutions learn from crops what they need, at a quarter of the cost
        top, left = torch.randint(side + 1, (2,), generator=generator).tolist()
        images = images[..., top : top + side, left : left + side].contiguous(memory_format=torch.channels_last)
        posterior = self.model.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(self.device)
        decoded = self.model.decode(posterior.mean + posterior.std * noise).sample
        error = (decoded - images).abs().mean()
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        return {"loss": error + self.kl_weight * divergence, "error": error, "divergence": divergence}

    @torch.no_grad()
    def calibrate(self, vae: AutoencoderKL, images: int = 256) -> None:
        """Set the shift and scale that give latents mean 0 and deviation 1, as SD3's VAE has them."""
        scenes, _ = scene_batch(range(images), self.config.scenes, self.device)
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in scenes.split(32)])
        vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())


class TransformerStage:
    """The MM-DiT, trained by flow matching alone.

    Plain diffusers appends 256 zero vectors in place of T5, the paper's setting 77. Such vectors stay identical in all
    blocks, so one of them with log(n) added to its key's score stands for n: the number that it stands for is drawn anew
    for every batch, and the trained model does not mind it. Most batches (`THINNED`) treat CLIP's pads likewise: `PADS` of
    them, drawn at random, stand for all, which costs a quarter less. A prompt has few words among so many pads, and a
    small model would never find them: every key stands for itself alone at first, and for its full number after
    `CROWDED` images. SD3 was trained with its text encoders dropped at random; here most samples (`UNPOOLED`) lack the
    pooled text, or a small model takes all it needs from that and hardly reads words.
    """

    THINNED, PADS, CROWDED, UNPOOLED = 0.8, 8, 30_000, 0.75

    def __init__(self, config: ModelConfig, folder: Path, device: torch.device) -> None:
        self.config, self.device = config, device
        clip = CLIPModel.from_pretrained(_finished(folder / "clip"), dtype=torch.float32)
        self.text = text_encoder(clip).to(device).eval().requires_grad_(False)
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.vae = AutoencoderKL.from_pretrained(_finished(folder / "vae")).to(device).eval().requires_grad_(False)
        torch.manual_seed(0)
        self.model: nn.Module = SD3Transformer2DModel(
            sample_size=config.latent_side,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=config.layers,
            attention_head_dim=config.width // config.heads,
            num_attention_heads=config.heads,
            joint_attention_dim=2 * config.text_width,
            caption_projection_dim=config.width,
            pooled_projection_dim=2 * config.text_width,
            pos_embed_max_size=config.latent_side,
            qk_norm="rms_norm",
        ).to(device)
        for name, module in self.model.named_modules():
            if name.endswith((".norm1.linear", ".norm1_context.linear")) or name in ("norm_out.linear", "proj_out"):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)

    def losses(self, indices: range, generator: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        images, plans = scene_batch(indices, self.config.scenes, self.device)
        order = np.random.default_rng(indices.start)
        draws = torch.rand(len(plans), generator=generator)
        prompts = [prompt_of(p, draw.item(), order) for p, draw in zip(plans, draws, strict=True)]
        with torch.no_grad():
            latents = self.vae.encode(images).latent_dist.mean
            latents = (latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor
            text, pooled, counts = self._encode(prompts, min(1.0, indices.start / self.CROWDED), generator)
        noise = torch.randn(latents.shape, generator=generator).to(self.device)
        normal = torch.randn(len(latents), generator=generator).sigmoid().to(self.device)
        sigma = 3 * normal / (1 + 2 * normal)
        mix = sigma[:, None, None, None]
        tokens = latents.shape[-1] * latents.shape[-2] // 4
        bias = torch.cat([torch.zeros(tokens, device=self.device), counts.log()])
        with intercept(self.model, key_bias=bias):
            velocity = self.model(
                hidden_states=(1 - mix) * latents + mix * noise,
                timestep=sigma * 1000,
                encoder_hidden_states=text,
                pooled_projections=pooled,
                return_dict=False,
            )[0]
        return {"flow": (velocity.float() - (noise - latents)).square().mean()}

    def _encode(
        self, prompts: list[str], crowd: float, generator: torch.Generator
    ) -> tuple[Float[Tensor, "batch tokens width"], Float[Tensor, "batch pooled"], Float[Tensor, " tokens"]]:
        """Text states, pooled text, and how many tokens each column stands for: from one (`crowd` 0) to all (1)."""
        ids = self.tokenizer(prompts, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids
        encoded = self.text(ids.to(self.device), output_hidden_states=True)
        text = encoded.hidden_states[-2]
        counts = torch.ones(MAX_TOKENS)
        if crowd * torch.rand((), generator=generator) < self.THINNED:
            kept, counts = self._thin(ids, generator)
            text = text[:, kept.to(self.device)]
        zeros = math.exp(torch.empty(()).uniform_(math.log(32), math.log(384), generator=generator))
        text = torch.cat([torch.cat([text, text], -1), text.new_zeros(len(text), 1, 2 * text.shape[-1])], 1)
        told = (torch.rand(len(text), 1, generator=generator) >= self.UNPOOLED).to(text)
        pooled = torch.cat([encoded.text_embeds, encoded.text_embeds], -1) * told
        return text, pooled, torch.cat([counts, torch.tensor([zeros])]).to(self.device) ** crowd

    def _thin(
        self, ids: Int[Tensor, "batch tokens"], generator: torch.Generator
    ) -> tuple[Int[Tensor, " kept"], Float[Tensor, " kept"]]:
        """Columns to keep: every column that is a word in some prompt, and a few pads that stand for all."""
        words = int((ids != self.tokenizer.pad_token_id).sum(1).max()) + 1  # the end token looks like a pad
        pads = words + torch.randperm(MAX_TOKENS - words, generator=generator)[: self.PADS].sort().values
        counts = torch.ones(words + len(pads))
        counts[words:] = (MAX_TOKENS - words) / len(pads)
        return torch.cat([torch.arange(words), pads]), counts


STAGES = {"clip": ClipStage, "vae": VaeStage, "transformer": TransformerStage}


def text_encoder(clip: CLIPModel) -> CLIPTextModelWithProjection:
    """The text tower as diffusers wants it."""
    text = CLIPTextModelWithProjection(clip.config.text_config)
    wanted = text.state_dict()
    text.load_state_dict({name: value for name, value in clip.state_dict().items() if name in wanted})
    return text


def _finished(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is not finished: run `python -m seg4diff_tools pretrain {folder.name}` first")
    return folder


def export(run: Path, out: Path) -> None:
    """Write the finished parts of a run as a diffusers pipeline in half precision, with the image tower beside it.

    `StableDiffusion3Pipeline.from_pretrained(out, text_encoder_3=None, tokenizer_3=None)` loads it. The one text encoder
    serves as both of SD3's; encoders are kept in fp32, since transformers would load them in the precision of the file.

    Raises:
        CheckpointError: a part of the run is not finished.
    """
    clip = CLIPModel.from_pretrained(_finished(run / "clip"), dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(run / "tokenizer")
    pipe = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel.from_pretrained(_finished(run / "transformer")).half(),
        vae=AutoencoderKL.from_pretrained(_finished(run / "vae")).half(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=text_encoder(clip),
        text_encoder_2=text_encoder(clip),
        text_encoder_3=None,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=None,
    )
    pipe.save_pretrained(out, safe_serialization=True, max_shard_size="14MB")
    clip.save_pretrained(out / "clip")
