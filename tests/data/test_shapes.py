import hashlib
import json
import os

import numpy as np
import programs
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from dab_detr.data import shapes
from dab_detr.data.shapes import CLASSES, ShapesSpec, generate_shapes

SPEC = ShapesSpec(num_train=6, num_val=3, size=64, classes=CLASSES, max_objects=5, seed=7)


def digest(folder):
    """One hash over the names and bytes of all files."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return total.hexdigest()


def test_bytes_depend_on_the_settings_alone(tmp_path):
    first, second = (generate_shapes(tmp_path / name, SPEC) for name in ("a", "b"))
    assert digest(first) == digest(second)
    # fixed here, so that another machine, another numpy or a change of the drawing shows
    assert digest(first) == "53739057a0b34cfec83fcf54e99357470de3b9552e92b63b41dcdb93bc47fc8e"
    other = generate_shapes(tmp_path / "a", ShapesSpec(**{**SPEC.__dict__, "seed": 8}))
    assert other != first and digest(other) != digest(first)


def test_default_is_two_thousand_and_two_hundred_images():
    assert (ShapesSpec().num_train, ShapesSpec().num_val) == (2000, 200)


def test_annotations_fit_the_pictures(tmp_path):
    folder = generate_shapes(tmp_path, SPEC)
    for part, count in (("train", 6), ("val", 3)):
        content = json.loads((folder / f"{part}.json").read_text())
        assert [c["name"] for c in content["categories"]] == list(CLASSES)
        assert len(content["images"]) == count
        for image in content["images"]:
            with Image.open(folder / part / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"]) == (64, 64)
                assert picture.mode == "RGB"
                pixels = np.asarray(picture)
            assert pixels.std() > 3
        ids = [a["id"] for a in content["annotations"]]
        assert len(set(ids)) == len(ids)
        for annotation in content["annotations"]:
            x, y, width, height = annotation["bbox"]
            assert x >= 0 and y >= 0 and x + width <= 64 and y + height <= 64
            assert 0 < annotation["area"] <= width * height
            assert 1 <= annotation["category_id"] <= len(CLASSES)


def test_an_object_ends_where_its_box_does(tmp_path):
    """Rows and columns just inside a rectangle's box have its colour, those outside do not."""
    spec = ShapesSpec(num_train=30, num_val=1, classes=("rectangle",), max_objects=1)
    folder = generate_shapes(tmp_path, spec)
    content = json.loads((folder / "train.json").read_text())
    assert len(content["annotations"]) == 30
    for image, annotation in zip(content["images"], content["annotations"]):
        with Image.open(folder / "train" / image["file_name"]) as picture:
            pixels = np.asarray(picture).astype(float)
        x, y, width, height = annotation["bbox"]
        color = np.median(pixels[y : y + height, x : x + width], axis=(0, 1))

        def distance(rows, columns, pixels=pixels, color=color):
            return np.abs(pixels[rows, columns].reshape(-1, 3).mean(0) - color).sum()

        for before, first in (((y - 1), y), ((y + height), (y + height - 1))):
            assert distance(first, slice(x, x + width)) < 40
            if 0 <= before < 96:
                assert distance(before, slice(x, x + width)) > 50
        for before, first in (((x - 1), x), ((x + width), (x + width - 1))):
            assert distance(slice(y, y + height), first) < 40
            if 0 <= before < 96:
                assert distance(slice(y, y + height), before) > 50


def test_many_sizes_and_overlaps(tmp_path):
    folder = generate_shapes(tmp_path, ShapesSpec(num_train=60, num_val=1))
    content = json.loads((folder / "train.json").read_text())
    widths = [a["bbox"][2] for a in content["annotations"]]
    assert min(widths) <= 12 and max(widths) >= 45
    per_image = np.bincount([a["image_id"] for a in content["annotations"]], minlength=60)
    assert per_image.min() == 1 and per_image.max() >= 5
    rectangles = [a for a in content["annotations"] if a["category_id"] == 1]
    hidden = [a for a in rectangles if a["area"] < a["bbox"][2] * a["bbox"][3]]
    assert 0 < len(hidden) < len(rectangles)


def test_a_second_call_reads_what_is_there(tmp_path):
    folder = generate_shapes(tmp_path, SPEC)
    marker = folder / "train" / "marker"
    marker.write_text("")
    assert generate_shapes(tmp_path, SPEC) == folder and marker.exists()


def test_an_interrupted_run_leaves_nothing_that_is_trusted(tmp_path, monkeypatch):
    whole = digest(generate_shapes(tmp_path / "whole", SPEC))
    drawn = []

    def interrupted(*arguments):
        drawn.append(arguments)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    original = shapes._draw_image
    monkeypatch.setattr(shapes, "_draw_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate_shapes(tmp_path / "broken", SPEC)
    assert list((tmp_path / "broken").iterdir()) == []
    monkeypatch.undo()
    assert digest(generate_shapes(tmp_path / "broken", SPEC)) == whole


def test_a_killed_run_leaves_no_folder_of_the_final_name(tmp_path):
    """Killed outright, a run cannot clean up; its leftovers must not look complete."""
    program = tmp_path / "program.py"
    program.write_text("""
import os, signal, sys
from dab_detr.data import shapes
drawn = []
original = shapes._draw_image
def kill(*arguments):
    drawn.append(1)
    if len(drawn) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
shapes._draw_image = kill
shapes.generate_shapes(sys.argv[1], shapes.ShapesSpec(num_train=6, num_val=3, size=64))
""")
    assert programs.run(program, tmp_path).returncode == -9
    spec = ShapesSpec(num_train=6, num_val=3, size=64)
    assert not (tmp_path / spec.folder_name).exists()
    folder = generate_shapes(tmp_path, spec)
    assert len(list((folder / "train").iterdir())) == 6


@pytest.mark.parametrize(
    "wrong",
    [
        {"classes": ("rectangle", "star")},
        {"classes": ()},
        {"classes": ("ring", "ring")},
        {"num_train": 0},
        {"size": 16},
        {"max_objects": 0},
        {"seed": -1},
    ],
    ids=str,
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ShapesSpec(**wrong)


def test_registered_data_sets_are_detectron2s(tiny_shapes):
    train, val = tiny_shapes
    records = DatasetCatalog.get(train)
    assert len(records) == 32 and len(DatasetCatalog.get(val)) == 8
    assert all(os.path.isfile(record["file_name"]) for record in records)
    assert MetadataCatalog.get(train).thing_classes == ["rectangle", "ellipse", "triangle"]
    labels = {a["category_id"] for record in records for a in record["annotations"]}
    assert labels == {0, 1, 2}
    assert {"shapes_train", "shapes_val"} <= set(DatasetCatalog.list())
