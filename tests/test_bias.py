"""Biases between groups of tokens against a materialized masked softmax, and what is built on them."""

import math

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3PAGPipeline
from test_attention import inputs as sd3_inputs
from test_attention import make
from tiny_models import BUILDERS, SIDE, build
from torch.testing import assert_close

from seg4diff_tools.attention.areas import grid_mask
from seg4diff_tools.attention.bias import AttentionBias, JointTokens
from seg4diff_tools.attention.concepts import Concepts, encode_concepts
from seg4diff_tools.attention.edits import apply_edit, blur, perturbed_guidance
from seg4diff_tools.attention.groups import Rule, group_bias
from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.placing import layout_masks, lock_layout, place_words, without
from seg4diff_tools.attention.recorder import AttentionRecorder
from seg4diff_tools.attention.recording import open_recording
from seg4diff_tools.attention.tokens import encoded_prompts
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.loading import wrap_pipeline
from seg4diff_tools.errors import InputError, RecordingError

PROMPT = "a red cars near the tree"
LEFT = (0.0, 0.0, 0.4, 1.0)
NEVER = -math.inf
RULES = [
    AttentionBias(NEVER, JointTokens(image=LEFT), JointTokens(text=[1, 2])),
    AttentionBias(1.3, JointTokens(text=True), JointTokens(image=True), layers=[0, 3]),
    AttentionBias(-0.7, JointTokens(image=True), JointTokens(image=(0.4, 0.0, 1.0, 0.6))),
    AttentionBias(torch.tensor([0.4, NEVER, -2.0]), JointTokens(text=[0, 3]), JointTokens(text=[1, 2, 4]), images=[1]),
]


@pytest.fixture(scope="module", params=BUILDERS)
def backbone(request) -> Backbone:
    return wrap_pipeline(build(request.param), request.param)


