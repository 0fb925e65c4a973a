"""LoRA weights: put on and taken off, written for plain diffusers, read from a file of the authors' layout."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from seg4diff_tools.backbones.loading import load_backbone
from seg4diff_tools.backbones.lora import apply_lora, attach, trained
from seg4diff_tools.backbones.lora_files import FILE, SHIPPED, LoraWeights, read_lora, save_lora
from seg4diff_tools.caching import model_fingerprint
from seg4diff_tools.errors import CheckpointError, InputError
from seg4diff_tools.evaluation.sweeps import layer_step_sweep
from seg4diff_tools.scenes import Scenes

RANK = 3


@pytest.fixture
def backbone(build_backbone):
    return build_backbone()


@pytest.fixture
def weights(backbone) -> LoraWeights:
    """A LoRA that changes something: a fresh one has zeros for B."""
    attach(backbone.transformer, backbone.family, rank=RANK, alpha=RANK)
    found = trained(backbone.transformer, alpha=RANK)
    backbone.transformer.unload_lora()
    generator = torch.Generator().manual_seed(0)
    return LoraWeights({n: torch.randn(v.shape, generator=generator) / 5 for n, v in found.tensors.items()}, found.rank)


@torch.no_grad()
def velocity(backbone) -> torch.Tensor:
    noisy = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    return backbone.predict_velocity(noisy, 500.0, "a cat")


def released(weights: LoraWeights, head: bool) -> dict:
    model = {
        f"backbone.transformer.{name.replace('.weight', '.default.weight')}": value
        for name, value in weights.tensors.items()
    }
    if head:
        model["attn_mlp.attn_score_layer.0.weight"] = torch.ones(64, 1, 3, 3)
    return {"model": model, "iteration": 2999}


def test_attach_covers_joint_attention_alone(build_backbone):
    backbone = build_backbone(dual_attention_layers=(0, 1))
    attach(backbone.transformer, backbone.family, rank=RANK, alpha=RANK)
    found = trained(backbone.transformer, alpha=RANK)
    modules = {name.rpartition(".lora_")[0] for name in found.tensors}
    names = ("to_q", "to_k", "to_v", "to_out.0")
    assert modules == {f"transformer_blocks.{i}.attn.{name}" for i in range(5) for name in names}
    assert {tuple(v.shape) for n, v in found.tensors.items() if ".lora_A." in n} == {(RANK, 60)}
    trainable = {name for name, value in backbone.transformer.named_parameters() if value.requires_grad}
    assert len(trainable) == 2 * 5 * 4
    assert all(".lora_" in name for name in trainable)


def test_lora_adds_the_product_of_its_matrices(backbone, weights):
    module = "transformer_blocks.2.attn.to_k"
    a, b = (weights.tensors[f"{module}.lora_{side}.weight"] for side in "AB")
    with apply_lora(backbone, weights, scale=0.5):
        changed = velocity(backbone)
        inputs = torch.randn(7, 60)
        linear = backbone.transformer.get_submodule(module)
        expected = linear.base_layer(inputs) + 0.5 * inputs @ a.mT @ b.mT
        torch.testing.assert_close(linear(inputs), expected)
        assert not any(value.requires_grad for value in backbone.transformer.parameters())
    assert not torch.equal(changed, velocity(backbone))


def test_the_model_is_as_it_was_afterwards(backbone, weights):
    names, before = list(backbone.transformer.state_dict()), velocity(backbone)
    with pytest.raises(KeyboardInterrupt), apply_lora(backbone, weights):
        raise KeyboardInterrupt
    assert list(backbone.transformer.state_dict()) == names
    assert torch.equal(velocity(backbone), before)
    with apply_lora(backbone, weights, scale=0.0):
        torch.testing.assert_close(velocity(backbone), before)


def test_plain_diffusers_loads_what_is_saved(backbone, weights, tmp_path):
    with apply_lora(backbone, weights):
        ours = velocity(backbone)
    save_lora(weights, tmp_path / "lora")
    # offline, old versions of diffusers look for no file themselves
    backbone.pipe.load_lora_weights(tmp_path / "lora", weight_name=FILE)
    assert torch.equal(velocity(backbone), ours)
    backbone.pipe.unload_lora_weights()


def test_alpha_is_multiplied_in(backbone):
    attach(backbone.transformer, backbone.family, rank=RANK, alpha=2 * RANK)
    module = backbone.transformer.get_submodule("transformer_blocks.1.attn.to_v")
    torch.nn.init.ones_(module.lora_B["seg4diff"].weight)
    with torch.no_grad():
        ours = velocity(backbone)
    found = trained(backbone.transformer, alpha=2 * RANK)
    backbone.transformer.unload_lora()
    with apply_lora(backbone, found):
        torch.testing.assert_close(velocity(backbone), ours)


@pytest.mark.parametrize("kind", ["folder", "file", "released", "released with head"])
def test_every_layout_reads_the_same(weights, tmp_path, kind):
    source = save_lora(weights, tmp_path)
    if kind == "file":
        source = tmp_path / FILE
    if kind.startswith("released"):
        source = tmp_path / "lora_weights.pth"
        torch.save(released(weights, head=kind.endswith("head")), source)
    found = read_lora(source)
    assert found.rank == RANK
    assert found.tensors.keys() == weights.tensors.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in weights.tensors.items())
    assert list(found.conv_head) == (["0.weight"] if kind.endswith("head") else [])


def test_the_conv_head_is_kept_beside_the_lora(weights, tmp_path):
    save_lora(LoraWeights(weights.tensors, RANK, {"0.bias": torch.arange(5.0)}), tmp_path)
    assert read_lora(tmp_path).conv_head["0.bias"].tolist() == [0, 1, 2, 3, 4]


def test_a_second_lora_is_refused(backbone, weights):
    with apply_lora(backbone, weights):
        with pytest.raises(InputError, match=r"expected a model without a LoRA, got one with \['seg4diff'\]"):
            attach(backbone.transformer, backbone.family, 2, 2)
        with pytest.raises(InputError, match="unload_lora_weights"), apply_lora(backbone, weights):
            pass
        velocity(backbone)  # the first one is still there
    assert not hasattr(backbone.transformer, "peft_config")


def test_weights_of_another_model_are_refused(build_backbone, weights):
    wider = build_backbone(attention_head_dim=24, caption_projection_dim=72)
    with pytest.raises(CheckpointError, match="expected 72 channels for .*, got 60"), apply_lora(wider, weights):
        pass
    shallow = build_backbone(num_layers=2)
    with pytest.raises(CheckpointError, match="which it does not have"), apply_lora(shallow, weights):
        pass


class Attack:
    def __reduce__(self):
        return (print, ("code ran",))


def test_files_that_are_no_lora_are_named(weights, tmp_path, capsys):
    with pytest.raises(CheckpointError, match="got no such file"):
        read_lora(tmp_path / "nothing")
    (tmp_path / "cut.safetensors").write_bytes(b"12345")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_lora(tmp_path / "cut.safetensors")
    torch.save({"model": {"x": Attack()}}, tmp_path / "attack.pth")
    with pytest.raises(CheckpointError, match="would run code"):
        read_lora(tmp_path / "attack.pth")
    assert "code ran" not in capsys.readouterr().out
    torch.save({"state": 1}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"with 'model' in .*got the entries \['state'\]"):
        read_lora(tmp_path / "other.pth")
    torch.save(
        {"model": released(weights, False)["model"] | {"sem_seg_head.bias": torch.ones(1)}}, tmp_path / "more.pth"
    )
    with pytest.raises(CheckpointError, match=r"got 1 other\(s\), such as 'sem_seg_head.bias'"):
        read_lora(tmp_path / "more.pth")


def test_damaged_pairs_are_named(weights, tmp_path):
    def saved(tensors: dict) -> str:
        save_file(tensors, tmp_path / "x.safetensors")
        return str(tmp_path / "x.safetensors")

    a, b = torch.ones(2, 5), torch.ones(7, 3)
    with pytest.raises(CheckpointError, match="got only one for m"):
        read_lora(saved({"m.lora_A.weight": a}))
    with pytest.raises(CheckpointError, match=r"got ranks \[2, 3\]"):
        read_lora(saved({"m.lora_A.weight": a, "m.lora_B.weight": b}))
    with pytest.raises(CheckpointError, match="got 'm.weight'"):
        read_lora(saved({"m.weight": a}))


def test_shipped_loras_fit_the_embedded_model():
    backbone = load_backbone("mini")
    for name in SHIPPED:
        weights = read_lora(name)
        assert weights.rank == 16
        assert not weights.conv_head
        settings = json.loads((SHIPPED[name] / "settings.json").read_text())
        weights = [found.split("-")[0] for found in (settings["fingerprint"], model_fingerprint(backbone))]
        assert weights[0] == weights[1], "mini changed after its LoRAs were trained"
        with apply_lora(backbone, name):
            pass


def test_the_shipped_lora_segments_better_than_its_control():
    backbone, scores = load_backbone("mini"), {}
    for name in SHIPPED:
        with apply_lora(backbone, name):
            table = layer_step_sweep(backbone, Scenes("test", 24), layers="expert", progress=False).totals
        scores[name] = table["object_mIoU"].item()
    assert scores["mini-magnet"] > scores["mini-flow"] + 0.04


def randomized(part, seed: int) -> dict[str, torch.Tensor]:
    """Random values for the adapter that was just added, and its state as peft writes it."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in part.named_parameters():
        if ".lora_" in name:
            value.data = torch.rand(value.shape, generator=generator) / 3
    return get_peft_model_state_dict(part, adapter_name="default")


