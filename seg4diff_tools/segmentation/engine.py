"""Class maps and label maps of several images by one set of options: what `segment`, `group` and `evaluate` share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import PIL.Image
import torch
from jaxtyping import Float, Int
from torch import Tensor

from seg4diff_tools.attention.exact import chunks
from seg4diff_tools.attention.joint import JointAttention
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checks import check_heads, check_layers
from seg4diff_tools.backbones.forwards import observe
from seg4diff_tools.errors import InputError
from seg4diff_tools.images import Video
from seg4diff_tools.indices import as_indices
from seg4diff_tools.prompts import Prompt
from seg4diff_tools.segmentation import masks
from seg4diff_tools.segmentation.attribution import PROBABILITIES, read
from seg4diff_tools.segmentation.class_maps import read_class_maps
from seg4diff_tools.segmentation.options import BACKGROUND, OpenVocabulary, Options, Unsupervised
from seg4diff_tools.segmentation.workbench import Picture, Workbench

CLASSES_AT_ONCE = 16
"""Guided upsampling holds maps of this many classes at the image's size."""

Maps = Float[Tensor, "class *frame y x"]
ColumnMaps = Float[Tensor, "column *frame y x"]
Labels = Int[Tensor, "*video height width"]
Columns = Sequence[tuple[tuple[str, ...], int]]
"""What competes for each pixel: words whose maps are averaged, and the index of the class that they stand for."""


@dataclass(frozen=True, eq=False)
class ImageMaps:
    """What the options make of one image, or video, on the model's device.

    Attributes:
        maps: one for each class on the grid of image tokens, of a video in each latent frame; NaN for a class that was
            not asked for.
        labels: index of the class at each pixel of the image's frame, of a video in each of its frames.
        prompts: texts of all prompts, in the order in which they ran.
    """

    maps: Maps
    labels: Labels
    prompts: tuple[str, ...]


def image_maps(
    work: Workbench,
    images: Sequence[PIL.Image.Image | Video],
    class_names: Sequence[Sequence[str]],
    options: OpenVocabulary,
    *,
    batch: int = 8,
) -> list[ImageMaps]:
    """Segment a few images, several at once where the method allows it, or a video.

    Args:
        work: with the model.
        images: of any sizes; or one video, with options that videos can have.
        class_names: for each image the classes to choose from.
        options: of the segmentation.
        batch: rows of one forward.

    Returns:
        Class maps, label map and prompts of each image.

    Raises:
        InputError: a layer or step out of range.
        PromptError: a word that is too long for a prompt.
    """
    frames = [work.frame(image, options) for image in images]
    columns = [_columns(names, options) for names in class_names]
    # an image whose only class is a background without words is not read: nothing competes with it
    asked = [index for index, own in enumerate(columns) if own]
    if asked:
        together, batch = _at_once(work, [columns[i] for i in asked], options, images, batch)
        if together < len(images):
            parts = chunks(len(images), together)
            return [found for p in parts for found in image_maps(work, images[p], class_names[p], options, batch=batch)]
    crops = [_windows(frames[i], work.picture(images[i]), options.tiles) for i in asked]
    found = iter(_column_maps(work, crops, [columns[i] for i in asked], options, batch) if asked else ())
    read = {index: _joined([next(found) for _ in own], options.tiles) for index, own in zip(asked, crops, strict=True)}
    results = []
    for index, (frame, names, own) in enumerate(zip(frames, class_names, columns, strict=True)):
        if index not in read:
            rows, columns_ = work.backbone.token_grid()
            empty = torch.full((len(names), rows, columns_), torch.nan, dtype=torch.float32)
            labels = torch.zeros(frame.image.height, frame.image.width, dtype=torch.int64)
            results.append(ImageMaps(empty, labels, ()))
        elif options.second_pass:
            results.append(_second_pass(work, images[index], names, read[index], own, options, batch))
        else:
            prompts = tuple(prompt.text for words in _turns(own, options) for prompt in work.prompts(words, options))
            maps = masks.minmax(read[index]) if options.minmax else read[index]
            with work.timed("labels"):
                labels = _labels(work.backbone, maps, own, names, frame.image, options)
            results.append(ImageMaps(_class_maps(maps, own, names, options), labels, prompts))
    return results


