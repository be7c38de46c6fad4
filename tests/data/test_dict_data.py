"""Data sets that a function returns: what is certain is understood, the rest is refused."""

import copy
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from dab_detr.data.catalog import checked_dataset
from dab_detr.errors import InputError

CONFIG = str(Path(__file__).parents[1] / "assets" / "own_config.py")
NAMES = "dict_train", "dict_val"
CLASSES = ["cat", "dog"]


@pytest.fixture
def records(own_data):
    """Three images of 64 x 48 pixels, two boxes in the first, none in the last."""
    folder, _ = own_data("dicts")
    boxes = [[[8.0, 5.0, 16.0, 12.0], [30.5, 20.0, 20.0, 25.0]], [[1.0, 2.0, 40.0, 40.0]], []]
    return [
        {
            "file_name": f"{folder}/{k + 1}.png",
            "image_id": 100 + k,
            "height": 48,
            "width": 64,
            "annotations": [
                {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": i}
                for i, box in enumerate(found)
            ],
        }
        for k, found in enumerate(boxes)
    ]


@pytest.fixture
def register():
    """A function that registers records, or a function that returns them, with names of classes."""

    def call(name, records, classes=CLASSES):
        forget(name)
        DatasetCatalog.register(name, records if callable(records) else lambda: records)
        if classes is not None:
            MetadataCatalog.get(name).thing_classes = classes
        return checked_dataset(name)

    def forget(name):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)

    yield call
    for name in NAMES:
        forget(name)


@pytest.fixture
def run(in_process, tmp_path):
    def call(*overrides):
        return in_process(
            "--config-file", CONFIG, "model.num_classes=2", f"train.output_dir={tmp_path / 'out'}",
            "dataloader.train.dataset.names=dict_train", "dataloader.test.dataset.names=dict_val",
            "dataloader.train.total_batch_size=2", *overrides,
        )  # fmt: skip

    return call


def fields(**changes):
    """Changes every record; None removes the field, a function is given its value."""
    return lambda records: [_changed(record, changes) for record in records]


def boxes(**changes):
    """The same with every annotation."""

    def change(records):
        for record in records:
            record["annotations"] = [_changed(a, changes) for a in record["annotations"]]
        return records

    return change


def _changed(entry, changes):
    for key, value in changes.items():
        if value is None:
            entry.pop(key, None)
        else:
            entry[key] = value(entry[key]) if callable(value) else value
    return entry


def corners(box):
    x, y, width, height = box
    return [x, y, x + width, y + height]


def relative(box):
    return [value / side for value, side in zip(box, (64, 48, 64, 48))]


def as_generator(records):
    return (record for record in records)


# ways in which people write the same
UNDERSTOOD = {
    "as usual": lambda r: r,
    "a tuple": tuple,
    "a generator": as_generator,
    "paths": fields(file_name=Path),
    "ids of numpy": fields(image_id=np.int64, height=np.int32, width=np.uint16),
    "sizes of floats": fields(height=float, width=np.float32),
    "no size": fields(height=None, width=None),
    "no width": fields(width=None),
    "boxes of numpy": boxes(bbox=lambda box: np.array(box, np.float64)),
    "boxes of torch": boxes(bbox=torch.tensor),
    "boxes of tuples and whole numbers": boxes(
        bbox=lambda box: tuple(int(x) if x == int(x) else np.float32(x) for x in box)
    ),
    "classes of numpy": boxes(category_id=np.int64),
    "classes of a table": boxes(category_id=float),
    "classes of torch": boxes(category_id=torch.tensor),
    "no crowds": boxes(iscrowd=False),
    "no crowds of numpy": boxes(iscrowd=np.bool_(False)),
    "modes as numbers": boxes(bbox_mode=int),
    "corners": boxes(bbox=corners, bbox_mode=BoxMode.XYXY_ABS),
    "relative": boxes(bbox=relative, bbox_mode=BoxMode.XYWH_REL),
    "relative corners, no size": lambda records: fields(height=None, width=None)(
        boxes(bbox=lambda box: relative(corners(box)), bbox_mode=BoxMode.XYXY_REL)(records)
    ),
    "areas that cannot be": boxes(area=math.nan),
    "masks and keypoints": boxes(segmentation=[[1, 2]], keypoints=[1]),
}


