"""The recorder: labeled maps while a pipeline runs, for any batch, grid and guidance, saved and opened again."""

import gc
import weakref

import numpy as np
import pytest
import torch
import xarray as xr

from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.joint import DIRECTIONS
from seg4diff_tools.attention.recorder import AttentionRecorder
from seg4diff_tools.attention.recording import open_recording
from seg4diff_tools.errors import InputError, RecordingError

TEXT = 77 + 5
WORDS = "a cat and a red car"


@pytest.fixture(scope="module")
def backbone(build_backbone):
    return build_backbone(dual_attention_layers=(0, 1), qk_norm="rms_norm")


@pytest.fixture(scope="module")
def prompt(backbone):
    return backbone.encode_prompt(WORDS, zero_tokens=5)


def latents(images=3, rows=5, columns=7, seed=0):
    return torch.randn(images, 16, 2 * rows, 2 * columns, generator=torch.Generator().manual_seed(seed))


def joint_maps(backbone, run) -> list[torch.Tensor]:
    """Materialized joint softmax of each layer call, in order."""
    found = []
    with intercept(backbone.transformer, lambda c: found.append((c.query @ c.key.mT * c.scale).softmax(dim=-1))):
        run()
    return found


def test_maps_of_noised_images_are_exact_and_labeled(backbone, prompt):
    def run():
        backbone.predict_velocity(latents(), torch.tensor(601.0), prompt)

    with AttentionRecorder(
        backbone, direction=("i2t", "t2i", "masses"), heads="all", prompt=prompt, tokens="all"
    ) as recorder:
        run()
    i2t, t2i, masses = (recorder.recording[name] for name in ("i2t", "t2i", "masses"))
    assert dict(i2t.sizes) == {"image": 3, "branch": 1, "step": 1, "layer": 5, "head": 3, "token": TEXT, "y": 5, "x": 7}
    assert i2t.dims == t2i.dims
    assert masses.dims == (*i2t.dims[:5], "direction")
    assert list(masses.direction.values) == list(DIRECTIONS)
    assert float(i2t.timestep[0]) == 601
    assert list(i2t.branch.values) == ["cond"]
    for layer, joint in enumerate(joint_maps(backbone, run)):
        pick = {"branch": "cond", "step": 0, "layer": layer}
        expected = joint[:, :, :35, 35:].mT.unflatten(-1, (5, 7))
        assert np.abs(i2t.sel(pick).values - expected.numpy()).max() < 1e-5
        expected = joint[:, :, 35:, :35].unflatten(-1, (5, 7))
        assert np.abs(t2i.sel(pick).values - expected.numpy()).max() < 1e-5
        image, text = joint[:, :, :35].mean(dim=2), joint[:, :, 35:].mean(dim=2)
        sums = [part.sum(dim=-1) for part in (image[..., :35], image[..., 35:], text[..., :35], text[..., 35:])]
        assert np.abs(masses.sel(pick).values - torch.stack(sums, dim=-1).numpy()).max() < 1e-5


def test_heads_layers_tokens_and_spans_are_reduced_as_numpy_would(backbone, prompt):
    def record(**options):
        with AttentionRecorder(backbone, prompt=prompt, **({"tokens": "all"} | options)) as recorder:
            backbone.predict_velocity(latents(), torch.tensor(601.0), prompt)
        return recorder.maps

    full = record(heads="all")
    mean = record()
    assert "head" not in mean.dims
    np.testing.assert_allclose(mean, full.mean("head"), atol=1e-7)
    some = record(heads=[2, 1], layers=[4, 1], tokens=[6, 2])
    assert (list(some["head"]), list(some.layer), list(some.token_index)) == ([1, 2], [1, 4], [6, 2])
    np.testing.assert_allclose(some, full.sel(head=[1, 2], layer=[1, 4]).isel(token=[6, 2]), atol=1e-7)
    assert record(layers=3).layer.values == [3]
    cat, car = prompt.span("cat"), prompt.span("red car")
    for direction in ("i2t", "t2i"):
        whole = record(direction=direction, heads="all")
        spans = record(direction=direction, tokens={"cat": cat, "red car": car})
        assert list(spans.token.values) == ["cat", "red car"]
        for name, span in (("cat", cat), ("red car", car)):
            expected = whole.isel(token=list(span)).mean(("token", "head"))
            np.testing.assert_allclose(spans.sel(token=name, drop=True), expected, atol=1e-7)
    masses = {}
    for heads in ("mean", "all"):
        with AttentionRecorder(backbone, direction="masses", heads=heads) as recorder:
            backbone.predict_velocity(latents(), torch.tensor(601.0), prompt)
        masses[heads] = recorder.masses
    np.testing.assert_allclose(masses["mean"], masses["all"].mean("head"), atol=1e-6)


