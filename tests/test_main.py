"""The command line: a whole run from nothing to a model card, and errors of one line."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from tiny_run import TINY
from typer.testing import CliRunner

from seg4diff_tools.__main__ import app
from seg4diff_tools.backbones import read_lora
from seg4diff_tools.pretrain import RunConfig, model_card, preset


def call(*words: object):
    """Calls a command as a shell would."""
    return CliRunner().invoke(app, ["pretrain", *map(str, words)])


def test_a_whole_run(tmp_path, monkeypatch):
    run = tmp_path / "run"
    TINY.save(run)
    for part in ("clip", "vae", "transformer"):
        result = call(part, "--run", run, "--steps", 2, "--device", "cpu")
        assert result.exit_code == 0, result.output
        assert str(run / part) in result.stdout
        assert (run / part / "log.csv").read_text().splitlines()[-1].startswith("2,")
    # the number of steps is kept in the run, and more of them go on where it was
    assert RunConfig.load(run) == replace(
        TINY, **{part: replace(getattr(TINY, part), steps=2) for part in ("clip", "vae", "transformer")}
    )
    assert call("vae", "--run", run, "--steps", 3).exit_code == 0
    assert (run / "vae" / "log.csv").read_text().count("\n") == 3

    result = call("export", "--run", run)
    assert result.exit_code == 0, result.output
    monkeypatch.setattr(model_card, "GALLERY", model_card.GALLERY[:1])  # the others are drawn alike
    numbers = {"scenes": 3, "search-scenes": 2, "generated": 2, "guidance-scale": 1}
    options = [word for name, number in numbers.items() for word in (f"--{name}", number)]
    result = call("report", "--run", run, "--compute", "a test", *options)
    assert result.exit_code == 0, result.output
    assert "test-style" in result.stdout
    assert "CLIPScore_generated" in result.stdout
    card = json.loads((run / "model" / "model_card.json").read_text())
    assert card["training"]["vae"]["steps"] == 3
    assert card["training"]["compute"] == "a test"
    assert f"Layer {card['expert_layer']}, " in result.stdout
    assert (run / "model" / "README.md").is_file()
    assert (run / "model" / "gallery.png").is_file()


def test_a_new_run_takes_the_preset(tmp_path):
    # no transformer can be trained yet: the configuration is written, and what is missing is named
    result = call("transformer", "--run", tmp_path / "run", "--preset", "gpu", "--steps", 7)
    assert result.exit_code == 2
    expected = preset("gpu")
    assert RunConfig.load(tmp_path / "run") == replace(expected, transformer=replace(expected.transformer, steps=7))


@pytest.mark.parametrize("part", ["clip", "vae", "transformer"])
def test_help_says_what_a_part_does(part):
    result = call(part, "--help")
    assert result.exit_code == 0
    for option in ("--run", "--preset", "--steps", "--device"):
        assert option in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "--run", "{run}"], "clip is not finished: run `python -m seg4diff_tools pretrain clip` first"),
        (["report", "--run", "{run}"], "config.json is missing"),
        (["clip", "--run", "{run}", "--device", "toaster"], "device 'toaster' cannot be used here"),
        (["transformer", "--run", "{run}"], "clip is not finished"),
        (["vae", "--run", "{tiny}", "--preset", "gpu"], "other sizes than the preset 'gpu': leave out --preset"),
        (["report", "--run", "{tiny}"], "no model folder"),
    ],
)
def test_an_error_is_one_line(tmp_path, words, message):
    TINY.save(tmp_path / "tiny")
    result = call(*[word.format(run=tmp_path / "run", tiny=tmp_path / "tiny") for word in words])
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "words", [["clip"], ["clip", "--run", "x", "--steps", "0"], ["clip", "--run", "x", "--preset", "tpu"]]
)
def test_wrong_words_are_refused_before_anything_loads(words):
    result = call(*words)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_the_module_runs_and_imports_little():
    command = [sys.executable, "-m", "seg4diff_tools", "pretrain", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "report" in shown.stdout
    assert shown.stderr == ""
    script = (
        "import sys, seg4diff_tools.__main__; print([name in sys.modules for name in ('torch', 'numpy', 'diffusers')])"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[False, False, False]"


def test_finetune_writes_a_lora_and_goes_on(tiny_folder, tmp_path):
    words = [
        "finetune",
        "--model",
        tiny_folder,
        "--layers",
        2,
        "--limit",
        4,
        "--steps",
        2,
        "--batch",
        2,
        "--out",
        tmp_path,
    ]
    first = CliRunner().invoke(app, list(map(str, words)))
    assert first.exit_code == 0, first.output
    assert "pipe.load_lora_weights" in first.stdout
    written = read_lora(tmp_path)
    assert written.rank == 16
    assert json.loads((tmp_path / "settings.json").read_text())["layers"] == [2]
    again = CliRunner().invoke(app, list(map(str, words)))
    assert again.exit_code == 0
    assert (tmp_path / "log.csv").read_text().count("\n") == 3


def test_finetune_has_a_flag_for_each_new_setting(tiny_folder, tmp_path):
    words = ["finetune", "--model", tiny_folder, "--layers", "1,3", "--layer-weights", "1,0.5", "--limit", 4]
    words += ["--weight", "places=0.001", "--weight", "dice=0", "--weight", "focal=0", "--noise", "uniform"]
    words += ["--shift", 2, "--align-at", "early", "--temperature", 1.2, "--temperature-above", 900]
    words += ["--steps", 1, "--batch", 2, "--out", tmp_path]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "settings.json").read_text())
    assert (told["layer_weights"], told["noise"], told["shift"], told["align_at"]) == ([1, 0.5], "uniform", 2, "early")
    assert (told["places_weight"], told["dice_weight"], told["temperature_above"]) == (0.001, 0, 900)
    assert "places" in (tmp_path / "log.csv").read_text().splitlines()[0]


def test_finetune_reads_masks_without_names(tiny_folder, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (14, 14)).save(data / "sa_1.jpg")
    whole = rle.encode(np.ones((14, 14), np.uint8, order="F"))
    annotation = {"segmentation": whole | {"counts": whole["counts"].decode()}}
    (data / "sa_1.json").write_text(json.dumps({"annotations": [annotation]}))
    words = ["finetune", "--model", tiny_folder, "--preset", "sa1b", "--dataset", "sa1b", "--root", data, "--layers", 1]
    words += ["--steps", 1, "--batch", 2, "--out", tmp_path / "run"]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    assert "dice" in (tmp_path / "run" / "log.csv").read_text().splitlines()[0]


def test_finetune_takes_a_data_set_as_evaluate_does(tiny_folder, voc, tmp_path):
    shared = ["--model", tiny_folder, "--dataset", "voc20", "--root", voc, "--split", "val", "--layers", "1,3"]
    words = [
        "finetune",
        *shared,
        "--steps",
        1,
        "--batch",
        2,
        "--size",
        40,
        "--dtype",
        "bf16",
        "--out",
        tmp_path / "run",
    ]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert (told["layers"], told["size"], told["dtype"], told["samples"]) == ([1, 3], 40, "torch.bfloat16", 2)
    result = evaluate(*shared, "--size", 40, "--dtype", "bf16", "--limit", 1, "--out", tmp_path / "scores")
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "scores" / "result.json").read_text())["settings"]
    assert (told["methods"]["words"]["layers"], told["methods"]["words"]["size"]) == ([1, 3], 40)
    assert told["dtype"] == "torch.bfloat16"


@pytest.fixture
def voc(tmp_path):
    """Two pictures in the folders of PASCAL VOC."""
    root = tmp_path / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(2):
        Image.fromarray(generator.integers(0, 256, (23, 31, 3), np.uint8)).save(root / f"JPEGImages/{index}.jpg")
        labels = Image.fromarray(generator.choice([0, 8, 12, 255], (23, 31)).astype(np.uint8)).convert("P")
        labels.save(root / f"SegmentationClass/{index}.png")
    (root / "ImageSets/Segmentation/val.txt").write_text("0\n1\n")
    return root


def evaluate(*words: object):
    return CliRunner().invoke(app, ["evaluate", *map(str, words)])


def test_evaluate_a_published_data_set(tiny_folder, voc, tmp_path):
    options = ["--model", tiny_folder, "--root", voc, "--layers", "1,3", "--seeds", "0,4", "--upsampling", "guided"]
    options += ["--synonyms", "everyday", "--tiles", 2, "--protocol", "present", "--protocol", "full"]
    result = evaluate("--dataset", "voc20", "--out", tmp_path / "run", *options)
    assert result.exit_code == 0, result.output
    assert "2 images at" in result.stdout
    assert "attention" in result.stdout
    # the paper's numbers stand beside, each with its model
    assert "table 1" in result.stdout
    assert "0.892" in result.stdout
    assert "ProxyCLIP" in result.stdout
    told = json.loads((tmp_path / "run/result.json").read_text())
    method = told["settings"]["methods"]["words"]
    assert (method["layers"], method["seeds"], method["tiles"], method["upsampling"]) == ([1, 3], [0, 4], 2, "guided")
    assert method["synonyms"]["pottedplant"][0] == "potted plant"
    assert len(told["settings"]["vocabulary"]) == 20
    assert [row["protocol"] for row in told["table"]] == ["present", "full"]
    # the same command again finds all done
    assert "all images were done before" in evaluate("--dataset", "voc20", "--out", tmp_path / "run", *options).stdout


def test_evaluate_without_words(tiny_folder, voc, tmp_path):
    options = [
        "--model",
        tiny_folder,
        "--root",
        voc,
        "--unsupervised",
        "--layers",
        2,
        "--threshold",
        0.01,
        "--kinds",
        "pad,end",
    ]
    result = evaluate("--dataset", "voc21", "--out", tmp_path / "run", *options)
    assert result.exit_code == 0, result.output
    assert "matched" in result.stdout
    assert "table 2" in result.stdout
    assert "DiffCut" in result.stdout


def test_finetune_on_a_folder(tiny_folder, voc, tmp_path):
    (voc / "JPEGImages").rename(voc / "images")
    (voc / "SegmentationClass").rename(voc / "masks")
    (voc / "classes.txt").write_text("\n".join(f"thing {index}" for index in range(13)))
    words = ["finetune", "--model", tiny_folder, "--dataset", "folder", "--root", voc, "--ignore", 255, "--layers", 1]
    words += ["--classes", voc / "classes.txt", "--steps", 1, "--batch", 2, "--out", tmp_path / "run"]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["samples"] == 2


def test_evaluate_a_folder_with_a_list_of_classes(tiny_folder, voc, tmp_path):
    (voc / "JPEGImages").rename(voc / "images")
    (voc / "SegmentationClass").rename(voc / "masks")
    names = [f"thing {index}" for index in range(13)]
    (voc / "classes.txt").write_text("\n".join(names) + "\n\n")
    options = ["--dataset", "folder", "--model", tiny_folder, "--root", voc, "--layers", 1, "--limit", 1]
    more = ["--stuff", "thing 8, thing 12", "--ignore", 255]
    result = evaluate(*options, *more, "--classes", voc / "classes.txt", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "run/result.json").read_text())
    assert told["settings"]["vocabulary"] == names
    # stuff is scored apart from objects
    (row,) = told["table"]
    assert row["background_mIoU"] is not None
    assert (told["dataset"], told["root"], told["limit"], told["lora"]) == ("folder", str(voc), 1, None)
    for content, message in ((b"cat\n\ndog\n", "an empty line 2"), ("café".encode("latin-1"), "in UTF-8, got")):
        (voc / "classes.txt").write_bytes(content)
        result = evaluate(*options, "--classes", voc / "classes.txt", "--out", tmp_path / "other")
        assert result.exit_code == 2
        assert message in result.output
