"""Recorded words: the prompt that labels maps is the one that runs, for one image and for many; the need is known at
once."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, StableDiffusion3Img2ImgPipeline
from tiny_models import build

from seg4diff_tools.attention.edits import apply_edit, drop
from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.recorder import AttentionRecorder
from seg4diff_tools.attention.recording import open_recording
from seg4diff_tools.backbones.loading import wrap_pipeline
from seg4diff_tools.errors import InputError, PromptError, RecordingError
from seg4diff_tools.prompts import Prompt, Token

TEXT = "a red car and a cat"


def latents(images=1, seed=0):
    return torch.randn(images, 16, 10, 14, generator=torch.Generator().manual_seed(seed))


def maps_of(backbone, prompt, run, **options):
    with AttentionRecorder(backbone, prompt=prompt, **options) as recorder:
        backbone.predict_velocity(latents(2), 601.0, run)
    return recorder


def test_words_of_a_prompt_are_recorded_by_default(tiny_backbone):
    everything = maps_of(tiny_backbone, TEXT, TEXT, tokens="all").maps
    words = maps_of(tiny_backbone, TEXT, TEXT).maps
    assert list(words.token.values) == ["a", "red", "car", "and", "a#2", "cat"]
    assert list(words.token_index) == [1, 2, 3, 4, 5, 6]
    assert list(everything.token.values[:8]) == ["<start>", "a", "red", "car", "and", "a#2", "cat", "<end>"]
    assert everything.sizes["token"] == 154
    np.testing.assert_allclose(words, everything.isel(token=slice(1, 7)), atol=1e-7)
    assert list(words.prompt.values) == [TEXT, TEXT]
    assert AttentionRecorder(tiny_backbone, prompt=TEXT).__repr__() == (
        "AttentionRecorder(sd3: i2t, 5 layers, the mean of heads, 0 steps so far)"
    )


def test_phrases_are_means_over_their_tokens(tiny_backbone, tmp_path):
    words = maps_of(tiny_backbone, TEXT, TEXT, heads="all")
    phrases = maps_of(tiny_backbone, TEXT, TEXT, heads="all", tokens=["cat", "red car"]).maps
    assert list(phrases.token.values) == ["cat", "red car"]
    expected = words.maps.sel(token=["red", "car"]).mean("token")
    np.testing.assert_allclose(phrases.sel(token="red car"), expected, atol=1e-7)
    np.testing.assert_allclose(words.recording.phrase("Red  car"), expected, atol=1e-7)
    assert words.recording.phrase("a").dims == expected.dims
    np.testing.assert_allclose(words.recording.phrase("a"), words.maps.sel(token=["a", "a#2"]).mean("token"), atol=1e-7)
    named = maps_of(tiny_backbone, TEXT, TEXT, heads="all", tokens={"it": "red car"})
    np.testing.assert_array_equal(named.maps.sel(token="it"), phrases.sel(token="red car"))
    np.testing.assert_array_equal(named.recording.phrase("it"), phrases.sel(token="red car"))
    opened = open_recording(words.save(tmp_path / "maps.nc"))
    assert opened == words.recording == pickle.loads(pickle.dumps(words.recording))
    assert opened != named.recording
    np.testing.assert_array_equal(opened.phrase("red car"), words.recording.phrase("red car"))
    with pytest.raises(PromptError, match="'dog' is not in the prompt"):
        opened.phrase("dog")
    with pytest.raises(RecordingError, match="all tokens of 'red car' in the recording, got 'car'"):
        maps_of(tiny_backbone, TEXT, TEXT, tokens=[3, 6]).recording.phrase("red car")


def test_each_image_has_the_words_of_its_prompt(tiny_backbone, tmp_path):
    texts = ["a red car", "a cat near a tree"]
    both = maps_of(tiny_backbone, texts, texts)
    assert list(both.maps.token.values) == ["a", "red", "car", "cat", "near", "a#2", "tree"]
    for image, text in enumerate(texts):
        alone = maps_of(tiny_backbone, text, text).maps.isel(image=image)
        for word in alone.token.values:
            np.testing.assert_allclose(both.maps.isel(image=image).sel(token=word), alone.sel(token=word), atol=1e-6)
    assert np.isnan(both.maps.isel(image=0).sel(token="cat")).all()
    assert list(both.maps.token_index.sel(token="cat")) == [-1, 2]
    phrase = both.recording.phrase("red car")
    np.testing.assert_allclose(phrase[0], both.maps[0].sel(token=["red", "car"]).mean("token"), atol=1e-7)
    assert np.isnan(phrase[1]).all()
    spans = maps_of(tiny_backbone, texts, texts, tokens=["red car", "tree"]).maps
    np.testing.assert_allclose(spans.sel(token="red car")[0], phrase[0], atol=1e-6)
    assert np.isnan(spans.sel(token="tree")[0]).all()
    np.testing.assert_allclose(spans.sel(token="tree")[1], both.maps.sel(token="tree")[1], atol=1e-7)
    assert open_recording(both.save(tmp_path / "maps.nc")) == both.recording
    # steps of an image follow one another, as in predict_velocity
    with AttentionRecorder(tiny_backbone, prompt=texts) as recorder:
        tiny_backbone.predict_velocity(latents(4), 601.0, texts)
    assert list(recorder.maps.prompt.values) == [texts[0]] * 2 + [texts[1]] * 2


def test_a_prompt_that_does_not_run_is_refused(tiny_backbone):
    encoded = tiny_backbone.encode_prompt(TEXT)
    for labels in (TEXT, encoded, [TEXT, "a cat"]):
        with pytest.raises(RecordingError, match="expected the recorder's prompt 'a .*'a dog on water' in the model"):
            with AttentionRecorder(tiny_backbone, prompt=labels):
                tiny_backbone.generate(["a dog on water"] * 2, steps=1, progress=False)
    with pytest.raises(
        RecordingError, match="for image 1, got another text in the model: pass.*list has one per image"
    ):
        maps_of(tiny_backbone, "a cat", ["a cat", "a dog"])
    with pytest.raises(RecordingError, match="'a cat' for image 0"):
        # the same first words, and others after them
        maps_of(tiny_backbone, "a cat", "a cat on grass")
    with pytest.raises(InputError, match="one prompt or one per image, got 3 for 2 images"):
        maps_of(tiny_backbone, ["a cat", "a dog", "a car"], "a cat")
    # a prompt that is replaced midway
    with AttentionRecorder(tiny_backbone, prompt="a cat") as recorder:
        tiny_backbone.predict_velocity(latents(), 900.0, "a cat")
        with pytest.raises(RecordingError, match="got another text"):
            tiny_backbone.predict_velocity(latents(), 300.0, "a dog")
    assert recorder.maps.sizes["step"] == 1


def test_a_text_is_labeled_whatever_the_number_of_zeros(tiny_backbone):
    pipe = tiny_backbone.pipe
    with AttentionRecorder(pipe, prompt="a cat", tokens="all") as recorder:
        pipe("a cat", num_inference_steps=1, height=40, width=56, output_type="latent")
    assert recorder.maps.sizes["token"] == 77 + 256
    assert (recorder.maps.token_kind == "zero").sum() == 256
    with pytest.raises(InputError, match="with a bare transformer, got the text 'a cat'.*encode_prompt"):
        AttentionRecorder(pipe.transformer, prompt="a cat")
    with AttentionRecorder(pipe.transformer, prompt=tiny_backbone.encode_prompt("a cat")) as recorder:
        pipe("a cat", num_inference_steps=1, height=40, width=56, output_type="latent")
    assert list(recorder.maps.token.values) == ["a", "cat"]
    assert list(recorder.maps.branch.values) == ["uncond", "cond"]


def test_pipelines_that_cannot_encode_or_read_more_are_refused(build_backbone):
    pipe = build_backbone().pipe
    pipe.text_encoder_2 = None
    with pytest.raises(InputError, match="for the prompt 'a cat', got one without text_encoder_2"):
        AttentionRecorder(pipe, prompt="a cat")
    other = build("ernie-image")
    encoded = wrap_pipeline(other).encode_prompt("a cat")
    other.register_modules(pe=other.text_encoder, pe_tokenizer=other.tokenizer)
    for prompt in ("a cat", encoded):
        with pytest.raises(InputError, match="a pipeline without pe and pe_tokenizer"):
            AttentionRecorder(other, prompt=prompt)


@pytest.mark.parametrize(
    "name",
    ["flux-dev", "qwen-image", "z-image", "hunyuan-image", "chroma", "krea2", "ernie-image", "longcat-image", "sd3-t5"],
)
def test_words_of_other_families(name):
    backbone = wrap_pipeline(build(name))
    with AttentionRecorder(backbone, prompt="a red car", layers=1) as recorder:
        backbone.generate("a red car", steps=1, size=40, progress=False)
    assert set(recorder.maps.token_kind.values) == {"word"}
    assert not np.isnan(recorder.recording.phrase("red car").sel(branch="cond")).any()
    assert not np.isnan(recorder.maps.sel(branch="cond")).any()
    with pytest.raises(RecordingError, match="got '.*a cat on grass.*' in the model"):
        with AttentionRecorder(backbone, prompt="a red car", layers=1):
            backbone.generate("a cat on grass", steps=1, size=40, progress=False)


def meta_sd3() -> SD3Transformer2DModel:
    """Stable Diffusion 3 medium, without weights."""
    with torch.device("meta"):
        return SD3Transformer2DModel(
            num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192
        )


def meta_flux() -> FluxTransformer2DModel:
    """FLUX.1-dev, without weights."""
    with torch.device("meta"):
        return FluxTransformer2DModel(guidance_embeds=True)


@pytest.mark.parametrize(("model", "layers", "branches", "text"), [(meta_sd3, 24, 2, 154), (meta_flux, 57, 1, 512)])
def test_the_first_snippet_fits_at_real_size(model, layers, branches, text):
    words = [Token(index, "word", "word") for index in range(1, 13)]
    prompt = Prompt("word " * 12, (*words, *[Token(0, "<pad>", "pad")] * (text - 12)), {})
    request = AttentionRecorder(model(), prompt=prompt)._request
    assert len(request.layers) == layers
    need = 28 * layers * branches * 12 * 4096 * 4
    assert request.budget - request.check_budget(1, branches, 28, 12, 4096) == need + branches * 12 * 4096 * 4 < 1 << 30
    everything = AttentionRecorder(model(), prompt=prompt, tokens="all")._request
    message = (
        rf"2.0 GiB.*28 steps x {branches} branches x 1 images x {layers} layers x 1 heads x {text} tokens.*'words'"
    )
    with pytest.raises(RecordingError, match=message):
        everything.check_budget(1, branches, 28, text, 4096)


def test_the_need_of_a_whole_generation_is_refused_at_its_first_forward(tiny_backbone):
    one, forwards = 4 * 2 * 49 * 2, []
    arguments = {"steps": 6, "progress": False, "callback": lambda *step: forwards.append(step)}
    with AttentionRecorder(tiny_backbone, prompt="a cat", memory_budget=one * (5 * 6 + 1) + 64) as recorder:
        tiny_backbone.generate("a cat", **arguments)
    assert recorder.maps.sizes["step"] == 6
    forwards.clear()
    with pytest.raises(RecordingError, match="6 steps x 2 branches.*steps=range"):
        with AttentionRecorder(tiny_backbone, prompt="a cat", memory_budget=one * (5 * 6 + 1) - 1):
            tiny_backbone.generate("a cat", **arguments)
    assert not forwards
    with AttentionRecorder(tiny_backbone, prompt="a cat", memory_budget=one * 6, steps=range(5, 9)) as recorder:
        tiny_backbone.generate("a cat", **arguments)
    assert list(recorder.maps.step) == [5]


def test_pipelines_that_share_a_transformer_do_not_mix_their_guidance(tiny_backbone):
    plain = tiny_backbone.pipe
    twin = StableDiffusion3Img2ImgPipeline(**{k: v for k, v in plain.components.items() if "image" not in k})
    twin.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    arguments = {
        "image": image,
        "height": 56,
        "width": 56,
        "strength": 0.5,
        "num_inference_steps": 2,
        "output_type": "latent",
    }
    found = []
    for model in (plain, twin, plain.transformer):
        with AttentionRecorder(model, tokens=[1, 2], layers=1) as recorder:
            twin("a cat", guidance_scale=4.0, generator=torch.Generator().manual_seed(0), **arguments)
        found.append(recorder.maps)
        assert (list(found[-1].branch.values), found[-1].sizes["image"]) == (["uncond", "cond"], 1)
        assert found[-1].identical(found[0])
    with AttentionRecorder(twin, prompt="a cat", layers=1) as recorder:
        twin("a cat", guidance_scale=4.0, generator=torch.Generator().manual_seed(0), **arguments)
    np.testing.assert_array_equal(recorder.maps, found[0])


def test_guidance_that_stops_or_starts_midway_leaves_nan(tiny_backbone):
    pipe = tiny_backbone.pipe

    def stop(pipe, step, timestep, tensors):
        if step == 2:
            pipe._guidance_scale = 0.0
            return {name: tensors[name].chunk(2)[-1] for name in ("prompt_embeds", "pooled_prompt_embeds")}
        return {}

    with AttentionRecorder(pipe, prompt="a cat", layers=1) as recorder:
        pipe(
            "a cat",
            num_inference_steps=6,
            output_type="latent",
            callback_on_step_end=stop,
            callback_on_step_end_tensor_inputs=["prompt_embeds", "pooled_prompt_embeds"],
        )
    maps = recorder.maps
    assert list(maps.step) == list(range(6))
    assert list(maps.branch.values) == ["uncond", "cond"]
    assert not np.isnan(maps.sel(branch="cond")).any()
    assert not np.isnan(maps.sel(branch="uncond", step=slice(0, 2))).any()
    assert np.isnan(maps.sel(branch="uncond", step=slice(3, 5))).all()


def test_the_branches_of_perturbed_attention_guidance_have_names(tiny_backbone):
    from diffusers import StableDiffusion3PAGPipeline

    parts = {
        name: part
        for name, part in tiny_backbone.pipe.components.items()
        if "image" not in name and "feature" not in name
    }
    pipe = StableDiffusion3PAGPipeline(**parts, pag_applied_layers=["blocks.2"])
    pipe.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 1, "output_type": "latent", "height": 56, "width": 56}
    for scale, branches in ((4.0, ["uncond", "cond", "perturbed"]), (1.0, ["cond", "perturbed"])):

        def run(scale=scale, **guidance):
            generator = torch.Generator().manual_seed(0)
            return pipe("a cat", guidance_scale=scale, generator=generator, **arguments, **guidance).images

        plain = run()
        with AttentionRecorder(pipe, prompt="a cat") as recorder:
            assert torch.equal(run(), plain)
        maps = recorder.maps
        assert (list(maps.branch.values), maps.sizes["image"]) == (branches, 1)
        with AttentionRecorder(pipe, prompt="a cat") as recorder:
            run(pag_scale=0.0)
        np.testing.assert_allclose(maps.sel(branch=branches[:-1]), recorder.maps, rtol=1e-4, atol=1e-6)
        assert np.isnan(maps.sel(branch="perturbed", layer=2)).all()
        assert not np.isnan(maps.sel(branch="perturbed", layer=[0, 1, 3, 4])).any()


def test_copies_of_a_watched_transformer_carry_no_hooks(build_backbone):
    backbone = build_backbone()
    transformer = backbone.transformer
    user = transformer.register_forward_pre_hook(hook_of_the_user)

    def hooks(model):
        return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]

    before, saved = hooks(transformer), io.BytesIO()
    with AttentionRecorder(backbone) as recorder, apply_edit(backbone, drop([1]), 1):
        copied = copy.deepcopy(transformer)
        piped = copy.deepcopy(backbone.pipe).transformer
        torch.save(transformer, saved)
        backbone.predict_velocity(latents(), 601.0, "a cat")
    saved.seek(0)
    loaded = torch.load(saved, weights_only=False)
    expected = backbone.predict_velocity(latents(), 601.0, "a cat")
    for other in (copied, piped, loaded, copy.deepcopy(transformer)):
        assert hooks(other) == before == hooks(transformer)
        assert other._forward_pre_hooks.keys() == transformer._forward_pre_hooks.keys()
        found = other(**backbone.inputs(latents(), 601.0, "a cat"))[0]
        torch.testing.assert_close(found, expected)
    assert recorder.maps.sizes["step"] == 1
    assert "__reduce_ex__" not in vars(transformer)
    user.remove()


def hook_of_the_user(module, args):
    """A hook that copies keep."""


def test_backward_after_the_with_under_checkpointing(build_backbone):
    backbone = build_backbone()
    model = backbone.transformer
    model.requires_grad_(True)
    model.enable_gradient_checkpointing()
    model.train()
    inputs = backbone.inputs(latents(), 601.0, "a cat")

    def gradients(*observers):
        model.zero_grad()
        for observer in observers:
            observer.__enter__()
        loss = model(**inputs)[0].square().mean()
        for observer in reversed(observers):
            observer.__exit__(None, None, None)
        loss.backward()
        return [value.grad.clone() for value in model.parameters() if value.grad is not None]

    plain = gradients()
    seen = []
    watched = gradients(AttentionRecorder(backbone), intercept(model, lambda call: seen.append(call.layer)))
    assert seen == [0, 1, 2, 3, 4]
    for one, other in zip(plain, watched, strict=True):
        assert torch.equal(one, other)