def test_words_label_the_tokens_and_repeated_words_stay_apart(backbone, prompt):
    with AttentionRecorder(backbone, layers=1, prompt=prompt, tokens="all") as recorder:
        backbone.predict_velocity(latents(), torch.tensor(601.0), prompt)
    maps = recorder.maps
    assert len(set(maps.token.values)) == TEXT
    first, second = prompt.span("a")
    assert int(maps.sel(token="a").token_index) == first
    assert int(maps.sel(token="a#2").token_index) == second
    assert maps.sel(token="cat").token_kind == "word"
    assert maps.sel(token="cat").token_reader == "CLIP"
    assert (maps.token_kind == "zero").sum() == 5
    with AttentionRecorder(backbone, layers=1) as recorder:
        backbone.predict_velocity(latents(), torch.tensor(601.0), prompt)
    np.testing.assert_array_equal(recorder.maps.token, np.arange(TEXT))
    np.testing.assert_array_equal(recorder.maps, maps)


def test_generation_is_unchanged_and_its_guidance_branches_are_kept_apart(backbone, prompt):
    def run():
        return backbone.generate(
            [prompt] * 3, steps=2, guidance_scale=5.0, seed=[1, 2, 3], size=(40, 56), progress=False
        )

    plain = run()
    with AttentionRecorder(backbone, heads="all", prompt=prompt, tokens="all") as recorder:
        watched = run()
    for x, y in zip(plain, watched, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    maps = recorder.maps
    assert dict(maps.sizes) == {
        "image": 3,
        "branch": 2,
        "step": 2,
        "layer": 5,
        "head": 3,
        "token": TEXT,
        "y": 5,
        "x": 7,
    }
    assert list(maps.branch.values) == ["uncond", "cond"]
    assert maps.timestep.dims == ("step",)
    assert maps.timestep[0] > maps.timestep[1]
    joint = torch.stack(joint_maps(backbone, run)).unflatten(0, (2, 5))[:, :, :, :, :35, 35:]
    expected = joint.mT.unflatten(-1, (5, 7)).unflatten(2, (2, 3))  # step layer branch image head token y x
    np.testing.assert_allclose(maps, expected.permute(3, 2, 0, 1, 4, 5, 6, 7), atol=1e-5)


def test_guidance_that_is_off_or_left_over_makes_no_branches(backbone, prompt):
    with AttentionRecorder(backbone, layers=1) as recorder:
        backbone.generate(prompt, steps=2, guidance_scale=1.0, seed=[1, 2], progress=False)
    assert list(recorder.maps.branch.values) == ["cond"]
    assert recorder.maps.sizes["image"] == 2
    backbone.generate(prompt, steps=1, guidance_scale=5.0, progress=False)
    same = latents(images=1).expand(2, -1, -1, -1)
    with AttentionRecorder(backbone, layers=1) as recorder:
        backbone.predict_velocity(same, torch.tensor(601.0), prompt)
    assert list(recorder.maps.branch.values) == ["cond"]
    assert recorder.maps.sizes["image"] == 2


def test_a_bare_pipeline_and_a_transformer_are_recorded_too(backbone, prompt):
    pipe = backbone.pipe
    arguments = {
        "prompt_embeds": prompt.inputs["encoder_hidden_states"],
        "pooled_prompt_embeds": prompt.inputs["pooled_projections"],
        "negative_prompt_embeds": prompt.inputs["encoder_hidden_states"],
        "negative_pooled_prompt_embeds": prompt.inputs["pooled_projections"],
        "num_inference_steps": 1,
        "output_type": "latent",
    }
    with AttentionRecorder(pipe, layers=1) as recorder:
        pipe(**arguments, generator=torch.Generator().manual_seed(0))
    with AttentionRecorder(pipe.transformer, layers=1, branches=("uncond", "cond")) as stated:
        pipe(**arguments, generator=torch.Generator().manual_seed(0))
    xr.testing.assert_identical(recorder.maps, stated.maps)
    np.testing.assert_allclose(*recorder.maps.transpose("branch", ...).values, atol=1e-6)


def test_the_extra_forward_of_skip_layer_guidance_is_no_step(backbone, prompt):
    forwards = []
    handle = backbone.transformer.register_forward_pre_hook(lambda *_: forwards.append(1))
    with AttentionRecorder(backbone, layers=1) as recorder:
        backbone.pipe(
            prompt_embeds=prompt.inputs["encoder_hidden_states"],
            pooled_prompt_embeds=prompt.inputs["pooled_projections"],
            negative_prompt_embeds=prompt.inputs["encoder_hidden_states"],
            negative_pooled_prompt_embeds=prompt.inputs["pooled_projections"],
            num_inference_steps=2,
            output_type="latent",
            skip_guidance_layers=[2],
            skip_layer_guidance_start=0.0,
            skip_layer_guidance_stop=1.0,
        )
    handle.remove()
    assert len(forwards) == 3
    assert (recorder.maps.sizes["step"], recorder.maps.sizes["branch"], recorder.maps.sizes["image"]) == (2, 2, 1)


def test_branches_that_come_one_after_the_other_share_a_step(backbone, prompt):
    empty = backbone.encode_prompt("", zero_tokens=5)
    with AttentionRecorder(backbone, layers=[0, 3], branches=("cond", "uncond")) as recorder:
        for timestep in (900.0, 300.0):
            for text in (prompt, empty):
                backbone.predict_velocity(latents(), torch.tensor(timestep), text)
    with AttentionRecorder(backbone, layers=[0, 3]) as single:
        backbone.predict_velocity(latents(), torch.tensor(300.0), empty)
    maps = recorder.maps
    assert list(maps.branch.values) == ["cond", "uncond"]
    assert list(maps.timestep.values) == [900, 300]
    np.testing.assert_array_equal(maps.sel(step=1, branch="uncond"), single.maps.sel(step=0, branch="cond"))
    with (
        pytest.raises(RecordingError, match="uncond did not come"),
        AttentionRecorder(backbone, branches=("cond", "uncond")),
    ):
        for timestep in (900.0, 300.0):
            backbone.predict_velocity(latents(), torch.tensor(timestep), prompt)


def test_steps_are_counted_and_timesteps_of_a_batch_may_differ(backbone, prompt):
    with AttentionRecorder(backbone, layers=2, steps=[1, 3]) as recorder:
        for timestep in (900.0, 700.0, 500.0, 300.0, 100.0):
            backbone.predict_velocity(latents(), torch.tensor(timestep), prompt)
    assert list(recorder.maps.step) == [1, 3]
    assert list(recorder.maps.timestep) == [700, 300]
    with AttentionRecorder(backbone, layers=2) as recorder:
        backbone.predict_velocity(latents(), torch.tensor([900.0, 500.0, 100.0]), prompt)
    assert recorder.maps.timestep.dims == ("step", "image")
    assert recorder.maps.timestep.sel(image=1, step=0) == 500


def test_stop_after_records_the_same_and_a_new_with_starts_anew(backbone, prompt):
    with AttentionRecorder(backbone, layers=[0, 2]) as full:
        backbone.predict_velocity(latents(), torch.tensor(601.0), prompt)
    recorder = AttentionRecorder(backbone, layers=[0, 2], stop_after=2)
    for _ in range(2):
        with recorder:
            backbone.predict_velocity(latents(), torch.tensor(601.0), prompt)
            pytest.fail("the forward stopped inside layer 2, so that this line is not reached")
        xr.testing.assert_identical(recorder.maps, full.maps)
    assert list(AttentionRecorder(backbone, stop_after=2)._request.layers) == [0, 1, 2]


def test_after_an_exception_the_model_is_free_and_complete_steps_are_kept(backbone, prompt):
    modules = list(backbone.transformer.modules())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules]

    def cancel(step, timestep, tensors):
        if step == 1:
            raise KeyboardInterrupt

    recorder = AttentionRecorder(backbone, layers=[0, 4])
    with pytest.raises(KeyboardInterrupt), recorder:
        backbone.generate(prompt, steps=5, guidance_scale=5.0, progress=False, callback=cancel)
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules]
    assert list(recorder.maps.step) == [0, 1]


