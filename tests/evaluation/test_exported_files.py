"""The evaluation of exported files: their images, their results, and what is refused."""

import json
import os
from pathlib import Path

import onnx
import programs
import pytest
import torch
from detections import as_after_training, assert_same_but_for_rounding
from detectron2.structures import Boxes, Instances
from onnx import TensorProto, helper

from dab_detr.checkpoint.description import description_of
from dab_detr.checkpoint.reading import read_checkpoint
from dab_detr.checkpoint.writing import write_state
from dab_detr.exported import KEY, ExportMetadata
from dab_detr.inference.export import export_model, metadata_of
from dab_detr.inference.export.writing import save_openvino
from dab_detr.inference.loading import load

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "tests" / "assets" / "tiny_config.py")
NAMES = ("rectangle", "ellipse", "triangle")


def evaluated(in_process, weights, folder, *arguments):
    """The metrics, and the detections of each image, of an evaluation without a training."""
    assert in_process(
        "--config-file", CONFIG, "--eval-only", "--weights", str(weights),
        f"train.output_dir={folder}", *arguments,
    ) == 0  # fmt: skip
    found = {}
    for record in records_in(folder):
        found.setdefault(record["image_id"], []).append(record)
    results = json.loads((folder / "evaluation.json").read_text())["results"]
    return results["bbox"], {image: instances(records) for image, records in found.items()}


def records_in(folder):
    return json.loads((folder / "inference" / "coco_instances_results.json").read_text())


def instances(records):
    boxes = torch.tensor([x["bbox"] for x in records])
    boxes[:, 2:] += boxes[:, :2]
    return Instances(
        (64, 64),
        pred_boxes=Boxes(boxes),
        scores=torch.tensor([x["score"] for x in records]),
        pred_classes=torch.tensor([x["category_id"] for x in records]),
    )


def assert_same(first, second):
    assert first[1].keys() == second[1].keys() and len(first[1]) == 8
    for image, found in first[1].items():
        assert_same_but_for_rounding(found, second[1][image])
    assert first[0] == pytest.approx(second[0], abs=0.05, nan_ok=True)


