"""``dab-detr zoo``: published weights."""

import argparse
from collections.abc import Sequence


def main(arguments: Sequence[str] | None, program: str) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="List published weights, whose names can be given wherever a checkpoint is "
        "taken. AP is the publisher's, on COCO val2017.",
    )
    parser.parse_args(arguments)

    from tabulate import tabulate

    from dab_detr.checkpoint.zoo import PUBLISHED

    rows = [
        (name, f"{x.ap:.1f}", f"{x.parameters / 1e6:.1f} M", _cached(x.source), x.licence, x.source)
        for name, x in PUBLISHED.items()
    ]
    headers = ("name", "AP", "parameters", "in the cache", "licence", "source")
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    return 0


def _cached(source: str) -> str:
    from dab_detr.checkpoint import hub
    from dab_detr.checkpoint.downloads import cached_file

    is_model = source.startswith(hub.PREFIX)
    return "yes" if (hub.is_cached(source) if is_model else cached_file(source).is_file()) else "-"
