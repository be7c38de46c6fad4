#!/usr/bin/env python
"""Train or evaluate in a SLURM job that is requeued and resumes after its time limit."""

import argparse
import os
import re
import shlex
import shutil
import signal
import sys

from dab_detr.config import get_config
from dab_detr.engine.arguments import argument_parser, parse_arguments
from dab_detr.errors import InputError

# time to finish a step and a checkpoint before the job's time limit
SIGNAL_DELAY_S = 120
# options of sbatch that the options below and submitit set
_DECIDED = set(
    "array chdir cpus-per-task error gpus gpus-per-node gpus-per-task job-name mem nodes ntasks "
    "ntasks-per-node open-mode output partition requeue signal time".split()
)
_LEAST = {"nodes": 1, "gpus_per_node": 1, "cpus_per_task": 1, "max_requeues": 0}

_EPILOG = """\
After its time limit or a node failure the job is requeued automatically and continues from the
last checkpoint in train.output_dir, which all nodes must be able to access. For this, --resume
is added to the arguments (except with --eval-only): a new training needs a new train.output_dir.
Exit code: 0 when the job is submitted, 1 for wrong files or without SLURM, 2 for wrong usage.
Example: slurm_train.py --nodes 2 --gpus-per-node 8 -- --config-file configs/dab_detr_r50_50ep.py
"""


class TrainingTask:
    """The work of each task of the job: ``train_net.py`` as one process with one GPU.

    Args:
        arguments: those of ``train_net.py``.
    """

    def __init__(self, arguments: list[str]):
        self.arguments = arguments

    def __call__(self) -> None:
        """Run it to the end.

        Raises:
            SystemExit: if the job has been requeued.
            RuntimeError: if ``train_net.py`` has failed, so that the job fails.
        """
        from submitit import JobEnvironment
        from submitit.helpers import environment_variables

        from dab_detr.engine.main import main

        # while it trains, train_net.py has its own handlers; before and after, submitit's acts
        requeue = signal.getsignal(signal.SIGUSR2)
        with environment_variables(**torchrun_variables(JobEnvironment())):
            code = main(self.arguments, exit_now=end_task)
        if code == 128 + signal.SIGUSR2:
            # exits in the first task; returns in the others, which have nothing left to do
            requeue(signal.SIGUSR2, None)
            sys.exit(0)
        if code:
            raise RuntimeError(f"train_net.py has ended with exit code {code}.")

    def checkpoint(self):
        """What runs when the job is requeued, a ``submitit.helpers.DelayedSubmission``."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def end_task(code: int) -> None:
    """End a task that waits for the first task, which has been stopped.

    After SIGUSR2 the first task requeues the job; another exit code than 0 would end it before.
    """
    os._exit(0 if code == 128 + signal.SIGUSR2 else code)


def torchrun_variables(environment) -> dict[str, str]:
    """The environment variables that torchrun would set, from a ``submitit.JobEnvironment``."""
    values = {
        "RANK": environment.global_rank,
        "WORLD_SIZE": environment.num_tasks,
        "LOCAL_RANK": environment.local_rank,
        "LOCAL_WORLD_SIZE": environment.num_tasks // environment.num_nodes,
        "MASTER_ADDR": environment.hostnames[0],
        # the same in all tasks, and below the range of ephemeral ports
        "MASTER_PORT": 20000 + int(environment.raw_job_id) % 10000,
    }
    return {name: str(value) for name, value in values.items()}


def minutes(text: str) -> int:
    """Whole minutes of ``MINUTES``, ``H:MM:SS`` or ``D-HH:MM:SS``, rounded up."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)|(\d+)", text)
    parts = (int(part or 0) for part in match.groups()) if match else [0] * 5
    days, hours, mins, seconds, alone = parts
    total = (days * 24 + hours) * 60 + mins + (seconds > 0) + alone
    if not total:
        raise argparse.ArgumentTypeError(f"{text!r} is not MINUTES, H:MM:SS or D-HH:MM:SS")
    return total


