"""``hpm-video submit``: a job of the command line, with its code and settings as they are now, onto
a cluster."""

import argparse
import os
from dataclasses import replace
from pathlib import Path

from hpm_video.slurm.command import JOBS, Parser, Plan, make_plan, read_command
from hpm_video.slurm.options import SlurmConfig, add_options, slurm_config
from hpm_video.slurm.partition import Request, check_request, most_cpus_per_task, read_partitions
from hpm_video.slurm.queue import read_states
from hpm_video.slurm.records import folders_of_user, read_records
from hpm_video.slurm.snapshot import Snapshot
from hpm_video.slurm.times import minutes_of

_DEFAULT_FOLDER = "outputs/slurm"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `submit`, and the words of the job, among which they may stand too."""
    _add_own_options(parser)
    parser.add_argument(
        "words",
        nargs=argparse.REMAINDER,
        metavar="JOB ...",
        help=f"{', '.join(JOBS)}, with its own arguments; data is data check or "
        "transcode, bench is bench ablation",
    )


def _add_own_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cluster",
        choices=("slurm", "local", "debug"),
        default="slurm",
        help="slurm; local: in the background of this machine, without setup commands; debug: "
        "here and now, in one process (default %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the script, do nothing")
    parser.add_argument(
        "--sweep",
        metavar='"KEY=A,B KEY=C,D"',
        help="a run for each combination, as one job array; each in a folder of its own",
    )
    parser.add_argument(
        "--folder",
        metavar="DIR",
        help="of logs and copies of code and settings, seen by all nodes (default: slurm in the "
        f"run folder; for jobs without one {_DEFAULT_FOLDER})",
    )
    add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Submit a job, or show what would be; returns the exit code."""
    from hpm_video.slurm.launch import Order, carry_out, show

    parser = Parser(prog="hpm-video submit JOB ...", allow_abbrev=False)
    _add_own_options(parser)
    before_job = vars(arguments)
    words = before_job.pop("words")
    arguments, rest = parser.parse_known_args(words, argparse.Namespace(**before_job))
    if "-h" in rest or "--help" in rest:
        parser.print_help()
        return 0
    command = read_command(rest)
    config = slurm_config(command.yaml, arguments)
    plan = make_plan(
        command,
        sweep=arguments.sweep,
        num_parts=config.array_size[0],
        wait_for_inputs=config.dependency is None,
    )
    request = _request(plan, config)
    folder = _folder(arguments.folder, plan)
    if arguments.cluster == "slurm":
        partitions = read_partitions(config.partition)
        if config.cpus_per_task is None and request.cpus_per_task is not None:
            most = most_cpus_per_task(request, partitions)
            if most is not None:  # else one would be refused for what one did not ask for
                request = replace(request, cpus_per_task=min(most, request.cpus_per_task))
        check_request(request, partitions)
    elif request.nodes > 1:
        raise ValueError(
            f"slurm.nodes ({request.nodes}) must be 1 with --cluster {arguments.cluster}"
        )
    elif arguments.cluster == "local" and len(plan.tasks) > 1:
        raise ValueError(
            f"cluster (local) must be slurm for {len(plan.tasks)} tasks, or debug, which runs one "
            "after the other"
        )
    if not arguments.dry_run and config.dependency is None:
        _check_free(folder, plan)
    order = Order(plan, config, request, folder, Snapshot(folder, command.yaml))
    if arguments.dry_run:
        show(order, arguments.cluster)
        return 0
    return carry_out(order, arguments.cluster)


def _request(plan: Plan, config: SlurmConfig) -> Request:
    """What the job needs, with defaults that depend on the job."""
    default = 0 if plan.command.job == "data" else 1
    gpus = default if config.gpus_per_node is None else config.gpus_per_node
    cpus = config.cpus_per_task
    if cpus is None and plan.loader_workers is not None:
        cpus = plan.loader_workers + 1
    tasks = config.tasks_per_node or max(gpus, 1)
    if plan.command.job in ("data", "bench") and tasks * config.nodes > 1:
        raise ValueError(
            f"slurm.nodes ({config.nodes}) x {tasks} tasks must be 1 for {plan.command.name}: it "
            "is one process with workers"
        )
    return Request(config.nodes, gpus, tasks, cpus, minutes_of(config.time))


def _folder(given: str | None, plan: Plan) -> Path:
    """Where logs, copies and records go."""
    folder = given or (f"{plan.run_folder}/slurm" if plan.run_folder else _DEFAULT_FOLDER)
    if "%" in folder:
        raise ValueError(f"folder ({folder}) must be without %, which SLURM replaces")
    path = Path(os.path.abspath(folder))
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"folder ({folder}) must be a folder: {place} is a file")
    return path


def _check_free(folder: Path, plan: Plan) -> None:
    """Refuse a run that is in the queue already."""
    folders = {task.run_folder for task in plan.tasks} - {None}
    records = read_records([*folders_of_user(), folder])
    ours = [one for one in records if any(task.run_folder in folders for task in one.tasks)]
    states = read_states(ours)
    for task in (task for one in ours for task in one.tasks):
        if task.run_folder in folders and states[task.id].is_active:
            raise ValueError(
                f"run.output_dir ({task.run_folder}) is that of job {task.id} "
                f"({states[task.id].name}): must end or be cancelled first"
            )
