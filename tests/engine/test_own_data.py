"""Training on one's own files: what is wrong with them is said, what can be mended is."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog

from dab_detr.engine.main import main

CONFIG = str(Path(__file__).parents[1] / "data" / "own_config.py")


@pytest.fixture
def run(tmp_path, datasets_root, monkeypatch, forget_tiny):
    """A function that runs train_net.py on data sets of ``own_data``; returns the exit code."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets_root))

    def call(train, val, *arguments):
        forget_tiny()
        options = [x for x in arguments if x.startswith("-")]
        data = ["--train-data", *train] if train else []
        return main(
            ["--config-file", CONFIG, *data, "--val-data", *val, *options]
            + [f"train.output_dir={tmp_path / 'out'}"]
            + [x for x in arguments if x not in options]
        )

    return call


def annotation(index, **values):
    """Changes fields of an annotation; None removes one."""

    def change(content):
        entry = content["annotations"][index]
        entry.update(values)
        for name in [k for k, v in values.items() if v is None]:
            del entry[name]

    return change


def image(index, **values):
    def change(content):
        content["images"][index].update(values)

    return change


def section(name, value):
    def change(content):
        content[name] = value
        if value is None:
            del content[name]

    return change


def category(index, **values):
    def change(content):
        content["categories"][index].update(values)

    return change


def all_images_elsewhere(content):
    for entry in content["images"]:
        entry["file_name"] = "elsewhere/" + entry["file_name"]


def all_boxes(**values):
    def change(content):
        for entry in content["annotations"]:
            entry.update(values)

    return change


