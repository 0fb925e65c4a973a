"""Sampling: a pipeline's own loop over prompts and seeds, with checked arguments."""

import inspect
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from numbers import Number, Real
from typing import TYPE_CHECKING, Any

import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from seg4diff_tools.backbones.checks import check_zeros
from seg4diff_tools.errors import InputError
from seg4diff_tools.families._private import progress_bar
from seg4diff_tools.images import Video
from seg4diff_tools.indices import as_int
from seg4diff_tools.prompts import Prompt, check_prompt

if TYPE_CHECKING:
    from seg4diff_tools.backbones.backbone import Backbone

Callback = Callable[[int, float, Tensor], None]
_INSTEAD = {
    "num_images_per_prompt": "seed=[0, 1]: one image per seed",
    "num_inference_steps": "steps=",
    "generator": "seed=",
    "latents": "seed=",
    "height": "size=(height, width)",
    "width": "size=(height, width)",
    "num_frames": "size=(frames, height, width)",
    "num_videos_per_prompt": "seed=[0, 1]: one video per seed",
    "callback_on_step_end": "callback=",
    "output_type": "callback=, which gets the latents",
    "return_dict": "the list of images that generate returns",
    "prompt_embeds": "prompt=",
}
"""Pipeline arguments that `Backbone.generate` sets, and its own argument for each."""


def sample(
    backbone: "Backbone",
    prompts: list[str | Prompt],
    steps: int,
    guidance_scale: float | None,
    seed: int | Sequence[int],
    size: tuple[int, ...],
    negative_prompt: str | None,
    zero_tokens: int,
    batch: int | None,
    progress: bool,
    callback: Callback | None,
    arguments: dict[str, Any],
) -> list[PIL.Image.Image] | list[Video]:
    """Generate images or videos: see `Backbone.generate`."""
    texts = [unicodedata.normalize("NFC", p) if isinstance(p, str) else p.text for p in prompts]
    if negative_prompt is not None and not isinstance(negative_prompt, str):
        raise InputError(f"expected negative_prompt as text, got {negative_prompt!r}: pass one for all images")
    for text in (*texts, negative_prompt or ""):
        check_prompt(*backbone.family.tokenizer_and_limit(backbone.pipe), text)
    seeds = as_seeds(seed) * (len(texts) if is_number(seed) else 1)
    texts = texts * len(seeds) if len(texts) == 1 else texts
    if len(seeds) != len(texts):
        raise InputError(
            f"expected seed, one or one per prompt, got {len(seeds)} for {len(texts)} prompts: pass seed=0"
        )
    if (made := backbone.family.made_size(backbone.pipe, size)) != size:
        raise InputError(
            f"expected a size that {backbone.family.name} makes, got {size}, of which its pipeline makes {made}: pass "
            f"size={made}"
        )
    batch = len(texts) if batch is None else as_int(batch, "batch", 1)
    # one bar: of the steps, or of several batches
    several, progress = progress and batch < len(texts), progress and batch >= len(texts)
    options = _options(backbone, prompts, guidance_scale, negative_prompt, zero_tokens, callback, arguments)
    noise = draw_noise(seeds, backbone.latent_size(size)).to(backbone.device)
    noise = noise.to(backbone.dtype) if backbone.family.latents_as_given else noise
    images: list[Any] = []
    with backbone.running(), progress_bar(backbone.pipe, progress):
        for start in tqdm(range(0, len(texts), batch), unit="batch", desc=backbone.name, disable=not several):
            some, part = texts[start : start + batch], noise[start : start + batch]
            many = {"negative_prompt": [options["negative_prompt"]] * len(some)} if "negative_prompt" in options else {}
            made = backbone.pipe(
                prompt=some,
                **backbone.family.sized(backbone.pipe, size),
                num_inference_steps=steps,
                latents=backbone.family.pack(part) if backbone.family.takes_packed else part,
                **(options | many),
            )
            images += [Video(frames) for frames in made.frames] if backbone.is_video else made.images
    return images


