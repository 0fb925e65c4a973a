"""What a process is set to, and what its other threads do, changes no result: default dtype, encoding, locks."""

import ast
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from tiny_run import SCENES, tiny_clip

import seg4diff_tools
from seg4diff_tools import errors
from seg4diff_tools.analysis import (
    attention_budget,
    attention_takers,
    choose_combination,
    choose_heads,
    cross_validated,
    head_class_maps,
    image_features,
    layer_effects,
    leakage,
    part_scores,
    pca_colors,
    token_labels,
    value_norms,
)
from seg4diff_tools.attention import AttentionRecorder, apply_edit, average, blur, drop, intercept, swap
from seg4diff_tools.attention.edits import perturbed_guidance
from seg4diff_tools.backbones import apply_lora, verify, wrap_pipeline
from seg4diff_tools.backbones import lora as lora_module
from seg4diff_tools.caching import fingerprint
from seg4diff_tools.errors import RecordingError
from seg4diff_tools.evaluation import evaluate, grouping_scores, layer_step_sweep
from seg4diff_tools.families import transformers
from seg4diff_tools.generation import load_clip
from seg4diff_tools.magnet import MagnetConfig, finetune
from seg4diff_tools.scenes import Scenes
from seg4diff_tools.segmentation import METHODS, OpenVocabulary, Unsupervised, group, segment

ROOT = Path(seg4diff_tools.__file__).parents[1]
QUIET = {"progress": False}
# functions of torch that make floats
FLOATS = {"empty", "eye", "full", "linspace", "ones", "rand", "randn", "zeros"}


@pytest.fixture(scope="module")
def scenes():
    return [scene for scene in Scenes("train", 20, SCENES) if len(scene.class_names) == 3][:3]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return load_clip(tiny_clip(tmp_path_factory.mktemp("model")))


def record(backbone, scenes, clip, folder):
    with AttentionRecorder(backbone, prompt="a red cat") as recorder:
        pictures = backbone.generate("a red cat", steps=2, **QUIET)
    recording = recorder.recording
    return [pictures, recorder.maps, recording.phrase("red cat")]


def segmented(backbone, scenes, clip, folder):
    scene = scenes[0]
    names, first = list(scene.class_names), [OpenVocabulary(method=method, layers=2) for method in METHODS]
    more = [
        OpenVocabulary(layers=[1, 2], tiles=2, upsampling="guided", background=0.02, steps_from_end=[3, 8]),
        OpenVocabulary(layers=1, second_pass=0.1, normalize="scores", minmax=True),
        OpenVocabulary(layers=1, merge_scaled=True, heads=[0, 2], direction="t2i"),
    ]
    results = [segment(backbone, scene.image, names, options) for options in (*first, *more)]
    return [(each.label_map, each.class_maps, each.shares) for each in results]


def grouped(backbone, scenes, clip, folder):
    options = [Unsupervised(layers=1, threshold=0.01), Unsupervised(layers=2, merging="released")]
    return [group(backbone, scenes[0].image, each).label_map for each in options]


def scored(backbone, scenes, clip, folder):
    found = evaluate(backbone, scenes, OpenVocabulary(layers=2), out=folder / "run", **QUIET)
    pads = evaluate(backbone, scenes, Unsupervised(layers=1), **QUIET)
    swept = layer_step_sweep(backbone, scenes, layers=[1, 2], steps_from_end=[3, 8], **QUIET)
    ways = [Unsupervised(matching=by) for by in ("image", "rows")]
    grouping = [grouping_scores(backbone, scenes, [0.01, 1.0], [2], way, **QUIET) for way in ways]
    return [found.table(), found.confusion(), pads.table(), swept.table(), *grouping]


def edited(backbone, scenes, clip, folder):
    latents, found = backbone.encode_image(scenes[0].image), []
    noisy, timestep = backbone.add_noise(latents)
    for edit in (blur(), drop([1]), swap([1], [2, 3]), average()):
        with apply_edit(backbone, edit, 2):
            found.append(backbone.predict_velocity(noisy, timestep, "a red cat"))
    with perturbed_guidance(backbone, blur(), 2, scale=2.0):
        found.append(backbone.generate("a cat", steps=2, **QUIET))
    effects = layer_effects(backbone, clip, ["a cat"], drop(), [1], steps=2, **QUIET)
    return [*found, effects.table]


