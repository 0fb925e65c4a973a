"""Class maps and label maps of many images, with tiles, synonyms and several prompts: what `segment` and `evaluate` share."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import PIL.Image
import torch
from jaxtyping import Float, Int
from torch import Tensor

from seg4diff_tools.attention.operators import chunks
from seg4diff_tools.backbones.backbone import Backbone
from seg4diff_tools.backbones.checks import check_layers
from seg4diff_tools.images import Fit
from seg4diff_tools.indices import as_indices
from seg4diff_tools.prompts import Prompt
from seg4diff_tools.segmentation import masks
from seg4diff_tools.segmentation.attribution import PROBABILITIES, read
from seg4diff_tools.segmentation.class_maps import read_class_maps
from seg4diff_tools.segmentation.options import BACKGROUND, OpenVocabulary, Unsupervised
from seg4diff_tools.segmentation.segment import label_frame
from seg4diff_tools.segmentation.unsupervised import read_token_maps

CLASSES_AT_ONCE = 16

Maps = Float[Tensor, "class y x"]
Labels = Int[Tensor, "height width"]


class Workbench:
    """What the images of a run share: the model, prompts that were encoded, and how long each kind of work took.

    Attributes:
        backbone: the model.
        seconds: by kind of work.
        rows: seconds of attention and labels, by method and protocol.
        images: how many were done.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.rows: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.images = 0
        self._prompts: dict[tuple, list[Prompt]] = {}
        # with the picture that each one is of, so that no other picture takes its place in memory, and with it its key
        self._latents: dict[tuple, tuple[PIL.Image.Image, Tensor]] = {}
        self._crops: dict[tuple, tuple[PIL.Image.Image, PIL.Image.Image]] = {}

    @contextmanager
    def timed(self, work: str) -> Iterator[None]:
        """Adds the time that passes to one kind of work."""
        began = time.perf_counter()
        try:
            yield
        finally:
            if self.backbone.device.type == "cuda":
                torch.cuda.synchronize(self.backbone.device)
            self.seconds[work] += time.perf_counter() - began

    def prompts(self, words: Sequence[str], method: OpenVocabulary) -> list[Prompt]:
        """Encoded prompts of these words; the same words are encoded once."""
        key = (tuple(words), method.classes_per_prompt, method.zero_tokens, method.cut_prompt)
        if key not in self._prompts:
            wording = {"zero_tokens": method.zero_tokens, "cut_prompt": method.cut_prompt}
            with self.timed("text"):
                if len(self._prompts) >= 256:
                    self._prompts.pop(next(iter(self._prompts)))
                self._prompts[key] = [
                    prompt
                    for part in chunks(len(words), method.classes_per_prompt or len(words))
                    for prompt in self.backbone.class_prompts(words[part], **wording)
                ]
        return self._prompts[key]

    def latents(self, pictures: Sequence[PIL.Image.Image], fit: Fit) -> Float[Tensor, "image channel row column"]:
        """Encoded images, each one once until `forget`."""
        with self.timed("latents"):
            for picture in pictures:
                if (id(picture), fit) not in self._latents:
                    self._latents[id(picture), fit] = picture, self.backbone.encode_image(picture, fit=fit)
            return torch.cat([self._latents[id(picture), fit][1] for picture in pictures])

    def crop(self, picture: PIL.Image.Image, box: tuple[int, int, int, int]) -> PIL.Image.Image:
        """A part of a picture, the same object until `forget`."""
        if (id(picture), box) not in self._crops:
            self._crops[id(picture), box] = picture, picture.crop(box)
        return self._crops[id(picture), box][1]

    def forget(self) -> None:
        """Drops latents and crops, when other images come."""
        self._latents.clear()
        self._crops.clear()


