"""What an image trains: its prompt, where its classes stand in it, and the masks that its attention should show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.datasets import IGNORE, Sample
from seg4diff_tools.errors import InputError, PromptError
from seg4diff_tools.images import open_image
from seg4diff_tools.magnet.config import MagnetConfig
from seg4diff_tools.prompts import Prompt


@dataclass(frozen=True, eq=False)
class Target:
    """One image as training sees it.

    Attributes:
        image: stretched to the model's square when it is encoded.
        prompt: encoded.
        masks: on the square of `MagnetConfig.mask_side`.
        spans: text tokens of the class of each mask; empty for masks without names.
        known: places with a label; elsewhere nothing is trained.
        unnamed: masks that were left out because the prompt does not hold their class.
    """

    image: Image.Image
    prompt: Prompt
    masks: Bool[Tensor, "mask y x"]
    spans: tuple[tuple[int, ...], ...]
    known: Bool[Tensor, "y x"]
    unnamed: int = 0


def target(backbone: Backbone, sample: Sample, config: MagnetConfig, number: int = 0) -> Target:
    """Prepare an image.

    Args:
        backbone: whose prompts and sizes.
        sample: image, and label map with names, or (for maps="heads") `masks` of any kind, [mask y x].
        config: which masks, which prompt, and how images are cut and mirrored.
        number: how many images came before in training; cut and mirror image follow from it and the seed.

    Raises:
        InputError: an unreadable image, masks of another size than the image, or no class name where one is needed.
    """
    picture = open_image(sample.image)
    side = config.mask_side or config.size or backbone.image_size
    names = list(sample.class_names)
    labels = torch.from_numpy(np.asarray(sample.label_map).astype(np.int64))
    single = getattr(sample, "masks", None) if config.maps == "heads" else None
    masks = None if single is None else torch.from_numpy(np.asarray(single)).bool()
    for found in (labels, masks):
        if found is not None and found.shape[-2:] != (picture.height, picture.width):
            raise InputError(
                f"expected masks of the image's size {(picture.height, picture.width)}, got {tuple(found.shape[-2:])}: "
                "check that they belong to this image"
            )
    if not names and (config.maps == "words" or config.text == "classes"):
        raise InputError("expected class names with maps='words' or text='classes', got none: name the masks")
    classes = list(range(len(names)))
    if config.crop or config.flip:
        picture, rows, columns = _cut(picture, config, number, config.size or backbone.image_size)
        labels = labels[rows[:, None], columns]
        masks = None if masks is None else masks[:, rows[:, None], columns]
        # the prompt names what a cut leaves of an image
        classes = [index for index in classes if not config.crop or bool((labels == index).any())]
        names = [names[index] for index in classes]
    if masks is None:
        masks = labels == torch.tensor(classes, dtype=torch.int64)[:, None, None]
    # a label map says where nothing is known, masks of SA-1B do not
    has_known = config.unlabeled == "ignored" and (config.maps == "words" or bool(sample.class_names))
    known = labels != IGNORE if has_known else torch.ones_like(labels, dtype=torch.bool)
    text, spans = _prompt(backbone, sample, names, config)
    largest = _largest(masks, config)
    wanted = [index for index in largest if config.maps == "heads" or names[index] in spans]
    return Target(
        picture,
        text,
        _square(masks[wanted], side),
        tuple(spans[names[index]] for index in wanted) if config.maps == "words" else (),
        _square(known[None], side)[0],
        len(largest) - len(wanted),
    )


def _cut(
    picture: Image.Image, config: MagnetConfig, number: int, side: int
) -> tuple[Image.Image, Int64[Tensor, " y"], Int64[Tensor, " x"]]:
    """Cut and mirror an image, see `MagnetConfig.crop`; return it and which of its rows and columns are left."""
    generator = np.random.Generator(np.random.Philox(key=[config.seed, number], counter=1))
    place, mirror = generator.random(2)
    rows, columns = (torch.arange(length, dtype=torch.int64) for length in picture.size[::-1])
    if config.crop:
        whole, corner = config.crop
        scale = whole / min(picture.size)
        width, height = (max(whole, int(length * scale + 0.5)) for length in picture.size)
        # the nearest row and column before the one that is resized, as the released code takes labels
        rows = torch.arange(height, dtype=torch.int64) * picture.height // height
        columns = torch.arange(width, dtype=torch.int64) * picture.width // width
        left, top = (round((length - whole) * float(place)) for length in (width, height))
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        picture = picture.crop((left, top, left + whole, top + whole))
        rows, columns = rows[top : top + whole], columns[left : left + whole]
    if mirror < config.flip:
        picture, columns = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), columns.flip(0)
    if config.crop:
        picture, rows, columns = picture.crop((0, 0, corner, corner)), rows[:corner], columns[:corner]
        picture = picture.resize((side, side), Image.Resampling.BILINEAR)
    return picture, rows, columns


def _prompt(
    backbone: Backbone, sample: Sample, names: Sequence[str], config: MagnetConfig
) -> tuple[Prompt, dict[str, tuple[int, ...]]]:
    """The encoded prompt, and the tokens of the classes that it holds."""
    if config.text == "classes" and names:
        # of so many names that one prompt does not hold them, the first prompt's are trained
        prompt = backbone.class_prompts(names, zero_tokens=config.zero_tokens)[0]
        spans = dict(prompt.classes)
        return prompt, _any_tokens(backbone, prompt, spans) if config.class_tokens == "any" else spans
    caption = "" if config.text == "classes" else fitting(backbone, sample.caption)
    prompt = backbone.encode_prompt(caption, zero_tokens=config.zero_tokens)
    spans = {}
    for name in names if config.maps == "words" else ():
        try:
            spans[name] = prompt.span(name)
        except PromptError:
            continue
    return prompt, _any_tokens(backbone, prompt, spans) if config.class_tokens == "any" else spans


def _any_tokens(backbone: Backbone, prompt: Prompt, spans: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return for each class every word position whose token is one of its name's."""
    tokenizer = backbone.family.class_tokenizer_and_limit(backbone.pipe)[0]

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    # a prompt that is cut has fewer words than ids
    words = prompt.indices("word", reader=next(iter(prompt.readers), None))
    positions = dict(zip(words, ids(prompt.text), strict=False))
    return {
        name: tuple(at for at, one in positions.items() if one in set(ids(name))) or span
        for name, span in spans.items()
    }