def test_results_can_be_read_while_recording_and_hold_no_model(build_backbone):
    backbone = build_backbone(num_layers=2)
    with AttentionRecorder(backbone) as recorder:
        backbone.predict_velocity(latents(), torch.tensor(900.0), "cat")
        first = recorder.maps
        backbone.predict_velocity(latents(), torch.tensor(300.0), "cat")
    assert recorder.recording is recorder.recording
    xr.testing.assert_identical(recorder.maps.isel(step=[0]), first)
    maps, model = recorder.recording, weakref.ref(backbone.transformer)
    del backbone, recorder
    gc.collect()
    assert model() is None
    assert maps.maps.sizes["step"] == 2


def test_the_memory_budget_is_kept(backbone, prompt):
    size = 4 * 3 * TEXT * 35  # one layer's mean map; the last of five is there twice for a moment
    with AttentionRecorder(backbone, memory_budget=6 * size + 1) as tight:
        backbone.predict_velocity(latents(), torch.tensor(601.0), prompt)
    with AttentionRecorder(backbone) as loose:
        backbone.predict_velocity(latents(), torch.tensor(601.0), prompt)
    np.testing.assert_allclose(tight.maps, loose.maps, atol=1e-7)
    with (
        pytest.raises(RecordingError, match="memory_budget.*1 steps x 1 branches x 3 images x 5 layers.*layers=2"),
        AttentionRecorder(backbone, memory_budget=6 * size - 1),
    ):
        backbone.predict_velocity(latents(), torch.tensor(601.0), prompt)