def label_maps(
    work: Workbench,
    pictures: Sequence[PIL.Image.Image],
    class_names: Sequence[Sequence[str]],
    method: OpenVocabulary,
    *,
    batch: int = 8,
) -> list[Labels]:
    """Segments a few images, several at once where the reading is the paper's.

    Args:
        work: with the model.
        pictures: of any sizes.
        class_names: for each picture the classes to choose from.
        method: how.
        batch: forwards to run at once.

    Returns:
        For each picture an index into its class names at each pixel of its frame (`segmentation.label_frame`), on the CPU.

    Raises:
        InputError: a layer or step out of range.
        PromptError: a word that is too long for a prompt.
    """
    columns = [_columns(names, method) for names in class_names]
    if not all(columns):
        # nothing competes with the background
        asked = [index for index, own in enumerate(columns) if own]
        some = [pictures[index] for index in asked], [class_names[index] for index in asked]
        answered = dict(zip(asked, label_maps(work, *some, method, batch=batch) if asked else [], strict=True))
        sizes = [_frame(work, picture, method).size for picture in pictures]
        return [answered.get(index, torch.zeros(size[::-1], dtype=torch.int64)) for index, size in enumerate(sizes)]
    crops = [_windows(work, picture, method) for picture in pictures]
    found = iter(_column_maps(work, crops, columns, method, batch))
    results = []
    for picture, names, own, parts in zip(pictures, class_names, columns, crops, strict=True):
        maps = _joined([next(found) for _ in parts], method.tiles)
        owners = torch.tensor([index for _, index in own], device=maps.device)
        if method.second_pass:
            won = owners[masks.label_map(maps)].flatten().bincount(minlength=len(names)) / maps[0].numel()
            kept = [i for i, name in enumerate(names) if won[i] >= method.second_pass or name == BACKGROUND]
            kept = kept if set(kept) & set(owners.tolist()) else [int(won.argmax()), *kept]
            once = replace(method, second_pass=0.0, classes_per_prompt=None)
            (labels,) = label_maps(work, [picture], [[names[i] for i in kept]], once, batch=batch)
            results.append(torch.tensor(kept)[labels])
            continue
        with work.timed("labels"):
            results.append(_labels(maps, owners, names, _frame(work, picture, method), method).cpu())
    return results


def pad_groups(work: Workbench, pictures: Sequence[PIL.Image.Image], method: Unsupervised) -> list[Labels]:
    """Groups of a few images, found without a word.

    Args:
        work: with the model.
        pictures: of any sizes.
        method: how.

    Returns:
        For each picture the number of the group at each pixel, on the CPU.
    """
    backbone = work.backbone
    layers = check_layers(backbone, ["expert"] if method.layers is None else method.layers)
    prompt = backbone.encode_prompt(method.prompt, zero_tokens=method.zero_tokens)
    latents = work.latents(pictures, "resize")
    with work.timed("attention"):
        parts = [
            read_token_maps(backbone, latents, prompt, layers, prompt.indices(*method.kinds), step, method.steps, seed)
            for seed in as_indices(method.seeds, "seeds")
            for step in as_indices(method.steps_from_end, "steps_from_end")
        ]
        maps = torch.cat(parts, 1).mean(1).cpu()
    with work.timed("labels"):
        return [
            masks.label_map(
                masks.merge_maps(one, method.threshold, method.rounds, method.merging)[0],
                (picture.height, picture.width),
            )
            for one, picture in zip(maps, pictures, strict=True)
        ]


def _columns(names: Sequence[str], method: OpenVocabulary) -> list[tuple[tuple[str, ...], int]]:
    """What competes for each pixel: words whose maps are averaged, and the index of the class that they stand for."""
    columns: list[tuple[tuple[str, ...], int]] = []
    for index, name in enumerate(names):
        if name != BACKGROUND or method.background == "word":
            columns.append((tuple(method.synonyms.get(name, (name,))), index))
        elif isinstance(method.background, tuple):
            columns += [((word,), index) for word in method.background]
    return columns


def _windows(work: Workbench, picture: PIL.Image.Image, method: OpenVocabulary) -> list[PIL.Image.Image]:
    """The picture alone, or its frame and then windows of 1 / tiles of its sides, each half a window from the next."""
    if method.tiles == 1:
        return [picture]
    frame = _frame(work, picture, method)
    x, y = frame.width / (2 * method.tiles), frame.height / (2 * method.tiles)
    places = range(2 * method.tiles - 1)
    boxes = [
        (round(column * x), round(row * y), round((column + 2) * x), round((row + 2) * y))
        for row in places
        for column in places
    ]
    return [frame, *(work.crop(frame, box) for box in boxes)]


