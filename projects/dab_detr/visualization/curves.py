"""Training curves as an image."""

import os
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from dab_detr.files import read_json_lines


def draw_curves(metrics_file: str | os.PathLike, output: str | os.PathLike) -> bool:
    """Draw losses, AP and learning rate by step.

    Args:
        metrics_file: ``metrics.json``, a JSON object per line; incomplete lines are skipped.
        output: the PNG file to write.

    Returns:
        False if the file does not exist or has no loss; nothing is written then.
    """
    if not Path(metrics_file).is_file():
        return False
    by_step: dict[int, dict] = {}
    for record in read_json_lines(metrics_file):
        if "iteration" in record:
            # evaluations may be in separate lines
            by_step.setdefault(record["iteration"] + 1, {}).update(record)
    records = sorted(by_step.items())

    def series(name: str) -> tuple[list, list]:
        points = [(step, record[name]) for step, record in records if name in record]
        return [step for step, _ in points], [value for _, value in points]

    if not series("total_loss")[0]:
        return False
    # names of data sets are not formulas
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(12, 3.6))
        panels = figure.subplots(1, 3)
        # a layout that is computed would take as long as all the rest
        figure.subplots_adjust(left=0.04, right=0.99, bottom=0.14, top=0.91, wspace=0.17)
        metrics = {name: None for _, record in records for name in record}
        # also of EMA weights and of several data sets
        precision = [name for name in metrics if name.split("/")[-1] in ("AP", "AP50", "AP75")]
        drawn = (
            ("Loss of the last decoder layer", ("loss_class", "loss_bbox", "loss_giou")),
            ("AP on the validation images", precision),
            ("Learning rate", ("lr",)),
        )
        for panel, (title, names) in zip(panels, drawn):
            for name in names:
                panel.plot(*series(name), label=name, marker="." if name in precision else None)
            panel.set(title=title, xlabel="step", ylim=(0, None))
            panel.grid(alpha=0.3)
            if names:
                panel.legend()
        figure.savefig(output, dpi=100)
    return True
