"""Families: what is known about an architecture, and the refusal of what is not."""

import diffusers
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    MochiTransformer3DModel,
    PixArtTransformer2DModel,
    PRXTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    WanTransformer3DModel,
)
from packaging.version import Version

from seg4diff_tools.attention.recorder import AttentionRecorder
from seg4diff_tools.backbones.loading import wrap_pipeline
from seg4diff_tools.errors import UnknownArchitectureError
from seg4diff_tools.families import FAMILIES, Layout, family_of
from seg4diff_tools.families.refused import _MODELS, _UNRECORDED


@pytest.fixture(scope="module")
def transformer():
    return SD3Transformer2DModel(
        sample_size=14,
        num_layers=5,
        attention_head_dim=4,
        num_attention_heads=3,
        joint_attention_dim=13,
        caption_projection_dim=12,
        pooled_projection_dim=17,
        pos_embed_max_size=11,
        dual_attention_layers=(0, 1),
    )


def test_sd3_is_found_and_only_its_joint_attention_is_listed(transformer):
    family = family_of(transformer)
    assert family.name == "sd3"
    assert (family.layers(transformer), family.heads(transformer)) == (5, 3)
    joint = family.joint_attention(transformer)
    assert [layer for layer, _ in joint] == list(range(5))
    assert [module for _, module in joint] == [block.attn for block in transformer.transformer_blocks]


def test_a_subclass_is_of_the_same_family(transformer):
    class Fork(SD3Transformer2DModel):
        pass

    assert (
        family_of(Fork(**{key: transformer.config[key] for key in ("num_layers",)}, attention_head_dim=4))
        is FAMILIES[0]
    )


def test_inputs_are_found_by_name_or_position(transformer):
    family = family_of(transformer)
    assert family.forward_inputs(transformer, (1, 2), {"timestep": 3}) == {
        "hidden_states": 1,
        "encoder_hidden_states": 2,
        "timestep": 3,
    }


def test_layout_counts_patches_and_keeps_rows_and_columns_apart(transformer):
    inputs = {"hidden_states": torch.zeros(2, 16, 10, 14), "encoder_hidden_states": torch.zeros(2, 11, 13)}
    expected = Layout(grid=(5, 7), image=slice(0, 35), text=slice(35, 46), tokens=46)
    assert family_of(transformer).layout(transformer, inputs) == expected


# the smallest of each: a class of what diffusers calls cross-attention, and one whose text has no queries
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            lambda: SanaTransformer2DModel(num_layers=1, num_attention_heads=1, num_cross_attention_heads=1),
            r"got SanaTransformer2DModel; Sana reads the text in cross-attention, whose softmax has no image keys, so",
        ),
        (
            lambda: WanTransformer3DModel(num_layers=1, num_attention_heads=1, ffn_dim=8, text_dim=8),
            r"got WanTransformer3DModel; Wan reads the text in cross-attention",
        ),
        (
            lambda: PixArtTransformer2DModel(
                num_layers=1, num_attention_heads=1, attention_head_dim=1152, sample_size=8
            ),
            r"got PixArtTransformer2DModel; PixArt reads the text in cross-attention",
        ),
        (
            lambda: PRXTransformer2DModel(
                hidden_size=24, num_heads=3, depth=1, context_in_dim=8, axes_dim=[4, 4], patch_size=2
            ),
            r"got PRXTransformer2DModel; PRX lets image tokens attend to text, but text tokens have no queries",
        ),
    ],
)
def test_what_has_no_joint_attention_is_refused_with_the_reason(model, reason):
    with pytest.raises(UnknownArchitectureError, match=reason) as caught:
        family_of(model())
    assert "register" not in str(caught.value)


def test_a_model_of_videos_without_a_record_is_refused_and_can_be_added():
    model = MochiTransformer3DModel(
        num_layers=1, num_attention_heads=1, attention_head_dim=8, pooled_projection_dim=8, text_embed_dim=8
    )
    said = "got MochiTransformer3DModel; Mochi 1 has joint attention over text and video, but no record .*register"
    with pytest.raises(UnknownArchitectureError, match=said):
        family_of(model)


@pytest.mark.usefixtures("unchecked")
def test_a_pipeline_of_a_unet_is_refused_with_the_reason():
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    unet = UNet2DConditionModel(block_out_channels=(32,) * 4, layers_per_block=1, cross_attention_dim=8)
    pipe = StableDiffusionPipeline(
        unet=unet, scheduler=FlowMatchEulerDiscreteScheduler(), requires_safety_checker=False, **parts
    )
    for refuse in (wrap_pipeline, AttentionRecorder):
        with pytest.raises(
            UnknownArchitectureError, match=r"got StableDiffusionPipeline; the U-Net of .* reads the text"
        ):
            refuse(pipe)


@pytest.mark.skipif(Version(diffusers.__version__) < Version("0.42"), reason="some of them came later")
def test_every_refused_class_is_one_of_diffusers():
    for classes in (*_MODELS.values(), _UNRECORDED):
        for name in classes:
            assert hasattr(diffusers, name) or hasattr(diffusers.models, name), name


def test_an_unknown_architecture_is_refused_with_what_is_supported():
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
    with pytest.raises(UnknownArchitectureError, match="AutoencoderKL.*supported: SD3Transformer2DModel"):
        family_of(vae)
