"""Prompts, images, noise, denoising and generation, on a tiny random SD3."""

from dataclasses import replace

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import SENTENCES, tiny_pipeline
from packaging.version import Version
from tiny_models import BUILDERS, VIDEO_BUILDERS, build, tiny_flux, wrapped
from transformers import CLIPTokenizer

from seg4diff_tools.backbones.loading import wrap_pipeline
from seg4diff_tools.caching import model_fingerprint
from seg4diff_tools.errors import InputError, PromptError
from seg4diff_tools.images import crop_box, fit_image, open_images

SPAN_PROMPT = "two red cars and a Red  car"
# hand-worked tokens: two red ca r s and a Red car
PIECES = ["two", "red", "ca", "r", "s", "and", "a", "Red", "car"]


@pytest.fixture
def picture(tmp_path):
    """A 31 x 45 photograph on disk."""
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (31, 45, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(path)
    return path


def test_facts_of_the_model(tiny_backbone):
    assert (tiny_backbone.layers, tiny_backbone.heads, tiny_backbone.token_px) == (5, 3, 8)
    assert tiny_backbone.image_size == 56
    assert tiny_backbone.latent_shape == (16, 14, 14)
    assert tiny_backbone.token_grid() == (7, 7)
    assert tiny_backbone.token_grid(torch.zeros(1, 16, 10, 22)) == (5, 11)
    assert tiny_backbone.expert_layer is None
    assert tiny_backbone.family.name == "sd3"
    assert not any(parameter.requires_grad for parameter in tiny_backbone.transformer.parameters())


class TestPrompts:
    def test_tokens_by_hand(self, tiny_backbone):
        prompt = tiny_backbone.encode_prompt(SPAN_PROMPT, zero_tokens=5)
        assert [token.text for token in prompt.tokens[:12]] == ["<start>", *PIECES, "<end>", "<pad>"]
        kinds = ["start"] + ["word"] * 9 + ["end"] + ["pad"] * 66 + ["zero"] * 5
        assert [token.kind for token in prompt.tokens] == kinds
        assert [token.index for token in prompt.tokens] == list(range(82))
        assert prompt.words == ("two", "red", "cars", "and", "a", "Red", "car")
        assert prompt.pads == tuple(range(11, 77))
        assert prompt.indices("start", "end") == (0, 10)

    def test_tokens_are_those_that_the_pipeline_encodes(self, tiny_backbone):
        ids = tiny_backbone.pipe.tokenizer("a cat, a dog").input_ids
        prompt = tiny_backbone.encode_prompt("a cat, a dog")
        assert len(ids) == len([token for token in prompt.tokens if token.kind in ("start", "word", "end")])

    @pytest.mark.parametrize(
        ("phrase", "occurrence", "expected"),
        [
            ("red car", None, (8, 9)),
            ("RED   CAR", None, (8, 9)),
            ("cars", None, (3, 4, 5)),
            ("red", None, (2, 8)),
            ("red", 0, (2,)),
            ("red", 1, (8,)),
            ("two red cars", None, (1, 2, 3, 4, 5)),
        ],
    )
    def test_spans_by_hand(self, tiny_backbone, phrase, occurrence, expected):
        assert tiny_backbone.encode_prompt(SPAN_PROMPT).span(phrase, occurrence) == expected

    def test_words_with_accents_and_punctuation(self, tiny_backbone):
        prompt = tiny_backbone.encode_prompt("a cafe\u0301, (dog)!")
        assert prompt.text == "a café, (dog)!"
        assert "".join(prompt.tokens[i].text for i in prompt.span("dog")) == "dog"
        assert prompt.span("caf\u00e9") == prompt.span("cafe\u0301")
        with pytest.raises(PromptError):
            prompt.span("caf")

    def test_a_missing_word_names_the_words_and_the_closest(self, tiny_backbone):
        prompt = tiny_backbone.encode_prompt("a red car and a tree")
        with pytest.raises(PromptError, match=r"'rad car' .* a, red, car, and, a, tree; did you mean 'red car'\?"):
            prompt.span("rad car")
        with pytest.raises(
            PromptError, match=r"^'zzz' is not in the prompt, whose words are: a, red, car, and, a, tree$"
        ):
            prompt.span("zzz")
        with pytest.raises(PromptError, match="has no words"):
            tiny_backbone.encode_prompt("").span("cat")
        with pytest.raises(PromptError, match="a word or several of the prompt"):
            prompt.span(" ")

    @pytest.mark.parametrize("occurrence", [-1, 2])
    def test_occurrence_out_of_range(self, tiny_backbone, occurrence):
        with pytest.raises(PromptError, match=r"'red' occurs 2 time\(s\).* from 0 to 1"):
            tiny_backbone.encode_prompt(SPAN_PROMPT).span("red", occurrence)

    @pytest.mark.parametrize("zero_tokens", [0, 1, 77, 256])
    def test_zero_vectors_stand_where_t5_would(self, tiny_backbone, zero_tokens):
        prompt = tiny_backbone.encode_prompt("a cat", zero_tokens=zero_tokens)
        assert prompt.inputs["encoder_hidden_states"].shape == (1, 77 + zero_tokens, 43)
        assert prompt.inputs["pooled_projections"].shape == (1, 28)
        assert not prompt.inputs["encoder_hidden_states"][:, 77:].any()
        assert (prompt.inputs["encoder_hidden_states"][:, :77, :40] != 0).any(dim=-1).all()

    def test_same_embeds_as_a_plain_pipeline_call(self, tiny_backbone):
        pipe = tiny_backbone.pipe
        expected, _, pooled, _ = pipe.encode_prompt("a dog", None, None, do_classifier_free_guidance=False)
        prompt = tiny_backbone.encode_prompt("a dog", zero_tokens=256)
        assert torch.equal(prompt.inputs["encoder_hidden_states"], expected)
        assert torch.equal(prompt.inputs["pooled_projections"], pooled)

    def test_a_list_equals_its_prompts(self, tiny_backbone):
        together = tiny_backbone.encode_prompt(SENTENCES)
        for text, prompt in zip(SENTENCES, together, strict=True):
            alone = tiny_backbone.encode_prompt(text)
            assert prompt.tokens == alone.tokens
            torch.testing.assert_close(prompt.inputs["encoder_hidden_states"], alone.inputs["encoder_hidden_states"])
            torch.testing.assert_close(prompt.inputs["pooled_projections"], alone.inputs["pooled_projections"])

    def test_overflow_names_the_words_that_do_not_fit(self, tiny_backbone):
        fits = "cat " * 74
        assert len(tiny_backbone.encode_prompt(fits + "dog").indices("word")) == 75
        # "cars" is ca, r, s: its first piece would fit
        with pytest.raises(PromptError, match=r"has 78 tokens and the text encoder reads 75.*do not fit: cars tree; "):
            tiny_backbone.encode_prompt(fits + "cars tree")

    def test_what_the_tokenizer_would_take_for_the_end_is_refused(self, tiny_backbone):
        with pytest.raises(PromptError, match=r"no token for '<\|endoftext\|>'"):
            tiny_backbone.encode_prompt("a cat <|endoftext|> dog")

    def test_encoders_that_split_differently_are_told(self):
        pipe = tiny_pipeline()
        pipe.tokenizer_2 = CLIPTokenizer(vocab=pipe.tokenizer_2.get_vocab(), merges=[], model_max_length=77)
        with pytest.warns(UserWarning, match="split 'a cat' into different tokens"):
            prompt = wrap_pipeline(pipe).encode_prompt("a cat")
        assert [token.text for token in prompt.tokens[:4]] == ["<start>", "a", "cat", "<end>"]

    @pytest.mark.parametrize("zero_tokens", [-1, 513])
    def test_bad_number_of_zero_vectors(self, tiny_backbone, zero_tokens):
        with pytest.raises(InputError, match="zero_tokens from 0 to 512"):
            tiny_backbone.encode_prompt("a cat", zero_tokens=zero_tokens)
        with pytest.raises(InputError, match="expected prompt, at least one"):
            tiny_backbone.encode_prompt([])


class TestClassPrompts:
    def test_one_name_inside_another(self, tiny_backbone):
        (prompt,) = tiny_backbone.class_prompts(["fire engine", "fire", "Cat"])
        assert prompt.text == "fire engine fire Cat"
        assert prompt.classes == {"fire engine": (1, 2), "fire": (3,), "Cat": (4,)}
        assert prompt.span("fire") == (1, 3)

    def test_white_space_and_accents_in_names(self, tiny_backbone):
        (prompt,) = tiny_backbone.class_prompts([" fire\t engine ", "cafe\u0301"])
        assert prompt.text == "fire engine café"
        assert prompt.classes[" fire\t engine "] == (1, 2)
        assert prompt.classes["cafe\u0301"] == tuple(range(3, 1 + len(prompt.indices("word"))))

    def test_many_names_are_spread_evenly_over_few_prompts(self, tiny_backbone):
        names = [f"{color} {thing}" for color in ("red", "blue") for thing in ("cat", "dog", "car", "bus", "tree")]
        names += [f"grass {digits:02d}" for digits in range(42)]
        lengths = [len(tiny_backbone.pipe.tokenizer(name, add_special_tokens=False).input_ids) for name in names]
        prompts = tiny_backbone.class_prompts(names)
        assert len(prompts) == -(-sum(lengths) // 75)
        assert [name for prompt in prompts for name in prompt.classes] == names
        for prompt in prompts:
            spans = list(prompt.classes.values())
            assert sum(spans, ()) == prompt.indices("word")
            for name, span in prompt.classes.items():
                assert "".join(prompt.tokens[i].text for i in span) == name.replace(" ", "")
        words = [len(prompt.indices("word")) for prompt in prompts]
        assert max(words) - min(words) <= 2 * max(lengths)

    def test_names_past_a_cut_have_no_token(self, tiny_backbone):
        names = [f"cat {digits:02d}" for digits in range(26)]
        counts = {len(tiny_backbone.pipe.tokenizer(name, add_special_tokens=False).input_ids) for name in names}
        assert counts == {3}
        (prompt,) = tiny_backbone.class_prompts(names, cut_prompt=True)
        assert [token.kind for token in prompt.tokens[73:78]] == ["word", "word", "word", "end", "zero"]
        assert prompt.classes == {name: tuple(range(3 * i + 1, min(3 * i + 4, 77))) for i, name in enumerate(names)}
        assert prompt.classes["cat 24"] == (73, 74, 75)
        assert prompt.classes["cat 25"] == (76,)
        # past the cut the text does not count
        (fewer,) = tiny_backbone.class_prompts(names[:25])
        assert fewer.classes == {name: prompt.classes[name] for name in names[:25]}
        torch.testing.assert_close(prompt.inputs["encoder_hidden_states"], fewer.inputs["encoder_hidden_states"])
        (more,) = tiny_backbone.class_prompts([*names, "dog"], cut_prompt=True)
        assert more.classes["dog"] == ()

    def test_a_prompt_that_fits_is_not_cut(self, tiny_backbone):
        names = ["fire engine", "fire", "Cat"]
        (cut,), (split) = (tiny_backbone.class_prompts(names, cut_prompt=cut) for cut in (True, False))
        assert (cut.text, cut.tokens, cut.classes) == (split[0].text, split[0].tokens, split[0].classes)

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ([], "at least one class name"),
            (["cat", "dog", "Cat "], "'Cat ' is given twice"),
            (["cat", " "], "with letters"),
            ("cat", r"got the string 'cat': write \['cat'\]"),
            (["cat " * 76], "do not fit"),
        ],
    )
    def test_bad_class_lists(self, tiny_backbone, names, message):
        with pytest.raises(InputError, match=message):
            tiny_backbone.class_prompts(names)