def label_maps(
    work: Workbench,
    images: Sequence[PIL.Image.Image],
    class_names: Sequence[Sequence[str]],
    options: OpenVocabulary,
    *,
    batch: int = 8,
) -> list[Labels]:
    """Segment a few images as `image_maps` does and return the label maps alone, on the CPU."""
    return [found.labels.cpu() for found in image_maps(work, images, class_names, options, batch=batch)]


def pad_groups(work: Workbench, images: Sequence[PIL.Image.Image], options: Unsupervised) -> list[Labels]:
    """Group the places of a few images without class names.

    Args:
        work: with the model.
        images: of any sizes.
        options: of the grouping.

    Returns:
        For each image the number of the group at each pixel, on the CPU.
    """
    token_maps = pad_maps(work, images, options).flatten(1, 2).mean(1)
    with work.timed("labels"):
        return [
            masks.label_map(
                masks.merge_maps(maps.cpu(), options.threshold, options.rounds, options.merging)[0],
                work.frame(image, options).image.size[::-1],
            )
            for maps, image in zip(token_maps, images, strict=True)
        ]


def pad_maps(
    work: Workbench, images: Sequence[PIL.Image.Image], options: Unsupervised
) -> Float[Tensor, "image noise layer token y x"]:
    """Read the maps of the text tokens of `options.kinds`, mean over heads; one forward for each seed and step.

    Raises:
        InputError: kinds of tokens that the prompt does not have, or a layer out of range.
    """
    backbone, layers = work.backbone, model_layers(work.backbone, options)
    prompt = backbone.encode_prompt(options.prompt, zero_tokens=options.zero_tokens)
    tokens = prompt.indices(*options.kinds, reader=options.reader)
    if len(tokens) == 0:
        raise InputError(
            f"expected kinds of text tokens that the prompt {prompt.text!r} has, got kinds without a token: pass others"
        )
    places = work.places(options.size)
    forwards = len(as_indices(options.seeds, "seeds")) * len(as_indices(options.steps_from_end, "steps_from_end"))
    kept = 4 * places * len(tokens) * (forwards + 1) * (backbone.layers if layers is None else len(layers))
    # all images run in one forward
    joint = places + len(prompt.tokens)
    kept += work.forward_bytes(joint)
    together, _ = work.at_once(len(images), 1, maps=kept, row=0, tokens=joint, ways="fewer seeds or a smaller size")
    if together < len(images):
        return torch.cat([pad_maps(work, images[part], options) for part in chunks(len(images), together)])
    latents = work.latents(images, options.fit, options.size)
    grid, maps = backbone.token_grid(latents), []

    def see(call: JointAttention) -> Float[Tensor, "image token y x"]:
        return call.head_mean("i2t", text=tokens).mT.unflatten(-1, grid)

    with work.timed("attention"):
        for seed in as_indices(options.seeds, "seeds"):
            for step in as_indices(options.steps_from_end, "steps_from_end"):
                noisy, timestep = backbone.add_noise(latents, step, options.steps, seed)
                maps.append(torch.stack(observe(backbone, noisy, timestep, prompt, see, layers), dim=1).float())
        return torch.stack(maps, dim=1)


def _at_once(
    work: Workbench,
    columns: Sequence[Columns],
    options: OpenVocabulary,
    images: Sequence[PIL.Image.Image | Video],
    batch: int,
) -> tuple[int, int]:
    """Return how many images and rows of a forward fit into the memory at once."""
    places = work.places(options.size)
    if isinstance(images[0], Video):
        places *= work.backbone.latent_frame(len(images[0]) - 1) + 1
    most = max(columns, key=len)
    prompts = work.prompts(_turns(most, options)[0], options)
    # maps of words and of columns for each window, then the finer grid and its mean
    maps = 4 * places * len(most) * (2 * (2 * options.tiles - 1) ** 2 + 3 * options.tiles**2)
    ways = "fewer tiles, fewer class names or a smaller size" if options.tiles > 1 else "a smaller size"
    return work.at_once(len(images), batch, maps=maps, row=0, tokens=places + len(prompts[0].tokens), ways=ways)


def _columns(names: Sequence[str], options: OpenVocabulary) -> Columns:
    columns: list[tuple[tuple[str, ...], int]] = []
    for index, name in enumerate(names):
        if name != BACKGROUND or options.background == "word":
            columns.append((tuple(options.synonyms.get(name, (name,))), index))
        elif isinstance(options.background, tuple):
            columns += [((word,), index) for word in options.background]
    return columns


