#!/usr/bin/env python
"""Train or evaluate in a SLURM job that continues by itself after its time is over."""

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

# between the signal and the end of the time there is one step and one checkpoint to finish
SIGNAL_DELAY_S = 120
# what the options below and submitit decide
_DECIDED = set(
    "array chdir cpus-per-task error gpus gpus-per-node gpus-per-task job-name mem nodes ntasks "
    "ntasks-per-node open-mode output partition requeue signal time".split()
)
_LEAST = {"nodes": 1, "gpus_per_node": 1, "cpus_per_task": 1, "max_requeues": 0}

_EPILOG = """\
After its time or the failure of a node the job is queued again by itself and continues from
the last checkpoint in train.output_dir, which all nodes have to see. For this the arguments always
get --resume (but with --eval-only): a new training needs a new train.output_dir.
Ends with 0 when the job is submitted, 1 for wrong files or without SLURM, 2 for wrong usage.
Example: slurm_train.py --nodes 2 --gpus-per-node 8 -- --config-file configs/dab_detr_r50_50ep.py
"""


class TrainingTask:
    """What each of the job's tasks runs: ``train_net.py`` as one process with one GPU.

    Args:
        arguments: those of ``train_net.py``.
    """

    def __init__(self, arguments: list[str]):
        self.arguments = arguments

    def __call__(self) -> None:
        """Run it to the end.

        Raises:
            SystemExit: if the job has been queued again.
            RuntimeError: if ``train_net.py`` has failed, so that the job fails.
        """
        from submitit import JobEnvironment
        from submitit.helpers import environment_variables

        from dab_detr.engine.main import main

        # training has handlers of its own meanwhile; outside of it submitit's acts at once
        requeue = signal.getsignal(signal.SIGUSR2)
        with environment_variables(**torchrun_variables(JobEnvironment())):
            code = main(self.arguments, exit_now=end_task)
        if code == 128 + signal.SIGUSR2:
            # ends the first task's process and returns in the others, which have nothing left to do
            requeue(signal.SIGUSR2, None)
            sys.exit(0)
        if code:
            raise RuntimeError(f"train_net.py has ended with exit code {code}.")

    def checkpoint(self):
        """What runs when the job is queued again, a ``submitit.helpers.DelayedSubmission``."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def end_task(code: int) -> None:
    """End a task that waits for the first one, which has been stopped.

    After SIGUSR2 the first one queues the job again, and another code than 0 would end it before.
    """
    os._exit(0 if code == 128 + signal.SIGUSR2 else code)


def torchrun_variables(environment) -> dict[str, str]:
    """The variables that torchrun would set, from a ``submitit.JobEnvironment``."""
    values = {
        "RANK": environment.global_rank,
        "WORLD_SIZE": environment.num_tasks,
        "LOCAL_RANK": environment.local_rank,
        "LOCAL_WORLD_SIZE": environment.num_tasks // environment.num_nodes,
        "MASTER_ADDR": environment.hostnames[0],
        # the same in all tasks, and below the ports that systems hand out themselves
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
        raise argparse.ArgumentTypeError(f"{key} is decided by this program and its options")
    return key, value if equals else True


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, argparse.Namespace]:
    """This program's arguments, ``training`` with --resume, and what those of the training mean."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage="%(prog)s [options] -- --config-file FILE [further arguments of train_net.py]",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, kind, default, text in (
        ("partition", str, None, "the cluster's own choice by default"),
        ("nodes", int, 1, "machines; %(default)s by default"),
        ("gpus-per-node", int, 1, "GPUs, and processes, of each; %(default)s by default"),
        ("cpus-per-task", int, 8, "CPUs of each process; %(default)s by default"),
        ("mem", str, None, "memory of a node, e.g. 64G; the cluster's own choice by default"),
        ("time", minutes, "1-00:00:00", "MINUTES, H:MM:SS or D-HH:MM:SS; %(default)s by default"),
        ("max-requeues", int, 10, "how often it continues after its time; %(default)s by default"),
        ("job-name", str, "dab_detr", "%(default)s by default"),
        ("log-dir", str, "output/slurm", "which all nodes see; %(default)s by default"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    parser.add_argument(
        "--sbatch",
        type=sbatch_option,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a further option of sbatch, e.g. account=vision or exclusive; can be repeated",
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
    # what has a value already gets no default, so None means that it was not given
    undecided = argparse.Namespace(**dict.fromkeys(decided))
    given = parse_arguments(training, args.training, undecided)
    for name in decided:
        if getattr(given, name) is not None:
            parser.error(f"--{name.replace('_', '-')} follows from --nodes and --gpus-per-node.")
    if not given.config_file:
        parser.error("--config-file is missing behind --.")
    if not given.resume and not given.eval_only:
        args.training.insert(0, "--resume")
    return args, given


def executor(args: argparse.Namespace, task: TrainingTask):
    """The ``submitit.SlurmExecutor`` with the job's options."""
    from submitit import SlurmExecutor

    class Executor(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            # a dry run needs no SLURM, and for the rest main() looks for it
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
        # tells what is run in the log, too
        setup=[f"echo train_net.py {shlex.join(task.arguments)}"],
        # srun does not take the CPUs over from sbatch, and waits for tasks that cannot go on
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
        return fail("There is no sbatch on this machine; submit from one of a SLURM cluster.")
    try:
        job = slurm.submit(task)
    except (RuntimeError, OSError) as error:
        return fail(f"The job was not submitted: {error}")
    print(f"Job {job.job_id} is submitted; its logs: {job.paths.stdout}, {job.paths.stderr}")
    return 0


def fail(reason: str) -> int:
    print(f"slurm_train.py: {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
