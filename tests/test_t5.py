"""Stable Diffusion 3 with T5: two tokenizers read one prompt, and each word has the tokens of both."""

import numpy as np
import PIL.Image
import pytest
import torch
from tiny_models import build
from typer.testing import CliRunner

from seg4diff_tools.__main__ import app
from seg4diff_tools.attention.edits import apply_edit, drop
from seg4diff_tools.attention.recorder import AttentionRecorder
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.loading import load_backbone, wrap_pipeline
from seg4diff_tools.datasets import LabeledImage
from seg4diff_tools.errors import InputError, PromptError, RecordingError
from seg4diff_tools.explorer import explore
from seg4diff_tools.explorer.live import record_live
from seg4diff_tools.explorer.words import words_of
from seg4diff_tools.magnet import MagnetConfig, finetune
from seg4diff_tools.paper import RELEASED
from seg4diff_tools.segmentation import OpenVocabulary, Unsupervised, group, segment

SIDE = 40
IMAGE = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
PROMPT = "a red cat and a cat"


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return wrap_pipeline(build("sd3-t5"), "sd3-t5")


@pytest.fixture(scope="module")
def recording(backbone):
    with AttentionRecorder(backbone, prompt=PROMPT, tokens="all", layers=[1]) as recorder:
        backbone.generate(PROMPT, steps=1, guidance_scale=1.0, progress=False)
    return recorder.recording


def test_labels_are_those_of_clip_then_those_of_t5(backbone):
    prompt = backbone.encode_prompt(PROMPT)
    assert (len(prompt.tokens), prompt.readers) == (77 + 256, ("CLIP", "T5"))
    assert {token.reader for token in prompt.tokens[:77]} == {"CLIP"}
    assert {token.reader for token in prompt.tokens[77:]} == {"T5"}
    for reader in prompt.readers:
        words = [prompt.tokens[index] for index in prompt.indices("word", reader=reader)]
        read = {place for token in words for place in range(token.start, token.stop)}
        assert "".join(PROMPT[place] for place in sorted(read)) == PROMPT.replace(" ", "")
    assert len(prompt.pads) == len(prompt.indices("pad", reader="CLIP")) + len(prompt.indices("pad", reader="T5"))
    for reader, first in (("CLIP", 0), ("T5", 77)):
        assert prompt.indices("end", reader=reader)[0] == prompt.indices("pad", reader=reader)[0] - 1 > first


def test_a_word_has_the_tokens_of_both_or_of_one(backbone):
    prompt = backbone.encode_prompt(PROMPT)
    clip, t5 = (prompt.span("cat", reader=reader) for reader in ("CLIP", "T5"))
    assert max(clip) < 77 <= min(t5)
    assert prompt.span("cat") == (*clip, *t5)
    assert prompt.span("cat@T5") == t5
    assert prompt.span("cat@CLIP#2") == clip[1:]
    assert prompt.span("cat@T5", 0) == t5[:1]
    assert prompt.span("red cat@T5") == prompt.span("red cat", reader="T5")
    with pytest.raises(InputError, match="expected reader, one of CLIP, T5, got 'Qwen2'"):
        prompt.span("cat", reader="Qwen2")
    with pytest.raises(PromptError, match="'dog@T5' is not in the prompt|'dog' is not in the prompt"):
        prompt.span("dog@T5")


def test_t5_reads_what_clip_no_longer_does(backbone):
    long = "a cat " * 60 + "tree"
    prompt = backbone.encode_prompt(long)
    assert len(prompt.indices("word", reader="CLIP")) == 75
    assert min(prompt.span("tree")) > 77
    with pytest.raises(PromptError, match="'tree' is not in what CLIP reads of the prompt"):
        prompt.span("tree", reader="CLIP")
    with pytest.raises(PromptError, match="the text encoder reads 255"):
        backbone.encode_prompt("cat " * 300)


def test_maps_have_a_label_for_each_token(recording):
    maps = recording.maps
    assert maps.sizes["token"] == 333
    assert len(set(maps.token.values)) == 333
    for label, reader in (("cat", "CLIP"), ("cat#2", "CLIP"), ("cat@T5", "T5"), ("cat@T5#2", "T5")):
        assert maps.sel(token=label).token_reader.item() == reader
    assert maps.sel(token="<pad>@T5").token_index.item() > 77


def test_a_phrase_is_read_from_one_tokenizer_or_from_both(recording):
    maps = recording.maps
    clip = maps.sel(token=["cat", "cat#2"]).mean("token")
    t5 = maps.sel(token=["cat@T5", "cat@T5#2"]).mean("token")
    np.testing.assert_allclose(recording.phrase("cat", reader="CLIP"), clip, rtol=1e-6)
    np.testing.assert_allclose(recording.phrase("cat", reader="T5"), t5, rtol=1e-6)
    np.testing.assert_allclose(recording.phrase("cat"), (clip + t5) / 2, rtol=1e-5)
    assert not np.allclose(clip, t5)


def test_phrases_of_a_recorder_may_name_the_tokenizer(backbone, recording):
    with AttentionRecorder(backbone, prompt=PROMPT, tokens=["cat", "cat@CLIP", "cat@T5"], layers=[1]) as recorder:
        backbone.generate(PROMPT, steps=1, guidance_scale=1.0, progress=False)
    for label, reader in (("cat", None), ("cat@CLIP", "CLIP"), ("cat@T5", "T5")):
        np.testing.assert_allclose(
            recorder.maps.sel(token=label), recording.phrase("cat", reader=reader), rtol=1e-5, atol=1e-8
        )
    with pytest.raises(RecordingError, match=r"got 'T5' with named spans: record tokens=\['cat@T5'\]"):
        recorder.recording.phrase("cat", reader="T5")