def _turns(columns: Columns, options: OpenVocabulary) -> list[list[str]]:
    """Return the words of each prompt set: all words at once, or one word of every column after the other."""
    return [list(dict.fromkeys(word for words in turn for word in words)) for turn in _sets(columns, options)]


def _sets(columns: Columns, options: OpenVocabulary, count: int | None = None) -> list[list[tuple[str, ...]]]:
    if not options.prompt_sets:
        return [[words for words, _ in columns]]
    count = max(len(words) for words, _ in columns) if count is None else count
    return [[(words[turn % len(words)],) for words, _ in columns] for turn in range(count)]


def _windows(frame: Picture, picture: Picture, tiles: int) -> list[Picture]:
    """Return the image alone, or its frame and windows of 1 / tiles of its sides, each half a window from the next."""
    if tiles == 1:
        return [picture]
    x, y = frame.image.width / (2 * tiles), frame.image.height / (2 * tiles)
    places = range(2 * tiles - 1)
    boxes = [
        (round(column * x), round(row * y), round((column + 2) * x), round((row + 2) * y))
        for row in places
        for column in places
    ]
    return [frame, *(frame.crop(box) for box in boxes)]


def _column_maps(
    work: Workbench,
    crops: Sequence[Sequence[Picture]],
    columns: Sequence[Columns],
    options: OpenVocabulary,
    batch: int,
) -> list[ColumnMaps]:
    """Read the maps of every column for each crop of each image, mean over words, prompt sets, seeds and steps."""
    latents = work.latents(
        [crop for own in crops for crop in own], options.fit if options.tiles == 1 else "resize", options.size
    )
    count = max(len(words) for own in columns for words, _ in own) if options.prompt_sets else 1
    seeds = as_indices(options.seeds, "seeds")
    sets = [_sets(own, options, count) for own, parts in zip(columns, crops, strict=True) for _ in parts]
    totals: list[ColumnMaps] = []
    for turn in range(count):
        asked = [list(dict.fromkeys(word for words in own[turn] for word in words)) for own in sets]
        prompts = [work.prompts(words, options) for words in asked]
        with work.timed("attention"):
            for seed in seeds:
                for index, maps in enumerate(_read(work.backbone, latents, prompts, options, seed, batch)):
                    places = [[asked[index].index(word) for word in words] for words in sets[index][turn]]
                    mixed = torch.stack([maps[own].mean(0) for own in places])
                    if index < len(totals):
                        totals[index] += mixed
                    else:
                        totals.append(mixed)
    if isinstance(options.background, float):
        # in units of an even share of the attention
        keys = totals[0][0].numel() + len(prompts[0][0].tokens)
        totals = [total * keys for total in totals]
    return [total / (count * len(seeds)) for total in totals]


def _read(
    backbone: Backbone,
    latents: Tensor,
    prompts: Sequence[Sequence[Prompt]],
    options: OpenVocabulary,
    seed: int,
    batch: int,
) -> Iterator[Maps]:
    """Yield the maps of every word for each image, mean over layers, steps and heads."""
    layers, noise = model_layers(backbone, options), as_indices(options.steps_from_end, "steps_from_end")
    if layers is None or options.method not in PROBABILITIES:
        for index, own in enumerate(prompts):
            yield read(
                backbone, latents[index : index + 1], own, options.method, layers,
                steps_from_end=noise, steps=options.steps, seed=seed,
            )  # fmt: skip
        return
    for maps in read_class_maps(
        backbone, latents, prompts, layers=layers, steps_from_end=noise, steps=options.steps,
        heads=check_heads(backbone, options.heads), kinds=[(options.direction, options.normalize)],
        merge_scaled=options.merge_scaled, seed=seed, batch=batch,
    ):  # fmt: skip
        yield maps[0].mean(2).mean((0, 1))


def layer_list(options: Options) -> list | None:
    """Return layers as a list; "expert" stays a name."""
    if options.layers is None or options.layers == "expert":
        return None if options.layers is None else ["expert"]
    return list(options.layers)  # type: ignore[arg-type]  # normalized to a tuple


