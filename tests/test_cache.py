"""Results are kept under a key of all that determines them, and of nothing else."""

import functools
import os
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_pipeline
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from seg4diff_tools import caching, datasets
from seg4diff_tools.attention.bias import AttentionBias, JointTokens
from seg4diff_tools.attention.edits import apply_edit, blur, drop, perturbed_guidance, swap
from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.placing import lock_layout, place_words, without
from seg4diff_tools.attention.recorder import AttentionRecorder
from seg4diff_tools.backbones.loading import load_backbone, wrap_pipeline
from seg4diff_tools.backbones.lora import apply_lora, attach, trained
from seg4diff_tools.backbones.lora_files import FILE, LoraWeights, save_lora
from seg4diff_tools.caching import model_fingerprint, remember
from seg4diff_tools.errors import InputError
from seg4diff_tools.evaluation.sweeps import layer_step_sweep
from seg4diff_tools.scenes import SceneConfig, Scenes

CALLS = []


class Calls:
    """Not seen by `remember`, which reads a class by its source."""

    made = CALLS


def noted(*args, **kwargs):
    """ImageCounts how often it really runs."""
    Calls.made.append((args, kwargs))
    return pd.DataFrame({"number": [len(Calls.made)]})


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SEG4DIFF_CACHE", str(tmp_path / "kept"))
    CALLS.clear()
    return tmp_path / "kept"


SAME = {
    "numbers": lambda: (1, 2.5, "three", None, True),
    "tensor": lambda: torch.arange(6.0).view(2, 3),
    "half tensor": lambda: torch.ones(3, dtype=torch.bfloat16),
    "array": lambda: np.arange(5, dtype=np.uint8),
    "picture": lambda: Image.new("RGB", (3, 2), (1, 2, 3)),
    "table": lambda: pd.DataFrame({"a": [1, 2]}),
    "scenes": lambda: Scenes("test", 3, SceneConfig(size=56)),
    "edit": lambda: swap([1], [2, 3]),
    "nested": lambda: {"a": [np.ones(2), {"b": range(3)}]},
    "partial": lambda: functools.partial(noted, 3),
}


@pytest.mark.parametrize("make", SAME.values(), ids=SAME)
def test_the_same_is_computed_once(make):
    first, second = remember(noted, make()), remember(noted, make(), progress=False)
    assert len(CALLS) == 1
    pd.testing.assert_frame_equal(first, second)


OTHER = {
    "number": (1, 2),
    "kind of number": (1, 1.0),
    "truth": (True, 1),
    "word": ("1", 1),
    "tensor": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "value": (torch.zeros(2), torch.tensor([0.0, 1e-6])),
    "type": (torch.ones(2), torch.ones(2).bfloat16()),
    "picture": (Image.new("RGB", (3, 2)), Image.new("RGB", (3, 2), (0, 0, 1))),
    "split": (Scenes("test", 3), Scenes("test-style", 3)),
    "configuration": (Scenes("test", 3), Scenes("test", 3, SceneConfig(size=56))),
    "edit": (blur(9.0), blur(8.0)),
    "tokens": (drop([1]), drop([2])),
    "nesting": ([[1], 2], [[1, 2]]),
    "order": ((1, 2), (2, 1)),
}


@pytest.mark.parametrize("pair", OTHER.values(), ids=OTHER)
def test_another_is_computed_again(pair):
    for value in pair:
        remember(noted, value)
    assert len(CALLS) == 2


def test_models_are_told_by_their_weights(tiny_folder, build_backbone):
    one, same, other = load_backbone(tiny_folder), load_backbone(tiny_folder), build_backbone(seed=2)
    for backbone in (one, same, other):
        remember(noted, backbone)
    assert len(CALLS) == 2
    with torch.no_grad():
        one.transformer.transformer_blocks[3].attn.to_q.weight.add_(1.0)
    remember(noted, one)
    assert len(CALLS) == 3


