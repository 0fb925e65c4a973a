"""Models of videos: frames in, an axis of frames in maps, label maps of frames."""

import json
import re

import numpy as np
import pytest
import torch
from diffusers import CogVideoXTransformer3DModel, HunyuanVideoTransformer3DModel
from PIL import Image
from tiny_models import VIDEO_BUILDERS, wrapped
from typer.testing import CliRunner

from seg4diff_tools.__main__ import app
from seg4diff_tools.analysis.features import image_features
from seg4diff_tools.attention.areas import grid_mask
from seg4diff_tools.attention.bias import AttentionBias, JointTokens
from seg4diff_tools.attention.intercept import intercept
from seg4diff_tools.attention.placing import lock_layout, place_words
from seg4diff_tools.attention.recorder import AttentionRecorder
from seg4diff_tools.attention.recording import open_recording
from seg4diff_tools.backbones import Backbone, as_backbone
from seg4diff_tools.caching import fingerprint
from seg4diff_tools.errors import InputError, UnknownArchitectureError
from seg4diff_tools.explorer import explore
from seg4diff_tools.families import family_of, sampling_loop
from seg4diff_tools.images import Video, open_images
from seg4diff_tools.segmentation import OpenVocabulary, group, segment

SMALL = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 16, "text_embed_dim": 8}
PROMPT = "a cat near the tree"
PIXELS = np.random.default_rng(0).integers(0, 255, (9, 22, 26, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=VIDEO_BUILDERS)
def backbone(request) -> Backbone:
    return wrapped(request.param)


@pytest.fixture(scope="module")
def cogvideox() -> Backbone:
    return wrapped("cogvideox")


@pytest.mark.usefixtures("unchecked")
def test_a_video_is_its_frames():
    video = Video(PIXELS)
    assert (len(video), video.height, video.width) == (9, 22, 26)
    np.testing.assert_array_equal(np.stack([np.asarray(frame) for frame in video]), PIXELS)
    np.testing.assert_array_equal(np.asarray(video.crop((3, 1, 10, 5))[7]), PIXELS[7, 1:5, 3:10])
    tensor = torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255
    np.testing.assert_array_equal(np.stack([np.asarray(frame) for frame in Video(tensor)]), PIXELS)
    assert repr(Video([Image.new("RGB", (7, 5))])) == "Video(1 frame of 5 x 7 px)"
    with pytest.raises(InputError, match=r"expected frames of one size, got \[\(5, 7\), \(6, 7\)\]"):
        Video([Image.new("RGB", (5, 7)), Image.new("RGB", (6, 7))])
    with pytest.raises(InputError, match="got a Video, which models of videos read: pass list"):
        open_images(video)


def test_maps_are_those_of_each_frame(backbone):
    """The recorded frame, row and column are those of a token that is moved in the latents alone."""
    latents = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    prompt = backbone.encode_prompt(PROMPT)
    with AttentionRecorder(backbone, prompt=prompt, layers=1, tokens=["cat", "the tree"]) as recorder:
        backbone.predict_velocity(latents, 500.0, prompt)
    maps = recorder.maps[0, 0, 0, 0]
    assert maps.dims == ("token", "frame", "y", "x")
    assert maps.frame.values.tolist() == [0, 1, 2]
    seen = []
    with intercept(backbone.transformer, seen.append, layers=[1]):
        backbone.predict_velocity(latents, 500.0, prompt)
    (call,) = seen
    scores = call.query.double() @ call.key.double().mT * call.scale
    scores = scores if call.mask is None else scores + call.mask
    joint = scores.softmax(-1)[0].mean(0)
    for name in ("cat", "the tree"):
        columns = [call.text.start + index for index in prompt.span(name)]
        for frame, row, column in ((0, 0, 0), (1, 3, 5), (2, 4, 6)):
            query = joint[call.image.start + (frame * 5 + row) * 7 + column]
            found = maps.sel(token=name)[frame, row, column].item()
            assert found == pytest.approx(query[columns].mean().item(), abs=1e-6)


def test_a_recording_of_a_video_is_read_from_its_file_again(backbone, tmp_path):
    with AttentionRecorder(
        backbone, prompt=[PROMPT, "a dog and a cat"], layers=[0, 3], tokens=["cat", "dog"]
    ) as recorder:
        backbone.generate([PROMPT, "a dog and a cat"], steps=1, progress=False)
    maps = recorder.maps
    assert dict(maps.sizes) | {"branch": 0} == {
        "image": 2, "branch": 0, "step": 1, "layer": 2, "token": 2, "frame": 3, "y": 5, "x": 7
    }  # fmt: skip
    asked = maps.sel(branch="cond")
    assert asked.sel(token="dog", image=0).isnull().all()
    assert asked.sel(token="dog", image=1).notnull().all()
    assert open_recording(recorder.save(tmp_path / "video.nc")) == recorder.recording
    with AttentionRecorder(backbone, direction="masses", layers=[2]) as masses:
        backbone.generate(PROMPT, steps=1, progress=False)
    assert "frame" not in masses.masses.dims
    np.testing.assert_allclose(masses.masses.sel(direction=["i2i", "i2t"]).sum("direction"), 1, atol=1e-5)


def test_noise_is_added_as_the_scheduler_does(backbone):
    latents = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(*backbone.latent_shape, generator=torch.Generator().manual_seed(5))
    noisy, timesteps = backbone.add_noise(latents, [2, 7], steps=10, seed=5)
    for found, timestep in zip(noisy, timesteps, strict=True):
        scheduler = backbone.pipe.scheduler
        if backbone.family.name == "cogvideox":
            scheduler.set_timesteps(10)
            expected = scheduler.add_noise(latents, noise, timestep[None].long())[0]
        else:
            expected = (1 - timestep / 1000) * latents[0] + timestep / 1000 * noise
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_velocity_is_that_of_the_pipelines_first_step(backbone):
    """A step of the scheduler with the predicted velocity gives what the pipeline has after its first step."""
    states = []
    backbone.generate(
        PROMPT, steps=3, seed=4, progress=False, guidance_scale=1.0 if "cog" in backbone.name else None,
        callback=lambda *state: states.append(state),
    )  # fmt: skip
    noise = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(4))
    timesteps, sigmas = backbone.schedule(3)
    velocity = backbone.predict_velocity(noise, timesteps[0], PROMPT)
    if backbone.family.name == "cogvideox":
        (alpha, _), (beta, sigma) = [(backbone.family.image_share(s), s) for s in sigmas[:2]]
        clean = alpha * noise - sigmas[0] * velocity
        expected = beta * clean + sigma * (alpha * velocity + sigmas[0] * noise)
    else:
        expected = noise + (sigmas[1] - sigmas[0]) * velocity
    found = backbone.family.unpack(states[0][2], backbone.token_grid())
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)


