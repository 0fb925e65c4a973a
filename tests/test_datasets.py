import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from seg4diff_tools import datasets
from seg4diff_tools.datasets.files import read_labels
from seg4diff_tools.datasets.labels import true_classes
from seg4diff_tools.datasets.opened import open_sample
from seg4diff_tools.errors import InputError

NAMES = ("grass", "cat", "dog", "bus")
COCO_PHOTOS = Path(os.environ.get("COCO_PHOTOS", "no such folder"))


@pytest.fixture
def folders(tmp_path):
    """Two photographs with masks, one photograph without, in the folders `images` and `masks`."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (11, 13, 3), dtype=np.uint8)
    for name in ("b.jpg", "a.png", "unlabeled.png"):
        Image.fromarray(pixels).save(images / name)
    labels = np.zeros((11, 13), dtype=np.uint8)
    labels[2:5, 3:7], labels[0, 0] = 2, 255
    Image.fromarray(labels).save(masks / "a.png")
    palette = Image.fromarray(labels + (labels == 0))
    palette.putpalette(list(range(256)) * 3)
    palette.save(masks / "b.png")
    return images, masks


def test_folder_reads_pairs_sorted_by_name(folders):
    samples = datasets.folder(*folders, NAMES, background=["grass"])
    assert len(samples) == 2
    assert samples.class_names == NAMES
    first, second = samples
    assert isinstance(first, datasets.Sample)
    assert (first.name, second.name) == ("a.png", "b.jpg")
    assert first.image.size == (13, 11)
    assert first.class_names == ("grass", "dog")
    assert first.background == ("grass",)
    assert first.caption == "grass dog"
    assert first.label_map.shape == (11, 13)
    assert (first.label_map[0, 0], first.label_map[0, 1], first.label_map[2, 3]) == (255, 0, 1)
    assert second.class_names == ("cat", "dog")
    assert second.background == ()


def test_grey_alpha_and_palette_photographs_become_rgb(folders):
    images, masks = folders
    grey = Image.fromarray(np.full((11, 13), 7, dtype=np.uint8))
    for mode in ("L", "RGBA", "P"):
        grey.convert(mode).save(images / "a.png")
        assert datasets.folder(images, masks, NAMES)[0].image.mode == "RGB"


@pytest.mark.parametrize("orientation", [3, 6])
def test_photographs_are_read_as_their_masks_were_drawn(folders, orientation):
    images, masks = folders
    stored = np.random.default_rng(1).integers(0, 256, (11, 13, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(images / "a.png", exif=exif)
    assert np.array_equal(datasets.folder(images, masks, NAMES)[0].image, stored)
    # only the upright picture is as large as these
    Image.new("L", (11, 13)).save(masks / "a.png")
    if orientation == 6:
        assert np.array_equal(datasets.folder(images, masks, NAMES)[0].image, np.rot90(stored, -1))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_masks_of_few_bits_keep_their_values(folders, bits):
    values = np.arange(16, dtype=np.uint8).reshape(4, 4) % min(2**bits, len(NAMES))
    (path := folders[1] / "a.png").write_bytes(grey_png(values, bits))
    assert np.array_equal(read_labels(path), values)


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """A grey PNG of few bits, which Pillow reads but does not write."""
    places = (values[:, :, None] >> np.arange(bits)[::-1]) & 1
    rows = np.packbits(places.reshape(len(values), -1).astype(np.uint8), axis=1)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    height, width = values.shape
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)), (b"IDAT", content), (b"IEND", b"")]
    packed = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_mask_of_another_size_is_refused(folders):
    images, masks = folders
    Image.new("L", (7, 11)).save(masks / "a.png")
    with pytest.raises(InputError, match="image's size"):
        datasets.folder(images, masks, NAMES)[0]


def test_colored_mask_is_refused(folders):
    images, masks = folders
    Image.new("RGB", (13, 11)).save(masks / "a.png")
    with pytest.raises(InputError, match="one class index"):
        datasets.folder(images, masks, NAMES)[0]


def test_label_without_a_name_is_refused(folders):
    with pytest.raises(InputError, match="labels 0 to 1 or 255, got 2"):
        datasets.folder(*folders, NAMES[:2])[0]


@pytest.mark.parametrize(("damaged", "message"), [(0, "damaged"), (1, "readable index PNG")])
def test_truncated_files_are_refused(folders, damaged, message):
    path = folders[damaged] / "a.png"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=message):
        datasets.folder(*folders, NAMES)[0]


def test_wrong_folders_and_names_are_refused(folders, tmp_path):
    images, masks = folders
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((images, tmp_path / "nowhere", NAMES), "expected a folder"),
        ((images, tmp_path / "empty", NAMES), "no pair"),
        ((images, masks, []), "at least one name"),
        ((images, masks, ["cat", "cat"]), "each one once"),
        ((images, masks, NAMES, ["water"]), "water"),
    ):
        with pytest.raises(InputError, match=message):
            datasets.folder(*arguments)


def colors(segments: np.ndarray) -> Image.Image:
    """A panoptic PNG: id = red + 256 green + 65536 blue."""
    return Image.fromarray(np.stack([segments % 256, segments // 256 % 256, segments // 65536], -1).astype(np.uint8))


SEGMENTS = np.full((7, 11), 70_000)
SEGMENTS[:2, :3], SEGMENTS[4:, 5:], SEGMENTS[6, 0], SEGMENTS[2, 4] = 300, 5, 0, 9
CATEGORIES = [
    {"id": 1, "name": "cat", "isthing": 1},
    {"id": 44, "name": "wall-brick", "isthing": 0},
    {"id": 190, "name": "floor-other-merged", "isthing": 0},
]


@pytest.fixture
def coco(tmp_path):
    """One photograph with two cats, a crowd of cats and a wall, in COCO's panoptic format."""
    images, masks = tmp_path / "train2017", tmp_path / "panoptic_train2017"
    images.mkdir()
    masks.mkdir()
    Image.new("RGB", (11, 7)).save(images / "000000000030.jpg")
    colors(SEGMENTS).save(masks / "000000000030.png")
    segments = [(300, 1, 0), (70_000, 44, 0), (5, 1, 0), (9, 1, 1)]
    content = {
        "categories": CATEGORIES,
        "images": [{"id": 30, "file_name": "000000000030.jpg"}],
        "annotations": [
            {
                "image_id": 30,
                "file_name": "000000000030.png",
                "segments_info": [{"id": i, "category_id": c, "iscrowd": crowd} for i, c, crowd in segments],
            }
        ],
    }
    path = tmp_path / "panoptic_train2017.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return images, masks, path


