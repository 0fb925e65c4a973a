"""Fast training: the mathematics of PyTorch's own ways, latents that depend on their number alone, and looks."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from tiny_run import MODEL, TINY
from torch import nn
from typer.testing import CliRunner

from seg4diff_tools.attention.bias import AttentionBias
from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.cli.pretrain import pretrain as command
from seg4diff_tools.errors import CheckpointError, InputError
from seg4diff_tools.pretrain import export, images_of, model_card, run_stage
from seg4diff_tools.pretrain import speed as speeds
from seg4diff_tools.pretrain.config import RunConfig
from seg4diff_tools.pretrain.latents import BLOCK, LatentCache, cache_key, pool_size, slots
from seg4diff_tools.pretrain.loop import _moving_average
from seg4diff_tools.pretrain.muon import BatchedMuon, orthogonalize
from seg4diff_tools.pretrain.speed import Speed, accelerate, matrix_attention
from seg4diff_tools.pretrain.stages import TransformerStage, list_of
from seg4diff_tools.pretrain.watch import Watch

CPU = torch.device("cpu")
SHAPES = [(5, 5), (5, 5), (3, 7), (7, 3), (7, 3), (11, 2)]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Operators are so small here that threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory) -> Path:
    """A run whose three parts are finished."""
    run = tmp_path_factory.mktemp("run")
    for part in ("clip", "vae", "transformer"):
        run_stage(part, run, TINY, device="cpu")
    return run


def tiny_sd3(**changes) -> SD3Transformer2DModel:
    torch.manual_seed(0)
    sizes = {"num_layers": 3, "attention_head_dim": 20, "num_attention_heads": 3, "joint_attention_dim": 14}
    return SD3Transformer2DModel(
        sample_size=6,
        caption_projection_dim=60,
        pooled_projection_dim=11,
        pos_embed_max_size=5,
        qk_norm="rms_norm",
        **sizes | changes,
    )


def inputs(dtype: torch.dtype = torch.float32) -> dict:
    generator = torch.Generator().manual_seed(1)
    shapes = {"hidden_states": (2, 16, 6, 6), "encoder_hidden_states": (2, 7, 14), "pooled_projections": (2, 11)}
    drawn = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return drawn | {"timestep": torch.tensor([300.0, 800.0], dtype=dtype), "return_dict": False}


# Muon


def updated(optimizer, weights: list[nn.Parameter], steps: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return [weight.detach() for weight in weights]


def matrices() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def test_batched_muon_is_muon_up_to_rounding():
    one, other, exact = matrices(), matrices(), matrices()
    wanted = updated(torch.optim.Muon(one, 0.05, 0.1, adjust_lr_fn="match_rms_adamw"), one)
    found = updated(BatchedMuon(other, 0.05, 0.1), other)
    in_fp32 = updated(BatchedMuon(exact, 0.05, 0.1, dtype=torch.float32), exact)
    for start, a, b, c in zip(matrices(), wanted, found, in_fp32, strict=True):
        moved = (a - start).norm()
        # bf16 has eight bits: products of another order differ by some of the last ones
        assert (a - b).norm() < 0.02 * moved
        assert (a - c).norm() < 0.05 * moved


def test_muon_brings_singular_values_near_one():
    found = orthogonalize(torch.randn(4, 6, 9, generator=torch.Generator().manual_seed(0)))
    values = torch.linalg.svdvals(found)
    assert found.shape == (4, 6, 9)
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_one_muon_step_by_hand():
    weight = nn.Parameter(torch.zeros(1, 4))
    weight.grad = torch.tensor([[0.0, 3.0, 0.0, 4.0]])
    BatchedMuon([weight], 0.5, 0.0, dtype=torch.float32).step()
    value = 1.0  # the one singular value after normalization
    for _ in range(5):
        value = 3.4445 * value - 4.775 * value**3 + 2.0315 * value**5
    torch.testing.assert_close(weight.detach(), -0.2 * 2 * 0.5 * value * torch.tensor([[0.0, 0.6, 0.0, 0.8]]))


def test_chunks_are_matrices_of_their_own():
    whole, parts = nn.Parameter(torch.ones(6, 3)), [nn.Parameter(torch.ones(3, 3)) for _ in range(2)]
    whole.grad = torch.randn(6, 3)
    for part, gradient in zip(parts, whole.grad.chunk(2), strict=True):
        part.grad = gradient.clone()
    BatchedMuon([{"params": [whole], "chunks": 2}], 0.1, 0.1, dtype=torch.float32).step()
    BatchedMuon(parts, 0.1, 0.1, dtype=torch.float32).step()
    torch.testing.assert_close(whole.detach(), torch.cat([part.detach() for part in parts]), rtol=0, atol=1e-6)


def test_muons_take_each_others_state():
    one, other = matrices(), matrices()
    first, second = torch.optim.Muon(one, 0.05), BatchedMuon(other, 0.05, 0.1)
    updated(first, one)
    second.load_state_dict(first.state_dict())
    for a, b in zip(one, other, strict=True):
        assert torch.equal(first.state[a]["momentum_buffer"], second.state[b]["momentum_buffer"])


# attention


def test_matrix_attention_is_attention():
    query, key, value = (torch.randn(2, 3, n, 5, dtype=torch.float64) for n in (7, 11, 11))
    bias = torch.randn(11, dtype=torch.float64)
    wanted = nn.functional.scaled_dot_product_attention(query, key, value, bias.expand(7, 11))
    torch.testing.assert_close(matrix_attention(query, key, value, bias), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["matrix", "native"])
def test_training_attention_gives_the_same_velocity_and_gradients(kind):
    plain, fast = tiny_sd3().double(), tiny_sd3().double()
    accelerate(fast, Speed(joint_attention=kind))
    bias = torch.randn(9 + 7, dtype=torch.float64)
    with intercept(plain, bias=AttentionBias(bias)):
        wanted = plain(**inputs(torch.float64))[0]
    found = fast(joint_attention_kwargs={"key_bias": bias}, **inputs(torch.float64))[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    wanted.square().sum().backward()
    found.square().sum().backward()
    for a, b in zip(plain.parameters(), fast.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-7, atol=1e-8)


@pytest.mark.slow  # compiling takes half a minute
@pytest.mark.skipif(not speeds.has_compiler(CPU), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
def test_compiled_blocks_compute_the_same():
    plain, fast = tiny_sd3(num_layers=2), tiny_sd3(num_layers=2)
    accelerate(plain, Speed(joint_attention="matrix"))
    accelerate(fast, Speed(joint_attention="matrix", compiled=True))
    bias = {"key_bias": torch.randn(9 + 7)}
    with torch.no_grad():
        wanted = plain(joint_attention_kwargs=bias, **inputs())[0]
        torch.testing.assert_close(fast(joint_attention_kwargs=bias, **inputs())[0], wanted, rtol=1e-4, atol=1e-5)
    assert fast.state_dict().keys() == plain.state_dict().keys()


def test_without_a_compiler_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr(speeds.shutil, "which", lambda name: None)
    speed = Speed.best(CPU)
    assert not speed.compiled
    assert speed.joint_attention == "matrix"
    assert speed.batched
    assert "no compiler was found" in speed.describe(CPU)
    assert "same weights" in speed.describe(CPU)
    monkeypatch.setattr(speeds.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert Speed.best(CPU).compiled
    assert "no compiler" not in Speed.best(CPU).describe(CPU)
    assert not Speed.best(CPU, compiled=False).compiled


@pytest.mark.parametrize("fast", [True, False])
def test_precision_follows_the_hardware(monkeypatch, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": fast, "avx512_f": True})
    assert Speed.best(CPU).dtype == (torch.bfloat16 if fast else torch.float32)


def test_a_bf16_run_keeps_fp32_weights(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("transformer"))
    run_stage("transformer", run, TINY, device="cpu", speed=Speed(torch.bfloat16, False, "matrix", True))
    state = torch.load(run / "transformer" / "state.pt", weights_only=True)
    values = [
        *state["model"].values(),
        *(v for o in state["optimizers"] for s in o["state"].values() for v in s.values()),
    ]
    assert {value.dtype for value in values if value.is_floating_point()} == {torch.float32}


def test_the_average_forgets_its_start():
    update = _moving_average(0.9)
    average, current = [torch.zeros(1)], [torch.ones(1)]
    update(average, current, 1)
    assert average[0].item() == pytest.approx(1 - 2 / 11)
    average = [torch.zeros(1)]
    update(average, current, 1000)
    assert average[0].item() == pytest.approx(0.1)


# latents


def test_every_scene_of_the_pool_is_seen_once_in_each_pass():
    assert slots(range(5), 0) == [0, 1, 2, 3, 4]
    passes = [slots(range(n * 64, (n + 1) * 64), 64) for n in range(4)]
    assert passes[0] == list(range(64))
    assert all(sorted(one) == passes[0] for one in passes)
    assert len({tuple(one) for one in passes}) == 4


def test_pool_sizes_by_hand():
    assert MODEL.latent_side == 14
    assert pool_size(0, MODEL) == BLOCK
    # a latent has 16 x 14 x 14 half-precision numbers, 6272 bytes: 159 fit into a megabyte
    assert pool_size(0.001, MODEL) == 128


def test_latents_are_encoded_once_and_in_whole_blocks(tmp_path):
    asked = []

    def encode(numbers):
        asked.append((numbers.start, numbers.stop))
        return torch.tensor([float(number) for number in numbers])[:, None, None, None].expand(-1, 1, 2, 2)

    cache = LatentCache(tmp_path, 80, (1, 2, 2), "one", encode)
    assert cache([3, 70])[:, 0, 0, 0].tolist() == [3.0, 70.0]
    assert cache([31, 3]).shape == (2, 1, 2, 2)
    assert asked == [(0, 32), (64, 80)]
    again = LatentCache(tmp_path, 80, (1, 2, 2), "one", encode)
    assert again([5, 40])[:, 0, 1, 1].tolist() == [5.0, 40.0]
    assert asked == [(0, 32), (64, 80), (32, 64)]
    LatentCache(tmp_path, 80, (1, 2, 2), "another VAE", encode)([0])
    assert asked[-1] == (0, 32)


def test_cached_latents_are_those_of_the_scenes_and_resumes_are_exact(tiny_run, tmp_path):
    config = replace(MODEL, recipe=replace(MODEL.recipe, pool=64, easy=10))
    drawn = TransformerStage(replace(config, recipe=replace(config.recipe, pool=0)), tiny_run, CPU)
    stage = TransformerStage(config, tiny_run, CPU, cache=tmp_path / "cache")
    numbers = [40, 3, 9]
    torch.testing.assert_close(stage.latents(numbers), drawn.latents(numbers), rtol=2e-3, atol=1e-3)
    warm = TransformerStage(config, tiny_run, CPU, cache=tmp_path / "cache")
    cold = TransformerStage(config, tiny_run, CPU, cache=tmp_path / "elsewhere")
    cold.latents([60, 61])  # another order of first uses
    assert torch.equal(warm.latents(numbers), cold.latents(numbers))
    assert all(len(p.placements) == 1 and p.placements[0].side > 0.44 for p in stage.plans(range(10)))
    assert max(len(p.placements) for p in stage.plans(range(10, 40))) > 1


def test_cache_keys_tell_vaes_and_scenes_apart(tiny_run):
    vae = AutoencoderKL.from_pretrained(tiny_run / "vae")
    key = cache_key(MODEL, vae, torch.float32)
    assert key == cache_key(MODEL, vae, torch.float32)
    assert key == cache_key(replace(MODEL, recipe=replace(MODEL.recipe, shift=2.0)), vae, torch.float32)
    assert key != cache_key(MODEL, vae, torch.bfloat16)
    assert key != cache_key(replace(MODEL, scenes=replace(MODEL.scenes, twins=0.5)), vae, torch.float32)
    vae.decoder.conv_out.bias.data += 1
    assert key != cache_key(MODEL, vae, torch.float32)


# recipe


def test_lists_name_what_is_there_among_other_things(tiny_run):
    stage = TransformerStage(MODEL, tiny_run, CPU)
    order = np.random.default_rng(0)
    for p in stage.plans(range(20)):
        told = list_of(p, MODEL.scenes, order).split()
        present = {placement.concept for placement in p.placements} | {p.background}
        assert present <= set(told) <= {*MODEL.scenes.concepts, *MODEL.scenes.backgrounds}
        assert len(set(told)) == len(told) == 8  # all that the tiny vocabulary has


def test_lists_stand_in_batches_with_all_columns_alone(tiny_run):
    config = replace(MODEL, recipe=replace(MODEL.recipe, lists=1.0))
    stage = TransformerStage(config, tiny_run, CPU)
    plans = stage.plans(range(8))
    for number in range(12):
        prompts, thinned = stage._prompts(
            plans, stage.config.recipe.crowded + number, torch.Generator().manual_seed(number)
        )
        assert all(len(prompt.split()) == 8 and "," not in prompt for prompt in prompts) != thinned


def test_the_direction_loss_is_zero_along_and_two_against(tiny_run, monkeypatch):
    config = replace(MODEL, recipe=replace(MODEL.recipe, direction=0.5))
    stage = TransformerStage(config, tiny_run, CPU)
    losses = stage.losses(range(4), torch.Generator().manual_seed(0))
    assert list(losses) == ["loss", "flow", "direction"]
    assert 0 <= losses["direction"].item() <= 2
    assert losses["loss"].item() == pytest.approx(losses["flow"].item() + 0.5 * losses["direction"].item())


# runs


def test_a_run_can_start_from_finished_weights(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("transformer"))
    config = replace(TINY, transformer=replace(TINY.transformer, steps=1, learning_rate=0.0, muon_learning_rate=0.0))
    export(tiny_run, tmp_path / "model")
    run_stage("transformer", run, config, device="cpu", init=tmp_path / "model")
    wanted = SD3Transformer2DModel.from_pretrained(tmp_path / "model" / "transformer").state_dict()
    found = SD3Transformer2DModel.from_pretrained(run / "transformer").state_dict()
    assert all(torch.equal(found[name], value.float()) for name, value in wanted.items())
    fresh = shutil.copytree(run, tmp_path / "fresh", ignore=shutil.ignore_patterns("transformer"))
    with pytest.raises(CheckpointError, match=r"cannot start from .*Give the folder of a model with a transformer"):
        run_stage("transformer", fresh, config, device="cpu", init=tmp_path)


def test_a_model_can_be_trained_further(tiny_run, tmp_path, monkeypatch):
    """What a new run lacks comes from the model, after a kill too, and its card tells both trainings."""
    export(tiny_run, model := tmp_path / "model")
    trained = {"compute": "a core", "clip": {"steps": 5}, "vae": {"steps": 6}, "transformer": {"steps": 60}}
    (model / "model_card.json").write_text(json.dumps({"training": trained}))
    config = replace(TINY, transformer=replace(TINY.transformer, steps=1))
    run, copy = tmp_path / "run", shutil.copytree

    def dying(source, to, **options):
        copy(source, to, **options)
        if source.name == "vae":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "copytree", dying)
        run_stage("transformer", run, config, device="cpu", init=model)
    assert not (run / "vae").exists()
    run_stage("transformer", run, config, device="cpu", init=model)
    assert (run / "clip" / "config.json").is_file()
    stages = model_card._stages(run, config)
    assert {name: stage["steps"] for name, stage in stages.items()} == {
        "clip": 5,
        "vae": 6,
        "transformer": 60,
        "transformer, further": 1,
    }


def test_kept_weights_are_the_average_and_looks_change_nothing(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("seg4diff_tools.pretrain.Watch", lambda *arguments: Watch(*arguments, scenes=3, steps=2))
    runs = {}
    for name, options in {"bare": {}, "watched": {"keep": [7, 18], "watch_every": 9}}.items():
        runs[name] = shutil.copytree(tiny_run, tmp_path / name, ignore=shutil.ignore_patterns("transformer"))
        run_stage("transformer", runs[name], TINY, device="cpu", **options)
    states = [torch.load(run / "transformer" / "state.pt", weights_only=True)["model"] for run in runs.values()]
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())
    folder = runs["watched"] / "transformer"
    assert sorted(path.name for path in (folder / "kept").iterdir()) == ["000000007", "000000018"]
    kept = SD3Transformer2DModel.from_pretrained(folder / "kept" / "000000018").state_dict()
    final = SD3Transformer2DModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(kept[name].half(), value.half()) for name, value in final.items())
    looks = pd.read_csv(folder / "watch.csv")
    assert looks["images"].tolist() == [9, 18]
    assert looks["step"].tolist() == [3, 6]
    layers = [f"layer_{number}" for number in range(MODEL.layers)]
    assert looks[layers].to_numpy().max(1) == pytest.approx(looks["best"].to_numpy())
    assert {path.name for path in (folder / "pictures").iterdir()} == {"000000009.png", "000000018.png"}
    rates = pd.read_csv(folder / "speed.csv")
    assert rates["images"].tolist() == [18]
    assert rates["images_per_second"].min() > 0


def test_numbers_of_images_as_people_write_them():
    assert [images_of(text) for text in ("0.02M", "50k", "20000", "3M")] == [20_000, 50_000, 20_000, 3_000_000]
    for wrong in ("", "M", "many", "-3", "0"):
        with pytest.raises(InputError, match=r"such as 0\.02M"):
            images_of(wrong)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--cores", "0,x"], "--cores takes numbers"),
        (["--cores", "99999"], "--cores takes numbers"),
        (["--keep", "lots"], "text, a number of images"),
    ],
)
def test_slips_on_the_command_line_are_named(tmp_path, options, told):
    result = CliRunner().invoke(command, ["transformer", "--run", str(tmp_path), *options])
    assert result.exit_code != 0
    assert told in " ".join(result.output.replace("│", " ").split())


def test_old_configurations_are_read(tmp_path):
    import json

    TINY.save(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["model"]["recipe"]
    for name in ("captions", "triples", "recolorable"):
        del values["model"]["scenes"][name]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert RunConfig.load(tmp_path) == TINY
    assert math.isclose(TINY.model.recipe.shift, 3.0)
