"""The command dab-detr: what it lists, what it needs, and what it runs."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from dab_detr.cli.main import COMMANDS, main

CONFIG = str(Path(__file__).parents[1] / "assets" / "tiny_config.py")

# a machine on which these are missing
BARE = """
import sys
sys.modules.update(dict.fromkeys(("detectron2", "torch", "numpy", "omegaconf")))
from dab_detr.cli.main import main
sys.exit(main())
"""


def on_a_bare_machine(*arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", BARE, *arguments], capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "arguments", [["--help"], ["environment"], *([*name.split(), "--help"] for name in COMMANDS)],
    ids=" ".join,
)  # fmt: skip
def test_help_and_environment_need_no_library(arguments):
    result = on_a_bare_machine(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    if arguments == ["--help"]:
        for name, (_, what) in COMMANDS.items():
            assert f"\n  {name:16} {what}\n" in result.stdout
    elif arguments == ["environment"]:
        assert "\ndetectron2   missing" in result.stdout
    else:
        assert result.stdout.startswith(f"usage: dab-detr {' '.join(arguments[:-1])} ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--config-file", "any.py"],
        ["predict", "--weights", "any.pth", "--input", "any.jpg", "--output", "out"],
        ["eval", "--config-file", "any.py"],
        ["analyze", "--config-file", "any.py"],
        ["visualize", "data", "--config-file", "any.py"],
    ],
    ids=" ".join,
)
def test_the_other_commands_say_how_to_get_detectron2(arguments):
    result = on_a_bare_machine(*arguments)
    assert result.returncode == 1 and result.stdout == ""
    name = " ".join(x for x in arguments[:2] if not x.startswith("-"))
    assert result.stderr.startswith(f"dab-detr {name}: dab_detr needs Detectron2")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["trian"], "'trian'; did you mean train?"),
        (["visualise", "data"], "'visualise'; did you mean visualize data?"),
        (["visualize", "dat"], "'visualize'; did you mean visualize data?"),
        (["xyz"], "no command 'xyz'. --help lists them."),
    ],
)
def test_an_unknown_command_is_wrong_usage(arguments, words, capsys):
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().err
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dab-detr {metadata.version('dab_detr')}\n"


@pytest.mark.parametrize("option", [[], ["-h"], ["--help"]], ids=str)
def test_the_first_word_of_a_group_lists_its_commands(option, capsys):
    assert main(["visualize", *option]) == (0 if option else 2)
    out, err = capsys.readouterr()
    text = out if option else err
    assert "  visualize data " in text and "convert" not in text


def test_the_command_is_installed():
    (command,) = metadata.entry_points(group="console_scripts", name="dab-detr")
    assert command.load() is main


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["train", "train.max_iter=0"], "dab-detr train: train.max_iter is 0"),
        (["eval"], "dab-detr eval: --eval-only needs weights"),
        (["analyze", "model.num_classes=many"], "dab-detr analyze: "),
        (["visualize", "data", "no.key=1"], "dab-detr visualize data: The config has no key"),
    ],
)
def test_commands_run_from_anywhere_and_by_their_name(
    arguments, words, tmp_path, monkeypatch, capsys, in_process
):
    monkeypatch.chdir(tmp_path)
    name, *rest = arguments
    rest = [*rest[:1], "--config-file", CONFIG, *rest[1:]] if rest[:1] == ["data"] else [
        "--config-file", CONFIG, *rest
    ]  # fmt: skip
    assert main([name, *rest]) == 1
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith(words)


@pytest.mark.parametrize("details", [(), ("The rest can be continued.",)])
def test_ctrl_c_ends_a_command_with_one_sentence(details, monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt(*details)

    monkeypatch.setattr("dab_detr.cli.environment.main", stopped)
    assert main(["environment"]) == 130
    expected = " ".join(("dab-detr environment: Stopped by SIGINT.", *details))
    assert capsys.readouterr().err == f"{expected}\n"