ATTENTION = ["attn.to_q", "attn.to_k", "attn.to_out.0"]
CONFIGS = {
    "plain": {"r": 4, "lora_alpha": 4},
    "strong": {"r": 4, "lora_alpha": 16},
    "rank-stabilized": {"r": 4, "lora_alpha": 16, "use_rslora": True},
    "decomposed": {"r": 4, "lora_alpha": 2, "use_dora": True},
    "patterns": {"r": 4, "lora_alpha": 8, "rank_pattern": {"to_k": 2}, "alpha_pattern": {"to_q": 3}},
    "bias": {"r": 2, "lora_alpha": 8, "lora_bias": True},
    "feed-forward too": {"r": 3, "lora_alpha": 2, "target_modules": [*ATTENTION, "ff.net.0.proj"]},
}


# peft takes a bias for a matrix that was not gathered
@pytest.mark.filterwarnings("ignore:Adapter .* invalid shape")
class TestFilesOfOthers:
    """Inside `apply_lora` the output is exactly that of the library which wrote the file."""

    @staticmethod
    def picture(backbone):
        (picture,) = backbone.generate("a cat", steps=2, progress=False)
        return velocity(backbone), np.asarray(picture)

    def check(self, backbone, source, load, unload):
        bare = self.picture(backbone)
        load()
        expected = self.picture(backbone)
        unload()
        assert not torch.equal(expected[0], bare[0])
        with apply_lora(backbone, source):
            found = self.picture(backbone)
        assert torch.equal(found[0], expected[0])
        assert (found[1] == expected[1]).all()
        assert torch.equal(velocity(backbone), bare[0])

    def written(self, backbone, folder, config, encoders=(), header=True):
        parts = {"transformer": LoraConfig(**({"target_modules": ATTENTION} | config))}
        parts |= {name: LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "fc1"]) for name in encoders}
        arguments = {}
        for seed, (name, chosen) in enumerate(parts.items()):
            part = getattr(backbone.pipe, name)
            part.add_adapter(chosen)
            arguments[f"{name}_lora_layers"] = randomized(part, seed)
            if header:
                arguments[f"{name}_lora_adapter_metadata"] = chosen.to_dict()
        backbone.pipe.save_lora_weights(folder, **arguments)
        backbone.pipe.unload_lora_weights()
        return folder

    @pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
    @pytest.mark.parametrize("header", [True, False], ids=["header", "bare"])
    def test_diffusers(self, backbone, tmp_path, config, header):
        if not header and config.get("use_dora"):
            pytest.skip("peft refuses magnitudes without a configuration")
        folder, pipe = self.written(backbone, tmp_path, config, header=header), backbone.pipe
        self.check(
            backbone, folder, partial(pipe.load_lora_weights, folder, weight_name=FILE), pipe.unload_lora_weights
        )
        # and through weights in memory
        with apply_lora(backbone, tmp_path):
            expected = velocity(backbone)
        with apply_lora(backbone, read_lora(tmp_path)):
            assert torch.equal(velocity(backbone), expected)
        save_lora(read_lora(tmp_path), tmp_path / "again")
        with apply_lora(backbone, tmp_path / "again"):
            assert torch.equal(velocity(backbone), expected)

    def test_strength_is_that_of_the_pipeline(self, backbone, tmp_path):
        folder, pipe = self.written(backbone, tmp_path, CONFIGS["strong"], ["text_encoder"]), backbone.pipe
        pipe.load_lora_weights(folder, weight_name=FILE, adapter_name="x")
        pipe.set_adapters(["x"], [0.3])
        expected = velocity(backbone)
        pipe.unload_lora_weights()
        with apply_lora(backbone, folder, 0.3):
            assert torch.equal(velocity(backbone), expected)

    @pytest.mark.parametrize("encoders", [["text_encoder"], ["text_encoder", "text_encoder_2"]])
    def test_text_encoders(self, backbone, tmp_path, encoders):
        folder, pipe = self.written(backbone, tmp_path, CONFIGS["strong"], encoders), backbone.pipe
        self.check(
            backbone, folder, partial(pipe.load_lora_weights, folder, weight_name=FILE), pipe.unload_lora_weights
        )
        with pytest.raises(CheckpointError, match="transformer alone, got one of text_encoder"):
            read_lora(folder)

    @pytest.mark.parametrize("name", ["other.safetensors", "pytorch_lora_weights.safetensors"])
    def test_other_names_and_the_old_format(self, backbone, tmp_path, name):
        tensors = load_file(self.written(backbone, tmp_path, CONFIGS["plain"], header=False) / FILE)
        (tmp_path / FILE).unlink()
        old = {n.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up."): v for n, v in tensors.items()}
        save_file(old, tmp_path / name)
        pipe = backbone.pipe
        load = partial(pipe.load_lora_weights, tmp_path, weight_name=name)
        self.check(backbone, tmp_path, load, pipe.unload_lora_weights)
        self.check(backbone, tmp_path / name, load, pipe.unload_lora_weights)

    @pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
    def test_a_transformer_alone(self, backbone, tmp_path, config):
        transformer = backbone.transformer
        transformer.add_adapter(LoraConfig(**({"target_modules": ATTENTION} | config)))
        randomized(transformer, 0)
        transformer.save_lora_adapter(tmp_path)
        transformer.unload_lora()
        load = partial(transformer.load_lora_adapter, tmp_path, prefix=None, weight_name=FILE)
        self.check(backbone, tmp_path, load, transformer.unload_lora)

    @pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
    def test_peft(self, backbone, build_backbone, tmp_path, config):
        other = build_backbone()
        model = get_peft_model(other.transformer, LoraConfig(**({"target_modules": ATTENTION} | config)))
        randomized(model, 0)
        model.save_pretrained(tmp_path)
        expected = velocity(other)
        with apply_lora(backbone, tmp_path):
            assert torch.equal(velocity(backbone), expected)

    def test_flags_are_restored(self, backbone, tmp_path, caplog):
        folder, transformer = self.written(backbone, tmp_path, CONFIGS["strong"]), backbone.transformer
        transformer.requires_grad_(True).train()
        transformer.proj_out.weight.requires_grad_(False)
        with apply_lora(backbone, folder, 0.5):
            assert not any(value.requires_grad for value in transformer.parameters())
        assert transformer.training
        flags = {name for name, value in transformer.named_parameters() if not value.requires_grad}
        assert flags == {"proj_out.weight"}
        assert not caplog.records

    def test_files_that_fit_nothing(self, backbone, tmp_path):
        save_file({"unet.to_q.lora_A.weight": torch.ones(2, 5)}, tmp_path / "x.safetensors")
        with pytest.raises(CheckpointError, match="none of which it has: check which model"):
            with apply_lora(backbone, tmp_path):
                pass
        save_file({"unet.to_q.weight": torch.ones(2, 5)}, tmp_path / "x.safetensors")
        with (
            pytest.raises(CheckpointError, match=r"which it cannot load .*Invalid LoRA"),
            apply_lora(backbone, tmp_path),
        ):
            pass
        save_file({"unet.to_q.weight": torch.ones(2, 5)}, tmp_path / "y.safetensors")
        with pytest.raises(CheckpointError, match=r"got x\.safetensors, y\.safetensors: pass the file"):
            read_lora(tmp_path)
