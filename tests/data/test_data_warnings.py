"""Data that are probably not as meant, and images that are not there in less usual ways."""

import json
import re
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog

CONFIG = str(Path(__file__).parents[1] / "assets" / "own_config.py")


@pytest.fixture
def run(own_data, in_process, tmp_path):
    """A function that trains on files changed by functions; returns the exit code and the log."""

    def call(change_train=None, change_val=None):
        train, val = own_data("train", change_train), own_data("val", change_val)
        out = tmp_path / "out"
        code = in_process(
            "--config-file", CONFIG, "--train-data", *train, "--val-data", *val, "train.max_iter=1",
            f"train.output_dir={out}",
        )  # fmt: skip
        log = out / "log.txt"
        return code, log.read_text() if log.exists() else ""

    return call


def boxes(*given, **values):
    """Gives the annotations these boxes in turn, and fields."""

    def change(content):
        for k, entry in enumerate(content["annotations"]):
            if given:
                entry["bbox"] = given[k % len(given)]
            entry.update(values)

    return change


def categories(*entries):
    def change(content):
        content["categories"] = [
            {"id": number, "name": name, "supercategory": above} for number, name, above in entries
        ]

    return change


ROOT = (0, "animals", "none"), (5, "cat", "animals"), (9, "dog", "animals")
WARNED = {
    "relative": (
        r"All boxes of 'custom_train' \(.*train.json\) are within 0..1",
        boxes([0.1, 0.2, 0.5, 0.3]),
        None,
    ),
    "corners": (
        r"Most boxes of 'custom_train' \(.*train.json\) extend beyond",
        boxes([30, 20, 60, 40]),
        None,
    ),
    "crowds": (r"'custom_val' \(.*val.json\) has crowd regions only", None, boxes(iscrowd=1)),
    "root": (r"class 'animals' of \S+train.json has no annot", *[categories(*ROOT)] * 2),
    "areas": ("4 areas are not positive numbers; the areas of the boxes", boxes(area=-3), None),
}


@pytest.mark.parametrize("case", WARNED)
def test_what_is_probably_not_as_meant_is_reported(run, case):
    words, *changes = WARNED[case]
    code, log = run(*changes)
    assert code == 0 and len(re.findall(words, log)) == 1


def test_nothing_is_said_of_data_as_they_should_be(run):
    code, log = run()
    assert code == 0 and not [words for words, *_ in WARNED.values() if re.search(words, log)]


def test_boxes_that_overshoot_by_a_pixel_are_left_as_they_are(run):
    """They count pixels, or are rounded."""
    code, log = run(boxes([50, 40, 14.6, 8.5], [-0.5, -1, 20, 20]))
    assert code == 0 and "clipped" not in log


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("above", ["none", ""])
def test_a_root_with_the_name_of_a_class_is_no_class(run, order, above):
    change = categories(*[(0, "cat", above), (5, "cat", "cat"), (9, "dog", "cat")][::order])
    code, log = run(change, change)
    assert code == 0
    assert MetadataCatalog.get("custom_train").thing_classes == ["cat", "dog"]
    assert MetadataCatalog.get("custom_val").thing_dataset_id_to_contiguous_id == {5: 0, 9: 1}


def test_a_byte_order_mark_is_read(run, tmp_path):
    def marked(content):
        return "\ufeff" + json.dumps(content)

    code, _ = run(marked, marked)
    assert code == 0


def test_one_class_has_its_own_number_as_well(run, tmp_path):
    change = categories((5, "cat", "animals"))
    code, _ = run(change, change)
    assert code == 0
    results = json.loads((tmp_path / "out" / "evaluation.json").read_text())["results"]["bbox"]
    assert results["AP-cat"] == results["AP"] is not None


def dangling(file):
    file.unlink()
    file.symlink_to(file.with_name("gone.png"))


def folder(file):
    file.unlink()
    file.mkdir()


def closed(file):
    """A link into itself cannot be read by anybody, not even by root."""
    file.unlink()
    file.symlink_to(file)


def no_image(file):
    file.write_text("<html>404</html>")


def empty(file):
    file.write_bytes(b"")


@pytest.mark.parametrize("spoil", [Path.unlink, dangling, folder, closed, no_image, empty])
def test_images_that_cannot_be_evaluated_are_found_before_the_first_step(
    own_data, in_process, tmp_path, capsys, spoil
):
    train, val = own_data("train"), own_data("val")
    spoil(Path(val[0]) / "3.png")
    code = in_process(
        "--config-file", CONFIG, "--train-data", *train, "--val-data", *val,
        f"train.output_dir={tmp_path / 'out'}",
    )  # fmt: skip
    assert code == 1
    *_, last = capsys.readouterr().err.strip().splitlines()
    found = r"1 images of the data set .custom_val. \(.*\) do not exist or .*3.png"
    assert re.search(found, last), last
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/3.png", "nowhere://bucket/3.png"])
def test_remote_images_are_looked_for_as_well(run, capsys, address):
    def elsewhere(content):
        content["images"][2]["file_name"] = address

    code, _ = run(None, elsewhere)
    assert code == 1
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert re.search(
        f"1 images of the data set 'custom_val' .* The image {address} cannot be", last
    )


def test_images_of_another_size_are_found_before_the_first_step(run, capsys, tmp_path):
    def turned(content):
        content["images"][0].update(width=48, height=64)

    code, _ = run(None, turned)
    assert code == 1
    assert "1.png is 64 x 48 pixels, but its annotation says 48 x 64" in capsys.readouterr().err
    assert not (tmp_path / "out" / "metrics.json").exists()
