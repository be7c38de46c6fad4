"""Submission to SLURM: the script, and the job on a cluster of three small shell scripts."""

import os
import pickle
import signal
import subprocess
import sys

import pytest
from submitit.core.submission import process_job
from submitit.core.utils import UncompletedJobError
from submitit.helpers import DelayedSubmission

CONFIG = ["--config-file", "configs/dab_detr_r50_50ep.py"]
OWN_DATA = ["--train-data", "images", "train.json", "--val-data", "images", "val.json"]
TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "gpu07",
    "MASTER_PORT": "24711",
}


@pytest.fixture
def tool(load_tool, monkeypatch, tmp_path):
    """The program, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return load_tool("slurm_train")


@pytest.fixture
def cluster(monkeypatch, tmp_path_factory):
    """Commands of SLURM: srun runs one task here, the others say or note what they were given."""
    folder = tmp_path_factory.mktemp("cluster")
    for name, command in {
        "sbatch": 'echo "Submitted batch job 14711"',
        "srun": f'until [ "$1" = {sys.executable} ]; do shift; done; exec "$@"',
        "scontrol": f'echo "$@" >> {folder}/scontrol.txt',
    }.items():
        (folder / name).write_text(f"#!/bin/bash\n{command}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


@pytest.fixture
def task(monkeypatch):
    """A function that puts this process into task ``rank`` of a job of two nodes with four each."""
    numbers = (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2)
    handlers = {number: signal.getsignal(number) for number in numbers}

    def enter(rank):
        for name, value in {
            "SUBMITIT_EXECUTOR": "slurm",
            "SUBMITIT_FOLDER": "",
            "SLURM_JOB_ID": "14711",
            "SLURM_NTASKS": "8",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "gpu[07-08]",
            "SLURM_NODEID": str(rank // 4),
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank % 4),
        }.items():
            monkeypatch.setenv(name, value)

    yield enter
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def run_instead(monkeypatch):
    """A function that puts another one in the place of train_net.py's main()."""

    def replace(function):
        monkeypatch.setattr(
            "dab_detr.engine.main.main", lambda arguments, *, exit_now: function(arguments)
        )

    return replace