def test_the_weight_of_guidance_is_that_of_the_step(cogvideox):
    """With `use_dynamic_cfg` it grows, and the pipeline sets it after the forward that it weights."""
    found, expected, pipe = [], [], cogvideox.pipe
    handle = cogvideox.transformer.register_forward_pre_hook(
        lambda module, args: found.append(sampling_loop(cogvideox.transformer).weight)
    )
    cogvideox.generate(
        PROMPT, steps=3, guidance_scale=5.0, use_dynamic_cfg=True, progress=False,
        callback=lambda *state: expected.append(pipe.guidance_scale),
    )  # fmt: skip
    handle.remove()
    assert found == pytest.approx(expected)
    assert len(set(found)) == 3


def test_a_video_is_known_by_its_content():
    videos = [Video(PIXELS), Video(PIXELS), Video(PIXELS[::-1])]
    assert fingerprint(videos[0]) == fingerprint(videos[1]) != fingerprint(videos[2])


def test_frames_of_a_video_have_label_maps(backbone):
    options = OpenVocabulary(layers=2, steps_from_end=(3, 8))
    found = segment(backbone, Video(PIXELS), ["cat", "red car", "tree"], options)
    assert np.stack([one.label_map for one in found]).shape == (9, 22, 26)
    prompt = backbone.class_prompts(["cat", "red car", "tree"])[0]
    noisy, timesteps = backbone.add_noise(backbone.encode_image(Video(PIXELS)), [3, 8])
    with AttentionRecorder(
        backbone, prompt=prompt, tokens={n: list(span) for n, span in prompt.classes.items()}, layers=2
    ) as recorder:
        backbone.predict_velocity(noisy, timesteps, prompt)
    maps = recorder.maps[:, 0, 0, 0].mean("image")
    # the first latent frame stands for the first frame, each other one for four
    for at, latent in enumerate([0, 1, 1, 1, 1, 2, 2, 2, 2]):
        one = found[at]
        assert (one.settings["video_frame"], one.settings["video_frames"]) == (at, 9)
        np.testing.assert_array_equal(one.image, PIXELS[at])
        np.testing.assert_allclose(one.class_maps, maps[:, latent], atol=1e-6)
        np.testing.assert_array_equal(one.label_map, one.upsampled().argmax("class"))
    # another order of the frames is another video
    other = segment(backbone, Video(PIXELS[::-1]), ["cat", "red car", "tree"], options)
    assert any((a.label_map != b.label_map).any() for a, b in zip(found, other[::-1], strict=True))


