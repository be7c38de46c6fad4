"""Exported files: what they compute, what they say about themselves, what is refused."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from detections import as_after_training
from detectron2.data.transforms import AugInput, ResizeShortestEdge
from detectron2.layers import Conv2d
from PIL import Image
from torch import nn

from dab_detr.cli.main import main
from dab_detr.data.images import read_image
from dab_detr.errors import InputError
from dab_detr.exported import KEY, Detections, ExportMetadata
from dab_detr.inference.copy import inference_copy
from dab_detr.inference.export import FORMATS, export_model
from dab_detr.inference.export import export as exporting
from dab_detr.inference.export.check import (
    TOLERANCES,
    CheckFailed,
    Comparison,
    check_images,
    compare,
    compare_image,
)
from dab_detr.inference.export.quantization import (
    calibration_images,
    quantize_onnx,
    quantize_openvino,
)
from dab_detr.inference.export.writing import save_openvino, write_onnx
from dab_detr.inference.predictor import Predictor
from dab_detr.inference.runtimes import load_exported, openvino_core
from dab_detr.modeling.meta_arch import padding_mask_of

METADATA = ExportMetadata(("cat", "dog", "bird"), short_edge=64, max_size=107)
HALF = replace(METADATA, precision="fp16")
# alone, and in batches with padding in either direction or in both; the last is one row of cells
SIZES = [[(64, 80)], [(33, 57), (33, 20), (12, 57)], [(96, 64), (40, 90)], [(5, 40)]]


@pytest.fixture
def model(small_model):
    """As after a training: outputs depend on everything."""
    return as_after_training(small_model(num_encoder_layers=1, num_select=12)).eval()


@torch.no_grad()
def assert_same_detections(run, model):
    """``run`` maps pixels and sizes to boxes, scores and labels; rounding may exchange ranks."""
    for sizes in SIZES:
        images = [torch.randint(256, (3, *size), dtype=torch.uint8) for size in sizes]
        height, width = (max(x) for x in zip(*sizes))
        # whatever is in the padding
        pixels = torch.randint(256, (len(sizes), 3, height, width), dtype=torch.uint8)
        for padded, image in zip(pixels, images):
            padded[:, : image.shape[1], : image.shape[2]] = image
        outputs = run(pixels.numpy(), np.array(sizes))
        expected = model([{"image": image} for image in images])
        for boxes, scores, labels, size, result in zip(*outputs, sizes, expected):
            assert (boxes.shape, scores.shape) == ((12, 4), (12,)) and (np.diff(scores) <= 0).all()
            boxes = boxes.clip(0, np.tile(size[::-1], 2))
            found = np.c_[labels, scores, boxes / 100][(boxes[:, 2:] > boxes[:, :2]).all(1)]
            result = result["instances"]
            parts = result.pred_classes, result.scores, result.pred_boxes.tensor / 100
            wanted = np.c_[tuple(x.numpy() for x in parts)]
            distance = np.abs(found[:, None] - wanted).max(-1)
            assert distance.min(0).max() < 1e-4 and distance.min(1).max() < 1e-4


def export(model, folder, format, metadata=METADATA, **options):
    shown = []
    path = folder / f"model{FORMATS[format].suffixes[0]}"
    export_model(model, path, metadata, format=format, show=shown.append, **options)
    return path, shown


WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision", "detectron2", "fvcore", "iopath", "omegaconf"):
    sys.modules[name] = None
import json
from dab_detr.onnx_predictor import OnnxPredictor
predictor = OnnxPredictor(sys.argv[1])
found = predictor(sys.argv[2], score_threshold=float(sys.argv[3]))
print(json.dumps([*(x.tolist() for x in found), predictor.class_names]))
"""