def _options(
    backbone: "Backbone",
    prompts: list[str | Prompt],
    guidance_scale: float | None,
    negative_prompt: str | None,
    zero_tokens: int,
    callback: Callback | None,
    arguments: dict[str, Any],
) -> dict[str, Any]:
    """Return the arguments of a pipeline call; refuse those without an effect."""
    name, family = type(backbone.pipe).__name__, backbone.family
    known = inspect.signature(type(backbone.pipe).__call__).parameters
    if taken := [key for key in arguments if key in _INSTEAD and key in known]:
        raise InputError(f"expected no {taken[0]} in generate, got {taken[0]}: use {_INSTEAD[taken[0]]}")
    scale = _scale(backbone.guidance_scale if guidance_scale is None else guidance_scale, "guidance_scale")
    options = {family.scale_name: scale, **family.call_kwargs} | arguments
    if family.zero_text(backbone.pipe):
        if "max_sequence_length" in arguments:
            raise InputError("expected no max_sequence_length in generate, got one: use zero_tokens=")
        encoded = {len(p.indices("zero")) for p in prompts if isinstance(p, Prompt)}
        if len(encoded) > 1:
            raise InputError(f"expected prompts with one zero_tokens, got {sorted(encoded)}: encode them alike")
        options["max_sequence_length"] = encoded.pop() if encoded else check_zeros(backbone, zero_tokens)
    else:
        check_zeros(backbone, zero_tokens)
    if callback is not None:
        if not callable(callback):
            raise InputError(f"expected callback as a function of step, timestep, latents, got {callback!r}")

        def on_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            callback(step, float(timestep), tensors["latents"])
            return {}

        options["callback_on_step_end"] = on_step
    negative = family.negative if negative_prompt is None else negative_prompt
    if negative is not None:
        options["negative_prompt"] = negative
    if unknown := sorted(set(options) - set(known)):
        raise InputError(f"expected arguments of {name}, got {' and '.join(unknown)}: leave out what it does not take")
    if "true_cfg_scale" in known:
        weight, way = _scale(options.get("true_cfg_scale", 1.0), "true_cfg_scale"), "true_cfg_scale=4.0"
        if weight > 1 and negative is None:
            raise InputError(f"expected a negative_prompt with true_cfg_scale={weight:g}: pass negative_prompt=''")
        embeds = backbone.transformer.config.get("guidance_embeds", True)
        if (
            not embeds
            and family.scale_name == "guidance_scale"
            and guidance_scale not in (None, backbone.guidance_scale)
        ):
            raise InputError(f"expected no guidance_scale, which {backbone.name} does not read: pass {way} instead")
    else:
        weight, way = scale + family.guidance_offset, f"guidance_scale={family.guidance_scale:g}"
    if negative_prompt is not None and weight <= 1:
        raise InputError(
            f"expected guidance with negative_prompt, got weight {weight:g}, which ignores it: pass {way} too, or "
            "leave negative_prompt out"
        )
    return options


def _scale(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < float("inf"):
        raise InputError(f"expected {name}, a number of at least 0, got {value!r}: pass {name}=4.0")
    return float(value)


def is_number(value: Any) -> bool:
    """Return whether a value is one number: Python's, NumPy's, or a 0-dimensional tensor or array."""
    return isinstance(value, Number) or getattr(value, "shape", None) == ()


def as_seeds(seed: Any) -> list[int]:
    """Return seeds, one or several, as a list, or raise an InputError."""
    seeds = [seed] if is_number(seed) else as_list(seed, "seed", "0")
    return [as_int(number, "seed", 0, 2**63 - 1) for number in seeds]


def as_list(values: Any, name: str, example: str) -> list[Any]:
    """Return the values of an argument that takes one or several, or raise an InputError for text or none."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise InputError(f"expected {name}, one or a list, got {values!r}: pass {name}={example}")
    found = list(values)
    if not found:
        raise InputError(f"expected {name}, at least one, got an empty list: pass {name}={example}")
    return found


def as_prompts(prompt: Any) -> list[str | Prompt]:
    """Return prompts, encoded or not, as a list, or raise an InputError."""
    prompts = [prompt] if isinstance(prompt, (str, Prompt)) else as_list(prompt, "prompt", "'a cat'")
    for each in prompts:
        if not isinstance(each, (str, Prompt)):
            raise InputError(f"expected prompt as text or from encode_prompt, got {each!r}: pass prompt='a cat'")
    return prompts


def draw_noise(seeds: Sequence[int], shape: Sequence[int]) -> Float[Tensor, "image channels *frames height width"]:
    """Draw noise on the CPU in float32: the same for a seed on every device."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(*shape, generator=g, dtype=torch.float32, device="cpu") for g in generators])
