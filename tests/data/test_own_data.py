"""Training on one's own files: wrong files are reported, correctable ones corrected."""

import json
import math
import re
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from digits import write_digits
from PIL import Image

from dab_detr.config import get_config
from dab_detr.data.images import UnreadableImage
from dab_detr.engine.main import main

PARTS = "train", "val"
CONFIG = str(Path(__file__).parents[1] / "assets" / "own_config.py")


@pytest.fixture
def run(tmp_path, in_process):
    """A function that runs train_net.py on data sets of ``own_data``; returns the exit code."""

    def call(train, val, *arguments):
        data = ["--train-data", *train] if train else []
        overrides = [x for x in arguments if "=" in x]
        options = [x for x in arguments if "=" not in x]
        # of two config files the last one counts
        return in_process(
            "--config-file", CONFIG, *data, "--val-data", *val, *options,
            f"train.output_dir={tmp_path / 'out'}", *overrides,
        )  # fmt: skip

    return call


def annotation(index, **values):
    """Changes fields of an annotation; None removes one."""

    def change(content):
        entry = content["annotations"][index]
        entry.update(values)
        for name in [k for k, v in values.items() if v is None]:
            del entry[name]

    return change


def entry_of(name, index, /, **values):
    """Changes fields of an entry of a section."""

    def change(content):
        content[name][index].update(values)

    return change


image = partial(entry_of, "images")
category = partial(entry_of, "categories")