@pytest.mark.parametrize("case", UNDERSTOOD)
def test_what_is_certain_is_understood(records, register, case):
    dataset = register("dict_train", UNDERSTOOD[case](copy.deepcopy(records)))
    assert [r["image_id"] for r in dataset.records] == [100, 101, 102]
    for record, wanted in zip(dataset.records, records):
        assert type(record["file_name"]) is str and record["file_name"] == wanted["file_name"]
        assert (record["height"], record["width"]) == (48, 64)
        assert type(record["height"]) is type(record["width"]) is type(record["image_id"]) is int
        assert len(record["annotations"]) == len(wanted["annotations"])
        for annotation, given in zip(record["annotations"], wanted["annotations"]):
            box = annotation["bbox"]
            if annotation["bbox_mode"] == BoxMode.XYXY_ABS:
                box = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            assert box == pytest.approx(given["bbox"])
            assert annotation["category_id"] == given["category_id"]
            assert annotation["iscrowd"] == 0
            assert annotation["area"] == pytest.approx(box[2] * box[3])
            # a mapper would transform them, too
            assert not {"segmentation", "keypoints"} & annotation.keys()


@pytest.mark.parametrize("area", [0.25, 77])
def test_an_area_that_is_given_is_kept(records, register, area):
    """Of a mask, it may be smaller than the box, or than a pixel."""
    kept = register("dict_train", boxes(area=area)(records)).records
    assert [x["area"] for record in kept for x in record["annotations"]] == [area] * 3


def test_images_without_ids_are_numbered_and_fields_of_ones_own_stay(records, register):
    given = fields(image_id=None, camera="left")(copy.deepcopy(records))
    kept = register("dict_train", given).records
    assert [(r["image_id"], r["camera"]) for r in kept] == [(k, "left") for k in range(3)]
    assert "image_id" not in given[0], "what is registered is not changed"