def fitting(backbone: Backbone, caption: str) -> str:
    """As many whole words of a caption as the text encoder reads.

    Args:
        backbone: whose tokenizer.
        caption: of any length.
    """
    tokenizer, room = backbone.family.tokenizer_and_limit(backbone.pipe)
    places = tokenizer(caption, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    if len(places) <= room:
        return caption
    kept = caption[: places[room][0]]
    # a word that goes on beyond is left out
    return kept.rstrip() if kept.endswith(" ") else kept.rpartition(" ")[0]


def _largest(masks: Bool[Tensor, "mask y x"], config: MagnetConfig) -> list[int]:
    areas = masks.float().mean((1, 2))
    order = areas.argsort(descending=True, stable=True).tolist()
    return [index for index in order if areas[index] > 0 and areas[index] >= config.least_area][: config.most_masks]


def _square(masks: Bool[Tensor, "mask y x"], side: int) -> Bool[Tensor, "mask side side"]:
    if masks.shape[-2:] == (side, side) or len(masks) == 0:
        return masks.reshape(len(masks), side, side)
    return interpolate(masks[:, None].float(), size=(side, side), mode="nearest-exact")[:, 0] > 0.5


def noise(
    backbone: Backbone, shape: Sequence[int], number: int, config: MagnetConfig
) -> tuple[Float[Tensor, "channel row column"], Float[Tensor, ""]]:
    """Noise and its share for the image with this number in training, whichever process it falls to.

    Args:
        backbone: whose scheduler shifts the share.
        shape: of a latent.
        number: how many images came before.
        config: seed, the distribution of the share, and its shift.

    Returns:
        Noise, and sigma from 0 to 1.
    """
    generator = torch.Generator().manual_seed(config.seed * 1_000_000_007 + number)
    drawn = torch.randn(*shape, generator=generator, dtype=torch.float32)
    if config.noise == "logit-normal":
        normal = torch.randn((), generator=generator, dtype=torch.float32)
        level = (config.sigma_mean + config.sigma_std * normal).sigmoid()
    else:
        level = torch.rand((), generator=generator, dtype=torch.float32)
        level = level if config.noise == "uniform" else level / 2 + (0.5 if config.noise == "early" else 0.0)
    shift = _shift(backbone, config.size) if config.shift is None else config.shift
    return drawn, shift * level / (1 + (shift - 1) * level)


def counts(backbone: Backbone, sigma: float, config: MagnetConfig) -> bool:
    """Return whether masks count at a noise level: see `MagnetConfig.align_at`.

    Args:
        backbone: whose scheduler tells the level in the middle of sampling.
        sigma: share of the noise, 0 to 1.
        config: `align_at` and `size`.
    """
    shift = _shift(backbone, config.size)
    noisy = sigma >= shift / (1 + shift)
    return config.align_at == "all" or noisy == (config.align_at == "early")


def _shift(backbone: Backbone, size: int | None) -> float:
    settings = backbone.pipe.scheduler.config
    if not settings.get("use_dynamic_shifting", False):
        return float(settings.get("shift", 1.0))
    # it follows from the image size in a way that the pipeline alone knows: read where its schedule takes one half to
    middle = float(backbone.schedule(1000, size)[1][500])
    return middle / (1 - middle)