def model_layers(backbone: Backbone, options: Options) -> list[int] | None:
    """Return the layers of a model that options name; None where the method chooses its own.

    Raises:
        InputError: a layer that the model does not have, or an expert layer that is unknown.
    """
    method = "layer" if isinstance(options, Unsupervised) else options.method
    layers = layer_list(options)
    if layers is None and method not in PROBABILITIES:
        return None
    return check_layers(backbone, ["expert"] if layers is None and method == "layer" else layers)


def _joined(maps: Sequence[ColumnMaps], tiles: int) -> Float[Tensor, "column *frame row place"]:
    """Average a whole image's maps with those of its windows, on a grid that many times as fine."""
    if tiles == 1:
        return maps[0]
    rows, columns = maps[0].shape[1:]
    size = rows * tiles, columns * tiles
    canvas, times = maps[0].new_zeros(len(maps[0]), *size), maps[0].new_zeros(size)
    for index, part in enumerate(maps[1:]):
        row, column = divmod(index, 2 * tiles - 1)
        top, left = row * rows // 2, column * columns // 2
        canvas[:, top : top + rows, left : left + columns] += part
        times[top : top + rows, left : left + columns] += 1
    return (masks.upsample(maps[0], size) + canvas / times) / 2


def _second_pass(
    work: Workbench,
    image: PIL.Image.Image | Video,
    names: Sequence[str],
    maps: ColumnMaps,
    columns: Columns,
    options: OpenVocabulary,
    batch: int,
) -> ImageMaps:
    """Prompt again with the classes that won enough of the image tokens; the maps of the others are NaN."""
    owners = torch.tensor([index for _, index in columns], device=maps.device)
    won = owners[masks.label_map(maps)].flatten().bincount(minlength=len(names)).float() / maps[0].numel()
    kept = [i for i, name in enumerate(names) if won[i] >= options.second_pass or name == BACKGROUND]
    kept = kept if set(kept) & set(owners.tolist()) else [int(won.argmax()), *kept]
    once = replace(options, second_pass=0.0, classes_per_prompt=None)
    (found,) = image_maps(work, [image], [[names[i] for i in kept]], once, batch=batch)
    everything = found.maps.new_full((len(names), *found.maps.shape[1:]), torch.nan)
    everything[kept] = found.maps
    return ImageMaps(everything, torch.tensor(kept, device=found.labels.device)[found.labels], found.prompts)


def _class_maps(maps: ColumnMaps, columns: Columns, names: Sequence[str], options: OpenVocabulary) -> Maps:
    """Return one map for each class: the largest of its columns; a constant for a background by number."""
    if len(columns) == len(names) and [index for _, index in columns] == list(range(len(names))):
        return maps
    constant = options.background if isinstance(options.background, float) else torch.nan
    classes = maps.new_full((len(names), *maps.shape[1:]), constant)
    for index in range(len(names)):
        own = [place for place, (_, owner) in enumerate(columns) if owner == index]
        if own:
            classes[index] = maps[own].amax(0)
    return classes


def _labels(
    backbone: Backbone,
    maps: ColumnMaps,
    columns: Columns,
    names: Sequence[str],
    frame: PIL.Image.Image | Video,
    options: OpenVocabulary,
) -> Labels:
    """Return the class with the largest map at each pixel of the frame; of a video by the maps of latent frames."""
    if isinstance(frame, Video):
        stands = [maps[:, backbone.latent_frame(at)] for at in range(len(frame))]
        pairs = zip(stands, frame, strict=True)
        return torch.stack([_labels(backbone, own, columns, names, picture, options) for own, picture in pairs])
    size, best = (frame.height, frame.width), None
    if options.upsampling == "guided":
        # maps as large as the image, a few at a time
        parts = [masks.upsample_guided(maps[part], frame).max(0) for part in chunks(len(maps), CLASSES_AT_ONCE)]
        best, part = torch.stack([values for values, _ in parts]).max(0)
        labels = torch.stack([index for _, index in parts]).gather(0, part[None])[0] + part * CLASSES_AT_ONCE
    else:
        labels = masks.label_map(maps, size)
    labels = torch.tensor([index for _, index in columns], device=maps.device)[labels]
    if isinstance(options.background, float) and BACKGROUND in names:
        best = masks.upsample(maps, size).amax(0) if best is None else best
        labels[best < options.background] = list(names).index(BACKGROUND)
    return labels