def test_the_size_of_a_turned_image_is_that_of_the_upright_one(records, register):
    path = Path(records[0]["file_name"]).with_suffix(".jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(records[0]["file_name"]) as image:
        image.save(path, exif=exif)
    del records[0]["height"], records[0]["width"]
    records[0]["file_name"] = str(path)
    dataset = register("dict_train", records)
    assert (dataset.records[0]["height"], dataset.records[0]["width"]) == (64, 48)


def test_a_data_set_is_loaded_once(records, register):
    calls = []

    def load():
        calls.append(1)
        return records

    dataset = register("dict_train", load)
    assert not calls
    for _ in range(2):
        assert DatasetCatalog.get("dict_train") == dataset.records
    assert len(calls) == 1


def test_such_data_train_and_are_evaluated(records, register, run, tmp_path):
    for name in NAMES:
        loose = copy.deepcopy(records)
        loose = fields(image_id=None, height=None, width=None, file_name=Path)(loose)
        register(name, boxes(bbox=np.array, category_id=np.int64, segmentation=[[1, 2]])(loose))
    assert run("train.pictures.count=1") == 0
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "Data for training: 3 images with 3 boxes." in log
    results = json.loads((tmp_path / "out" / "evaluation.json").read_text())["results"]["bbox"]
    assert {"AP-cat", "AP-dog"} <= results.keys()


def one(index, **changes):
    """Changes the first annotation of a record, or the record if it has none."""

    def change(records):
        target = records[index]["annotations"] or [records[index]]
        _changed(target[0], changes)
        return records

    return change


FIRST = r"'dict_\w+' is wrong: record 0 \(\S+1.png\)"
BOX = rf"{FIRST} has an annotation, number 0, that has the"
WRONG = {
    "no list": (lambda r: {"images": r}, "'dict_train' is a dict; a list"),
    "nothing": (lambda r: None, "'dict_train' is a NoneType; a list"),
    "no images": (lambda r: [], "training data has no images"),
    "records of another kind": (lambda r: [*r, 7], "record 3 is a int; a dict"),
    "no file": (fields(file_name=None), "record 0 has the file_name None"),
    "some without id": (one(2, image_id=None), r"record 2 \(.*3.png\) has no image_id, but"),
    "id of another kind": (fields(image_id=[1]), rf"{FIRST} has the image_id \[1\]"),
    "no positive size": (fields(width=0), rf"{FIRST} has the size 0 x 48"),
    "size as text": (fields(height="48"), rf"{FIRST} has the size 64 x '48'"),
    "annotations as dict": (fields(annotations={}), rf"{FIRST} has annotations that are a dict"),
    "no annotations": (fields(annotations=None), "records of 'dict_train' have no list 'annotat"),
    "annotation of another kind": (fields(annotations=[5]), "number 0, that is a int; a dict"),
    "classes from 1": (boxes(category_id=lambda k: k + 1), "category_id 2; .* numbered 0 to 1"),
    "class -1": (one(0, category_id=-1), f"{BOX} category_id -1; the 2 classes"),
    "half a class": (one(0, category_id=0.5), f"{BOX} category_id 0.5"),
    "class as text": (one(0, category_id="cat"), f"{BOX} category_id 'cat'"),
    "no class": (one(0, category_id=None), f"{BOX} category_id None"),
    "truth as class": (one(0, category_id=True), f"{BOX} category_id True"),
    "no box": (one(0, bbox=None), "number 0, that has no bbox; 4 numbers"),
    "three numbers": (one(0, bbox=[1, 2, 3]), rf"{BOX} bbox \[1, 2, 3\]"),
    "box of text": (one(0, bbox=["1", "2", "3", "4"]), f"{BOX} bbox"),
    "box of boxes": (one(0, bbox=np.ones((1, 4))), f"{BOX} bbox"),
    "no mode": (one(0, bbox_mode=None), "number 0, that has no bbox_mode; set BoxMode.XYWH_ABS"),
    "unknown mode": (one(0, bbox_mode=9), f"{BOX} bbox_mode 9; set"),
    "mode as text": (one(0, bbox_mode="xywh"), f"{BOX} bbox_mode 'xywh'; set"),
    "crowd of another kind": (one(0, iscrowd=2), f"{BOX} iscrowd 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_the_rest_is_refused_before_the_first_step(records, register, run, tmp_path, capsys, case):
    change, words = WRONG[case]
    register("dict_val", copy.deepcopy(records))
    register("dict_train", change(records))
    assert run() == 1
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("train_net.py: ") and re.search(words, last), last
    assert not (tmp_path / "out" / "metrics.json").exists()


def raises(_):
    raise KeyError("images")


WRONG_TO_EVALUATE = {
    "class -1": (one(0, category_id=-1), f"{BOX} category_id -1"),
    "one id for two": (fields(image_id=5), "'dict_val' uses an image_id more than once: 5"),
    "no boxes": (boxes(bbox=[0, 0, 0, 0]), "'dict_val' have no valid box"),
    "no images": (lambda r: [], "'dict_val' has no images to evaluate on"),
    "cannot be loaded": (lambda r: lambda: raises(r), "'dict_val' cannot be loaded: KeyError"),
}


@pytest.mark.parametrize("case", WRONG_TO_EVALUATE)
def test_data_to_evaluate_on_are_checked_as_well(records, register, run, tmp_path, capsys, case):
    change, words = WRONG_TO_EVALUATE[case]
    register("dict_train", copy.deepcopy(records))
    register("dict_val", change(records))
    assert run() == 1
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("train_net.py: ") and re.search(words, last), last
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_names_of_classes_have_to_be_set_and_equal(records, register, run, capsys):
    register("dict_train", records, None)
    register("dict_val", records)
    assert run() == 1
    assert "MetadataCatalog.get('dict_train').thing_classes" in capsys.readouterr().err
    register("dict_train", records, "cat")
    assert run() == 1
    assert "thing_classes of 'dict_train' are not a list of names: cat" in capsys.readouterr().err
    register("dict_train", records, ["dog", "cat"])
    assert run() == 1
    assert "id 0 is 'dog' and 'cat'" in capsys.readouterr().err


def test_a_model_may_have_more_classes_than_the_data_but_not_fewer(
    records, register, run, tmp_path, capsys
):
    for name in NAMES:
        register(name, records)
    assert run("model.num_classes=1") == 1
    assert "has 2 classes, the model 1: set model.num_classes=2" in capsys.readouterr().err
    assert run("model.num_classes=5") == 0
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "'dict_val' has 2 classes, the model 5: the others are not evaluated" in log
    results = json.loads((tmp_path / "out" / "evaluation.json").read_text())["results"]["bbox"]
    assert {"AP-cat", "AP-dog"} <= results.keys()
    written = tmp_path / "out" / "inference" / "coco_instances_results.json"
    assert {r["category_id"] for r in json.loads(written.read_text())} <= {0, 1}


def test_a_part_of_a_registered_file_stays_a_part(own_data, register):
    """A function that reads such a file itself may do more with it."""
    folder, file = own_data("train")

    def half():
        MetadataCatalog.get("dict_train").set(json_file=file, image_root=folder)
        MetadataCatalog.get("dict_train").evaluator_type = "coco"
        images = json.loads(Path(file).read_text())["images"]
        return [
            {**i, "file_name": f"{folder}/{i['file_name']}", "annotations": []} for i in images
        ][:2]

    assert len(register("dict_train", half).records) == 2
    with pytest.raises(InputError, match="no data set 'dict_trian'; did you mean dict_train"):
        checked_dataset("dict_trian")
    with pytest.raises(InputError, match="no data set 'xyz'[.] Register a custom data set"):
        checked_dataset("xyz")
