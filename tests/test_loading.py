"""Folders that are whole, damaged or of something else, and pipelines in memory."""

import json
import platform
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_pipeline
from diffusers import DDPMPipeline, DDPMScheduler, StableDiffusion3Pipeline, UNet2DModel
from safetensors.torch import load_file, save_file
from tiny_models import build
from transformers import T5EncoderModel

from seg4diff_tools import families
from seg4diff_tools._runs import as_path
from seg4diff_tools.backbones import loading
from seg4diff_tools.backbones.checkpoints import cpu_has_bf16, load_pipeline
from seg4diff_tools.backbones.loading import as_backbone, load_backbone, wrap_pipeline
from seg4diff_tools.errors import CheckpointError, InputError, UnknownArchitectureError
from seg4diff_tools.families.flux import FLUX
from seg4diff_tools.families.sd3 import SD3
from seg4diff_tools.paper import EXPERT_LAYERS


@pytest.fixture
def copied(tiny_folder, tmp_path):
    """A copy of the checkpoint that a test may damage."""
    return shutil.copytree(tiny_folder, tmp_path / "copy")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_parts_have_one_dtype_whatever_the_file_holds(tmp_path, dtype):
    tiny_pipeline().to(torch.bfloat16).save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path, dtype=dtype)
    parts = (backbone.transformer, backbone.pipe.vae, backbone.pipe.text_encoder, backbone.pipe.text_encoder_2)
    assert {part.dtype for part in parts} == {dtype}
    assert backbone.generate("a cat", steps=1, progress=False)[0].size == (56, 56)


@pytest.mark.parametrize("name", [torch.float16, "fp16", "half"])
def test_float16_on_a_cpu_is_warned_of(tiny_folder, name):
    with pytest.warns(UserWarning, match="float16 is about ten times slower .*: pass dtype='fp32'"):
        assert load_backbone(tiny_folder, "cpu", name).dtype == torch.float16


@pytest.mark.parametrize("has", [(), ("avx512_vnni",), ("avx512_bf16",), ("amx_bf16",), ("bf16",)])
def test_bfloat16_on_a_cpu_is_warned_of_where_it_is_emulated(tiny_folder, monkeypatch, has):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(has, True) | {"avx512_f": True})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        load_backbone(tiny_folder, "cpu", "bf16")
        load_backbone(tiny_folder, "cpu", "fp32")
        load_backbone(tiny_folder, "cpu")
    slow = [str(warning.message) for warning in told if "bfloat16 saves memory but is" in str(warning.message)]
    assert len(slow) == (not has or has == ("avx512_vnni",))
    assert cpu_has_bf16() == (not slow)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="flags of x86 processors")
def test_the_cpus_flags_say_whether_it_has_bfloat16_products():
    found = torch.cpu.get_capabilities()
    assert cpu_has_bf16() == (found["avx512_bf16"] or found["amx_bf16"])
    # each is an extension of what the processor has to have as well
    assert not cpu_has_bf16() or found["avx512_f"]
    if (flags := Path("/proc/cpuinfo")).is_file():
        assert cpu_has_bf16() == bool({"avx512_bf16", "amx_bf16"} & set(flags.read_text(encoding="utf-8").split()))


def test_plain_diffusers_loads_and_runs_the_same_folder(tiny_folder):
    pipe = StableDiffusion3Pipeline.from_pretrained(tiny_folder, text_encoder_3=None, tokenizer_3=None)
    assert {pipe.transformer.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float32}
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a cat", num_inference_steps=1).images[0].size == (56, 56)


def test_model_card(copied):
    (copied / "model_card.json").write_text(json.dumps({"expert_layer": 3, "guidance_scale": 4}))
    backbone = load_backbone(copied)
    assert (backbone.expert_layer, backbone.guidance_scale) == (3, 4.0)


def test_published_expert_layer_goes_by_depth(build_backbone):
    assert build_backbone(num_layers=24, num_attention_heads=1).expert_layer == 9
    # the record has the layers of the paper's table, the first of which is the expert
    assert FLUX.expert_layers == {57: EXPERT_LAYERS["FLUX.1-dev"]}
    assert SD3.expert_layers == {24: EXPERT_LAYERS["SD3"]}


@pytest.mark.parametrize("name", ["/no/such/folder", "nofolder", "./no/folder", "a/b/c"])
def test_missing_folder(name):
    with pytest.raises(CheckpointError, match="no model folder"):
        load_backbone(name)


@pytest.mark.filterwarnings("ignore::UserWarning:huggingface_hub")
def test_hub_name_that_cannot_be_had():
    with pytest.raises(CheckpointError, match="'seg4diff/none' is not a folder here, and the hub"):
        load_backbone("seg4diff/none")


