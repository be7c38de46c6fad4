"""The predictor: images of all kinds in, the detections of an evaluation out."""

import copy
import gc
import io
import sys

import numpy as np
import pytest
import torch
from detections import assert_same_but_for_rounding
from detectron2.data import build_detection_test_loader
from detectron2.data import transforms as T
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.structures import Boxes, Instances
from PIL import Image

from dab_detr import Predictor, inference_copy
from dab_detr.data.mapper import DetectionMapper
from dab_detr.errors import InputError
from dab_detr.inference import load
from dab_detr.inference.results import PredictedInstances
from dab_detr.inference.runtime import Found

NAMES = ("cat", "dog", "hot dog")
SIZE = {"short_edge": 64, "max_size": 100}


@pytest.fixture
def predictor(detector):
    return Predictor(detector.eval(), class_names=NAMES, **SIZE)


def picture(width=80, height=60, seed=0):
    """Smooth blocks, so that resizing keeps what is in it."""
    small = np.random.RandomState(seed).randint(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST)


@pytest.fixture
def street(tmp_path):
    """A file whose content is the same in every way of reading it."""
    picture().save(tmp_path / "street.png")
    return tmp_path / "street.png"


def many_kinds(folder):
    """Files as cameras and programs write them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(90, 50, 1).save(folder / "turned.jpg", exif=exif)
    grey = np.asarray(picture(120, 40, 2).convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "deep.png")
    picture(50, 90, 3).convert("RGBA").save(folder / "alpha.png")
    picture(64, 64, 4).quantize(16).save(folder / "palette.png")
    picture(70, 66, 5).convert("CMYK").save(folder / "print.jpg")
    return sorted(folder.iterdir())


class Collected(DatasetEvaluator):
    def __init__(self):
        self.found = {}

    def process(self, inputs, outputs):
        for image, output in zip(inputs, outputs):
            self.found[image["file_name"]] = output["instances"]


def assert_equal(actual, expected):
    assert actual.image_size == expected.image_size
    assert torch.equal(actual.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(actual.scores, expected.scores)
    assert torch.equal(actual.pred_classes, expected.pred_classes)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("optimize", [False, True])
def test_it_detects_what_the_evaluation_detects(detector, tmp_path, image_format, optimize):
    files = many_kinds(tmp_path)
    loader = build_detection_test_loader(
        [{"file_name": str(file), "image_id": file.name} for file in files],
        mapper=DetectionMapper(
            is_train=False,
            augmentations=[T.ResizeShortestEdge(64, max_size=100)],
            image_format=image_format,
        ),
        batch_size=1,
    )
    evaluated = Collected()
    model = inference_copy(detector) if optimize else detector
    inference_on_dataset(model, loader, evaluated)
    assert len(evaluated.found) == len(files) == 5
    predictor = Predictor(detector, image_format=image_format, optimize=optimize, **SIZE)
    for file in files:
        found = predictor(file, score_threshold=0)
        assert len(found) > 20
        assert_equal(found, evaluated.found[str(file)])


def test_an_image_may_be_given_in_many_ways(predictor, street):
    expected = predictor(street, score_threshold=0)
    assert isinstance(expected, Instances) and expected.image_size == (60, 80)
    rgb = np.array(Image.open(street))
    opaque = np.dstack((rgb, np.zeros_like(rgb[:, :, :1])))
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)
    for given in (
        str(street), street.read_bytes(), bytearray(street.read_bytes()), open(street, "rb"),
        io.BytesIO(street.read_bytes()), Image.open(street), rgb, opaque, tensor
    ):  # fmt: skip
        assert_equal(predictor(given, score_threshold=0), expected)
    bgr = rgb[:, :, ::-1]
    assert_equal(predictor(bgr, channels="BGR", score_threshold=0), expected)
    blue = predictor(bgr, score_threshold=0)
    assert not torch.equal(blue.scores, expected.scores)
    grey = rgb[:, :, 0]
    assert_equal(
        predictor(grey, score_threshold=0),
        predictor(np.dstack((grey, grey, grey)), score_threshold=0),
    )
    for several in (rgb[None], tensor[None], [street], (x for x in [street])):
        (found,) = predictor(several, score_threshold=0)
        assert_equal(found, expected)
    assert predictor([]) == []


def test_a_batch_gives_the_same_as_one_by_one(predictor):
    sizes = ((80, 60), (40, 90), (160, 120), (120, 30), (320, 240), (40, 90))
    images = [picture(*size, seed) for seed, size in enumerate(sizes)]
    alone = [predictor(image, score_threshold=0) for image in images]
    together = predictor(iter(images), score_threshold=0, batch_size=5)
    assert len(together) == len(images)
    for found, expected in zip(together, alone):
        assert_same_but_for_rounding(found, expected)


class Fixed:
    """Finds the same in every image; keeps the sizes of what it was given."""

    def __init__(self):
        self.sizes = []

    def __call__(self, images):
        self.sizes += [tuple(image.shape) for image in images]
        found = Found(
            scores=torch.tensor([0.9, 0.8, 0.6, 0.55, 0.3]),
            labels=torch.tensor([0, 1, 2, 0, 1]),
            # the second extends beyond the image, the third lies outside
            boxes_xyxy=torch.tensor(
                [
                    [10.0, 8.0, 40.0, 32.0],
                    [-5.0, -5.0, 20.0, 20.0],
                    [-9.0, -9.0, -1.0, -1.0],
                    [0.0, 0.0, 64.0, 48.0],
                    [1.0, 1.0, 2.0, 2.0],
                ]
            ),
        )
        return [found] * len(images)


@pytest.fixture
def fixed(detector):
    predictor = Predictor(detector, class_names=NAMES, short_edge=48, max_size=100)
    predictor.runtime = Fixed()
    return predictor


def test_images_of_equal_size_are_computed_together(fixed):
    calls = []
    compute = fixed.runtime
    fixed.runtime = lambda images: calls.append(len(images)) or compute(images)
    sizes = [(80, 60), (40, 90), (160, 120), (80, 60), (80, 60)]
    found = fixed((picture(*size) for size in sizes), batch_size=4)
    assert calls == [3, 1, 1]
    assert [x.image_size[::-1] for x in found] == sizes


def test_boxes_are_in_pixels_of_the_image_itself(fixed):
    found = fixed(picture(320, 240), score_threshold=0)
    assert fixed.runtime.sizes == [(3, 48, 64)]
    expected = [[50, 40, 200, 160], [0, 0, 100, 100], [0, 0, 320, 240], [5, 5, 10, 10]]
    assert torch.allclose(found.pred_boxes.tensor, torch.tensor(expected).float())
    assert found.names == ["cat", "dog", "cat", "dog"]
    assert found.class_names == NAMES
    assert found[found.scores > 0.85].names == ["cat"]
    assert found.to("cpu").names == copy.deepcopy(found).names == found.names


def test_classes_without_names_have_numbers(detector):
    assert Predictor(detector).class_names == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize(
    "size, resized",
    [
        ({}, (3, 400, 1333)),
        ({"short_edge": 0}, (3, 30, 100)),
        ({"short_edge": 60}, (3, 60, 200)),
        ({"short_edge": 60, "max_size": 120}, (3, 36, 120)),
    ],
)
def test_the_resize_rule(detector, size, resized):
    predictor = Predictor(detector, **size)
    assert predictor.prepare(picture(100, 30)).resized.shape == resized


@pytest.mark.parametrize(
    "settings, scores",
    [
        ({}, [0.9, 0.8, 0.55]),
        ({"score_threshold": 0}, [0.9, 0.8, 0.55, 0.3]),
        ({"score_threshold": 0.8}, [0.9, 0.8]),
        ({"score_threshold": [0.6, 0.1, 0.5]}, [0.9, 0.8, 0.3]),
        ({"score_threshold": {"dog": 0.25}}, [0.9, 0.8, 0.55, 0.3]),
        ({"score_threshold": {0: 0.85, "dog": 0.1}}, [0.9, 0.8, 0.3]),
        ({"classes": "cat"}, [0.9, 0.55]),
        ({"classes": ["dog", 2], "score_threshold": 0}, [0.8, 0.3]),
        ({"classes": []}, []),
        ({"top_k": 1}, [0.9]),
        ({"top_k": 1, "classes": [1]}, [0.8]),
    ],
    ids=str,
)
def test_what_is_asked_for_is_returned(fixed, settings, scores):
    found = fixed(picture(), **settings)
    assert found.scores.tolist() == pytest.approx(scores)
    # the stub's result was not changed
    assert fixed(picture(), **settings).scores.tolist() == pytest.approx(scores)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"score_threshold": 50}, "score_threshold is or has 50; numbers from 0 to 1"),
        ({"score_threshold": "high"}, "has 'high'; numbers"),
        ({"score_threshold": [0.5, 0.5]}, "has 2 numbers, but the model has 3 classes"),
        ({"score_threshold": {"cta": 0.5}}, "'cta', which is no class .* did you mean 'cat'"),
        ({"classes": [3]}, "classes has 3, which is no class of the model; it has cat, dog"),
        ({"top_k": 0}, "top_k is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"channels": "GBR"}, "channels is 'GBR'; choose one of RGB, BGR"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(fixed, settings, words):
    with pytest.raises(InputError, match=words):
        fixed(np.zeros((60, 80, 3), np.uint8), **settings)


@pytest.mark.parametrize(
    "given, words",
    [
        (None, "is a NoneType .cv2.imread returns it"),
        (3, "is a int; a path, bytes"),
        ({"image": "x.png"}, "is a dict; a path, bytes"),
        ("gone.png", "gone.png cannot be read: it does not exist"),
        (b"no image", "of 8 bytes cannot be read: it is not an image of a known kind"),
        (np.zeros((60, 80, 3), np.float32), "array of float32; uint8 with values"),
        (torch.zeros(3, 60, 80), "tensor of torch.float32; uint8"),
        (np.zeros((3, 60, 80), np.uint8), r"shape \(3, 60, 80\); \(H, W, C\) with 1, 3 or 4"),
        (torch.zeros(60, 80, 3, dtype=torch.uint8), r"\(60, 80, 3\); \(C, H, W\) with"),
        (np.zeros((0, 80, 3), np.uint8), r"shape \(0, 80, 3\)"),
        (
            np.zeros((1, 300, 3), np.uint8),
            "The image cannot be used: 300 x 1 pixels are too narrow",
        ),
        ([b"", b"x"], "Image 0 of the given ones: The image of 0 bytes cannot be read"),
    ],
    ids=repr,
)
def test_what_is_no_image_is_refused(fixed, given, words):
    with pytest.raises(InputError, match=words):
        fixed(given)


def test_a_narrow_file_is_named(fixed, tmp_path):
    picture(300, 1).save(tmp_path / "line.png")
    with pytest.raises(InputError, match="line.png cannot be used: 300 x 1 pixels are too narrow"):
        fixed(tmp_path / "line.png")


def test_images_beyond_the_limit_are_not_decoded(detector, street, monkeypatch):
    predictor = Predictor(detector, max_pixels=4799)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    for given in (street, street.read_bytes(), open(street, "rb"), Image.open(street)):
        with pytest.raises(InputError, match="80 x 60 pixels, more than the limit of 4,799"):
            predictor(given)
    monkeypatch.undo()
    predictor.max_pixels = 4800
    predictor(street)


def test_the_model_stays_as_it_is(detector, street):
    before = copy.deepcopy(detector.state_dict())
    detector.train()
    for optimize in (False, True):
        Predictor(detector, optimize=optimize, **SIZE)(street)
    assert detector.training
    assert all(torch.equal(x, before[name]) for name, x in detector.state_dict().items())
    assert all(parameter.requires_grad for parameter in detector.parameters())


def test_sixteen_bits_differ_little(detector, street):
    detector.eval()
    exact, rough = (
        Predictor(detector, bf16=bf16, **SIZE)(street, score_threshold=0, top_k=5)
        for bf16 in (False, True)
    )
    assert 0 < (exact.scores - rough.scores).abs().max() < 0.05


def test_a_checkpoint_is_enough(trained, street):
    file = trained / "model_final.pth"
    loaded = load(file, device="cpu")
    expected = Predictor(
        loaded.model, class_names=["rectangle", "ellipse", "triangle"], short_edge=72, max_size=96
    )(street, score_threshold=0)
    for predictor in (
        Predictor(file, device="cpu"),
        Predictor.from_pretrained(str(file), device="cpu"),
        Predictor(config=trained / "config.yaml", weights=file, device="cpu"),
    ):
        found = predictor(street, score_threshold=0)
        assert_equal(found, expected)
        assert found.class_names == expected.class_names
    changed = Predictor(file, device="cpu", class_names="abc", short_edge=50, max_size=60)
    assert changed.class_names == ("a", "b", "c")
    assert changed.prepare(street).resized.shape == (3, 45, 60)
    with pytest.raises(InputError, match="gone.pth"):
        Predictor("gone.pth")


def test_another_model_is_refused(detector):
    with pytest.raises(TypeError, match="not AveragedModel.*[.]module"):
        Predictor(torch.optim.swa_utils.AveragedModel(detector))
    with pytest.raises(InputError, match="class_names has 1 names, but the model has 3"):
        Predictor(detector, class_names=["cat"])


def test_calls_leave_no_tensors_behind(predictor, street):
    def living():
        gc.collect()
        return sum(isinstance(x, torch.Tensor) for x in gc.get_objects())

    given = [street, picture(40, 90)]
    predictor(given)[0].draw(street)
    before = living()
    for _ in range(3):
        predictor(given, score_threshold=0)[0].draw(street)
    assert living() == before


def test_results_are_records_of_coco(fixed):
    found = fixed(picture(320, 240), score_threshold=0.85)
    assert found.coco_records(7) == [
        {
            "image_id": 7,
            "category_id": 0,
            "bbox": pytest.approx([50, 40, 150, 120]),
            "score": pytest.approx(0.9),
        }
    ]
    # the 80 classes of COCO have its ids, with their gaps
    coco = [x for x in COCO_CATEGORIES if x["isthing"]]
    (record,) = PredictedInstances(
        (10, 10),
        [x["name"] for x in coco],
        pred_boxes=Boxes([[1, 1, 2, 2]]),
        scores=torch.ones(1),
        pred_classes=torch.tensor([79]),
    ).coco_records("street")
    assert (record["image_id"], record["category_id"]) == ("street", 90)


def test_results_for_supervision(fixed, monkeypatch):
    found = fixed(picture(320, 240))
    detections = found.to_supervision()
    np.testing.assert_allclose(detections.xyxy, found.pred_boxes.tensor.numpy())
    np.testing.assert_allclose(detections.confidence, found.scores.numpy())
    assert detections["class_name"].tolist() == ["cat", "dog", "cat"]
    assert len(fixed(picture(), classes=[]).to_supervision()) == 0
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match="pip install supervision"):
        found.to_supervision()


def test_detections_are_drawn(fixed, tmp_path):
    grey = np.full((480, 640, 3), 128, np.uint8)
    found = fixed(grey, top_k=1)
    # an array of the model's size is a picture of that size
    drawn = np.asarray(found.draw(grey)).astype(int)
    assert drawn.shape == grey.shape
    changed = np.abs(drawn - 128).max(-1) > 40
    x0, y0, x1, y1 = (100, 80, 400, 320)
    assert changed[y0 - 2 : y0 + 3, x0:x1].any(0).mean() > 0.95
    assert changed[y0:y1, x1 - 2 : x1 + 3].any(1).mean() > 0.95
    assert not changed[y1 + 10 :].any() and not changed[:, x1 + 10 :].any()
    # the same each time, so that colours do not flicker in videos
    np.testing.assert_array_equal(np.asarray(found.draw(grey)), drawn)
    np.testing.assert_array_equal(np.asarray(found[:0].draw(grey)), grey)
    with pytest.raises(InputError, match="is 80 x 60, but the detections are of one of 640 x 480"):
        found.draw(picture())


def test_pictures_are_saved_and_nothing_is_overwritten(fixed, street, tmp_path):
    found = fixed(street)
    target = tmp_path / "found.png"
    found.save(target, street)
    np.testing.assert_array_equal(np.asarray(Image.open(target)), np.asarray(found.draw(street)))
    before = target.read_bytes()
    with pytest.raises(InputError, match="found.png exists already.*overwrite=True"):
        found[:0].save(target, street)
    assert target.read_bytes() == before
    found[:0].save(target, street, overwrite=True)
    assert target.read_bytes() != before
    with pytest.raises(InputError, match="found.txt has no suffix of a picture"):
        found.save(tmp_path / "found.txt", street)