def test_coco_panoptic_tells_classes_and_things_apart(coco):
    samples = datasets.coco_panoptic(*coco)
    assert samples.class_names == ("cat", "wall brick", "floor")
    assert samples.background == ("wall brick", "floor")
    (sample,) = samples
    assert isinstance(sample, datasets.Sample)
    assert sample.name == "000000000030.jpg"
    assert sample.class_names == ("cat", "wall brick")
    assert sample.background == ("wall brick",)
    assert sample.caption == "cat wall brick"
    expected = np.where(SEGMENTS == 70_000, 1, np.where(SEGMENTS == 0, 255, 0))
    assert np.array_equal(sample.label_map, expected)
    # the crowd is no thing of its own
    assert [int(mask.sum()) for mask in sample.masks] == [6, int((SEGMENTS == 70_000).sum()), 18]


def test_coco_captions_in_both_formats(coco, tmp_path):
    path = tmp_path / "captions.json"
    told = [
        {"image_id": 31, "caption": "no"},
        {"image_id": 30, "caption": " two cats \n"},
        {"image_id": 30, "caption": "b"},
    ]
    path.write_text(json.dumps({"annotations": told}))
    assert datasets.coco_panoptic(*coco, path)[0].caption == "two cats"
    path.write_text(json.dumps({"000000000030.jpg": "a wall"}))
    assert datasets.coco_panoptic(*coco, path)[0].caption == "a wall"


