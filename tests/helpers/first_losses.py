"""The losses of the demo's first 50 steps (seed 0, one thread), by name.

``python tests/helpers/first_losses.py`` trains and says how far they are from the recorded ones;
with ``--record`` they are recorded. Another processor or PyTorch rounds differently.
"""

import argparse
import json
import os
import signal
import tempfile
from pathlib import Path

import torch
from detectron2.utils.events import EventWriter, get_event_storage

from dab_detr.engine.main import main

ASSETS = Path(__file__).parents[1] / "assets"
RECORDED = ASSETS / "first_losses.json"


class StopAfter(EventWriter):
    """Stops the training after that many steps, as a cluster would: by a signal."""

    def __init__(self, steps: int):
        self._steps = steps

    def write(self):
        if get_event_storage().iter + 1 == self._steps:
            os.kill(os.getpid(), signal.SIGTERM)


def recorded_losses():
    """Losses of each step, a list by name."""
    return json.loads(RECORDED.read_text())


def first_losses(folder):
    """Trains in this process, into the folder; losses of each step, a list by name."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        config = str(ASSETS / "first_losses_config.py")
        code = main(["--config-file", config, f"train.output_dir={folder}"])
    finally:
        torch.set_num_threads(threads)
    assert code == 128 + signal.SIGTERM
    rows = [json.loads(x) for x in (Path(folder) / "metrics.json").read_text().splitlines()]
    names = sorted(name for name in rows[0] if name.startswith("loss_"))
    return {name: [row[name] for row in rows] for name in names}


def _compare(found, recorded):
    print("step  largest relative difference")
    for step, values in enumerate(zip(*(found[name] for name in recorded))):
        expected = [recorded[name][step] for name in recorded]
        difference = max(abs(x - y) / abs(y) for x, y in zip(values, expected))
        print(f"{step:4}  {difference:.2e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as output:
        losses = first_losses(output)
    if args.record:
        RECORDED.write_text(json.dumps(losses, indent=1) + "\n")
    else:
        _compare(losses, recorded_losses())