def forward(backbone: Backbone, images: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(images, *backbone.latent_shape, generator=generator)
    return backbone.predict_velocity(latents, 515.0, PROMPT)


def materialized(call) -> torch.Tensor:
    """The definition of RULES: the full softmax over all keys, in double precision."""
    scores = call.query.double() @ call.key.double().mT * call.scale
    scores = scores if call.mask is None else scores + call.mask
    at, text = call.image.start, call.text.start
    places = np.arange(25).reshape(5, 5)
    for row in places[:, :2].ravel().tolist():
        scores[:, :, at + row, [text + 1, text + 2]] = NEVER
    if call.layer in (0, 3):
        scores[:, :, call.text, call.image] += 1.3
    for key in places[:3, 2:].ravel().tolist():
        scores[:, :, call.image, at + key] -= 0.7
    if len(scores) > 1:
        for query in (0, 3):
            scores[1, :, text + query, text + 1] += 0.4
            scores[1, :, text + query, text + 2] = NEVER
            scores[1, :, text + query, text + 4] -= 2.0
    return scores.softmax(-1)


def test_groups_are_exact_in_every_family(backbone):
    seen = []
    assert backbone.token_grid() == (5, 5)

    def see(call):
        whole = materialized(call)
        assert_close(call.output.double(), whole @ call.value.double(), rtol=1e-4, atol=1e-4)
        sides = {"i": call.image, "t": call.text}
        for name in ("i2t", "t2i", "i2i", "t2t"):
            wanted = whole[:, :, sides[name[0]], sides[name[2]]]
            assert_close(call.weights(name).double(), wanted, rtol=0, atol=1e-5)
        sums = [whole[:, :, sides[a], sides[b]].sum(-1).mean(-1) for a, b in ("ii", "it", "ti", "tt")]
        assert_close(call.masses().double(), torch.stack(sums, -1), rtol=0, atol=1e-5)
        seen.append(call.layer)

    plain = forward(backbone)
    with intercept(backbone.transformer, see, bias=RULES):
        watched = forward(backbone)
    with intercept(backbone.transformer, bias=RULES):
        biased = forward(backbone)
    assert seen == list(range(backbone.layers))
    assert_close(biased, watched, rtol=0, atol=1e-5)
    assert (biased - plain).abs().max() > 1e-4
    assert torch.equal(forward(backbone), plain)


def test_gradients_are_those_of_a_materialized_softmax():
    rules = [
        AttentionBias(NEVER, JointTokens(image=LEFT), JointTokens(text=[1, 2])),
        AttentionBias(1.3, JointTokens(text=True), JointTokens(image=True)),
    ]
    transformer, arguments = make(qk_norm="rms_norm"), sd3_inputs()

    def whole(call):
        scores = call.query @ call.key.mT * call.scale
        added = torch.zeros(scores.shape[-2:])
        left = [row * 5 + column for row in range(7) for column in range(2)]
        added[[[place] for place in left], [call.text.start + 1, call.text.start + 2]] = NEVER
        added[call.text, call.image] = 1.3
        return (scores + added).softmax(-1)

    def gradients(in_groups):
        transformer.zero_grad()
        maps = []

        def see(call):
            attention = None if in_groups else whole(call)
            maps.append(call.i2t() if attention is None else attention[:, :, call.image, call.text])
            return None if attention is None else attention @ call.value

        with intercept(transformer, see, bias=rules if in_groups else None):
            output = transformer(**arguments).sample
        (output.square().mean() + maps[-1].square().sum()).backward()
        return output.detach(), [p.grad.clone() for p in transformer.parameters() if p.grad is not None]

    (found, own), (expected, wanted) = gradients(True), gradients(False)
    assert_close(found, expected, rtol=0, atol=1e-5)
    assert len(own) == len(wanted)
    for one, other in zip(own, wanted, strict=True):
        assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_nested_biases_add_up(tiny_backbone):
    model, layout = tiny_backbone.transformer, 49 + 154
    keys = torch.linspace(-1, 1, layout)
    first, second = RULES[:2]
    with intercept(model, bias=first), intercept(model, bias=[second, AttentionBias(keys)]):
        nested = forward(tiny_backbone)
    with intercept(model, bias=lambda layout, turn: [AttentionBias(keys), second, first]):
        together = forward(tiny_backbone)
    assert_close(nested, together, rtol=0, atol=1e-6)
    closed, shares = keys.index_fill(0, torch.tensor([50]), NEVER), []

    def see(call):
        shares.append(call.i2t()[..., 1].amax().item())

    with intercept(model, see, bias=AttentionBias(closed)):
        forward(tiny_backbone)
    assert shares == [0.0] * tiny_backbone.layers


@pytest.mark.parametrize(("name", "guidance"), [("sd3", {}), ("flux-dev", {"true_cfg_scale": 4.0, "negative": ""})])
def test_steps_branches_and_images_are_those_of_the_pipeline(name, guidance):
    backbone = wrap_pipeline(build(name))
    negative = {"negative_prompt": ""} if guidance.pop("negative", None) is not None else {}
    rule = AttentionBias(NEVER, keys=JointTokens(text=[2]), steps=[1], branches="cond", images=[1])
    asked = {"steps": 3, "seed": [1, 2], "progress": False, "size": SIDE} | guidance | negative
    with intercept(backbone.transformer, bias=rule), AttentionRecorder(backbone, tokens=[1, 2], heads="mean") as seen:
        backbone.generate(PROMPT, **asked)
    # the count begins anew with the next call
    with intercept(backbone.transformer, bias=rule):
        with AttentionRecorder(backbone, tokens=[1, 2]) as again:
            backbone.generate(PROMPT, **asked)
        with AttentionRecorder(backbone, tokens=[1, 2]) as third:
            backbone.generate(PROMPT, **asked)
    for recorder in (seen, again, third):
        closed = (recorder.maps.sel(token=2) == 0).all(("layer", "y", "x"))
        assert closed.dims == ("image", "branch", "step")
        assert closed.values.sum() == 1
        assert closed.sel(image=1, branch="cond", step=1)
        assert (recorder.maps.sel(token=1) > 0).all()


def test_a_forward_that_stopped_early_leaves_no_branch_for_the_next_call():
    backbone, maps = wrap_pipeline(build("cogview4")), []
    span = backbone.encode_prompt("a cat").span("cat")
    with place_words(backbone, "a cat", {"cat": LEFT}, strength=math.inf):
        for _ in range(2):
            with intercept(backbone.transformer, lambda call: maps.append(call.i2t(text=span)), stop_after=0):
                backbone.generate("a cat", steps=1, progress=False)
    assert len(maps) == 2
    for found in maps:
        inside = (found > 0).all(dim=(0, 1, 3))
        assert torch.equal(inside, grid_mask(LEFT, backbone.token_grid()).ravel())


def test_areas_by_hand():
    assert grid_mask((0.0, 0.0, 0.5, 1.0), (2, 4)).tolist() == [[True, True, False, False]] * 2
    # half of the second column, and less than half of the third row
    assert grid_mask((0.0, 0.0, 0.5, 0.75), (3, 3)).int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert grid_mask((0.1, 0.1, 0.11, 0.12), (3, 3)).int().tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    large = np.zeros((6, 8), dtype=bool)
    large[:3, 4:] = True
    assert grid_mask(large, (2, 2)).tolist() == [[False, True], [False, False]]
    # the same place as a box and as a mask whose size the grid does not divide
    for edge in range(1, 12):
        mask = np.zeros((1, 12), dtype=bool)
        mask[:, :edge] = True
        assert torch.equal(grid_mask(mask, (1, 8)), grid_mask((0.0, 0.0, edge / 12, 1.0), (1, 8)))
    assert grid_mask(torch.tensor([[True, False]]), (2, 4)).tolist() == [[True, True, False, False]] * 2


def maps_of(backbone, prompt, manager, **generation):
    asked = {"steps": 3, "progress": False} | generation
    with manager, AttentionRecorder(backbone, prompt=prompt, tokens="all") as recorder:
        backbone.generate(prompt, **asked)
    return recorder.maps


def test_words_stay_in_their_place(tiny_backbone):
    prompts = ["a cat and a dog", "a red car"]
    places = [{"cat": LEFT, "dog": (0.5, 0.0, 1.0, 1.0)}, {"red car": np.eye(14, dtype=bool)}]
    spans = [tiny_backbone.encode_prompt(one).span(word) for one, word in zip(prompts, ("cat", "red car"), strict=True)]
    masks = [grid_mask(places[0]["cat"], (7, 7)), grid_mask(places[1]["red car"], (7, 7))]
    kept = place_words(tiny_backbone, prompts, places, strength=math.inf, layers=[1, 2], steps=[0, 2])
    found = maps_of(tiny_backbone, prompts, kept, seed=[4, 5])
    for image, (span, mask) in enumerate(zip(spans, masks, strict=True)):
        # the axis of several prompts holds their tokens by name
        own = found.isel(image=image, token=np.isin(found.token_index.isel(image=image), span))
        inside = torch.from_numpy((own.sel(branch="cond") > 0).all("token").values)
        for step in range(3):
            for layer in range(5):
                open_everywhere = step == 1 or layer not in (1, 2)
                assert torch.equal(inside[step, layer], mask | open_everywhere)
        assert (own.sel(branch="uncond") > 0).all()
    with (
        pytest.raises(RecordingError, match="another text|'a dog' in"),
        place_words(tiny_backbone, "a cat", {"cat": LEFT}),
    ):
        tiny_backbone.generate("a dog", steps=1, progress=False)
    with pytest.raises(InputError, match="2 for a batch of 3"), place_words(tiny_backbone, prompts, places):
        tiny_backbone.generate([*prompts, "a cat"], steps=1, progress=False)


def test_strength_is_the_log_of_a_factor(tiny_backbone):
    odds = []
    prompt = tiny_backbone.encode_prompt("a cat and a dog")
    (word,) = prompt.span("dog")

    def see(call):
        share = call.i2t(text=[word])[..., 0]
        odds.append(share / (1 - share))

    for manager in (
        place_words(tiny_backbone, prompt, {"dog": LEFT}, strength=1.5, layers=0),
        intercept(tiny_backbone.transformer),
    ):
        with manager, intercept(tiny_backbone.transformer, see, layers=0):
            tiny_backbone.predict_velocity(torch.zeros(1, *tiny_backbone.latent_shape), 400.0, prompt)
    mask = grid_mask(LEFT, (7, 7)).ravel()
    assert_close((odds[0] / odds[1]).log(), torch.where(mask, 1.5, -1.5).expand_as(odds[0]), rtol=0, atol=1e-4)


def test_a_layout_is_locked_after_its_step(tiny_backbone):
    prompt, words = "a cat and a dog on the grass", ["cat", "grass"]
    asked = {"seed": [3, 4], "steps": 4}
    with lock_layout(tiny_backbone, prompt, words, 1, read=[2, 3], strength=math.inf) as masks:
        found = maps_of(tiny_backbone, prompt, intercept(tiny_backbone.transformer), **asked)
    own = found.sel(branch="cond", step=1, layer=[2, 3], token=words).mean("layer")
    wanted = layout_masks(torch.from_numpy(own.values))
    assert wanted.any((-2, -1)).any()
    for at, word in enumerate(words):
        assert torch.equal(masks[word], wanted[:, at])
        for image in range(2):
            read = (found.sel(token=word, branch="cond", image=image) > 0).values
            assert read[:2].all()
            if masks[word][image].any():
                assert (read[2:] == masks[word][image].numpy()).all()


@pytest.mark.parametrize("name", ["sd3", "flux-dev", "qwen-image"])
def test_kinds_of_tokens_are_left_out(name):
    backbone = wrap_pipeline(build(name))
    prompt = backbone.encode_prompt("a red car")
    kinds = [kind for kind in ("start", "pad", "template", "zero") if kind in {token.kind for token in prompt.tokens}]
    assert kinds
    with without(backbone, *kinds, prompt="a red car", layers=[1]), AttentionRecorder(backbone, tokens="all") as seen:
        backbone.predict_velocity(torch.zeros(1, *backbone.latent_shape), 500.0, prompt)
    got = seen.maps.isel(image=0, branch=0, step=0).sum(("y", "x"))
    left_out = np.array([token.kind in kinds for token in prompt.tokens])
    assert ((got.sel(layer=1).values == 0) == left_out).all()
    assert (got.sel(layer=2) > 0).all()
    with (
        pytest.raises(InputError, match="kinds of tokens that 'a red car' has"),
        without(backbone, "template" if name != "qwen-image" else "start", prompt="a red car"),
    ):
        pass


def test_each_generation_locks_its_own_layout(tiny_backbone):
    prompt, masks, asked = "a cat and a dog on the grass", [], {"steps": 2, "progress": False}
    edited = perturbed_guidance(tiny_backbone, blur(), 1, 2.0)
    with edited, lock_layout(tiny_backbone, prompt, ["cat", "grass"], 0, read=[2]) as found:
        for seeds in ([3], [4, 5], [4, 5]):
            tiny_backbone.generate([prompt] * len(seeds), seed=seeds, **asked)
            masks.append(dict(found))
    assert [len(mask["grass"]) for mask in masks] == [1, 2, 2]
    assert any(not torch.equal(masks[0][word], masks[1][word][:1]) for word in masks[0])
    for word in ("cat", "grass"):
        assert torch.equal(masks[1][word], masks[2][word])


def test_a_layout_that_is_never_held_is_told(tiny_backbone):
    noisy = torch.zeros(2, *tiny_backbone.latent_shape)
    with pytest.warns(UserWarning, match="no forward came after step 1"):
        with lock_layout(tiny_backbone, "a cat", ["cat"], 1) as masks:
            tiny_backbone.generate("a cat", steps=2, progress=False)
    assert not masks
    with (
        pytest.raises(RecordingError, match="one timestep for all images with lock_layout"),
        lock_layout(tiny_backbone, "a cat", ["cat"], 1),
    ):
        tiny_backbone.predict_velocity(noisy, torch.tensor([100.0, 900.0]), "a cat")


def test_one_prompt_has_places_of_its_own_for_each_image(tiny_backbone):
    prompt, places = "a cat", [{"cat": LEFT}, {"cat": (0.5, 0.0, 1.0, 1.0)}]
    kept = place_words(tiny_backbone, [prompt] * 2, places, strength=math.inf)
    found = maps_of(tiny_backbone, [prompt] * 2, kept, steps=1, seed=[1, 2])
    for image, each in enumerate(places):
        read = torch.from_numpy((found.sel(token="cat", branch="cond", step=0, image=image) > 0).values)
        assert (read == grid_mask(each["cat"], (7, 7))).all()


def test_words_behind_pads_stay_in_their_place():
    backbone = wrap_pipeline(build("cogview4"))
    prompts = ["a cat", "a very red car and a big dog near the old green tree on the grass"]
    short, long = encoded_prompts(backbone, backbone.family, prompts)
    spans = [short.span("cat"), long.span("dog")]
    assert len(backbone.encode_prompt(prompts[0]).tokens) <= spans[0][0]
    kept = place_words(backbone, prompts, [{"cat": LEFT}, {"dog": LEFT}], strength=math.inf)
    found = maps_of(backbone, prompts, kept, steps=1, seed=[1, 2]).sel(branch="cond", step=0)
    inside = grid_mask(LEFT, backbone.token_grid()).numpy()
    for image, word in enumerate(("cat", "dog")):
        own = found.isel(image=image, token=np.isin(found.token_index.isel(image=image), spans[image]))
        pieces = zip(own.token_start.values, own.token_stop.values, strict=True)
        assert "".join(prompts[image][start:stop] for start, stop in pieces) == word
        assert ((own > 0).transpose(..., "y", "x").values == inside).all()


@pytest.mark.parametrize("name", ["sd3", "ernie-image"])
def test_the_negative_prompt_is_the_one_that_runs(name):
    backbone, asked = wrap_pipeline(build(name)), {"steps": 1, "progress": False, "negative_prompt": "ugly bad"}
    with pytest.raises(RecordingError, match="expected negative_prompt ''.*another text"):
        with without(backbone, "start", prompt="a cat"):
            backbone.generate("a cat", **asked)
    with (
        without(backbone, "word", prompt="a cat", negative_prompt="ugly bad"),
        AttentionRecorder(backbone, tokens="all") as recorder,
    ):
        backbone.generate("a cat", **asked)
    for branch, text in (("cond", "a cat"), ("uncond", "ugly bad")):
        closed = (recorder.maps.sel(branch=branch) == 0).all(("image", "step", "layer", "y", "x")).values
        prompt = backbone.encode_prompt(text)
        # behind it the shorter one of ERNIE-Image is masked
        assert tuple(np.flatnonzero(closed[: len(prompt.tokens)])) == prompt.indices("word")


def test_only_guidance_needs_the_negative_prompt(tiny_backbone):
    prompt, seen = tiny_backbone.encode_prompt("a cat"), []
    bare = tiny_backbone.transformer
    with without(bare, "pad", prompt=prompt), intercept(bare, lambda call: seen.append(call.i2t(text=prompt.pads))):
        tiny_backbone.predict_velocity(torch.zeros(1, *tiny_backbone.latent_shape), 500.0, prompt)
    assert seen and all((each == 0).all() for each in seen)
    with pytest.raises(InputError, match="got the text ''"), without(bare, "pad", prompt=prompt):
        tiny_backbone.generate("a cat", steps=1, progress=False)
    lumina = wrap_pipeline(build("lumina2"))
    with without(lumina, "start", prompt="a cat"):
        lumina.generate("a cat", steps=1, guidance_scale=1.0, progress=False)
        with pytest.raises(RecordingError, match="expected negative_prompt ''.*or run without guidance"):
            lumina.generate("a cat", steps=1, progress=False)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_perturbed_branch_reads_what_the_prompt_may(tiny_backbone, scale):
    parts = {name: part for name, part in tiny_backbone.pipe.components.items() if not name.startswith(("im", "fe"))}
    pipe = StableDiffusion3PAGPipeline(**parts, pag_applied_layers=["blocks.2"])
    pipe.set_progress_bar_config(disable=True)
    pads = list(tiny_backbone.encode_prompt("a cat").pads)
    with without(pipe, "pad", prompt="a cat"), AttentionRecorder(pipe, tokens=pads) as recorder:
        pipe("a cat", num_inference_steps=1, guidance_scale=scale, height=56, width=56, output_type="latent")
    perturbed = recorder.maps.sel(branch="perturbed", layer=[0, 1, 3, 4])
    assert (perturbed == 0).all()
    assert (recorder.maps.sel(branch="cond") == 0).all()


CONCEPTS = ["snow", "blue bus"]


@pytest.mark.parametrize("name", ["sd3", "sd3.5", "flux-dev", "flux-kontext"])
def test_words_outside_the_prompt_change_neither_prediction_nor_maps(name):
    backbone = wrap_pipeline(build(name), name)
    asked = {"prompt": PROMPT, "tokens": "all", "direction": ("i2t", "t2i", "masses")}
    with AttentionRecorder(backbone, **asked) as alone:
        plain = forward(backbone)
    directions = (*asked.pop("direction"), "i2c", "c2i")
    with AttentionRecorder(backbone, **asked, direction=directions, concepts=CONCEPTS) as both:
        beside = forward(backbone)
    assert_close(beside, plain, rtol=0, atol=1e-5)
    for direction in ("i2t", "t2i", "masses"):
        np.testing.assert_allclose(both.recording[direction], alone.recording[direction], atol=1e-6)
    # a concept does not read the others
    with AttentionRecorder(backbone, direction=("i2c", "c2i"), concepts=CONCEPTS[1:]) as one:
        forward(backbone)
    for direction in ("i2c", "c2i"):
        found = both.recording[direction].sel(concept=["blue bus"])
        np.testing.assert_allclose(found, one.recording[direction], atol=1e-5, rtol=1e-3)
        np.testing.assert_array_equal(both.recording.phrase("snow", direction), both.recording[direction][..., 0, :, :])


@pytest.mark.parametrize("name", ["sd3", "flux-dev"])
def test_maps_of_words_outside_the_prompt_by_hand(name):
    backbone = wrap_pipeline(build(name), name)
    span, seen = encode_concepts(backbone, CONCEPTS).spans[1], []
    assert len(span) > 1

    def see(call):
        scores = call.query.double() @ call.key.double().mT * call.scale
        own = slice(call.concepts.start + span[0], call.concepts.start + span[-1] + 1)
        keys = [*range(call.image.start, call.image.stop), *range(own.start, own.stop)]
        read = scores[:, :, own][..., keys].softmax(-1)[..., : call.image_tokens]
        prompt = [at for at in range(scores.shape[-1]) if not call.concepts.start <= at < call.concepts.stop]
        given = scores[:, :, call.image, own] - scores[:, :, call.image][..., prompt].logsumexp(-1, keepdim=True)
        seen.append((read.mean(1).mean(1), given.exp().mean(1).mean(-1)))

    with AttentionRecorder(backbone, direction=("i2c", "c2i"), concepts=CONCEPTS) as recorder:
        with intercept(backbone.transformer, see):
            forward(backbone)
    for direction, wanted in zip(("c2i", "i2c"), zip(*seen, strict=True), strict=True):
        found = recorder.recording[direction].sel(concept="blue bus", branch="cond").squeeze("step").values
        np.testing.assert_allclose(found.reshape(2, len(seen), -1), torch.stack(wanted, 1), atol=1e-5, rtol=1e-3)


def test_words_outside_the_prompt_go_with_generation_and_edits(tiny_backbone, tmp_path):
    asked = {"steps": 2, "progress": False, "seed": [1, 2]}

    def managers():
        return apply_edit(tiny_backbone, blur(), 2), perturbed_guidance(tiny_backbone, blur(), 1, 2.0)

    first, second = managers()
    with first, second:
        plain = tiny_backbone.generate(PROMPT, **asked)
    first, second = managers()
    recorder = AttentionRecorder(tiny_backbone, prompt=PROMPT, direction=("i2t", "c2i"), concepts=CONCEPTS)
    with first, second, recorder, place_words(tiny_backbone, PROMPT, {"cars": (0, 0, 1, 1)}, strength=math.inf):
        beside = tiny_backbone.generate(PROMPT, **asked)
    for one, other in zip(plain, beside, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1
    assert recorder.recording["c2i"].dims == ("image", "branch", "step", "layer", "concept", "y", "x")
    assert recorder.recording["c2i"].sizes["step"] == 2
    assert open_recording(recorder.save(tmp_path / "both.nc")) == recorder.recording
    with pytest.raises(RecordingError, match="pass all words in one list"), recorder, recorder_of(tiny_backbone):
        pass


def test_weights_of_words_outside_the_prompt_are_made_once(tiny_backbone, monkeypatch):
    made, weights = [], Concepts.weights.fget
    monkeypatch.setattr(Concepts, "weights", property(lambda self: made.append(self) or weights(self)))
    with AttentionRecorder(tiny_backbone, direction=("i2c", "c2i"), concepts=CONCEPTS):
        forward(tiny_backbone)
    assert len(made) == 1


def recorder_of(backbone):
    return AttentionRecorder(backbone, direction="c2i", concepts=["sky"])


def test_a_family_with_positions_on_text_is_refused():
    with pytest.raises(InputError, match="family chroma: use one of sd3 and flux"):
        recorder_of(wrap_pipeline(build("chroma")))


def test_a_bias_that_closes_all_is_refused(tiny_backbone):
    with (
        pytest.raises(InputError, match="an open key for each query"),
        intercept(tiny_backbone.transformer, bias=AttentionBias(NEVER, JointTokens(text=[3]))),
    ):
        forward(tiny_backbone)
    with (
        pytest.raises(InputError, match="weight for each of 2 keys, got 3"),
        intercept(tiny_backbone.transformer, bias=AttentionBias(torch.zeros(3), keys=JointTokens(text=[3, 4]))),
    ):
        forward(tiny_backbone)
    noisy = torch.zeros(2, *tiny_backbone.latent_shape)
    with (
        pytest.raises(RecordingError, match="one timestep"),
        intercept(tiny_backbone.transformer, bias=AttentionBias(1.0, steps=0)),
    ):
        tiny_backbone.predict_velocity(noisy, torch.tensor([100.0, 900.0]), PROMPT)


def test_a_function_may_give_one_bias(tiny_backbone):
    with intercept(tiny_backbone.transformer, bias=RULES[1]):
        wanted = forward(tiny_backbone)
    with intercept(tiny_backbone.transformer, bias=lambda layout, turn: RULES[1]):
        assert torch.equal(forward(tiny_backbone), wanted)


def test_words_outside_the_prompt_need_a_family_that_takes_them(tiny_backbone):
    concepts = encode_concepts(tiny_backbone, ["sky"])
    with (
        pytest.raises(InputError, match="got one of the family chroma"),
        intercept(build("chroma").transformer, concepts=concepts),
    ):
        pass


@pytest.mark.parametrize("weight", [1e5, -1e5, 1e300, torch.tensor([1e5, -1e5], dtype=torch.float64)])
def test_large_weights_stay_finite_in_half_precision(weight):
    keys, none = torch.zeros(2, 5, dtype=torch.bool)
    keys[[1, 3]] = True
    like = torch.zeros(1, dtype=torch.float16)
    rule = AttentionBias(weight, keys=JointTokens(text=[1, 3]))
    found = group_bias([Rule(rule.weight, ~none, keys)] * 2, 1, like)
    limit = torch.finfo(torch.float16).max
    signs = torch.as_tensor(weight, dtype=torch.float64).sign().expand(2)
    assert found.dtype == torch.float16
    assert found[[1, 3]].tolist() == (signs * limit).tolist()
    assert found[[0, 2, 4]].tolist() == [0, 0, 0]
