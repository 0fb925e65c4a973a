"""Slips with pretraining: stages, configurations, cores, export, model cards."""

from collections.abc import Callable
from typing import Any

import torch

from seg4diff_tools import pretrain as typed
from seg4diff_tools.pretrain import config as typed_config
from seg4diff_tools.pretrain.model_card import write_card

# untyped, as slips are wrong types
pretrain: Any = typed
config: Any = typed_config
CFG = pretrain.preset("cpu")


def _stage(**changes: Any) -> Callable[[Any], Any]:
    asked = {"name": "clip", "run": "nowhere", "device": "cpu"} | changes
    return lambda backbone: pretrain.run_stage(**asked)


SLIPS: list[tuple[str, Callable[[Any], Any], str]] = [
    ("rs-name", _stage(name="unet"), "name, one of 'clip', 'vae', 'transformer', got 'unet': pass name='clip'"),
    ("rs-name-n", _stage(name=None), "name, one of 'clip', 'vae', 'transformer', got None: pass name='clip'"),
    (
        "rs-name-l",
        _stage(name=["clip"]),
        r"name, one of 'clip', 'vae', 'transformer', got \['clip'\]: pass name='clip'",
    ),
    ("rs-run-n", _stage(run=None), "run as text or a Path, got None: pass run='folder/file'"),
    ("rs-run-i", _stage(run=3), "run as text or a Path, got 3: pass run='folder/file'"),
    ("rs-run-file", _stage(run=__file__), "a folder, got .*: choose another"),
    ("rs-config-str", _stage(config="cpu"), r"config, a RunConfig, got 'cpu': pass config=preset\('cpu'\)"),
    (
        "rs-config-dict",
        _stage(config={"clip": 1}),
        r"config, a RunConfig, got \{'clip': 1\}: pass config=preset\('cpu'\)",
    ),
    ("rs-config-stage", _stage(config=CFG.clip), r"config, a RunConfig, got StageConfig: pass config=preset\('cpu'\)"),
    ("rs-device", _stage(device="cud"), "device of this machine, got 'cud': pass device='cpu'"),
    ("rs-device-n", _stage(device=3.5), r"device of this machine, got 3\.5: pass device='cpu'"),
    ("rs-save", _stage(save_every=0), "save_every 1 or more, got 0: choose one"),
    ("rs-save-t", _stage(save_every="a"), "save_every, a whole number 1 or more, got 'a': pass save_every=1"),
    ("rs-init-n", _stage(init=3), "init as text or a Path, got 3: pass init='folder/file'"),
    (
        "rs-keep-t",
        _stage(name="transformer", keep=["0.02M"]),
        r"keep, a whole number 1 or more, got '0\.02M': pass keep=1",
    ),
    ("rs-keep-neg", _stage(name="transformer", keep=[-1]), "keep 1 or more, got -1: choose one"),
    ("rs-watch", _stage(name="transformer", watch_every=-1), "watch_every 0 or more, got -1: choose one"),
    (
        "rs-watch-t",
        _stage(name="transformer", watch_every="50k"),
        "watch_every, a whole number 0 or more, got '50k': pass watch_every=0",
    ),
    ("rs-speed", _stage(speed="fast"), r"speed, a Speed, got 'fast': pass speed=Speed\(\)"),
    ("rs-compiled", _stage(compiled="no"), "compiled, one of None, False, True, got 'no': pass compiled=None"),
    ("rs-cache", _stage(name="transformer", cache=3), "cache as text or a Path, got 3: pass cache='folder/file'"),
    (
        "preset",
        lambda b: pretrain.preset("tpu"),
        "name, one of 'cpu', 'gpu', 'cpu-rich',.*, got 'tpu'.*: pass name='cpu'",
    ),
    (
        "preset-n",
        lambda b: pretrain.preset(None),
        "name, one of 'cpu', 'gpu', 'cpu-rich',.*, got None.*: pass name='cpu'",
    ),
    (
        "preset-l",
        lambda b: pretrain.preset(["cpu"]),
        r"name, one of 'cpu', 'gpu', 'cpu-rich',.*, got \['cpu'\].*: pass name='cpu'",
    ),
    ("pool-t", lambda b: pretrain.pool_size("a", CFG.model), "gigabytes, a number from 0, got 'a': pass a"),
    ("pool-neg", lambda b: pretrain.pool_size(-1, CFG.model), "gigabytes, a number from 0, got -1: pass a"),
    ("pool-nan", lambda b: pretrain.pool_size(float("nan"), CFG.model), "gigabytes, a number from 0, got nan: pass a"),
    ("pool-inf", lambda b: pretrain.pool_size(float("inf"), CFG.model), "gigabytes, a number from 0, got inf: pass a"),
    ("pool-config", lambda b: pretrain.pool_size(1, CFG), "config, a ModelConfig, got RunConfig: pass"),
    ("pool-none", lambda b: pretrain.pool_size(None, CFG.model), "gigabytes, a number from 0, got None: pass a"),
    ("img-n", lambda b: pretrain.images_of(None), "text, a number of images, got None: pass one"),
    ("img-t", lambda b: pretrain.images_of("many"), "text, a number of images, got 'many': pass one"),
    ("img-e", lambda b: pretrain.images_of(""), "text, a number of images, got '': pass one"),
    ("img-neg", lambda b: pretrain.images_of("-3k"), "text, a number of images, got '-3k': pass one"),
    ("img-inf", lambda b: pretrain.images_of("inf"), "text, a number of images, got 'inf': pass one"),
    ("img-nan", lambda b: pretrain.images_of("nan"), "text, a number of images, got 'nan': pass one"),
    ("pin-n", lambda b: pretrain.pin(None), "cores, a whole number from 0 to 1, got None: pass cores=0"),
    ("pin-e", lambda b: pretrain.pin([]), r"cores, at least one and each one once, got \[\]: name each"),
    ("pin-far", lambda b: pretrain.pin([9999]), "cores from 0 to 1, got 9999: choose one"),
    ("pin-t", lambda b: pretrain.pin(["0"]), "cores, a whole number from 0 to 1, got '0': pass cores=0"),
    ("pin-neg", lambda b: pretrain.pin([-1]), "cores from 0 to 1, got -1: choose one"),
    ("pin-text", lambda b: pretrain.pin("0,1"), "cores as numbers, got '0,1': pass cores=0"),
    ("ex-none", lambda b: pretrain.export(None, "x"), "run as text or a Path, got None: pass run='folder/file'"),
    ("ex-out", lambda b: pretrain.export("nowhere", None), "out as text or a Path, got None: pass out='folder/file'"),
    ("sf-model", lambda b: pretrain.start_from(None, "nowhere", "clip"), "model, a Module, got None: pass the"),
    (
        "sf-folder",
        lambda b: pretrain.start_from(b.transformer, "nowhere", "transformer"),
        "the folder of a model or a run, got nowhere, no folder: check the",
    ),
    (
        "sf-part",
        lambda b: pretrain.start_from(b.transformer, "nowhere", "unet"),
        "part, one of 'clip', 'vae', 'transformer', got 'unet': pass part='clip'",
    ),
    (
        "sf-none",
        lambda b: pretrain.start_from(b.transformer, None, "transformer"),
        "folder as text or a Path, got None: pass folder='folder/file'",
    ),
    ("save-n", lambda b: CFG.save(None), "folder as text or a Path, got None: pass folder='folder/file'"),
    ("st-steps", lambda b: config.StageConfig(0, 2, 0.001), "steps 1 or more, got 0: choose one"),
    ("st-batch", lambda b: config.StageConfig(1, 0, 0.001), "batch 1 or more, got 0: choose one"),
    ("st-rate", lambda b: config.StageConfig(1, 2, "x"), "learning_rate, a number from 0, got 'x': pass a"),
    ("st-rateneg", lambda b: config.StageConfig(1, 2, -1.0), r"learning_rate, a number from 0, got -1\.0: pass a"),
    ("st-warm", lambda b: config.StageConfig(1, 2, 0.001, warmup=0), "warmup 1 or more, got 0: choose one"),
    ("st-cool", lambda b: config.StageConfig(1, 2, 0.001, cooldown=0), "cooldown 1 or more, got 0: choose one"),
    ("st-ema", lambda b: config.StageConfig(1, 2, 0.001, ema=2), "ema, a number from 0 to 1, got 2: pass a"),
    ("st-seed", lambda b: config.StageConfig(1, 2, 0.001, seed=-1), "seed 0 or more, got -1: choose one"),
    (
        "mc-heads",
        lambda b: config.ModelConfig(width=100, heads=3),
        "width in multiples of heads=3, got 100: choose another",
    ),
    ("mc-layers", lambda b: config.ModelConfig(layers=0), "layers 1 or more, got 0: choose one"),
    ("mc-scenes", lambda b: config.ModelConfig(scenes=3), "scenes, a SceneConfig, got 3: pass"),
    ("mc-recipe", lambda b: config.ModelConfig(recipe={}), r"recipe, a Recipe, got \{\}: pass recipe=Recipe\(\)"),
    ("re-lists", lambda b: config.Recipe(lists=2), "lists, a number from 0 to 1, got 2: pass a"),
    ("re-pool", lambda b: config.Recipe(pool=3), "pool, a power of two or 0, got 3: pass what"),
    ("re-col", lambda b: config.Recipe(columns=0), "columns 1 or more, got 0: choose one"),
    ("re-direction", lambda b: config.Recipe(direction=-1), "direction, a number from 0, got -1: pass a"),
    ("rc-clip", lambda b: config.RunConfig(clip=3), r"clip, a StageConfig, got 3: pass clip=StageConfig\(1000,"),
    ("rc-model", lambda b: config.RunConfig(model="x"), r"model, a ModelConfig, got 'x': pass model=ModelConfig\(\)"),
    ("sp-dtype", lambda b: pretrain.Speed(dtype="bf16"), "dtype, one of .*, got 'bf16': pass dtype=torch"),
    ("sp-half", lambda b: pretrain.Speed(torch.float16), "dtype, one of .*, got torch.float16: pass dtype="),
    (
        "sp-att",
        lambda b: pretrain.Speed(joint_attention="flash"),
        "joint_attention, one of 'native', 'matrix', got 'flash': pass",
    ),
    ("sp-comp", lambda b: pretrain.Speed(compiled="no"), "compiled, one of False, True, got 'no': pass compiled=False"),
    (
        "wc-run",
        lambda b: write_card("x", b, None, "nowhere", guidance_scale=4.0),
        "quality, a Quality, got None: pass what",
    ),
    (
        "wc-folder",
        lambda b: write_card(None, b, None, "nowhere", guidance_scale=4.0),
        "folder as text or a Path, got None: pass folder='folder/file'",
    ),
]
