"""Every family, on a tiny random pipeline of the real class: where tokens stand, exact maps, an untouched model."""

import inspect
import math
import re
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.guiders import AdaptiveProjectedMixGuidance
from packaging.version import Version
from PIL import Image
from tiny_models import BUILDERS, SIDE, VIDEO_BUILDERS, build, tiny_hunyuan_image, wrapped
from torch.overrides import TorchFunctionMode

from seg4diff_tools import families
from seg4diff_tools.analysis import attention_takers
from seg4diff_tools.analysis.features import attention_budget, image_features, value_norms
from seg4diff_tools.attention.edits import apply_edit, blur, drop, perturbed_guidance
from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.recorder import AttentionRecorder
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.loading import load_backbone, wrap_pipeline
from seg4diff_tools.backbones.verify import verify
from seg4diff_tools.datasets import LabeledImage
from seg4diff_tools.errors import InputError, PromptError, RecordingError
from seg4diff_tools.evaluation.sweeps import layer_step_sweep
from seg4diff_tools.families.record import image_then_text
from seg4diff_tools.images import Video
from seg4diff_tools.prompts import numbered, reader_name
from seg4diff_tools.segmentation.options import OpenVocabulary
from seg4diff_tools.segmentation.segment import segment

PROMPT = "a red cars near the tree"
IMAGE = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)


FRAMES = [Image.fromarray(np.roll(IMAGE, 3 * frame, axis=1)) for frame in range(9)]


@pytest.fixture(scope="module", params=[*BUILDERS, *VIDEO_BUILDERS])
def backbone(request) -> Backbone:
    return wrapped(request.param)


def noisy(backbone: Backbone, size=None) -> tuple[torch.Tensor, torch.Tensor]:
    return backbone.add_noise(backbone.encode_image(Video(FRAMES) if backbone.is_video else IMAGE, size), 8)


