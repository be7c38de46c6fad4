"""The page through its protocol, as the browser speaks it, and the command that serves it."""

import io
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import programs
import pytest
import torch
from chosen_queries import ChosenQueries
from detections import as_after_training
from pages import save_blocks, serving
from PIL import Image

import dab_detr.app.server
from dab_detr import Predictor
from dab_detr.app.examples import find_examples
from dab_detr.app.page import build_page
from dab_detr.app.server import listen
from dab_detr.app.session import MOST_SHOWN, Detector
from dab_detr.cli.main import main
from dab_detr.errors import InputError
from dab_detr.inference.runtime import Found

gradio_client = pytest.importorskip("gradio_client")
PROGRAM = Path(dab_detr.__file__).parent / "cli" / "main.py"


@pytest.fixture
def connect(tmp_path):
    """A function that opens a session with a page."""

    def open_session(address):
        return gradio_client.Client(
            address,
            verbose=False,
            analytics_enabled=False,
            download_files=tmp_path / "received",
            # for machines with much else to do
            httpx_kwargs={"timeout": 300},
        )

    return open_session


@pytest.fixture
def session(connect, address_of_page):
    return connect(address_of_page)


def detect(session, file, threshold=1.0):
    """Layer, picture, table, summary."""
    layer, *shown = session.predict(gradio_client.handle_file(file), threshold, api_name="/detect")
    return layer, *shown


def show(session, threshold, layer):
    return session.predict(threshold, layer, api_name="/show")


def assert_table(table, names, scores, boxes):
    assert table["headers"] == ["class", "score", "x0", "y0", "x1", "y1"]
    rows = table["data"]
    assert [row[0] for row in rows] == names
    if scores is None:
        assert [row[1] for row in rows] == [""] * len(names)
    else:
        np.testing.assert_allclose([row[1] for row in rows], scores, atol=6e-4)
    np.testing.assert_allclose([row[2:] for row in rows], boxes.reshape(-1, 4), atol=0.06)


def test_an_upload_gives_what_the_predictor_finds(session, predictor, image):
    everything = predictor(image, score_threshold=0)
    threshold = float(everything.scores[6:8].mean())
    layer, picture, table, summary = detect(session, image, threshold)
    found = predictor(image, score_threshold=threshold)
    assert len(found) == 7
    assert_table(table, found.names, found.scores, found.pred_boxes.tensor.numpy())
    assert summary == "street.png, 96 x 72 pixels: 7 objects."
    assert layer["value"] == layer["maximum"] == 2 and layer["minimum"] == 0
    drawn = np.array(found.draw(image), dtype=float)
    sent = np.array(Image.open(picture), dtype=float)
    assert sent.shape == drawn.shape
    assert abs(sent - drawn).mean() < 8  # JPEG
    undrawn = np.array(found[:0].draw(image), dtype=float)
    assert abs(sent - undrawn).mean() > 2 * abs(sent - drawn).mean()


def test_threshold_and_layer_select_without_computing_again(session, predictor, image):
    found = predictor.detect_layers(
        predictor.prepare(image), predictor.selection(score_threshold=0)
    )
    detect(session, image)
    count = predictor.count
    pictures = set()
    for shown in (4, 9):
        threshold = float(found.scores[shown - 1 : shown + 1].mean())
        for layer in (2, 1, 0):
            picture, table, summary = show(session, threshold, layer)
            scores = found.layer_scores[:shown, layer - 1] if layer else None
            boxes = found.layer_boxes[:shown, layer].numpy()
            assert_table(table, found.names[:shown], scores, boxes)
            assert summary.endswith(f" {shown} objects.")
            pictures.add(Path(picture).read_bytes())
    assert len(pictures) == 6
    assert predictor.count == count
    _, table, summary = show(session, 1, 2)
    assert table["data"] == [] and summary.endswith(": 0 objects.")


def test_before_an_image_there_is_nothing_to_show(session):
    picture, table, summary = show(session, 0.5, 1)
    assert picture is None and table["data"] == [] and summary == ""


