"""Tiny random pipelines of the real classes, one for each family; every axis of another size."""

import json
import warnings
from collections.abc import Callable

import torch
from conftest import SENTENCES, tiny_pipeline, tiny_text_encoder, tiny_tokenizer
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanImage,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import pre_tokenizers
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import (
    ByT5Tokenizer,
    CLIPTextModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2TokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

SIDE = 40  # pixels of the square images: 5 x 5 image tokens of 8 pixels


def tiny_t5_tokenizer() -> T5TokenizerFast:
    """A T5 tokenizer trained on SENTENCES that can write any ASCII letter."""
    blank = T5TokenizerFast()
    letters = [chr(code) for code in range(33, 127)]
    trainer = UnigramTrainer(
        vocab_size=220, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", initial_alphabet=letters
    )
    trainer.show_progress = False
    blank.backend_tokenizer.train_from_iterator(SENTENCES, trainer)
    model = json.loads(blank.backend_tokenizer.to_str())["model"]
    return T5TokenizerFast(vocab=[tuple(piece) for piece in model["vocab"]], extra_ids=0)


def tiny_t5(tokenizer: T5TokenizerFast, width: int) -> T5EncoderModel:
    """A two-layer T5 encoder."""
    sizes = {"d_model": width, "d_kv": 6, "d_ff": 29, "num_layers": 2, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=len(tokenizer), **sizes)).eval()


def tiny_vae(channels: int = 16, **overrides) -> AutoencoderKL:
    """A VAE of 4-pixel cells."""
    sizes = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (4, 6, 10),
        "layers_per_block": 1,
        "latent_channels": channels,
        "norm_num_groups": 2,
        "sample_size": 56,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    return AutoencoderKL(**(sizes | overrides)).eval()


def sharpened(transformer: torch.nn.Module) -> torch.nn.Module:
    """Larger query and key weights: fresh ones attend almost evenly, which tests nothing."""
    for name, parameter in transformer.named_parameters():
        if any(part in name for part in ("to_q.", "to_k.", "add_q_proj.", "add_k_proj.")) and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.4)
    return transformer.eval()


def tiny_flux(kind: type = FluxPipeline, guidance: bool = True) -> FluxPipeline:
    """FLUX.1: 2 double blocks and 3 single ones, 3 heads of 10."""
    tokenizer, tokenizer_2 = tiny_tokenizer(), tiny_t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=4 * 5,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=10,
        num_attention_heads=3,
        joint_attention_dim=22,
        pooled_projection_dim=14,
        guidance_embeds=guidance,
        axes_dims_rope=(2, 4, 4),
    )
    return kind(
        transformer=sharpened(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=tiny_vae(5),
        text_encoder=CLIPTextModel(tiny_text_encoder(tokenizer, width=14, projection=14).config).eval(),
        tokenizer=tokenizer,
        text_encoder_2=tiny_t5(tokenizer_2, 22),
        tokenizer_2=tokenizer_2,
    )


def tiny_qwen_tokenizer() -> Qwen2TokenizerFast:
    """A byte-level tokenizer trained on SENTENCES, with the chat template of Qwen3."""
    blank = Qwen2TokenizerFast()
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    blank.backend_tokenizer.train_from_iterator(SENTENCES, trainer)
    model = json.loads(blank.backend_tokenizer.to_str())["model"]
    tokenizer = Qwen2TokenizerFast(
        vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]], eos_token="<|im_end|>"
    )
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def tiny_qwen(tokenizer: Qwen2TokenizerFast, width: int, layers: int = 4) -> Qwen3ForCausalLM:
    """A small Qwen3."""
    sizes = {"hidden_size": width, "intermediate_size": width + 1, "num_hidden_layers": layers, "head_dim": 6}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), **sizes, **heads)).eval()


def tiny_flux2() -> Flux2KleinPipeline:
    """FLUX.2 klein: 2 double blocks and 3 single ones, 3 heads of 8."""
    tokenizer = tiny_qwen_tokenizer()
    transformer = Flux2Transformer2DModel(
        in_channels=4 * 5,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=8,
        num_attention_heads=3,
        joint_attention_dim=3 * 14,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 6, 10),
        layers_per_block=1,
        latent_channels=5,
        norm_num_groups=2,
        sample_size=56,
    )
    torch.nn.init.uniform_(vae.bn.running_mean)
    torch.nn.init.uniform_(vae.bn.running_var, 0.5, 2.0)
    pipe = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=tiny_qwen(tokenizer, 14, layers=28),
        tokenizer=tokenizer,
        transformer=sharpened(transformer),
    )
    return pipe


def tiny_chroma() -> ChromaPipeline:
    """Chroma: 2 double blocks and 3 single ones, 3 heads of 10."""
    tokenizer = tiny_t5_tokenizer()
    with warnings.catch_warnings():
        # diffusers' own, about a name inside of diffusers
        warnings.simplefilter("ignore", FutureWarning)
        transformer = ChromaTransformer2DModel(
            in_channels=4 * 5,
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=10,
            num_attention_heads=3,
            joint_attention_dim=22,
            axes_dims_rope=(2, 4, 4),
            approximator_num_channels=16,
            approximator_hidden_dim=13,
            approximator_layers=1,
        )
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=tiny_vae(5),
        text_encoder=tiny_t5(tokenizer, 22),
        tokenizer=tokenizer,
        transformer=sharpened(transformer),
    )


