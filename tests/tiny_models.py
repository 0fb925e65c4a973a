"""Tiny random pipelines of the real classes, one for each family; every axis of another size."""

import warnings
from collections.abc import Callable
from dataclasses import replace

import diffusers
import pytest
import torch
from conftest import tiny_pipeline, tiny_text_encoder, tiny_tokenizer
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKLCogVideoX,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanImage,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video
from packaging.version import Version
from tiny_parts import (
    TextProcessor,
    sharpened,
    tiny_gemma,
    tiny_glm,
    tiny_llama,
    tiny_mistral,
    tiny_qwen,
    tiny_qwen3_vl,
    tiny_qwen_tokenizer,
    tiny_qwen_vl,
    tiny_t5,
    tiny_t5_tokenizer,
    tiny_vae,
)
from tokenizers.processors import TemplateProcessing
from transformers import (
    ByT5Tokenizer,
    CLIPTextModel,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from seg4diff_tools.backbones import Backbone, wrap_pipeline

FOUR_BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
"""Of a VAE of 8-pixel cells."""
T5_WIDTH = 43  # of the tiny SD3's text features

SIDE = 40  # pixels of the square images: 5 x 5 image tokens of 8 pixels


def tiny_sd3_with_t5(**transformer) -> StableDiffusion3Pipeline:
    """SD3 with its third text encoder."""
    pipe, tokenizer = tiny_pipeline(**transformer), tiny_t5_tokenizer()
    pipe.register_modules(text_encoder_3=tiny_t5(tokenizer, T5_WIDTH), tokenizer_3=tokenizer)
    return pipe


def tiny_flux(kind: type = FluxPipeline, guidance: bool = True) -> FluxPipeline:
    """FLUX.1: 2 double directions and 3 single ones, 3 heads of 10."""
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


def tiny_flux2_vae() -> AutoencoderKLFlux2:
    """A VAE of 4-pixel cells with running statistics of patches."""
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
    return vae.eval()


def tiny_flux2(dev: bool) -> DiffusionPipeline:
    """FLUX.2 dev or klein: 2 double directions and 3 single ones, 3 heads of 8."""
    transformer = Flux2Transformer2DModel(
        in_channels=4 * 5,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=8,
        num_attention_heads=3,
        joint_attention_dim=3 * 14,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=dev,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    parts = {"scheduler": scheduler, "vae": tiny_flux2_vae(), "transformer": sharpened(transformer)}
    if dev:
        encoder, processor = tiny_mistral(14)
        return Flux2Pipeline(text_encoder=encoder, tokenizer=processor, **parts)
    from diffusers import Flux2KleinPipeline

    tokenizer = tiny_qwen_tokenizer()
    return Flux2KleinPipeline(text_encoder=tiny_qwen(tokenizer, 14, layers=28), tokenizer=tokenizer, **parts)


def tiny_chroma() -> ChromaPipeline:
    """Chroma: 2 double directions and 3 single ones, 3 heads of 10."""
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
    """AuraFlow: 2 joint directions and 3 single ones, 3 heads of 10, 8 registers."""
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


def tiny_qwen_image() -> QwenImagePipeline:
    """Qwen-Image: 5 directions, 3 heads of 10; latent cells of 4 pixels."""
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
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=tiny_qwen_vae(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=sharpened(transformer),
    )


def tiny_z_image() -> ZImagePipeline:
    """Z-Image: 5 directions after 1 + 1 refining ones, 3 heads of 10."""
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


def tiny_hunyuan_image(distilled: bool = False) -> HunyuanImagePipeline:
    """HunyuanImage: 2 double directions and 3 single ones, 3 heads of 10, 29 letters of ByT5."""
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
        guidance_embeds=distilled,
        use_meanflow=distilled,
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
    """Ovis-Image: 2 double directions and 3 single ones, 3 heads of 10."""
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


def tiny_qwen_vae() -> AutoencoderKLQwenImage:
    """A VAE for videos, of 4-pixel cells."""
    vae = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=5,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, 0.2, 0.3, 0.4, 0.5],
        latents_std=[1.0, 1.1, 1.2, 1.3, 1.4],
    )
    return vae.eval()