def _column_maps(
    work: Workbench,
    crops: Sequence[Sequence[PIL.Image.Image]],
    columns: Sequence[Sequence[tuple[tuple[str, ...], int]]],
    method: OpenVocabulary,
    batch: int,
) -> list[Maps]:
    """Maps of every column for each crop of each image: means over words, prompt sets, seeds, steps and layers."""
    pictures = [crop for own in crops for crop in own]
    latents = work.latents(pictures, method.fit if method.tiles == 1 else "resize")
    words = [words for words, own in zip(columns, crops, strict=True) for _ in own]
    count = max(len(each) for own in columns for each, _ in own) if method.prompt_sets else 1
    totals: list[Maps] = []
    for turn in range(count):
        sets = [[(each[turn % len(each)],) if method.prompt_sets else each for each, _ in own] for own in words]
        flat = [list(dict.fromkeys(word for each in own for word in each)) for own in sets]
        prompts = [work.prompts(own, method) for own in flat]
        with work.timed("attention"):
            for seed in as_indices(method.seeds, "seeds"):
                for index, maps in enumerate(_read(work.backbone, latents, prompts, method, seed, batch)):
                    mixed = torch.stack([maps[[flat[index].index(w) for w in each]].mean(0) for each in sets[index]])
                    if index < len(totals):
                        totals[index] += mixed
                    else:
                        totals.append(mixed)
    if isinstance(method.background, float | int):
        # in units of an even share of the attention
        keys = totals[0][0].numel() + len(prompts[0][0].tokens)
        totals = [total * keys for total in totals]
    return [total / (count * len(as_indices(method.seeds, "seeds"))) for total in totals]


def _read(
    backbone: Backbone,
    latents: Tensor,
    prompts: Sequence[Sequence[Prompt]],
    method: OpenVocabulary,
    seed: int,
    batch: int,
) -> Iterator[Maps]:
    layers = None if method.layers is None else check_layers(backbone, method.layers)
    steps_from_end = as_indices(method.steps_from_end, "steps_from_end")
    if method.method in PROBABILITIES:
        if layers is None:
            layers = check_layers(backbone, ["expert"] if method.method == "layer" else None)
        heads = ["mean"] if method.heads == "mean" else as_indices(method.heads, "heads", backbone.heads)
        options = {"layers": layers, "steps_from_end": steps_from_end, "steps": method.steps, "batch": batch}
        kinds = [(method.direction, method.normalize)]
        for maps in read_class_maps(backbone, latents, prompts, seed=seed, heads=heads, kinds=kinds, **options):
            # over heads first, so that one head and the mean over all take the same way as ever
            yield (maps[0, :, :, 0] if len(heads) == 1 else maps[0].mean(2)).mean((0, 1))
        return
    for index, own in enumerate(prompts):
        yield read(
            backbone,
            latents[index : index + 1],
            own,
            method.method,
            layers,
            steps_from_end=steps_from_end,
            steps=method.steps,
            seed=seed,
        )


def _joined(maps: Sequence[Maps], tiles: int) -> Float[Tensor, "class row column"]:
    """The mean of a whole image's maps and of those of its windows, on a grid that many times as fine."""
    if tiles == 1:
        return maps[0]
    rows, columns = maps[0].shape[1:]
    size = rows * tiles, columns * tiles
    canvas, times = maps[0].new_zeros(len(maps[0]), *size), maps[0].new_zeros(size)
    for index, part in enumerate(maps[1:]):
        row, column = divmod(index, 2 * tiles - 1)
        place = (
            slice(row * rows // 2, row * rows // 2 + rows),
            slice(column * columns // 2, column * columns // 2 + columns),
        )
        canvas[:, *place] += part
        times[place] += 1
    return (masks.upsample(maps[0], size) + canvas / times) / 2


def _frame(work: Workbench, picture: PIL.Image.Image, method: OpenVocabulary) -> PIL.Image.Image:
    return work.crop(picture, label_frame(work.backbone, (picture.height, picture.width), method.fit))


def _labels(maps: Maps, owners: Tensor, names: Sequence[str], frame: PIL.Image.Image, method: OpenVocabulary) -> Labels:
    """The class with the largest map at each pixel of the frame."""
    size = frame.height, frame.width
    if method.upsampling == "guided":
        # maps as large as the image, a few at a time
        parts = [masks.upsample_guided(maps[part], frame).max(0) for part in chunks(len(maps), CLASSES_AT_ONCE)]
        best, part = torch.stack([values for values, _ in parts]).max(0)
        labels = torch.stack([index for _, index in parts]).gather(0, part[None])[0] + part * CLASSES_AT_ONCE
    else:
        best, labels = masks.upsample(maps, size).amax(0), masks.label_map(maps, size)
    labels = owners[labels]
    if isinstance(method.background, float | int) and BACKGROUND in names:
        labels[best < method.background] = list(names).index(BACKGROUND)
    return labels