class TestImages:
    def test_every_kind_of_image_gives_the_same_latent(self, tiny_backbone, picture):
        image = PIL.Image.open(picture)
        array = np.asarray(image)
        tensor = torch.from_numpy(array.copy()).permute(2, 0, 1) / 255
        expected = tiny_backbone.encode_image(picture)
        assert expected.shape == (1, 16, 14, 14)
        for same in (str(picture), image, array, tensor, array[None], tensor[None], [picture]):
            assert torch.equal(tiny_backbone.encode_image(same), expected)

    def test_a_batch_equals_its_images(self, tiny_backbone):
        images = [np.random.default_rng(i).integers(0, 256, (20 + i, 30, 3), dtype=np.uint8) for i in range(3)]
        together = tiny_backbone.encode_image(images, size=(40, 56))
        assert together.shape == (3, 16, 10, 14)
        alone = torch.cat([tiny_backbone.encode_image(image, size=(40, 56)) for image in images])
        torch.testing.assert_close(together, alone)

    def test_latents_are_shifted_and_scaled_posterior_means(self, tiny_backbone):
        image = np.random.default_rng(3).integers(0, 256, (56, 56, 3), dtype=np.uint8)
        pixels = torch.from_numpy(image / 127.5 - 1).float().permute(2, 0, 1)[None]
        expected = (tiny_backbone.pipe.vae.encode(pixels).latent_dist.mean - 0.0609) * 1.5305
        torch.testing.assert_close(tiny_backbone.encode_image(image), expected)

    def test_decode_is_the_inverse_of_the_scaling(self, tiny_backbone):
        raw = torch.randn(2, 16, 10, 14, generator=torch.Generator().manual_seed(0))
        expected = tiny_backbone.pipe.image_processor.postprocess(tiny_backbone.pipe.vae.decode(raw).sample.detach())
        images = tiny_backbone.decode((raw - 0.0609) * 1.5305)
        assert [image.size for image in images] == [(56, 40)] * 2
        for image, wanted in zip(images, expected, strict=True):
            assert np.abs(np.asarray(image, int) - np.asarray(wanted, int)).max() <= 1

    @pytest.mark.parametrize(
        ("image_size", "size", "box"),
        [
            ((31, 45), (56, 56), (7, 0, 38, 31)),
            ((45, 31), (56, 56), (0, 7, 31, 38)),
            ((40, 60), (40, 20), (20, 0, 40, 40)),
            ((40, 60), (20, 30), (0, 0, 60, 40)),
        ],
    )
    def test_crop_boxes_by_hand(self, image_size, size, box):
        assert crop_box(image_size, size) == box

    def test_crop_keeps_the_middle_and_resize_keeps_all(self):
        pixels = np.zeros((8, 24, 3), np.uint8)
        pixels[:, 8:16] = 200
        (image,) = open_images(pixels)
        assert (np.asarray(fit_image(image, (8, 8), "crop")) == 200).all()
        assert (np.asarray(fit_image(image, (8, 8), "resize"))[:, 0] < 50).all()

    @pytest.mark.parametrize(
        ("mode", "color", "expected"),
        [
            ("L", 7, (7, 7, 7)),
            ("1", 1, (255, 255, 255)),
            ("RGBA", (9, 9, 9, 0), (255, 255, 255)),
            ("RGBA", (9, 8, 7, 255), (9, 8, 7)),
            ("LA", (3, 0), (255, 255, 255)),
            ("I;16", 257 * 5, (5, 5, 5)),
            ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
        ],
    )
    def test_any_mode_becomes_rgb_on_white(self, mode, color, expected):
        (image,) = open_images(PIL.Image.new(mode, (2, 3), color))
        assert image.mode == "RGB"
        assert image.getpixel((1, 2)) == expected

    def test_palette_with_transparency(self, tmp_path):
        image = PIL.Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.putpixel((1, 0), 1)
        image.save(tmp_path / "p.png", transparency=0)
        (opened,) = open_images(tmp_path / "p.png")
        assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (40, 50, 60)]

    def test_photographs_stand_upright(self, tmp_path):
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        PIL.Image.new("RGB", (5, 3)).save(tmp_path / "phone.jpg", exif=exif)
        assert open_images(tmp_path / "phone.jpg")[0].size == (3, 5)

    def test_missing_truncated_and_foreign_files(self, tmp_path, picture):
        with pytest.raises(InputError, match=r"no image file '.*none.png': check the path"):
            open_images(tmp_path / "none.png")
        cut = tmp_path / "cut.png"
        cut.write_bytes(picture.read_bytes()[:1500])
        with pytest.raises(InputError, match=r"'.*cut.png' is damaged"):
            open_images(cut)
        text = tmp_path / "text.png"
        text.write_text("not an image")
        with pytest.raises(InputError, match=r"'.*text.png' is not an image"):
            open_images(text)
        with pytest.raises(InputError, match="is damaged or cannot be read"):
            open_images(tmp_path)

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (np.zeros((4, 4, 3), np.float32), "uint8 array .* got float32"),
            (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\)"),
            (torch.zeros(4, 4, 3), r"float tensor \[3 y x\]"),
            (torch.full((3, 4, 4), -1.0), "from 0 to 1, got -1 to -1"),
            (torch.full((3, 4, 4), float("nan")), "from 0 to 1"),
            ([], "at least one image"),
            (PIL.Image.new("F", (2, 2)), "mode 'F'"),
        ],
    )
    def test_bad_images(self, image, message):
        with pytest.raises(InputError, match=message):
            open_images(image)

    @pytest.mark.parametrize(
        ("size", "advice"),
        [
            ((41, 56), "try 40 instead of 41"),
            (96, "up to 88, got 96 x 96: try 88"),
            (0, "expected size 1 or more, got 0"),
        ],
    )
    def test_sizes_that_the_model_cannot_take(self, tiny_backbone, size, advice):
        with pytest.raises(InputError, match=advice):
            tiny_backbone.encode_image(np.zeros((9, 9, 3), np.uint8), size=size)

    def test_unknown_fit(self):
        # as a user meets it, without the test run's type checking
        unchecked = getattr(fit_image, "__wrapped__", fit_image)
        with pytest.raises(InputError, match="fit, one of 'resize', 'crop'"):
            unchecked(PIL.Image.new("RGB", (3, 3)), (8, 8), "stretch")


