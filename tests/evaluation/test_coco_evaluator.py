"""Two libraries, one set of numbers: pycocotools run by the test says which."""

import copy
import functools
import itertools
import json
import logging
import math
import re
import sys
from collections import Counter

import faster_coco_eval
import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import coco_evaluation
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dab_detr.config import get_config
from dab_detr.evaluation.coco_evaluator import BACKENDS, BoxEvaluator

SIZE = 480, 640
# per cent
LIMIT = 1e-9
SUMMARY = ["AP", "AP50", "AP75", "APs", "APm", "APl"]


@pytest.fixture
def tool(load_tool):
    return load_tool("compare_evaluators")


@pytest.fixture
def data(tool):
    """Annotations and results: 60 images, 12 classes, and enough detections that limits count."""
    return tool.synthetic(60, classes=12, detections=200)


@pytest.fixture
def evaluate(tmp_path):
    """Registers annotations as a data set, and gives results to an evaluator as a model would."""
    count = itertools.count()
    names = []

    def call(annotations, results, *, img_ids=None, output_dir=None, masks=False, **arguments):
        name = f"test_coco_evaluator_{next(count)}"
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"info": {}, **annotations}))
        register_coco_instances(name, {}, str(path), str(tmp_path))
        names.append(name)
        # loading it tells the names and ids of the classes
        DatasetCatalog.get(name)
        mapping = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
        evaluator = BoxEvaluator(name, distributed=False, output_dir=output_dir, **arguments)
        evaluator.reset()
        for image in annotations["images"]:
            own = [r for r in results if r["image_id"] == image["id"]]
            instances = Instances(
                SIZE,
                pred_boxes=Boxes(corners(own)),
                scores=torch.tensor([r["score"] for r in own], dtype=torch.float64),
                pred_classes=torch.tensor(
                    # no category: a class that only the model has
                    [mapping.get(r["category_id"], len(mapping)) for r in own]
                ).long(),
            )
            if masks:
                instances.pred_masks = torch.ones(len(own), *SIZE, dtype=torch.bool)
            evaluator.process([{"image_id": image["id"]}], [{"instances": instances}])
        return evaluator.evaluate(img_ids=img_ids)

    yield call
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def corners(results):
    boxes = torch.tensor([r["bbox"] for r in results]).reshape(-1, 4)
    return torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), dim=1)


def expected(annotations, results, img_ids=None, max_dets=100):
    """COCO's numbers by its own code, averaged here: per cent, NaN where there is nothing."""
    # as text, of which each is computed once for all evaluators
    return dict(_expected(json.dumps([annotations, results, img_ids, max_dets])))


@functools.cache
def _expected(text):
    annotations, results, img_ids, max_dets = json.loads(text)
    xyxy = corners(results)
    boxes = torch.cat((xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]), dim=1).tolist()
    ground_truth = COCO()
    ground_truth.dataset = {"info": {}, **annotations}
    ground_truth.createIndex()
    detections = ground_truth.loadRes([{**r, "bbox": box} for r, box in zip(results, boxes)])
    evaluation = COCOeval(ground_truth, detections, "bbox")
    evaluation.params.maxDets = [1, 10, max_dets]
    if img_ids is not None:
        evaluation.params.imgIds = img_ids
    evaluation.evaluate()
    evaluation.accumulate()
    # thresholds 0.5, 0.55 .., recalls, classes, areas (all, s, m, l), limits
    precision = evaluation.eval["precision"][..., -1]

    def mean(values):
        values = values[values > -1]
        return float(values.mean() * 100) if values.size else math.nan

    numbers = [precision[..., 0], precision[0, ..., 0], precision[5, ..., 0]]
    numbers += [precision[..., area] for area in (1, 2, 3)]
    names = [c["name"] for c in sorted(annotations["categories"], key=lambda c: c["id"])]
    return {
        **{name: mean(values) for name, values in zip(SUMMARY, numbers)},
        **{f"AP-{name}": mean(precision[:, :, k, 0]) for k, name in enumerate(names)},
    }


def assert_same(actual, wanted):
    assert actual == pytest.approx(wanted, rel=0, abs=LIMIT, nan_ok=True)


def refuse(*_, **__):
    raise RuntimeError("this library was not asked for")


