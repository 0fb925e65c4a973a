"""Pretraining: every part learns, a killed run ends as if it had not been, and a plain pipeline comes out."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from tiny_run import MODEL, TINY
from torch import nn

from seg4diff_tools.attention.bias import AttentionBias
from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.errors import CheckpointError, InputError
from seg4diff_tools.pretrain import RunConfig, export, preset, run_stage, stages
from seg4diff_tools.pretrain.config import StageConfig
from seg4diff_tools.pretrain.loop import _rate, train
from seg4diff_tools.pretrain.speed import Speed
from seg4diff_tools.pretrain.stages import STAGES, TransformerStage, prompt_of, scene_batch
from seg4diff_tools.pretrain.vocabulary import make_tokenizer
from seg4diff_tools.scenes import plan

CPU = torch.device("cpu")
PARTS = tuple(STAGES)


class Killed(Exception):
    """Stands for a process that ends in the middle of a step."""


class Toy:
    """The smallest stage: a linear map that learns to halve its input."""

    def __init__(self, stop_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Linear(3, 3)
        self.stop_at = stop_at

    def losses(self, indices: range, generator: torch.Generator) -> dict[str, torch.Tensor]:
        if self.stop_at is not None and indices.start // len(indices) == self.stop_at:
            raise Killed
        x = torch.randn(len(indices), 3, generator=generator) + torch.randn(3)  # from both sources of randomness
        return {"error": (self.model(x) - x / 2).square().mean(), "size": x.square().mean()}

    def prepare(self, speed: Speed) -> None:
        """Nothing to make faster."""


TOY = StageConfig(steps=70, batch=5, learning_rate=0.02, warmup=10, cooldown=20, ema=0.9)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Everything in a checkpoint: weights, moving averages and the optimizers' state."""
    flat = {}

    def walk(name: str, value) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{name}.{key}", item)
        elif isinstance(value, list):
            for key, item in enumerate(value):
                walk(f"{name}.{key}", item)
        else:
            flat[name] = torch.as_tensor(value)

    saved = torch.load(folder / "state.pt", weights_only=True)
    for state in saved["optimizers"]:
        for group in state["param_groups"]:
            group.pop("betas", None)
    walk("", {key: saved[key] for key in ("step", "model", "average")})
    for number, state in enumerate(saved["optimizers"]):
        walk(f"optimizer{number}", state["state"])
    return flat


def assert_same_run(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert (one / "log.csv").read_bytes() == (other / "log.csv").read_bytes()


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory) -> Path:
    """A run whose three parts are finished."""
    run = tmp_path_factory.mktemp("run")
    for part in PARTS:
        run_stage(part, run, TINY, device="cpu")
    return run


@pytest.fixture(scope="module")
def tiny_model(tiny_run) -> Path:
    export(tiny_run, tiny_run / "model")
    return tiny_run / "model"


# the loop


def test_the_toy_learns(tmp_path):
    average = train(Toy(), replace(TOY, steps=400), tmp_path, device=CPU)
    assert not average.training
    x = torch.eye(3)
    torch.testing.assert_close(average(x), x / 2, atol=0.02, rtol=0)
    header, *rows = (tmp_path / "log.csv").read_text().splitlines()
    assert header == "step,images,rate,gradient,error,size"
    assert [int(row.split(",")[0]) for row in rows] == list(range(20, 401, 20))
    assert [int(row.split(",")[1]) for row in rows] == list(range(100, 2001, 100))
    errors = [float(row.split(",")[4]) for row in rows]
    assert errors[-1] < errors[0] / 50


@pytest.mark.parametrize("killed_at", [0, 25, 30, 41, 69])
def test_a_killed_run_ends_like_one_that_was_not(tmp_path, killed_at):
    whole = train(Toy(), TOY, tmp_path / "whole", device=CPU, save_every=30)
    with pytest.raises(Killed):
        train(Toy(stop_at=killed_at), TOY, tmp_path / "killed", device=CPU, save_every=30)
    torch.manual_seed(12345)  # what else the new process did with randomness does not matter
    resumed = train(Toy(), TOY, tmp_path / "killed", device=CPU, save_every=30)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert torch.equal(whole.weight, resumed.weight)