@torch.no_grad()
def assert_predicts_without_torch(path, model, folder):
    # 90 x 50 pixels that the camera's orientation turns
    pixels = torch.randint(256, (6, 10, 3), dtype=torch.uint8).repeat_interleave(9, 1)
    image = Image.fromarray(pixels.repeat_interleave(9, 0).numpy()[:50])
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "image.png", exif=exif)
    augmentation = ResizeShortestEdge(64, 107)
    upright = AugInput(read_image(folder / "image.png"))
    augmentation(upright)
    assert upright.image.shape == (107, 59, 3)
    resized = torch.from_numpy(upright.image.transpose(2, 0, 1).copy())
    (expected,) = model([{"image": resized, "height": 90, "width": 50}])
    expected = expected["instances"]
    threshold = float(expected.scores[4:6].mean())
    expected = expected[:5]
    result = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            WITHOUT_TORCH,
            path,
            folder / "image.png",
            str(threshold),
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    scores, labels, boxes, names = json.loads(result.stdout)
    assert names == ["cat", "dog", "bird"]
    assert labels == expected.pred_classes.tolist()
    np.testing.assert_allclose(scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(boxes, expected.pred_boxes.tensor, atol=1e-2)


def test_onnx(model, tmp_path):
    import onnx
    import onnxruntime

    path, (table,) = export(model, tmp_path, "onnx")
    for row in ("| single images  | 240 ", "| padded batches | 240 ", "| at most        |  "):
        assert row in table
    content = onnx.load(path)
    assert [x.name for x in tmp_path.iterdir()] == [path.name]
    assert content.opset_import[0].version >= 17
    operators = [node.op_type for node in content.graph.node]
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    # the norm after the last layer is used once
    assert operators.count("LayerNormalization") == len(norms)
    # the values of the attention have no padding of zeros
    # (one adds no columns: sizes, which only points lack)
    assert operators.count("Pad") == 1
    shapes = {
        value.name: [x.dim_param or x.dim_value for x in value.type.tensor_type.shape.dim]
        for value in (*content.graph.input, *content.graph.output)
    }
    assert shapes == {
        "pixels": ["batch", 3, "height", "width"],
        "image_sizes": ["batch", 2],
        "boxes": ["batch", 12, 4],
        "scores": ["batch", 12],
        "labels": ["batch", 12],
    }
    session = onnxruntime.InferenceSession(path)
    text = session.get_modelmeta().custom_metadata_map[KEY]
    assert {"class_names": ["cat", "dog", "bird"], "short_edge": 64}.items() <= json.loads(
        text
    ).items()

    def run(pixels, sizes):
        return session.run(["boxes", "scores", "labels"], {"pixels": pixels, "image_sizes": sizes})

    assert_same_detections(run, model)
    found = load_exported(path)([torch.zeros(3, *size).byte() for size in ((9, 9), (50, 20))])
    assert [x.boxes_xyxy.shape for x in found] == [(12, 4)] * 2
    assert_predicts_without_torch(path, model, tmp_path)
    image = tmp_path / "image.png"
    predict = Predictor(path)
    found = predict(image, score_threshold=0)
    settings = {"class_names": predict.class_names, "short_edge": 64, "max_size": 107}
    expected = Predictor(model, **settings)(image, score_threshold=0)
    assert found.image_size == (90, 50) and found.names == expected.names
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    with pytest.raises(InputError, match="leave config, device and bf16 out"):
        Predictor(path, bf16=True)
    arguments = f"predict --weights {path} --input {image} --output {tmp_path}/found"
    assert main(arguments.split()) == 0 and len(list(tmp_path.glob("found/image.*"))) == 1

    import openvino

    save_openvino(openvino.convert_model(path), tmp_path / "model.xml", METADATA)
    runtime = load_exported(tmp_path / "model.xml")
    assert runtime.metadata == METADATA and runtime.computes.endswith("fp32, computing in f32")
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino_core().compile_model(tmp_path / "model.xml", "CPU", settings)

    def run_openvino(pixels, sizes):
        outputs = compiled({"pixels": pixels, "image_sizes": sizes})
        return [outputs[name].copy() for name in ("boxes", "scores", "labels")]

    assert_same_detections(run_openvino, model)
    assert_quantized(model, path)


def assert_quantized(model, path):
    """Only the backbone's convolutions are, and detections are nearly the same."""
    import onnx

    images = check_images(METADATA, 8)
    arrays = [image.numpy() for image in images]
    metadata = replace(METADATA, precision="int8")
    quantize_onnx(path, metadata, arrays)
    quantize_openvino(path.with_suffix(".xml"), metadata, arrays)

    convolutions = sum(isinstance(x, Conv2d) for x in model.backbone.modules())
    content = onnx.load(path)
    integers = [x.name for x in content.graph.initializer if x.data_type == 3 and x.dims[1:]]
    assert len(integers) == convolutions and all("core.backbone" in name for name in integers)
    ops = openvino_core().read_model(path.with_suffix(".xml")).get_ops()
    integers = [
        x for x in ops if x.get_type_name() == "Constant" and "int8" in str(x.get_element_type())
    ]
    assert len(integers) == convolutions

    for runtime in (load_exported(path), load_exported(path.with_suffix(".xml"))):
        assert runtime.metadata == metadata and "int8" in runtime.computes
        single = compare(model, runtime, images)["single images"]
        # differences are seen, and small
        assert 1e-4 < single.scores < 0.05 and single.boxes < 10


# a machine that has PyTorch, but neither this project nor Detectron2
ONLY_TORCH = """
import sys
sys.modules.update(dict.fromkeys(("dab_detr", "detectron2", "fvcore", "torchvision")))
import numpy, torch
module = torch.export.load(sys.argv[1]).module()
pixels, sizes = (torch.from_numpy(numpy.load(name)) for name in sys.argv[2:4])
with torch.no_grad():
    numpy.savez(sys.argv[4], *(x.numpy() for x in module(pixels, sizes)))
"""


@pytest.mark.long
def test_torch_export_and_float16(model, tmp_path, monkeypatch):
    path, _ = export(model, tmp_path, "torch_export", metadata=HALF)
    with pytest.raises(InputError, match="model.pt2 can run any code .* trust=True"):
        load_exported(path)
    runtime = load_exported(path, trust=True)
    assert runtime.metadata == HALF

    def run(pixels, sizes):
        outputs = tmp_path / "outputs.npz"
        np.save(tmp_path / "pixels.npy", pixels)
        np.save(tmp_path / "sizes.npy", sizes)
        subprocess.run(
            [
                *(sys.executable, "-W", "ignore", "-c", ONLY_TORCH, path),
                *(tmp_path / name for name in ("pixels.npy", "sizes.npy", "outputs.npz")),
            ],
            check=True,
        )
        return list(np.load(outputs).values())

    monkeypatch.setattr(f"{__name__}.SIZES", SIZES[1:2])
    assert_same_detections(run, rounded(model))
    assert_half_the_size(path, rounded(model))


SIGNAL_AFTERWARDS = """
import os, signal, sys, threading
from dab_detr.inference.runtimes import load_exported
# the handlers of Python use the thread's signal stack
signal.signal(signal.SIGUSR2, lambda number, frame: print("handled"))
models = [load_exported(sys.argv[1])]
thread = threading.Thread(target=models.clear)
thread.start()
thread.join()
os.kill(os.getpid(), signal.SIGUSR2)
"""


def test_a_signal_after_another_thread_has_freed_an_openvino_model(tmp_path):
    import openvino
    from openvino import opset13

    pixels = opset13.parameter([1, 3, 8, 8], np.uint8)
    save_openvino(openvino.Model([pixels], [pixels]), path := tmp_path / "model.xml", METADATA)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SIGNAL_AFTERWARDS, path],
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (0, "handled\n"), result.stderr


