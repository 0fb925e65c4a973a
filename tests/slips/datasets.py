"""Slips around samples, folders of images and masks, and benchmarks."""

from collections.abc import Callable
from typing import Any

import numpy as np

from seg4diff_tools import datasets
from seg4diff_tools.datasets.labels import renumber, true_classes
from seg4diff_tools.datasets.opened import open_sample

# untyped, as slips are wrong types
folder: Any = datasets.folder
renamed: Any = datasets.renamed
PICTURE = np.zeros((4, 6, 3), dtype=np.uint8)
LABELS = np.zeros((4, 6), dtype=np.int64)


class Words:
    """Stands for a data set of one class."""

    class_names = ("cat",)

    def __len__(self) -> int:
        return 1


class Stuff:
    """Stands for a sample with a wrong background."""

    background = 3


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
    ("published-name", lambda b: datasets.published("voc", "."), "name, one of 'voc20', .*got 'voc': pass name="),
    ("published-index", lambda b: datasets.published(20, "."), "name, one of 'voc20', .*got 20: pass name="),
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
    ("renamed-blank", lambda b: renamed([labeled()], {"cat": " "}), "names as old: new, got .*: pass names="),
    ("renamed-number", lambda b: renamed([labeled()], {"cat": 3}), "names as old: new, got .*: pass names="),
    (
        "renamed-none",
        lambda b: renamed(None, {"cat": "kitten"}),
        "samples, images with label maps, got None: pass those",
    ),
    ("renamed-folder", lambda b: renamed("images", {"a": "b"}), "samples, images .*got 'images': pass those of"),
    (
        "renamed-images",
        lambda b: renamed([PICTURE], {"a": "b"}),
        r"samples, images .*got ndarray in it: pass LabeledImage",
    ),
    ("renamed-in-list", lambda b: renamed([labeled()], {"dog": "wolf"}), "got 'dog': there are cat"),
    (
        "folder-blank",
        lambda b: datasets.folder(".", ".", ["cat", " "]),
        "class_names as .*got ' ' in it: pass class_names",
    ),
    (
        "folder-masks",
        lambda b: datasets.folder(".", "nowhere", ["cat"]),
        "a folder for masks, got nowhere, no such path",
    ),
    (
        "folder-no-masks",
        lambda b: datasets.folder(".", None, ["cat"]),
        "masks as text or a Path, got None: pass masks=",
    ),
    ("folder-empty", lambda b: datasets.folder(".", "tests/slips", ["cat"]), "index PNGs .*got no pair: name the mask"),
    (
        "folder-null",
        lambda b: datasets.folder("a\0b", ".", ["cat"]),
        "images as text or a Path, got 'a.*b': pass images=",
    ),
    ("folder-home", lambda b: datasets.folder("~nobody-at-all", ".", ["cat"]), "images below the home of a known user"),
    (
        "folder-background",
        lambda b: folder(".", ".", ["cat"], 3),
        "background as a list of names, got 3: pass background=",
    ),
    (
        "folder-huge",
        lambda b: datasets.folder(".", ".", ["cat"], ignore=1 << 40),
        "ignore from .*got 1099511627776: choose",
    ),
    (
        "published-file",
        lambda b: datasets.published("ade150", __file__),
        "a folder for root, got .*, a file: check the path",
    ),
    ("published-none", lambda b: datasets.published("ade150", None), "root as text or a Path, got None: pass root="),
    ("published-empty", lambda b: datasets.published("ade150", "tests/slips"), "images/.*tests/slips.*: unpack ADE"),
    (
        "coco-masks",
        lambda b: datasets.coco_panoptic(".", __file__, "a.json"),
        "a folder for masks, got .*, a file: check",
    ),
    (
        "coco-no-json",
        lambda b: datasets.coco_panoptic(".", ".", __file__),
        "readable JSON, got .*: fetch the file again",
    ),
    ("coco-directory", lambda b: datasets.coco_panoptic(".", ".", "."), "readable JSON in UTF-8, got .*cannot be read"),
    ("sa1b-none", lambda b: datasets.sa1b(None), "folder as text or a Path, got None: pass folder="),
    ("sa1b-empty", lambda b: datasets.sa1b("tests/slips"), "images with masks in tests/slips.*got no pair: unpack"),
    ("index-word", lambda b: cats()["cat"], r"an index or a slice of it, got 'cat': write \[0\]"),
    ("index-half", lambda b: cats()[0.5], r"an index or a slice of it, got 0.5: write \[0\]"),
    ("index-true", lambda b: cats()[True], r"an index or a slice of it, got True: write \[0\]"),
    ("index-pair", lambda b: cats()[0, 1], r"an index or a slice of it, got \(0, 1\): write"),
    ("index-far", lambda b: cats()[1], "an index below 1, got 1: there are 1 items"),
    ("slice-word", lambda b: cats()["a":], r"a slice of whole numbers, got slice\('a'.*: write \[10:20\]"),
    ("sample-word", lambda b: labeled(class_names="cat"), "class_names as a list of names, got 'cat': pass"),
    ("sample-number", lambda b: labeled(class_names=(0,)), "class_names as a list of names, got 0 in it: pass"),
    ("sample-caption", lambda b: labeled(caption=None), "caption as text, got None: pass caption=''"),
    ("sample-name", lambda b: labeled(name=3), "name as text, got 3: pass name=''"),
    ("sample-stuff", lambda b: labeled(background=None), "background as a list of names, got None: pass background="),
    ("sample-stuff-number", lambda b: labeled(background=[3]), "background as a list .*got 3 in it: pass background="),
    ("sample-masks", lambda b: labeled(masks=LABELS), r"masks as an array \[mask y x\], got ndarray: stack them"),
    ("sample-mask-list", lambda b: labeled(masks=["a.png"]), r"masks as an array \[mask y x\], got list: stack them"),
    (
        "sample-many",
        lambda b: labeled(class_names=list(map(str, range(256)))),
        "at most 255 classes in .*got 256: name",
    ),
    ("sample-image", lambda b: open_sample(labeled(image=None), 0), "an image, got NoneType: pass a path"),
    ("sample-missing", lambda b: open_sample(labeled(image="nowhere.jpg"), 0), "no image file 'nowhere.jpg': check"),
    ("sample-directory", lambda b: open_sample(labeled(image="tests"), 0), "'tests' is damaged or cannot be read"),
    (
        "sample-labels",
        lambda b: open_sample(labeled(label_map=None), 0),
        r"a label map of integers \[y x\], got .*: pass",
    ),
    ("stuff-of", lambda b: datasets.background_of(Stuff()), "background as a list of names, got 3: pass background="),
    (
        "vocabulary",
        lambda b: renumber(LABELS, ["cat"], None),
        "vocabulary as a list of names, got None: pass vocabulary",
    ),
    (
        "vocabulary-text",
        lambda b: true_classes(LABELS, ["cat"], "cat"),
        "vocabulary as a list of names, got 'cat': pass",
    ),
    (
        "vocabulary-lacks",
        lambda b: true_classes(LABELS, ["cat"], ["dog"]),
        r"every class .*got \['cat'\] outside it: add",
    ),
    ("vocabulary-names", lambda b: renumber(LABELS, 3, ["cat"]), "names as a list of names, got 3: pass names="),
    (
        "vocabulary-labels",
        lambda b: renumber(LABELS + 0.5, ["cat"], ["cat"]),
        "a label map of integers .*float64.*: pass",
    ),
    (
        "vocabulary-ignore",
        lambda b: renumber(LABELS, ["cat"], ["cat"], None),
        "ignore, a whole number .*got None: pass",
    ),
    ("vocabulary-class", lambda b: renumber(LABELS, ["cat"], ["cat"], 0), "no class of 1, got 0: pass ignore=-1"),
    ("sample-path", lambda b: open_sample("a.jpg", 3), "a sample .*at index 3, got str: make a datasets.LabeledImage"),
    (
        "sample-float",
        lambda b: open_sample(labeled(label_map=LABELS * 0.5), 0),
        r"integers \[y x\], got float64.*: pass",
    ),
    ("sample-size", lambda b: open_sample(labeled(label_map=LABELS.T), 0), r"size \(4, 6\) for sample 0, .*: check"),
    ("sample-class", lambda b: open_sample(labeled(label_map=LABELS + 1), 0), "labels from 0 to 0, or 255.*: give one"),
]
