"""dab-detr predict: images, folders and videos in, pictures, videos and JSON out."""

import json
import os

import cv2
import numpy as np
import pytest
from PIL import Image

from dab_detr import Predictor
from dab_detr.cli.main import main

NAMES = ["rectangle", "ellipse", "triangle"]


@pytest.fixture(scope="module")
def weights(trained):
    return str(trained / "model_final.pth")


@pytest.fixture(scope="module")
def predictor(weights):
    """The same weights, computing as the command does."""
    return Predictor(weights, device="cpu", optimize=True)


@pytest.fixture(scope="module")
def threshold(predictor):
    """A score that only few detections of a hardly trained model have."""
    scores = [predictor(picture(seed), score_threshold=0).scores[4].item() for seed in range(6)]
    return min(scores)


def picture(seed=0, width=96, height=72):
    small = np.random.RandomState(seed).randint(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST)


@pytest.fixture
def photos(tmp_path):
    """Six images in two folders; two have the same name but for the suffix, two the same name."""
    for seed, name in enumerate(("a/1.png", "a/2.png", "a/2.bmp", "a/3.png", "b/1.png", "b/4.png")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed, 96 + 8 * seed).save(path)
    (tmp_path / "photos" / "a" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


@pytest.fixture
def predict(weights, threshold, tmp_path, monkeypatch):
    """A function that runs the command in a folder of its own; returns its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(*arguments, output="out", lowest=threshold):
        return main(
            ["predict", "--weights", weights, "--output", output,
             "--confidence-threshold", str(lowest), *map(str, arguments)]
        )  # fmt: skip

    return run


@pytest.fixture
def stopped(monkeypatch):
    """A function after which the n-th batch is interrupted; returns the sizes of the batches."""
    detect = Predictor.detect

    def at(number):
        sizes = []

        def interrupted(self, images, selection):
            sizes.append(len(images))
            if len(sizes) == number:
                raise KeyboardInterrupt
            return detect(self, images, selection)

        monkeypatch.setattr(Predictor, "detect", interrupted)
        return sizes

    return at


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def clip(path, count=12, size=(96, 72)):
    """A video whose frames become brighter."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, size)
    for number in range(count):
        frame = np.asarray(picture(3, *size)).astype(int) // 4 + 12 * number
        writer.write(np.ascontiguousarray(frame.astype(np.uint8)[:, :, ::-1]))
    writer.release()
    return path


def frames(path):
    capture = cv2.VideoCapture(str(path))
    found = []
    while (frame := capture.read())[0]:
        found.append(frame[1])
    return found


def test_images_of_folders_and_patterns_are_predicted(
    predict, predictor, threshold, photos, tmp_path, capsys
):
    # the same file is not predicted twice
    given = (photos / "a", "photos/b/*.png", photos / "b" / "4.png")
    assert predict("--input", *given, "--json", "found.json", "--batch", 2) == 0
    out = tmp_path / "out"
    assert files(out) == [
        "1-2.jpg", "1.jpg", "2-2.jpg", "2.jpg", "3.jpg", "4.jpg", "predictions.jsonl"
    ]  # fmt: skip
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["categories"] == [{"id": i, "name": name} for i, name in enumerate(NAMES)]
    order = ["a/1.png", "a/2.bmp", "a/2.png", "a/3.png", "b/1.png", "b/4.png"]
    assert [os.path.abspath(image["file_name"]) for image in content["images"]] == [
        str(photos / name) for name in order
    ]
    total = 0
    for image in content["images"]:
        found = predictor(image["file_name"], score_threshold=threshold)
        assert (image["height"], image["width"]) == found.image_size
        records = [x for x in content["annotations"] if x["image_id"] == image["id"]]
        for record, expected in zip(records, found.coco_records(image["id"]), strict=True):
            assert {name: record[name] for name in ("category_id", "image_id")} == {
                name: expected[name] for name in ("category_id", "image_id")
            }
            assert record["bbox"] == pytest.approx(expected["bbox"], abs=1e-3)
            assert record["score"] == pytest.approx(expected["score"], abs=1e-5)
            assert record["area"] == pytest.approx(record["bbox"][2] * record["bbox"][3])
        total += len(records)
    assert total == len(content["annotations"]) >= 6
    assert f"6 of 6 files are done, with {total} detections; see out." in printed
    assert [x["id"] for x in content["annotations"]] == list(range(1, total + 1))
    # which of two equal names is which
    for name, source in (("1", "a/1.png"), ("1-2", "b/1.png"), ("2", "a/2.bmp")):
        found = predictor(photos / source, score_threshold=threshold)
        expected = np.asarray(found.draw(photos / source)).astype(int)
        difference = np.abs(np.asarray(Image.open(out / f"{name}.jpg")) - expected)
        assert difference.mean() < 5


def test_what_cannot_be_read_is_listed_and_the_rest_is_done(predict, photos, tmp_path, capsys):
    (photos / "a" / "1.png").write_bytes(b"broken")
    (photos / "a" / "clip.mp4").write_bytes(b"broken")
    assert predict("--input", photos / "a", "--json", "found.json") == 1
    assert files(tmp_path / "out") == ["2-2.jpg", "2.jpg", "3.jpg", "predictions.jsonl"]
    assert len(json.loads((tmp_path / "found.json").read_text())["images"]) == 3
    printed = capsys.readouterr()
    assert "3 of 5 files are done" in printed.out
    first, second = [x for x in printed.err.splitlines() if x.startswith("dab-detr")]
    assert "1.png cannot be read: it is not an image" in first
    assert "clip.mp4 cannot be opened by OpenCV" in second
    # repaired, they are done by the same command with --resume
    picture().save(photos / "a" / "1.png")
    clip(photos / "a" / "clip.mp4", count=3)
    assert predict("--input", photos / "a", "--json", "found.json", "--resume") == 0
    assert len(json.loads((tmp_path / "found.json").read_text())["images"]) == 4 + 3


def test_nothing_is_overwritten_unless_told(predict, photos, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "3.jpg").write_text("mine")
    given = ("--input", photos / "a" / "3.png")
    assert predict(*given) == 1
    assert "out/3.jpg exists already" in capsys.readouterr().err
    assert files(out) == ["3.jpg"] and (out / "3.jpg").read_text() == "mine"
    assert predict(*given, "--force") == 0
    before = (out / "3.jpg").read_bytes()
    assert before != b"mine"
    assert predict(*given) == 1
    assert "out has predictions of an earlier run" in capsys.readouterr().err
    (tmp_path / "found.json").write_text("mine")
    assert predict(*given, "--json", "found.json", output="other") == 1
    assert "found.json exists already" in capsys.readouterr().err
    assert (tmp_path / "found.json").read_text() == "mine" and not (tmp_path / "other").exists()
    # --resume continues nothing here
    assert predict(*given, "--json", "found.json", "--resume", output="other") == 1
    assert "found.json exists already" in capsys.readouterr().err
    assert predict(*given, "--json", "found.json", "--resume") == 1
    assert "found.json exists already" in capsys.readouterr().err
    assert predict(*given, "--json", "found.json", "--force") == 0
    assert json.loads((tmp_path / "found.json").read_text())["images"]


@pytest.mark.parametrize("option", [[], ["--force"], ["--resume"]], ids=" ".join)
def test_inputs_are_never_overwritten(predict, tmp_path, option, capsys):
    picture().save(tmp_path / "1.jpg")
    before = (tmp_path / "1.jpg").read_bytes()
    assert predict("--input", tmp_path, *option, output=".") == 1
    assert "1.jpg would be overwritten, which is an input" in capsys.readouterr().err
    log = ("--json", "out/predictions.jsonl")
    assert predict("--input", "1.jpg", *log, *option) == 1
    assert "predictions.jsonl would be overwritten" in capsys.readouterr().err
    assert files(tmp_path) == ["1.jpg"] and (tmp_path / "1.jpg").read_bytes() == before


@pytest.mark.parametrize("half_a_line", [False, True])
def test_an_interrupted_run_is_continued(predict, stopped, photos, tmp_path, capsys, half_a_line):
    given = ("--input", photos / "a", photos / "b", "--json", "found.json", "--batch", 1)
    assert predict(*given, output="whole") == 0
    (tmp_path / "found.json").rename(tmp_path / "whole.json")
    capsys.readouterr()

    stopped(5)
    assert predict(*given) == 130
    assert capsys.readouterr().err == (
        "dab-detr predict: Stopped by SIGINT. What is finished is in out; run the same command "
        "with --resume to continue.\n"
    )
    assert not (tmp_path / "found.json").exists()
    log = tmp_path / "out" / "predictions.jsonl"
    done = len(log.read_text().splitlines()) - 1
    assert 1 <= done <= 4
    if half_a_line:
        with open(log, "a") as file:
            file.write('{"file": "photos/a')

    assert predict(*given, "--resume", lowest=0.9) == 1
    assert "was started with another --confidence-threshold" in capsys.readouterr().err
    sizes = stopped(None)
    assert predict(*given, "--resume") == 0
    assert sum(sizes) == 6 - done
    assert (tmp_path / "found.json").read_text() == (tmp_path / "whole.json").read_text()
    for name in files(tmp_path / "whole"):
        if name.endswith(".jpg"):
            same = (tmp_path / "out" / name).read_bytes() == (
                tmp_path / "whole" / name
            ).read_bytes()
            assert same, name
    # nothing is left to do
    sizes.clear()
    assert predict(*given, "--resume") == 0 and not sizes
    # a new image does not take the name of another
    before = files(tmp_path / "out")
    picture(9).save(photos / "a" / "1.bmp")
    assert predict(*given, "--resume") == 0 and sizes == [1]
    assert set(files(tmp_path / "out")) - set(before) == {"1-3.jpg"}


def test_a_video_is_predicted_frame_by_frame(predict, predictor, threshold, tmp_path):
    source = clip(tmp_path / "clip.avi.mp4")
    assert predict("--input", source, "--json", "out/found.json", "--batch", 5) == 0
    out = tmp_path / "out"
    assert files(out) == ["clip.avi.mp4", "found.json", "predictions.jsonl"]
    given, drawn = frames(source), frames(out / "clip.avi.mp4")
    assert len(given) == len(drawn) == 12
    assert cv2.VideoCapture(str(out / "clip.avi.mp4")).get(cv2.CAP_PROP_FPS) == 10
    # enlarged, as small images are; brighter from frame to frame
    assert {frame.shape for frame in drawn} == {(480, 640, 3)}
    brightness = [np.median(frame) for frame in drawn]
    assert brightness == sorted(brightness) and brightness[-1] - brightness[0] > 100
    content = json.loads((out / "found.json").read_text())
    assert [image["frame"] for image in content["images"]] == list(range(12))
    for image, frame in zip(content["images"], given):
        expected = predictor(frame, channels="BGR", score_threshold=threshold).coco_records()
        boxes = [x["bbox"] for x in content["annotations"] if x["image_id"] == image["id"]]
        np.testing.assert_allclose(boxes, [x["bbox"] for x in expected], atol=1e-2)


def test_half_a_video_is_not_kept(predict, stopped, tmp_path):
    given = ("--input", clip(tmp_path / "clip.mp4"), "--batch", 2)
    stopped(4)
    assert predict(*given) == 130
    assert files(tmp_path / "out") == ["predictions.jsonl"]
    stopped(None)
    assert predict(*given, "--resume") == 0
    assert len(frames(tmp_path / "out" / "clip.mp4")) == 12


def test_a_camera_is_recorded_until_ctrl_c(predict, stopped, tmp_path, monkeypatch):
    """A clip in the place of a camera; a real one is not tried here."""
    source = clip(tmp_path / "clip.mp4")
    open_video = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda x: open_video(str(source) if x == 0 else x))
    stopped(4)
    assert predict("--input", "0", "--batch", 2) == 130
    count = len(frames(tmp_path / "out" / "camera0.mp4"))
    assert 1 <= count <= 6
    (line,) = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()[1:]
    assert len(json.loads(line)["frames"]) == count


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--input", "gone.jpg"], "There is no file or folder gone.jpg"),
        (["--input", "*.jpg"], "No file matches"),
        (["--input", "empty"], "The folder empty has no images and no videos"),
        (["--input", "x.png", "--json", "gone/found.json"], "There is no folder gone"),
        (["--input", "x.png", "--json", "empty"], "empty exists already"),
        (["--input", "x.png", "--weights", "gone.pth"], "gone.pth"),
        (["--input", "x.png", "--output", "x.png"], "x.png"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_what_cannot_work_is_said_in_one_sentence(predict, tmp_path, arguments, words, capsys):
    (tmp_path / "empty").mkdir()
    picture().save(tmp_path / "x.png")
    assert predict(*arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dab-detr predict: ") and words in line
    assert files(tmp_path) == ["empty", "x.png"]


@pytest.mark.parametrize(
    "arguments",
    [["--batch", "0"], ["--confidence-threshold", "50"], ["--resume", "--force"]],
    ids=" ".join,
)
def test_wrong_usage_ends_with_two(predict, arguments):
    with pytest.raises(SystemExit) as stop:
        predict("--input", "x.png", *arguments)
    assert stop.value.code == 2
