"""The demo trains as recorded: whoever moves code does not move what is computed."""

import pytest
from first_losses import first_losses, recorded_losses

# where rounding is the same, so are the losses; elsewhere small differences grow from step to step
EARLY, LATER = 1e-5, 1e-2


@pytest.mark.long
def test_the_demos_first_losses_are_those_recorded(tmp_path, monkeypatch, datasets_root):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets_root))
    found, recorded = first_losses(tmp_path / "run"), recorded_losses()
    assert found.keys() == recorded.keys() and len(found) == 9
    for name, expected in recorded.items():
        assert len(expected) == 50
        assert found[name][:8] == pytest.approx(expected[:8], rel=EARLY), name
        assert found[name][8:] == pytest.approx(expected[8:], rel=LATER), name