def tiny_krea2() -> DiffusionPipeline:
    """Krea 2: 5 directions of 4 heads of 10, two of which share their keys."""
    from diffusers import Krea2Pipeline, Krea2Transformer2DModel

    tokenizer = tiny_qwen_tokenizer()
    transformer = Krea2Transformer2DModel(
        in_channels=4 * 5,
        num_layers=5,
        attention_head_dim=10,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=37,
        timestep_embed_dim=16,
        text_hidden_dim=20,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=23,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(2, 4, 4),
    )
    return Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=tiny_qwen_vae(),
        text_encoder=tiny_qwen3_vl(tokenizer, 20),
        tokenizer=tokenizer,
        transformer=sharpened(transformer),
        text_encoder_select_layers=(1, 2, 4),
    )


def tiny_ernie_image() -> DiffusionPipeline:
    """ERNIE-Image: 5 directions, 3 heads of 10, without the enhancer of prompts."""
    from diffusers import ErnieImagePipeline, ErnieImageTransformer2DModel

    encoder, processor = tiny_mistral(14, layers=4)
    tokenizer = processor.tokenizer
    start = [("<s>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=start)
    tokenizer.model_max_length, tokenizer.padding_side = 211, "right"
    transformer = ErnieImageTransformer2DModel(
        hidden_size=30,
        num_attention_heads=3,
        num_layers=5,
        ffn_hidden_size=37,
        in_channels=4 * 5,
        out_channels=4 * 5,
        text_in_dim=14,
        rope_axes_dim=(2, 4, 4),
    )
    # fresh ones are zero, and what attention puts out would be lost
    for layer in (transformer.adaLN_modulation[-1], transformer.final_linear):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return ErnieImagePipeline(
        transformer=sharpened(transformer),
        vae=tiny_flux2_vae(),
        text_encoder=encoder.model,
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def tiny_cogview4() -> DiffusionPipeline:
    """CogView4: 5 directions, 3 heads of 8; latent cells of 8 pixels."""
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel

    encoder, tokenizer = tiny_glm()
    transformer = CogView4Transformer2DModel(
        in_channels=5,
        out_channels=5,
        num_layers=5,
        attention_head_dim=8,
        num_attention_heads=3,
        text_embed_dim=14,
        time_embed_dim=13,
        condition_dim=4,
        pos_embed_max_size=11,
        sample_size=10,
    )
    return CogView4Pipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=tiny_vae(5, shift_factor=None, block_out_channels=(4, 6, 10, 12), **FOUR_BLOCKS),
        transformer=sharpened(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )


def tiny_longcat_image() -> DiffusionPipeline:
    """LongCat-Image: 2 double directions and 3 single ones, 3 heads of 10, without what rewrites prompts."""
    from diffusers import LongCatImagePipeline, LongCatImageTransformer2DModel

    tokenizer = tiny_qwen_tokenizer()
    transformer = LongCatImageTransformer2DModel(
        in_channels=4 * 16,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=10,
        num_attention_heads=3,
        joint_attention_dim=20,
        pooled_projection_dim=20,
        axes_dims_rope=[2, 4, 4],
    )
    return LongCatImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=tiny_vae(16),
        text_encoder=tiny_qwen_vl(tokenizer, 20),
        tokenizer=tokenizer,
        text_processor=TextProcessor(tokenizer),
        transformer=sharpened(transformer),
    )


def tiny_lumina2() -> DiffusionPipeline:
    """Lumina 2: 5 directions after 1 + 1 refining ones, 4 heads of 12, two of which share their keys."""
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

    encoder, tokenizer = tiny_gemma(14)
    transformer = Lumina2Transformer2DModel(
        sample_size=10,
        in_channels=5,
        hidden_size=48,
        num_layers=5,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=2,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(600, 64, 64),
        cap_feat_dim=14,
    )
    pipe = Lumina2Pipeline(
        transformer=sharpened(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(5, block_out_channels=(4, 6, 10, 12), **FOUR_BLOCKS),
        text_encoder=encoder,
        tokenizer=tokenizer,
    )
    # of the tiny tokenizer, the own one has almost as many tokens as fit
    pipe.system_prompt = "Draw."
    return pipe


def tiny_bria() -> DiffusionPipeline:
    """Bria 3.2: 2 double directions and 3 single ones, 3 heads of 10."""
    from diffusers import BriaPipeline, BriaTransformer2DModel

    tokenizer = tiny_t5_tokenizer()
    transformer = BriaTransformer2DModel(
        in_channels=4 * 5,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=10,
        num_attention_heads=3,
        joint_attention_dim=22,
        axes_dims_rope=[2, 4, 4],
    )
    return BriaPipeline(
        transformer=sharpened(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=tiny_vae(5),
        text_encoder=tiny_t5(tokenizer, 22),
        tokenizer=tokenizer,
    )


def tiny_hidream() -> DiffusionPipeline:
    """HiDream-I1: 2 double directions and 3 single ones, 3 heads of 12, two experts."""
    from diffusers import HiDreamImagePipeline, HiDreamImageTransformer2DModel

    tokenizer, tokenizer_2 = tiny_tokenizer(max_length=128), tiny_tokenizer(pad_token="!", max_length=128)
    tokenizer_3, tokenizer_4 = tiny_t5_tokenizer(), tiny_qwen_tokenizer()
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=5,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=12,
        num_attention_heads=3,
        caption_channels=[22, 16],
        text_emb_dim=11 + 17,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 4, 4),
        max_resolution=(14, 14),
        llama_layers=[0, 1, 2, 3, 3],
    )
    return HiDreamImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=tiny_vae(5),
        text_encoder=tiny_text_encoder(tokenizer, width=14, projection=11).eval(),
        tokenizer=tokenizer,
        text_encoder_2=tiny_text_encoder(tokenizer_2, width=26, projection=17).eval(),
        tokenizer_2=tokenizer_2,
        text_encoder_3=tiny_t5(tokenizer_3, 22),
        tokenizer_3=tokenizer_3,
        text_encoder_4=tiny_llama(tokenizer_4, 16),
        tokenizer_4=tokenizer_4,
        transformer=sharpened(transformer),
    )


def tiny_cogvideox(rotary: bool = False) -> CogVideoXPipeline:
    """CogVideoX 2b, or 5b with rotary positions: 5 directions, 3 heads of 16; latent cells of 4 pixels, 4 frames."""
    tokenizer = tiny_t5_tokenizer()
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=3,
        attention_head_dim=16,
        in_channels=5,
        out_channels=5,
        time_embed_dim=13,
        text_embed_dim=22,
        num_layers=5,
        sample_height=10,
        sample_width=14,
        sample_frames=9,
        use_rotary_positional_embeddings=rotary,
    )
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(4, 6, 10),
        latent_channels=5,
        layers_per_block=1,
        norm_num_groups=2,
        sample_height=40,
        sample_width=56,
        scaling_factor=0.7,
    )
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True, clip_sample=False
    )
    return CogVideoXPipeline(
        tokenizer=tokenizer,
        text_encoder=tiny_t5(tokenizer, 22),
        vae=vae.eval(),
        transformer=sharpened(transformer),
        scheduler=scheduler,
    )