def analyzed(backbone, scenes, clip, folder):
    latents = backbone.encode_image([scene.image for scene in scenes])
    prompts = [backbone.encode_prompt("a red cat")] * len(scenes)
    features = image_features(backbone, latents, prompts, layers=[1])
    maps = head_class_maps(backbone, scenes, **QUIET)
    truths = [token_labels(torch.as_tensor(scene.label_map).long(), backbone.token_grid()) for scene in scenes]
    return [
        *(features, pca_colors(features.sel(layer=1, kind="key").values)),
        *(value_norms(backbone, latents, prompts), attention_budget(backbone, latents, prompts, [8], **QUIET)),
        *(
            attention_takers(backbone, ["a red cat"], [scenes[0].image], layers=1, **QUIET),
            leakage(backbone, scenes, 1, **QUIET),
        ),
        *(part_scores(maps, scenes, least=1), choose_heads(maps, truths, 2), cross_validated(maps, scenes, 1, 2)),
        choose_combination(backbone, scenes, [1, 2], [3, 8], **QUIET),
        verify(backbone),
    ]


def trained(backbone, scenes, clip, folder):
    config = MagnetConfig(steps=2, batch=2, learning_rate=1e-2, warmup=1, layers=(2,), zero_tokens=5, rank=2)
    run = finetune(backbone, scenes, config, folder / "run", **QUIET)
    with apply_lora(backbone, run.parent if run.is_file() else run):
        return segment(backbone, scenes[0].image, ["cat", "grass"], OpenVocabulary(layers=2)).class_maps


