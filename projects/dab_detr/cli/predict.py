"""``dab-detr predict``: detects objects in images and videos."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dab_detr.cli.options import predictor_arguments

if TYPE_CHECKING:
    from dab_detr.inference.prediction_log import PredictionLog

_EPILOG = """\
Examples: %(prog)s --weights model_final.pth --input photos --output found
          %(prog)s --weights model_final.pth --input "a/*.jpg" clip.mp4 --output found
          %(prog)s --weights model_final.pth --input 0 --output found   (camera 0, until Ctrl-C)
Exit code: 0; 1 if a file cannot be read, or for wrong files or values; 2 for wrong usage; 130 after
Ctrl-C.
"""


def main(arguments: Sequence[str] | None, program: str) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Detect objects in images and videos, and draw them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    predictor_arguments(parser)
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="INPUT",
        help="images, videos, folders, patterns, or numbers of cameras",
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder for pictures and videos"
    )
    parser.add_argument("--json", metavar="FILE", help="also write all detections, as COCO's JSON")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        metavar="T",
        help="lowest score, 0 to 1; default: %(default)s",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=4,
        metavar="N",
        help="images to compute together; default: %(default)s",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="continue an interrupted run")
    existing.add_argument("--force", action="store_true", help="replace existing files")
    args = parser.parse_args(arguments)
    if not 0 <= args.confidence_threshold <= 1:
        parser.error("--confidence-threshold has to be from 0 to 1.")
    if args.batch < 1:
        parser.error("--batch has to be at least 1.")
    return _predict(args, program)


def _predict(args: argparse.Namespace, program: str) -> int:
    import torch

    from dab_detr.allocator import keep_freed_memory
    from dab_detr.files import cannot_be_written
    from dab_detr.inference.predict_files import FilePredictions
    from dab_detr.inference.prediction_log import PredictionLog
    from dab_detr.inference.predictor import Predictor
    from dab_detr.inference.sources import find_sources, output_names

    sources = find_sources(args.input)
    folder = Path(args.output)
    log = PredictionLog(folder, _settings(args), resume=args.resume, replace=args.force)
    names = output_names(sources, log.outputs)
    targets = [folder / names[source.file] for source in sources]
    if args.json:
        targets.append(Path(args.json))
    _check_targets(targets, args, log, {os.path.abspath(source.file) for source in sources})
    if not torch.cuda.is_available():
        keep_freed_memory()
    predictor = Predictor(args.weights, args.config_file, optimize=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_be_written(folder, error) from error
    log.start(names, targets)
    selection = predictor.selection(score_threshold=args.confidence_threshold)
    run = FilePredictions(predictor, selection, folder, names, log, batch_size=args.batch)
    try:
        run.run([source for source in sources if not log.is_finished(source.file)])
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"What is finished is in {folder}; run the same command with --resume to continue."
        ) from None
    files = [source.file for source in sources]
    if args.json:
        log.write_coco(args.json, files, predictor.class_names)
        print(f"The detections are in {args.json}.")
    print(
        f"{len(files) - len(run.failed)} of {len(files)} files are done, with {log.count(files)} "
        f"detections; see {folder}."
    )
    for reason in run.failed.values():
        print(f"{program}: {reason}", file=sys.stderr)
    return 1 if run.failed else 0


def _check_targets(
    targets: Sequence[Path], args: argparse.Namespace, log: "PredictionLog", inputs: set[str]
) -> None:
    """Refuse to overwrite files, except with --force and those of the run that is continued."""
    from dab_detr.errors import InputError

    for target in targets:
        if os.path.abspath(target) in {*inputs, os.path.abspath(log.path)}:
            raise InputError(
                f"{target} would be overwritten, which is an input or the log of the run: choose "
                "another --output or --json."
            )
        if target.is_dir() or (target.exists() and not (args.force or log.is_own(target))):
            raise InputError(
                f"{target} exists already: choose another name, or replace files with --force."
            )
    # the output folder is made later
    parent = targets[-1].parent
    if not parent.is_dir() and os.path.abspath(parent) != os.path.abspath(args.output):
        raise InputError(f"There is no folder {parent} for --json {args.json}.")


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What has to be the same when a run is continued."""
    weights = [args.weights]
    if os.path.isfile(args.weights):
        stat = os.stat(args.weights)
        weights = [os.path.abspath(args.weights), stat.st_size, stat.st_mtime_ns]
    config = args.config_file and os.path.abspath(args.config_file)
    return {
        "--weights": weights,
        "--config-file": config,
        "--confidence-threshold": args.confidence_threshold,
    }
