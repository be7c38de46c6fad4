"""``dab-detr app``: a page in the browser to try a model."""

import argparse
import os
import tempfile
from collections.abc import Sequence

from dab_detr.cli.options import predictor_arguments

_EPILOG = """\
Example: %(prog)s --weights model_final.pth --examples photos
Exit code: 0 after Ctrl-C; 1 for wrong files or values, or a port that is in use; 2 for wrong usage.
"""


def main(arguments: Sequence[str] | None, program: str) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Serve a page to try a model: upload an image, see boxes and a table, and step "
        "through the decoder layers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    predictor_arguments(parser)
    parser.add_argument("--examples", metavar="DIR", help="folder of images to choose from")
    parser.add_argument("--device", help="such as cpu or cuda; default: a GPU if there is one")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to serve at; default: %(default)s, this machine only. With 0.0.0.0 all who "
        "can reach this machine can use it",
    )
    parser.add_argument(
        "--port", type=int, default=7860, help="default: %(default)s; 0: any that is free"
    )
    args = parser.parse_args(arguments)
    if not 0 <= args.port <= 65535:
        parser.error("--port has to be from 0 to 65535.")
    return _serve(args)


def _serve(args: argparse.Namespace) -> int:
    from dab_detr.app.examples import find_examples
    from dab_detr.app.page import build_page
    from dab_detr.app.server import address, create_app, listen, serve
    from dab_detr.inference.predictor import Predictor

    # before anything that takes time
    folder = tempfile.TemporaryDirectory(prefix="dab_detr_app_")
    with listen(args.host, args.port) as listening, folder as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        predictor = Predictor(args.weights, args.config_file, device=args.device, optimize=True)
        examples = find_examples(args.examples, predictor.max_pixels) if args.examples else ()
        app = create_app(build_page(predictor, examples))
        print(f"The page is at {address(listening)} (Ctrl-C ends it).", flush=True)
        serve(app, listening)
    print("The page is closed.")
    return 0
