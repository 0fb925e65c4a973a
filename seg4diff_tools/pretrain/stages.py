"""The three parts of a Stable Diffusion 3, each with its training losses."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextModelWithProjection, CLIPTokenizer

from seg4diff_tools._runs import as_path
from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.errors import CheckpointError
from seg4diff_tools.pretrain.config import ModelConfig
from seg4diff_tools.pretrain.latents import LatentCache, cache_key, slots
from seg4diff_tools.pretrain.speed import Speed, accelerate
from seg4diff_tools.pretrain.vocabulary import MAX_TOKENS, make_tokenizer
from seg4diff_tools.scenes import render
from seg4diff_tools.scenes.planning import Plan, SceneConfig, describe, plan

PLAIN, EMPTY = 0.4, 0.1
"""Shares of plain class names and of empty prompts; the others are captions."""


def scene_batch(
    indices: range, config: SceneConfig, device: torch.device
) -> tuple[Float[Tensor, "batch 3 side side"], list[Plan]]:
    """Return training scenes as images in -1..1, without masks: no loss of these models uses them."""
    plans = [plan("train", index, config) for index in indices]
    return render(plans, config.size, device)[0] * 2 - 1, plans


def prompt_of(p: Plan, draw: float, order: np.random.Generator, rich: bool = False) -> str:
    """Return the caption, the shuffled class names, or an empty prompt, chosen by `draw` (uniform in 0..1).

    A rich caption is drawn anew each time, so that a repeated scene gets other details.
    """
    if draw < EMPTY:
        return ""
    if draw > EMPTY + PLAIN:
        return describe(p.placements, p.background, order) if rich else p.caption
    return " ".join(order.permutation(_names(p)))


def list_of(p: Plan, config: SceneConfig, order: np.random.Generator) -> str:
    """Return present and absent class names, shuffled: eight or more, up to the whole vocabulary."""
    names = _names(p)
    absent = [name for name in (*config.concepts, *config.backgrounds) if name not in names]
    most = min(len(names) + len(absent), 40)
    count = int(order.integers(min(8, most), most, endpoint=True))
    return " ".join(order.permutation([*names, *order.permutation(absent)[: max(0, count - len(names))]]))


def _names(p: Plan) -> list[str]:
    return [*dict.fromkeys(placement.concept for placement in p.placements), p.background]


class ClipStage:
    """Text and image towers, trained contrastively; the text tower is then frozen."""

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
        # With CLIP's own small initialization, a short training mixes a prompt's words in each token's state.
        nn.init.normal_(self.model.text_model.embeddings.token_embedding.weight)

    def losses(self, indices: range, generator: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        images, plans = scene_batch(indices, self.config.scenes, self.device)
        order = np.random.default_rng(indices.start)
        draws = EMPTY + (1 - EMPTY) * torch.rand(len(plans), generator=generator, dtype=torch.float32)
        rich = self.config.scenes.captions == "rich"
        prompts = [prompt_of(p, draw.item(), order, rich) for p, draw in zip(plans, draws, strict=True)]
        tokens = self.tokenizer(prompts, padding=True, return_tensors="pt").input_ids.to(self.device)
        return {"contrastive": self.model(input_ids=tokens, pixel_values=images, return_loss=True).loss}

    def prepare(self, speed: Speed) -> None:
        """Leave the model unchanged."""


class VaeStage:
    """Autoencoder with 16-channel latents: absolute and squared error, with a small KL loss to unit Gaussians."""

    kl_weight, square_weight = 2e-4, 2.0

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
        side = images.shape[-1] // 2  # crops suffice for convolutions, at a quarter of the cost
        top, left = torch.randint(side + 1, (2,), generator=generator).tolist()
        images = images[..., top : top + side, left : left + side].contiguous(memory_format=torch.channels_last)
        posterior = self.model.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator, dtype=torch.float32).to(self.device)
        decoded = self.model.decode(posterior.mean + posterior.std * noise).sample
        error, squares = (decoded - images).abs().mean(), (decoded - images).square().mean()
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        loss = error + self.square_weight * squares + self.kl_weight * divergence
        return {"loss": loss, "error": error, "divergence": divergence}

    def prepare(self, speed: Speed) -> None:
        """Leave the model unchanged: its convolutions are fast already."""

    @torch.no_grad()
    def calibrate(self, vae: AutoencoderKL, images: int = 256) -> None:
        """Set the shift and scale that give latents mean 0 and deviation 1, as in SD3's VAE."""
        scenes, _ = scene_batch(range(images), self.config.scenes, self.device)
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in scenes.split(32)])
        vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())