def test_broken_coco_is_named(coco, tmp_path):
    images, masks, path = coco
    colors(SEGMENTS[:, :-1]).save(masks / "000000000030.png")
    with pytest.raises(InputError, match=r"masks of the image's size \(11, 7\), got \(10, 7\)"):
        datasets.coco_panoptic(*coco)[0]
    (masks / "000000000030.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="expected a readable panoptic PNG"):
        datasets.coco_panoptic(*coco)[0]
    with pytest.raises(InputError, match="expected a folder"):
        datasets.coco_panoptic(images / "x", masks, path)
    path.write_text(json.dumps({"images": [], "categories": []}))
    with pytest.raises(InputError, match="got one without 'annotations'"):
        datasets.coco_panoptic(*coco)
    path.write_text("[]")
    with pytest.raises(InputError, match="expected a JSON object"):
        datasets.coco_panoptic(*coco)
    path.write_text("{")
    with pytest.raises(InputError, match="expected readable JSON"):
        datasets.coco_panoptic(*coco)


@pytest.fixture
def sa(tmp_path):
    """Two images of SA-1B, one of them in a folder of its own, with overlapping masks."""
    masks = np.zeros((2, 7, 11), dtype=bool)
    masks[0, 1:3], masks[1, 2:, 5:] = True, True
    encoded = [rle.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    annotations = [{"segmentation": one | {"counts": one["counts"].decode()}, "area": 1} for one in encoded]
    for name in ("sa_2", "part/sa_1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (11, 7)).save(tmp_path / f"{name}.jpg")
        (tmp_path / f"{name}.json").write_text(json.dumps({"annotations": annotations}))
    Image.new("RGB", (11, 7)).save(tmp_path / "without.jpg")
    return tmp_path, masks


def test_sa1b_reads_masks_without_names(sa):
    folder, masks = sa
    (folder / "captions.json").write_text(json.dumps({"sa_2.jpg": "a road"}))
    samples = datasets.sa1b(folder, folder / "captions.json")
    assert [sample.name for sample in samples] == ["sa_1.jpg", "sa_2.jpg"]
    assert [sample.caption for sample in samples] == ["", "a road"]
    assert np.array_equal(samples[0].masks, masks)
    assert samples[0].class_names == ()


def test_broken_sa1b_is_named(sa, tmp_path):
    folder, _ = sa
    (folder / "sa_2.json").write_text(json.dumps({"annotations": [{"segmentation": [1, 2]}]}))
    with pytest.raises(InputError, match=r"run-length encoding in .*sa_2.json"):
        datasets.sa1b(folder)[1]
    Image.new("RGB", (11, 8)).save(folder / "part" / "sa_1.jpg")
    with pytest.raises(InputError, match=r"masks of the image's size \(11, 8\), got \(11, 7\)"):
        datasets.sa1b(folder)[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="got no pair"):
        datasets.sa1b(tmp_path / "empty")
    with pytest.raises(InputError, match="expected a folder"):
        datasets.sa1b(tmp_path / "nothing")


@pytest.mark.skipif(not COCO_PHOTOS.is_dir(), reason="needs real photographs with panoptic masks")
def test_real_coco_photographs():
    samples = datasets.coco_panoptic(COCO_PHOTOS / "images", COCO_PHOTOS / "panoptic", COCO_PHOTOS / "panoptic.json")
    assert len(samples) == 26
    for sample in samples:
        assert sample.label_map.shape == sample.masks.shape[1:] == (sample.image.height, sample.image.width)
        assert set(np.unique(sample.label_map)) <= {*range(len(sample.class_names)), 255}


def test_renamed_classes_of_one_name_become_one():
    label_map = np.array([[0, 1, 2], [2, 3, datasets.IGNORE]])
    sample = datasets.LabeledImage(
        np.zeros((2, 3, 3), np.uint8), ("cat", "sand", "dog", "snow"), label_map, "", ("sand", "snow")
    )

    class Set(list):
        class_names, background = ("cat", "sand", "dog", "snow", "tree"), ("sand", "snow")

    found = datasets.renamed(Set([sample]), {"sand": "background", "snow": "background", "cat": "kitten"})
    assert found.class_names == ("kitten", "background", "dog", "tree")
    assert found.background == ("background",)
    assert len(found) == 1
    assert found[0].class_names == ("kitten", "background", "dog")
    assert found[0].background == ("background",)
    assert found[0].label_map.tolist() == [[0, 1, 2], [2, 1, datasets.IGNORE]]


MANY = [f"thing {number}" for number in range(300)]


def wide_masks(folders, ignored: int) -> np.ndarray:
    """Both masks with classes 255 and 299 of 300 and some pixels to leave out, in 16 bits."""
    labels = np.full((11, 13), 299, dtype=np.uint16)
    labels[0], labels[1] = 255, ignored
    for name in ("a.png", "b.png"):
        Image.fromarray(labels).save(folders[1] / name)
    return labels


def test_class_255_of_300_is_never_ignored_in_silence(folders):
    wide_masks(folders, 65535)
    with pytest.raises(InputError, match="no class of 300, got ignore=255, which is 'thing 255': pass ignore=-1"):
        datasets.folder(*folders, MANY)
    with pytest.raises(InputError, match="ignore=0, which is 'grass'"):
        datasets.folder(*folders, NAMES, ignore=0)
    sample = datasets.folder(*folders, MANY, ignore=65535)[0]
    assert sample.class_names == ("thing 255", "thing 299")
    assert (sample.label_map[:3, 0] == [0, 255, 1]).all()
    wide_masks(folders, 7)
    assert 255 not in datasets.folder(*folders, MANY, ignore=np.int64(-1))[0].label_map
    # as many classes as there are values below it
    assert len(datasets.folder(*folders, MANY[:255]).class_names) == 255


def test_an_image_of_300_classes_is_refused_wherever_it_comes_from(folders):
    labels = np.arange(300).reshape(20, 15)
    with pytest.raises(InputError, match=r"at most 255 classes in one image.*got 300"):
        datasets.LabeledImage(np.zeros((20, 15, 3), np.uint8), tuple(MANY), labels)
    with pytest.raises(InputError, match=r"at most 255 classes in one image.*got 300"):
        true_classes(labels, MANY, MANY)

    class Own:
        image, class_names, label_map, caption = np.zeros((20, 15, 3), np.uint8), MANY, labels, ""

    with pytest.raises(InputError, match=r"at most 255 classes in one image.*got 300"):
        open_sample(Own(), 0)
    Image.fromarray(labels.astype(np.uint16)).save(folders[1] / "a.png")
    Image.new("RGB", (15, 20)).save(folders[0] / "a.png")
    with pytest.raises(InputError, match=r"at most 255 classes in one image.*got 300"):
        datasets.folder(*folders, MANY, ignore=-1)[0]


def test_a_mask_is_never_its_own_image(tmp_path):
    Image.new("RGB", (13, 11)).save(tmp_path / "a.jpg")
    Image.new("L", (13, 11)).save(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"got .*b.png for both: keep masks in a folder"):
        datasets.folder(tmp_path, tmp_path, NAMES)
    Image.new("L", (13, 11)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"one file named a in .*, got a.jpg and a.png: keep images and masks"):
        datasets.folder(tmp_path, tmp_path, NAMES)


def test_two_files_of_one_name_are_refused(folders):
    images, masks = folders
    (images / "unlabeled.jpg").write_bytes((images / "a.png").read_bytes())
    assert len(datasets.folder(images, masks, NAMES)) == 2
    (images / "a.webp").write_bytes((images / "a.png").read_bytes())
    with pytest.raises(InputError, match=r"one file named a in .*images, got a.png and a.webp"):
        datasets.folder(images, masks, NAMES)
    (images / "a.webp").unlink()
    (masks / "b.PNG").write_bytes((masks / "b.png").read_bytes())
    with pytest.raises(InputError, match=r"one file named b in .*masks, got b.PNG and b.png"):
        datasets.folder(images, masks, NAMES)


def test_a_panoptic_png_is_never_its_own_image(coco):
    images, _, path = coco
    content = json.loads(path.read_text(encoding="utf-8"))
    content["annotations"][0]["file_name"] = content["images"][0]["file_name"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=r"got 000000000030.jpg for both"):
        datasets.coco_panoptic(images, images, path)


def test_hidden_files_are_no_samples(folders, sa):
    images, masks = folders
    for folder, name in ((images, "a.png"), (masks, "a.png")):
        (folder / f"._{name}").write_bytes(b"AppleDouble")
    assert [sample.name for sample in datasets.folder(images, masks, NAMES)] == ["a.png", "b.jpg"]
    for name in ("._sa_2", ".trash/sa_3"):
        (sa[0] / name).parent.mkdir(exist_ok=True)
        for end in (".jpg", ".json"):
            (sa[0] / f"{name}{end}").write_bytes(b"AppleDouble")
    assert [sample.name for sample in datasets.sa1b(sa[0])] == ["sa_1.jpg", "sa_2.jpg"]


def test_a_byte_order_mark_is_dropped(coco, sa):
    path = coco[2]
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    captions = path.with_name("captions.json")
    captions.write_text(json.dumps({"000000000030.jpg": "a café", "sa_2.jpg": "a road"}), encoding="utf-8-sig")
    assert datasets.coco_panoptic(*coco, captions)[0].caption == "a café"
    assert datasets.sa1b(sa[0], captions)[1].caption == "a road"
    captions.write_text("{}", encoding="utf-16")
    with pytest.raises(InputError, match=r"readable JSON in UTF-8, got .*captions.json"):
        datasets.sa1b(sa[0], captions)


def test_a_tilde_is_the_home(folders, coco, sa, monkeypatch):
    home = folders[0].parent
    monkeypatch.setenv("HOME", str(home))
    assert len(datasets.folder("~/images", "~/masks", NAMES)) == 2
    assert len(datasets.coco_panoptic(*(f"~/{path.relative_to(home)}" for path in coco))) == 1
    assert len(datasets.sa1b("~")) == 2


def test_slices_are_lazy_and_know_the_vocabulary(folders, coco, sa):
    samples = datasets.folder(*folders, NAMES, background="grass")
    (folders[0] / "a.png").write_bytes(b"damaged")
    last = samples[1:]
    assert (len(last), last.class_names, last.background) == (1, NAMES, ("grass",))
    assert last[np.int64(0)].name == last[-1].name == samples[np.uint8(1)].name == samples[-1].name == "b.jpg"
    assert [sample.name for sample in samples[::-1][:1]] == ["b.jpg"]
    assert len(samples[5:]) == 0
    assert [sample.name for sample in datasets.sa1b(sa[0])[:5]] == ["sa_1.jpg", "sa_2.jpg"]
    assert datasets.coco_panoptic(*coco)[:2].background == ("wall brick", "floor")
    renamed = datasets.renamed(samples, {"cat": "kitten"})[-1:]
    assert renamed.class_names == ("grass", "kitten", "dog", "bus")
    assert renamed[0].class_names == ("kitten", "dog")
    for wrong in (2, -3, np.int64(7)):
        with pytest.raises(IndexError, match=f"index below 2, got {wrong}"):
            samples[wrong]


def test_renamed_samples_keep_everything_else():
    things = np.zeros((2, 2, 3), dtype=bool)
    sample = datasets.LabeledImage(
        np.zeros((2, 3, 3), np.uint8), ("cat",), np.zeros((2, 3), int), "a cat", (), "a.jpg", things
    )
    (found,) = datasets.renamed([sample], {"cat": "kitten"})
    assert (found.name, found.caption, found.class_names) == ("a.jpg", "a cat", ("kitten",))
    assert found.masks is things
    with pytest.raises(InputError, match="got 'dgo': did you mean 'dog'"):
        datasets.renamed(Vocabulary([sample]), {"dgo": "puppy"})


class Vocabulary(list):
    class_names = ("cat", "dog")


def test_what_a_sample_may_hold(tmp_path):
    pixels = np.random.default_rng(3).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    labels = np.arange(35).reshape(5, 7) % 2
    prints = {
        open_sample(datasets.LabeledImage(image, ("cat", "dog"), labels), 0).fingerprint
        for image in (pixels, Image.fromarray(pixels), tmp_path / "a.png", str(tmp_path / "a.png"))
        + (torch.from_numpy(pixels).permute(2, 0, 1) / 255,)
    }
    assert len(prints) == 1

    class Own:
        image, class_names, caption = pixels, ["cat", "dog"], ""

    for Own.label_map in (
        torch.from_numpy(labels),
        labels.tolist(),
        labels.astype(bool),
        Image.fromarray(np.uint8(labels)),
    ):
        assert {open_sample(Own(), 0).fingerprint} == prints
    Own.label_map = labels.astype(float)
    with pytest.raises(InputError, match=r"label map of integers \[y x\], got float64"):
        open_sample(Own(), 0)
