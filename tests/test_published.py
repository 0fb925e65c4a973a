"""Each benchmark on a small tree in the layout in which it is published, written here."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from scipy.io import savemat

from seg4diff_tools import datasets
from seg4diff_tools.errors import InputError

CLASS_NAMES = Path(os.environ.get("CLASS_NAMES", "no such folder"))
HEIGHT, WIDTH = 7, 11


def photograph(path: Path, size=(WIDTH, HEIGHT)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "teal").save(path)
    return path


def mask(path: Path, *values: int, size=(WIDTH, HEIGHT), palette=False) -> Path:
    """A PNG whose top left pixels are the values after the first, which fills the rest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("P" if palette else "L", size, values[0])
    if palette:
        image.putpalette([7 * i % 256 for i in range(768)])
    for x, value in enumerate(values[1:]):
        image.putpixel((x, 0), value)
    image.save(path)
    return path


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def first(sample) -> list[str | None]:
    """Classes of the first pixels of the top row, None where they are left out."""
    return [None if value == 255 else sample.class_names[value] for value in sample.label_map[0, :5]]


@pytest.fixture
def voc(tmp_path):
    """VOCdevkit/VOC2012 with two images of the split, and a third one."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("2007_000033", "2007_000042", "2008_000001"):
        photograph(root / "JPEGImages" / f"{name}.jpg")
        mask(root / "SegmentationClass" / f"{name}.png", 0, 1, 20, 255, 15, palette=True)
    text(root / "ImageSets/Segmentation/val.txt", "2007_000042", "2007_000033")
    text(root / "ImageSets/Segmentation/train.txt", "2008_000001")
    return root


@pytest.mark.parametrize("above", [0, 1, 2])
def test_voc_with_and_without_background(voc, above):
    root = [voc, voc.parent, voc.parent.parent][above]
    samples = datasets.published("voc21", root)
    assert len(samples) == 2
    assert len(samples.class_names) == 21
    assert samples.background == ("background",)
    sample = samples[0]
    assert isinstance(sample, datasets.Sample)
    assert sample.name == "2007_000042.jpg"
    assert sample.class_names == ("aeroplane", "person", "tvmonitor", "background")
    assert first(sample) == ["aeroplane", "tvmonitor", None, "person", "background"]
    assert sample.background == ("background",)
    assert sample.label_map.shape == (HEIGHT, WIDTH)
    without = datasets.published("voc20", str(root), "train")
    assert len(without) == 1
    assert len(without.class_names) == 20
    assert without.background == ()
    assert first(without[0]) == ["aeroplane", "tvmonitor", None, "person", None]


def test_context_as_published(tmp_path):
    root = tmp_path / "VOC2010"
    text(root / "ImageSets/Main/val.txt", "2008_000002", "2008_000003", "2010_000005")
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint16)
    labels[0, :5] = 2, 397, 459, 458, 0
    (tmp_path / "trainval").mkdir()
    for name in ("2008_000002", "2010_000005", "2010_000007"):
        photograph(root / "JPEGImages" / f"{name}.jpg")
        savemat(tmp_path / "trainval" / f"{name}.mat", {"LabelMap": labels})
    photograph(root / "JPEGImages" / "2008_000003.jpg")
    samples = datasets.published("pc59", tmp_path)
    # the third of the list has no annotation
    assert [sample.name for sample in samples] == ["2008_000002.jpg", "2010_000005.jpg"]
    assert len(samples.class_names) == 59
    assert samples.background == ()
    assert first(samples[0]) == ["aeroplane", "diningtable", None, "wood", None]
    # the annotations may be in VOC's folder as well
    (tmp_path / "trainval").rename(root / "trainval")
    assert len(datasets.published("pc59", root)) == 2
    path = root / "trainval" / "2008_000002.mat"
    savemat(path, {"LabelMap": labels + 1})
    with pytest.raises(InputError, match=r"labels 0 to 459, got 460 in .*2008_000002.mat"):
        datasets.published("pc59", root)[0]
    savemat(path, {"LabelMap": labels + 0.5})
    with pytest.raises(InputError, match=r"LabelMap as integers \[y x\] in .*2008_000002.mat, got float64"):
        datasets.published("pc59", root)[0]
    for damage in (lambda: savemat(path, {"Map": labels}), lambda: path.write_bytes(path.read_bytes()[:99])):
        damage()
        with pytest.raises(InputError, match=r"readable MATLAB file with LabelMap, got .*2008_000002.mat"):
            datasets.published("pc59", root)[0]


def test_converted_context_comes_first(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2010"
    photograph(root / "JPEGImages" / "2008_000002.jpg")
    mask(root / "SegmentationClassContext" / "2008_000002.png", 0, 1, 50, 59, 255)
    text(root / "ImageSets/SegmentationContext/val.txt", "2008_000002")
    (root / "trainval").mkdir()
    (sample,) = datasets.published("pc59", tmp_path)
    assert first(sample) == ["aeroplane", "diningtable", "wood", None, None]


def instances(root: Path) -> Path:
    """A table with a cat before it and a crowd behind it, and an image without anything."""
    table, cat, crowd = (np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F") for _ in range(3))
    table[:, :3], cat[0, 1:3], crowd[0] = 1, 1, 1
    square = [3.0, 2.0, 5.0, 2.0, 5.0, 5.0, 3.0, 5.0]

    def encoded(pixels):
        found = rle.encode(pixels)
        return found | {"counts": found["counts"].decode()}

    runs = [0, HEIGHT * 3, HEIGHT * (WIDTH - 3)]
    annotations = [
        {"category_id": 17, "segmentation": encoded(cat)},
        {"category_id": 67, "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs}},
        {"category_id": 1, "segmentation": encoded(crowd), "iscrowd": 1},
        {"category_id": 90, "segmentation": [square]},
    ]
    common = {"image_id": 139, "iscrowd": 0}
    content = {
        "images": [
            {"id": number, "file_name": f"{number:012}.jpg", "height": HEIGHT, "width": WIDTH} for number in (285, 139)
        ],
        "annotations": [common | {"id": number} | entry for number, entry in enumerate(annotations, 1)],
        "categories": [{"id": 1, "name": "person"}],
    }
    path = root / "annotations" / "instances_val2017.json"
    text(path, json.dumps(content))
    for number in (139, 285):
        photograph(root / "val2017" / f"{number:012}.jpg")
    return path


def test_coco_objects_are_drawn_small_ones_last(tmp_path, capsys):
    instances(tmp_path)
    samples = datasets.published("coco-object", tmp_path)
    assert len(samples.class_names) == 81
    assert samples.background == ("background",)
    seen, empty = samples
    assert (seen.name, empty.name) == ("000000000139.jpg", "000000000285.jpg")
    assert seen.class_names == ("background", "person", "cat", "dining table", "toothbrush")
    assert first(seen) == ["dining table", "cat", "cat", "person", "person"]
    assert (seen.label_map[1:, :3] == 3).all()
    assert (seen.label_map[2:5, 3:5] == 4).all()
    assert seen.label_map[6, 6] == 0
    # the crowd is no thing of its own
    assert [int(thing.sum()) for thing in seen.masks] == [2, 21, 6]
    assert empty.class_names == ("background",)
    assert (empty.label_map == 0).all()
    assert len(empty.masks) == 0
    alone = datasets.published("coco-object80", tmp_path)[0]
    assert alone.class_names == ("person", "cat", "dining table", "toothbrush")
    assert alone.label_map[6, 6] == 255
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("images", "maps"),
    [
        ("val2017", "stuffthingmaps_trainval2017/val2017"),
        ("images/val2017", "stuffthingmaps/val2017"),
        ("images/val2017", "annotations/val2017"),
    ],
)
def test_pixel_maps_of_coco(tmp_path, images, maps):
    for name in ("000000000139", "000000000285"):
        photograph(tmp_path / images / f"{name}.jpg")
        # person, toothbrush, banner, unlabeled; the rest is wood
        mask(tmp_path / maps / f"{name}.png", 181, 0, 89, 91, 255)
    samples = datasets.published("coco-stuff27", tmp_path)
    assert len(samples) == 2
    assert len(samples.class_names) == 27
    assert len(samples.background) == 15
    assert first(samples[1]) == ["person", "indoor", "textile", None, "solid"]
    assert samples[1].background == ("textile", "solid")
    objects = datasets.published("coco-object", tmp_path)[0]
    assert first(objects) == ["person", "toothbrush", "background", "background", "background"]
    assert first(datasets.published("coco-object80", tmp_path)[0]) == ["person", "toothbrush", None, None, None]
    text(tmp_path / "curated/val2017/Coco164kFull_Stuff_Coarse_7.txt", "000000000285")
    assert [sample.name for sample in datasets.published("coco-stuff27", tmp_path)] == ["000000000285.jpg"]


def test_pixel_maps_come_before_instances(tmp_path):
    instances(tmp_path)
    for name in ("000000000139", "000000000285"):
        mask(tmp_path / "stuffthingmaps/val2017" / f"{name}.png", 255, 16)
    assert first(datasets.published("coco-object", tmp_path)[0])[:2] == ["cat", "background"]


@pytest.mark.parametrize(("split", "word"), [("val", "validation"), ("train", "training"), ("training", "training")])
def test_ade(tmp_path, split, word):
    root = tmp_path / "ADEChallengeData2016"
    photograph(root / "images" / word / "ADE_00000003.jpg")
    mask(root / "annotations" / word / "ADE_00000003.png", 4, 0, 1, 8, 150)
    for folder in (root, tmp_path):
        (sample,) = samples = datasets.published("ade150", folder, split)
        assert len(samples.class_names) == 150
        assert len(samples.background) == 35
        assert first(sample) == [None, "wall", "bed", "flag", "floor"]
        assert sample.background == ("wall", "floor")
        assert sample.name == "ADE_00000003.jpg"


def test_cityscapes(tmp_path):
    for city, name in (("munster", "munster_000002_000019"), ("lindau", "lindau_000003_000019")):
        photograph(tmp_path / "leftImg8bit/val" / city / f"{name}_leftImg8bit.png")
        mask(tmp_path / "gtFine/val" / city / f"{name}_gtFine_labelIds.png", 23, 7, 33, 9, 17)
        mask(tmp_path / "gtFine/val" / city / f"{name}_gtFine_instanceIds.png", 7)
    samples = datasets.published("cityscapes", tmp_path)
    assert [sample.name for sample in samples] == [
        "lindau_000003_000019_leftImg8bit.png",
        "munster_000002_000019_leftImg8bit.png",
    ]
    assert first(samples[0]) == ["road", "bicycle", None, "pole", "sky"]
    assert samples[0].background == ("road", "sky")
    assert len(samples.class_names) == 19


def test_wrong_folders_are_named(voc):
    with pytest.raises(InputError, match=r"expected name, one of 'voc20', .* 'cityscapes', got 'voc'"):
        datasets.published("voc", voc)
    with pytest.raises(InputError, match=r"expected a folder for root, got .*nowhere, no such path: check"):
        datasets.published("voc20", voc / "nowhere")
    with pytest.raises(
        InputError,
        match=r"expected JPEGImages or VOC2012.JPEGImages or .* in .*ImageSets, got Segmentation in .*: unpack VOC",
    ):
        datasets.published("voc20", voc / "ImageSets")
    with pytest.raises(InputError, match=r"Segmentation/tset.txt in .*VOC2012, got train.txt, val.txt in .*: unpack"):
        datasets.published("voc20", voc, "tset")
    with pytest.raises(
        InputError,
        match=r"SegmentationClassContext or trainval or .* got ImageSets, JPEGImages, SegmentationClass in .*2010: ",
    ):
        datasets.published("pc59", voc.rename(voc.parent / "VOC2010"))
    (voc.parent / "VOC2010" / "SegmentationClass").rename(voc.parent / "VOC2010" / "trainval")
    with pytest.raises(InputError, match=r"ImageSets/Main/val.txt in .*VOC2010, got Segmentation in .*ImageSets"):
        datasets.published("pc59", voc.parent)
    text(voc.parent / "VOC2010/ImageSets/Main/val.txt", "2007_000042 1")
    with pytest.raises(InputError, match=r"expected images ending in .jpg with masks in .*trainval, got none"):
        datasets.published("pc59", voc.parent)


def test_many_other_files_are_counted(tmp_path):
    for number in range(8):
        text(tmp_path / f"file{number}", "")
    with pytest.raises(InputError, match="got file0, file1, file2, file3, file4, file5 and 2 more in"):
        datasets.published("cityscapes", tmp_path)
    (tmp_path / "images" / "validation").mkdir(parents=True)
    (tmp_path / "annotations").mkdir()
    with pytest.raises(
        InputError, match=r"expected val2017 or images/val2017 in .*: unpack val2017.zip and stuffthing"
    ):
        datasets.published("coco-stuff27", tmp_path)
    with pytest.raises(InputError, match=r"expected annotations/validation in .* got nothing in .*annotations: unpack"):
        datasets.published("ade150", tmp_path)


def test_incomplete_sets_are_named(voc):
    text(voc / "ImageSets/Segmentation/val.txt", "2007_000042", "", "2007_000061", "2007_000063")
    with pytest.raises(
        InputError, match=r"2007_000061.jpg in .*JPEGImages, which .*val.txt lists, got no such file nor 1 others"
    ):
        datasets.published("voc20", voc)
    (voc / "SegmentationClass" / "2008_000001.png").unlink()
    with pytest.raises(InputError, match=r"2008_000001.png in .*Class, which .*train.txt lists, got no such file: un"):
        datasets.published("voc20", voc, "train")


def test_an_image_without_mask_is_named(tmp_path):
    photograph(tmp_path / "images/validation/ADE_00000003.jpg")
    (tmp_path / "annotations/validation").mkdir(parents=True)
    with pytest.raises(InputError, match=r"ADE_00000003.png in .*, for an image of .*images.validation, got no such"):
        datasets.published("ade150", tmp_path)


def test_damaged_files_are_named_as_they_are_read(voc):
    samples = datasets.published("voc20", voc)
    mask(voc / "SegmentationClass/2007_000042.png", 21)
    with pytest.raises(InputError, match=r"labels 0 to 20 or 255, got 21 in .*2007_000042.png"):
        samples[0]
    mask(voc / "SegmentationClass/2007_000042.png", 0, size=(HEIGHT, WIDTH))
    with pytest.raises(
        InputError, match=r"size \(11, 7\), got \(7, 11\) in .*2007_000042.png: check that they belong to"
    ):
        samples[0]
    path = voc / "JPEGImages/2007_000033.jpg"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"2007_000033.jpg' is damaged"):
        samples[1]


def test_broken_instances_are_named(tmp_path):
    path = instances(tmp_path)
    content = json.loads(path.read_text(encoding="utf-8"))
    photograph(tmp_path / "val2017/000000000139.jpg", (WIDTH, HEIGHT + 4))
    with pytest.raises(
        InputError,
        match=r"size \(11, 11\), got \(11, 7\) in .*instances_val2017.json: check that they belong to .*000139.jpg",
    ):
        datasets.published("coco-object", tmp_path)[0]
    path.write_text(json.dumps(content | {"annotations": [{"id": 1, "image_id": 139, "category_id": 1}]}))
    with pytest.raises(
        InputError, match=r"instances in COCO's format for 000000000139.jpg in .*val2017.json, got others"
    ):
        datasets.published("coco-object", tmp_path)[0]
    (tmp_path / "val2017/000000000285.jpg").unlink()
    with pytest.raises(InputError, match=r"expected 000000000285.jpg in .*val2017, which instances_val2017.json lists"):
        datasets.published("coco-object", tmp_path)
    path.write_text(json.dumps(content | {"images": []}))
    with pytest.raises(InputError, match=r"expected images in .*instances_val2017.json, got none"):
        datasets.published("coco-object", tmp_path)
    path.write_text(json.dumps({"images": content["images"], "categories": []}), encoding="utf-8")
    with pytest.raises(InputError, match=r"COCO's instance format in .*, got one without 'annotations'"):
        datasets.published("coco-object", tmp_path)


def test_hidden_files_and_a_byte_order_mark_in_a_list(voc, tmp_path, monkeypatch):
    listing = voc / "ImageSets/Segmentation/val.txt"
    listing.write_text(listing.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert [sample.name for sample in datasets.published("voc21", voc)] == ["2007_000042.jpg", "2007_000033.jpg"]
    ade = tmp_path / "ADEChallengeData2016"
    for name in ("ADE_1", "._ADE_1", ".trash/ADE_2"):
        photograph(ade / f"images/validation/{name}.jpg")
        mask(ade / f"annotations/validation/{name}.png", 1)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [sample.name for sample in datasets.published("ade150", "~")[:9]] == ["ADE_1.jpg"]


def test_every_value_has_one_meaning():
    for name, benchmark in datasets.BENCHMARKS.items():
        assert len(set(benchmark.class_names)) == len(benchmark.class_names), name
        assert set(benchmark.background) <= set(benchmark.class_names), name
        for layout in benchmark.layouts:
            assert set(layout.lookup.values()) - {None} == set(benchmark.class_names), name
    (stuff,) = datasets.BENCHMARKS["coco-stuff27"].layouts
    # no category of COCO-Stuff lacks a coarse class
    assert set(stuff.lookup) == {*range(182), 255}


def test_synonyms_are_of_classes():
    names = {name for benchmark in datasets.BENCHMARKS.values() for name in benchmark.class_names}
    assert set(datasets.SYNONYMS) <= names
    for name, words in datasets.SYNONYMS.items():
        assert len(set(words)) == len(words), name
        assert words != (name,), name
    assert datasets.SYNONYMS["tvmonitor"] == ("tv", "monitor", "television")


@pytest.mark.skipif(not CLASS_NAMES.is_dir(), reason="needs the class lists of the paper's evaluation: CLASS_NAMES")
def test_class_names_are_those_of_the_papers_evaluation():
    for name in ("voc20", "voc21", "pc59", "ade150", "cityscapes", "coco-object"):
        listed = json.loads((CLASS_NAMES / f"{name.replace('-', '_')}.json").read_text(encoding="utf-8"))
        assert [name.strip() for name in listed] == list(datasets.BENCHMARKS[name].class_names)
    listed = json.loads((CLASS_NAMES / "coco_stuff_27.json").read_text(encoding="utf-8"))
    words = [name.removesuffix(" stuff") for name in datasets.BENCHMARKS["coco-stuff27"].class_names]
    # that list says mirror where the hierarchy of COCO-Stuff says floor, and mixes the order of stuff
    assert sorted(name.split("-")[0].replace("mirror", "floor") for name in listed) == sorted(words)