def rounded(model):
    """As :func:`inference_copy`, with the weights that float16 keeps of its own."""
    result = inference_copy(model)
    for module in result.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.data = module.weight.half().float()
    return result


def assert_half_the_size(path, expected):
    """The traced model, and the ONNX and OpenVINO files of it, have weights in float16."""
    import onnx
    import openvino

    program = torch.export.load(path)
    weights = [
        module.weight.shape.numel()
        for module in expected.modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]

    def sizes(tensors, half):
        return sorted(math.prod(shape) for kind, shape in tensors if kind == half)

    state = [(x.dtype, x.shape) for x in program.state_dict.values()]
    assert sizes(state, torch.float16) == sorted(weights)
    onnx_path = path.with_suffix(".onnx")
    write_onnx(program, onnx_path, HALF)
    initializers = [(x.data_type, x.dims) for x in onnx.load(onnx_path).graph.initializer]
    halves = sizes(initializers, onnx.TensorProto.FLOAT16)
    assert max(weights) in halves and 0.9 < sum(halves) / sum(weights) < 1.01
    save_openvino(openvino.convert_model(onnx_path), path.with_suffix(".xml"), HALF)
    assert path.with_suffix(".bin").stat().st_size < 2.2 * sum(weights)

    for suffix in (".onnx", ".xml"):
        runtime = load_exported(path.with_suffix(suffix))
        assert runtime.metadata == HALF and "fp16" in runtime.computes
        assert compare(expected, runtime, check_images(HALF, 4))["padded batches"].passes("fp16")