@pytest.mark.parametrize("run", [record, segmented, grouped, scored, edited, analyzed, trained])
def test_the_default_dtype_of_torch_changes_no_result(run, tiny_backbone, scenes, clip, tmp_path):
    found = {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            backbone = wrap_pipeline(tiny_backbone.pipe, "tiny")
            found[dtype] = [fingerprint(value) for value in run(backbone, scenes, clip, tmp_path / str(dtype))]
        finally:
            torch.set_default_dtype(torch.float32)
    for dtype, values in found.items():
        assert values == found[torch.float32], f"{run.__name__} differs with torch.set_default_dtype({dtype})"


def made_without_dtype(source: str) -> list[int]:
    """Lines where torch makes a tensor of floats in the default dtype of the process."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            maker = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
            named = any(word.arg in ("dtype", None) for word in node.keywords)
            if maker and node.func.attr in FLOATS and not named:
                lines.append(node.lineno)
    return lines


def test_tensors_name_their_dtype():
    assert made_without_dtype("a = torch.zeros(3)\nb = torch.eye(3, dtype=a.dtype)\nc = a.new_ones(2)") == [1]
    found = {
        str(path.relative_to(ROOT)): lines
        for path in sorted((ROOT / "seg4diff_tools").rglob("*.py"))
        if (lines := made_without_dtype(path.read_text(encoding="utf-8")))
    }
    assert not found, f"name the dtype, since torch.set_default_dtype may have changed it: {found}"


def in_a_thread(run) -> list:
    """What `run` returned or raised in another thread, which may take 20 seconds."""
    found = []

    def target():
        try:
            found.append(run())
        except Exception as error:  # noqa: BLE001 - the error is the result
            found.append(error)

    worker = threading.Thread(target=target, name="worker", daemon=True)
    worker.start()
    worker.join(20)
    assert found, "the thread still waits"
    return found


def with_lora(backbone):
    """A LoRA of the backbone's own shapes, applied."""
    lora_module.attach(backbone.transformer, backbone.family, rank=2, alpha=2)
    weights = lora_module.trained(backbone.transformer, alpha=2)
    backbone.transformer.unload_lora()
    return apply_lora(backbone, weights)


@pytest.mark.parametrize(
    ("hold", "holder"),
    [
        (with_lora, "a LoRA"),
        (lambda b: AttentionRecorder(b, prompt="a cat"), "an AttentionRecorder"),
        (lambda b: intercept(b.transformer, print), "an interception of attention"),
        (lambda b: apply_edit(b, blur(), 1), "an interception of attention"),
        (lambda b: perturbed_guidance(b, blur(), 1, 2.0), "perturbed guidance"),
        (lambda b: b.running(), "a forward"),
    ],
)
@pytest.mark.parametrize(
    "use",
    [
        lambda b: b.generate("a dog", steps=1, **QUIET),
        lambda b: b.encode_prompt("a dog"),
        lambda b: segment(b, np.zeros((56, 56, 3), np.uint8), ["cat", "dog"], OpenVocabulary(layers=1)),
        lambda b: AttentionRecorder(b, prompt="a dog").__enter__(),
    ],
)
def test_a_held_model_names_its_holder(build_backbone, monkeypatch, hold, holder, use):
    monkeypatch.setattr(transformers, "PATIENCE", 0.3)
    backbone = build_backbone()
    with hold(backbone):
        began = time.monotonic()
        (found,) = in_a_thread(lambda: use(backbone))
        assert time.monotonic() - began < 10
    assert isinstance(found, RecordingError)
    assert f"{holder} holds in thread 'MainThread': leave that `with` first" in str(found)
    # and it is free again
    assert len(in_a_thread(lambda: backbone.generate("a dog", steps=1, **QUIET))[0]) == 1


def test_patience_is_a_matter_of_seconds():
    assert transformers.PATIENCE <= 5


def test_threads_take_turns(build_backbone, monkeypatch):
    monkeypatch.setattr(transformers, "PATIENCE", 0.2)
    backbone, entered = build_backbone(), threading.Event()

    def slow(*_):
        entered.set()
        time.sleep(0.3)

    handle = backbone.transformer.register_forward_pre_hook(slow)
    worker = threading.Thread(target=lambda: backbone.generate("a cat", steps=3, **QUIET))
    worker.start()
    assert entered.wait(20)
    # the other one computes for longer than the patience, and is waited for
    noisy, timestep = backbone.add_noise(torch.zeros(1, *backbone.latent_shape))
    velocity = backbone.predict_velocity(noisy, timestep, "a cat")
    worker.join()
    handle.remove()
    assert velocity.isfinite().all()


READ_ALL = """
import locale, pkgutil, importlib, sys
assert not sys.flags.utf8_mode and "utf" not in locale.getencoding().lower(), locale.getencoding()
import seg4diff_tools
for module in pkgutil.walk_packages(seg4diff_tools.__path__, "seg4diff_tools."):
    if module.name != "seg4diff_tools.__main__":
        importlib.import_module(module.name)
from seg4diff_tools import load_backbone, explore, scenes, segment, paper
from seg4diff_tools.backbones import read_lora
backbone, scene = load_backbone("mini"), scenes.scene("test", 3)
result = segment(backbone, scene.image, ["chat noir é", "grass"])
result.save(sys.argv[1] + "/cat.nc")
explore(result).save_html(sys.argv[1] + "/page.html")
read_lora("mini-magnet")
print(len(paper.table(1)))
"""


def test_files_are_read_whatever_the_locale(tmp_path):
    environment = os.environ | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "HF_HUB_OFFLINE": "1"}
    if localedef := shutil.which("localedef"):
        made = subprocess.run([localedef, "-i", "zh_CN", "-f", "GBK", tmp_path / "zh_CN.GBK"], check=False)
        if made.returncode == 0:
            environment |= {"LOCPATH": str(tmp_path), "LC_ALL": "zh_CN.GBK"}
    script = tmp_path / "script.py"
    script.write_text(READ_ALL, encoding="utf-8")
    # warnings of other libraries' files are theirs
    options = ["-X", "warn_default_encoding", "-W", "error::EncodingWarning:seg4diff_tools"]
    environment["PYTHONPATH"] = str(ROOT)
    result = subprocess.run(
        [sys.executable, *options, script, tmp_path], env=environment, capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr.decode(errors="replace")
    assert result.stdout.split()[-1] == b"9"


WITHOUT_EXTRAS = """
import importlib, json, pkgutil, sys
sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))
import seg4diff_tools
found = {}
for module in pkgutil.walk_packages(seg4diff_tools.__path__, "seg4diff_tools.", onerror=lambda name: None):
    if module.name != "seg4diff_tools.__main__":
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            found[module.name] = str(error)
try:
    seg4diff_tools.evaluate
except ModuleNotFoundError as error:
    found["evaluate"] = str(error)
import numpy as np
from seg4diff_tools import OpenVocabulary, load_backbone, segment
try:
    segment(load_backbone("mini"), np.zeros((99, 99, 3), np.uint8), ["cat"], OpenVocabulary(upsampling="guided"))
except ModuleNotFoundError as error:
    found["guided"] = str(error)
print(json.dumps(found))
"""


def test_a_missing_package_names_its_extra(tmp_path):
    extras = {package: extra for extra, packages in errors._EXTRAS.items() for package in packages}
    (tmp_path / "script.py").write_text(WITHOUT_EXTRAS, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, tmp_path / "script.py", json.dumps([*extras])],
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert {"seg4diff_tools.evaluation", "seg4diff_tools.plotting", "evaluate", "guided"} <= found.keys()
    for place, message in found.items():
        package = message.partition(" ")[0]
        assert message == f"{package} is not installed: pip install 'seg4diff-tools[{extras[package]}]'", place


def test_the_extras_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra, packages in errors._EXTRAS.items():
        wanted = {Requirement(line).name for line in project["optional-dependencies"][extra]}
        assert wanted == {{"sklearn": "scikit-learn"}.get(package, package) for package in packages}
