"""What users bring: guidance, batches, other sizes, other pipelines, offloaded, quantized or compiled models, other
kernels."""

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, attach_align_device_hook
from diffusers import (
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
)
from diffusers.models.attention_dispatch import _AttentionBackendRegistry, attention_backend
from test_architectures import Eyewitness, softmax
from test_perturb import EDITS, materialized
from tiny_models import build

from seg4diff_tools.attention.edits import apply_edit, blur, drop, edited_output, perturbed_guidance
from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.recorder import AttentionRecorder
from seg4diff_tools.backbones.loading import wrap_pipeline
from seg4diff_tools.families import family_of
from seg4diff_tools.segmentation.options import OpenVocabulary
from seg4diff_tools.segmentation.segment import segment

SIZE = (40, 56)  # 5 x 7 image tokens
IMAGE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8))
MASK = PIL.Image.fromarray(np.repeat([[0], [255]], SIZE[0] // 2, axis=0).repeat(SIZE[1], axis=1).astype(np.uint8))
GUIDANCE = {
    "sd3": {"guidance_scale": 4.0},
    "sd3.5": {"guidance_scale": 4.0},
    "flux-dev": {"true_cfg_scale": 4.0},
    "flux-schnell": {"true_cfg_scale": 4.0},
}
"""Arguments of a call of the pipeline that turn classifier-free guidance of weight 4 on."""
ONE_OF_EACH = pytest.mark.parametrize("name", ["sd3", "flux-dev"])


def generated(pipe, steps: int = 2, **arguments) -> torch.Tensor:
    """Latents of a short generation."""
    asked = {"prompt": "a cat near a tree", "height": SIZE[0], "width": SIZE[1], "output_type": "latent"} | arguments
    return pipe(num_inference_steps=steps, generator=torch.Generator().manual_seed(0), **asked).images


class TestGuidance:
    prompts, negative, seeds = ["a cat and a dog", "a red car"], "snow", [1, 2]

    def start(self, backbone):
        noise = [
            torch.randn(backbone.latent_shape[0], 10, 14, generator=torch.Generator().manual_seed(s)) for s in (1, 2)
        ]
        return torch.stack(noise)

    @pytest.mark.parametrize("name", GUIDANCE)
    def test_branches_of_both_prompts_are_named_rightly(self, name):
        backbone = wrap_pipeline(build(name))

        def run():
            asked = {"steps": 2, "seed": self.seeds, "size": SIZE, "negative_prompt": self.negative, "progress": False}
            return backbone.generate(self.prompts, **asked, **GUIDANCE[name])

        plain = run()
        with AttentionRecorder(backbone, heads="all") as recorder:
            watched = run()
        for x, y in zip(plain, watched, strict=True):
            np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
        assert sorted(recorder.maps.branch.values) == ["cond", "uncond"]
        assert recorder.maps.sizes["step"] == 2
        found = {}
        for branch, texts in {"cond": self.prompts, "uncond": [self.negative] * 2}.items():
            with AttentionRecorder(backbone, heads="all") as one:
                backbone.predict_velocity(self.start(backbone), backbone.schedule(2, SIZE)[0][0], texts)
            found[branch] = one.maps.sel(branch="cond", step=0)
            np.testing.assert_allclose(recorder.maps.sel(branch=branch, step=0), found[branch], rtol=1e-3, atol=1e-6)
        assert not np.allclose(found["cond"], found["uncond"], rtol=1e-2)

    @pytest.mark.parametrize("name", GUIDANCE)
    def test_perturbed_guidance_adds_to_it_exactly(self, name):
        backbone, seen = wrap_pipeline(build(name)), []
        with perturbed_guidance(backbone, blur(), 1, scale=1.5), AttentionRecorder(backbone, layers=1) as recorder:
            backbone.generate(
                self.prompts,
                steps=1,
                seed=self.seeds,
                size=SIZE,
                negative_prompt=self.negative,
                progress=False,
                callback=lambda *step: seen.append(step[-1].clone()),
                **GUIDANCE[name],
            )
        start, timestep = self.start(backbone), backbone.schedule(1, SIZE)[0][0]
        good = backbone.predict_velocity(start, timestep, self.prompts)
        none = backbone.predict_velocity(start, timestep, self.negative)
        with apply_edit(backbone, blur(), 1):
            worse = backbone.predict_velocity(start, timestep, self.prompts)
        wanted = backbone.family.pack(start - (none + 4 * (good - none) + 1.5 * (good - worse)))
        assert (good - worse).abs().max() > 1e-4
        torch.testing.assert_close(seen[0], wanted, rtol=1e-4, atol=1e-4)
        assert (recorder.maps.sizes["step"], recorder.maps.sizes["branch"]) == (1, 2)


def fill_pipeline() -> FluxFillPipeline:
    """FLUX.1 Fill: its transformer reads the masked image and the mask beside the latents."""
    pipe = build("flux-dev")
    pipe.transformer.x_embedder = torch.nn.Linear(20 + 20 + 64, 30)
    pipe.transformer.register_to_config(in_channels=104)
    return FluxFillPipeline(
        **{name: part for name, part in pipe.components.items() if "image" not in name and "feature" not in name}
    )


def turned(kind: type, name: str):
    return lambda: kind(**build(name).components)


PIPELINES = {
    "sd3 image to image": (turned(StableDiffusion3Img2ImgPipeline, "sd3"), {"image": IMAGE, "strength": 0.5}),
    "sd3 inpainting": (
        turned(StableDiffusion3InpaintPipeline, "sd3"),
        {"image": IMAGE, "mask_image": MASK, "strength": 0.5},
    ),
    "flux image to image": (turned(FluxImg2ImgPipeline, "flux-dev"), {"image": IMAGE, "strength": 0.5}),
    "flux inpainting": (
        turned(FluxInpaintPipeline, "flux-dev"),
        {"image": IMAGE, "mask_image": MASK, "strength": 0.5, "true_cfg_scale": 3.0, "negative_prompt": "snow"},
    ),
    "flux fill": (fill_pipeline, {"image": IMAGE, "mask_image": MASK}),
    "kontext without a reference": (lambda: build("flux-kontext"), {"max_area": SIZE[0] * SIZE[1]}),
    "kontext": (
        lambda: build("flux-kontext"),
        {"image": IMAGE, "_auto_resize": False, "max_area": SIZE[0] * SIZE[1], "true_cfg_scale": 3.0}
        | {"negative_prompt": "snow"},
    ),
}


@pytest.mark.parametrize(("make", "arguments"), PIPELINES.values(), ids=PIPELINES)
def test_pipelines_with_images(make, arguments):
    pipe = make()
    pipe.set_progress_bar_config(disable=True)
    family, layers = family_of(pipe.transformer), family_of(pipe.transformer).layers(pipe.transformer)
    with Eyewitness() as witness:
        plain = generated(pipe, 2, **arguments)
    with AttentionRecorder(pipe, heads="all", direction=("i2t", "masses")) as recorder:
        assert torch.equal(generated(pipe, 2, **arguments), plain)
    maps, masses = recorder.recording["i2t"], recorder.masses
    guided = family.name == "sd3" or "true_cfg_scale" in arguments
    assert list(maps.branch.values) == (list(family.branches) if guided else ["cond"])
    assert (maps.sizes["y"], maps.sizes["x"]) == (5, 7)
    assert maps.sizes["step"] == (1 if "strength" in arguments else 2)

    text, tokens = maps.sizes["token"], maps.sizes["token"] + 35 * (2 if "_auto_resize" in arguments else 1)
    image, words = (slice(0, 35), slice(35, None)) if family.name == "sd3" else (slice(text, text + 35), slice(0, text))
    joint = [softmax(**one) for one in witness.seen if one["query"].shape[1:3] == (3, tokens)]
    joint = torch.stack(joint).unflatten(0, (maps.sizes["step"], -1, layers))  # step forward layer batch head ...
    joint = joint.transpose(1, 2).flatten(2, 3).numpy()  # step layer branch head query key
    steps_first = maps.sel(image=0).transpose("step", "layer", "branch", "head", "y", "x", "token")
    np.testing.assert_allclose(
        steps_first.values.reshape(joint[..., image, words].shape), joint[..., image, words], atol=1e-5
    )
    sums = np.stack([joint[..., a, b].sum(-1).mean(-1) for a in (image, words) for b in (image, words)], axis=-1)
    steps_first = masses.sel(image=0).transpose("step", "layer", "branch", "head", "direction")
    np.testing.assert_allclose(steps_first, sums, atol=1e-5)

    with apply_edit(pipe, blur(), 1):
        assert not torch.equal(generated(pipe, 2, **arguments), plain)
    with perturbed_guidance(pipe, blur(), 1, 2.0):
        assert not torch.equal(generated(pipe, 2, **arguments), plain)
    assert torch.equal(generated(pipe, 2, **arguments), plain)


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_edits_leave_a_reference_image_its_share(edit):
    make, arguments = PIPELINES["kontext"]
    pipe, seen = make(), []
    with intercept(pipe.transformer, lambda call: seen.append((edited_output(call, edit), materialized(call, edit)))):
        generated(pipe, 1, **arguments)
    assert len(seen) == 10
    # as in test_perturb; sharper attention leaves less to others
    tolerance = 1e-3 if edit.keep == "joint" else 1e-5
    for found, wanted in seen:
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=tolerance)


def offload_models(pipe) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def offload_layers(pipe) -> None:
    # what enable_sequential_cpu_offload does, which itself takes no CPU for the accelerator
    for part in (pipe.transformer, pipe.text_encoder, pipe.text_encoder_2, pipe.vae):
        add_hook_to_module(part, AlignDevicesHook(io_same_device=True))
        weights = {name: value.clone() for name, value in part.state_dict().items()}
        attach_align_device_hook(part, execution_device=torch.device("cpu"), offload=True, weights_map=weights)
    assert {value.device.type for value in pipe.transformer.parameters()} == {"meta"}


def offload_groups(pipe) -> None:
    cpu = torch.device("cpu")
    pipe.transformer.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


@ONE_OF_EACH
@pytest.mark.parametrize("offload", [offload_models, offload_layers, offload_groups])
def test_offloaded_models_are_seen_and_edited_alike(name, offload):
    def results(pipe) -> list:
        def run():
            return generated(pipe, **GUIDANCE[name], negative_prompt="snow")

        found = [run()]
        with AttentionRecorder(pipe, direction=("i2t", "masses")) as recorder:
            found.append(run())
        with apply_edit(pipe, drop(), 1):
            found.append(run())
        with perturbed_guidance(pipe, drop(), 1, 2.0):
            found.append(run())
        maps = segment(wrap_pipeline(pipe), IMAGE, ["cat", "tree"], OpenVocabulary(layers=1)).class_maps
        return [*map(torch.Tensor.numpy, found), recorder.recording["i2t"], recorder.masses, np.asarray(maps)]

    pipe = build(name)
    plain = results(pipe)
    assert (plain[0] == plain[1]).all()
    assert (plain[0] != plain[2]).any()
    assert (plain[0] != plain[3]).any()
    offload(pipe)
    for x, y in zip(plain, results(pipe), strict=True):
        np.testing.assert_array_equal(x, y)


def quantize_with_torchao(transformer) -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed: pip install torchao")
    quantization.quantize_(transformer, quantization.Int8WeightOnlyConfig())


def quantize_with_bitsandbytes(module) -> None:
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install bitsandbytes")
    for name, child in list(module.named_children()):
        if type(child) is torch.nn.Linear:
            sizes = child.in_features, child.out_features, child.bias is not None
            small = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False)
            small.load_state_dict(child.state_dict())
            setattr(module, name, small.to("cpu"))
        else:
            quantize_with_bitsandbytes(child)