def tiny_auraflow() -> AuraFlowPipeline:
    """AuraFlow: 2 joint blocks and 3 single ones, 3 heads of 10, 8 registers."""
    tokenizer = tiny_t5_tokenizer()
    transformer = AuraFlowTransformer2DModel(
        sample_size=SIDE // 4,
        in_channels=5,
        out_channels=5,
        num_mmdit_layers=2,
        num_single_dit_layers=3,
        attention_head_dim=10,
        num_attention_heads=3,
        joint_attention_dim=22,
        caption_projection_dim=30,
        pos_embed_max_size=11 * 11,
    )
    sizes = {"d_model": 22, "d_kv": 6, "d_ff": 29, "num_layers": 2, "num_heads": 2}
    return AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer), **sizes)).eval(),
        vae=tiny_vae(5, shift_factor=None, scaling_factor=0.13),
        transformer=sharpened(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )


def tiny_qwen_vl(tokenizer: Qwen2TokenizerFast, width: int) -> Qwen2_5_VLForConditionalGeneration:
    """A small Qwen2.5-VL, of which only the language model runs."""
    text = {"hidden_size": width, "intermediate_size": width + 1, "num_hidden_layers": 4, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "vocab_size": len(tokenizer)}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 1], "rope_theta": 1e4}}
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": width}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval()


def tiny_qwen_image() -> QwenImagePipeline:
    """Qwen-Image: 5 blocks, 3 heads of 10; latent cells of 4 pixels."""
    tokenizer = tiny_qwen_tokenizer()
    encoder = tiny_qwen_vl(tokenizer, 20)
    transformer = QwenImageTransformer2DModel(
        in_channels=4 * 5,
        out_channels=5,
        num_layers=5,
        attention_head_dim=10,
        num_attention_heads=3,
        joint_attention_dim=20,
        axes_dims_rope=(2, 4, 4),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=5,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, 0.2, 0.3, 0.4, 0.5],
        latents_std=[1.0, 1.1, 1.2, 1.3, 1.4],
    )
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=sharpened(transformer),
    )


def tiny_z_image() -> ZImagePipeline:
    """Z-Image: 5 blocks after 1 + 1 refining ones, 3 heads of 10."""
    tokenizer = tiny_qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=5,
        dim=30,
        n_layers=5,
        n_refiner_layers=1,
        n_heads=3,
        n_kv_heads=3,
        cap_feat_dim=14,
        axes_dims=[2, 4, 4],
        axes_lens=[1024, 64, 64],
    )
    for name in ("x_pad_token", "cap_pad_token"):
        torch.nn.init.normal_(getattr(transformer, name))
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(5),
        text_encoder=tiny_qwen(tokenizer, 14),
        tokenizer=tokenizer,
        transformer=sharpened(transformer),
    )


def tiny_hunyuan_image() -> HunyuanImagePipeline:
    """HunyuanImage: 2 double blocks and 3 single ones, 3 heads of 10, 13 letters of ByT5."""
    tokenizer = tiny_qwen_tokenizer()
    transformer = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=3,
        attention_head_dim=10,
        num_layers=2,
        num_single_layers=3,
        num_refiner_layers=1,
        text_embed_dim=20,
        text_embed_2_dim=22,
        rope_axes_dim=(4, 6),
    )
    vae = AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=1,
        spatial_compression_ratio=8,
        sample_size=56,
        scaling_factor=0.75,
    )
    config = T5Config(vocab_size=384, d_model=22, d_kv=6, d_ff=29, num_layers=2, num_heads=2)
    pipe = HunyuanImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        vae=vae.eval(),
        text_encoder=tiny_qwen_vl(tokenizer, 20),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(config).eval(),
        tokenizer_2=ByT5Tokenizer(),
        transformer=sharpened(transformer),
    )
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = 211, 29
    return pipe


def tiny_ovis_image() -> OvisImagePipeline:
    """Ovis-Image: 2 double blocks and 3 single ones, 3 heads of 10."""
    tokenizer = tiny_qwen_tokenizer()
    transformer = OvisImageTransformer2DModel(
        in_channels=4 * 5,
        out_channels=4 * 5,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=10,
        num_attention_heads=3,
        joint_attention_dim=14,
        axes_dims_rope=(2, 4, 4),
    )
    return OvisImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=tiny_vae(5),
        text_encoder=tiny_qwen(tokenizer, 14).model,
        tokenizer=tokenizer,
        transformer=sharpened(transformer),
    )


BUILDERS: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd3": tiny_pipeline,
    "sd3.5": lambda: tiny_pipeline(dual_attention_layers=(0, 1), qk_norm="rms_norm"),
    "flux-dev": tiny_flux,
    "flux-schnell": lambda: tiny_flux(guidance=False),
    "flux-kontext": lambda: tiny_flux(FluxKontextPipeline),
    "flux2-klein": tiny_flux2,
    "chroma": tiny_chroma,
    "auraflow": tiny_auraflow,
    "qwen-image": tiny_qwen_image,
    "z-image": tiny_z_image,
    "hunyuan-image": tiny_hunyuan_image,
    "ovis-image": tiny_ovis_image,
}


def build(name: str) -> DiffusionPipeline:
    """A tiny pipeline, the same at every call.

    Args:
        name: of BUILDERS.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = BUILDERS[name]()
    pipe.set_progress_bar_config(disable=True)
    # the classes' own default is a megapixel
    pipe.default_sample_size = SIDE // pipe.vae_scale_factor
    return pipe
