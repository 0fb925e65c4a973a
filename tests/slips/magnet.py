"""Slips around MAGNET: settings, runs, LoRA and losses."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from seg4diff_tools import magnet
from seg4diff_tools.backbones import apply_lora
from seg4diff_tools.datasets import LabeledImage
from seg4diff_tools.magnet import MagnetConfig, losses

# untyped, as slips are wrong types
config: Any = MagnetConfig
preset: Any = magnet.preset
picture_test: Any = magnet.PictureTest
SAMPLE = LabeledImage(np.zeros((56, 56, 3), np.uint8), ("cat",), np.zeros((56, 56), int))
MAPS, MASKS = torch.zeros(2, 6, dtype=torch.float32), torch.ones(2, 6, dtype=torch.bool)
NAN = float("nan")

Slip = tuple[str, Callable[[Any], Any], str]


def setting(pattern: str, **values: Any) -> Slip:
    name = "-".join(f"{name}={value}" for name, value in values.items())
    return f"config-{name}", lambda backbone: config(**values), pattern


def run(pattern: str, **arguments: Any) -> Slip:
    def call(backbone: Any) -> None:
        usual = {"model": backbone, "samples": [SAMPLE], "config": config(layers=(1,), batch=6), "out": "never-made"}
        finetune: Any = magnet.finetune
        finetune(**usual | arguments)

    return f"finetune-{'-'.join(arguments)}-{len(pattern)}", call, pattern


def loss(name: str, pattern: str, *arguments: Any, **options: Any) -> Slip:
    return f"{name}-{len(pattern)}", lambda backbone: getattr(losses, name)(*arguments, **options), pattern


def applied(*arguments: Any) -> None:
    with apply_lora(*arguments):
        pass


SLIPS: list[Slip] = [
    ("preset", lambda backbone: preset("coco_released"), "expected preset, one of .*'coco-released', .*: pass preset="),
    ("preset-number", lambda backbone: preset(1), "expected preset, one of .* got 1: pass preset='coco'"),
    setting("expected steps 1 or more, got 0: choose", steps=0),
    setting("expected steps, a whole number 1 or more, got 1.5: pass steps=1", steps=1.5),
    setting("expected batch, a whole number .* got True: pass batch=1", batch=True),
    setting("expected learning_rate above 0, got 0: pass .*learning_rate=1e-5", learning_rate=0),
    setting("expected learning_rate, a number from 0, got '1e-5'", learning_rate="1e-5"),
    setting("expected head_learning_rate, a number from 0, got -1", head_learning_rate=-1),
    setting("expected warmup 0 or more, got -1", warmup=-1),
    setting("expected weight_decay, a number from 0, got nan", weight_decay=NAN),
    setting("expected clip_gradients above 0, got 0", clip_gradients=0),
    setting("expected rank 1 or more, got 0", rank=0),
    setting("expected alpha, a whole number 1 or more, got 0.5", alpha=0.5),
    setting("expected layers as numbers, got 'expert': pass layers=0", layers="expert"),
    setting("expected layers, at least one and each one once", layers=(1, 1)),
    setting("expected layers 0 or more, got -1", layers=-1),
    setting("expected maps, one of 'words', 'heads', got 'word': pass maps='words'", maps="word"),
    setting("expected text, one of 'classes', 'caption', got 'names'", text="names"),
    setting("expected reading, one of 'scores', .* got 'score'", reading="score"),
    setting("with maps='heads', got reading='shares'", maps="heads", reading="shares"),
    setting("expected conv_head, one of False, True, got 1: pass conv_head=False", conv_head=1),
    setting("expected focal, one of 'published', 'released', got 'paper'", focal="paper"),
    setting("expected average, one of 'images', 'masks', got 'mean'", average="mean"),
    setting("expected unlabeled, one of 'ignored', 'outside', got None", unlabeled=None),
    setting("expected class_tokens, one of 'span', 'any', got 'all'", class_tokens="all"),
    setting("conv_head=True.*leave conv_first out", conv_first=True),
    setting("expected match_resize, one of 'nearest-exact', 'nearest', got 'bilinear'", match_resize="bilinear"),
    setting("at least one loss .* got 0 for all: pass flow", flow_weight=0, focal_weight=0, dice_weight=0),
    setting("expected places_weight, a number from 0, got -1", places_weight=-1),
    setting("expected regions_weight, a number from 0, got None", regions_weight=None),
    setting("expected maps='words' with apart_weight, got maps='heads'", maps="heads", apart_weight=1),
    setting(
        "expected layer_weights for each of 2 layers, not all 0, got .*: pass as", layers=(1, 2), layer_weights=(1,)
    ),
    setting("expected layer_weights for each of 1 layers, not all 0", layers=(1,), layer_weights=(0,)),
    setting("expected layer_weights for each of 0 layers", layer_weights=(1.0,)),
    setting("expected layer_weights, a number for each layer, got 0.5: pass", layers=(1,), layer_weights=0.5),
    setting("expected layer_weights, a number from 0, got -1", layers=(1,), layer_weights=(-1,)),
    setting("expected noise, one of 'logit-normal', .* got 'normal'", noise="normal"),
    setting("expected align_at, one of 'all', 'early', 'late', got 'noisy'", align_at="noisy"),
    setting("expected shift above 0, got 0: pass .*shift=1.0", shift=0),
    setting("expected shift, a number from 0, got -3", shift=-3),
    setting("expected temperature above 0, got 0: pass .*temperature=1.2", temperature=0),
    setting("expected temperature_above, a number from 0 to 1000, got 1001", temperature_above=1001),
    setting("expected patience 0 or more, got -1", patience=-1),
    setting("expected dice_weight, a number from 0, got -0.2", dice_weight=-0.2),
    setting("expected match_focal or match_dice above 0", maps="heads", match_focal=0, match_dice=0),
    setting("expected most_masks 1 or more, got 0", most_masks=0),
    setting("expected least_area, a number from 0 to 1, got 5", least_area=5),
    setting("expected sigma_std, a number from 0, got -1", sigma_std=-1),
    setting("expected mask_side 1 or more, got 0", mask_side=0),
    setting(r"expected size, a whole number 1 or more, got \(64, 64\)", size=(64, 64)),
    setting(r"expected crop, the side .* got 640: pass crop=\(1024, 640\)", crop=640),
    setting("expected crop from 1 to 640, got 1024", crop=(640, 1024)),
    setting("expected flip, a number from 0 to 1, got 2", flip=2),
    setting("expected zero_tokens 0 or more, got -1", zero_tokens=-1),
    setting("expected seed 0 or more, got -1", seed=-1),
    run("expected a model .*got int: pass", model=3),
    run("expected config, a MagnetConfig, got {'steps': 3}: pass MagnetConfig", config={"steps": 3}),
    run("expected at least one sample, got 0", samples=[]),
    run("expected samples, a list or data set of images with label maps, got a str: pass", samples="train2017"),
    run("expected samples with image, label_map and class_names, got a NoneType", samples=[None]),
    run("expected samples, a list or data set .* got a str", evaluation="val2017"),
    run("expected out as text or a Path, got '': pass out=", out=""),
    run("expected evaluate_every 1 or more, got 0", evaluate_every=0),
    run("expected save_every, a whole number 1 or more, got 2.5", save_every=2.5),
    run("expected images_at_once 1 or more, got 0", images_at_once=0),
    run("expected images_at_once that divides 6 images evenly, got 4: choose", images_at_once=4),
    run("expected mixed_precision, one of 'no', 'bf16', 'fp16', got 16: pass mixed_precision=", mixed_precision=16),
    run("expected layers from 0 to 4, got 9", config=config(layers=(9,))),
    run("multiples of 8 pixels .*try 56", config=config(layers=(1,), size=53)),
    run("expected evaluation and pictures with patience=2, got 0 images and no pictures", config=config(patience=2)),
    run("expected pictures, a PictureTest, got .*: pass PictureTest", pictures=["a cat"]),
    (
        "picture judge",
        lambda backbone: picture_test(["a cat"], "mini"),
        "expected judge, a SceneDetector or a Clip, got 'mini': pass load_detector",
    ),
    ("lora-nan", lambda backbone: applied(backbone, "mini-magnet", NAN), "expected scale, a finite number, got nan"),
    ("lora-none", lambda backbone: applied(backbone, None), "expected source as text or a Path, got None"),
    ("head", lambda backbone: magnet.ConvHead(0), "expected width 1 or more, got 0"),
    (
        "no logits",
        lambda backbone: magnet.mask_losses([], [None], config()),  # type: ignore[list-item]
        "expected logits of each of 1 targets, got 0: pass one for each image",
    ),
    loss("focal_loss", r"expected logits as a tensor \[mask place\], got \[0.0\]", [0.0], MASKS),
    loss("focal_loss", "expected masks of True and False, got torch.float32: pass masks > 0.5", MAPS, MAPS),
    loss("focal_loss", "expected logits as floats, got torch.bool: pass log odds", MASKS, MASKS),
    loss("focal_loss", "expected alpha, a number from 0 to 1, got 25", MAPS, MASKS, alpha=25),
    loss("focal_loss", "expected gamma, a number from 0, got -2", MAPS, MASKS, gamma=-2),
    loss("focal_loss", "expected focal, one of 'published', 'released', got 'lin'", MAPS, MASKS, focal="lin"),
    loss(
        "dice_loss",
        r"expected logits for each of the masks, Tensor of torch.bool and shape \(2, 6\), got Tensor .*shape \(1, 6\)",
        MAPS[:1],
        MASKS,
    ),
    loss("dice_loss", r"expected masks as a tensor \[mask place\], got Tensor .*shape \(6,\): flatten", MAPS, MASKS[0]),
    loss("matching_cost", "expected masks of as many places as logits have, 6, got 5: resize", MAPS, MASKS[:, :5]),
    loss("matching_cost", "expected dice_weight, a number from 0, got nan", MAPS, MASKS, dice_weight=NAN),
    loss("places_loss", r"expected maps, floats \[mask place\], got \[0.0\]: flatten", [0.0], MAPS),
    loss("places_loss", r"expected shares, floats .*, got Tensor of torch.bool", MAPS, MASKS),
    loss("entropy_loss", r"expected shares of each map's mask, \[2, 6\], got \[1, 6\]: pass a row", MAPS, MAPS[:1]),
    loss("divergence", "expected at least two maps to compare, got 1", MAPS[:1]),
    loss("divergence", "expected power, a number from 0, got -3", MAPS, power=-3),
    loss("apart_loss", "expected maps, floats", MAPS[0]),
    loss("agree_loss", r"expected words, rows of at least one token each, got \[\[\]\]", MAPS, [[]]),
    loss("regions_loss", r"expected errors of each of 6 places, got Tensor .*shape \(2,\)", MAPS[:, 0], MAPS),
    loss("match_masks", r"expected cost \[candidate mask\], got Tensor .*shape \(6,\)", MAPS[0]),
    loss("match_masks", "expected finite costs", MAPS * NAN),
]
