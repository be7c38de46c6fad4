"""``dab-detr export``: exports a trained model to a file for inference elsewhere."""

import argparse
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None, program: str = "dab-detr export") -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Export a trained model: uint8 pixels (B, C, H, W) and image sizes in; boxes, "
        "scores and labels out. The file is compared with the model before it is written.",
    )
    parser.add_argument(
        "--weights", required=True, metavar="W", help="a checkpoint, or a name of dab-detr zoo"
    )
    parser.add_argument(
        "--config-file", metavar="F", help="for checkpoints that do not have the model's config"
    )
    parser.add_argument("--format", required=True, choices=("onnx", "openvino", "torch_export"))
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="fp16: a file of half the size; int8: a faster one, where the processor can",
    )
    parser.add_argument(
        "--calibration",
        metavar="DATA",
        help="for int8: name of a registered data set, or a folder of images like those that it "
        "will see",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        help="ends in .onnx; .xml for OpenVINO, which writes a .bin beside it; .pt2 for "
        "torch_export",
    )
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare the file with the model on images of coloured blocks (default)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    args = parser.parse_args(arguments)
    if (args.precision == "int8") != (args.calibration is not None):
        parser.error("--precision int8 and --calibration DATA need each other.")

    from dab_detr.inference.export import check_output, export_model, metadata_of
    from dab_detr.inference.export.quantization import calibration_images
    from dab_detr.inference.loading import load

    # before anything that takes time
    check_output(args.output, args.format, args.precision, force=args.force)
    loaded = load(args.weights, args.config_file, "cpu")
    metadata = metadata_of(loaded, args.precision)
    images = calibration_images(args.calibration, metadata) if args.calibration else ()
    export_model(
        loaded.model,
        args.output,
        metadata,
        format=args.format,
        calibration=images,
        check=args.check,
        force=args.force,
    )
    print(f"{args.output} written")
    return 0