@pytest.fixture
def simple_file(tmp_path):
    """A function that writes an ONNX file with the given description.

    In each image it detects one ellipse, with a score of a thousandth of the image's height in
    pixels, whose box begins in the middle of the image and is as large as the image.
    """

    def write(class_names=NAMES, short_edge=None, max_size=None):
        nodes = [
            helper.make_node("Cast", ["image_sizes"], ["sizes"], to=TensorProto.FLOAT),
            helper.make_node("Split", ["sizes"], ["h", "w"], axis=1, num_outputs=2),
            helper.make_node("Concat", ["w", "h"], ["wh"], axis=1),
            helper.make_node("Mul", ["wh", "half"], ["first"]),
            helper.make_node("Add", ["wh", "first"], ["second"]),
            helper.make_node("Concat", ["first", "second"], ["box"], axis=1),
            helper.make_node("Unsqueeze", ["box", "axis"], ["boxes"]),
            helper.make_node("Mul", ["h", "thousandth"], ["scores"]),
            helper.make_node("Greater", ["scores", "zero"], ["positive"]),
            helper.make_node("Cast", ["positive"], ["labels"], to=TensorProto.INT64),
        ]
        constants = [
            helper.make_tensor(name, kind, [1], [value])
            for name, kind, value in (
                ("half", TensorProto.FLOAT, 0.5),
                ("thousandth", TensorProto.FLOAT, 1e-3),
                ("zero", TensorProto.FLOAT, 0.0),
                ("axis", TensorProto.INT64, 1),
            )
        ]
        inputs = [
            helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["b", 3, "height", "width"]),
            helper.make_tensor_value_info("image_sizes", TensorProto.INT64, ["b", 2]),
        ]
        outputs = [
            helper.make_tensor_value_info(name, kind, shape)
            for name, kind, shape in (
                ("boxes", TensorProto.FLOAT, ["b", 1, 4]),
                ("scores", TensorProto.FLOAT, ["b", 1]),
                ("labels", TensorProto.INT64, ["b", 1]),
            )
        ]
        graph = helper.make_graph(nodes, "simple", inputs, outputs, constants)
        opsets = [helper.make_opsetid("", 18)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        metadata = ExportMetadata(tuple(class_names), short_edge, max_size)
        helper.set_model_props(model, {KEY: metadata.to_json()})
        onnx.save(model, tmp_path / "simple.onnx")
        return tmp_path / "simple.onnx"

    return write


RESIZE = (
    "dataloader.test.mapper.augmentations=[{_target_:"
    " detectron2.data.transforms.ResizeShortestEdge, short_edge_length: 72, max_size: 96}]"
)


@pytest.mark.parametrize(
    "rule, height, sentence",
    [
        ((40, None), 40, "images are resized to a shorter side of 40 pixels, as"),
        ((90, 80), 80, "to a shorter side of 90 pixels and a longer one of at most 80, as"),
        ((None, None), 64, "images are not resized, as the file says"),
    ],
    ids=str,
)
def test_images_are_resized_as_the_file_says(
    in_process, simple_file, tmp_path, rule, height, sentence
):
    evaluated(in_process, simple_file(NAMES, *rule), tmp_path, RESIZE)
    records = records_in(tmp_path)
    assert len(records) == 8
    for record in records:
        assert record["category_id"] == 2
        assert record["score"] == pytest.approx(height / 1000)
        # in the image itself, and clipped to it
        assert record["bbox"] == pytest.approx([32, 32, 32, 32])
    assert sentence in (tmp_path / "log.txt").read_text()
    assert len(list((tmp_path / "predictions").glob("*.png"))) == 2


def test_several_processes_share_the_images(simple_file, datasets_root, tmp_path):
    result = programs.run(
        ROOT / "train_net.py", "--config-file", CONFIG, "--eval-only", "--num-gpus", "2",
        "--weights", simple_file(), f"train.output_dir={tmp_path}",
        env={**os.environ, "DETECTRON2_DATASETS": str(datasets_root)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    records = records_in(tmp_path)
    assert len({record["image_id"] for record in records}) == len(records) == 8


def test_names_that_are_not_known_have_the_right_number(in_process, simple_file, tmp_path):
    file = simple_file([f"class {i}" for i in range(3)])
    assert len(evaluated(in_process, file, tmp_path)[1]) == 8


@pytest.mark.parametrize(
    "names, difference",
    [
        (("rectangle", "triangle", "ellipse"), "class 1 is 'triangle' and 'ellipse'"),
        (("rectangle", "ellipse"), "class 2 is missing and 'triangle'"),
        ((*NAMES, "star"), "class 3 is 'star' and missing"),
        (("class 0", "class 1"), "class 0 is 'class 0' and 'rectangle'"),
    ],
)
def test_other_classes_are_refused(in_process, simple_file, tmp_path, capsys, names, difference):
    message = refused(in_process, simple_file(names), tmp_path, capsys)
    assert message.startswith(f"{tmp_path}/simple.onnx has other classes than the data set 'tiny_")
    assert f"val.json): {difference}; evaluate it on data with the same classes" in message


def test_files_that_cannot_be_used_are_refused(in_process, simple_file, tmp_path, capsys):
    file = simple_file()
    for suffix, words in (
        (".xml", "cannot be loaded"),
        (".pt2", "can run any code while it is loaded: if you trust whoever made it, load it with"),
    ):
        other = file.with_suffix(suffix)
        other.write_bytes(file.read_bytes()[:300])
        assert words in refused(in_process, other, tmp_path, capsys)
    message = refused(in_process, file.with_name("nothing.onnx"), tmp_path, capsys)
    assert message.startswith(f"There is no checkpoint file {tmp_path}/nothing.onnx")
    message = refused(in_process, file, tmp_path, capsys, "dataloader.test.mapper=null")
    assert "no dataloader.test.mapper, in which to resize images" in message


def refused(in_process, file, folder, capsys, *arguments):
    code = in_process(
        "--config-file", CONFIG, "--eval-only", "--weights", str(file),
        f"train.output_dir={folder / 'refused'}", *arguments,
    )  # fmt: skip
    assert code == 1
    *_, last = capsys.readouterr().err.strip().splitlines()
    return last.removeprefix("train_net.py: ")


@pytest.mark.long
def test_files_have_the_results_of_their_checkpoint(in_process, trained, tmp_path):
    """Their resize rule is the one of the training, 72 to 96 pixels; the config has none."""
    import openvino

    loaded = load(trained / "model_final.pth", device="cpu")
    checkpoint = read_checkpoint(str(trained / "model_final.pth"))
    description = description_of(checkpoint, "")
    as_after_training(loaded.model)
    weights = tmp_path / "model.pth"
    write_state(loaded.model.state_dict(), weights, description)
    onnx_file = tmp_path / "model.onnx"
    metadata = metadata_of(loaded)
    assert (metadata.short_edge, metadata.max_size) == (72, 96)
    export_model(loaded.model, onnx_file, metadata, format="onnx", check=False)
    openvino_file = onnx_file.with_suffix(".xml")
    save_openvino(openvino.convert_model(onnx_file), openvino_file, metadata)

    model = ["model.transformer.queries.temperature=30", "model.pixel_mean=[100.0,110.0,120.0]"]
    expected = evaluated(in_process, weights, tmp_path / "checkpoint", *model, RESIZE)
    assert expected[0]["AP50"] > 0 and len(expected[1]) == 8
    for file in (onnx_file, openvino_file):
        folder = tmp_path / file.suffix
        found = evaluated(in_process, file, folder, "dataloader.test.mapper.image_format=BGR")
        assert_same(found, expected)
    # with the config's own sizes the result is another
    other = evaluated(in_process, weights, tmp_path / "other", *model)
    with pytest.raises(AssertionError):
        assert_same(other, expected)
