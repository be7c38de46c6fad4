"""``dab-detr COMMAND``: runs a command."""

import difflib
import importlib.util
import signal
import sys
from collections.abc import Sequence

from dab_detr import __version__
from dab_detr.errors import NO_DETECTRON2, InputError

PROGRAM = "dab-detr"
# name -> the module in this folder whose main(arguments, program) runs it, and a description
COMMANDS = {
    "train": ("train", "train a model from a config, or continue with --resume"),
    "predict": ("predict", "detect objects in images and videos, and draw them"),
    "app": ("app", "serve a page to try a model in the browser"),
    "eval": ("evaluate", "evaluate a checkpoint or an exported file"),
    "convert": ("convert", "convert a checkpoint between layouts"),
    "export": ("export", "export a trained model to ONNX, OpenVINO or torch.export"),
    "zoo": ("zoo", "list published weights, and which of them are in the cache"),
    "analyze": ("analyze", "print parameters and GFLOPs of a model, or the memory to train it"),
    "visualize data": ("visualize_data", "draw what the data loader feeds the model"),
    "environment": ("environment", "print what is installed, and which kind of Detectron2"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``dab-detr``; returns the exit code: 2 for wrong usage, else that of the command."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["--version"]:
        print(f"{PROGRAM} {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    for length in (1, 2):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return run(name, words[length:])
    group = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if group and words[1:] in ([], ["-h"], ["--help"]):
        print(_help(group), file=sys.stdout if words[1:] else sys.stderr)
        return 0 if words[1:] else 2
    close = difflib.get_close_matches(" ".join(words[:2]), COMMANDS, n=1)
    close = close or [name for name in COMMANDS if name.startswith(words[0])]
    hint = f"; did you mean {close[0]}?" if close else "."
    print(f"{PROGRAM}: There is no command {words[0]!r}{hint} --help lists them.", file=sys.stderr)
    return 2


def run(name: str, arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run one command; what a user can correct is printed as one sentence.

    Args:
        name: of the command, a key of COMMANDS.
        arguments: those after the name; None: those of this process.
        program: name of the program, for messages; None: ``dab-detr NAME``.

    Returns:
        The exit code: that of the command, 1 after :class:`InputError`, 130 after Ctrl-C.
    """
    program = program or f"{PROGRAM} {name}"
    module = importlib.import_module(f"dab_detr.cli.{COMMANDS[name][0]}")
    try:
        return module.main(arguments, program)
    except InputError as error:
        reason, code = str(error), 1
    except KeyboardInterrupt as error:
        # a command may say how to continue
        reason, code = " ".join(("Stopped by SIGINT.", *map(str, error.args))), 128 + signal.SIGINT
    except ModuleNotFoundError:
        if importlib.util.find_spec("detectron2") is not None:
            raise
        reason, code = NO_DETECTRON2, 1
    print(f"{program}: {reason}", file=sys.stderr)
    return code


def _help(names: Sequence[str] = tuple(COMMANDS)) -> str:
    lines = "\n".join(f"  {name:16} {COMMANDS[name][1]}" for name in names)
    return (
        f"usage: {PROGRAM} COMMAND ...\n\nDAB-DETR for Detectron2. Commands:\n{lines}\n\n"
        f"{PROGRAM} COMMAND --help shows its options; {PROGRAM} --version prints the version."
    )


if __name__ == "__main__":
    sys.exit(main())
