"""train_net.py as a user runs it: a program, its files, its messages and its exit codes."""

import json
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

import programs
import pytest
import torch
from detectron2.engine import default_argument_parser

from dab_detr.engine.arguments import argument_parser
from dab_detr.engine.main import main

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "assets" / "tiny_config.py"


@pytest.fixture(scope="module")
def run(datasets_root):
    """Runs train_net.py with the tiny data set and returns the finished process."""
    env = {**os.environ, "DETECTRON2_DATASETS": str(datasets_root)}

    def call(*arguments, cwd=None):
        return programs.run(ROOT / "train_net.py", *arguments, env=env, cwd=cwd)

    return call


@pytest.fixture(scope="module")
def run_python(datasets_root):
    """The same with a new Python, as a user's does."""

    def call(*arguments, **environment):
        return subprocess.run(
            [sys.executable, str(ROOT / "train_net.py"), *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**os.environ, "DETECTRON2_DATASETS": str(datasets_root), **environment},
        )

    return call


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """One short training: the process and its output folder."""
    folder = tmp_path_factory.mktemp("trained")
    return run("--config-file", CONFIG, f"train.output_dir={folder}"), folder


def test_training_writes_everything_and_says_where(trained):
    result, folder = trained
    assert result.returncode == 0, result.stderr
    for name in ("model_final.pth", "evaluation.json", "metrics.json", "training_curve.png"):
        assert (folder / name).is_file(), name
        assert name in result.stdout
    assert len(list((folder / "predictions").glob("*.png"))) == 2
    assert list(folder.glob("events.out.tfevents.*"))
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["step"] == 4
    assert 0 <= evaluation["results"]["bbox"]["AP"] <= 100
    assert re.search(r"\| +\| AP +\| AP50", result.stdout)
    steps = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert [s["iteration"] for s in steps][:4] == [0, 1, 2, 3]
    assert {"total_loss", "loss_class_0", "lr", "grad_norm", "data_time"} <= steps[1].keys()
    assert re.search(r"step 4/4 \| loss .* images/s .* ETA 0:00:00", result.stdout)