def test_one_recording_holds_one_size(backbone, prompt):
    with (
        pytest.raises(RecordingError, match=r"got 3 images of \(5, 7\) tokens first, now 2 of \(5, 7\)"),
        AttentionRecorder(backbone),
    ):
        backbone.predict_velocity(latents(), torch.tensor(900.0), prompt)
        backbone.predict_velocity(latents(images=2), torch.tensor(300.0), prompt)
    with pytest.raises(RecordingError, match="82 text tokens first, now 77"), AttentionRecorder(backbone):
        backbone.predict_velocity(latents(), torch.tensor(900.0), prompt)
        backbone.predict_velocity(latents(), torch.tensor(300.0), backbone.encode_prompt(WORDS, zero_tokens=0))


def test_what_cannot_be_recorded_is_refused(backbone, prompt):
    with pytest.raises(InputError, match="expected layers from 0 to 4, got 5"):
        AttentionRecorder(backbone, layers=5)
    with pytest.raises(InputError, match="up to stop_after=2, got 3"):
        AttentionRecorder(backbone, layers=[1, 3], stop_after=2)
    with pytest.raises(InputError, match="expected heads from 0 to 2, got 3"):
        AttentionRecorder(backbone, heads=[3])
    with pytest.raises(InputError, match='"mean", "all", a head or a list'):
        AttentionRecorder(backbone, heads="median")
    with pytest.raises(InputError, match="expected direction, i2t, t2i, masses"):
        AttentionRecorder(backbone, direction="i2i")
    with pytest.raises(InputError, match="expected steps 0 or more, got -8"):
        AttentionRecorder(backbone, steps=[-8])
    with pytest.raises(InputError, match="names that differ"):
        AttentionRecorder(backbone, branches=("cond", "cond"))
    with pytest.raises(InputError, match="memory_budget"):
        AttentionRecorder(backbone, memory_budget=0)
    for tokens, message in ({"cat": ()}, "at least one"), ([82], "from 0 to 81, got .82"), ([], "at least one"):
        with pytest.raises(InputError, match=message), AttentionRecorder(backbone, tokens=tokens):
            backbone.predict_velocity(latents(), torch.tensor(601.0), prompt)
    with AttentionRecorder(backbone) as empty, pytest.raises(RecordingError, match="already recording"), empty:
        pass
    with pytest.raises(RecordingError, match="Nothing was recorded"):
        empty.maps  # noqa: B018
    with AttentionRecorder(backbone, direction=("i2t", "t2i")) as two:
        backbone.predict_velocity(latents(), torch.tensor(601.0), prompt)
    with pytest.raises(RecordingError, match="got 2"):
        two.maps  # noqa: B018
    with pytest.raises(RecordingError, match="got 'masses': choose from i2t, t2i"):
        two.masses  # noqa: B018