def test_several_videos_and_a_single_frame(cogvideox):
    options = OpenVocabulary(layers=1, fit="crop", background=1.1)
    names = ["cat", "background"]
    found = segment(cogvideox, [Video(PIXELS), Video(PIXELS[:1])], names, options, progress=False)
    assert [len(one) for one in found] == [9, 1]
    left, top, right, bottom = found[0][0].settings["frame"]
    assert found[0][8].label_map.shape == (bottom - top, right - left) != (22, 26)
    np.testing.assert_array_equal(found[0][8].image, PIXELS[8, top:bottom, left:right])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tiles": 2}, "expected no tiles with a Video, got 2"),
        ({"second_pass": 0.1}, "expected no second_pass with a Video, got 0.1"),
        ({"merge_scaled": True}, "expected no merge_scaled with a Video, got True"),
        ({"method": "daam", "layers": None}, None),
        ({"method": "goca", "layers": None}, "expected no method with a Video, got 'goca'"),
    ],
)
def test_options_for_images_alone_are_refused(cogvideox, options, said):
    asked = OpenVocabulary(**({"layers": 1} | options))
    if said is None:
        assert len(segment(cogvideox, Video(PIXELS), ["cat", "tree"], asked)) == 9
        return
    with pytest.raises(InputError, match=said):
        segment(cogvideox, Video(PIXELS), ["cat", "tree"], asked)


