"""Numbers printed in the paper and choices of its code, to stand beside one's own: "Seg4Diff", arXiv 2509.18096."""

from io import StringIO
from typing import Any

import pandas as pd

from seg4diff_tools.errors import InputError

# mIoU in percent; CLIPScore as printed, which is 100 times the cosine; table 4 here in percent too.
_TABLES = {
    1: """
model,backbone,trained_on,VOC20,Object,PC59,ADE,City
ProxyCLIP,CLIP-H/14,,83.3,49.8,39.6,24.2,42.0
CorrCLIP,CLIP-H/14,,91.8,52.7,47.9,28.8,49.9
DiffSegmenter,SD1.5,,66.4,40.0,45.9,24.2,12.4
iSeg,SD1.5,,82.9,57.3,39.2,24.2,24.8
Seg4Diff,SD3,,89.2,62.0,49.0,34.2,26.5
Seg4Diff,SD3.5,,86.1,57.8,43.4,30.7,23.8
Seg4Diff,Flux.1-dev,,83.1,50.6,38.2,23.9,17.1
Seg4Diff + MAGNET,SD3,SA-1B,89.1,62.0,49.1,34.7,25.4
Seg4Diff + MAGNET,SD3,COCO,89.8,62.9,51.2,35.2,26.0
""",
    2: """
model,backbone,trained_on,VOC21,PC59,Object,Stuff-27,City,ADE
ReCO,CLIP-L/14,,25.1,19.9,15.7,26.3,19.3,11.2
MaskCLIP,CLIP-B/16,,38.8,23.6,20.6,19.6,10.0,9.8
MaskCut,DINO-B/8,,53.8,43.4,30.1,41.7,18.7,35.7
DiffSeg,SD1.5,,49.8,48.8,23.2,44.2,16.8,37.7
DiffCut,SSD-1B,,62.0,54.1,32.0,46.1,28.4,42.4
Seg4Diff,SD3,,54.9,52.6,38.5,49.7,24.2,44.9
Seg4Diff,SD3.5,,52.3,52.9,36.8,47.1,24.2,41.5
Seg4Diff + MAGNET,SD3,SA-1B,55.1,52.8,39.0,50.8,24.2,45.0
Seg4Diff + MAGNET,SD3,COCO,56.1,53.5,38.8,53.5,24.4,45.4
""",
    3: """
method,trained_on,Pick-a-Pic,COCO,SA-1B,mean
SD3,,27.0252,26.0638,28.3422,27.1437
SD3 + MAGNET,SA-1B,27.0547,26.2318,28.4476,27.2447
SD3 + MAGNET,COCO,27.0409,26.2319,28.5553,27.2760
""",
    4: """
method,trained_on,color,shape,texture,2D,3D,non-spatial,numeracy,complex
SD3,,78.64,56.44,72.00,24.35,33.18,31.24,55.66,37.19
SD3 + MAGNET,SA-1B,78.36,56.79,72.52,23.30,31.51,31.13,54.60,37.09
SD3 + MAGNET,COCO,79.19,56.87,72.60,23.01,32.34,31.20,55.84,37.35
""",
    5: """
normalize,VOC,Object
scores,83.2,55.1
scores+minmax,85.2,53.5
softmax,89.0,61.8
softmax+minmax,88.3,57.0
""",
}


_COMMON = {"steps_from_end": 8, "steps": 28, "zero_tokens": 77}
_PADS = {"kinds": ("start", "end", "pad"), "merging": "released", "matching": "rows"}
_WORDS = _COMMON | {"fit": "resize", "cut_prompt": True}

RELEASED: dict[str, dict[str, Any]] = {
    "segment": _WORDS
    | {
        "method": "layer",
        "heads": "mean",
        "direction": "i2t",
        "normalize": "softmax",
        "minmax": False,
        "merge_scaled": False,
    },
    "layer_step_sweep": _WORDS
    | {"heads": "mean", "directions": ("i2t",), "normalize": ("softmax",), "vocabulary": None},
    "group": _COMMON | _PADS | {"fit": "resize", "threshold": 0.1, "prompt": ""},
    "grouping_scores": {"thresholds": (0.1,), "absent": "zero", "frame": "released"},
}
"""Choices of the authors' released code, by the name of the function.

`segment(model, image, names, OpenVocabulary(**RELEASED["segment"]))`, `group(model, image,
Unsupervised(**RELEASED["group"]))`. Read from github.com/cvlab-kaist/Seg4Diff at commit bb500ca (September 2025),
configurations eval_ovss and eval_unsup. No option says the rest: that code draws other noise for each image and run,
computes in float16, and brings pictures to 640 pixels first. The frame "released" of `grouping_scores` holds what its
unsupervised evaluation does to them: they are padded with black to multiples of 32, which shifts maps, and label maps
are cropped and stretched a second time (`sem_seg_postprocess`), so that of files larger than 640 pixels, such as those
of Cityscapes, the stretched top left part is scored.
"""

EXPERT_LAYERS = {"SD3": (9,), "SD3.5": (9,), "FLUX.1-dev": (12, 17)}
"""Layers (0-based) that segment best by model, Fig 8 and appendix C; `Backbone.expert_layer` is the first."""

_COLUMNS = {
    "voc20": "VOC20",
    "voc21": "VOC21",
    "pc59": "PC59",
    "coco-object": "Object",
    "coco-object80": "Object",
    "coco-stuff27": "Stuff-27",
    "ade150": "ADE",
    "cityscapes": "City",
}


def scores_of(dataset: str, number: int) -> pd.DataFrame:
    """What table 1 or 2 prints for one data set.

    Args:
        dataset: a name of `datasets.published`.
        number: 1 or 2.

    Returns:
        Columns model, backbone, trained_on, mIoU (0..1); no rows for a data set that the table does not have.

    Raises:
        InputError: another table.
    """
    printed, column = table(number), _COLUMNS.get(dataset, dataset)
    # table 1 scores COCO-Object without background, table 2 with it
    if column == "Object" and number in (1, 2) and dataset != ("coco-object80" if number == 1 else "coco-object"):
        column = ""
    if number not in (1, 2):
        raise InputError(f"expected table 1 or 2 of the paper, got {number!r}")
    if column not in printed:
        return printed[["model", "backbone", "trained_on"]].head(0).assign(mIoU=[])
    return printed[["model", "backbone", "trained_on", column]].rename(columns={column: "mIoU"})


def table(number: int) -> pd.DataFrame:
    """One of the paper's tables as a wide table: a row as printed, a column for each data set.

    Args:
        number: 1 (open-vocabulary segmentation; prompts name the classes that an image shows), 2 (unsupervised
            segmentation), 3 (CLIPScore of generated pictures), 4 (T2I-CompBench++) or 5 (normalization of the maps,
            SD3, open vocabulary; which tick marks belong to which row is inferred from the order of the rows, except
            for the best one).

    Returns:
        Shares from 0 to 1, like all scores here; of table 3 the mean cosine, which is printed times 100. `normalize` of
        table 5 has the names of `sweeps.layer_step_sweep`; an empty `trained_on` means that nothing was trained for
        segmentation.

    Raises:
        InputError: another number.

    Source: Seg4Diff, arXiv 2509.18096, tables 1 to 5.
    """
    if number not in _TABLES:
        raise InputError(f"expected table {', '.join(map(str, _TABLES))} of the paper, got {number!r}")
    printed = pd.read_csv(StringIO(_TABLES[number]), keep_default_na=False)
    scores = printed.select_dtypes("number").columns
    # rounded again, so that 0.892 does not become 0.8920000000000001
    return printed.assign(**(printed[scores] / 100).round(6))
