"""What a person sees of a training: little, but all of it is in log.txt."""

import logging
import re
import sys
from pathlib import Path

import pytest

CONFIG = str(Path(__file__).parents[1] / "assets" / "own_config.py")
CHATTER = (
    "Environment info", "Contents of args.config_file", "Serializing", "Augmentations used",
    "copypaste", "Start inference", "Average Precision", "Command line arguments",
)  # fmt: skip
LINE = r"\[\d\d:\d\d:\d\d\] step 2/2 \| loss \S+ .* images/s .* ETA 0:00:00\n"


@pytest.fixture
def train(in_process, tmp_path, capsys):
    """A function that runs a training of two steps; returns what it printed and its log."""

    def run(*arguments, folder="out"):
        arguments = [f"train.output_dir={tmp_path / folder}", "train.log_period=1", *arguments]
        assert in_process("--config-file", CONFIG, *arguments) == 0
        return capsys.readouterr().out, (tmp_path / folder / "log.txt").read_text()

    return run


def test_chatter_is_in_the_log_alone(train):
    printed, log = train()
    for words in CHATTER:
        assert words in log and words not in printed
    assert re.search(LINE, printed) and "\r" not in printed
    assert re.search(r"\| bbox \| .*\n\nIn ", printed)


def test_verbose_prints_it(train):
    printed, log = train("--verbose")
    for words in CHATTER:
        assert words in log and words in printed
    assert "step 2/2 | loss" in printed


def test_on_a_terminal_one_line_shows_the_progress(train, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    printed, log = train("train.eval_period=1")
    assert re.search(
        r"\rstep 1/2 .*\rstep 2/2 \S+ +loss \S+ \| AP \S+ \| \S+ images/s \| ETA", printed
    )
    assert not re.search(LINE, printed) and "step 2/2 | loss" in log
    assert "\revaluation: " in printed
    # a table in between, and one at the end
    assert re.search(r"Evaluation after step 1:\s+\|", printed)
    assert printed.count("| bbox | ") == 2


def test_a_second_run_of_a_process_prints_each_line_once(train):
    first, first_log = train(folder="a")
    second, second_log = train(folder="b")
    for text in (first, second, second_log):
        assert text.count("Training for 2 steps") == 1
    assert first_log.count("Training for 2 steps") == 1
    # in the same folder, too: the log of the first is moved away
    third, third_log = train(folder="b")
    assert third.count("Training for 2 steps") == third_log.count("Training for 2 steps") == 1


def test_warnings_are_marked_whoever_gives_them(train, tmp_path):
    printed, _ = train("dataloader.test=null")
    assert re.search(r"\[\d\d:\d\d:\d\d\] WARNING: Nothing is evaluated", printed)
    for handler in logging.getLogger("fvcore").handlers:
        record = logging.LogRecord("fvcore.x", logging.WARNING, "", 1, "words", None, None)
        assert handler.filter(record)