def test_folder_of_something_else(tmp_path):
    with pytest.raises(CheckpointError, match=r"no model_index\.json"):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder_2/config.json",
        "tokenizer/tokenizer.json",
        "scheduler/scheduler_config.json",
    ],
)
@pytest.mark.parametrize("half", [True, False])
def test_half_written_checkpoint(copied, file, half):
    path = copied / file
    content = path.read_bytes()
    path.unlink()
    if half:
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError) as caught:
        load_backbone(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["text_encoder/model", "transformer/diffusion_pytorch_model"])
def test_a_missing_weight_is_not_drawn_at_random(copied, file):
    path = copied / f"{file}.safetensors"
    weights = load_file(path)
    name = sorted(weights)[2]
    del weights[name]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks 1 weight"):
        load_backbone(copied)


def test_other_pipelines_are_refused_by_name(copied):
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps(index | {"_class_name": "WanPipeline"}))
    with pytest.raises(UnknownArchitectureError, match=r"WanPipeline.*supported: .*StableDiffusion3Pipeline"):
        load_backbone(copied)


def test_a_pipeline_with_cross_attention_is_refused_with_the_reason(copied):
    index = json.loads((copied / "model_index.json").read_text())
    index |= {"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (copied / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(
        UnknownArchitectureError, match=r"XLPipeline; the U-Net of .* reads the text in cross-attention"
    ):
        load_backbone(copied)


def test_a_pipeline_that_came_after_the_installed_diffusers_is_named(copied):
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps(index | {"_class_name": "FuturePipeline"}))
    with pytest.raises(CheckpointError, match=r"needs FuturePipeline, which diffusers .* pip install -U diffusers"):
        load_pipeline(copied, {"FuturePipeline": ()})


def test_t5_is_left_out_unless_asked_for(tmp_path):
    build("sd3-t5").save_pretrained(tmp_path)
    alone, whole = load_backbone(tmp_path), load_backbone(tmp_path, t5=True)
    assert (alone.pipe.text_encoder_3, alone.pipe.tokenizer_3) == (None, None)
    assert isinstance(whole.pipe.text_encoder_3, T5EncoderModel)
    assert [len(one.encode_prompt("a cat").tokens) for one in (alone, whole)] == [77 + 77, 77 + 256]


def test_a_registered_family_says_what_is_loaded(tiny_folder, monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", families.FAMILIES[:])
    monkeypatch.setattr(loading, "FAMILIES", families.FAMILIES)
    families.register(replace(SD3, name="mine", omitted_parts=("text_encoder_2", "tokenizer_2")))
    backbone = load_backbone(tiny_folder)
    assert (backbone.family.name, backbone.pipe.text_encoder_2) == ("mine", None)


def test_t5_that_cannot_be_had(tiny_folder):
    with pytest.raises(CheckpointError, match=r"has no text_encoder_3 \(T5\): load it with t5=False"):
        load_backbone(tiny_folder, t5=True)
    pipe = build("sd3-t5")
    pipe.tokenizer_3 = None
    with pytest.raises(InputError, match="both of text_encoder_3 and tokenizer_3, got the first alone"):
        wrap_pipeline(pipe)


class TestAsBackbone:
    def test_whatever_holds_a_model(self, tiny_backbone, tiny_folder):
        assert as_backbone(tiny_backbone) is tiny_backbone
        wrapped = as_backbone(tiny_backbone.pipe)
        assert (wrapped.pipe, wrapped.name) == (tiny_backbone.pipe, "pipeline")
        assert as_backbone(str(tiny_folder)).name == as_backbone(tiny_folder).name == str(tiny_folder)

    def test_pipeline_without_transformer(self):
        pipe = DDPMPipeline(
            unet=UNet2DModel(
                block_out_channels=(32, 32), down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2
            ),
            scheduler=DDPMScheduler(),
        )
        with pytest.raises(
            UnknownArchitectureError, match=r"a transformer, got DDPMPipeline: pass one of .*StableDiff"
        ):
            as_backbone(pipe)


def test_paths_are_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path("~/run") == as_path(Path("~/run")) == tmp_path / "run"
    assert as_path("run") == Path("run")


@pytest.mark.parametrize(
    ("part", "device_map", "named"),
    [
        ("transformer", {"pos_embed": 0, "transformer_blocks.0": 1}, "transformer on one device.*cuda:0, cuda:1"),
        ("pipeline", {"transformer": 0, "vae": "cuda:1"}, "pipeline on one device"),
    ],
)
def test_a_model_split_over_accelerators_is_refused(part, device_map, named):
    pipe = tiny_pipeline()
    split = pipe if part == "pipeline" else pipe.transformer
    split.hf_device_map = device_map  # as from_pretrained(device_map=...) leaves it
    with pytest.raises(InputError, match=named):
        wrap_pipeline(pipe)
    split.hf_device_map = {"": 0, "vae": "cpu"}  # one accelerator, the rest offloaded
    wrap_pipeline(pipe)