def same_pictures(first, second) -> None:
    """Assert that two images, or two videos, are equal."""
    for one, other in zip(
        *((each,) if isinstance(each, Image.Image) else each for each in (first, second)), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def calls(backbone: Backbone, inputs: dict) -> list:
    seen = []
    with torch.no_grad(), intercept(backbone.transformer, seen.append):
        backbone.transformer(**inputs)
    return seen


class Eyewitness(TorchFunctionMode):
    """Keeps the arguments of every attention while it is on, wherever it comes from."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            names = ("query", "key", "value", "attn_mask")
            self.seen.append(dict(zip(names, args, strict=False)) | (kwargs or {}))
        return func(*args, **(kwargs or {}))


def softmax(query, key, attn_mask=None, **_) -> torch.Tensor:
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query.double() @ key.double().mT * query.shape[-1] ** -0.5
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(dim=-1).nan_to_num()


def test_maps_are_those_of_a_materialized_softmax(backbone):
    inputs = backbone.inputs(*noisy(backbone), PROMPT)
    found = calls(backbone, inputs)
    with torch.no_grad(), Eyewitness() as witness:
        backbone.transformer(**inputs)
    assert [call.layer for call in found] == list(range(backbone.layers))
    for call in found:
        (given,) = (one for one in witness.seen if torch.equal(one["query"], call.query))
        joint = softmax(**given)
        for direction, (rows, columns) in {
            "i2t": (call.image, call.text),
            "t2i": (call.text, call.image),
            "t2t": (call.text, call.text),
        }.items():
            torch.testing.assert_close(call.weights(direction).double(), joint[:, :, rows, columns], rtol=0, atol=1e-5)
        sides = call.image, call.text
        masses = [joint[:, :, rows, columns].sum(-1).mean(-1) for rows in sides for columns in sides]
        torch.testing.assert_close(call.masses().double(), torch.stack(masses, -1), rtol=0, atol=1e-5)


def test_the_output_is_bit_identical_while_everything_is_recorded(backbone):
    inputs = backbone.inputs(*noisy(backbone), PROMPT)
    with torch.no_grad():
        plain = backbone.transformer(**inputs)[0]
        with AttentionRecorder(backbone, direction=("i2t", "t2i", "masses"), heads="all"):
            watched = backbone.transformer(**inputs)[0]
    for x, y in zip(plain, watched, strict=True):
        assert torch.equal(x, y)


def test_the_model_itself_confirms_the_layout(backbone):
    found = verify(backbone)
    assert found["output"] == 0
    assert max(found.values()) < 1e-3


def test_words_and_places_stand_where_the_layout_says(backbone):
    """A change of one word's features, or of one cell of the image, changes its own key most, and no key of the other
    side."""
    wider = None if backbone.is_video else (backbone.image_size, backbone.image_size + 2 * backbone.token_px)
    latents, timestep = noisy(backbone, wider)
    prompt = backbone.encode_prompt(PROMPT)
    grid = backbone.token_grid(latents)
    assert len(set(grid)) == len(grid) == 2 + backbone.is_video
    (before, *_) = calls(backbone, backbone.inputs(latents, timestep, prompt))
    assert before.image_tokens == math.prod(grid)
    assert before.text_tokens == len(prompt.tokens)

    row, column, side = 3, 5, backbone.family.patch_size
    place = (1, row, column) if backbone.is_video else (row, column)
    other = latents.clone()
    cells = other[:, :, 1] if backbone.is_video else other
    cells[..., row * side : (row + 1) * side, column * side : (column + 1) * side] += 3
    (after, *_) = calls(backbone, backbone.inputs(other, timestep, prompt))
    moved = (after.key - before.key).abs().amax(dim=(0, 1, 3))
    assert moved.argmax() == before.image.start + np.ravel_multi_index(place, grid)
    assert moved[before.text].max() < moved.max() / 1e3

    name = backbone.family.text_inputs[0]
    held = len(prompt.inputs[name][0])
    texts = {token.text: token.index for token in prompt.tokens[:held] if token.kind == "word"}
    place = texts["near"] if "near" in texts else prompt.span("tree")[0]
    inputs = backbone.inputs(latents, timestep, prompt)
    features = torch.stack(inputs[name]) if isinstance(inputs[name], list) else inputs[name].clone()
    features[:, place] += 3
    (after, *_) = calls(backbone, inputs | {name: list(features) if isinstance(inputs[name], list) else features})
    moved = (after.key - before.key).abs().amax(dim=(0, 1, 3))
    assert moved.argmax() == before.text.start + place
    assert moved[before.image].max() < moved.max() / 1e3


def test_a_recording_of_a_generation(backbone):
    def run():
        prompts = [PROMPT, PROMPT if backbone.name == "lumina2" else "a dog"]
        return backbone.generate(prompts, steps=2, seed=[1, 2], progress=False)

    plain = run()
    with AttentionRecorder(backbone, layers=[0, backbone.layers - 1]) as recorder:
        watched = run()
    for x, y in zip(plain, watched, strict=True):
        same_pictures(x, y)
    maps = recorder.maps
    assert (maps.sizes["image"], maps.sizes["step"], maps.sizes["layer"]) == (2, 2, 2)
    places = ("frame", "y", "x") if backbone.is_video else ("y", "x")
    assert maps.dims == ("image", "branch", "step", "layer", "token", *places)
    assert tuple(maps.sizes[axis] for axis in places) == backbone.token_grid()
    np.testing.assert_allclose(maps.timestep, backbone.schedule(2)[0], rtol=1e-3)


def test_branches_of_guidance_are_those_of_the_prompts_alone(backbone):
    family, takes = backbone.family, inspect.signature(type(backbone.pipe).__call__).parameters
    if "distilled_guidance_scale" in takes:
        backbone.pipe.guider = AdaptiveProjectedMixGuidance(guidance_scale=2.0)
        asked = {}
    elif "true_cfg_scale" in takes and family.scale_name != "true_cfg_scale":
        asked = {"true_cfg_scale": 2.0, "negative_prompt": ""}
    else:
        # a distilled model reads the scale, so that another one would change its maps
        asked = {} if backbone.name == "flux2-dev" else {"guidance_scale": 2.0}
    with AttentionRecorder(backbone, layers=[1], steps=[0]) as recorder:
        backbone.generate(PROMPT, steps=2, seed=3, progress=False, **asked)
    backbone.pipe.guider = None
    maps = recorder.maps
    # FLUX.2 dev is distilled: it has no other branch
    branches = ("cond",) if backbone.name == "flux2-dev" else family.branches
    assert tuple(maps.branch.values) == branches
    noise = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(3))
    # without a negative prompt, Bria reads zeros and Lumina 2 reads no system prompt
    for branch in ("cond",) if backbone.name in ("bria", "lumina2") else branches:
        with AttentionRecorder(backbone, layers=[1]) as alone:
            backbone.predict_velocity(
                noise, backbone.schedule(2)[0][0], PROMPT if branch == "cond" else family.negative or ""
            )
        found, tokens = maps.sel(branch=branch), alone.maps.sizes["token"]
        np.testing.assert_allclose(found[:, :, :, :tokens], alone.maps.sel(branch="cond"), atol=1e-5)
        # in one batch, a shorter text is filled up by the model itself
        assert found[:, :, :, tokens:].isnull().all() or not family.sequential


def test_labels_are_what_the_text_encoder_reads(backbone):
    pipe, read = backbone.pipe, []
    tokenizer, _ = backbone.family.tokenizer_and_limit(pipe)
    # a text and image processor contains its tokenizer
    name = next(name for name, part in pipe.components.items() if getattr(part, "tokenizer", part) is tokenizer)
    encoder = getattr(pipe, name.replace("tokenizer", "text_encoder"))
    handle = encoder.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(args[0] if args else kwargs["input_ids"]), with_kwargs=True
    )
    prompt = backbone.encode_prompt("a red car, two cats")
    handle.remove()
    ids = read[0][0].tolist()
    pieces = [tokenizer.decode([index]).strip() for index in ids]
    tokens = numbered([token for token in prompt.tokens if token.reader == reader_name(tokenizer)])
    words = [token for token in tokens if token.kind == "word"]
    # pipelines may cut off the start of a template; a sentence piece may be a space alone
    last = words[-1].index
    fits = [
        start
        for start in range(len(ids) - last)
        if all(pieces[start + word.index] in (word.text, "") for word in words) and pieces[start + last]
    ]
    assert len(words) >= 6
    assert len(fits) == 1
    for token, index, piece in zip(tokens[:last], ids[fits[0] :], pieces[fits[0] :], strict=False):
        if token.kind == "pad":
            assert index == tokenizer.pad_token_id
        elif token.kind == "template":
            assert piece == token.text.strip()


def test_latents_become_the_pipelines_own_picture(backbone):
    if "callback_on_step_end" not in inspect.signature(type(backbone.pipe).__call__).parameters:
        with pytest.raises(InputError, match="callback_on_step_end"):
            backbone.generate(PROMPT, steps=2, callback=print)
        return
    found = []
    (picture,) = backbone.generate(PROMPT, steps=2, progress=False, callback=lambda *step: found.append(step[-1]))
    latents = backbone.family.unpack(found[-1], backbone.token_grid())
    same_pictures(backbone.decode(latents)[0], picture)


def test_words_are_found_in_every_tokenizer(backbone):
    prompt = backbone.encode_prompt("a red car, two cats and a cat")
    assert len(prompt.tokens) == backbone.family.text_length(prompt.inputs)
    assert [token.index for token in prompt.tokens] == list(range(len(prompt.tokens)))
    for phrase in ("red car", "cats", "two cats"):
        start = prompt.text.index(phrase)
        for reader in prompt.readers:
            tokens = [prompt.tokens[index] for index in prompt.span(phrase, reader=reader)]
            assert (tokens[0].start, tokens[-1].stop) == (start, start + len(phrase))
    assert prompt.span("cat") > prompt.span("cats")
    assert prompt.indices("word") == tuple(sorted(prompt.indices("word")))
    with pytest.raises(PromptError, match="do not fit"):
        backbone.encode_prompt("cat " * 2000)


def test_segmentation_and_sweep(backbone):
    if backbone.is_video:
        found = segment(backbone, Video(FRAMES), ["cat", "red car"], OpenVocabulary(layers=1))
        assert np.stack([one.label_map for one in found]).shape == (9, SIDE, SIDE)
        assert {one.class_maps.shape for one in found} == {(2, *backbone.token_grid()[1:])}
        with pytest.raises(InputError, match="expected a model of images, got"):
            layer_step_sweep(backbone, [LabeledImage(IMAGE, ("cat",), np.zeros((SIDE, SIDE), int))])
        return
    result = segment(backbone, IMAGE, ["cat", "red car"], OpenVocabulary(layers=1))
    assert result.label_map.shape == (SIDE, SIDE)
    assert result.class_maps.shape == (2, *backbone.token_grid())
    assert (result.class_maps > 0).all()
    labels = np.zeros((SIDE, SIDE), dtype=np.int64)
    labels[: SIDE // 2] = 1
    samples = [LabeledImage(IMAGE, names, labels) for names in (("cat", "red car"), ("a tree", "grass"))]
    table = layer_step_sweep(backbone, samples, steps_from_end=[1, 8], progress=False).table()
    assert sorted(set(table.layer)) == list(range(backbone.layers))
    alone = segment(backbone, IMAGE, ["cat", "red car"], OpenVocabulary(layers=1)).label_map
    one = layer_step_sweep(backbone, samples[:1], layers=[1], progress=False).table()
    assert one.pACC.item() == pytest.approx((alone == labels).mean())


def test_edits_and_guidance_change_what_they_should(backbone):
    given = noisy(backbone)
    inputs = backbone.inputs(*given, PROMPT)

    def output() -> torch.Tensor:
        with torch.no_grad():
            found = backbone.transformer(**inputs)[0]
        return torch.stack(list(found))

    plain = output()
    with apply_edit(backbone, blur(), 1):
        worse = output()
    assert not torch.equal(plain, worse)
    with perturbed_guidance(backbone, blur(), 1, 2.0):
        guided = output()
    torch.testing.assert_close(guided, plain + 2 * (plain - worse), rtol=1e-4, atol=1e-4)
    with apply_edit(backbone, drop(keep="nothing"), 0):
        assert not torch.equal(output(), plain)
    assert torch.equal(output(), plain)


def test_a_layer_alone_is_refused(backbone):
    module = backbone.family.joint_attention(backbone.transformer)[0][1]
    with (
        pytest.raises(RecordingError, match="inside a forward of its transformer"),
        intercept(backbone.transformer, lambda call: None),
    ):
        module(torch.zeros(1))


@pytest.fixture
def own_families(monkeypatch) -> list:
    """FAMILIES, to be changed by one test alone."""
    monkeypatch.setattr(families, "FAMILIES", list(families.FAMILIES))
    return families.FAMILIES


def test_a_wrong_layout_is_noticed(own_families):
    right = families.FLUX

    def wrong(transformer, inputs):
        layout = right.layout(transformer, inputs)
        return image_then_text(layout.grid, layout.text.stop)

    own_families.insert(0, replace(right, layout=wrong))
    backbone = wrap_pipeline(build("flux-dev"))
    with pytest.raises(RecordingError, match=r"expected the image token \(2, 4\) at position 16 .* position 528 moved"):
        verify(backbone)


def test_the_page_about_adding_a_model_does_what_it_says(own_families):
    page = (Path(__file__).parents[1] / "book" / "add_your_model.md").read_text()
    record, check, of_video, with_video, with_t5 = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {"pipe": build("flux-dev")}
    exec(record, names)
    assert own_families[0] is names["MINE"]
    exec(check, names)
    assert names["backbone"].family.name == "mine"
    video = wrapped("hunyuan-video")
    names = {"backbone": video}
    exec(of_video, names)
    inputs = video.inputs(torch.zeros(1, *video.latent_shape), 500.0, PROMPT)
    assert names["layout_of_video"](video.transformer, inputs) == video.family.layout(video.transformer, inputs)
    exec(with_video, names)
    assert [len(one) for one in names["labels"]] == [80] * 9
    exec(with_t5, {"backbone": replace(wrap_pipeline(build("sd3-t5")), expert_layer=1)})
    for family in families.FAMILIES[1:]:
        assert f"| {family.name} |" in page, f"the table of architectures lacks {family.name}"


def test_double_blocks(backbone):
    # the tiny models have five blocks: two and three where there are two stacks
    counts = {"sd3": 5, "qwen-image": 5, "z-image": 0, "krea2": 0, "ernie-image": 0, "cogview4": 0, "lumina2": 0}
    counts["cogvideox"] = 0
    assert backbone.family.double_layers(backbone.transformer) == list(range(counts.get(backbone.family.name, 2)))


def test_features_norms_and_budget(backbone):
    latents = backbone.encode_image([Video(FRAMES)] * 2 if backbone.is_video else [IMAGE, IMAGE])
    prompts = backbone.encode_prompt([PROMPT, "a dog"])
    if not backbone.is_video:
        features = image_features(backbone, latents, prompts)
        assert features.sizes["layer"] == backbone.layers
        assert (features.sizes["y"], features.sizes["x"]) == (backbone.token_grid())
    assert set(value_norms(backbone, latents, prompts).tokens) == {"image", "text", "words"}
    budget = attention_budget(backbone, latents, prompts, [8], progress=False)
    shares = budget[budget.key.isin(["image", "text"])].groupby(["layer", "query"]).share.sum()
    inputs = backbone.inputs(*noisy(backbone), PROMPT)
    others = backbone.family.layout(backbone.transformer, inputs)
    complete = others.tokens == others.image.stop - others.image.start + others.text.stop - others.text.start
    if complete:
        np.testing.assert_allclose(shares, 1, atol=1e-5)
    else:
        assert ((shares > 0) & (shares < 1)).all()
    if backbone.is_video:
        return
    takers = attention_takers(backbone, [PROMPT, "a dog"], [IMAGE, IMAGE], layers=[0, 4], progress=False)
    np.testing.assert_allclose(takers.groupby(["layer", "steps_from_end", "query"]).share.sum(), 1, atol=1e-5)
    assert ((takers[takers.key == "other"].share == 0) == complete).all()


# diffusers' own, about a name inside of diffusers
@pytest.mark.filterwarnings("ignore:`FluxPosEmbed`:FutureWarning")
def test_a_saved_model_reads_prompts_as_before(backbone, tmp_path):
    backbone.pipe.save_pretrained(tmp_path)
    loaded = load_backbone(tmp_path, "cpu", t5=backbone.name == "sd3-t5")
    for name in ("tokenizer_max_length", "tokenizer_2_max_length", "default_sample_size", "system_prompt"):
        if hasattr(backbone.pipe, name):
            setattr(loaded.pipe, name, getattr(backbone.pipe, name))
    before, after = backbone.encode_prompt(PROMPT), loaded.encode_prompt(PROMPT)
    assert after.tokens == before.tokens
    name = backbone.family.text_inputs[0]
    torch.testing.assert_close(after.inputs[name], before.inputs[name])


def test_hunyuan_image_distilled_predicts_the_velocity_of_an_instant():
    """Not the mean velocity until the end of the step that happened to be captured."""
    backbone = wrap_pipeline(tiny_hunyuan_image(distilled=True), "distilled")
    backbone.pipe.default_sample_size = SIDE // backbone.pipe.vae_scale_factor
    latents, timesteps = backbone.add_noise(torch.zeros(2, *backbone.latent_shape), [8, 3])
    inputs = backbone.inputs(latents, timesteps, ["a cat", "a dog"])
    assert torch.equal(inputs["timestep"], timesteps)
    assert torch.equal(inputs["timestep_r"], timesteps)
    assert inputs["guidance"].tolist() == [3250.0] * 4


def test_hunyuan_image_reads_quoted_text_before_words():
    prompt = wrap_pipeline(build("hunyuan-image")).encode_prompt('a sign "tree" and a cat')
    letters = [token for token in prompt.tokens if token.reader == "ByT5" and token.kind == "template"]
    assert "".join(token.text for token in letters).startswith('Text "tree"')
    assert prompt.span("cat")[0] > letters[-1].index


@pytest.mark.parametrize("name", ["hunyuan-image", "krea2", "hunyuan-video"])
def test_masked_pads_get_exactly_nothing(name):
    backbone = wrapped(name)
    prompt = backbone.encode_prompt('a sign "tree" and a cat')
    (first, *_) = calls(backbone, backbone.inputs(*noisy(backbone), prompt))
    columns = first.i2t().sum(dim=(0, 1, 2))
    pads = torch.tensor([token.kind == "pad" for token in prompt.tokens])
    assert pads.any()
    assert (columns[pads] == 0).all()
    assert (columns[~pads] > 0).all()


@pytest.mark.parametrize("name", ["qwen-image", "ernie-image"])
def test_the_shorter_prompt_of_a_batch_is_filled_with_what_gets_nothing(name):
    if Version(diffusers.__version__) < Version("0.37"):
        pytest.skip(f"diffusers {diffusers.__version__} lets images attend to what fills a prompt up")
    backbone, seen = wrap_pipeline(build(name)), []
    lengths = [len(prompt.tokens) for prompt in backbone.encode_prompt([PROMPT, "a dog"])]
    with intercept(backbone.transformer, seen.append, layers=[0]):
        backbone.generate([PROMPT, "a dog"], steps=1, guidance_scale=1.0, progress=False)
    columns = seen[0].i2t().sum(dim=(1, 2))
    assert columns.shape == (2, lengths[0])
    assert lengths[1] < lengths[0]
    assert (columns[0] > 0).all()
    assert (columns[1, : lengths[1]] > 0).all()
    assert (columns[1, lengths[1] :] == 0).all()


def test_latents_of_ernie_image_are_those_of_its_pipeline():
    """It adds 1e-5 to the variance, whatever the configuration of the VAE says."""
    backbone = wrap_pipeline(build("ernie-image"))
    pipe, norm = backbone.pipe, backbone.pipe.vae.bn
    assert pipe.vae.config.batch_norm_eps == 1e-4
    norm.running_var.fill_(1e-3)
    pixels = pipe.image_processor.preprocess(Image.fromarray(IMAGE))
    with torch.no_grad():
        cells = pipe.vae.encode(pixels).latent_dist.mode()
    patches = torch.stack([cells[:, :, y::2, x::2] for y in (0, 1) for x in (0, 1)], 2).flatten(1, 2)
    expected = (patches - norm.running_mean[:, None, None]) / (1e-3 + 1e-5) ** 0.5
    torch.testing.assert_close(backbone.encode_image(IMAGE), expected)


def test_ernie_image_is_refused_with_what_rewrites_prompts():
    pipe = build("ernie-image")
    pipe.register_modules(pe=pipe.text_encoder, pe_tokenizer=pipe.tokenizer)
    with pytest.raises(InputError, match=r"without pe and pe_tokenizer \(.*\): load it with pe=None"):
        wrap_pipeline(pipe)


@pytest.mark.parametrize("name", ["flux-kontext", "flux2-dev", "flux2-klein"])
def test_reference_images_are_neither_image_nor_text(name):
    backbone, seen = wrap_pipeline(build(name), name), []
    asked = {"size": (SIDE, SIDE + 8), "steps": 1, "progress": False, "image": Image.new("RGB", (64, 80), "red")}
    if name == "flux-kontext":
        asked["_auto_resize"] = False
    with intercept(backbone.transformer, seen.append, layers=[0, 4]):
        backbone.generate(PROMPT, **asked)
    for call in seen:
        assert (call.text_tokens, call.image_tokens, call.query.shape[2]) == (512, 30, 512 + 30 + 8 * 10)
        joint = softmax(call.query, call.key)
        torch.testing.assert_close(call.i2t().double(), joint[:, :, 512 : 512 + 30, :512], rtol=0, atol=1e-5)
        others = joint[:, :, 512 : 512 + 30, 542:].sum(-1).mean(-1)
        torch.testing.assert_close(1 - call.masses()[..., :2].double().sum(-1), others, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["flux2-dev", "flux2-klein"])
def test_latents_of_flux2_are_those_of_its_pipeline(name):
    backbone = wrap_pipeline(build(name), name)
    pixels = backbone.pipe.image_processor.preprocess(Image.fromarray(IMAGE))
    with torch.no_grad():
        torch.testing.assert_close(backbone.encode_image(IMAGE), backbone.pipe._encode_vae_image(pixels, None))
    with pytest.raises(InputError, match="got negative_prompt: leave out"):
        backbone.generate(PROMPT, negative_prompt="blurry", steps=1)


def test_chroma_adds_its_mask_to_the_scores():
    """A weak mask: pads after the first get e times less, where a mask would leave them nothing."""
    backbone = wrap_pipeline(build("chroma"), "chroma")
    prompt = backbone.encode_prompt("a cat")
    (call, *_) = calls(backbone, backbone.inputs(*noisy(backbone), prompt))
    weak = torch.tensor([token.kind == "pad" for token in prompt.tokens])
    weak[prompt.pads[0]] = False
    assert torch.equal(call.mask[0, 0, call.image, call.text], (~weak).float().expand(call.image_tokens, -1))


def test_hidream_reads_llama_twice_and_each_image_its_own():
    backbone = wrap_pipeline(build("hidream"))
    prompts = backbone.encode_prompt([PROMPT, "a dog"])
    assert [token.reader for token in prompts[0].tokens[::128]] == ["T5", "Qwen2", "Qwen2Blocks"]
    first, second = ([token.text for token in prompts[0].tokens[start : start + 128]] for start in (128, 256))
    assert first == second
    latents, timestep = noisy(backbone)
    twice = backbone.encode_prompt("a cat and a cat")
    with AttentionRecorder(backbone, prompt=twice, layers=0) as recorder:
        backbone.predict_velocity(latents, timestep, twice)
    maps = recorder.maps
    # a label of a map is that of its column alone
    for label in ("cat@Qwen2#2", "cat@Qwen2Blocks#2"):
        assert twice.span(label) == (maps.sel(token=label).token_index,)
    both = backbone.inputs(latents.repeat(2, 1, 1, 1), 500.0, prompts)["encoder_hidden_states_llama3"]
    assert both.shape == (4, 2, 128, 16)
    for image, prompt in enumerate(prompts):
        alone = backbone.inputs(latents, 500.0, prompt)["encoder_hidden_states_llama3"]
        assert torch.equal(both[:, image : image + 1], alone)


def test_hidream_refuses_sizes_that_its_pipeline_changes():
    backbone = wrap_pipeline(build("hidream"))
    with pytest.raises(InputError, match=r"got \(64, 64\), of which its pipeline makes \(40, 40\): pass size="):
        backbone.generate(PROMPT, size=64, steps=1)
    assert backbone.generate(PROMPT, size=(24, 64), steps=1, progress=False)[0].size == (64, 24)


def test_longcat_reads_quoted_text_letter_by_letter():
    backbone = wrap_pipeline(build("longcat-image"))
    text = 'a sign "cat" and a cat\'s tree'
    words = [token for token in backbone.encode_prompt(text).tokens if token.kind == "word"]
    quoted = [token for token in words if text.index('"') <= token.start < text.rindex('"') + 1]
    assert [token.text for token in quoted] == ['"', "c", "a", "t", '"']
    assert {text[token.start : token.stop] == token.text for token in words} == {True}
    with pytest.raises(PromptError, match="the text encoder reads 512"):
        backbone.encode_prompt('"' + "cat " * 128 + '"')


def test_lumina2_refuses_a_batch_whose_images_stand_in_different_places():
    backbone = wrap_pipeline(build("lumina2"))
    with (
        pytest.raises(RecordingError, match="expected prompts of one length in a batch of Lumina 2, got"),
        AttentionRecorder(backbone),
    ):
        backbone.generate([PROMPT, "a dog"], steps=1, progress=False)
    backbone.generate([PROMPT, "a dog"], steps=1, progress=False)


def test_lumina2_can_stop_guidance_midway():
    backbone, stopped = wrap_pipeline(build("lumina2")), {"cfg_trunc_ratio": 0.5, "guidance_scale": 3.0}
    with AttentionRecorder(backbone, layers=0) as recorder:
        backbone.generate(PROMPT, steps=4, progress=False, **stopped)
    there = recorder.maps.notnull().any(("layer", "token", "y", "x"))[0]
    assert there.sel(branch="cond").values.tolist() == [True] * 4
    assert there.sel(branch="uncond").values.tolist() == [True, True, False, False]
    # from the first step on, it is as if there were none
    found = []
    for asked in (stopped | {"cfg_trunc_ratio": 0.0}, {"guidance_scale": 1.0}):
        with perturbed_guidance(backbone, drop(), 2, scale=2.0):
            found += backbone.generate(PROMPT, steps=2, progress=False, **asked)
    np.testing.assert_array_equal(*map(np.asarray, found))


def test_cogview4_has_its_pads_before_the_prompt():
    tokens = wrap_pipeline(build("cogview4")).encode_prompt("a cat").tokens
    kinds = [token.kind for token in tokens]
    assert len(tokens) % 16 == 0
    assert kinds == ["pad"] * (len(tokens) - 4) + ["start", "start", "word", "word"]
