"""The command `segment`: files that it writes, runs that go on, and refusals of one line."""

import dataclasses
import json

import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner

from seg4diff_tools.__main__ import app
from seg4diff_tools.backbones.loading import load_backbone
from seg4diff_tools.cli.segmentation_flags import FLAGS, PAD_FLAGS
from seg4diff_tools.segmentation import OpenVocabulary, Unsupervised, segment, workbench

OPTIONS = ("--layers", "1,3", "--steps-from-end", 5, "--tiles", 2, "--heads", "0,2", "--background", "sky,road")
NAMES = ["cat", "red car", "background"]


def call(*words: object):
    """Call the command as a shell would."""
    return CliRunner().invoke(app, ["segment", *map(str, words)])


@pytest.fixture
def photos(tmp_path):
    """Three images of different sizes, and files that are none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, name in enumerate(("a.png", "b.png", "c.png")):
        pixels = np.random.default_rng(index).integers(0, 256, (61 + index, 47, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / name)
    (folder / ".a.png").write_bytes(b"hidden")
    (tmp_path / "names.txt").write_text("\ufeffcat\nred car\nbackground\n", encoding="utf-8")
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder(photos, tmp_path, tiny_folder, monkeypatch):
    shared = ("--classes", tmp_path / "names.txt", "--model", tiny_folder, *OPTIONS)
    result = call(photos, "--out", tmp_path / "masks", *shared)
    assert result.exit_code == 0, result.output
    whole = contents(tmp_path / "masks")
    endings = ("-overlay.png", ".json", ".png")
    assert set(whole) == {"settings.json", *(f"{name}{ending}" for name in "abc" for ending in endings)}
    options = OpenVocabulary(layers=(1, 3), steps_from_end=5, tiles=2, heads=(0, 2), background=("sky", "road"))
    found = segment(load_backbone(tiny_folder), photos / "b.png", NAMES, options)
    picture = PIL.Image.open(tmp_path / "masks" / "b.png")
    assert picture.mode == "P"
    assert np.array_equal(np.array(picture), found.label_map)
    about = json.loads(whole["b.json"])
    assert about["shares"] == found.shares()
    assert about["settings"] == found.settings
    assert json.loads(whole["settings.json"])["class_names"] == NAMES

    # a run that is killed goes on, and ends with the same files
    forget, done = workbench.Workbench.forget, []

    def kill(self):
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt
        forget(self)

    monkeypatch.setattr(workbench.Workbench, "forget", kill)
    call(photos, "--out", tmp_path / "again", *shared)
    assert set(contents(tmp_path / "again")) == {name for name in whole if not name.startswith("c")}
    assert call(photos, "--out", tmp_path / "again", *shared).exit_code == 0
    assert len(done) == 4
    assert contents(tmp_path / "again") == whole
    # an image of another content is done anew, the others are not
    photos.joinpath("b.png").write_bytes(photos.joinpath("c.png").read_bytes())
    assert call(photos, "--out", tmp_path / "again", *shared).exit_code == 0
    assert len(done) == 5
    assert contents(tmp_path / "again")["b.png"] == whole["c.png"]
    # other settings are refused
    result = call(photos, "--out", tmp_path / "again", *shared, "--minmax")
    assert result.exit_code == 2
    assert "error: expected the settings of a segmentation" in result.stderr
    assert "choose another folder" in result.stderr


def test_one_image_and_a_damaged_one(photos, tmp_path, tiny_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(photos / "a.png", "cat", "red car", "--model", tiny_folder, "--layers", 2)
    assert result.exit_code == 0, result.output
    assert set(contents(tmp_path / "a-masks")) == {"a.png", "a-overlay.png", "a.json", "settings.json"}
    photos.joinpath("b.png").write_bytes(b"damaged")
    result = call(photos, "cat", "--model", tiny_folder, "--layers", 2, "--out", "some")
    assert result.exit_code == 1
    assert "left out b.png" in result.stderr
    assert tmp_path.joinpath("some", "c.png").is_file()


def test_every_field_of_the_options_has_a_flag():
    words, pads = ({field.name for field in dataclasses.fields(kind)} for kind in (OpenVocabulary, Unsupervised))
    assert set(FLAGS) == words
    assert set(PAD_FLAGS) == pads - words
    for command, flags in (("segment", FLAGS), ("evaluate", FLAGS | PAD_FLAGS)):
        shown = CliRunner().invoke(app, [command, "--help"], terminal_width=200).output
        for name in flags:
            assert f"--{name.replace('_', '-')}" in shown


def test_wrong_images_are_refused(photos, tmp_path):
    assert "got nowhere.jpg, which does not exist" in call("nowhere.jpg", "cat").stderr
    photos.joinpath("a.jpg").write_bytes(photos.joinpath("a.png").read_bytes())
    assert "images of different names, got a.jpg, a.png" in call(photos, "cat").stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "got no .bmp" in call(empty, "cat").stderr
