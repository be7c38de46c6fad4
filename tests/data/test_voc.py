"""Pascal VOC's layout as people have it: parts missing, decimals, classes that are not listed."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from PIL import Image

from dab_detr.data.voc import read_annotation, voc_images
from dab_detr.errors import InputError

CONFIG = str(Path(__file__).parents[1] / "assets" / "own_config.py")
PLAIN = (
    "<object><name>{name}</name><bndbox><xmin>5.4</xmin><ymin>6</ymin><xmax>30.2</xmax>"
    "<ymax>20</ymax></bndbox></object>"
)
COMPLETE = (
    "<object><name>cat</name><pose>Left</pose><truncated>0</truncated><difficult>{difficult}"
    "</difficult><bndbox><xmin>8</xmin><ymin>9</ymin><xmax>40</xmax><ymax>30</ymax></bndbox>"
    "</object>"
)


@pytest.fixture
def voc(tmp_path):
    """A function that registers ``voc_train`` and ``voc_test`` of three images with the objects."""

    def write(*objects):
        root = tmp_path / "VOC2007"
        for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (root / name).mkdir(parents=True)
        for number in (1, 2, 3):
            pixels = np.random.RandomState(number).randint(0, 256, (48, 64, 3), np.uint8)
            Image.fromarray(pixels).save(root / "JPEGImages" / f"{number:06d}.jpg")
            (root / "Annotations" / f"{number:06d}.xml").write_text(
                "<annotation><size><width>64</width><height>48</height></size>"
                f"{''.join(objects)}</annotation>"
            )
        for part in ("train", "test"):
            (root / "ImageSets" / "Main" / f"{part}.txt").write_text("000001\n000002\n000003\n")
            register_pascal_voc(f"voc_{part}", str(root), part, 2007, ["bird", "cat"])
        return root

    yield write
    for name in ("voc_train", "voc_test"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.fixture
def run(in_process, tmp_path, pytestconfig):
    """A function that runs the evaluator of docs/TRAINING.md's voc.py in a tiny training."""

    def call(evaluator="VOCEvaluator", *arguments):
        place = {
            "VOCEvaluator": "dab_detr.evaluation.voc_evaluator",
            "PascalVOCDetectionEvaluator": "detectron2.evaluation",
        }
        config = tmp_path / "voc.py"
        config.write_text(
            "from detectron2.config import LazyCall as L\n"
            f"from {place[evaluator]} import {evaluator}\n"
            "from dab_detr import get_config\n"
            f"base = get_config({CONFIG!r})\n"
            "model, dataloader, optimizer = base.model, base.dataloader, base.optimizer\n"
            "lr_multiplier, train = base.lr_multiplier, base.train\n"
            "model.num_classes = 2\n"
            "dataloader.train.dataset.names = 'voc_train'\n"
            "dataloader.train.total_batch_size = 2\n"
            "dataloader.test.dataset.names = 'voc_test'\n"
            f"dataloader.evaluator = L({evaluator})(dataset_name='voc_test')\n"
        )
        return in_process(
            "--config-file", str(config), f"train.output_dir={tmp_path / 'out'}", *arguments
        )

    return call


def test_files_without_pose_and_difficult_and_with_decimals_are_evaluated(voc, run, tmp_path):
    voc(PLAIN.format(name="bird"), COMPLETE.format(difficult=1))
    assert run() == 0
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["results"]["bbox"]
    assert {"AP", "AP50", "AP75"} == found.keys()
    records = DatasetCatalog.get("voc_test")
    assert [x["category_id"] for x in records[0]["annotations"]] == [0, 1]
    assert records[0]["annotations"][0]["bbox"] == pytest.approx([4.4, 5, 30.2, 20])


def test_a_list_of_images_may_begin_with_a_byte_order_mark(voc):
    root = voc(PLAIN.format(name="bird"))
    (root / "ImageSets" / "Main" / "test.txt").write_bytes(b"\xef\xbb\xbf000001\r\n000002\r\n")
    images = voc_images(str(root), "test", ["bird"])
    assert [Path(image.path).stem for image in images] == ["000001", "000002"]


def test_the_metric_is_detectron2s(voc):
    """Of complete files both evaluators make the same, for predictions good and bad."""
    import torch
    from detectron2.evaluation import PascalVOCDetectionEvaluator
    from detectron2.structures import Boxes, Instances

    from dab_detr.evaluation.voc_evaluator import VOCEvaluator

    voc(COMPLETE.format(difficult=0))
    scores = []
    for kind in (VOCEvaluator, PascalVOCDetectionEvaluator):
        evaluator = kind("voc_test")
        evaluator.reset()
        for number in (1, 2, 3):
            boxes = torch.tensor([[7.0, 8.0, 40.0 - 3 * number, 30.0], [0.0, 0.0, 5.0, 5.0]])
            instances = Instances(
                (48, 64), pred_boxes=Boxes(boxes), scores=torch.tensor([0.9, 0.8 + number / 10]),
                pred_classes=torch.tensor([1, 1]),
            )  # fmt: skip
            evaluator.process([{"image_id": f"{number:06d}"}], [{"instances": instances}])
        scores.append(evaluator.evaluate()["bbox"])
    assert scores[0]["AP"] > 0
    for name, value in scores[1].items():
        assert scores[0][name] == pytest.approx(value, nan_ok=True)


WRONG = {
    "another class": (PLAIN.format(name="Cat"), "000001.xml has an object of the class 'Cat'"),
    "no name": ("<object><bndbox/></object>", "000001.xml has an object without a name"),
    "no box": ("<object><name>cat</name></object>", "000001.xml lacks object/bndbox/xmin"),
    "no number": (PLAIN.format(name="cat").replace("5.4", "five"), "has 'five' as object/bndbox"),
    "not finite": (PLAIN.format(name="cat").replace("5.4", "nan"), "has 'nan' as object/bndbox"),
    "no XML": ("<object>", "000001.xml cannot be read as XML"),
}


@pytest.mark.parametrize(
    "start, encoding",
    [("", "utf-8-sig"), ('<?xml version="1.0" encoding="ISO-8859-1"?>', "latin-1"), ("", "utf-16")],
)
def test_files_are_read_in_their_encoding(tmp_path, start, encoding):
    file = tmp_path / "1.xml"
    size = "<size><width>64</width><height>48</height></size>"
    content = f"{start}<annotation>{size}{PLAIN.format(name='Bär')}</annotation>"
    file.write_bytes(content.encode(encoding))
    (found,) = read_annotation(file).objects
    assert found.name == "Bär" and found.box == (5.4, 6, 30.2, 20)


def test_an_encoding_that_nobody_knows_is_a_sentence(tmp_path):
    file = tmp_path / "1.xml"
    file.write_text('<?xml version="1.0" encoding="klingon"?><annotation/>')
    with pytest.raises(InputError, match="1.xml cannot be read as XML.*klingon"):
        read_annotation(file)


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_named_before_the_first_step(voc, run, tmp_path, capsys, case):
    objects, words = WRONG[case]
    voc(objects)
    assert run() == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_detectron2s_own_evaluator_says_before_the_first_step_what_it_cannot_read(
    voc, run, tmp_path, capsys
):
    voc(PLAIN.format(name="cat"))
    assert run("PascalVOCDetectionEvaluator") == 1
    error = capsys.readouterr().err
    assert "000001.xml: it needs pose" in error and "VOCEvaluator" in error
    assert not (tmp_path / "out" / "metrics.json").exists()