def test_commands_refuse_models_of_videos(cogvideox, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cogvideox.pipe.save_pretrained("model")
    Image.fromarray(PIXELS[0]).save("a.png")
    found = CliRunner().invoke(app, ["segment", "a.png", "cat", "--model", "model", "--layers", "1", "--out", "out"])
    assert found.exit_code == 2
    assert found.output.splitlines()[-1].startswith("error: expected --model, one of images, got model, one of videos")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("unchecked")
def test_latents_and_a_background_alone_are_refused_with_videos(cogvideox):
    video, options = Video(PIXELS), OpenVocabulary(layers=1)
    with pytest.raises(InputError, match="expected no latents with a Video, got .*float32"):
        segment(cogvideox, video, ["cat"], options, latents=torch.zeros(1, 4, 3, 6, 6))
    with pytest.raises(InputError, match="expected a class beside 'background' with a Video, got it alone, as 0.5"):
        segment(cogvideox, video, ["background"], OpenVocabulary(layers=1, background=0.5))


@pytest.mark.usefixtures("unchecked")
def test_images_and_videos_are_not_taken_for_one_another(cogvideox, tiny_backbone):
    layers = OpenVocabulary(layers=1)
    for given in (PIXELS[0], [Image.fromarray(PIXELS[0])]):
        with pytest.raises(
            InputError, match=r"expected a Video for 'cogvideox', a model of videos.*Video\(\[image\]\)"
        ):
            segment(cogvideox, given, ["cat"], layers)
    with pytest.raises(InputError, match="expected images, got a Video, which models of videos read"):
        segment(tiny_backbone, Video(PIXELS), ["cat"], layers)
    with pytest.raises(InputError, match="expected a Video for 'cogvideox', a model of videos, got ndarray"):
        cogvideox.encode_image(PIXELS)
    with pytest.raises(InputError, match=r"expected videos with as many frames, got \[9, 1\]"):
        cogvideox.encode_image([Video(PIXELS), Video(PIXELS[:1])])
    with pytest.raises(InputError, match="a model of videos, got ndarray: pass Video"):
        segment(cogvideox, [Video(PIXELS), PIXELS[0]], ["cat"], layers)
    with pytest.raises(InputError, match=r"expected a Video of size\[0\]=17 frames, got 9: pass size=\(40, 56\)"):
        cogvideox.encode_image(Video(PIXELS), size=(17, 40, 56))
    with pytest.raises(InputError, match="expected a model of videos, got .* one of images: its maps have no frames"):
        tiny_backbone.latent_frame(0)
    with pytest.raises(InputError, match="expected frame 0 or more, got -1"):
        cogvideox.latent_frame(-1)
    with pytest.raises(InputError, match=r"expected latents \[image 5 frames rows columns\], got shape \(1, 5, 6, 4\)"):
        cogvideox.decode(torch.zeros(1, 5, 6, 4))
    for refused in (
        lambda: group(cogvideox, PIXELS[0]),
        lambda: explore(cogvideox, PROMPT),
        lambda: explore(cogvideox.pipe, PROMPT),
        lambda: as_backbone(cogvideox.pipe),
        lambda: image_features(cogvideox, torch.zeros(1, *cogvideox.latent_shape), []),
    ):
        with pytest.raises(InputError, match="expected a model of images, got .* of videos"):
            refused()
    with pytest.raises(InputError, match="expected a model of images, got 'cogvideox', one of videos: use native_size"):
        _ = cogvideox.image_size
    with pytest.raises(InputError, match="expected a model of images with lock_layout, got cogvideox"):
        lock_layout(cogvideox, PROMPT, ["cat"], step=1).__enter__()


@pytest.mark.parametrize(
    ("name", "frames", "said"),
    [
        ("cogvideox", 4, "expected 1, 9, 17 or more frames in steps of 8 for 'cogvideox', got 4: pass 1 or 9"),
        ("cogvideox", 13, "got 13: pass 9 or 17"),
        ("hunyuan-video", 7, "expected 1, 5, 9 or more frames in steps of 4 for 'hunyuan-video', got 7: pass 5 or 9"),
    ],
)
def test_numbers_of_frames(name, frames, said):
    backbone = wrapped(name)
    with pytest.raises(InputError, match=said):
        backbone.generate("a cat", steps=1, size=(frames, 80, 80))
    with pytest.raises(InputError, match=said):
        backbone.encode_image(Video(PIXELS[[0] * frames]))
    with pytest.raises(InputError, match="expected no num_frames in generate"):
        backbone.generate("a cat", steps=1, num_frames=9)
    (video,) = backbone.generate("a cat", steps=1, size=(1, 32, 48), progress=False)
    assert (len(video), video.height, video.width) == (1, 32, 48)


def test_latents_of_a_video_are_the_vaes(backbone):
    latents = backbone.encode_image(Video(PIXELS))
    assert latents.shape == (1, *backbone.latent_shape)
    height, width = backbone.native_size[1:]
    pixels = backbone.pipe.video_processor.preprocess_video([Image.fromarray(frame) for frame in PIXELS], height, width)
    with torch.no_grad():
        expected = backbone.pipe.vae.encode(pixels).latent_dist.mode() * backbone.pipe.vae.config.scaling_factor
    torch.testing.assert_close(latents, expected, atol=0.05, rtol=0.05)
    (video,) = backbone.decode(latents)
    assert (len(video), video.height, video.width) == backbone.native_size


def test_a_place_is_the_same_in_every_frame(backbone):
    box = (0.0, 0.0, 0.5, 1.0)
    mask = grid_mask(box, (3, 5, 7))
    assert mask.shape == (3, 5, 7)
    assert torch.equal(mask[2], grid_mask(box, (5, 7)))
    prompt, seen = backbone.encode_prompt(PROMPT), []
    latents = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    closed = AttentionBias(-torch.inf, JointTokens(image=box), JointTokens(text=prompt.span("cat")))
    with intercept(backbone.transformer, seen.append, bias=closed, layers=[1]):
        backbone.predict_velocity(latents, 500.0, prompt)
    given = seen[0].i2t(text=prompt.span("cat")).sum((0, 1, 3)).unflatten(0, (3, 5, 7))
    assert (given[mask] == 0).all()
    assert (given[~mask] > 0).all()
    with place_words(backbone, prompt, {"cat": box}), intercept(backbone.transformer, seen.append, layers=[1]):
        backbone.predict_velocity(latents, 500.0, prompt)
    placed = seen[1].i2t(text=prompt.span("cat")).sum((0, 1, 3)).unflatten(0, (3, 5, 7))
    assert placed[mask].mean() > placed[~mask].mean()


def test_the_explorer_has_a_slider_of_frames(backbone, tmp_path):
    with AttentionRecorder(backbone, prompt=PROMPT, layers=[0, 3]) as recorder:
        (video,) = backbone.generate(PROMPT, steps=1, progress=False)
    view = explore(recorder, video, token="cat", frame=2, layer=3)
    assert (view.axes["frame"], view.frame) == ([0, 1, 2], 2)
    expected = recorder.recording.phrase("cat").sel(branch="cond", layer=3, frame=2).squeeze()
    np.testing.assert_allclose(view.data, expected, rtol=1e-6)
    # of the nine frames the first, and the middle ones of four
    assert len(view.pictures) == len(set(view.pictures)) == 3
    assert view.pictures[1] == explore(recorder, video[2]).pictures[0]
    for part in ([1], [0, 1], 1):
        shown = explore(recorder.maps.isel(frame=part), video, frame=1)
        assert shown.pictures[-1] == view.pictures[1]
    view.frame = 1
    np.testing.assert_allclose(
        view.data, recorder.recording.phrase("cat").sel(branch="cond", layer=3, frame=1).squeeze()
    )
    page = view.save_html(tmp_path / "view.html").read_text()
    stored = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', page)[0])
    assert stored["axes"]["frame"] == [0, 1, 2]
    assert len(stored["pictures"]) == 3
    few = view.stored(limit=1)
    assert few["axes"]["frame"] == [1]
    assert few["pictures"] == [view.pictures[1]]
    with pytest.raises(InputError, match=r"expected a recorded frame \(0, 1, 2\), got 3"):
        view.frame = 3
    with pytest.raises(InputError, match="got one of 8 frames: pass the recorded one"):
        explore(recorder, Video(list(video)[:8]))


@pytest.mark.usefixtures("unchecked")
def test_maps_of_images_take_no_video(tiny_backbone):
    with AttentionRecorder(tiny_backbone, prompt=PROMPT, layers=0) as recorder:
        tiny_backbone.generate(PROMPT, steps=1, progress=False)
    assert "frame" not in recorder.maps.dims
    assert explore(recorder).frame is None
    with pytest.raises(InputError, match="expected images for maps without an axis 'frame', got a Video"):
        explore(recorder, Video(PIXELS))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            lambda: CogVideoXTransformer3DModel(**SMALL, in_channels=10, out_channels=5),
            "reads an image or another video",
        ),
        (lambda: CogVideoXTransformer3DModel(**SMALL, patch_size_t=2), "of CogVideoX 1.5, fills up its latents"),
        (
            lambda: HunyuanVideoTransformer3DModel(
                **SMALL,
                num_single_layers=1,
                num_refiner_layers=1,
                rope_axes_dim=(2, 4, 10),
                image_condition_type="token_replace",
            ),
            "reads an image beside the prompt",
        ),
    ],
)
def test_relatives_that_read_more_than_a_prompt_are_refused(made, said):
    with pytest.raises(UnknownArchitectureError, match=f"expected a supported transformer, got .*; this one.* {said}"):
        family_of(made())
