"""Images of all kinds come out upright, as 8-bit RGB, whichever Detectron2 is installed."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from dab_detr.data.images import UnreadableImage, image_size, read_image
from dab_detr.data.mapper import DetectionMapper

# a ramp with a mark in its upper left corner, 6 wide and 4 high
GREY = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
RGB = np.stack((GREY, GREY // 2, 255 - GREY), axis=-1)


def save(path, image, **options):
    image.save(path, **options)
    return str(path)


def rgb(*channels):
    return np.stack(channels if len(channels) == 3 else channels * 3, axis=-1)


def palette(path):
    image = Image.fromarray((GREY // 10).astype(np.uint8), mode="P")
    image.putpalette([value for i in range(24) for value in (10 * i, 5 * i, 255 - 10 * i)])
    return save(path / "palette.png", image)


def alpha(path):
    image = Image.fromarray(np.dstack((RGB, np.full_like(GREY, 255))), mode="RGBA")
    return save(path / "alpha.png", image)


KINDS = {
    "grey": (lambda p: save(p / "grey.png", Image.fromarray(GREY)), rgb(GREY)),
    "rgb": (lambda p: save(p / "rgb.png", Image.fromarray(RGB)), RGB),
    "alpha": (alpha, RGB),
    "palette": (palette, RGB),
    "16 bit": (
        lambda p: save(p / "deep.png", Image.fromarray(GREY.astype(np.uint16) * 257)),
        rgb(GREY),
    ),
    "16 bit tiff": (
        lambda p: save(p / "deep.tiff", Image.fromarray(GREY.astype(np.uint16) * 257 + 3)),
        rgb(GREY),
    ),
    "32 bit integers of 16": (
        lambda p: save(p / "long.tiff", Image.fromarray(GREY.astype(np.int32) * 257)),
        rgb(GREY),
    ),
    "black and white": (
        lambda p: save(p / "bits.png", Image.fromarray(GREY > 100)),
        rgb(np.where(GREY > 100, 255, 0).astype(np.uint8)),
    ),
    "cmyk": (
        lambda p: save(p / "print.tiff", Image.fromarray(RGB).convert("CMYK")),
        RGB,
    ),
    "grey with alpha": (
        lambda p: save(p / "la.png", Image.fromarray(np.dstack((GREY, GREY)), mode="LA")),
        rgb(GREY),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_is_read(tmp_path, kind):
    make, expected = KINDS[kind]
    image = read_image(make(tmp_path))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(read_image(make(tmp_path), "BGR"), expected[:, :, ::-1])


# how a camera's pixels have to be turned for each value of the EXIF orientation
ROTATIONS = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: np.swapaxes(x, 0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(np.swapaxes(x, 0, 1), 2),
    8: lambda x: np.rot90(x, 1),
}


def turned_file(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(path / f"{orientation}.png", Image.fromarray(RGB), exif=exif)


@pytest.mark.parametrize("orientation", ROTATIONS)
def test_the_exif_orientation_is_followed(tmp_path, orientation):
    expected = ROTATIONS[orientation](RGB)
    file = turned_file(tmp_path, orientation)
    np.testing.assert_array_equal(read_image(file), expected)
    np.testing.assert_array_equal(read_image(file, size=expected.shape[:2]), expected)
    np.testing.assert_array_equal(read_image(Path(file).read_bytes()), expected)
    np.testing.assert_array_equal(read_image(Image.open(file)), expected)


def test_annotations_of_the_pixels_as_stored_are_not_turned(tmp_path):
    file = turned_file(tmp_path, 6)
    np.testing.assert_array_equal(read_image(file, size=(4, 6)), RGB)
    with pytest.raises(UnreadableImage, match="is 4 x 6 pixels, but its annotation says 5 x 5"):
        read_image(file, size=(5, 5))


@pytest.mark.parametrize("orientation", ROTATIONS)
def test_the_size_is_known_without_decoding(tmp_path, orientation):
    file = turned_file(tmp_path, orientation)
    assert image_size(file) == ROTATIONS[orientation](RGB).shape[:2]
    # as an annotation may have it
    for size in ((4, 6), (4, 6) if orientation < 5 else (6, 4)):
        assert image_size(file, size) == read_image(file, size=size).shape[:2] == size


def test_a_mapper_reads_the_pixels_that_were_annotated(tmp_path):
    mapper = DetectionMapper(augmentations=[], is_train=False, image_format="RGB")
    record = {"file_name": turned_file(tmp_path, 6), "height": 4, "width": 6}
    np.testing.assert_array_equal(mapper(record)["image"], RGB.transpose(2, 0, 1))
    del record["height"], record["width"]
    np.testing.assert_array_equal(mapper(record)["image"], ROTATIONS[6](RGB).transpose(2, 0, 1))


def broken_exif(path):
    return save(path / "exif.jpg", Image.fromarray(RGB), exif=b"Exif\0\0garbage", quality=100)


def test_a_damaged_exif_block_does_not_matter(tmp_path):
    assert read_image(broken_exif(tmp_path)).shape == (4, 6, 3)


def test_a_wrong_value_beside_the_exif_orientation_does_not_matter(tmp_path):
    orientation = struct.pack("<HHLHH", 0x0112, 3, 1, 6, 0)
    # a resolution unit below 0
    wrong = struct.pack("<HHLl", 0x0128, 9, 1, -5)
    block = struct.pack("<2sHLH", b"II", 42, 8, 2) + orientation + wrong + bytes(4)
    file = save(tmp_path / "6.png", Image.fromarray(RGB), exif=b"Exif\0\0" + block)
    np.testing.assert_array_equal(read_image(file), ROTATIONS[6](RGB))


def truncated(path):
    file = path / "cut.png"
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:6000])
    return str(file)


UNREADABLE = {
    "missing": (lambda p: str(p / "gone.png"), "gone.png cannot be read: it does not exist"),
    "a folder": (lambda p: str(p), "cannot be read: IsADirectory"),
    "no image": (
        lambda p: (p / "x.png").write_text("no") and str(p / "x.png"),
        "x.png .*not an image of a known kind",
    ),
    "cut short": (truncated, "cut.png cannot be read"),
    "floating point": (
        lambda p: save(p / "f.tiff", Image.fromarray(GREY.astype(np.float32))),
        "f.tiff has floating-point",
    ),
    "more than 16 bits": (
        lambda p: save(p / "i.tiff", Image.fromarray(GREY.astype(np.int32) * 10**6)),
        "i.tiff has values beyond 16 bits",
    ),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_is_named(tmp_path, kind):
    make, words = UNREADABLE[kind]
    with pytest.raises(UnreadableImage, match=words):
        read_image(make(tmp_path))


def test_the_mapper_turns_the_image_that_its_boxes_are_on(tmp_path):
    mapper = DetectionMapper(is_train=True, augmentations=[T.RandomFlip(1.0)], image_format="RGB")
    box = {"bbox": [0, 1, 2, 3], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    crowd = {**box, "iscrowd": 1}
    record = {"file_name": turned_file(tmp_path, 6), "height": 6, "width": 4}
    sample = mapper({**record, "annotations": [box, crowd]})
    expected = np.fliplr(ROTATIONS[6](RGB)).transpose(2, 0, 1)
    assert torch.equal(sample["image"], torch.as_tensor(expected.copy()))
    assert sample["instances"].gt_boxes.tensor.tolist() == [[2, 1, 4, 3]]
    evaluated = DetectionMapper(is_train=False, augmentations=[], image_format="RGB")(
        {**record, "annotations": [box]}
    )
    assert "annotations" not in evaluated and "instances" not in evaluated