class TransformerStage:
    """The MM-DiT, trained by flow matching alone.

    Plain diffusers appends 256 zero vectors in place of T5, the paper's setting 77. Such vectors stay identical in all
    blocks, so one of them with log(n) added to its key's score represents n. This number is drawn for every batch, so
    that the trained model is robust to it. Most batches (`THINNED`) treat CLIP's pads likewise: `PADS` random ones
    represent all, which costs a quarter less. A prompt has few words among many pads, and a small model would not learn
    to attend to them: every key has weight 1 at first, and its full weight after `recipe.crowded` images. SD3 was
    trained with its text encoders dropped at random; here most samples (`UNPOOLED`) lack the pooled text, since a small
    model that gets it hardly attends to words.
    """

    THINNED, PADS, UNPOOLED = 0.8, 8, 0.75

    def __init__(self, config: ModelConfig, folder: Path, device: torch.device, cache: Path | None = None) -> None:
        """Load the finished parts and initialize a transformer.

        Args:
            config: sizes and recipe.
            folder: of the run.
            device: for training.
            cache: folder for the latents of a pool of scenes; by default `latents` in the run's folder.
        """
        self.config, self.device = config, device
        self.speed: Speed | None = None  # before `prepare`, attention is diffusers' own
        self._cache_folder = cache or folder / "latents"
        self._cache: LatentCache | None = None
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

    def prepare(self, speed: Speed) -> None:
        """Set the training attention, and compile."""
        self.speed = speed
        accelerate(self.model, speed)

    def losses(self, indices: range, generator: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        recipe = self.config.recipe
        numbers = slots(indices, recipe.pool)
        plans = self.plans(numbers)
        latents = self.latents(numbers, plans)
        prompts, thinned = self._prompts(plans, indices.start, generator)
        with torch.no_grad():
            text, pooled, counts = self._encode(prompts, thinned, self._crowd(indices.start), generator)
        noise = torch.randn(latents.shape, generator=generator, dtype=torch.float32).to(self.device)
        normal = torch.randn(len(latents), generator=generator, dtype=torch.float32).sigmoid().to(self.device)
        sigma = recipe.shift * normal / (1 + (recipe.shift - 1) * normal)
        mix = sigma[:, None, None, None]
        velocity = self._predict((1 - mix) * latents + mix * noise, sigma, text, pooled, counts.log()).float()
        flow = (velocity - (noise - latents)).square().mean()
        if not recipe.direction:
            return {"flow": flow}
        direction = 1 - torch.cosine_similarity(velocity, noise - latents, dim=1).mean()
        return {"loss": flow + recipe.direction * direction, "flow": flow, "direction": direction}

    def _predict(
        self,
        noised: Float[Tensor, "batch channels y x"],
        sigma: Float[Tensor, " batch"],
        text: Float[Tensor, "batch tokens width"],
        pooled: Float[Tensor, "batch pooled"],
        log_counts: Float[Tensor, " tokens"],
    ) -> Float[Tensor, "batch channels y x"]:
        inputs = {
            "hidden_states": noised,
            "timestep": sigma * 1000,
            "encoder_hidden_states": text,
            "pooled_projections": pooled,
            "return_dict": False,
        }
        tokens = noised.shape[-1] * noised.shape[-2] // 4
        bias = torch.cat([torch.zeros(tokens, dtype=torch.float32, device=self.device), log_counts])
        if self.speed:
            return self.model(joint_attention_kwargs={"key_bias": bias}, **inputs)[0]
        with intercept(self.model, key_bias=bias):
            return self.model(**inputs)[0]

    def plans(self, numbers: Sequence[int]) -> list[Plan]:
        """Return the plans of the scenes with these numbers: the first `recipe.easy` have one large object each."""
        scenes = self.config.scenes
        low, high = scenes.object_side
        easy = replace(scenes, objects=(1, 1), object_side=((low + high) / 2, high))
        return [plan("train", number, easy if number < self.config.recipe.easy else scenes) for number in numbers]

    @torch.no_grad()
    def latents(
        self, numbers: Sequence[int], plans: Sequence[Plan] | None = None
    ) -> Float[Tensor, "batch channels y x"]:
        """Return scaled latents of these scenes: with a pool from the cache, else drawn and encoded."""
        if not self.config.recipe.pool:
            return self._draw(self.plans(numbers) if plans is None else plans)
        if self._cache is None:
            side, dtype = self.config.latent_side, torch.get_autocast_dtype(self.device.type)
            dtype = dtype if torch.is_autocast_enabled(self.device.type) else torch.float32
            key = cache_key(self.config, self.vae, dtype)
            self._cache = LatentCache(
                self._cache_folder,
                self.config.recipe.pool,
                (16, side, side),
                key,
                lambda block: self._draw(self.plans(block)),
            )
        return self._cache(numbers).to(self.device)

    def _draw(self, plans: Sequence[Plan]) -> Float[Tensor, "batch channels y x"]:
        images = render(plans, self.config.scenes.size, self.device)[0] * 2 - 1
        latents = self.vae.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist.mean.float()
        return (latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor

    def _crowd(self, images: int) -> float:
        """Return the weight of pads after so many images: 0 to 1."""
        crowded = self.config.recipe.crowded
        return min(1.0, images / crowded) if crowded else 1.0

    def _prompts(self, plans: Sequence[Plan], first: int, generator: torch.Generator) -> tuple[list[str], bool]:
        """Return prompts of a batch, and whether its pads are thinned; class lists are in unthinned batches only."""
        order, scenes, recipe = np.random.default_rng(first), self.config.scenes, self.config.recipe
        draws = torch.rand(len(plans), generator=generator, dtype=torch.float32).tolist()
        thinned = bool(self._crowd(first) * torch.rand((), generator=generator, dtype=torch.float32) < self.THINNED)
        rich = scenes.captions == "rich"
        prompts = [prompt_of(p, draw, order, rich) for p, draw in zip(plans, draws, strict=True)]
        if recipe.lists and not thinned:
            listed = (torch.rand(len(plans), generator=generator, dtype=torch.float32) < recipe.lists).tolist()
            prompts = [
                list_of(p, scenes, order) if long else told
                for p, told, long in zip(plans, prompts, listed, strict=True)
            ]
        return prompts, thinned

    def _encode(
        self, prompts: list[str], thinned: bool, crowd: float, generator: torch.Generator
    ) -> tuple[Float[Tensor, "batch tokens width"], Float[Tensor, "batch pooled"], Float[Tensor, " tokens"]]:
        """Return text states, pooled text, and the number of tokens of each column: from one (`crowd` 0) to all (1)."""
        ids = self.tokenizer(prompts, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids
        encoded = self.text(ids.to(self.device), output_hidden_states=True)
        text = encoded.hidden_states[-2]
        counts = torch.ones(MAX_TOKENS, dtype=torch.float32)
        if thinned and self._words(ids) <= self.config.recipe.columns:
            kept, counts = self._thin(generator)
            text = text[:, kept.to(self.device)]
        zeros = math.exp(
            torch.empty((), dtype=torch.float32).uniform_(math.log(32), math.log(384), generator=generator)
        )
        text = torch.cat([torch.cat([text, text], -1), text.new_zeros(len(text), 1, 2 * text.shape[-1])], 1)
        told = (torch.rand(len(text), 1, generator=generator, dtype=torch.float32) >= self.UNPOOLED).to(text)
        pooled = torch.cat([encoded.text_embeds, encoded.text_embeds], -1) * told
        return text, pooled, torch.cat([counts, torch.tensor([zeros], dtype=torch.float32)]).to(self.device) ** crowd

    def _words(self, ids: Int[Tensor, "batch tokens"]) -> int:
        """Return the number of columns up to the end of the longest prompt."""
        return int((ids != self.tokenizer.pad_token_id).sum(1).max()) + 1  # the end token is also the pad token

    def _thin(self, generator: torch.Generator) -> tuple[Int[Tensor, " kept"], Float[Tensor, " kept"]]:
        """Return the columns to keep, and their weights: the first ones, with all words, and a few pads for all others.

        Their number is constant, so that compiled blocks have one shape.
        """
        words = self.config.recipe.columns
        pads = words + torch.randperm(MAX_TOKENS - words, generator=generator)[: self.PADS].sort().values
        counts = torch.ones(words + len(pads), dtype=torch.float32)
        counts[words:] = (MAX_TOKENS - words) / len(pads)
        return torch.cat([torch.arange(words), pads]), counts


STAGES = {"clip": ClipStage, "vae": VaeStage, "transformer": TransformerStage}


def text_encoder(clip: CLIPModel) -> CLIPTextModelWithProjection:
    """Return the text tower in diffusers' form."""
    text = CLIPTextModelWithProjection(clip.config.text_config)
    wanted = text.state_dict()
    text.load_state_dict({name: value for name, value in clip.state_dict().items() if name in wanted})
    return text


def _finished(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is not finished: run `python -m seg4diff_tools pretrain {folder.name}` first")
    return folder


def export(run: str | Path, out: str | Path) -> None:
    """Write the finished parts of a run as a diffusers pipeline in half precision, with the image tower beside it.

    `StableDiffusion3Pipeline.from_pretrained(out, text_encoder_3=None, tokenizer_3=None)` loads it. The one text
    encoder serves as both of SD3's; encoders are kept in fp32, since transformers would load them in the precision of
    the file.

    Args:
        run: folder of the run.
        out: folder of the model.

    Raises:
        InputError: not a path.
        CheckpointError: a part of the run is not finished.
    """
    run, out = as_path(run, "run"), as_path(out, "out")
    for part in STAGES:
        _finished(run / part)
    transformer = SD3Transformer2DModel.from_pretrained(run / "transformer")
    pipe = assemble(run, transformer)
    pipe.transformer.half(), pipe.vae.half()
    pipe.save_pretrained(out, safe_serialization=True, max_shard_size="14MB")
    CLIPModel.from_pretrained(run / "clip", dtype=torch.float32).save_pretrained(out / "clip")


def assemble(run: Path, transformer: SD3Transformer2DModel) -> StableDiffusion3Pipeline:
    """Return a pipeline of a run's finished text encoder and VAE and any transformer, in fp32.

    Raises:
        CheckpointError: a part of the run is not finished.
    """
    clip = CLIPModel.from_pretrained(_finished(run / "clip"), dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(run / "tokenizer")
    return StableDiffusion3Pipeline(
        transformer=transformer,
        vae=AutoencoderKL.from_pretrained(_finished(run / "vae")),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=text_encoder(clip),
        text_encoder_2=text_encoder(clip),
        text_encoder_3=None,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=None,
    )