def test_the_set_of_these_tests_is_awkward(data):
    """Otherwise equal numbers would say little."""
    annotations, results = data
    ids = [c["id"] for c in annotations["categories"]]
    assert ids != list(range(ids[0], ids[0] + 12))
    for entries, missing in ((annotations["annotations"], ids[-1]), (results, ids[0])):
        assert {e["category_id"] for e in entries} == set(ids) - {missing}
        assert len({e["image_id"] for e in entries}) < 60
    crowds = Counter(a["iscrowd"] for a in annotations["annotations"])
    assert min(crowds[0], crowds[1]) > 10
    areas = np.array([a["area"] for a in annotations["annotations"]])
    assert min(np.histogram(areas, [0, 32**2, 96**2, 1e9])[0]) > 10
    assert max(Counter(json.dumps(r) for r in results).values()) > 1
    per_class = Counter((r["image_id"], r["category_id"]) for r in results)
    assert max(per_class.values()) > 20


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
@pytest.mark.parametrize("max_dets", [None, 12, 200])
def test_all_numbers_are_those_of_pycocotools(evaluate, data, backend, max_dets):
    annotations, results = data
    actual = evaluate(annotations, results, backend=backend, max_dets_per_image=max_dets)
    assert list(actual) == ["bbox"]
    wanted = expected(annotations, results, max_dets=max_dets or 100)
    assert_same(actual["bbox"], wanted)
    assert 20 < wanted["AP"] < 80
    last = annotations["categories"][-1]["name"]
    assert [name for name, value in wanted.items() if math.isnan(value)] == [f"AP-{last}"]
    if max_dets == 12:
        assert abs(wanted["AP"] - expected(annotations, results)["AP"]) > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_some_of_the_images_can_be_evaluated(evaluate, data, backend):
    annotations, results = data
    some = [image["id"] for image in annotations["images"][10:30]]
    actual = evaluate(annotations, results, backend=backend, img_ids=some)
    assert_same(actual["bbox"], expected(annotations, results, some))
    assert abs(actual["bbox"]["AP"] - expected(annotations, results)["AP"]) > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_scores_and_overlaps_at_the_thresholds_are_decided_alike(evaluate, data, backend):
    annotations, results = data
    annotations["annotations"] = [
        {**a, "bbox": [0, 0, 100, 100], "area": 1024.0 if a["id"] % 2 else 9216.0}
        for a in annotations["annotations"]
    ]
    results = [
        {**r, "bbox": [0.0, 0.0, 100.0, 50.0 + 5 * (k % 11)], "score": round(r["score"], 1)}
        for k, r in enumerate(results)
    ]
    actual = evaluate(annotations, results, backend=backend)
    assert_same(actual["bbox"], expected(annotations, results))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_found_is_nan_and_no_failure(evaluate, data, backend):
    actual = evaluate(data[0], [], backend=backend)
    assert actual.keys() == {"bbox"}
    assert list(actual["bbox"]) == SUMMARY and all(map(math.isnan, actual["bbox"].values()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_chosen_library_counts(evaluate, tool, backend, monkeypatch):
    """Nor does Detectron2's own quick version, which is not the official one."""
    other = COCOeval if backend == "faster-coco-eval" else faster_coco_eval.COCOeval_faster
    monkeypatch.setattr(other, "evaluate", refuse)
    monkeypatch.setattr(coco_evaluation, "COCOeval_opt", refuse)
    data = tool.synthetic(10)
    assert evaluate(*data, backend=backend)["bbox"]["AP"] > 0
    assert evaluate(*data, backend=backend, max_dets_per_image=20)["bbox"]["AP"] > 0


def renamed(data, new_id, fields=("image_id",)):
    """The same data with other ids."""
    annotations, results = copy.deepcopy(data)
    if "image_id" in fields:
        for image in annotations["images"]:
            image["id"] = new_id(image["id"])
        for entry in (*annotations["annotations"], *results):
            entry["image_id"] = new_id(entry["image_id"])
    if "id" in fields:
        for entry in annotations["annotations"]:
            entry["id"] = new_id(entry["id"])
    return annotations, results


# all of them leave the images in the same order
IDS = {
    "text": lambda number: f"{number:09}.jpg",
    "around the largest of 64 bits": lambda number: 2**63 - 300 + number,
    "beyond 64 bits": lambda number: 2**80 + number,
    "negative": lambda number: number - 10**6,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ids", IDS)
def test_the_ids_of_images_do_not_matter(evaluate, tool, tmp_path, backend, ids):
    data = tool.synthetic(10, classes=4)
    annotations, results = renamed(data, IDS[ids])
    out = str(tmp_path / "out")
    actual = evaluate(annotations, results, backend=backend, output_dir=out)
    assert_same(actual["bbox"], expected(*data))
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert {r["image_id"] for r in written} == {r["image_id"] for r in results}


@pytest.mark.parametrize("backend", BACKENDS)
def test_objects_numbered_from_0_are_found(evaluate, backend):
    """COCO's code takes an object of id 0 for none."""
    things = [
        {"id": k, "image_id": 0, "category_id": 0, "bbox": [40 * k, 9, 30, 30]} for k in range(4)
    ]
    content = {
        "images": [{"id": 0, "file_name": "0.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 0, "name": "thing"}],
        "annotations": things,
    }
    found = [{**thing, "score": 0.9} for thing in things]
    metrics = evaluate(content, found, backend=backend)["bbox"]
    assert metrics["AP"] == metrics["AP50"] == metrics["AP-thing"] == pytest.approx(100)


WRONG_AREAS = [-5, 0, math.nan, math.inf, None, "90", [1], True]


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_the_area_cannot_be_right_that_of_the_box_is_used(evaluate, data, backend):
    annotations, results = copy.deepcopy(data)
    corrected = copy.deepcopy(annotations)
    for k, entry in enumerate(annotations["annotations"][:64]):
        entry["area"] = WRONG_AREAS[k % 8]
        corrected["annotations"][k]["area"] = entry["bbox"][2] * entry["bbox"][3]
    del annotations["annotations"][70]["area"]
    entry = corrected["annotations"][70]
    entry["area"] = entry["bbox"][2] * entry["bbox"][3]
    actual = evaluate(annotations, results, backend=backend)
    assert_same(actual["bbox"], expected(corrected, results))
    assert abs(expected(corrected, results)["APs"] - expected(*data)["APs"]) > 1e-3


def test_a_data_set_that_has_changed_is_evaluated_as_it_is(tmp_path):
    """In the same folder, in which nothing of the earlier evaluation counts."""
    for corner, wanted in ((10.0, 100.0), (50.0, 0.0)):
        image = {"file_name": "1.jpg", "height": SIZE[0], "width": SIZE[1], "image_id": 1}
        thing = {"bbox": [corner, 9.0, 40.0, 39.0], "bbox_mode": BoxMode.XYWH_ABS}
        record = {**image, "annotations": [{**thing, "category_id": 0}]}
        DatasetCatalog.register("changing", lambda record=record: [record])
        MetadataCatalog.get("changing").thing_classes = ["thing", "other"]
        try:
            evaluator = BoxEvaluator("changing", output_dir=str(tmp_path))
            found = Instances(
                SIZE,
                pred_boxes=Boxes(torch.tensor([[10.0, 9.0, 50.0, 48.0]])),
                scores=torch.tensor([0.5]),
                pred_classes=torch.tensor([0]),
            )
            evaluator.process([{"image_id": 1}], [{"instances": found}])
            assert evaluator.evaluate()["bbox"]["AP-thing"] == pytest.approx(wanted)
        finally:
            DatasetCatalog.remove("changing")
            MetadataCatalog.remove("changing")


def test_masks_of_predictions_are_not_looked_at(evaluate, tool):
    data = tool.synthetic(3, classes=4)
    assert_same(evaluate(*data, masks=True)["bbox"], evaluate(*data)["bbox"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_classes_that_the_data_do_not_have_are_not_counted(
    evaluate, data, backend, caplog, monkeypatch
):
    # Detectron2 keeps what its loggers say from the root's
    monkeypatch.setattr(logging.getLogger("dab_detr"), "propagate", True)
    annotations, results = data
    further = [{**r, "category_id": None, "score": 0.999} for r in results[:50]]
    actual = evaluate(annotations, results + further, backend=backend)
    assert_same(actual["bbox"], expected(annotations, results))
    assert re.search(r"50 of \d+ predictions are of classes that", caplog.text)


def test_the_result_file_has_the_ids_of_the_data_set(evaluate, data, tmp_path):
    annotations, results = data
    evaluate(annotations, results, backend="faster-coco-eval", output_dir=str(tmp_path / "out"))
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    key = ("image_id", "category_id", "score")
    assert Counter(tuple(r[k] for k in key) for r in written) == Counter(
        tuple(r[k] for k in key) for r in results
    )


def test_wrong_and_missing_backends_are_reported(evaluate, tool, monkeypatch):
    with pytest.raises(ValueError, match="no evaluation backend 'cocoapi': choose auto, faster-"):
        BoxEvaluator("unused", backend="cocoapi")
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ValueError, match=r"not installed .*pip install 'dab_detr\[fast-eval\]'"):
        BoxEvaluator("unused", backend="faster-coco-eval")
    monkeypatch.setattr(faster_coco_eval.COCOeval_faster, "evaluate", refuse)
    data = tool.synthetic(10, classes=4)
    assert_same(evaluate(*data)["bbox"], expected(*data))


def test_configs_evaluate_with_it(tiny_shapes):
    cfg = get_config("shapes/dab_detr_shapes.py").dataloader
    cfg.test.dataset.names = tiny_shapes[1]
    DatasetCatalog.get(tiny_shapes[1])
    assert isinstance(instantiate(cfg.evaluator), BoxEvaluator)


def test_the_tool_compares_files(tool, data, tmp_path, capsys):
    files = [tmp_path / name for name in ("annotations.json", "results.json")]
    for path, content in zip(files, data):
        path.write_text(json.dumps(content))
    assert tool.main([*map(str, files), "--repeat", "2"]) == 0
    first, _, _, *rows = capsys.readouterr().out.splitlines()
    annotations, results = data
    assert first.startswith(
        f"60 images, 12 classes, {len(annotations['annotations'])} objects, {len(results)} det"
    )
    ap = float(first.split("AP ")[1].split(",")[0])
    # the file's boxes are float64, those of the test float32
    assert ap == pytest.approx(expected(*data)["AP"], abs=1e-3)
    assert [row.split()[1] for row in rows] == ["pycocotools", "faster-coco-eval"]


@pytest.mark.parametrize("number", ["precision", "recall", "summary"])
def test_the_tool_finds_a_difference(tool, capsys, monkeypatch, number):
    original = faster_coco_eval.COCOeval_faster.summarize

    def summarize(self):
        original(self)
        values = self.stats if number == "summary" else self.eval[number]
        values.reshape(-1)[7] += 1e-9

    monkeypatch.setattr(faster_coco_eval.COCOeval_faster, "summarize", summarize)
    assert tool.main(["--synthetic", "5", "--repeat", "1"]) == 1
    assert f"differ by 1.0e-09 in {number}." in capsys.readouterr().err


DETECTION = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
WRONG = {
    "missing file": (None, "cannot be read as JSON"),
    "no JSON": ("{", "cannot be read as JSON"),
    "no list": ({"images": []}, "are not a list of detections"),
    "no detections": ([], "are not a list of detections"),
    "no score": ([{**DETECTION, "score": None}], "Entry 0 of .* is not a detection"),
    "no box": ([DETECTION, {**DETECTION, "bbox": [1, 2, 3]}], "Entry 1 of .* is not a detection"),
    "other class": (
        [{**DETECTION, "category_id": -5}],
        "category_id -5, which is not in the annot",
    ),
    "other image": ([{**DETECTION, "image_id": 77}], "image_id 77, which is not in the annot"),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_tool_refuses_wrong_results(tool, tmp_path, capsys, case):
    content, message = WRONG[case]
    annotations, results = tmp_path / "annotations.json", tmp_path / "results.json"
    data = tool.synthetic(3)[0]
    data["images"].append({"id": 1, "file_name": "1.jpg", "width": 9, "height": 9})
    annotations.write_text(json.dumps(data))
    if content is not None:
        results.write_text(content if isinstance(content, str) else json.dumps(content))
    assert tool.main([str(annotations), str(results)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("compare_evaluators.py: ") and error.count("\n") == 1
    assert re.search(message, error)


def test_the_tool_refuses_wrong_annotations_and_usage(tool, tmp_path, capsys):
    assert tool.main([str(tmp_path / "none.json"), str(tmp_path / "none.json")]) == 1
    assert "none.json" in capsys.readouterr().err
    for arguments in ([], ["one.json"], ["--synthetic", "1"], ["a", "--synthetic", "9"]):
        with pytest.raises(SystemExit) as ending:
            tool.main(arguments)
        assert ending.value.code == 2