def test_arguments_go_by_name_and_place():
    remember(noted, 1, layer=2)
    remember(noted, 1, layer=3)
    remember(noted, 1, step=2)
    assert len(CALLS) == 3


def test_a_damaged_result_is_made_again(kept):
    remember(noted, 1)
    (path,) = kept.glob("*.joblib")
    path.write_bytes(path.read_bytes()[:20])
    remember(noted, 1)
    assert len(CALLS) == 2
    remember(noted, 1)
    assert len(CALLS) == 2


def test_other_code_is_another_result(monkeypatch):
    remember(noted, 1)
    monkeypatch.setattr(caching, "_package", lambda: "another version of the package")
    remember(noted, 1)
    assert len(CALLS) == 2


def test_old_results_make_room(kept, monkeypatch):
    monkeypatch.setattr(caching, "LARGEST", 1)
    for number in range(3):
        remember(noted, number)
    assert list(kept.glob("*")) == []


def test_files_and_data_sets_are_told_by_what_is_in_them(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        Image.new("L", (3, 2), 1).save(tmp_path / name / "a.png")
    samples = datasets.folder(tmp_path / "images", tmp_path / "masks", ("cat", "dog"))
    remember(noted, samples)
    remember(noted, datasets.folder(tmp_path / "images", tmp_path / "masks", ("cat", "dog")))
    assert len(CALLS) == 1
    # a corrected mask
    Image.fromarray(np.eye(2, 3, dtype=np.uint8)).save(tmp_path / "masks/a.png")
    remember(noted, samples)
    assert len(CALLS) == 2


def test_an_unknown_argument_is_refused():
    with pytest.raises(InputError, match="content can be read, got object"):
        remember(noted, object())


FACTOR = 2


def helper(number):
    return number * FACTOR if number else uses_helper(number)


def uses_helper(number):
    Calls.made.append(number)
    return [helper(n) for n in [number]]


def test_what_a_function_reads_around_it_counts(monkeypatch):
    assert remember(uses_helper, 3) == remember(uses_helper, 3) == [6]
    assert len(CALLS) == 1
    monkeypatch.setitem(globals(), "FACTOR", 5)
    assert remember(uses_helper, 3) == [15]
    assert len(CALLS) == 2


def test_methods_go_with_their_object(tiny_backbone):
    first = remember(tiny_backbone.schedule, 3)
    assert torch.equal(first[0], remember(tiny_backbone.schedule, steps=3)[0])
    assert not torch.equal(first[0], remember(tiny_backbone.schedule, 4)[0][:3])


def test_a_function_reads_lists_defaults_and_closures(monkeypatch):
    functions = [lambda x, k=k: (Calls.made.append(x), k)[1] for k in (2, 3)]
    assert [remember(function, 1) for function in functions] == [2, 3]
    monkeypatch.setitem(globals(), "FACTOR", 2)
    for factors in ([1, 2], [1, 3]):
        monkeypatch.setitem(globals(), "FACTORS", factors)
        assert remember(reads_a_list, 2) == 2 * factors[1]
    monkeypatch.setitem(globals(), "FACTORS", object())
    with pytest.raises(InputError, match=r"reads_a_list reads the variable 'FACTORS': .* got object"):
        remember(reads_a_list, 2)


FACTORS: list = []


def reads_a_list(number):
    return number * FACTORS[1]


@pytest.mark.parametrize("kind", [str, Path])
def test_files_named_by_paths_go_by_content(tmp_path, kind):
    path = tmp_path / "picture.png"
    for value in (1, 1, 2):
        Image.new("L", (3, 2), value).save(path)
        os.utime(path, (1, 1))
        remember(noted, kind(path))
        remember(noted, [kind(tmp_path)] if value == 3 else {"images": [kind(path)]})
    assert len(CALLS) == 4
    remember(noted, kind(tmp_path))
    (tmp_path / "another.png").touch()
    remember(noted, kind(tmp_path))
    assert len(CALLS) == 6


def test_text_that_names_no_file_is_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    remember(noted, "")
    (tmp_path / "file").touch()
    remember(noted, "")
    remember(noted, "a" * 5000)
    assert len(CALLS) == 2


def test_a_result_that_cannot_be_stored_is_returned(kept):
    with pytest.warns(UserWarning, match="the result is not kept, since it cannot be pickled"):
        assert remember(makes_a_function, 3)() == 3
    assert list(kept.glob("*")) == []
    kept.rmdir()
    kept.write_text("in the way")
    with pytest.warns(UserWarning, match="the result is not kept: expected to write"):
        remember(noted, 1)


def makes_a_function(number):
    return lambda: number


class TestFingerprint:
    """All state of a model that changes its results is in its fingerprint, and comes back to what it was."""

    @staticmethod
    def states(backbone, folder):
        pipe, block = backbone.pipe, backbone.transformer.transformer_blocks[1]
        weight, bias = block.attn.to_out[0].weight, backbone.transformer.pos_embed.pos_embed

        @contextmanager
        def put(owner, name, value):
            before = getattr(owner, name)
            setattr(owner, name, value)
            yield
            setattr(owner, name, before)

        @contextmanager
        def column(tensor, factor):
            before = tensor.detach().clone()
            tensor.data[..., 7:20] *= factor
            yield
            tensor.data.copy_(before)

        @contextmanager
        def adapter(*scales, disabled=False):
            pipe.load_lora_weights(folder, weight_name=FILE, adapter_name="a")
            if scales:
                pipe.set_adapters(["a"], list(scales))
            if disabled:
                pipe.disable_lora()
            yield
            pipe.unload_lora_weights()

        @contextmanager
        def hook(value):
            handle = block.attn.to_q.register_forward_hook(lambda module, args, output: output * value)
            yield
            handle.remove()

        def placed(strength, right=0.5, *, word="cat", text="a dog and a cat"):
            return place_words(backbone, text, {word: (0.0, 0.0, right, 1.0)}, strength=strength)

        class Processor(type(block.attn.processor)):
            pass

        return {
            "plain": nullcontext,
            "one head's weights": lambda: column(weight, 0.0),
            "a buffer": lambda: column(bias, 2.0),
            "lora": adapter,
            "half a lora": lambda: adapter(0.5),
            "lora disabled": lambda: adapter(disabled=True),
            "lora of ours": lambda: apply_lora(backbone, folder, 0.7),
            "blur": lambda: apply_edit(backbone, blur(9.0)),
            "another blur": lambda: apply_edit(backbone, blur(8.0)),
            "blur in a layer": lambda: apply_edit(backbone, blur(9.0), 1),
            "guidance": lambda: perturbed_guidance(backbone, blur(9.0), None, 2.0),
            "more guidance": lambda: perturbed_guidance(backbone, blur(9.0), None, 3.0),
            "a hook": lambda: hook(2.0),
            "another hook": lambda: hook(3.0),
            "key bias": lambda: intercept(backbone.transformer, bias=AttentionBias(torch.ones(203))),
            "a function of biases": lambda: intercept(backbone.transformer, bias=biases_by(1.0)),
            "another function": lambda: intercept(backbone.transformer, bias=biases_by(2.0)),
            "function of keys": lambda: intercept(backbone.transformer, bias=biases_by(torch.ones(203))),
            "words placed": lambda: placed(2.0),
            "placed firmly": lambda: placed(3.0),
            "placed elsewhere": lambda: placed(2.0, 0.7),
            "another word": lambda: placed(2.0, word="dog"),
            "another prompt": lambda: placed(2.0, text="a cat and a dog"),
            "a layout locked": lambda: lock_layout(backbone, "a cat", ["cat"], 1),
            "kinds left out": lambda: without(backbone, "pad", prompt="a cat"),
            "a processor": lambda: put(block.attn, "processor", Processor()),
            "temperature": lambda: put(block.attn, "scale", 0.5),
            "another scheduler": lambda: put(pipe, "scheduler", FlowMatchEulerDiscreteScheduler(shift=5.0)),
            "its shift": lambda: put(pipe.scheduler, "_shift", 4.0),
            "tiles": lambda: put(pipe.vae, "use_tiling", True),
            "size": lambda: put(pipe, "default_sample_size", 7),
            "padding": lambda: put(pipe.tokenizer, "pad_token", "!"),
        }

    def test_state_is_told_and_restored(self, build_backbone, tmp_path):
        backbone = build_backbone()
        save_lora(tiny_lora(backbone), tmp_path)
        found = {}
        for name, state in self.states(backbone, tmp_path).items():
            with state():
                found[name] = model_fingerprint(backbone)
            assert model_fingerprint(backbone) == found["plain"], name
        for name, value in found.items():
            assert [other for other in found if found[other] == value] == [name]

    @pytest.mark.parametrize(
        "make",
        [
            lambda backbone: place_words(backbone, "a cat", {"cat": (0.0, 0.0, 0.5, 1.0)}),
            lambda backbone: lock_layout(backbone, "a cat", ["cat"], 1),
            lambda backbone: without(backbone, "pad", prompt="a cat"),
            lambda backbone: intercept(backbone.transformer, bias=biases_by(2.0)),
        ],
    )
    def test_the_same_biases_are_the_same_model(self, tiny_backbone, make):
        found = []
        for _ in range(2):
            with make(tiny_backbone):
                found.append(model_fingerprint(tiny_backbone))
                remember(noted, tiny_backbone)
        remember(noted, tiny_backbone)
        assert found[0] == found[1] != model_fingerprint(tiny_backbone)
        assert len(CALLS) == 2

    def test_what_changes_no_result_is_left_out(self, build_backbone):
        backbone = build_backbone()
        before = model_fingerprint(backbone)
        backbone.generate("a cat", steps=2, progress=False)
        backbone.transformer.enable_gradient_checkpointing()
        with AttentionRecorder(backbone):
            assert model_fingerprint(backbone) == before
        assert model_fingerprint(replace(backbone, name="another")) == before
        assert model_fingerprint(replace(backbone, guidance_scale=2.0)) != before
        assert model_fingerprint(wrap_pipeline(tiny_pipeline().to(torch.bfloat16))) != before

    def test_remember_knows_adapters_and_names(self, build_backbone, tmp_path):
        backbone = build_backbone()
        save_lora(tiny_lora(backbone), tmp_path)
        remember(noted, backbone)
        with apply_lora(backbone, tmp_path):
            remember(noted, backbone)
            remember(noted, backbone.pipe)
        remember(noted, backbone)
        assert len(CALLS) == 3
        remember(noted, replace(backbone, name="another"))
        assert len(CALLS) == 4

    def test_a_run_is_not_resumed_with_another_adapter(self, build_backbone, tmp_path):
        backbone = build_backbone()
        scenes = Scenes("test", 3, SceneConfig(size=56))
        save_lora(tiny_lora(backbone), tmp_path / "lora")
        backbone.pipe.load_lora_weights(tmp_path / "lora", weight_name=FILE, adapter_name="a")
        layer_step_sweep(backbone, scenes, layers=[1], out=tmp_path / "run", progress=False)
        backbone.pipe.disable_lora()
        with pytest.raises(InputError, match=r"fingerprint: .* since the model's weights, adapters"):
            layer_step_sweep(backbone, scenes, layers=[1], out=tmp_path / "run", progress=False)
        backbone.pipe.enable_lora()
        layer_step_sweep(backbone, scenes, layers=[1], out=tmp_path / "run", progress=False)


def biases_by(weight):
    return lambda layout, turn: [AttentionBias(weight, keys=JointTokens(text=[1]))]


def tiny_lora(backbone):
    generator = torch.Generator().manual_seed(0)
    attach(backbone.transformer, backbone.family, rank=3, alpha=3)
    tensors = trained(backbone.transformer, alpha=3).tensors
    backbone.transformer.unload_lora()
    return LoraWeights({name: torch.randn(v.shape, generator=generator) / 5 for name, v in tensors.items()}, 3)