def test_rows_that_a_kill_left_in_the_log_are_dropped(tmp_path):
    train(Toy(), TOY, tmp_path / "whole", device=CPU, save_every=30)
    with pytest.raises(Killed):
        train(Toy(stop_at=45), TOY, tmp_path / "killed", device=CPU, save_every=30)
    log = tmp_path / "killed" / "log.csv"
    assert [row.split(",")[0] for row in log.read_text().splitlines()[1:]] == ["20", "40"]
    log.write_bytes(log.read_bytes() + b"2")  # the beginning of a row that was never finished
    train(Toy(), TOY, tmp_path / "killed", device=CPU, save_every=30)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_an_empty_log_and_an_unfinished_checkpoint_do_no_harm(tmp_path):
    train(Toy(), TOY, tmp_path / "whole", device=CPU)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "log.csv").touch()
    (tmp_path / "killed" / "state.part").write_bytes(b"half a checkpo")
    train(Toy(), TOY, tmp_path / "killed", device=CPU)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_finished_run_can_be_made_longer(tmp_path):
    train(Toy(), TOY, tmp_path, device=CPU)
    before = weights(tmp_path)
    again = train(Toy(), TOY, tmp_path, device=CPU)
    assert torch.equal(again.weight, weights(tmp_path)[".average.module.weight"])
    assert all(torch.equal(before[name], value) for name, value in weights(tmp_path).items())
    train(Toy(), replace(TOY, steps=90), tmp_path, device=CPU)
    assert int(weights(tmp_path)[".step"]) == 90
    rows = (tmp_path / "log.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == [20, 40, 60, 70, 80, 90]


@pytest.mark.parametrize("damage", ["empty", "cut", "other", "foreign"])
def test_a_checkpoint_that_cannot_be_read_is_one_clear_error(tmp_path, damage):
    train(Toy(), replace(TOY, steps=3), tmp_path, device=CPU)
    state = tmp_path / "state.pt"
    if damage == "empty":
        state.write_bytes(b"")
    elif damage == "cut":
        state.write_bytes(state.read_bytes()[:-200])
    elif damage == "other":
        state.write_text("not a checkpoint")
    else:
        torch.save({"step": 3, "model": {}, "average": {}, "optimizers": []}, state)
    with pytest.raises(CheckpointError, match=r"cannot go on from .*state\.pt.*Delete the file"):
        train(Toy(), TOY, tmp_path, device=CPU)


def test_rates_warm_up_and_cool_down():
    config = StageConfig(steps=100, batch=1, learning_rate=1.0, warmup=10, cooldown=20)
    assert [_rate(step, config) for step in (0, 4, 9, 50, 80, 90, 99)] == pytest.approx([0.1, 0.5, 1, 1, 1, 0.5, 0.05])


# the parts


@pytest.mark.parametrize("part", PARTS)
def test_every_part_learns_a_repeated_batch(tiny_run, tmp_path, part):
    folder = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("model", "*.pt"))
    stage = STAGES[part](MODEL, folder, CPU)
    optimizer = torch.optim.AdamW(stage.model.parameters(), 3e-3)
    found = []
    for _ in range(12):
        losses = stage.losses(range(5), torch.Generator().manual_seed(3))
        assert all(math.isfinite(loss.item()) for loss in losses.values())
        next(iter(losses.values())).backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(next(iter(losses.values())).item())
    assert min(found[-3:]) < 0.9 * found[0]


@pytest.mark.parametrize("part", PARTS)
def test_every_part_goes_on_exactly_after_a_kill(tiny_run, tmp_path, monkeypatch, part):
    run = tmp_path / "run"
    for other in PARTS[: PARTS.index(part)]:
        shutil.copytree(tiny_run / other, run / other)
    if (tiny_run / "tokenizer").exists():
        shutil.copytree(tiny_run / "tokenizer", run / "tokenizer")
    losses = STAGES[part].losses

    def until_step_4(self, indices, generator):
        if indices.start == 4 * len(indices):
            raise Killed
        return losses(self, indices, generator)

    with monkeypatch.context() as patch:
        patch.setattr(STAGES[part], "losses", until_step_4)
        with pytest.raises(Killed):
            run_stage(part, run, TINY, device="cpu", save_every=3)
    assert torch.load(run / part / "state.pt", weights_only=True)["step"] == 3
    assert not (run / part / "config.json").exists()
    run_stage(part, run, device="cpu", save_every=3)  # with the configuration that the run was started with
    assert_same_run(tiny_run / part, run / part)
    for path in (tiny_run / part).glob("*.safetensors"):
        assert path.read_bytes() == (run / part / path.name).read_bytes()