def test_evaluation_alone_repeats_the_result(run, trained, tmp_path):
    _, folder = trained
    result = run(
        "--config-file", CONFIG, "--eval-only", f"train.output_dir={tmp_path}",
        f"train.init_checkpoint={folder}/model_final.pth",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    first, second = (
        json.loads((f / "evaluation.json").read_text())["results"] for f in (folder, tmp_path)
    )
    assert first == second


def test_a_config_can_be_named_from_anywhere(run, tmp_path):
    """The name is looked up among the project's own; the run gets past it to the missing data."""
    result = run("--config-file", "dab_detr_r50_50ep.py", cwd=tmp_path)
    assert result.returncode == 1
    assert "coco_2017_train" in result.stderr and "Traceback" not in result.stderr
    result = run(
        "--config-file", "configs/shapes/dab_detr_shapes.py", "train.device=cpu",
        "train.max_iter=1", "dataloader.train.dataset.names=tiny_train",
        f"train.output_dir={tmp_path}", cwd=tmp_path,
    )  # fmt: skip
    assert "no data set 'tiny_train'" in result.stderr


@pytest.mark.long
def test_two_processes_train_together(run_python, tmp_path):
    result = run_python(
        "--config-file", CONFIG, "--num-gpus", 2,
        f"train.output_dir={tmp_path}", "train.max_iter=2",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "FutureWarning" not in result.stderr
    assert "World size: 2" in (tmp_path / "log.txt").read_text()
    assert (tmp_path / "model_final.pth").is_file()


def test_data_workers_of_several_processes_are_started_like_those_of_one(run, tmp_path):
    """Spawned ones would import everything, at the start and at each evaluation."""
    config = tmp_path / "watched.py"
    config.write_text(
        "from dab_detr import get_config\nfrom detectron2.config import LazyCall as L\n"
        f"from watching import StartMethod\n_tiny = get_config({str(CONFIG)!r})\n"
        "dataloader, lr_multiplier, model = _tiny.dataloader, _tiny.lr_multiplier, _tiny.model\n"
        "optimizer, train = _tiny.optimizer, _tiny.train\n"
        "dataloader.train.mapper = L(StartMethod)(\n"
        f"    mapper=dataloader.train.mapper, file={str(tmp_path / 'method')!r}\n)\n"
    )
    result = run(
        "--config-file", config, "--num-gpus", 2, f"train.output_dir={tmp_path}",
        "train.max_iter=1", "dataloader.train.num_workers=1", "train.pictures.count=0",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "method").read_text() == multiprocessing.get_start_method()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_trains_on_the_cpu(run, tmp_path, dtype):
    result = run(
        "--config-file", CONFIG, f"train.output_dir={tmp_path}", "train.amp.enabled=True",
        f"train.amp.dtype={dtype}", "train.max_iter=2", "train.pictures.count=0",
        "dataloader.train.total_batch_size=2",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    checkpoint = torch.load(tmp_path / "model_final.pth", weights_only=False)
    assert all(
        v.dtype == torch.float32 for v in checkpoint["model"].values() if v.is_floating_point()
    )
    assert bool(checkpoint["trainer"]["grad_scaler"]) == (dtype == "float16")


WRONG = {
    "unknown config": (["--config-file", "nothing.py"], "no config file nothing.py"),
    "unknown key": (["train.max_itr=3"], "did you mean train.max_iter"),
    "unknown data set": (["dataloader.train.dataset.names=no_set"], "no data set 'no_set'"),
    "missing data": (
        ["dataloader.test.dataset.names=coco_2017_val"],
        "'coco_2017_val' needs .*instances_val2017.json, which does not exist",
    ),
    "missing checkpoint": (["train.init_checkpoint=no.pth"], "no checkpoint file no.pth"),
    "no weights to evaluate": (["--eval-only"], "--eval-only needs weights: give --weights"),
    "an exported file to train": (
        ["train.init_checkpoint=some/model.onnx"],
        "some/model.onnx is an exported file, which cannot be trained further",
    ),
    "unknown device": (["train.device=toaster"], "train.device is 'toaster'"),
    "unknown precision": (
        ["train.amp.enabled=True", "train.amp.dtype=float8"],
        "train.amp.dtype is 'float8'",
    ),
    "batch of nothing": (["dataloader.train.total_batch_size=0"], "total_batch_size is 0"),
    "length that is no number": (["train.max_iter=abc"], "train.max_iter is 'abc'"),
    "batch that cannot be divided": (
        ["train.accumulate=3"],
        "total_batch_size is 8; a positive multiple of the number of processes, 1, times .* 3",
    ),
    "parts of nothing": (["train.accumulate=0"], "train.accumulate is 0"),
    "negative limit": (["train.max_nonfinite_steps=-1"], "train.max_nonfinite_steps is -1"),
    "limit that is no number": (["train.max_unreadable_images=all"], "images is 'all'"),
    "period of nothing": (["train.log_period=0"], "train.log_period is 0"),
    "period as text": (["train.checkpointer.period=often"], "checkpointer.period is 'often'"),
    "negative bound": (["train.clip_grad.max_norm=-1"], "train.clip_grad.max_norm is -1"),
    "batch to scale from": (
        ["train.auto_scale_lr.enabled=True", "train.auto_scale_lr.base_batch_size=0"],
        "base_batch_size is 0",
    ),
    "seed as text": (["train.seed=luck"], "train.seed is 'luck'"),
    "a section as a switch": (
        ["train.auto_scale_lr=True"],
        r"train.auto_scale_lr is True, but it is a section: e.g. train.auto_scale_lr.enabled=True",
    ),
    "a switch as text": (["train.activation_checkpointing.encoder=abc"], "encoder is 'abc'; True"),
    "writers of nothing": (["train.writers=3"], "train.writers is 3; a list"),
    "no folder": (["train.output_dir=null"], "train.output_dir is None; text"),
    "a file as the folder": ([f"train.output_dir={CONFIG}"], "tiny_config.py, which is a file"),
    "endless": (["train.max_iter=null", "train.epochs=inf"], "train.epochs is inf"),
    "batch of nothing to evaluate": (["dataloader.test.batch_size=0"], "test.batch_size is 0"),
    "negative data workers": (["dataloader.test.num_workers=-1"], "test.num_workers is -1"),
    "pictures as text": (["train.pictures.count=abc"], "pictures.count is 'abc'"),
    "no checkpoint to keep": (["train.checkpointer.max_to_keep=0"], "max_to_keep is 0"),
    "VOC that is not there": (
        ["dataloader.train.dataset.names=voc_2007_trainval"],
        "list of images \\S+VOC2007\\S+trainval.txt cannot be read",
    ),
    "VOC that is not there to evaluate": (
        ["dataloader.test.dataset.names=voc_2007_test"],
        "list of images \\S+VOC2007\\S+test.txt cannot be read",
    ),
    "average of everything": (["train.ema.enabled=True", "train.ema.decay=1"], "decay is 1"),
    "recomputed batch norm": (
        ["train.activation_checkpointing.backbone=True"],
        "activation_checkpointing.backbone cannot be used with backbone.stem",
    ),
    "unknown evaluation": (
        ["+dataloader.evaluator.backend=fastest"],
        "no evaluation backend 'fastest'",
    ),
    "unknown argument of the optimizer": (["+optimizer.foo=1"], "section optimizer .*foo"),
    "unknown argument of the model": (["+model.depth=3"], "section model cannot be built.*depth"),
    "impossible model": (["model.transformer.queries.anchor_init=gird"], "anchor_init is 'gird'"),
    "unknown level": (["model.in_features=[res7]"], "'res7', but ResNet has"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_get_one_sentence_and_exit_code_1(in_process, tmp_path, capsys, case):
    arguments, words = WRONG[case]
    if "--config-file" not in arguments:
        arguments = ["--config-file", str(CONFIG), *arguments]
    if not any("output_dir" in argument for argument in arguments):
        arguments = [*arguments, f"train.output_dir={tmp_path / 'out'}"]
    assert in_process(*arguments) == 1
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("train_net.py: ") and re.search(words, last), last


def test_the_program_hands_on_exit_code_and_message(run_python):
    result = run_python("--config-file", CONFIG, "train.max_itr=3")
    assert result.returncode == 1
    # nor do other libraries warn of what a user can do nothing about
    (line,) = result.stderr.splitlines()
    assert line.startswith("train_net.py: The config has no key")


def test_help_and_wrong_usage_load_nothing_large(run_python, tmp_path):
    for name in ("torch", "torchvision", "detectron2", "fvcore", "omegaconf", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError(f'{__name__} is imported')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    result = run_python("--help", PYTHONPATH=path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Train or evaluate DAB-DETR" in result.stdout and "--train-data" in result.stdout
    result = run_python("--no-such-option", PYTHONPATH=path)
    assert result.returncode == 2 and result.stderr.startswith("usage:")
    assert "Traceback" not in result.stderr


def test_options_are_those_of_detectron2s_programs():
    def options(parser):
        return {
            action.dest: (action.option_strings, action.default, action.type, action.nargs)
            for action in parser._actions
        }

    own, theirs = map(options, (argument_parser(), default_argument_parser()))
    assert own.keys() - theirs.keys() == {"train_data", "val_data", "verbose", "weights"}
    assert own.pop("dist_url")[:2] == (["--dist-url"], None)
    assert theirs.pop("dist_url")[0] == ["--dist-url"]
    assert {name: own[name] for name in theirs} == theirs


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--config-file"],
        ["--no-such-option"],
        ["--config-file", "x", "train.max_iter=1", "--no-such-option"],
        ["--config-file", "x", "--num-gpus", "0"],
        ["--config-file", "x", "--num-machines", "2"],
        ["--config-file", "x", "--machine-rank", "1"],
        ["--config-file", "x", "--weights", "model.onnx"],
        ["--config-file", "x", "--eval-only", "--weights", "a", "train.init_checkpoint=b"],
    ],
    ids=str,
)
def test_wrong_usage_ends_with_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_half_of_torchruns_variables_is_refused(in_process, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert in_process("--config-file", str(CONFIG)) == 1
    assert "WORLD_SIZE is set, as torchrun does, but not LOCAL_RANK" in capsys.readouterr().err


def test_trainings_on_one_machine_take_different_ports(in_process, tmp_path, monkeypatch):
    addresses = []
    monkeypatch.setattr(
        "dab_detr.engine.main.launch", lambda *_, dist_url, **__: addresses.append(dist_url)
    )
    arguments = ("--config-file", str(CONFIG), f"train.output_dir={tmp_path}", "--num-gpus", "2")
    assert in_process(*arguments) == 0
    assert in_process(*arguments, "--dist-url", "tcp://127.0.0.1:4567") == 0
    # Detectron2 looks for a free port
    assert addresses == ["auto", "tcp://127.0.0.1:4567"]


@pytest.mark.parametrize(
    "asked, words",
    [
        (["--num-gpus", "4"], r"torchrun has started 2 processes .*--num-gpus .* ask for 4"),
        # what torchrun has started is meant: they meet, and here some variables are missing
        (["--num-gpus", "2"], "WORLD_SIZE is set, as torchrun does, but not MASTER_ADDR"),
        ([], "WORLD_SIZE is set, as torchrun does, but not MASTER_ADDR"),
    ],
)
def test_under_torchrun_no_further_processes_are_started(
    in_process, monkeypatch, capsys, asked, words
):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    assert in_process("--config-file", str(CONFIG), *asked) == 1
    assert re.search(words, capsys.readouterr().err)


def test_a_number_of_processes_that_is_none_is_refused(in_process, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert in_process("--config-file", str(CONFIG)) == 1
    assert "WORLD_SIZE is 'two'; a whole number" in capsys.readouterr().err


def test_options_may_stand_behind_overrides(in_process, tmp_path, capsys):
    arguments = ["train.max_iter=2", "--num-gpus", "1", "train.pictures.count=0"]
    folder = f"train.output_dir={tmp_path}"
    assert in_process(*arguments, "--config-file", str(CONFIG), "--resume", folder) == 0
    assert "has no checkpoint: starting" in (tmp_path / "log.txt").read_text()
    # the last of two counts
    assert in_process("train.max_iter=0", "--config-file", str(CONFIG), "train.max_iter=-1") == 1
    assert "train.max_iter is -1" in capsys.readouterr().err


def test_a_config_need_not_name_what_it_leaves_alone(in_process, tmp_path):
    config = tmp_path / "short.py"
    config.write_text(
        f"from dab_detr import get_config\n_tiny = get_config({str(CONFIG)!r})\n"
        "dataloader, lr_multiplier, model = _tiny.dataloader, _tiny.lr_multiplier, _tiny.model\n"
        f"optimizer = _tiny.optimizer\n"
        f"train = dict(output_dir={str(tmp_path)!r}, max_iter=1, device='cpu')\n"
    )
    assert in_process("--config-file", str(config)) == 0
    assert (tmp_path / "model_final.pth").is_file()


def test_a_checkpoint_that_does_not_fit_is_refused(in_process, trained, tmp_path, capsys):
    _, folder = trained
    weights = folder / "model_final.pth"
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(weights.read_bytes()[:5000])
    for override, checkpoint, words in (
        (
            "model.transformer.d_model=64",
            weights,
            r"does not fit the model: input_proj\.weight is \(32",
        ),
        (
            "model.transformer.decoder.num_layers=1",
            weights,
            r"which does not have transformer\.queries\.position_scale\S+",
        ),
        (
            "model.transformer.decoder.num_layers=3",
            weights,
            r"it lacks transformer\.decoder\.layers\.2\S+.* and \d+ more",
        ),
        ("model.num_classes=3", damaged, f"{damaged} cannot be read"),
    ):
        code = in_process(
            "--config-file", str(CONFIG), "--eval-only", override,
            f"train.output_dir={tmp_path / 'out'}", f"train.init_checkpoint={checkpoint}",
        )  # fmt: skip
        assert code == 1
        assert re.search(words, capsys.readouterr().err)


def test_weights_that_cannot_be_downloaded_say_so(in_process, tmp_path, capsys):
    code = in_process(
        "--config-file", str(CONFIG), f"train.output_dir={tmp_path}",
        "train.init_checkpoint=http://127.0.0.1:9/weights.pth",
    )  # fmt: skip
    assert code == 1
    message = capsys.readouterr().err
    assert "cannot be downloaded" in message and "init_checkpoint=''" in message
