"""Two libraries, one set of numbers: pycocotools run by the test says which."""

import copy
import itertools
import json
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
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dab_detr.config import get_config
from dab_detr.engine.coco_evaluator import BACKENDS, BoxEvaluator

SIZE = 480, 640
# per cent
LIMIT = 1e-9
SUMMARY = ["AP", "AP50", "AP75", "APs", "APm", "APl"]


@pytest.fixture
def tool(load_tool):
    return load_tool("compare_evaluators")


@pytest.fixture
def data(tool):
    """Annotations and results: 60 images, 12 classes, and so many detections that limits count."""
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
                pred_classes=torch.tensor([mapping[r["category_id"]] for r in own]).long(),
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
    xyxy = corners(results)
    boxes = torch.cat((xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]), dim=1).tolist()
    ground_truth = COCO()
    ground_truth.dataset = copy.deepcopy({"info": {}, **annotations})
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


def test_detectron2_is_as_before_after_an_evaluation_and_after_a_failed_one(
    evaluate, data, monkeypatch
):
    before = coco_evaluation.COCOeval, coco_evaluation.COCOevalMaxDets
    evaluate(*data, backend="faster-coco-eval")
    assert (coco_evaluation.COCOeval, coco_evaluation.COCOevalMaxDets) == before
    monkeypatch.setattr(faster_coco_eval.COCOeval_faster, "evaluate", refuse)
    with pytest.raises(RuntimeError, match="not asked for"):
        evaluate(*data, backend="auto")
    assert (coco_evaluation.COCOeval, coco_evaluation.COCOevalMaxDets) == before


@pytest.mark.parametrize("new_id", [str, lambda number: 2**60 + number], ids=["text", "large"])
@pytest.mark.parametrize("max_dets", [None, 12])
def test_image_ids_that_faster_coco_eval_cannot_hold(evaluate, tool, new_id, max_dets):
    annotations, results = tool.synthetic(10, classes=4)
    for image in annotations["images"]:
        image["id"] = new_id(image["id"])
    for entry in (*annotations["annotations"], *results):
        entry["image_id"] = new_id(entry["image_id"])
    actual = evaluate(annotations, results, backend="faster-coco-eval", max_dets_per_image=max_dets)
    assert_same(actual["bbox"], expected(annotations, results, max_dets=max_dets or 100))


def test_masks_stay_with_pycocotools(evaluate, monkeypatch):
    kinds = []

    class Faster(faster_coco_eval.COCOeval_faster):
        def __init__(self, ground_truth, detections, kind, **arguments):
            kinds.append(kind)
            super().__init__(ground_truth, detections, kind, **arguments)

    monkeypatch.setattr(faster_coco_eval, "COCOeval_faster", Faster)
    height, width = SIZE
    image = {"id": 1, "file_name": "1.jpg", "height": height, "width": width}
    thing = {"image_id": 1, "category_id": 5, "bbox": [0, 0, width, height]}
    outline = {"segmentation": [[0, 0, width, 0, width, height, 0, height]]}
    annotations = {
        "images": [image],
        "categories": [{"id": 5, "name": "thing"}],
        "annotations": [{**thing, **outline, "id": 1, "area": width * height, "iscrowd": 0}],
    }
    actual = evaluate(annotations, [{**thing, "score": 0.5}], masks=True)
    assert [actual[task]["AP"] for task in ("bbox", "segm")] == pytest.approx([100, 100])
    assert kinds == ["bbox"]


def test_the_result_file_has_the_ids_of_the_data_set(evaluate, data, tmp_path):
    annotations, results = data
    evaluate(annotations, results, backend="faster-coco-eval", output_dir=str(tmp_path / "out"))
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    key = ("image_id", "category_id", "score")
    assert Counter(tuple(r[k] for k in key) for r in written) == Counter(
        tuple(r[k] for k in key) for r in results
    )


def test_wrong_and_missing_backends_are_told(evaluate, tool, monkeypatch):
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
    "no list": ({"images": []}, "are no list of detections"),
    "no detections": ([], "are no list of detections"),
    "no score": ([{**DETECTION, "score": None}], "Entry 0 of .* is no detection"),
    "no box": ([DETECTION, {**DETECTION, "bbox": [1, 2, 3]}], "Entry 1 of .* is no detection"),
    "other image": ([{**DETECTION, "image_id": 77}], "is of image 77, which the annotations do"),
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
