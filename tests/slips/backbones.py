"""Slips around models, prompts, images and run folders."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from seg4diff_tools._runs import as_path
from seg4diff_tools.backbones import (
    apply_lora,
    as_backbone,
    check_heads,
    check_layers,
    load_backbone,
    read_lora,
    save_lora,
    wrap_pipeline,
)
from seg4diff_tools.caching import remember
from seg4diff_tools.images import Video, open_images

PIXELS = np.zeros((8, 8, 3), np.uint8)
LATENTS = torch.zeros(1, 16, 14, 14)


def applied(*arguments: Any) -> None:
    with apply_lora(*arguments):
        pass


SLIPS: list[tuple[str, Callable[[Any], Any], str]] = [
    ("as_backbone-transformer", lambda b: as_backbone(b.transformer), r"expected a model .*got SD3Transf.*pass load_b"),
    ("as_backbone-none", lambda b: as_backbone(None), r"expected a model .*got NoneType.*pass load_backbone"),
    ("as_backbone-class", lambda b: as_backbone(type(b)), r"expected a model .*got type: pass load_backbone"),
    ("encode-video", lambda b: b.encode_image(Video([PIXELS])), r"expected images, got a Video.*pass list\(video\)"),
    ("video-none", lambda b: Video([]), r"expected at least one image, got an empty list"),
    ("video-path", lambda b: Video(["no.png"]), r"no image file 'no.png': check the path"),
    ("video-sizes", lambda b: Video([PIXELS, PIXELS[:3]]), r"expected frames of one size, got .*: resize them first"),
    ("size-frames", lambda b: b.generate("a cat", size=(9, 56, 56)), r"expected size, \(height, width\) or"),
    ("as_path-number", lambda b: as_path(3, "out"), r"expected out as text or a Path, got 3: pass out="),
    ("as_path-empty", lambda b: as_path("", "out"), r"expected out as text or a Path, got '': pass out="),
    ("as_path-stranger", lambda b: as_path("~no-such-user/x"), r"expected path below .* got ~no-such-user/x: write it"),
    ("load-typo", lambda b: load_backbone("minni"), r"no model folder 'minni'.*did you mean 'mini'"),
    ("load-pipeline", lambda b: load_backbone(b.pipe), r"expected name_or_path.* got StableDiff.*wrap_pipeline"),
    ("load-dtype", lambda b: load_backbone("mini", dtype="int8"), r"expected dtype from fp32.*got 'int8': pass dtype="),
    ("load-device", lambda b: load_backbone("mini", device="gpu"), r"expected device .*got 'gpu': pass device='c"),
    ("load-t5", lambda b: load_backbone("mini", t5=1), r"expected t5, one of False, True, got 1: pass t5=False"),
    (
        "load-t5-mini",
        lambda b: load_backbone("mini", t5=True),
        r"mini' has no text_encoder_3 \(T5\): load it with",
    ),
    (
        "names-reader",
        lambda b: b.class_prompts(["cat"], reader="T5"),
        r"expected reader, one of CLIP, got 'T5': lea",
    ),
    ("wrap-name", lambda b: wrap_pipeline("mini"), r"expected a diffusers pipeline, got str: .*load_backbone"),
    ("wrap-backbone", wrap_pipeline, r"expected a diffusers pipeline, got Backbone"),
    ("layers-word", lambda b: check_layers(b, "last"), r"expected layers as numbers, got 'last': pass layers=0"),
    ("layers-expert", lambda b: check_layers(b, "expert"), r"expert layer is known, got .*pass layers=0 to 4"),
    ("layers-range", lambda b: check_layers(b, 5), r"expected layers from 0 to 4, got 5"),
    (
        "layers-twice",
        lambda b: check_layers(b, [1, 1]),
        r"expected layers, at least one and each one once, got \[1, 1\]",
    ),
    ("heads-word", lambda b: check_heads(b, "max"), r"expected heads as numbers, got 'max'"),
    ("heads-twice", lambda b: check_heads(b, ["mean", "mean"]), r"expected heads, each one once"),
    ("heads-range", lambda b: check_heads(b, ["mean", 3]), r"expected heads from 0 to 2, got 3"),
    ("prompt-number", lambda b: b.encode_prompt(3), r"expected prompt, one or a list, got 3: pass prompt='a cat'"),
    ("prompt-none", lambda b: b.encode_prompt(["a", None]), r"expected prompt as text, got None: pass prompt="),
    ("prompt-zeros", lambda b: b.encode_prompt("a", zero_tokens=2.5), r"expected zero_tokens, a whole number"),
    ("names-text", lambda b: b.class_prompts("cat, dog"), r"expected class_names, a list.*write \['cat', 'dog'\]"),
    ("names-numbers", lambda b: b.class_prompts([1, 2]), r"expected class_names, a list of texts, got \[1, 2\]: write"),
    ("names-none", lambda b: b.class_prompts(None), r"expected class_names, a list of texts, got None"),
    ("image-number", lambda b: b.encode_image(3), r"expected images, one or a list, got int: pass a path"),
    ("image-missing", lambda b: b.encode_image("none.png"), r"no image file 'none.png': check the path"),
    ("image-none", lambda b: open_images([None]), r"expected an image, got NoneType: pass a path"),
    ("image-dict", lambda b: open_images({"image": 1}), r"expected images, one or a list, got dict"),
    ("image-size", lambda b: b.encode_image(np.zeros((9, 9, 3), np.uint8), size="56"), r"expected size, .* got '56'"),
    (
        "image-sizes",
        lambda b: b.encode_image(np.zeros((9, 9, 3), np.uint8), size=(1, 2, 3)),
        r"expected size, \(height",
    ),
    ("decode-array", lambda b: b.decode(np.zeros((1, 16, 14, 14))), r"expected latents \[image 16 .*got ndarray: pass"),
    ("decode-one", lambda b: b.decode(LATENTS[0]), r"expected latents \[image 16 rows.*got shape \(16, 14, 14\)"),
    (
        "decode-odd",
        lambda b: b.decode(torch.zeros(1, 16, 13, 14)),
        r"expected latents .*multiples of 2, got \(13, 14\)",
    ),
    ("schedule-zero", lambda b: b.schedule(0), r"expected steps 1 or more, got 0"),
    ("noise-steps", lambda b: b.add_noise(LATENTS, "8"), r"expected steps_from_end as numbers, got '8'"),
    ("noise-far", lambda b: b.add_noise(LATENTS, 29), r"expected steps_from_end from 1 to 28, got 29"),
    ("noise-seed", lambda b: b.add_noise(LATENTS, seed="0"), r"expected seed, one or a list, got '0': pass seed=0"),
    (
        "noise-picture",
        lambda b: b.add_noise("photo.jpg"),
        r"expected latents \[image 16 .*got str: pass what encode_image",
    ),
    (
        "velocity-time",
        lambda b: b.predict_velocity(LATENTS, 1001, "a"),
        r"expected timestep from 0 to 1000, .*got 1001",
    ),
    (
        "velocity-times",
        lambda b: b.predict_velocity(LATENTS, [1.0, 2.0], "a"),
        r"expected timestep .* one or one for each",
    ),
    ("velocity-word", lambda b: b.predict_velocity(LATENTS, "t", "a"), r"expected timestep as numbers .*got 't'"),
    ("velocity-prompt", lambda b: b.predict_velocity(LATENTS, 9.0, 3), r"expected prompt, one or a list, got 3"),
    ("generate-steps", lambda b: b.generate("a", steps=0), r"expected steps 1 or more, got 0"),
    ("generate-steps-half", lambda b: b.generate("a", steps=2.5), r"expected steps, a whole number .*got 2.5"),
    ("generate-seed", lambda b: b.generate("a", seed=1.5), r"expected seed, a whole number .*got 1.5: pass seed=0"),
    ("generate-seeds", lambda b: b.generate("a", seed=[]), r"expected seed, at least one, got an empty list"),
    ("generate-minus", lambda b: b.generate("a", seed=-1), r"expected seed from 0 to .*got -1"),
    ("generate-batch", lambda b: b.generate("a", batch=0), r"expected batch 1 or more, got 0"),
    (
        "generate-many",
        lambda b: b.generate("a", num_images_per_prompt=2),
        r"got num_images_per_prompt: use seed=\[0, 1\]",
    ),
    ("generate-generator", lambda b: b.generate("a", generator=1), r"expected no generator .* use seed="),
    ("generate-inference", lambda b: b.generate("a", num_inference_steps=9), r"got num_inference_steps: use steps="),
    ("generate-length", lambda b: b.generate("a", max_sequence_length=9), r"max_sequence_length .*use zero_tokens="),
    ("generate-typo", lambda b: b.generate("a", gidance=4), r"expected arguments of Stable.*, got gidance: leave out"),
    ("generate-scale", lambda b: b.generate("a", guidance_scale="7"), r"expected guidance_scale, a number .*got '7'"),
    (
        "generate-nan",
        lambda b: b.generate("a", guidance_scale=float("nan")),
        r"expected guidance_scale, a number .*got nan",
    ),
    (
        "generate-negative",
        lambda b: b.generate("a", negative_prompt=["b"]),
        r"expected negative_prompt as text, got \['b'",
    ),
    ("generate-callback", lambda b: b.generate("a", callback=3), r"expected callback as a function .*got 3"),
    ("generate-empty", lambda b: b.generate([]), r"expected prompt, at least one, got an empty list"),
    ("span-none", lambda b: b.encode_prompt("a cat").span(None), r"expected phrase, .* got None: pass text"),
    ("span-label", lambda b: b.encode_prompt("a cat").span("cat#2"), r"'cat' occurs 1 time"),
    (
        "span-occurrence",
        lambda b: b.encode_prompt("a cat").span("cat", "0"),
        r"expected an occurrence from 0 to 0, got 0",
    ),
    ("lora-number", lambda b: read_lora(3), r"expected source as text or a Path, got 3"),
    ("lora-typo", lambda b: read_lora("mini-magnt"), r"got no such file: check the path, or pass one of mini-magnet"),
    ("lora-scale", lambda b: applied(b, "mini-magnet", "1"), r"expected scale, a finite number, got '1': pass scale=1"),
    ("lora-model", lambda b: applied(b.transformer, "mini-magnet"), r"expected a model .*got SD3Transformer2DModel"),
    ("lora-save", lambda b: save_lora(read_lora("mini-magnet"), 3), r"expected folder as text or a Path, got 3"),
    (
        "remember-result",
        lambda b: remember(3),
        r"expected a function, got 3: pass the function and its arguments apart",
    ),
    (
        "remember-object",
        lambda b: remember(applied, object()),
        r"whose content can be read, got object: call the function",
    ),
]