def test_words_of_the_explorer_keep_tokenizers_apart(recording):
    labels = [word.label for word in words_of(recording.maps)]
    assert labels[:9] == ["<start>", "a", "red", "cat", "and", "a#2", "cat#2", "<end>", "<pads>"]
    assert labels[9:] == ["a@T5", "red@T5", "cat@T5", "and@T5", "a@T5#3", "cat@T5#2", "<end>@T5", "<pads>@T5"]
    assert explore(recording).token == "red"


def test_segmentation_reads_the_chosen_tokens(backbone):
    names = ["cat", "red car"]

    def maps(**options):
        return segment(backbone, IMAGE, names, OpenVocabulary(layers=1, **options)).class_maps.values

    clip, t5, both = maps(reader="CLIP"), maps(reader="T5"), maps()
    prompt = backbone.class_prompts(names)[0]
    for row, name in enumerate(names):
        counts = [len(prompt.span(name, reader=reader)) for reader in ("CLIP", "T5")]
        mean = (clip[row] * counts[0] + t5[row] * counts[1]) / sum(counts)
        np.testing.assert_allclose(both[row], mean, rtol=1e-4)
    assert not np.allclose(clip, t5)
    with pytest.raises(InputError, match="expected reader, one of CLIP, T5, got 'Llama'"):
        maps(reader="Llama")


def test_class_prompts_hold_no_more_names_than_clip_reads(backbone):
    names = [f"cat {first}{second}" for first in "abcdefg" for second in "hijklm"]
    prompts = backbone.class_prompts(names)
    assert len(prompts) > 1
    for prompt in prompts:
        for name, tokens in prompt.classes.items():
            assert {prompt.tokens[index].reader for index in tokens} == {"CLIP", "T5"}, name


def test_pads_of_one_tokenizer_are_grouped(backbone):
    prompt = backbone.encode_prompt("")
    for reader in (None, "CLIP", "T5"):
        grouped = group(backbone, IMAGE, Unsupervised(layers=1, reader=reader))
        assert grouped.token_maps.token.values.tolist() == list(prompt.indices("pad", reader=reader))


def test_what_belongs_to_the_released_code_is_refused(backbone):
    with pytest.raises(InputError, match="expected cut_prompt with SD3 without T5"):
        segment(backbone, IMAGE, ["cat"], OpenVocabulary(layers=1, **RELEASED["segment"]))
    with pytest.raises(InputError, match="expected zero_tokens with SD3 without T5, got 0"):
        backbone.encode_prompt("a cat", zero_tokens=0)


def test_a_prompt_encoded_without_t5_is_refused(backbone):
    pipe = build("sd3-t5")
    pipe.text_encoder_3 = None
    # the tokenizer alone does no harm
    prompt = wrap_pipeline(pipe).encode_prompt("a cat")
    assert {token.kind for token in prompt.tokens[77:]} == {"zero"}
    with (
        pytest.raises(RecordingError, match="expected the recorder's prompt 'a cat'"),
        AttentionRecorder(backbone, prompt=prompt),
    ):
        backbone.generate("a cat", steps=1, progress=False)


def test_an_edit_takes_a_word_from_both_tokenizers_or_from_one(backbone):
    prompt = backbone.encode_prompt(PROMPT)
    noisy, timestep = backbone.add_noise(backbone.encode_image(IMAGE), 8)

    def velocity(tokens):
        with apply_edit(backbone, drop(tokens), 1):
            return backbone.predict_velocity(noisy, timestep, prompt)

    found = [velocity(prompt.span("cat", reader=reader)) for reader in (None, "CLIP", "T5")]
    assert not any(torch.equal(found[0], other) for other in found[1:])


def test_mask_alignment_trains_with_t5(backbone, tmp_path):
    labels = np.zeros((SIDE, SIDE), dtype=np.int64)
    labels[: SIDE // 2] = 1
    samples = [LabeledImage(IMAGE, ("cat", "red car"), labels, caption="a cat and a red car")]
    config = MagnetConfig(steps=2, batch=1, rank=2, layers=(1,))
    folder = finetune(backbone, samples, config, tmp_path, progress=False)
    assert (folder / "pytorch_lora_weights.safetensors").is_file()


def test_the_command_line_reads_t5_when_asked(tmp_path):
    build("sd3-t5").save_pretrained(tmp_path / "model")
    PIL.Image.fromarray(IMAGE).save(tmp_path / "photo.png")
    words = ["segment", tmp_path / "photo.png", "cat", "grass", "--model", tmp_path / "model", "--layers", 1]
    runner = CliRunner()
    read = [*words, "--reader", "T5", "--out", tmp_path / "masks"]
    refused = runner.invoke(app, [str(word) for word in read])
    assert refused.exit_code != 0
    assert "expected --reader, one of CLIP, got 'T5'" in refused.output
    done = runner.invoke(app, [str(word) for word in (*read[:-1], tmp_path / "t5", "--t5")])
    assert done.exit_code == 0, done.output
    model = load_backbone(tmp_path / "model", t5=True)
    found = segment(model, tmp_path / "photo.png", ["cat", "grass"], OpenVocabulary(layers=1, reader="T5"))
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(tmp_path / "t5" / "photo.png")), found.label_map)


def test_a_live_explorer_records_the_words_of_both(backbone):
    recording = record_live(backbone, 1, {"layers": [1]}, False, None, PROMPT, 0, lambda done, total: None)[0]
    assert set(recording.maps.token_reader.values) == {"CLIP", "T5"}
    assert "pad" not in recording.maps.token_kind.values
    assert "cat@T5" in [word.label for word in words_of(recording.maps)]