def dry_run(tool, capsys, *arguments):
    assert tool.main(["--dry-run", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_dry_run_prints_the_script_and_leaves_nothing(tool, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    script = dry_run(
        tool, capsys, "--partition", "gpu", "--nodes", "2", "--gpus-per-node", "4",
        "--cpus-per-task", "6", "--mem", "90G", "--time", "2-03:04:05", "--job-name", "night",
        "--sbatch", "account=vision", "--sbatch", "exclusive", "--log-dir", "logs",
        "--", *CONFIG, "model.transformer.queries.num_patterns=3", "train.output_dir=a b",
    )  # fmt: skip
    assert script[0] == "#!/bin/bash"
    assert {line for line in script if line.startswith("#SBATCH") and "wckey" not in line} == {
        "#SBATCH --partition=gpu",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --cpus-per-task=6",
        "#SBATCH --mem=90G",
        f"#SBATCH --time={(2 * 24 + 3) * 60 + 5}",
        "#SBATCH --job-name=night",
        "#SBATCH --account=vision",
        "#SBATCH --exclusive",
        "#SBATCH --signal=USR2@120",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        f"#SBATCH --chdir={tmp_path}",
        f"#SBATCH --output={tmp_path}/logs/%j_0_log.out",
        f"#SBATCH --error={tmp_path}/logs/%j_0_log.err",
    }
    (command,) = (line for line in script if line.startswith("srun "))
    assert " --cpus-per-task=6 " in command and " --kill-on-bad-exit=1 " in command
    assert command.endswith(f" {sys.executable} -u -m submitit.core._submit {tmp_path}/logs")
    arguments = (
        f"{' '.join(CONFIG)} model.transformer.queries.num_patterns=3 'train.output_dir=a b'"
    )
    assert f"echo train_net.py --resume {arguments}" in script
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_out_is_left_to_the_cluster(tool, capsys):
    script = "\n".join(dry_run(tool, capsys, "--", *CONFIG))
    for option in ("partition", "mem", "account"):
        assert f"--{option}" not in script
    assert "#SBATCH --nodes=1\n#SBATCH --ntasks-per-node=1\n" in script


@pytest.mark.parametrize(
    "time, minutes", [("90", 90), ("1:30:00", 90), ("36:00:01", 2161), ("1-00:00:00", 1440)]
)
def test_time_is_given_in_minutes(tool, capsys, time, minutes):
    assert f"#SBATCH --time={minutes}" in dry_run(tool, capsys, "--time", time, "--", *CONFIG)


@pytest.mark.parametrize(
    "given, expected",
    [
        ([*CONFIG, "--resume"], [*CONFIG, "--resume"]),
        ([*CONFIG, "--eval-only"], [*CONFIG, "--eval-only"]),
        ([*OWN_DATA, *CONFIG], ["--resume", *OWN_DATA, *CONFIG]),
    ],
)
def test_resume_is_added_to_a_training_without_it(tool, capsys, given, expected):
    assert f"echo train_net.py {' '.join(expected)}" in dry_run(tool, capsys, "--", *given)


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ([], "--config-file is missing"),
        (CONFIG, "unrecognized arguments: --config-file"),
        (["--nodes", "0", "--", *CONFIG], "--nodes has to be at least 1"),
        (["--max-requeues", "-1", "--", *CONFIG], "--max-requeues has to be at least 0"),
        (["--time", "1:30", "--", *CONFIG], "'1:30' is not MINUTES, H:MM:SS or D-HH:MM:SS"),
        (["--time", "0", "--", *CONFIG], "'0' is not MINUTES"),
        (["--sbatch", "nodes=3", "--", *CONFIG], "nodes is set by this program"),
        (["--sbatch", "-A=vision", "--", *CONFIG], "expected one argument"),
        (["--sbatch", "A=vision", "--", *CONFIG], "'A=vision' is not KEY=VALUE"),
        (["--", *CONFIG, "--num-gpus", "1"], "--num-gpus is set by --nodes and --gpus-per-node"),
        (["--", *CONFIG, "--num-machines=2"], "--num-machines is set by"),
        (["--", *CONFIG, "--machine-rank", "0"], "--machine-rank is set by"),
        (["--", *CONFIG, "--dist-url", "auto"], "--dist-url is set by"),
    ],
)
def test_wrong_usage_ends_with_2(tool, capsys, arguments, reason):
    with pytest.raises(SystemExit) as stop:
        tool.main(["--dry-run", *arguments])
    assert stop.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--config-file", "dab_detr_r5.py"], "There is no config file dab_detr_r5.py"),
        ([*CONFIG, "model.num_pattern=3"], "did you mean model.transformer.queries.num_patterns"),
    ],
)
def test_a_wrong_config_is_not_submitted(tool, cluster, tmp_path, capsys, arguments, reason):
    assert tool.main(["--", *arguments]) == 1
    assert reason in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_no_slurm_is_reported(tool, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tool.main(["--", *CONFIG]) == 1
    assert "There is no sbatch on this machine" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_missing_submitit_is_reported(tool, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert tool.main(["--dry-run", "--", *CONFIG]) == 1
    assert "pip install 'dab_detr[slurm]'" in capsys.readouterr().err


def test_a_refused_job_is_reported(tool, cluster, capsys):
    (cluster / "sbatch").write_text("#!/bin/bash\necho 'invalid partition' >&2; exit 1\n")
    assert tool.main(["--", *CONFIG]) == 1
    assert "The job was not submitted: invalid partition" in capsys.readouterr().err


def test_a_submitted_job_runs_train_net(tool, cluster, tmp_path, capsys):
    """Another process loads the task and runs it; train_net.py's own check ends it."""
    assert tool.main(["--", *CONFIG, "train.device=cpu", "train.max_iter=-1"]) == 0
    logs = tmp_path / "output" / "slurm"
    assert f"Job 14711 is submitted; logs: {logs}/14711_0_log.out" in capsys.readouterr().out
    job = subprocess.run(
        ["bash", logs / "14711_submission.sh"],
        env={**os.environ, "SLURM_JOB_ID": "14711"},
        capture_output=True,
        text=True,
    )
    assert job.returncode != 0
    assert "train_net.py: train.max_iter is -1" in job.stderr
    outcome, text = pickle.loads((logs / "14711_0_result.pkl").read_bytes())
    assert outcome == "error" and "train_net.py has ended with exit code 1." in text


def test_tasks_get_the_variables_of_torchrun(tool, task, run_instead, monkeypatch):
    seen = {}

    def main(arguments):
        seen.update(os.environ, arguments=arguments)
        return 0

    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    run_instead(main)
    task(rank=5)
    tool.TrainingTask(["--eval-only"])()
    assert seen["arguments"] == ["--eval-only"]
    assert {name: seen[name] for name in TORCHRUN} == TORCHRUN
    assert not TORCHRUN.keys() & os.environ.keys()


@pytest.mark.parametrize("code", [1, 128 + signal.SIGTERM])
def test_another_exit_code_fails_the_job(tool, task, run_instead, code):
    run_instead(lambda arguments: code)
    task(rank=0)
    with pytest.raises(RuntimeError, match=f"ended with exit code {code}"):
        tool.TrainingTask([])()


def stopped_in_training(arguments):
    """What main() does: it keeps the signal from submitit and returns when all is saved."""
    caught = []
    earlier = signal.signal(signal.SIGUSR2, lambda number, frame: caught.append(number))
    os.kill(os.getpid(), signal.SIGUSR2)
    signal.signal(signal.SIGUSR2, earlier)
    return 128 + caught[0]


def stopped_outside_of_training(arguments):
    os.kill(os.getpid(), signal.SIGUSR2)
    return 0


@pytest.mark.parametrize("main", [stopped_in_training, stopped_outside_of_training])
def test_the_first_task_requeues_the_job(tool, cluster, task, run_instead, tmp_path, main):
    tool.main(["--", *CONFIG])
    run_instead(main)
    task(rank=0)
    before = (tmp_path / "output/slurm/14711_submitted.pkl").stat().st_ino
    with pytest.raises(SystemExit):
        process_job(tmp_path / "output/slurm")
    assert (cluster / "scontrol.txt").read_text() == "requeue 14711\n"
    # the same, written again: this is what the next start runs
    assert (tmp_path / "output/slurm/14711_submitted.pkl").stat().st_ino != before
    again = DelayedSubmission.load(tmp_path / "output/slurm/14711_submitted.pkl")
    assert again.function.arguments == ["--resume", *CONFIG]


def test_the_other_tasks_end_without_requeueing(tool, cluster, task, run_instead, tmp_path):
    tool.main(["--", *CONFIG])
    run_instead(stopped_in_training)
    task(rank=5)
    with pytest.raises(SystemExit) as end:
        process_job(tmp_path / "output/slurm")
    # another code would end the first task, too
    assert end.value.code == 0
    assert not (cluster / "scontrol.txt").exists()


@pytest.mark.parametrize("signum, code", [(signal.SIGUSR2, 0), (signal.SIGTERM, 143)])
def test_a_task_that_waits_for_the_first_leaves_it_alone(tool, task, monkeypatch, signum, code):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)

    def main(arguments, *, exit_now):
        exit_now(128 + signum)
        return 0

    monkeypatch.setattr("dab_detr.engine.main.main", main)
    task(rank=5)
    tool.TrainingTask([])()
    assert codes == [code]


def test_outside_of_training_the_other_tasks_go_on(tool, cluster, task, run_instead, tmp_path):
    tool.main(["--", *CONFIG])
    run_instead(stopped_outside_of_training)
    task(rank=5)
    process_job(tmp_path / "output/slurm")
    result = tmp_path / "output/slurm/14711_5_result.pkl"
    assert pickle.loads(result.read_bytes()) == ("success", None)
    assert not (cluster / "scontrol.txt").exists()


def test_the_requeues_are_counted(tool, cluster, task, run_instead, tmp_path):
    # submitit takes the last ten minutes for the end of the time: all of these
    tool.main(["--time", "5", "--max-requeues", "1", "--", *CONFIG])
    run_instead(stopped_in_training)
    task(rank=0)
    with pytest.raises(SystemExit):
        process_job(tmp_path / "output/slurm")
    with pytest.raises(UncompletedJobError, match="timed-out too many times"):
        process_job(tmp_path / "output/slurm")
    assert (cluster / "scontrol.txt").read_text() == "requeue 14711\n"