class TestNoise:
    def test_schedule_by_hand(self, tiny_backbone):
        timesteps, sigmas = tiny_backbone.schedule(28)
        # 28 equal steps from 1 to 3/1002, then shift 3: sigma = 3 s / (1 + 2 s)
        share = 1 - 20 / 27 * (1 - 3 / 1002)
        assert sigmas[-8].item() == pytest.approx(3 * share / (1 + 2 * share), abs=1e-6)
        assert timesteps[-8].item() == pytest.approx(515.07, abs=0.01)
        assert (timesteps[0].item(), sigmas[0].item(), len(sigmas)) == (1000.0, 1.0, 28)

    def test_the_pipelines_scheduler_is_left_alone(self, tiny_backbone):
        before = tiny_backbone.pipe.scheduler.timesteps.clone()
        tiny_backbone.add_noise(torch.zeros(1, 16, 14, 14), steps=11)
        assert torch.equal(tiny_backbone.pipe.scheduler.timesteps, before)

    def test_flow_matching_mixture(self, tiny_backbone):
        noise, first = tiny_backbone.add_noise(torch.zeros(1, 16, 14, 14), steps_from_end=28)
        mixed, timestep = tiny_backbone.add_noise(torch.ones(1, 16, 14, 14), steps_from_end=8)
        sigma = timestep.item() / 1000
        assert first.item() == 1000
        torch.testing.assert_close(mixed, (1 - sigma) + sigma * noise)

    def test_batches_and_several_steps_equal_singles(self, tiny_backbone):
        latents = torch.randn(3, 16, 10, 14, generator=torch.Generator().manual_seed(1))
        noisy, timesteps = tiny_backbone.add_noise(latents, [1, 8], seed=[5, 6, 7])
        assert noisy.shape == (6, 16, 10, 14)
        for image in range(3):
            for i, step in enumerate([1, 8]):
                alone, timestep = tiny_backbone.add_noise(latents[image : image + 1], step, seed=5 + image)
                assert torch.equal(noisy[2 * image + i], alone[0])
                assert timesteps[2 * image + i] == timestep[0]
        same, _ = tiny_backbone.add_noise(torch.zeros_like(latents), seed=5)
        assert torch.equal(same[0], same[2])

    @pytest.mark.parametrize("wanted", [0, 29, [8, 40], []])
    def test_steps_outside_the_schedule(self, tiny_backbone, wanted):
        with pytest.raises(InputError, match=r"expected steps_from_end(, at least one| from 1 to 28)"):
            tiny_backbone.add_noise(torch.zeros(1, 16, 14, 14), wanted)

    def test_wrong_numbers(self, tiny_backbone):
        with pytest.raises(InputError, match=r"expected seed, .* got 3 for 2 images"):
            tiny_backbone.add_noise(torch.zeros(2, 16, 14, 14), seed=[1, 2, 3])
        with pytest.raises(InputError, match="expected steps 1 or more, got 0"):
            tiny_backbone.schedule(0)