def section(name, value):
    def change(content):
        content[name] = value
        if value is None:
            del content[name]

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
    "a list": ("train", lambda c: "[]", "train.json are a JSON list"),
    "no images": ("train", section("images", None), "have no list 'images'"),
    "no categories": ("train", section("categories", None), "have no list 'categories'"),
    "no annotations": ("train", section("annotations", None), "have no list 'annotations'"),
    "images no list": ("train", section("images", {}), "have no list 'images'"),
    "empty images": ("train", section("images", []), "have no images"),
    "empty categories": ("train", section("categories", []), "have no categories"),
    "not one annotation": ("train", section("annotations", []), "have no annotations"),
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
    "id of another kind": ("train", image(1, id=[2]), r"images have the id \[2\]"),
    "ids of two kinds": ("train", image(1, id="2"), "images have the id '2'"),
    "no id": ("train", category(1, id=None), "categories have the id None"),
    "category ids as text": (
        "train",
        lambda c: json.loads(json.dumps(c).replace('"id": 5', '"id": "5"')),
        "categories have the id '5'",
    ),
    "category without name": ("train", category(1, name=None), "category 9 has the name None"),
    "category with a number": ("train", category(1, name=3), "category 9 has the name 3"),
    "two of one name": ("train", category(1, name="cat"), "name 'cat' for more than one category"),
    "crowd of null": (
        "train",
        lambda c: json.dumps(c).replace('"bbox"', '"iscrowd": null, "bbox"'),
        "annotation 10 has the iscrowd None",
    ),
    "crowd as text": ("train", annotation(0, iscrowd="0"), "annotation 10 has the iscrowd '0'"),
    "beyond all numbers": ("train", annotation(0, bbox=[0, 0, 10**400, 5]), "four numbers"),
    "boxes of no size to evaluate": ("val", all_boxes(bbox=[3, 3, 0, 5]), "no valid box"),
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
        "4 images of the training data, 4 do not exist",
    ),
    "missing to evaluate": (
        "val",
        image(0, file_name="gone.png"),
        "1 images of .*'custom_val'.*gone",
    ),
    "boxes of no size only": ("train", all_boxes(bbox=[3, 3, 0, 5]), "no box to train on"),
    "crowds only": ("train", all_boxes(iscrowd=1), "no box to train on"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_get_one_sentence_before_the_first_step(own_data, run, tmp_path, capsys, case):
    part, change, words = WRONG[case]
    files = {p: own_data(p, change if p == part else None) for p in ("train", "val")}
    assert run(files["train"], files["val"]) == 1
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("train_net.py: ") and re.search(words, last), last
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize(
    "extra",
    [
        {"segmentation": [[]]},
        {"segmentation": [[1, 2, 3, 4]]},
        {"segmentation": [1, 2, 3, 4, 5, 6]},
        {"segmentation": {"counts": [1, 2], "size": [48, 64]}, "keypoints": [1, 2]},
    ],
    ids=str,
)
def test_masks_and_keypoints_do_not_matter(own_data, run, tmp_path, extra):
    train, val = (own_data(part, all_boxes(**extra)) for part in ("train", "val"))
    backend = "dataloader.evaluator.backend=pycocotools"
    assert run(train, val, "train.max_iter=1", backend) == 0
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "Data for training: 4 images with 4 boxes." in log


@pytest.fixture
def registered(own_data, tmp_path):
    """A function that writes a config which registers the data sets; returns its path."""

    def call():
        for name in ("mine_train", "mine_val"):
            if name in DatasetCatalog:
                DatasetCatalog.remove(name)
                MetadataCatalog.remove(name)
        parts = {part: (str(tmp_path / part), str(tmp_path / f"{part}.json")) for part in PARTS}
        config = tmp_path / "mine.py"
        config.write_text(
            "from detectron2.data.datasets import register_coco_instances\n"
            "from dab_detr import get_config\n"
            + "".join(
                f"register_coco_instances('mine_{part}', {{}}, {file!r}, {folder!r})\n"
                for part, (folder, file) in parts.items()
            )
            + f"_base = get_config({CONFIG!r})\n"
            "model, dataloader, optimizer = _base.model, _base.dataloader, _base.optimizer\n"
            "lr_multiplier, train = _base.lr_multiplier, _base.train\n"
            "model.num_classes = 2\n"
            "dataloader.train.dataset.names = 'mine_train'\n"
            "dataloader.test.dataset.names = 'mine_val'\n"
        )
        return str(config)

    yield call
    for name in ("mine_train", "mine_val"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_registered_files_need_no_more_than_those_of_the_command_line(
    own_data, registered, in_process, tmp_path
):
    """No area, no iscrowd, masks that nobody can use."""
    for part in PARTS:
        own_data(part, all_boxes(segmentation=[[1, 2, 3, 4]]))
    out = f"train.output_dir={tmp_path / 'out'}"
    assert in_process("--config-file", registered(), out) == 0
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "Data for training: 4 images with 4 boxes." in log
    assert "Data for evaluation (mine_val): 4 images with 4 boxes." in log
    # without annotations there is nothing but a file of results
    own_data("val", section("annotations", None))
    weights = f"train.init_checkpoint={tmp_path / 'out' / 'model_final.pth'}"
    assert in_process("--config-file", registered(), "--eval-only", out, weights) == 0
    assert (tmp_path / "out" / "inference" / "coco_instances_results.json").is_file()


def test_missing_files_are_named(own_data, run, tmp_path, capsys):
    train, val = own_data("train"), own_data("val")
    assert run((str(tmp_path / "nowhere"), train[1]), val) == 1
    assert "no image folder" in capsys.readouterr().err
    assert run(train, (val[0], str(tmp_path / "none.json"))) == 1
    assert "no annotation file" in capsys.readouterr().err


def test_validation_data_without_training_data_are_wrong_usage(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--config-file", CONFIG, "--val-data", "a", "b"])
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


def test_what_can_be_corrected_is_and_is_reported(own_data, run, tmp_path, capsys):
    train = own_data("train", untidy)
    assert run(train, own_data("val")) == 0, capsys.readouterr().err
    report = (tmp_path / "out" / "log.txt").read_text()
    for line in (
        "Data for training: 3 images with 2 boxes.",
        r"1 boxes extend beyond their image and are clipped: \[-4.*1.png",
        "3 boxes have no size, a negative one, or are outside .* dropped",
        "1 boxes are not finite numbers and are dropped",
        "1 crowd regions are not used for training",
        "2 images have no boxes: .*2.png, .*3.png",
        "1 images do not exist .* left out: .*gone.png",
    ):
        assert re.search(line, report), line


def test_the_ground_truth_is_corrected_in_the_same_way(own_data, run):
    def untidy_but_there(content):
        untidy(content)
        content["images"][3]["file_name"] = "4.png"

    assert run(own_data("train"), own_data("val", untidy_but_there)) == 0
    records = DatasetCatalog.get("custom_val")
    objects = [(r["image_id"], a) for r in records for a in r["annotations"]]
    assert [(i, a["bbox"], a["iscrowd"], a["area"]) for i, a in objects] == [
        (1, [0, 5, 12, 12], 0, 144),
        (1, [8, 5, 16, 12.0000001], 0, 16 * 12.0000001),
        (2, [1, 1, 60, 40], 1, 2400),
    ]


def test_classes_come_from_the_file_and_a_checkpoint_of_others_is_fine_tuned(
    own_data, run, tmp_path
):
    def three(content):
        content["categories"].append({"id": 2, "name": "bird"})

    train, val = own_data("train"), own_data("val")
    assert run(train, val) == 0
    first = torch.load(tmp_path / "out" / "model_final.pth")["model"]
    assert first["transformer.decoder.class_head.weight"].shape[0] == 2
    assert MetadataCatalog.get("custom_train").thing_classes == ["cat", "dog"]
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
    assert "Another image is used instead (1 of at most 10)" in log
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


def narrow(content, folder):
    """The second image becomes one of 3000 x 1 pixels."""
    Image.new("RGB", (3000, 1)).save(Path(folder) / "2.png")
    content["images"][1].update(width=3000, height=1)
    content["annotations"][1]["bbox"] = [5, 0, 400, 1]


def test_an_image_too_narrow_to_be_resized_counts_as_unreadable(own_data, run, tmp_path, capsys):
    train, val = own_data("train"), own_data("val")
    content = json.loads(Path(train[1]).read_text())
    narrow(content, train[0])
    Path(train[1]).write_text(json.dumps(content))
    config = tmp_path / "resized.py"
    config.write_text(
        "import detectron2.data.transforms as T\nfrom detectron2.config import LazyCall as L\n"
        f"from dab_detr import get_config\nbase = get_config({CONFIG!r})\n"
        "model, dataloader, optimizer = base.model, base.dataloader, base.optimizer\n"
        "lr_multiplier, train = base.lr_multiplier, base.train\n"
        "dataloader.train.mapper.augmentations = [\n"
        "    L(T.ResizeShortestEdge)(short_edge_length=32, max_size=64)\n]\n"
    )
    assert run(train, val, "--config-file", str(config)) == 0, capsys.readouterr().err
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "2.png is 3000 x 1 pixels, too narrow to be resized" in log
    assert "Another image is used instead" in log


def test_a_narrow_image_takes_no_memory_by_the_published_crop(own_data, tmp_path):
    """Its short side would become 400 pixels or more, its long side a million."""
    Image.new("RGB", (3000, 1)).save(tmp_path / "line.png")
    mapper = instantiate(get_config("dab_detr_r50_50ep.py").dataloader.train.mapper)
    for _ in range(8):
        with pytest.raises(UnreadableImage, match="3000 x 1 pixels, too narrow"):
            mapper({"file_name": str(tmp_path / "line.png"), "annotations": []})


def test_a_narrow_image_to_evaluate_is_found_before_the_first_step(own_data, run, tmp_path, capsys):
    train, val = own_data("train"), own_data("val")
    content = json.loads(Path(val[1]).read_text())
    narrow(content, val[0])
    Path(val[1]).write_text(json.dumps(content))
    assert run(train, val) == 1
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert "2.png is 3000 x 1 pixels, too narrow to be resized" in last
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("wrong", ["damaged", "another size"])
def test_a_small_set_that_cannot_be_read_at_all_ends_in_a_sentence(
    own_data, run, capsys, workers, wrong
):
    """Fewer images than may be unreadable."""
    train, val = own_data("train"), own_data("val")
    if wrong == "damaged":
        damage(train[0], "1.png", "2.png", "3.png", "4.png")
    else:
        for number in range(1, 5):
            Image.new("RGB", (48, 64)).save(Path(train[0]) / f"{number}.png")
    assert run(train, val, f"dataloader.train.num_workers={workers}") == 1
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert re.search(r"train_net.py: .*[1-4].png .*repair the training data", last)


def test_as_many_detections_are_written_as_the_model_selects(own_data, run, tmp_path):
    """36 queries and 2 classes have 72 pairs, with 6 classes 216; COCO's 100 are per class."""
    six = section("categories", [{"id": i, "name": f"class {i}"} for i in range(4, 10)])
    train, val = own_data("train", six), own_data("val", six)
    assert run(train, val, "model.num_select=216", "train.max_iter=1") == 0
    content = (tmp_path / "out" / "inference" / "coco_instances_results.json").read_text()
    per_image = Counter(found["image_id"] for found in json.loads(content))
    assert per_image == {1: 216, 2: 216, 3: 216, 4: 216}


def test_one_good_image_is_found_among_bad_ones(own_data, run, tmp_path):
    train, val = own_data("train"), own_data("val")
    damage(train[0], "1.png", "2.png", "4.png")
    assert run(train, val, "train.max_unreadable_images=3") == 0


def test_a_wrong_size_in_the_annotations_is_no_sample(own_data, run, capsys):
    train = own_data("train", image(0, width=48, height=64))
    assert run(train, own_data("val"), "train.max_unreadable_images=0") == 1
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert "1.png is 64 x 48 pixels, but its annotation says 48 x 64" in last


def test_small_sets_in_the_layout_of_pascal_voc_train(
    own_data, datasets_root, tmp_path, in_process
):
    """Through Detectron2's registration, which has the ids of images as text."""
    folder, _ = own_data("voc")
    root = tmp_path / "VOC2007"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / name).mkdir(parents=True)
    for number in (1, 2, 3):
        (root / "JPEGImages" / f"{number:06d}.jpg").write_bytes(
            (Path(folder) / f"{number}.png").read_bytes()
        )
        (root / "Annotations" / f"{number:06d}.xml").write_text(
            "<annotation><size><width>64</width><height>48</height></size><object><name>cat</name>"
            "<difficult>0</difficult><truncated>0</truncated><bndbox><xmin>5</xmin><ymin>6</ymin>"
            "<xmax>30</xmax><ymax>20</ymax></bndbox></object></annotation>"
        )
    for part in ("trainval", "test"):
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text("000001\n000002\n000003\n")
    for part in ("trainval", "test"):
        register_pascal_voc(f"small_{part}", str(root), part, 2007, ["bird", "cat"])
        MetadataCatalog.get(f"small_{part}").evaluator_type = "pascal_voc"
    try:
        code = in_process(
            "--config-file", CONFIG, "dataloader.train.dataset.names=[small_trainval]",
            "dataloader.test.dataset.names=small_test", "model.num_classes=2",
            f"train.output_dir={tmp_path / 'out'}", "dataloader.train.total_batch_size=2",
            "train.pictures.tensorboard=1",
        )  # fmt: skip
    finally:
        for part in ("trainval", "test"):
            DatasetCatalog.remove(f"small_{part}")
            MetadataCatalog.remove(f"small_{part}")
    assert code == 0
    results = json.loads((tmp_path / "out" / "evaluation.json").read_text())["results"]["bbox"]
    assert {"AP-bird", "AP-cat"} <= results.keys()


def test_detectron2s_samplers_can_be_used(own_data, run, tmp_path, pytestconfig):
    """The repeat factors refer to the data set, as in docs/TRAINING.md."""
    config = tmp_path / "repeat.py"
    text = (pytestconfig.rootpath / "docs" / "TRAINING.md").read_text()
    sampler = re.search(r"dataloader.train.sampler = .*?\n\)\n", text, re.DOTALL).group()
    config.write_text(
        "from detectron2.config import LazyCall as L\n"
        "from detectron2.data.samplers import RepeatFactorTrainingSampler\n"
        "from dab_detr import get_config\n"
        f"_base = get_config({CONFIG!r})\n"
        "model, dataloader, optimizer = _base.model, _base.dataloader, _base.optimizer\n"
        f"lr_multiplier, train = _base.lr_multiplier, _base.train\n{sampler}"
    )
    train, val = own_data("train"), own_data("val")
    once = ["train.max_iter=1", "--config-file", str(config)]
    assert run(train, val, *once) == 0
    # the image that is missing is not in the sampler's list either
    Path(train[0], "1.png").unlink()
    assert run(train, val, "--resume", "--config-file", str(config)) == 0


def test_digits_are_trained_on_by_the_documented_command(in_process, tmp_path, pytestconfig):
    """For a few steps, with the config of docs/TRAINING.md's example."""
    write_digits(tmp_path, num_train=32, num_val=8)
    data = [[str(tmp_path / part), str(tmp_path / f"{part}.json")] for part in ("train", "val")]
    config = pytestconfig.rootpath / "configs" / "shapes" / "dab_detr_shapes.py"
    code = in_process(
        "--config-file", str(config), "--train-data", *data[0], "--val-data", *data[1],
        f"train.output_dir={tmp_path / 'out'}", "dataloader.train.mapper.augmentations=[]",
        "train.epochs=2", "train.device=cpu", "train.eval_period=null",
    )  # fmt: skip
    assert code == 0
    weights = torch.load(tmp_path / "out" / "model_final.pth")["model"]
    assert len(weights["transformer.decoder.class_head.bias"]) == 10
    results = json.loads((tmp_path / "out" / "evaluation.json").read_text())["results"]["bbox"]
    assert {f"AP-digit {digit}" for digit in range(10)} <= results.keys()


def test_what_the_model_is_fed_is_drawn(own_data, load_tool, tmp_path, capsys, forget_tiny):
    tool = load_tool("visualize_data")
    folder, file = own_data("train")
    data = ["--config-file", CONFIG, "--train-data", folder, file]
    assert tool.main([*data, "--output", str(tmp_path / "seen"), "--count", "3"]) == 0
    pictures = sorted((tmp_path / "seen").glob("*.png"))
    assert len(pictures) == 3
    # the same images in the same order, with the boxes somewhere else: that is what differs
    folder, file = own_data("train", all_boxes(bbox=[30, 20, 16, 12]))
    forget_tiny()
    assert tool.main([*data, "--output", str(tmp_path / "moved"), "--count", "3"]) == 0
    differences = {}
    for picture in pictures:
        with Image.open(picture) as first, Image.open(tmp_path / "moved" / picture.name) as second:
            # enlarged to 480 pixels
            assert first.size == second.size == (640, 480)
            changed = (np.asarray(first) != np.asarray(second)).any(-1)
        differences[picture.stem[-1]] = changed
    assert len(differences) == 3
    for number, changed in differences.items():
        if number == "4":
            assert not changed.any(), "an image without boxes"
        else:
            # lines and labels, not the image
            assert 0.002 < changed.mean() < 0.2

    forget_tiny()
    assert tool.main(["--config-file", CONFIG, "--train-data", folder, "none.json"]) == 1
    assert "visualize_data.py: There is no annotation file" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        tool.main([*data, "--count", "0"])
    assert exit.value.code == 2
