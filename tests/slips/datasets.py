"""Slips around samples, folders of images and masks, and benchmarks."""

from collections.abc import Callable
from typing import Any

import numpy as np

from seg4diff_tools import datasets
from seg4diff_tools.datasets.opened import open_sample

PICTURE = np.zeros((4, 6, 3), dtype=np.uint8)
LABELS = np.zeros((4, 6), dtype=np.int64)


class Words:
    """Stands for a data set of one class."""

    class_names = ("cat",)

    def __len__(self) -> int:
        return 1


def labeled(**changes: Any) -> datasets.LabeledImage:
    return datasets.LabeledImage(**{"image": PICTURE, "class_names": ("cat",), "label_map": LABELS, **changes})


def cats() -> Any:
    return datasets.renamed([labeled()], {"cat": "kitten"})


SLIPS: list[tuple[str, Callable[[Any], Any], str]] = [
    (
        "folder-missing",
        lambda b: datasets.folder("nowhere", "nowhere", ["cat"]),
        "folder for images, got nowhere, no such",
    ),
    ("folder-file", lambda b: datasets.folder(__file__, ".", ["cat"]), "folder for images, got .*, a file: check"),
    ("folder-number", lambda b: datasets.folder(3, ".", ["cat"]), "images as text or a Path, got 3: pass images="),
    ("folder-words", lambda b: datasets.folder(".", ".", "cat, dog"), "class_names as a list .* got 'cat, dog': pass"),
    ("folder-count", lambda b: datasets.folder(".", ".", 21), "class_names as a list of names, got 21: pass"),
    ("folder-none", lambda b: datasets.folder(".", ".", []), "class_names, at least one name, got none: pass"),
    ("folder-twice", lambda b: datasets.folder(".", ".", ["cat", "cat"]), "class_names, each one once.*: name each"),
    ("folder-stuff", lambda b: datasets.folder(".", ".", ["cat"], "sky"), r"background among .*\['sky'\].*: add"),
    (
        "folder-ignore",
        lambda b: datasets.folder(".", ".", ["cat"], ignore=0),
        "ignore=0, which is 'cat': pass ignore=-1",
    ),
    ("folder-half", lambda b: datasets.folder(".", ".", ["cat"], ignore=0.5), "ignore, a whole number .*got 0.5: pass"),
    ("published-name", lambda b: datasets.published("voc", "."), "one of voc20, .*got 'voc': choose"),
    ("published-index", lambda b: datasets.published(20, "."), "one of voc20, .*got 20: choose"),
    (
        "published-root",
        lambda b: datasets.published("voc20", "nowhere"),
        "a folder for root, got nowhere, no such path",
    ),
    ("published-split", lambda b: datasets.published("voc20", ".", 1), "split as text, got 1: pass split='val'"),
    ("coco-folder", lambda b: datasets.coco_panoptic("nowhere", ".", "a.json"), "folder for images, got nowhere"),
    (
        "coco-json",
        lambda b: datasets.coco_panoptic(".", ".", "nowhere.json"),
        "readable JSON, got nowhere.json, no such",
    ),
    ("coco-none", lambda b: datasets.coco_panoptic(".", ".", None), "annotations as text or a Path, got None: pass"),
    ("sa1b-folder", lambda b: datasets.sa1b("nowhere"), "a folder for folder, got nowhere, no such path: check"),
    ("renamed-list", lambda b: datasets.renamed([labeled()], ["kitten"]), r"names as old: new, got \['kitten'\]: pass"),
    ("renamed-typo", lambda b: datasets.renamed(Words(), {"cta": "kitten"}), "got 'cta': did you mean 'cat'"),
    ("renamed-stranger", lambda b: datasets.renamed(Words(), {"zebra": "horse"}), "got 'zebra': there are cat"),
    ("index-word", lambda b: cats()["cat"], r"an index or a slice of it, got 'cat': write \[0\]"),
    ("index-half", lambda b: cats()[0.5], r"an index or a slice of it, got 0.5: write \[0\]"),
    ("index-true", lambda b: cats()[True], r"an index or a slice of it, got True: write \[0\]"),
    ("index-pair", lambda b: cats()[0, 1], r"an index or a slice of it, got \(0, 1\): write"),
    ("index-far", lambda b: cats()[1], "an index below 1, got 1: there are 1 items"),
    ("slice-word", lambda b: cats()["a":], r"a slice of whole numbers, got slice\('a'.*: write \[10:20\]"),
    ("sample-word", lambda b: labeled(class_names="cat"), "class_names as a list of names, got 'cat': pass"),
    ("sample-number", lambda b: labeled(class_names=(0,)), "class_names as a list of names, got 0 in it: pass"),
    ("sample-path", lambda b: open_sample("a.jpg", 3), "a sample .*at index 3, got str: make a datasets.LabeledImage"),
    (
        "sample-float",
        lambda b: open_sample(labeled(label_map=LABELS * 0.5), 0),
        r"integers \[y x\], got float64.*: pass",
    ),
    ("sample-size", lambda b: open_sample(labeled(label_map=LABELS.T), 0), r"size \(4, 6\) for sample 0, .*: check"),
    ("sample-class", lambda b: open_sample(labeled(label_map=LABELS + 1), 0), "labels from 0 to 0, or 255.*: give one"),
]
