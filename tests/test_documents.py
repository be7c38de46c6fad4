"""The Python blocks of a document run, one after the other, beside a checkpoint and an image."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+) -->\n)?^```python\n(?P<code>.*?)^```$", re.M | re.S
)


def blocks(text):
    """Each Python block after the number of its line; not those that say why they do not run."""
    for match in BLOCK.finditer(text):
        if match["reason"] is None:
            yield text[: match.start("code")].count("\n"), match["code"]


def run(text, name):
    namespace = {}
    for line, code in blocks(text):
        # errors name the line of the document
        exec(compile("\n" * line + code, name, "exec"), namespace)
    return namespace


@pytest.mark.parametrize("name", ["INFERENCE.md"])
def test_the_examples_of_a_document_run(name, trained, tmp_path, monkeypatch):
    for file in ("model_final.pth", "config.yaml"):
        shutil.copy(trained / file, tmp_path)
    pixels = np.random.RandomState(0).randint(0, 256, (72, 96, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)
    run((DOCS / name).read_text(), name)


def test_blocks_are_run_unless_they_say_why_not():
    text = """
```python
a = 1
```
<!-- not run: needs a GPU -->
```python
b = 1
```
```
c = 1
```
```python
d = a + 1
```
"""
    assert {"a": 1, "d": 2}.items() <= run(text, "x.md").items()
    assert not {"b", "c"} & run(text, "x.md").keys()
    with pytest.raises(ZeroDivisionError) as error:
        run(f"{text}\n```python\n1 / 0\n```\n", "x.md")
    assert (str(error.traceback[-1].path), error.traceback[-1].lineno + 1) == ("x.md", 17)