def test_latents_are_scaled_to_unit_deviation(tiny_run):
    vae = AutoencoderKL.from_pretrained(tiny_run / "vae")
    images, _ = scene_batch(range(64), MODEL.scenes, CPU)
    with torch.no_grad():
        latents = (vae.encode(images).latent_dist.mean - vae.config.shift_factor) * vae.config.scaling_factor
    assert abs(latents.mean().item()) < 0.1
    assert abs(latents.std().item() - 1) < 0.1


@pytest.mark.parametrize("part", PARTS)
def test_masks_never_reach_a_loss(tiny_run, tmp_path, monkeypatch, part):
    folder = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("model", "*.pt"))
    stage = STAGES[part](MODEL, folder, CPU)
    render = stages.render

    def with_other_masks(*arguments):
        images, owners = render(*arguments)
        return images, torch.randint_like(owners, 7)

    found = []
    for drawn in (render, with_other_masks):
        monkeypatch.setattr(stages, "render", drawn)
        torch.manual_seed(0)
        found.append(next(iter(stage.losses(range(4), torch.Generator().manual_seed(0)).values())).item())
    assert found[0] == found[1]


def test_prompts_are_captions_class_names_or_empty():
    order = np.random.default_rng(0)
    plans = [plan("train", index) for index in range(50)]
    for p in plans:
        assert prompt_of(p, 0.05, order) == ""
        assert prompt_of(p, 0.75, order) == p.caption
        told, names = prompt_of(p, 0.3, order), {o.concept for o in p.placements} | {p.background}
        assert len(told) == len(" ".join(names))
        assert all(name in told for name in names)
    draws = np.linspace(0, 1, 1001)[:-1]
    told = [prompt_of(plans[0], draw, order) for draw in draws]
    assert told.count("") == 100
    assert told.count(plans[0].caption) == pytest.approx(500, abs=1)


def test_one_weighted_zero_vector_stands_for_many():
    """Without T5 a pipeline appends zero vectors; in training one of them with log(n) on its key stands for n."""
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=6,
        num_layers=3,
        attention_head_dim=20,
        num_attention_heads=3,
        joint_attention_dim=14,
        caption_projection_dim=60,
        pooled_projection_dim=11,
        pos_embed_max_size=5,
        qk_norm="rms_norm",
    ).double()
    text, zeros = torch.randn(2, 7, 14).double(), 77
    inputs = {
        "hidden_states": torch.randn(2, 16, 6, 6).double(),
        "pooled_projections": torch.randn(2, 11).double(),
        "timestep": torch.tensor([300.0, 800.0]).double(),
        "return_dict": False,
    }
    with torch.no_grad():
        many = model(encoder_hidden_states=torch.cat([text, text.new_zeros(2, zeros, 14)], 1), **inputs)[0]
        bias = torch.zeros(9 + 7 + 1).double()
        bias[-1] = math.log(zeros)
        with intercept(model, bias=AttentionBias(bias)):
            one = model(encoder_hidden_states=torch.cat([text, text.new_zeros(2, 1, 14)], 1), **inputs)[0]
        few = model(encoder_hidden_states=torch.cat([text, text.new_zeros(2, 1, 14)], 1), **inputs)[0]
    torch.testing.assert_close(one, many, rtol=0, atol=1e-12)
    assert (few - many).abs().max() > 1e-6


def test_thinned_prompts_keep_every_word_and_count_every_pad(tiny_run):
    stage = TransformerStage(MODEL, tiny_run, CPU)
    prompts = ["a cat on sand", "", "two dogs and a red car in snow"]
    ids = stage.tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert stage._words(ids) == 2 + 8  # start, eight words, end
    kept, counts = stage._thin(torch.Generator().manual_seed(0))
    columns = MODEL.recipe.columns
    assert kept[:columns].tolist() == list(range(columns))
    assert columns >= stage._words(ids)
    assert len(kept) == len(counts) == columns + stage.PADS
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert kept.max() < 77
    assert counts[:columns].tolist() == [1.0] * columns
    assert counts[columns:].tolist() == pytest.approx([(77 - columns) / 8] * 8)