def tiny_hunyuan_video() -> HunyuanVideoPipeline:
    """HunyuanVideo: 2 double directions and 3 single ones, 3 heads of 10; latent cells of 8 pixels and 4 frames."""
    tokenizer, tokenizer_2 = tiny_qwen_tokenizer(), tiny_tokenizer()
    before = pipeline_hunyuan_video.DEFAULT_PROMPT_TEMPLATE["template"].split("{}")[0]
    skipped = pipeline_hunyuan_video.DEFAULT_PROMPT_TEMPLATE["crop_start"]
    # as many tokens before the prompt as Llama 3 has: letters, and the rest as one token
    letters = next(n for n in range(len(before)) if len(tokenizer(before[:n]).input_ids) == skipped - 1)
    tokenizer.add_tokens([before[letters:]], special_tokens=True)
    assert len(tokenizer(before).input_ids) == skipped
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=5,
        out_channels=5,
        num_attention_heads=3,
        attention_head_dim=10,
        num_layers=2,
        num_single_layers=3,
        num_refiner_layers=1,
        text_embed_dim=16,
        pooled_projection_dim=14,
        rope_axes_dim=(2, 4, 4),
    )
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=5,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(4, 6, 10, 12),
        layers_per_block=1,
        norm_num_groups=2,
    )
    return HunyuanVideoPipeline(
        text_encoder=tiny_llama(tokenizer, 16).model,
        tokenizer=tokenizer,
        transformer=sharpened(transformer),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=CLIPTextModel(tiny_text_encoder(tokenizer_2, width=14, projection=14).config).eval(),
        tokenizer_2=tokenizer_2,
    )


