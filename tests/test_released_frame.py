"""The frame of the released unsupervised evaluation, against values worked out by hand."""

import numpy as np
import PIL.Image
import pytest
import torch

from seg4diff_tools.evaluation.released_frame import released_frame


def framed(height, width, size=(96, 96)):
    image = PIL.Image.new("RGB", (width, height), "white")
    label_map = torch.zeros(height, width, dtype=torch.int64)
    label_map[height // 2 :] = 1
    return released_frame(image, label_map, size)


@pytest.mark.parametrize(
    ("file", "resized", "padded"),
    [
        ((480, 500), (640, 667), (640, 672)),
        ((1024, 2048), (640, 1280), (640, 1280)),
        ((90, 900), (256, 2560), (256, 2560)),
    ],
)
def test_sizes(file, resized, padded):
    frame = framed(*file)
    assert tuple(frame.label_map.shape) == resized
    assert frame.file_size == file
    # the white image ends where the black padding begins, also after it was stretched to the model's size
    white = (np.asarray(frame.image)[..., 0] > 127).sum(1).mean()
    assert white == pytest.approx(96 * resized[1] / padded[1], abs=0.51)


def test_labels_are_resized_by_nearest_pixel():
    frame = framed(480, 500)
    assert frame.label_map[:320].eq(0).all()
    assert frame.label_map[320:].eq(1).all()


def test_padding_shifts_maps():
    # 667 columns of picture and 5 of padding: an edge at half the padded width lies at half the width of the picture
    frame = framed(480, 500)
    maps = torch.zeros(2, 64, 64)
    maps[0, :, :32], maps[1, :, 32:] = 1, 1
    edge = frame.labels(maps).float().argmax(1).float().mean().item()
    assert edge == pytest.approx(667 / 2, abs=1)


def test_of_a_large_file_the_top_left_part_is_scored():
    # 1024 x 2048 pixels: what lies in the top left 640 x 1280 of the file fills the whole label map
    frame = framed(1024, 2048)
    maps = torch.zeros(2, 64, 64)
    maps[0, :32], maps[1, 32:] = 1, 1
    labels = frame.labels(maps)
    edge = labels.argmax(0).float().mean().item()  # the edge at row 512 of the file is row 512 of the 640 that are kept
    assert edge == pytest.approx(512, abs=2)
    assert frame.label_map.argmax(0).unique().tolist() == [320]


def test_the_image_keeps_its_values():
    picture = np.zeros((640, 640, 3), np.uint8)
    picture[:, 320:] = (255, 128, 0)
    frame = released_frame(PIL.Image.fromarray(picture), torch.zeros(640, 640, dtype=torch.int64), (640, 640))
    np.testing.assert_array_equal(np.asarray(frame.image), picture)
