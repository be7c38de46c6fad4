import json

import pytest
from PIL import Image

from dab_detr.visualization.curves import draw_curves


def test_draws_what_the_file_has(tmp_path):
    metrics = tmp_path / "metrics.json"
    records = [
        {"iteration": i, "total_loss": 9.0 - i, "loss_class": 1.0, "lr": 1e-3} for i in range(5)
    ]
    records.append({"iteration": 4, "bbox/AP": 12.5})
    # the last line as a kill has left it
    lines = [json.dumps(record) + "\n" for record in records] + ['{"iteration": 5, "total_lo']
    metrics.write_text("".join(lines))
    assert draw_curves(metrics, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.width > 600
        assert len(picture.convert("L").getcolors()) > 10


def test_nothing_to_draw_writes_nothing(tmp_path):
    assert not draw_curves(tmp_path / "missing.json", tmp_path / "curve.png")
    (tmp_path / "metrics.json").write_text('{"iteration": 0}\n')
    assert not draw_curves(tmp_path / "metrics.json", tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()


@pytest.mark.filterwarnings("error")
def test_without_an_evaluation_there_are_the_other_curves(tmp_path):
    (tmp_path / "metrics.json").write_text('{"iteration": 0, "total_loss": 1.0, "lr": 0.1}\n')
    assert draw_curves(tmp_path / "metrics.json", tmp_path / "curve.png")