def test_a_file_that_differs_does_not_stay(model, tmp_path, monkeypatch):
    """The check itself, with a stand-in for the traced model and its file."""
    kind = FORMATS["torch_export"]

    def write(program, path, metadata):
        path.write_text("")

    @torch.no_grad()
    def changed(images):
        inputs = model.preprocess_image([{"image": torch.from_numpy(x)} for x in images])
        logits, boxes = model.core(inputs.tensor, padding_mask_of(inputs))
        found = model.inference(logits, boxes, inputs.image_sizes)
        return [
            Detections(
                x.scores.numpy(), x.pred_classes.numpy(), x.pred_boxes.tensor.numpy() + shift
            )
            for x in found
        ]

    changed.metadata, changed.computes = METADATA, "a stand-in"
    monkeypatch.setitem(FORMATS, "torch_export", kind._replace(write=write))
    monkeypatch.setattr(exporting, "trace", lambda graph: None)
    monkeypatch.setattr(exporting, "load_exported", lambda path, trust: changed)
    shift = 0.2
    with pytest.raises(CheckFailed, match="more than the tolerance of fp32"):
        export(model, tmp_path, "torch_export")
    assert not list(tmp_path.iterdir())
    assert export(model, tmp_path, "torch_export", check=False)[1] == []
    with pytest.raises(InputError, match="model.pt2 exists.*--force"):
        export(model, tmp_path, "torch_export")
    shift = 0.05
    path, (table,) = export(model, tmp_path, "torch_export", force=True)
    assert "| single images  | 240          | 0.05 " in table and path.is_file()


def test_the_command_takes_what_the_checkpoint_says(trained, tmp_path, monkeypatch, capsys):
    path = tmp_path / "model.pt2"

    def write(program, path, metadata):
        path.write_text(metadata.to_json())

    kind = FORMATS["torch_export"]
    monkeypatch.setitem(FORMATS, "torch_export", kind._replace(write=write))
    monkeypatch.setattr(exporting, "trace", lambda graph: None)
    arguments = (
        f"export --weights {trained}/model_final.pth --format torch_export --output {path}"
        " --no-check"
    ).split()
    assert main(arguments) == 0 and f"{path} written" in capsys.readouterr().out
    metadata = ExportMetadata.from_json(path.read_text(), path)
    names = ("rectangle", "ellipse", "triangle")
    assert metadata == ExportMetadata(names, short_edge=72, max_size=96)
    assert main(arguments) == 1
    assert f"dab-detr export: {path} exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    "format, name, message",
    [
        ("onnx", "model.xml", "model.xml: .* has to end in .onnx"),
        ("openvino", "no/model.xml", "no such folder"),
    ],
)
def test_where_no_file_can_be_written(model, tmp_path, format, name, message):
    with pytest.raises(InputError, match=message):
        export_model(model, tmp_path / name, METADATA, format=format)


