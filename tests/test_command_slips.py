"""Slips of the command line: each one ends with exit code 2 and one line that names the flag and the way out."""

import re

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from seg4diff_tools.__main__ import app

CAT = ("segment", "{photo}", "cat")
VOC = ("evaluate", "--out", "{new}", "--dataset", "voc20")
FOLDER = ("--dataset", "folder", "--root", "{data}", "--classes", "{data}/classes.txt")
OUT = ("evaluate", "--out", "{new}")
TUNE = ("finetune", "--out", "{new}")
MAKE = ("generate", "--out", "{new}", "--layout", "t2i-compbench")
PROMPTS = ("--prompts", "{data}/classes.txt")

# words of a command line, and what its one line says
SLIPS = {
    "no such command": (("segmentt", "x"), "No such command 'segmentt'.*--help"),
    "a flag of an older version": ((*OUT, "--layer", "4"), "No such option: --layer.*--layers.*evaluate --help"),
    "a flag of another command": ((*CAT, "--limit", "3"), "No such option: --limit.*segment --help"),
    "no value": ((*CAT, "--tiles"), "--tiles.*requires an argument"),
    "no folder of a run": (("evaluate",), "Missing option '--out'.*evaluate --help"),
    "no images": (("segment",), "Missing argument '(?i:images)'.*segment --help"),
    "an image that is not there": (("segment", "nowhere.jpg", "cat"), "got nowhere.jpg, which does not exist: check"),
    "no class": (("segment", "{photo}"), "class names or --classes, got neither: give names, or a file"),
    "classes twice": ((*CAT, "--classes", "{data}/classes.txt"), "class names or --classes, got both"),
    "a class twice": ((*CAT, "cat"), "each class once, got cat twice: leave one out"),
    "an empty class": ((*CAT, " "), "expected class names, got .*: write each one out"),
    "no file of classes": (
        ("segment", "{photo}", "--classes", "no.txt"),
        "--classes as a text file .* line, got no.txt, no such file: check",
    ),
    "an empty line": (("segment", "{photo}", "--classes", "{data}/gap.txt"), "--classes, got an empty line 2 in"),
    "an empty file": (("segment", "{photo}", "--classes", "{data}/empty.txt"), "--classes, got an empty line 1 in"),
    "a class twice in a file": (("segment", "{photo}", "--classes", "{data}/twice.txt"), "once in --classes, got cat"),
    "another encoding": (
        ("segment", "{photo}", "--classes", "{photo}"),
        "--classes as a text file .* in UTF-8, .*: save it so",
    ),
    "a word for layers": ((*CAT, "--layers", "first"), "--layers as numbers, got 'first': pass --layers 4"),
    "layers with a gap": ((*OUT, "--layers", "4,,5"), "--layers as numbers, got '4,,5': pass --layers 4"),
    "a layer twice": ((*CAT, "--layers", "4,4"), "expected --layers, .*once, got .4, 4.: name each one once"),
    "an unknown layer": ((*CAT, "--model", "{model}", "--layers", "9"), "expected --layers from 0 to 4, got 9: choose"),
    "an unknown head": ((*CAT, "--model", "{model}", "--layers", "1", "--heads", "7"), "--heads from 0 to 2, got 7"),
    "an unknown method": ((*CAT, "--method", "deam"), "expected --method, one of 'layer'.* got 'deam': pass"),
    "heads of a method without them": (
        (*CAT, "--method", "goca", "--heads", "1"),
        "expected --heads with --?method 'layer' or 'daam' alone, got --method 'goca': leave it out",
    ),
    "an unknown direction": ((*OUT, "--direction", "i2i"), "--direction, one of 'i2t', 't2i', got 'i2i': pass --dir"),
    "an unknown normalization": ((*OUT, "--normalize", "no"), "--normalize, one of .* got 'no': pass --normalize"),
    "no tiles": ((*CAT, "--tiles", "0"), "expected --tiles from 1 to 16, got 0: choose one in that range"),
    "a share as percent": ((*OUT, "--second-pass", "5"), "--second-pass, a share from 0 to less than 1, got 5"),
    "steps beyond the schedule": ((*CAT, "--steps-from-end", "30"), "--steps-from-end from 1 to 28, got 30"),
    "a negative seed": ((*OUT, "--seeds", "-1"), "expected --seeds .*got -1: choose"),
    "no file of synonyms": ((*CAT, "--synonyms", "no.json"), "--synonyms, a JSON file or everyday, got no.json"),
    "synonyms of other classes": (
        (*CAT, "--synonyms", "{data}/words.json"),
        "expected --synonyms of the classes.*: leave",
    ),
    "turns of no words": ((*CAT, "--prompt-sets"), "--synonyms with --prompt-sets, got none.*: add --synonyms"),
    "an idle background": (
        (*OUT, "--background", "grass, water"),
        "a class called 'background' with --background, got .*: add that class, or leave --background out",
    ),
    "a background of nothing": ((*CAT, "background", "--background", "0"), "--background, a number above 0.*pass"),
    "a size that is no number": ((*CAT, "--size", "big"), "--size as numbers, got 'big'"),
    "a size between tokens": ((*CAT, "--model", "{model}", "--layers", "1", "--size", "53"), "multiples of 8.*try 56"),
    "half precision on a CPU": ((*CAT, "--dtype", "fp16"), "--dtype fp32 or bf16 on a CPU, got fp16.*: pass --dtype"),
    "a number format": ((*CAT, "--dtype", "int8"), "'--dtype': .*'int8' is not one of .*bf16.*--help"),
    "no such model": ((*CAT, "--model", "minni"), "no model folder 'minni': .*did you mean 'mini'"),
    "no such LoRA": ((*CAT, "--lora", "{data}"), "expected LoRA weights in .*: check the path, or pass one of mini-"),
    "an unknown data set": ((*OUT, "--dataset", "voc"), "expected --dataset, one of .*voc20.* got 'voc': choose"),
    "a data set without a folder": (VOC, "where voc20 lies, got no --root: pass the folder"),
    "a folder that is not there": ((*VOC, "--root", "nowhere"), "expected a folder for --root, got nowhere, no such"),
    "another folder": ((*VOC, "--root", "{data}"), "expected JPEGImages .* got .*: unpack VOCtrainval"),
    "a split that is not there": (
        (*OUT, "--dataset", "ade150", "--root", "{data}", "--split", "tst"),
        "expected images/tst or .*: unpack ADEChallengeData2016.zip there",
    ),
    "a root of scenes": ((*OUT, "--root", "{data}"), "expected no --root with --dataset scenes.*: leave it out"),
    "a split of a folder": ((*OUT, *FOLDER, "--split", "val"), "expected no --split with --dataset folder.*: leave it"),
    "classes of a benchmark": (
        (*VOC, "--root", "{data}", "--classes", "a.txt", "--ignore", "0"),
        "expected no --classes, --ignore with --dataset voc20, which does not read them: leave them out",
    ),
    "a folder without classes": ((*OUT, *FOLDER[:4]), "got no --classes: pass a text file with a class on each line"),
    "stuff that is no class": ((*OUT, *FOLDER, "--stuff", "sea"), "expected --stuff among the classes.* got 'sea'"),
    "stuff with a gap": ((*OUT, *FOLDER, "--stuff", "sky,,cat"), "--stuff as different words joined by commas"),
    "a class to ignore": ((*OUT, *FOLDER, "--ignore", "0"), "got --ignore 0, which is 'cat': pass --ignore -1"),
    "a folder without masks": ((*OUT, *FOLDER), "expected a folder for images, got .*images, no such path: check"),
    "an unknown protocol": ((*OUT, "--protocol", "all"), "'--protocol': .*'all' is not one of"),
    "words without words": (
        (*OUT, "--unsupervised", "--tiles", "2", "--protocol", "full"),
        "expected no --tiles, --protocol with --unsupervised, which reads no class names: leave them out",
    ),
    "merging of words": ((*OUT, "--threshold", "0.1"), "--unsupervised with --threshold, got .*: add --unsupervised"),
    "an unknown kind of token": ((*OUT, "--unsupervised", "--kinds", "pads"), "--kinds, one of .*'pad'.* got 'pads'"),
    "a negative limit": ((*OUT, "--limit", "-1"), "'--limit': .*1.*--help"),
    "a file for a folder": (("segment", "{photo}", "cat", "--out", "{photo}"), "expected a folder for .* got the file"),
    "a folder of something else": ((*CAT, "--out", "{data}"), "empty folder or that of a segmentation.*: choose"),
    "a folder of something else to train in": (
        ("finetune", "--out", "{data}", "--model", "nowhere"),
        "empty folder or that of a fine-tuning.*: choose",
    ),
    "an unknown preset": ((*TUNE, "--preset", "voc"), "'--preset': .*'voc' is not one of .*sa1b"),
    "masks without names": (
        (*TUNE, "--dataset", "sa1b", "--root", "{data}"),
        "expected --preset sa1b or sa1b-released with --dataset sa1b, .* got mini: pass --preset sa1b",
    ),
    "captions of class names": (
        (*TUNE, "--dataset", "coco-panoptic", "--root", "{data}", "--captions", "c.json"),
        "expected no --captions with --preset mini, whose prompts are class names: leave it out",
    ),
    "captions of scenes": (
        (*TUNE, "--preset", "sa1b", "--captions", "c.json"),
        "expected no --captions with --dataset scenes",
    ),
    "a batch that cannot be cut": (
        (*TUNE, "--model", "{model}", "--layers", "1", "--batch", "6", "--images-at-once", "4"),
        "expected --images-at-once that divides 6 images evenly, got 4: choose another batch",
    ),
    "a layer to train": ((*TUNE, "--model", "{model}", "--layers", "9"), "expected --layers from 0 to 4, got 9"),
    "a size to train at": (
        (*TUNE, "--model", "{model}", "--layers", "1", "--limit", "1", "--batch", "1", "--size", "53"),
        "multiples of 8.*try 56",
    ),
    "a weight of no loss": ((*TUNE, "--weight", "masks=1"), "expected --weight, one of 'flow', .* got 'masks'"),
    "a weight of no number": ((*TUNE, "--weight", "dice"), "expected --weight dice, a number, got '': pass 0.5"),
    "two weights of a loss": ((*TUNE, "--weight", "dice=0.2,3"), "expected --weight dice, a number, got '0.2,3'"),
    "weights of no number": ((*TUNE, "--layer-weights", "1,x"), "expected --layer-weights, numbers, got '1,x'"),
    "weights of no layers": ((*TUNE, "--layer-weights", "1,2"), "expected --layer-weights for each of 0 layers"),
    "pictures without scenes": ((*TUNE, "--pictures", "1"), "expected --evaluation with --pictures"),
    "patience without pictures": (
        (*TUNE, "--patience", "1", "--evaluation", "1"),
        "expected --pictures with --patience, got none: add --pictures 8",
    ),
    "a distribution of noise": ((*TUNE, "--noise", "normal"), "'--noise': .*'normal' is not one of"),
    "evaluations of nothing": ((*TUNE, "--evaluate-every", "5"), "--evaluation with --evaluate-every, .*: add --eval"),
    "an unknown precision": ((*TUNE, "--mixed-precision", "fp8"), "'--mixed-precision': .*'fp8' is not one of"),
    "no prompts": (MAKE, "Missing option '--prompts'.*generate --help"),
    "prompts that are not there": (
        (*MAKE, "--prompts", "no.txt"),
        "'--prompts': .*no.txt.* does not exist",
    ),
    "an unknown benchmark": (
        ("generate", "--out", "{new}", *PROMPTS, "--layout", "geneva"),
        "'--layout': .*'geneva' is not one of 'geneval'",
    ),
    "no pictures": ((*MAKE, *PROMPTS, "--images", "0"), "'--images': .*1.*--help"),
    "a line that is no JSON": (
        ("generate", "--out", "{new}", *PROMPTS, "--layout", "geneval"),
        "line 1 of .*classes.txt is not JSON .*: fetch the file again",
    ),
    "an unknown part": (("pretrain", "unet"), "No such command 'unet'.*pretrain --help"),
    "a run without a folder": (("pretrain", "clip"), "Missing option '--run'.*pretrain clip --help"),
    "an unknown device": (("pretrain", "clip", "--run", "{new}", "--device", "toaster"), "leave out --device"),
    "chapters over chapters": (("chapters", "{photo}"), "expected a folder, got the file .*: name another"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_folder):
    data = tmp_path_factory.mktemp("data")
    files = {"classes": "cat\nsky\n", "gap": "cat\n\nsky\n", "empty": "", "twice": "cat\nsky\ncat\n"}
    for name, text in files.items():
        (data / f"{name}.txt").write_text(text)
    (data / "words.json").write_text('{"horse": ["pony"]}')
    photo = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(np.full((56, 56, 3), 200, np.uint8)).save(photo)
    return {"data": data, "photo": photo, "model": tiny_folder}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_is_one_line(name, places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, pattern = SLIPS[name]
    result = CliRunner().invoke(app, [word.format(new=tmp_path / "new", **places) for word in words])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in result.output
    assert re.search(pattern, line), line