@ONE_OF_EACH
# of the libraries themselves
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("quantize", [quantize_with_torchao, quantize_with_bitsandbytes])
def test_quantized_weights(name, quantize):
    pipe = build(name)
    full = generated(pipe)
    quantize(pipe.transformer)
    small = generated(pipe)
    assert 0 < (small - full).abs().max() < 0.3
    with Eyewitness() as witness, AttentionRecorder(pipe, heads="all") as recorder:
        assert torch.equal(generated(pipe), small)
    assert (recorder.maps > 0).all()
    assert recorder.maps.sizes["layer"] == 5
    assert witness.seen
    with apply_edit(pipe, drop(), 1):
        assert not torch.equal(generated(pipe), small)
    assert torch.equal(generated(pipe), small)


def compile_blocks(pipe, backend) -> None:
    for direction in (*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks):
        direction.compile(backend=backend)


def compile_in_place(pipe, backend) -> None:
    pipe.transformer.compile(backend=backend)


def compile_around(pipe, backend) -> None:
    pipe.transformer = torch.compile(pipe.transformer, backend=backend)


@pytest.mark.parametrize("compiled", [compile_blocks, compile_in_place, compile_around])
def test_a_compiled_transformer_runs_as_written_while_it_is_watched(compiled):
    pipe, runs = build("flux-dev"), []
    for stack in ("transformer_blocks", "single_transformer_blocks"):
        setattr(pipe.transformer, stack, getattr(pipe.transformer, stack)[:1])
    written = pipe.transformer

    def backend(graph, inputs):
        return lambda *args: runs.append(graph) or graph.forward(*args)

    def results() -> list[torch.Tensor]:
        found = []
        for condition in (apply_edit(pipe, drop(), 1), perturbed_guidance(pipe, drop(), 1, 2.0)):
            with condition:
                found.append(generated(pipe, 1))
        return found

    plain, edited = generated(pipe, 1), results()
    compiled(pipe, backend)
    torch.testing.assert_close(generated(pipe, 1), plain)
    once = len(runs)
    assert once > 0
    with AttentionRecorder(pipe) as recorder:
        assert torch.equal(generated(pipe, 1), plain)
    assert recorder.maps.sizes["layer"] == 2
    for x, y in zip(edited, results(), strict=True):
        assert torch.equal(x, y)
    backbone = wrap_pipeline(pipe)
    assert backbone.transformer is written
    assert len(segment(backbone, IMAGE, ["cat", "tree"], OpenVocabulary(layers=1)).class_maps) == 2
    assert len(runs) == once
    generated(pipe, 1)
    assert len(runs) == 2 * once