def test_images_to_calibrate_on(model, tmp_path, tiny_shapes, capsys):
    # evenly spread over the 32 of the set, and in the size of the metadata
    images = calibration_images(tiny_shapes[0], METADATA)
    assert [x.shape for x in images] == [(3, 64, 64)] * 32
    (folder := tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="images has no images"):
        calibration_images(folder, METADATA)
    pixels = np.full((32, 48, 3), (10, 20, 30), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    (image,) = calibration_images(folder, replace(METADATA, image_format="BGR"))
    assert image.shape == (3, 64, 96) and image[:, 0, 0].tolist() == [30, 20, 10]
    (folder / "b.txt").write_text("no image")
    with pytest.raises(InputError, match="b.txt cannot be read.*calibration needs it"):
        calibration_images(folder, METADATA)
    with pytest.raises(InputError, match="no registered data set nothing"):
        calibration_images("nothing", METADATA)
    metadata = replace(METADATA, precision="int8")
    for format, suffix, message in (
        ("torch_export", "pt2", "no int8 for torch_export"),
        ("onnx", "onnx", "needs images to calibrate on"),
    ):
        with pytest.raises(InputError, match=message):
            export_model(model, tmp_path / f"m.{suffix}", metadata, format=format)
    with pytest.raises(SystemExit):
        main("export --weights w --format onnx --precision int8 --output m.onnx".split())
    assert "need each other" in capsys.readouterr().err


@pytest.mark.parametrize("edge, longest", [(64, 77), (None, 192)])
def test_images_of_the_check(edge, longest):
    """Attention over a small stride needs gigabytes for large images."""
    images = check_images(replace(METADATA, short_edge=edge))
    assert len({image.shape for image in images}) > 15
    assert max(max(image.shape) for image in images) <= longest


def test_class_names_have_to_fit(model, tmp_path):
    with pytest.raises(InputError, match="2 class names, but the model has 3"):
        export_model(
            model, tmp_path / "m.onnx", replace(METADATA, class_names=("a", "b")), format="onnx"
        )


SCORES = np.array([[0.9, 0.2], [0.5, 0.4], [0.5, 0.1]], np.float32)
BOXES = np.array([[0, 0, 10, 10], [5, 5, 20, 30], [40, 5, 60, 30]], np.float32)
PAIRS = [(0, 0), (1, 0), (2, 0), (1, 1)]


def compared(pairs, change=lambda scores, labels, boxes: None):
    """Detections of these pairs of query and label, changed, beside all predictions."""
    queries, labels = (np.array(x) for x in zip(*pairs))
    found = Detections(SCORES[queries, labels], labels, BOXES[queries])
    change(*found)
    return compare_image(found, SCORES, BOXES, TOLERANCES["fp32"])


def test_pairs_are_compared_and_not_ranks():
    exact = compared(PAIRS)
    assert exact == Comparison(4, 0, 0, 0, confident=4, found_again=4)
    # queries 1 and 2 are a tie for the first class
    assert compared([PAIRS[i] for i in (0, 2, 1, 3)]) == exact
    # also where only one of them is among the best
    assert compared(PAIRS[:2])[:4] == compared([PAIRS[0], PAIRS[2]])[:4] == (2, 0, 0, 0)


def shift(scores, labels, boxes):
    boxes[1, 2] += 3


def score(scores, labels, boxes):
    scores[3] -= 0.05


def exchange_classes(scores, labels, boxes):
    labels[1:3] = 1 - labels[1:3]


def empty(scores, labels, boxes):
    boxes[0] = np.nan


@pytest.mark.parametrize("change", [shift, score, exchange_classes, empty])
def test_any_difference_counts(change):
    result = compared(PAIRS, change)
    expected = {shift: (3, 0), score: (0, 0.05)}.get(change)
    if expected:
        assert result[1:3] == pytest.approx(expected, abs=1e-6)
    assert not result.passes("fp32") and not result.passes("fp16")


def test_a_better_pair_left_out_counts():
    assert compared([(0, 0), (1, 0), (2, 0), (0, 1)]).missing == 1
    assert compared([(0, 0), (0, 0), (2, 0), (1, 1)]).passes("fp32") is False


def test_int8_finds_confident_detections_again():
    # an IoU of 0.9
    def narrow(scores, labels, boxes):
        scores += 0.05
        boxes[0, 2] = 9.01

    def narrower(scores, labels, boxes):
        boxes[0, 2] = 8.99

    result = compared(PAIRS, narrow)
    assert (result.confident, result.found_again) == (4, 4) and result.passes("int8")
    result = compared(PAIRS, narrower)
    assert (result.confident, result.found_again) == (4, 3) and not result.passes("int8")
    assert sum([compared(PAIRS)] * 5, result).passes("int8")


def test_a_file_without_description_is_refused(tmp_path):
    import onnx

    value = onnx.helper.make_tensor_value_info("x", 1, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    result = onnx.helper.make_tensor_value_info("y", 1, [1])
    graph = onnx.helper.make_graph([node], "g", [value], [result])
    opsets = [onnx.helper.make_opsetid("", 18)]
    path = tmp_path / "other.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    with pytest.raises(InputError, match="other.onnx has no description .* `dab-detr export`"):
        load_exported(path)
    path.write_bytes(b"none")
    with pytest.raises(InputError, match="other.onnx cannot be loaded by onnxruntime"):
        load_exported(path)
    with pytest.raises(InputError, match="There is no file .*nothing.xml"):
        load_exported(tmp_path / "nothing.xml")
    with pytest.raises(InputError, match="those end in .onnx, .xml, .pt2"):
        load_exported(tmp_path / "model.pth")


def test_the_description_is_read_back():
    text = METADATA.to_json()
    assert ExportMetadata.from_json(text, "m") == METADATA
    for wrong, message in (
        (text.replace('"version": 1', '"version": 2'), "m has version 2"),
        (text.replace("short_edge", "edge"), "The description in m cannot be read"),
        ("[]", "cannot be read"),
        ("{", "cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            ExportMetadata.from_json(wrong, "m")


def test_sizes_are_those_of_detectron2():
    generator = np.random.default_rng(0)
    for height, width in generator.integers(1, 3000, (500, 2)).tolist():
        for edge, longest in ((800, 1333), (64, 107)):
            metadata = replace(METADATA, short_edge=edge, max_size=longest)
            expected = ResizeShortestEdge.get_output_shape(height, width, edge, longest)
            assert metadata.resized(height, width) == expected