def test_a_recording_is_saved_and_opened_again(backbone, tmp_path):
    prompt = backbone.encode_prompt("a café, a cat", zero_tokens=5)
    with AttentionRecorder(
        backbone, direction=("i2t", "masses"), prompt=prompt, layers=[1, 3], heads="all"
    ) as recorder:
        backbone.predict_velocity(latents(), torch.tensor([900.0, 500.0, 100.0]), prompt)
    path = recorder.save(tmp_path / "new" / "maps.nc")
    assert [file.name for file in path.parent.iterdir()] == ["maps.nc"]
    opened = open_recording(path)
    assert list(opened.arrays) == ["i2t", "masses"]
    for name, array in recorder.recording.arrays.items():
        xr.testing.assert_identical(opened[name], array)
    xr.testing.assert_identical(opened.maps.sel(token="cat"), recorder.maps.sel(token="cat"))
    recorder.save(path)
    path.unlink()  # no handle is left open


def test_files_that_are_no_recordings_are_refused_in_one_sentence(backbone, prompt, tmp_path):
    with AttentionRecorder(backbone, layers=1) as recorder:
        backbone.predict_velocity(latents(), torch.tensor(601.0), prompt)
    path = recorder.save(tmp_path / "maps.nc")
    whole = path.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(RecordingError, match="maps.nc, not a readable netCDF file"):
            open_recording(path)
    path.write_text("no netCDF at all")
    with pytest.raises(RecordingError, match="not a readable"):
        open_recording(path)
    with pytest.raises(RecordingError, match="there is no file"):
        open_recording(tmp_path / "absent.nc")
    xr.Dataset({"a": ("x", [1.0, 2.0])}).to_netcdf(path, engine="h5netcdf")
    with pytest.raises(RecordingError, match="format None"):
        open_recording(path)
    recorder.save(path)
    dataset = xr.load_dataset(path, engine="h5netcdf")
    dataset.attrs["format_version"] = 2
    dataset.to_netcdf(path, engine="h5netcdf")
    with pytest.raises(RecordingError, match="version 1.*version 2"):
        open_recording(path)