@ONE_OF_EACH
def test_gradient_checkpointing(name):
    backbone = wrap_pipeline(build(name))
    latents = torch.randn(1, backbone.latent_shape[0], 10, 14, generator=torch.Generator().manual_seed(0))
    inputs = backbone.inputs(latents, 500.0, "a cat")

    def gradients() -> list[torch.Tensor]:
        backbone.transformer.zero_grad()
        backbone.transformer(**inputs)[0].square().mean().backward()
        return [value.grad.clone() for value in backbone.transformer.parameters() if value.grad is not None]

    backbone.transformer.requires_grad_(True).train()
    with AttentionRecorder(backbone, heads="all") as before:
        plain = gradients()
    backbone.transformer.enable_gradient_checkpointing()
    with AttentionRecorder(backbone, heads="all") as recorder:
        found = gradients()
    np.testing.assert_array_equal(recorder.maps, before.maps)
    for x, y in zip(plain, found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shared", [False, True])
def test_other_attention_backends_give_way_and_come_back(shared, monkeypatch):
    pipe = build("flux-dev")
    if shared:
        pipe.transformer.set_attn_processor(next(iter(pipe.transformer.attn_processors.values())))
    plain = generated(pipe)

    def backends() -> list:
        own = [processor._attention_backend for processor in pipe.transformer.attn_processors.values()]
        return [*own, _AttentionBackendRegistry._active_backend]

    # diffusers also sets it for all models, which has to end with this test
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", _AttentionBackendRegistry._active_backend)
    pipe.transformer.set_attention_backend("flex")
    before = backends()
    assert before[0] == "flex"
    with AttentionRecorder(pipe) as recorder:
        assert torch.equal(generated(pipe), plain)
    assert recorder.maps.sizes["layer"] == 5
    assert backends() == before
    with pytest.raises(ZeroDivisionError), intercept(pipe.transformer, lambda call: 1 / 0):
        generated(pipe)
    assert backends() == before


def test_an_attention_backend_of_a_with_gives_way_and_comes_back():
    pipe = build("flux-dev")
    plain = generated(pipe)
    with attention_backend("flex"):
        with AttentionRecorder(pipe):
            assert torch.equal(generated(pipe), plain)
        with pytest.raises(ZeroDivisionError), intercept(pipe.transformer, lambda call: 1 / 0):
            generated(pipe)
        assert _AttentionBackendRegistry._active_backend == "flex"


# of SD3.5, diffusers' own fused processor fails in the second, image-only attention
@ONE_OF_EACH
def test_fused_projections(name):
    pipe = build(name)
    with AttentionRecorder(pipe, heads="all") as apart:
        plain = generated(pipe)
    pipe.transformer.fuse_qkv_projections()
    fused = generated(pipe)
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)
    with AttentionRecorder(pipe, heads="all") as recorder:
        assert torch.equal(generated(pipe), fused)
    np.testing.assert_allclose(recorder.maps, apart.maps, rtol=1e-3, atol=1e-6)