def test_all_thinned_batches_have_one_shape_and_long_prompts_are_never_cut(tiny_run):
    stage = TransformerStage(MODEL, tiny_run, CPU)
    generator = torch.Generator().manual_seed(0)
    for prompts in (["a cat on sand", ""], ["two dogs and a red car in snow"] * 2):
        text, pooled, counts = stage._encode(prompts, True, 1.0, generator)
        assert text.shape == (2, 22 + 8 + 1, 44)
        assert counts.shape == (31,)
        assert pooled.shape == (2, 44)
        assert counts[:-1].sum().item() == pytest.approx(77)
        assert 32 <= counts[-1] <= 384
    for prompts, thinned in ((["cat " * 30] * 2, True), (["a cat on sand"] * 2, False)):
        text, _, counts = stage._encode(prompts, thinned, 1.0, generator)
        assert text.shape == (2, 78, 44)
        assert counts[:-1].tolist() == [1.0] * 77


def test_the_tokenizer_writes_any_word(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    for text in ("a cat on sand", "two fire engines", "xylophone quiz", "Crème brûlée"):
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in ids[1:-1]
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text.lower()
    assert len(tokenizer("a cat on sand").input_ids) == 6
    assert len(tokenizer("cat " * 100, truncation=True).input_ids) == 77


# runs


def test_the_exported_model_is_a_plain_pipeline(tiny_model):
    pipe = StableDiffusion3Pipeline.from_pretrained(tiny_model, text_encoder_3=None, tokenizer_3=None)
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            assert {weight.dtype for weight in part.parameters()} == {torch.float32}, name
    pipe.set_progress_bar_config(disable=True)
    (picture,) = pipe("a cat on sand", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images
    assert picture.size == (56, 56)
    assert np.asarray(picture).std() > 0


def test_the_exported_model_holds_the_trained_weights(tiny_run, tiny_model):
    trained = SD3Transformer2DModel.from_pretrained(tiny_run / "transformer").state_dict()
    stored = SD3Transformer2DModel.from_pretrained(tiny_model / "transformer").state_dict()
    for name, value in trained.items():
        torch.testing.assert_close(stored[name], value, rtol=1e-3, atol=1e-6)
    assert any(value.abs().sum() > 0 for name, value in stored.items() if "norm1.linear.weight" in name)
    assert (tiny_model / "clip" / "config.json").is_file()
    assert max(path.stat().st_size for path in tiny_model.rglob("*.safetensors")) < 15_000_000


def test_the_exported_model_can_be_segmented_with(tiny_model):
    from seg4diff_tools.backbones.loading import load_backbone
    from seg4diff_tools.segmentation.options import OpenVocabulary
    from seg4diff_tools.segmentation.segment import segment

    backbone = load_backbone(tiny_model)
    assert backbone.image_size == 56
    assert backbone.token_grid() == (7, 7)
    found = segment(backbone, np.zeros((56, 56, 3), np.uint8), ["cat", "sand"], OpenVocabulary(layers=3))
    assert found.label_map.shape == (56, 56)


def test_a_missing_part_is_named(tiny_run, tmp_path):
    with pytest.raises(CheckpointError, match=r"clip is not finished: run .*pretrain clip"):
        run_stage("transformer", tmp_path, TINY, device="cpu")
    shutil.copytree(tiny_run / "clip", tmp_path / "clip")
    shutil.copytree(tiny_run / "tokenizer", tmp_path / "tokenizer")
    with pytest.raises(CheckpointError, match=r"vae is not finished: run .*pretrain vae"):
        run_stage("transformer", tmp_path, TINY, device="cpu")
    with pytest.raises(CheckpointError, match="vae is not finished"):
        export(tmp_path, tmp_path / "model")
    with pytest.raises(InputError, match="one of 'clip', 'vae', 'transformer', got 'unet'"):
        run_stage("unet", tmp_path, TINY)


@pytest.mark.usefixtures("unchecked")
def test_a_configuration_takes_numpy_numbers(tmp_path):
    config = replace(TINY, clip=replace(TINY.clip, steps=np.int64(5), learning_rate=np.float32(0.5)))  # type: ignore[arg-type]
    config.save(tmp_path)
    assert RunConfig.load(tmp_path) == config


def test_configurations_survive_a_round_trip(tmp_path):
    for config in (TINY, preset("cpu"), preset("gpu"), preset("cpu-rich"), preset("gpu-rich")):
        config.save(tmp_path)
        assert RunConfig.load(tmp_path) == config
    with pytest.raises(InputError, match="one of 'cpu', 'gpu', 'cpu-rich', 'gpu-rich', 'cpu-further', got 'tpu'"):
        preset("tpu")
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        RunConfig.load(tmp_path / "elsewhere")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {}}', '{"model": {"scenes": {"sizes": 3}}}'])
def test_a_damaged_configuration_is_one_clear_error(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        RunConfig.load(tmp_path)
