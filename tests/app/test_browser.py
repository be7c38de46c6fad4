"""The page in a real browser: Chromium without a window, driven by Playwright."""

import re
import shutil
from urllib.parse import urlsplit

import numpy as np
import pytest

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(
    (x for x in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if x), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"
)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            # root may not use its sandbox
            args=["--no-sandbox", "--disable-gpu"],
        )
        yield browser
        browser.close()


@pytest.fixture
def window(browser, address_of_page):
    """A window with the page; ``asked`` has what it asks for, ``errors`` its complaints."""
    window = browser.new_page(viewport={"width": 1280, "height": 900})
    window.set_default_timeout(60_000)
    window.asked, window.errors = [], []
    window.on("request", lambda request: window.asked.append(request.url))
    window.on("pageerror", lambda error: window.errors.append(str(error)))
    window.on("console", lambda x: window.errors.append(x.text) if x.type == "error" else None)
    window.goto(address_of_page)
    yield window
    window.close()


def upload(window, file):
    window.set_input_files("#file input[type=file]", file)


def summary(window):
    return window.locator("#summary textarea")


def rows(window):
    """The cells' text."""
    table = window.locator("#table [role=row]:has([role=gridcell])")
    return [row.locator("[role=gridcell]").all_inner_texts() for row in table.all()]


def slide(window, name, value):
    number = window.locator(f"#{name} input[type=number]")
    number.fill(str(value))
    number.press("Enter")


def test_upload_threshold_table_and_layers(window, predictor, image):
    found = predictor.detect_layers(
        predictor.prepare(image), predictor.selection(score_threshold=0)
    )
    expect = sync_api.expect
    slide(window, "threshold", 1)
    upload(window, image)
    expect(summary(window)).to_have_value("street.png, 96 x 72 pixels: 0 objects.")
    count = predictor.count
    empty = window.locator("#picture img").get_attribute("src")

    # few enough that the table shows all rows without scrolling
    counts = {x / 100: int((found.scores >= x / 100).sum()) for x in range(100)}
    threshold, shown = next((x, count) for x, count in counts.items() if 2 <= count <= 7)
    slide(window, "threshold", threshold)
    expect(summary(window)).to_have_value(f"street.png, 96 x 72 pixels: {shown} objects.")
    expect(window.locator("#table [role=row]:has([role=gridcell])")).to_have_count(shown)
    assert window.locator("#picture img").get_attribute("src") != empty
    last = rows(window)
    assert [row[0] for row in last] == found.names[:shown]  # as text, not as HTML
    boxes = np.array([[float(x) for x in row[2:6]] for row in last])
    np.testing.assert_allclose(boxes, found.pred_boxes.tensor[:shown], atol=0.06)

    before = window.locator("#picture img").get_attribute("src")
    slide(window, "layer", 0)
    expect(window.locator("#picture img")).not_to_have_attribute("src", before)
    first = rows(window)
    boxes = np.array([[float(x) for x in row[2:6]] for row in first])
    np.testing.assert_allclose(boxes, found.layer_boxes[:shown, 0], atol=0.06)
    assert [row[1] for row in first] == [""] * shown
    assert predictor.count == count
    assert not window.errors


def test_bad_files_and_examples(window):
    expect = sync_api.expect
    upload(window, {"name": "a&b;.png", "mimeType": "image/png", "buffer": b"no image"})
    sentence = "The image a&b;.png cannot be read: it is not an image of a known kind."
    expect(summary(window)).to_have_value(sentence)
    window.locator("#examples button").nth(1).click()
    expect(summary(window)).to_have_value(re.compile(r"^c\.bmp, 120 x 72 pixels: "))
    assert not window.errors


def test_the_browser_asks_only_this_machine(window, image):
    upload(window, image)
    sync_api.expect(summary(window)).to_have_value(re.compile("^street.png, "))
    asked = [urlsplit(url) for url in window.asked if not url.startswith(("data:", "blob:"))]
    hosts = sorted({url.hostname for url in asked})
    print(f"{len(asked)} requests to {', '.join(hosts)}")
    assert hosts == ["127.0.0.1"]
    # it did not even try: what the policy forbids is an error
    assert not window.errors
