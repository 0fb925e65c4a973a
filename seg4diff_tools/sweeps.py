"""Which layer, step and head segments best: whole runs over a data set, which a kill does not cost."""

import hashlib
import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from seg4diff_tools import masks, metrics
from seg4diff_tools.backbones import Backbone
from seg4diff_tools.cache import model_fingerprint
from seg4diff_tools.datasets import Sample, background_of
from seg4diff_tools.errors import CheckpointError, InputError
from seg4diff_tools.images import Fit, open_images
from seg4diff_tools.prompts import Prompt
from seg4diff_tools.runs import claim, read_settings, replace_file
from seg4diff_tools.segmentation import (
    Block,
    Head,
    check_heads,
    check_kinds,
    check_layers,
    label_frame,
    read_class_maps,
)

NORMALISATIONS = ("softmax", "softmax+minmax", "scores", "scores+minmax")
CONFIGURATION = ["model", "protocol", "block", "normalise", "layer", "steps_from_end", "head"]
SCORES = ["pACC", "mACC", "mIoU", "object_mIoU", "background_mIoU"]

# Label maps of this many pixels are made at once; more is no faster and needs more memory.
PIXELS_AT_ONCE = 1 << 22


@dataclass(frozen=True, eq=False)
class Counts:
    """The confusion counts of one image in every configuration of a sweep.

    Attributes:
        index: the image's place in the data set.
        confusion: pixel counts; configurations in the order block, normalise, step, layer, head.
        true: names of the rows, the classes that the image shows.
        predicted: names of the columns, the classes that could be chosen.
        background: those of the true classes that are stuff.
        fingerprint: of the image, its label map and its names.
    """

    index: int
    confusion: Int[np.ndarray, "configuration true predicted"]
    true: tuple[str, ...]
    predicted: tuple[str, ...]
    background: tuple[str, ...]
    fingerprint: str


