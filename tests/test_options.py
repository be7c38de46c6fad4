"""What users set is a list in a file: a new key of the configs or a new option is a decision."""

import argparse
import difflib
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dab_detr.cli.main import COMMANDS, main
from dab_detr.config import get_config
from dab_detr.flat_config import flat_settings

FILE = Path(__file__).parent / "assets" / "options.txt"


def keys(content, prefix=""):
    """Of nested dictionaries, with their paths. What a list holds counts as a value."""
    for name, value in content.items():
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{name}.")
        elif name != "_target_":
            yield f"{prefix}{name}"


def options(command):
    """Of a command: each with all its spellings, and what is given without any."""

    class Found(Exception):
        pass

    def stop(parser, *_):
        raise Found(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Found) as found:
            main(command.split())
    (parser,) = found.value.args
    for action in parser._actions:
        if action.dest != "help":
            yield "/".join(action.option_strings) or (action.metavar or action.dest)


def current():
    config = OmegaConf.to_container(get_config("dab_detr_r50_50ep.py"), resolve=False)
    yaml = (f"MODEL.DAB_DETR.{key.upper()}" for key in keys(flat_settings()))
    return sorted(
        [
            *(f"config: {key}" for key in keys(config)),
            *(f"yaml: {key}" for key in yaml),
            *(f"dab-detr {command} {x}" for command in COMMANDS for x in options(command)),
        ]
    )


def test_keys_and_options_are_those_of_the_list(tmp_path):
    known, found = FILE.read_text().splitlines(), current()
    if found == known:
        return
    (tmp_path / FILE.name).write_text("".join(f"{line}\n" for line in found))
    changes = [x for x in difflib.ndiff(known, found) if x.startswith(("+ ", "- "))]
    pytest.fail(
        "Keys of the configs or options of the commands have changed:\n"
        + "\n".join(changes)
        + "\nUsers rely on what goes, and have to learn what comes. If that is intended, document "
        f"it and take over the new list: cp {tmp_path / FILE.name} {FILE}",
        pytrace=False,
    )