class TestDenoise:
    def test_dual_attention(self, build_backbone):
        backbone = build_backbone(dual_attention_layers=(0, 1), qk_norm="rms_norm")
        latents = torch.zeros(1, *backbone.latent_shape)
        assert backbone.predict_velocity(latents, 500.0, "a cat").shape == latents.shape

    def test_prompts_are_shared_out_over_steps(self, tiny_backbone):
        latents = torch.randn(2, 16, 10, 14, generator=torch.Generator().manual_seed(2))
        prompts = tiny_backbone.encode_prompt(["a cat", "two dogs"])
        noisy, timesteps = tiny_backbone.add_noise(latents, [3, 8, 20])
        velocity = tiny_backbone.predict_velocity(noisy, timesteps, prompts)
        assert not velocity.requires_grad
        for k in range(6):
            alone = tiny_backbone.predict_velocity(noisy[k : k + 1], timesteps[k].item(), prompts[k // 3])
            torch.testing.assert_close(velocity[k : k + 1], alone)

    def test_a_string_will_do(self, tiny_backbone):
        latents = torch.zeros(1, *tiny_backbone.latent_shape)
        expected = tiny_backbone.predict_velocity(latents, 100.0, tiny_backbone.encode_prompt("a cat"))
        assert torch.equal(tiny_backbone.predict_velocity(latents, 100.0, "a cat"), expected)

    def test_wrong_numbers_of_prompts(self, tiny_backbone):
        latents = torch.zeros(3, *tiny_backbone.latent_shape)
        with pytest.raises(InputError, match="got 2 for 3 latents"):
            tiny_backbone.predict_velocity(latents, 100.0, ["a cat", "a dog"])
        with pytest.raises(InputError, match="expected prompt, at least one"):
            tiny_backbone.predict_velocity(latents, 100.0, [])
        mixed = [tiny_backbone.encode_prompt("a cat", zero_tokens=n) for n in (0, 1, 1)]
        with pytest.raises(InputError, match=r"one length, got \[77, 78\]"):
            tiny_backbone.predict_velocity(latents, 100.0, mixed)


class TestGenerate:
    def test_same_as_the_pipeline_itself(self, tiny_backbone):
        (image,) = tiny_backbone.generate("a red car", steps=2, seed=4, zero_tokens=256, guidance_scale=5.0)
        noise, _ = tiny_backbone.add_noise(torch.zeros(1, *tiny_backbone.latent_shape), steps_from_end=28, seed=4)
        pipe = tiny_backbone.pipe
        expected = pipe("a red car", num_inference_steps=2, guidance_scale=5.0, latents=noise).images[0]
        assert np.array_equal(np.asarray(image), np.asarray(expected))

    def test_batches_equal_singles(self, tiny_backbone):
        together = tiny_backbone.generate(["a cat", "a dog"], steps=2, seed=[1, 2], size=(40, 56), progress=False)
        assert [image.size for image in together] == [(56, 40)] * 2
        for prompt, seed, image in zip(["a cat", "a dog"], [1, 2], together, strict=True):
            (alone,) = tiny_backbone.generate(prompt, steps=2, seed=seed, size=(40, 56), progress=False)
            assert np.abs(np.asarray(image, int) - np.asarray(alone, int)).max() <= 1

    def test_several_seeds_of_one_prompt(self, tiny_backbone):
        first, second = tiny_backbone.generate("a cat", steps=1, seed=[1, 2], progress=False, guidance_scale=1.0)
        assert not np.array_equal(np.asarray(first), np.asarray(second))

    def test_encoded_prompts_and_negative_prompts(self, tiny_backbone):
        prompt = tiny_backbone.encode_prompt("a cat", zero_tokens=3)
        plain, other = (
            tiny_backbone.generate(prompt, steps=2, negative_prompt=text, progress=False)[0] for text in ("", "a dog")
        )
        assert not np.array_equal(np.asarray(plain), np.asarray(other))

    def test_callback_and_progress_bar(self, tiny_backbone, capfd):
        seen = []
        tiny_backbone.generate(
            "a cat", steps=2, progress=False, callback=lambda *step: seen.append((*step[:2], step[2].shape))
        )
        assert capfd.readouterr().err == ""
        assert [(step, shape) for step, _, shape in seen] == [(0, (1, 16, 14, 14)), (1, (1, 16, 14, 14))]
        assert seen[0][1] == 1000.0
        tiny_backbone.generate("a cat", steps=2)
        assert "2/2" in capfd.readouterr().err
        assert tiny_backbone.pipe._progress_bar_config == {"disable": True}

    def test_wrong_numbers_of_seeds(self, tiny_backbone):
        with pytest.raises(InputError, match="got 3 for 2 prompts"):
            tiny_backbone.generate(["a cat", "a dog"], seed=[1, 2, 3])

    def test_batches_change_nothing_but_the_memory(self, tiny_backbone):
        asked = {"steps": 2, "size": (40, 56), "seed": [3, 1, 2], "progress": False, "negative_prompt": "snow"}
        together = tiny_backbone.generate("a cat", **asked)
        seen = []
        apart = tiny_backbone.generate("a cat", batch=2, callback=lambda *step: seen.append(len(step[2])), **asked)
        assert seen == [2, 2, 1, 1]
        for one, other in zip(together, apart, strict=True):
            assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1

    def test_numpy_numbers_will_do(self, tiny_backbone, unchecked):
        plain = tiny_backbone.generate("a cat", steps=1, seed=[4, 5], progress=False)
        others = [np.array([4, 5]), torch.tensor([4, 5]), range(4, 6), (np.int64(4), np.uint8(5))]
        for seed in others:
            found = tiny_backbone.generate("a cat", steps=np.int64(1), seed=seed, batch=np.int32(2), progress=False)
            assert [np.asarray(image).tolist() for image in found] == [np.asarray(image).tolist() for image in plain]

    def test_arguments_without_effect_are_refused(self, tiny_backbone):
        with pytest.raises(
            InputError, match=r"expected guidance with negative_prompt, got weight 1, .* guidance_scale=7"
        ):
            tiny_backbone.generate("a cat", negative_prompt="snow", guidance_scale=1.0)
        prompts = [tiny_backbone.encode_prompt("a cat", zero_tokens=n) for n in (3, 5)]
        with pytest.raises(InputError, match=r"one zero_tokens, got \[3, 5\]"):
            tiny_backbone.generate(prompts)
        schnell = wrap_pipeline(tiny_flux(guidance=False), "schnell")
        with pytest.raises(InputError, match="expected no guidance_scale, which schnell does not read"):
            schnell.generate("a cat", guidance_scale=7.0)
        with pytest.raises(InputError, match="expected zero_tokens with SD3 without T5, got 5 with flux"):
            schnell.generate("a cat", zero_tokens=5)

    def test_negative_prompts_of_flux(self):
        backbone = wrap_pipeline(build("flux-dev"), "flux")
        asked = {"steps": 1, "size": 32, "progress": False}
        with pytest.raises(InputError, match=r"got weight 1, which ignores it: pass true_cfg_scale=4\.0 too"):
            backbone.generate("a cat", negative_prompt="snow", **asked)
        with pytest.raises(InputError, match=r"a negative_prompt with true_cfg_scale=4: pass negative_prompt=''"):
            backbone.generate("a cat", true_cfg_scale=4.0, **asked)
        plain, other = (
            np.asarray(backbone.generate("a cat", **asked, **more)[0])
            for more in ({}, {"negative_prompt": "snow", "true_cfg_scale": 4.0})
        )
        assert (plain != other).any()


class TestTheUsersPipeline:
    """What `wrap_pipeline` takes stays as it was."""

    def test_modes_flags_and_bars_stay(self):
        pipe = tiny_pipeline()
        pipe.transformer.train()
        pipe.vae.requires_grad_(False)
        del pipe._progress_bar_config
        backbone = wrap_pipeline(pipe)
        seen = []
        handle = pipe.transformer.register_forward_pre_hook(lambda module, args: seen.append(module.training))
        latents = backbone.encode_image(np.zeros((9, 9, 3), np.uint8))
        assert not backbone.predict_velocity(*backbone.add_noise(latents), "a cat").requires_grad
        backbone.generate("a cat", steps=1, progress=False)
        backbone.decode(latents)
        handle.remove()
        assert seen == [False, False]
        assert pipe.transformer.training
        assert pipe.transformer.transformer_blocks[0].training
        assert not pipe.vae.training
        assert all(value.requires_grad for value in pipe.transformer.parameters())
        assert not any(value.requires_grad for value in pipe.vae.parameters())
        assert not hasattr(pipe, "_progress_bar_config")

    def test_a_changed_scheduler_is_another_schedule(self):
        backbone = wrap_pipeline(tiny_pipeline())
        before = backbone.schedule()[1]
        backbone.pipe.scheduler.set_shift(1.0)
        plain = backbone.schedule()[1]
        assert not torch.equal(before, plain)
        backbone.pipe.scheduler.set_shift(3.0)
        assert torch.equal(backbone.schedule()[1], before)


class TestNumberFormats:
    # diffusers' own
    @pytest.mark.filterwarnings("ignore:.*upcast_vae:FutureWarning", "ignore:Mismatch dtype between input and weight")
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("name", [*BUILDERS, *VIDEO_BUILDERS])
    def test_every_family_runs_in_half_precision(self, name, dtype):
        if (name, dtype) == ("auraflow", torch.float16) and Version(diffusers.__version__) < Version("0.42"):
            pytest.skip(f"diffusers {diffusers.__version__} cannot decode AuraFlow's float16 latents of this VAE")
        backbone = wrapped(name)
        backbone.pipe.to(dtype)
        latents = torch.zeros(1, *backbone.latent_size(backbone.token_px * 4))
        before = model_fingerprint(backbone)
        for _ in range(2):
            velocity = backbone.predict_velocity(*backbone.add_noise(latents), "a cat")
            assert velocity.shape == latents.shape
        # HiDream makes pictures of one area alone
        size = None if name == "hidream" else backbone.token_px * 4
        assert len(backbone.generate("a cat", steps=1, size=size, progress=False)) == 1
        # in float16 this pipeline leaves its VAE in float32
        assert model_fingerprint(backbone) == before or (name, dtype) == ("auraflow", torch.float16)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_the_default_dtype_of_torch_does_not_matter(self, tiny_backbone, dtype, monkeypatch):
        def run() -> list:
            backbone = wrap_pipeline(tiny_backbone.pipe)
            latents = backbone.encode_image(np.full((9, 9, 3), 77, np.uint8))
            noisy, timesteps = backbone.add_noise(latents, [3, 8])
            velocity = backbone.predict_velocity(noisy, timesteps, "a cat")
            (picture,) = backbone.decode(latents)
            return [latents, noisy, timesteps, velocity, np.asarray(picture).tolist()]

        expected = run()
        torch.set_default_dtype(dtype)
        try:
            found = run()
        finally:
            torch.set_default_dtype(torch.float32)
        for one, other in zip(found[:4], expected[:4], strict=True):
            assert torch.equal(one, other)
        assert found[4] == expected[4]


def test_a_backbone_prints_in_a_line(tiny_backbone):
    shown = f"Backbone('x', sd3, 5 layers of 3 heads, 56 px, {torch.float32} on cpu)"
    assert repr(replace(tiny_backbone, name="x")) == shown