def layer_step_sweep(
    backbone: Backbone,
    samples: Sequence[Sample],
    layers: Sequence[int] | None = None,
    steps_from_end: int | Sequence[int] = (8,),
    heads: Literal["mean", "all"] | Sequence[Head] = "mean",
    vocabulary: Sequence[str] | None = None,
    *,
    blocks: Sequence[Block] = ("i2t",),
    normalise: Sequence[str] = ("softmax",),
    steps: int = 28,
    fit: Fit = "resize",
    seed: int = 0,
    zero_tokens: int = 77,
    cut_prompt: bool = False,
    out: str | Path | None = None,
    batch: int = 8,
    progress: bool = True,
) -> pd.DataFrame:
    """Scores of open-vocabulary segmentation at many layers, steps and heads, from one forward for each image and step.

    Args:
        backbone: the model.
        samples: images with label maps, such as `scenes.Scenes` or `datasets.folder`.
        layers: 0-based; all by default.
        steps_from_end: noise levels; 8 (of 28 steps) is the paper's.
        heads: "mean" for the mean over heads, "all" for each head on its own, or a list of "mean" and indices.
        vocabulary: class names of the prompt. None names to each image the classes that it shows, as the paper's
            released evaluation does (protocol "present"); a list is given whole to each image (protocol "full").
        blocks: "i2t", "t2i" or both (Fig 16).
        normalise: any of "softmax", "softmax+minmax", "scores", "scores+minmax" (Table 5).
        steps: length of the schedule.
        fit: "resize" or "crop"; with "crop" label maps are cropped alike.
        seed: of the noise, the same for all images.
        zero_tokens: zero vectors that stand for T5's tokens.
        cut_prompt: as in `segment`.
        out: folder for the counts of each image. A run that was killed goes on from there and ends with the identical
            table; a folder of other settings, another model or other images is refused. More images may be appended.
        batch: forwards to run at once (images times steps).
        progress: show a progress bar.

    Returns:
        One row for each configuration: model, protocol, block, normalise, layer, steps_from_end, head, then pACC, mACC,
        mIoU over all classes, object_mIoU and background_mIoU (0..1) from the confusion matrix of the whole set, and
        the number of images. `background` of the samples tells stuff from objects: without it all classes are objects.

    Raises:
        InputError: no samples, a label map of another size than its image, a class outside the vocabulary, a layer,
            step or head out of range, or an `out` folder of another run.

    Source: Seg4Diff, arXiv 2509.18096, figures 8, 15, 16, 17 and table 5; scores as in appendix A.4.
    """
    if isinstance(steps_from_end, int):
        steps_from_end = (steps_from_end,)
    if len(samples) == 0:
        raise InputError("expected at least one sample, got none")
    if wrong := set(normalise) - set(NORMALISATIONS):
        raise InputError(f"expected normalise from {', '.join(NORMALISATIONS)}, got {sorted(wrong)}")
    check_kinds([(block, "softmax") for block in blocks])
    for name, values in (("blocks", blocks), ("normalise", normalise), ("steps_from_end", steps_from_end)):
        if len(values) == 0 or len(set(values)) < len(values):
            raise InputError(f"expected {name}, each one once, got {list(values)}")
    settings = {
        "model": backbone.name,
        "fingerprint": model_fingerprint(backbone),
        "protocol": "present" if vocabulary is None else "full",
        "vocabulary": None if vocabulary is None else list(vocabulary),
        "blocks": list(blocks),
        "normalise": list(normalise),
        "steps_from_end": list(steps_from_end),
        "layers": check_layers(backbone, layers),
        "heads": check_heads(backbone, heads),
        "steps": steps,
        "fit": fit,
        "seed": seed,
        "zero_tokens": zero_tokens,
        "cut_prompt": cut_prompt,
        "dtype": str(backbone.dtype),
    }
    folder = None if out is None else Path(out)
    if folder is not None:
        claim(folder, settings, "a sweep")
    wording = {"zero_tokens": zero_tokens, "cut_prompt": cut_prompt}
    whole = None if vocabulary is None else backbone.class_prompts(vocabulary, **wording)
    records: list[Counts] = []
    with tqdm(total=len(samples), unit="image", disable=not progress, desc=f"{backbone.name} sweep") as bar:
        images_at_once = max(1, batch // len(steps_from_end))
        for start in range(0, len(samples), images_at_once):
            indices = range(start, min(start + images_at_once, len(samples)))
            records += _group(backbone, samples, indices, whole, settings, folder, batch)
            bar.update(len(indices))
    return _table(settings, records)


def read_sweep(out: str | Path) -> pd.DataFrame:
    """The table of a sweep from its folder, without the model; of an unfinished run, over the images so far.

    Args:
        out: the folder that `layer_step_sweep` wrote.

    Returns:
        As `layer_step_sweep`.

    Raises:
        CheckpointError: no such folder, or none that a sweep wrote.
    """
    settings, records = _open(Path(out))
    return _table(settings, list(records))


def per_image_scores(out: str | Path) -> pd.DataFrame:
    """Scores of each image on its own, for best and worst cases.

    Args:
        out: the folder that `layer_step_sweep` wrote.

    Returns:
        One row for each image and configuration: image (its index in the samples), class_names (joined by a comma), the
        configuration and the scores as in `layer_step_sweep`, here over the classes that this image shows.

    Raises:
        CheckpointError: no such folder, or none that a sweep wrote.
    """
    settings, records = _open(Path(out))
    tables = []
    for record in records:
        table = _table(settings, [record]).drop(columns="images")
        table.insert(0, "image", record.index)
        table.insert(1, "class_names", ", ".join(record.true))
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def per_image_counts(out: str | Path, vocabulary: Sequence[str]) -> Int[Tensor, "image configuration true predicted"]:
    """Pixel counts of each image on its own, such as `metrics.bootstrap_miou` takes them.

    Args:
        out: the folder that `layer_step_sweep` wrote.
        vocabulary: the classes of the rows and columns.

    Returns:
        Configurations in the order of the sweep's rows.

    Raises:
        CheckpointError: no such folder, or none that a sweep wrote.
        InputError: a class of the sweep that the vocabulary lacks.
    """
    _, records = _open(Path(out))
    counts = []
    for record in records:
        if missing := set(record.predicted) - set(vocabulary):
            raise InputError(
                f"expected every class in the vocabulary, got {sorted(missing)} outside it: add them to it"
            )
        counts.append(_placed(record, list(vocabulary)))
    return torch.stack(counts)


def _group(
    backbone: Backbone,
    samples: Sequence[Sample],
    indices: Sequence[int],
    whole: list[Prompt] | None,
    settings: dict[str, Any],
    folder: Path | None,
    batch: int,
) -> list[Counts]:
    """The counts of a few images: from the folder if all of them are there, else computed anew and written."""
    group = [samples[index] for index in indices]
    pictures = [open_images(sample.image)[0] for sample in group]
    fingerprints = [_fingerprint(*pair) for pair in zip(group, pictures, strict=True)]
    paths = [None if folder is None else folder / f"{index:06d}.npz" for index in indices]
    kept = [_read(path) if path is not None and path.exists() else None for path in paths]
    for record, fingerprint in zip(kept, fingerprints, strict=True):
        if record is not None and record.fingerprint != fingerprint:
            raise InputError(
                f"expected in {folder} counts of these samples, got those of another image as number {record.index}: "
                "choose another folder for other samples"
            )
    # Rounding depends on what shares a batch, so that a batch is taken from the folder as a whole or not at all.
    if None not in kept:
        return kept
    wording = {key: settings[key] for key in ("zero_tokens", "cut_prompt")}
    prompts = [whole or backbone.class_prompts(sample.class_names, **wording) for sample in group]
    targets = []
    for index, sample, picture in zip(indices, group, pictures, strict=True):
        names = settings["vocabulary"] or sample.class_names
        target = metrics.true_classes(sample.label_map, sample.class_names, names)
        if target.shape != (picture.height, picture.width):
            raise InputError(
                f"expected a label map of the image's size {(picture.height, picture.width)} for sample {index}, got "
                f"{tuple(target.shape)}: check that it belongs to this image"
            )
        left, top, right, bottom = label_frame(backbone, target.shape, settings["fit"])
        targets.append(target[top:bottom, left:right])
    maps = read_class_maps(
        backbone,
        torch.cat([backbone.encode_image(picture, fit=settings["fit"]) for picture in pictures]),
        prompts,
        layers=settings["layers"],
        steps_from_end=settings["steps_from_end"],
        steps=settings["steps"],
        heads=settings["heads"],
        kinds=_kinds(settings),
        seed=settings["seed"],
        batch=batch,
    )
    records = []
    for index, sample, target, one, fingerprint in zip(indices, group, targets, maps, fingerprints, strict=True):
        predicted = list(settings["vocabulary"] or sample.class_names)
        true = [name for name in predicted if name in sample.class_names]
        counts = _confusion(one, target.to(one.device), settings)[:, [predicted.index(name) for name in true]]
        record = Counts(
            index, counts.astype(np.int32), tuple(true), tuple(predicted), background_of(sample), fingerprint
        )
        records.append(record)
    for record, path in zip(records, paths, strict=True):
        if path is not None:
            _write(path, record)
    return records


def _kinds(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """What the attention has to give: both rows of a min-max pair come from the same maps."""
    kinds = dict.fromkeys(variant.partition("+")[0] for variant in settings["normalise"])
    return list(product(settings["blocks"], kinds))


def _confusion(
    maps: Float[Tensor, "kind step layer head class y x"], target: Int[Tensor, "height width"], settings: dict[str, Any]
) -> Int[np.ndarray, "configuration true predicted"]:
    """Confusion counts of one image, in the order block, normalise, step, layer, head."""
    kinds, classes, parts = _kinds(settings), maps.shape[4], []
    for block, variant in product(settings["blocks"], settings["normalise"]):
        name, _, scaled = variant.partition("+")
        chosen = maps[kinds.index((block, name))].flatten(0, 2)
        chosen = masks.minmax(chosen) if scaled else chosen
        for some in chosen.split(max(1, PIXELS_AT_ONCE // target.numel())):
            labels = masks.label_map(some, tuple(target.shape))
            parts.append(metrics.confusion(labels, target, classes, ignore=-1).cpu().numpy())
    return np.concatenate(parts)


def _table(settings: dict[str, Any], records: Sequence[Counts]) -> pd.DataFrame:
    """Scores of every configuration from the sum of the images' counts."""
    names = sorted({name for record in records for name in record.predicted})
    background = {name for record in records for name in record.background}
    place = {name: index for index, name in enumerate(names)}
    total = sum(_placed(record, names) for record in records)
    axes = ("blocks", "normalise", "steps_from_end", "layers", "heads")
    table = pd.DataFrame(
        list(product(*(settings[axis] for axis in axes))),
        columns=["block", "normalise", "steps_from_end", "layer", "head"],
    )
    table = table.assign(
        model=settings["model"],
        protocol=settings["protocol"],
        pACC=metrics.pixel_accuracy(total).numpy(),
        mACC=metrics.mean_accuracy(total).numpy(),
        mIoU=metrics.miou(total).numpy(),
        object_mIoU=metrics.miou(total, [place[name] for name in names if name not in background]).numpy(),
        background_mIoU=metrics.miou(total, [place[name] for name in names if name in background]).numpy(),
        images=len(records),
    )
    return table[[*CONFIGURATION, *SCORES, "images"]]


def _placed(record: Counts, names: Sequence[str]) -> Int[Tensor, "configuration true predicted"]:
    """The counts of one image among the classes of all."""
    placed = torch.zeros(len(record.confusion), len(names), len(names), dtype=torch.int64)
    rows, columns = (torch.tensor([names.index(name) for name in each]) for each in (record.true, record.predicted))
    placed[:, rows[:, None], columns] = torch.from_numpy(record.confusion).long()
    return placed


def _fingerprint(sample: Sample, picture: Image.Image) -> str:
    content = hashlib.sha256(picture.tobytes())
    content.update(np.asarray(sample.label_map).astype(np.int64).tobytes())
    content.update(repr((list(sample.class_names), background_of(sample))).encode())
    return content.hexdigest()


def _open(folder: Path) -> tuple[dict[str, Any], Iterator[Counts]]:
    settings, paths = read_settings(folder, "a sweep"), sorted(folder.glob("*.npz"))
    if not paths:
        raise CheckpointError(f"expected counts of images in {folder}, got none yet: run layer_step_sweep first")
    return settings, map(_read, paths)


def _write(path: Path, record: Counts) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **vars(record))
    replace_file(path, buffer.getvalue())


def _read(path: Path) -> Counts:
    try:
        with path.open("rb") as file, np.load(file) as stored:
            names = {key: tuple(map(str, stored[key])) for key in ("true", "predicted", "background")}
            return Counts(int(stored["index"]), stored["confusion"], **names, fingerprint=str(stored["fingerprint"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"expected counts of an image, got {path} ({error}): delete it and run again") from error