VIDEO_BUILDERS: dict[str, Callable[[], DiffusionPipeline]] = {
    "cogvideox": tiny_cogvideox,
    "cogvideox-5b": lambda: tiny_cogvideox(rotary=True),
    "hunyuan-video": tiny_hunyuan_video,
}
"""Models of videos."""
BUILDERS: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd3": tiny_pipeline,
    "sd3-t5": tiny_sd3_with_t5,
    "sd3.5": lambda: tiny_pipeline(dual_attention_layers=(0, 1), qk_norm="rms_norm"),
    "flux-dev": tiny_flux,
    "flux-schnell": lambda: tiny_flux(guidance=False),
    "flux-kontext": lambda: tiny_flux(FluxKontextPipeline),
    "flux2-dev": lambda: tiny_flux2(dev=True),
    "flux2-klein": lambda: tiny_flux2(dev=False),
    "chroma": tiny_chroma,
    "auraflow": tiny_auraflow,
    "qwen-image": tiny_qwen_image,
    "z-image": tiny_z_image,
    "hunyuan-image": tiny_hunyuan_image,
    "ovis-image": tiny_ovis_image,
    "krea2": tiny_krea2,
    "ernie-image": tiny_ernie_image,
    "cogview4": tiny_cogview4,
    "longcat-image": tiny_longcat_image,
    "lumina2": tiny_lumina2,
    "bria": tiny_bria,
    "hidream": tiny_hidream,
}


SINCE = dict.fromkeys(("longcat-image", "flux2-dev", "flux2-klein"), "0.37.0") | {"ernie-image": "0.38.0"}
SINCE["krea2"] = "0.42.0"
"""A version of diffusers that has a family, where the oldest that is supported lacks it; its builder imports it."""


def wrapped(name: str) -> Backbone:
    """A tiny pipeline as a backbone; HunyuanVideo's is given a small size, which its pipeline has in its signature."""
    backbone = wrap_pipeline(build(name), name)
    if name != "hunyuan-video":
        return backbone
    return replace(backbone, family=replace(backbone.family, default_size=lambda pipe: (9, 80, 112)))


def build(name: str) -> DiffusionPipeline:
    """A tiny pipeline, the same at every call.

    Args:
        name: of BUILDERS or VIDEO_BUILDERS.
    """
    if Version(diffusers.__version__) < Version(SINCE.get(name, "0")):
        pytest.skip(f"{name} needs diffusers {SINCE[name]}, and this is {diffusers.__version__}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = (BUILDERS | VIDEO_BUILDERS)[name]()
    pipe.set_progress_bar_config(disable=True)
    # the classes' own default is a megapixel
    if name in VIDEO_BUILDERS:
        return pipe
    pipe.default_sample_size = 10 if name == "lumina2" else SIDE // pipe.vae_scale_factor
    return pipe