# what is wrong: (with which part, how it is made, what is said)
WRONG = {
    "no JSON": ("train", lambda c: "{", "train.json cannot be read as JSON"),
    "binary": ("train", lambda c: "\0\1\2", "train.json cannot be read as JSON"),
    "blank file": ("val", lambda c: " ", "val.json cannot be read as JSON"),
    "a list": ("train", lambda c: "[]", "train.json hold a list"),
    "no images": ("train", section("images", None), "have no list 'images'"),
    "no categories": ("train", section("categories", None), "have no list 'categories'"),
    "no annotations": ("train", section("annotations", None), "have no list 'annotations'"),
    "images no list": ("train", section("images", {}), "have no list 'images'"),
    "empty images": ("train", section("images", []), "hold no images"),
    "empty categories": ("train", section("categories", []), "hold no categories"),
    "not one annotation": ("train", section("annotations", []), "hold no annotations"),
    "entry of another kind": ("train", section("annotations", [7]), "entry 0 of annotations lacks"),
    "annotation without box": ("train", annotation(1, bbox=None), "entry 1 .* lacks bbox"),
    "annotation without id": ("train", annotation(0, id=None), "entry 0 .* lacks id"),
    "unknown category": ("train", annotation(2, category_id=7), "annotation 12 .*category_id 7"),
    "category as text": ("train", annotation(2, category_id="5"), "category_id '5'"),
    "category as list": ("train", annotation(2, category_id=[5]), r"category_id \[5\]"),
    "unknown image": ("val", annotation(0, image_id=99), "annotation 10 has the image_id 99"),
    "annotation id twice": ("train", annotation(1, id=10), "ids of annotations more than once: 10"),
    "image id twice": ("train", image(1, id=1), "ids of images more than once: 1"),
    "category id twice": ("train", category(1, id=5), "ids of categories more than once: 5"),
    "id of another kind": ("train", image(1, id=[2]), "an id of images is no id"),
    "three numbers": ("train", annotation(0, bbox=[1, 2, 3]), r"annotation 10 .*\[1, 2, 3\]"),
    "box of text": ("train", annotation(0, bbox=[1, 2, "3", 4]), "four numbers"),
    "box no list": ("train", annotation(3, bbox=7), "annotation 13 has the bbox 7"),
    "empty box": ("train", annotation(3, bbox=[]), "four numbers"),
    "image of no size": ("train", image(0, width=0), "image 1 has the size 0 x 48"),
    "size as text": ("train", image(0, height="48"), "image 1 has the size 64 x '48'"),
    "image without name": ("train", image(0, file_name=""), "image 1 has the file_name ''"),
    "ignored region": ("train", annotation(0, ignore=1), 'annotation 10 has "ignore"'),
    "other category names": ("val", category(1, name="cow"), "id 9 is 'dog' and 'cow'"),
    "other category ids": ("val", category(1, id=8), "id 9 is 'dog' and 'missing'"),
    "another folder": (
        "train",
        all_images_elsewhere,
        "4 images of the training data 4 do not exist",
    ),
    "missing to evaluate": ("val", image(0, file_name="gone.png"), "1 images of .*'own_val'.*gone"),
    "boxes of no size only": ("train", all_boxes(bbox=[3, 3, 0, 5]), "no box that can be learnt"),
    "crowds only": ("train", all_boxes(iscrowd=1), "no box that can be learnt"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_get_one_sentence_before_the_first_step(own_data, run, tmp_path, capsys, case):
    part, change, words = WRONG[case]
    files = {p: own_data(p, change if p == part else None) for p in ("train", "val")}
    assert run(files["train"], files["val"]) == 1
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("train_net.py: ") and re.search(words, last), last
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_missing_files_are_named(own_data, run, tmp_path, capsys):
    train, val = own_data("train"), own_data("val")
    assert run((str(tmp_path / "nowhere"), train[1]), val) == 1
    assert "no folder of images" in capsys.readouterr().err
    assert run(train, (val[0], str(tmp_path / "none.json"))) == 1
    assert "no annotation file" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--train-data", "a", "b"], ["--val-data", "a", "b"]])
def test_half_of_the_data_is_wrong_usage(given, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--config-file", CONFIG, *given])
    assert exit.value.code == 2


def untidy(content):
    boxes = [
        [-4, 5, 16, 12],  # reaches out
        [8, 5, 0, 12],  # no width
        [16, 5, -3, 12],  # negative
        [math.nan, 5, 16, 12],
        [70, 5, 16, 12],  # outside
        [8, 5, 16, 12.0000001],
    ]
    content["annotations"] = [
        {"id": i, "image_id": 1, "category_id": 9, "bbox": box} for i, box in enumerate(boxes)
    ]
    content["annotations"].append(
        {"id": 50, "image_id": 2, "category_id": 5, "bbox": [1, 1, 60, 40], "iscrowd": 1}
    )
    content["images"][3]["file_name"] = "gone.png"


def test_what_can_be_mended_is_and_is_reported(own_data, run, tmp_path, capsys):
    train = own_data("train", untidy)
    assert run(train, own_data("val")) == 0, capsys.readouterr().err
    report = (tmp_path / "out" / "log.txt").read_text()
    for line in (
        "Data for training: 3 images with 2 boxes.",
        r"1 boxes reach outside their image and are clipped: \[-4.*1.png",
        "3 boxes have no size, a negative one, or lie outside .* dropped",
        "1 boxes are not finite numbers and are dropped",
        "1 crowd regions are dropped",
        "2 images have no boxes: .*2.png, .*3.png",
        "1 images do not exist and are left out: .*gone.png",
    ):
        assert re.search(line, report), line


def test_the_ground_truth_is_mended_in_the_same_way(own_data, run, tmp_path):
    def untidy_but_there(content):
        untidy(content)
        content["images"][3]["file_name"] = "4.png"

    assert run(own_data("train"), own_data("val", untidy_but_there)) == 0
    written = json.loads((tmp_path / "out" / "own_val.json").read_text())
    assert [a["bbox"] for a in written["annotations"]] == [
        [0, 5, 12, 12],
        [8, 5, 16, 12.0000001],
        [1, 1, 60, 40],
    ]
    assert [a["iscrowd"] for a in written["annotations"]] == [0, 0, 1]
    assert written["annotations"][0]["area"] == 144


def test_classes_come_from_the_file_and_a_checkpoint_of_others_is_fine_tuned(
    own_data, run, tmp_path
):
    def three(content):
        content["categories"].append({"id": 2, "name": "bird"})

    train, val = own_data("train"), own_data("val")
    assert run(train, val) == 0
    first = torch.load(tmp_path / "out" / "model_final.pth")["model"]
    assert first["transformer.decoder.class_head.weight"].shape[0] == 2
    assert MetadataCatalog.get("own_train").thing_classes == ["cat", "dog"]
    results = json.loads((tmp_path / "out" / "evaluation.json").read_text())["results"]["bbox"]
    assert {"AP-cat", "AP-dog"} <= results.keys()

    weights = tmp_path / "two_classes.pth"
    (tmp_path / "out" / "model_final.pth").rename(weights)
    train, val = own_data("train", three), own_data("val", three)
    tuned = [f"train.init_checkpoint={weights}", "optimizer.lr=0.0"]
    assert run(train, val, *tuned) == 0
    second = torch.load(tmp_path / "out" / "model_final.pth")["model"]
    assert second["transformer.decoder.class_head.weight"].shape[0] == 3
    same = [name for name in first if "class_head" not in name and "running" not in name]
    assert all(torch.equal(first[k], second[k]) for k in same if not k.endswith("tracked"))

    # and the other way round: an evaluation needs nothing but the validation data
    checkpoint = f"train.init_checkpoint={tmp_path / 'out' / 'model_final.pth'}"
    assert run(None, val, "--eval-only", checkpoint) == 0


def test_images_without_boxes_can_be_left_out(own_data, run, tmp_path):
    assert (
        run(own_data("train"), own_data("val"), "dataloader.train.dataset.filter_empty=True") == 0
    )
    assert "Data for training: 3 images with 4 boxes." in (tmp_path / "out" / "log.txt").read_text()


def damage(folder, *names):
    for name in names:
        file = Path(folder) / name
        file.write_bytes(file.read_bytes()[:200])


def test_an_unreadable_image_is_named_and_replaced_up_to_a_limit(own_data, run, tmp_path, capsys):
    train, val = own_data("train"), own_data("val")
    damage(train[0], "2.png")
    assert run(train, val) == 0, capsys.readouterr().err
    log = (tmp_path / "out" / "log.txt").read_text()
    assert log.count("2.png cannot be read") == 1
    assert "Another image takes its place (1 of at most 10)" in log
    assert run(train, val, "train.max_unreadable_images=0") == 1
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert re.search(r"2.png cannot be read: .*train.max_unreadable_images is 0", last)
    # from data workers, too
    damage(train[0], "1.png", "3.png", "4.png")
    limits = ["train.max_unreadable_images=2", "dataloader.train.num_workers=1"]
    assert run(train, val, *limits) == 1
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert re.search(r"\d.png cannot be read.* is 2", last)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_ends_an_evaluation(own_data, run, capsys, workers):
    train, val = own_data("train"), own_data("val")
    damage(val[0], "3.png")
    assert run(train, val, f"dataloader.test.num_workers={workers}") == 1
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert re.fullmatch(r"train_net.py: The image \S+3.png cannot be read: .* needs it: .*", last)


def test_a_wrong_size_in_the_annotations_is_no_sample(own_data, run, capsys):
    train = own_data("train", image(0, width=48, height=64))
    assert run(train, own_data("val"), "train.max_unreadable_images=0") == 1
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert "1.png is 64 x 48 pixels, but its annotation says 48 x 64" in last
