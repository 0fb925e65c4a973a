import numpy as np
import pytest
from PIL import Image

from seg4diff_tools import datasets
from seg4diff_tools.errors import InputError

NAMES = ("grass", "cat", "dog", "bus")


@pytest.fixture
def folders(tmp_path):
    """Two photographs with masks, one photograph without, in the folders `images` and `masks`."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (11, 13, 3), dtype=np.uint8)
    for name in ("b.jpg", "a.png", "unlabelled.png"):
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


def test_mask_of_another_size_is_refused(folders):
    images, masks = folders
    Image.new("L", (7, 11)).save(masks / "a.png")
    with pytest.raises(InputError, match="image's size"):
        datasets.folder(images, masks, NAMES)[0]


def test_coloured_mask_is_refused(folders):
    images, masks = folders
    Image.new("RGB", (13, 11)).save(masks / "a.png")
    with pytest.raises(InputError, match="one class index"):
        datasets.folder(images, masks, NAMES)[0]


def test_label_without_a_name_is_refused(folders):
    with pytest.raises(InputError, match="labels below 2"):
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
        ((images, masks, []), "each one once"),
        ((images, masks, ["cat", "cat"]), "each one once"),
        ((images, masks, NAMES, ["water"]), "water"),
    ):
        with pytest.raises(InputError, match=message):
            datasets.folder(*arguments)