def png(width, height, content=b""):
    """A file that says it is that large, whatever it contains."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(content))
        + chunk(b"IEND", b"")
    )


def cut_off(image):
    content = io.BytesIO()
    Image.open(image).resize((400, 300)).save(content, "jpeg")
    return content.getvalue()[:2000]


BAD = {
    "notes.txt": (lambda _: b"Not an image.", "is not an image of a known kind"),
    "empty.png": (lambda _: b"", "cannot be read"),
    "cut.jpg": (cut_off, "cannot be read"),
    "vector.svg": (lambda _: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "large.png": (lambda _: png(12_000, 9_000), "more than the limit of 100,000,000 pixels"),
    "bomb.png": (lambda _: png(60_000, 60_000), "cannot be read: DecompressionBombError"),
    "narrow.png": (lambda _: png(9_000, 1), "too narrow"),
    "<img src=x>.png": (lambda _: b"?", "cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gives_a_sentence_and_the_server_lives_on(session, image, tmp_path, name):
    content, reason = BAD[name]
    file = tmp_path / name
    file.write_bytes(content(image))
    detect(session, image)
    _, picture, table, summary = detect(session, file)
    assert picture is None and table["data"] == []
    assert reason in summary and summary.endswith(".") and summary.startswith("The image ")
    # not where the server keeps it
    assert "/" not in summary.replace("9000 x 1", "")
    # the image before it is gone, too
    assert show(session, 0, 1)[0] is None
    assert detect(session, image)[-1].startswith("street.png")


def test_a_file_of_too_many_bytes_is_refused(predictor, connect, image, uploads, monkeypatch):
    monkeypatch.setattr(dab_detr.app.server, "MAX_FILE_SIZE", image.stat().st_size)
    large = save_blocks(image.with_name("large.bmp"), 0)
    with serving(build_page(predictor)) as address:
        session = connect(address)
        with pytest.raises(Exception, match="413|size|large"):
            detect(session, large)
        assert detect(session, image)[-1].startswith("street.png")


def test_a_page_serves_no_other_files(address_of_page, image):
    for path in (image, Path("/etc/passwd"), Path(__file__)):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{address_of_page}/gradio_api/file={path}")
        assert error.value.code in (403, 404)


def test_users_have_their_own_images(connect, address_of_page, predictor, tmp_path):
    files = [save_blocks(tmp_path / f"{x}.png", x, 80 + 8 * x) for x in range(3)]
    expected = [predictor(file, score_threshold=0) for file in files]
    predictor.most_busy = 0
    start, failed = threading.Barrier(len(files)), []

    def use(index):
        found, threshold = expected[index], float(expected[index].scores[4:6].mean())
        try:
            session = connect(address_of_page)
            for _ in range(3):
                start.wait(60)
                *_, summary = detect(session, files[index])
                assert summary.startswith(f"{index}.png, {80 + 8 * index} x 72 pixels")
                start.wait(60)
                _, table, _ = show(session, threshold, 2)
                assert_table(
                    table, found.names[:5], found.scores[:5], found.pred_boxes.tensor[:5].numpy()
                )
        except BaseException as error:
            failed.append(error)
            start.abort()

    threads = [threading.Thread(target=use, args=(index,)) for index in range(len(files))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    # runtimes of exported files have one buffer
    assert predictor.most_busy == 1


def choose(address, index, session_hash="choosing", threshold=0.0):
    """Clicks at an example, in the browser's way; returns what the page gets."""
    config = json.load(urllib.request.urlopen(f"{address}/config"))
    (event,) = (x for x in config["dependencies"] if x["api_name"] == "example")
    data = {
        "data": [threshold],
        "fn_index": event["id"],
        "event_data": {"index": index, "value": None},
        "session_hash": session_hash,
    }
    request = urllib.request.Request(
        f"{address}/gradio_api/queue/join",
        json.dumps(data).encode(),
        {"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request).read()
    stream = urllib.request.urlopen(f"{address}/gradio_api/queue/data?session_hash={session_hash}")
    for line in stream:
        if b'"process_completed"' in line:
            return json.loads(line.removeprefix(b"data: "))["output"]["data"]
    raise AssertionError("no result")


def test_examples_are_the_images_of_a_folder(address_of_page, predictor, example_folder):
    found = predictor(example_folder / "c.bmp", score_threshold=0)
    *_, table, summary = choose(address_of_page, 1)
    assert summary.startswith(f"c.bmp, 120 x 72 pixels: {len(found)} objects")
    assert_table(table, found.names, found.scores, found.pred_boxes.tensor.numpy())
    config = json.load(urllib.request.urlopen(f"{address_of_page}/config"))
    (gallery,) = (x["props"] for x in config["components"] if x["type"] == "gallery")
    assert gallery["visible"] and len(gallery["value"]) == 2
    small = urllib.request.urlopen(gallery["value"][1]["image"]["url"]).read()
    assert Image.open(io.BytesIO(small)).size == (120, 72)


def test_example_folders_without_images_are_refused(tmp_path):
    with pytest.raises(InputError, match="There is no folder .*here.*--examples"):
        find_examples(tmp_path / "here")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(InputError, match="has no images"):
        find_examples(tmp_path)
    save_blocks(tmp_path / "large.png", 0, 100, 100)
    with pytest.raises(InputError, match="has no images"):
        find_examples(tmp_path, max_pixels=9_999)
    for number in range(30):
        save_blocks(tmp_path / f"{number:02}.png", number, 8, 8)
    assert [x.path.stem for x in find_examples(tmp_path)] == [f"{x:02}" for x in range(24)]


def test_neither_the_server_nor_the_page_asks_other_hosts(
    predictor, example_folder, uploads, monkeypatch
):
    asked = set()
    lookup = socket.getaddrinfo

    def noted(host, *args, **kwargs):
        asked.add(host)
        return lookup(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", noted)
    with serving(build_page(predictor, find_examples(example_folder))) as address:
        choose(address, 0)
        answer = urllib.request.urlopen(address)
    assert asked and asked <= {"127.0.0.1", b"127.0.0.1"}
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy and "http" not in policy
    text = answer.read().decode()
    # what a page loads without being asked
    loaded = re.findall(r"""<(?:script|link|img|iframe)[^>]*?(?:src|href)=["'](.*?)["']""", text)
    assert loaded and not [x for x in loaded if "//" in x and not x.startswith(address)]


class Fixed:
    """In the place of an exported file: finds the same in every image."""

    num_layers = 0

    def __call__(self, images):
        boxes = torch.tensor([[10.0, 10.0, 40.0, 30.0]])
        return [Found(torch.tensor([0.75]), torch.tensor([1]), boxes) for _ in images]


def test_exported_files_have_no_layers(detector, connect, image, uploads):
    predictor = Predictor(detector, short_edge=0)
    predictor.runtime = Fixed()
    with serving(build_page(predictor)) as address:
        config = json.load(urllib.request.urlopen(f"{address}/config"))
        _, _, table, _ = detect(connect(address), image, 0.5)
    sliders = {
        x["props"]["elem_id"]: x["props"] for x in config["components"] if "slider" in x["type"]
    }
    assert sliders["threshold"]["visible"] and not sliders["layer"]["visible"]
    assert table["data"] == [["class 1", 0.75, 10, 10, 40, 30]]


def test_queries_without_anchors_begin_with_the_first_layer(small_model, image, connect, uploads):
    model = small_model(num_decoder_layers=2)
    queries = ChosenQueries(num_queries=7, d_model=32, num_classes=3)
    model.transformer.queries = queries
    model.transformer.decoder.connect(queries)
    predictor = Predictor(as_after_training(model), short_edge=0)
    with serving(build_page(predictor)) as address:
        session = connect(address)
        layer, *_ = detect(session, image)
        assert (layer["minimum"], layer["maximum"], layer["value"]) == (1, 2, 2)
        assert show(session, 0, 1)[1]["data"] != show(session, 0, 2)[1]["data"]


def test_what_is_drawn_has_a_limit(small_model, tmp_path):
    """Of boxes and of pixels; the table's boxes are those of the image."""
    model = as_after_training(small_model(num_queries=60))
    predictor = Predictor(model, short_edge=64, max_size=200)
    file = save_blocks(tmp_path / "wide.png", 3, 2560, 640)
    detector = Detector(predictor)
    view = detector.view(detector.find(file), 0)
    found = predictor(file, score_threshold=0)
    assert len(found) > MOST_SHOWN == len(view.rows) == 100
    assert view.summary == f"wide.png, 2560 x 640 pixels: the best 100 of {len(found)} objects."
    assert view.picture.size == (1920, 480)  # reduced to 1280, and drawn larger
    np.testing.assert_allclose(
        [row[2:] for row in view.rows], found.pred_boxes.tensor[:100], atol=0.06
    )


@pytest.mark.parametrize("image_format", ["BGR", "L"])
def test_the_picture_has_the_image_s_colours(detector, tmp_path, image_format):
    file = tmp_path / "red.png"
    Image.new("RGB", (640, 480), (200, 40, 20)).save(file)
    if image_format == "L":
        detector.backbone.stem.conv1 = torch.nn.Conv2d(1, 16, 3)
        detector.pixel_mean = detector.pixel_std = torch.ones(1, 1, 1)
    page = Detector(Predictor(detector, image_format=image_format, short_edge=64))
    view = page.view(page.find(file), 1)
    grey = Image.open(file).convert("L").getpixel((0, 0))
    expected = (200, 40, 20) if image_format == "BGR" else (grey,) * 3
    assert np.abs(np.array(view.picture.getpixel((320, 240))) - expected).max() <= 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_ctrl_c(trained, tmp_path, connect, number):
    image = save_blocks(tmp_path / f"{tmp_path.parent.name}_{number}.png", 1)
    program = programs.Program(
        PROGRAM,
        ["app", "--weights", trained / "model_final.pth", "--port", 0, "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        lines = iter(program.stdout)
        text = next(line for line in lines if "http" in line)
        address = re.search(r"http://127\.0\.0\.1:\d+", text).group()
        # a window that stays open
        session = connect(address)
        assert detect(session, image)[-1].startswith(image.name)
        folders = Path(tempfile.gettempdir()).glob("dab_detr_app_*")
        (uploads,) = (x for x in folders if any(x.rglob(image.name)))
        program.send_signal(number)
        rest = list(lines)
    finally:
        # without effect if it has ended
        program.send_signal(signal.SIGKILL)
        code = program.wait()
    assert code == 0
    assert rest[-1] == "The page is closed.\n"
    assert not [x for x in rest if "Error" in x or "ERROR" in x]
    assert not uploads.exists()


def test_a_port_in_use_is_one_sentence(capsys):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert main(["app", "--weights", "no.pth", "--port", str(port)]) == 1
    assert capsys.readouterr().err == (
        f"dab-detr app: Port {port} of 127.0.0.1 is in use: choose another with --port.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--weights", "no.pth", "--port", "0"], 1, "no.pth"),
        (["--weights", "no.pth", "--host", "192.0.2.1"], 1, "choose another --host or --port."),
        (["--weights", "no.pth", "--port", "70000"], 2, "--port has to be from 0 to 65535."),
        ([], 2, "--weights"),
    ],
    ids=str,
)
def test_wrong_values_are_one_sentence(capsys, arguments, code, text):
    try:
        found = main(["app", *arguments])
    except SystemExit as error:
        found = error.code
    assert found == code
    assert text in capsys.readouterr().err.splitlines()[-1]


def test_without_gradio_the_message_says_what_to_install(trained, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    weights = str(trained / "model_final.pth")
    assert main(["app", "--weights", weights, "--port", "0", "--device", "cpu"]) == 1
    assert capsys.readouterr().err.endswith(
        "dab-detr app: The page needs gradio: pip install 'dab_detr[app]'.\n"
    )


def test_the_address_of_ipv6_is_one_for_browsers():
    try:
        listening = listen("::1", 0)
    except InputError:
        pytest.skip("this machine has no IPv6")
    with listening:
        assert dab_detr.app.server.address(listening).startswith("http://[::1]:")