def sbatch_option(text: str) -> tuple[str, str | bool]:
    """Key and value of ``KEY=VALUE``; a ``KEY`` alone is a switch."""
    key, equals, value = text.partition("=")
    if not re.fullmatch(r"[a-z][a-z-]+", key):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, e.g. account=vision")
    if key in _DECIDED:
        raise argparse.ArgumentTypeError(f"{key} is set by this program and its options")
    return key, value if equals else True


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, argparse.Namespace]:
    """This program's arguments, with --resume added to ``training``, and the training's own."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage="%(prog)s [options] -- --config-file FILE [further arguments of train_net.py]",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, kind, default, text in (
        ("partition", str, None, "the cluster's default if not given"),
        ("nodes", int, 1, "number of machines; %(default)s by default"),
        ("gpus-per-node", int, 1, "GPUs, and processes, per node; %(default)s by default"),
        ("cpus-per-task", int, 8, "CPUs per process; %(default)s by default"),
        ("mem", str, None, "memory per node, e.g. 64G; the cluster's default if not given"),
        ("time", minutes, "1-00:00:00", "MINUTES, H:MM:SS or D-HH:MM:SS; %(default)s by default"),
        (
            "max-requeues",
            int,
            10,
            "requeues after the time limit; %(default)s by default",
        ),
        ("job-name", str, "dab_detr", "%(default)s by default"),
        ("log-dir", str, "output/slurm", "which all nodes can access; %(default)s by default"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    parser.add_argument(
        "--sbatch",
        type=sbatch_option,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a further option of sbatch, e.g. account=vision or exclusive; repeatable",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the script, submit nothing")
    parser.add_argument("training", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    for name, least in _LEAST.items():
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} has to be at least {least}.")

    training = argument_parser()
    training.prog = "train_net.py"
    decided = ("num_gpus", "num_machines", "machine_rank", "dist_url")
    # a namespace with values suppresses the defaults, so None means that it was not given
    undecided = argparse.Namespace(**dict.fromkeys(decided))
    given = parse_arguments(training, args.training, undecided)
    for name in decided:
        if getattr(given, name) is not None:
            parser.error(f"--{name.replace('_', '-')} is set by --nodes and --gpus-per-node.")
    if not given.config_file:
        parser.error("--config-file is missing after --.")
    if not given.resume and not given.eval_only:
        args.training.insert(0, "--resume")
    return args, given


def executor(args: argparse.Namespace, task: TrainingTask):
    """The ``submitit.SlurmExecutor`` with the job's options."""
    from submitit import SlurmExecutor

    class Executor(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            # a dry run needs no SLURM; otherwise main() checks for it
            return 2

    result = Executor(args.log_dir, max_num_timeout=args.max_requeues)
    result.update_parameters(
        job_name=args.job_name,
        partition=args.partition,
        nodes=args.nodes,
        ntasks_per_node=args.gpus_per_node,
        gpus_per_node=args.gpus_per_node,
        cpus_per_task=args.cpus_per_task,
        time=args.time,
        signal_delay_s=SIGNAL_DELAY_S,
        # also write the command to the log
        setup=[f"echo train_net.py {shlex.join(task.arguments)}"],
        # srun does not inherit the CPUs from sbatch, and waits for tasks that cannot continue
        srun_args=[f"--cpus-per-task={args.cpus_per_task}", "--kill-on-bad-exit=1"],
        additional_parameters={
            "chdir": os.getcwd(),
            "requeue": True,
            **({"mem": args.mem} if args.mem else {}),
            **dict(args.sbatch),
        },
    )
    return result


def main(arguments: list[str] | None = None) -> int:
    args, given = parse(arguments)
    try:
        get_config(given.config_file, given.opts)
    except InputError as error:
        return fail(str(error))
    task = TrainingTask(args.training)
    try:
        slurm = executor(args, task)
    except ImportError:
        return fail("submitit is missing; install it with: pip install 'dab_detr[slurm]'")
    if args.dry_run:
        print(slurm._make_submission_file_text(slurm._submitit_command_str, ""))
        return 0
    if not shutil.which("sbatch"):
        return fail("There is no sbatch on this machine; submit from a node of a SLURM cluster.")
    try:
        job = slurm.submit(task)
    except (RuntimeError, OSError) as error:
        return fail(f"The job was not submitted: {error}")
    print(f"Job {job.job_id} is submitted; logs: {job.paths.stdout}, {job.paths.stderr}")
    return 0


def fail(reason: str) -> int:
    print(f"slurm_train.py: {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
