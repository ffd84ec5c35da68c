"""``hpm-video submit``: submits a job to a cluster with the current code and settings."""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hpm_video.runtime.files import printable
from hpm_video.slurm import environment
from hpm_video.slurm.command import (
    JOBS,
    Command,
    Parser,
    Plan,
    check_steps,
    make_plan,
    read_command,
)
from hpm_video.slurm.container import make_container
from hpm_video.slurm.options import SlurmConfig, add_options, check_line, read_given, slurm_config
from hpm_video.slurm.partition import (
    Request,
    check_request,
    largest_array,
    most_cpus_per_task,
    read_partitions,
)
from hpm_video.slurm.queue import read_states
from hpm_video.slurm.records import folders_of_user, read_records
from hpm_video.slurm.snapshot import Snapshot
from hpm_video.slurm.storage import local_storage
from hpm_video.slurm.sweep import check_size
from hpm_video.slurm.times import minutes_of

if TYPE_CHECKING:
    from hpm_video.slurm.launch import Order

_DEFAULT_FOLDER = "outputs/slurm"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `submit` and the words of the job, among which options may also stand."""
    _add_own_options(parser)
    parser.add_argument(
        "words",
        nargs=argparse.REMAINDER,
        metavar="JOB ...",
        help=f"job to submit, with its own arguments: {', '.join(JOBS)}; for data only check and "
        "transcode, for bench only ablation",
    )


def _add_own_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cluster",
        choices=("slurm", "local", "debug"),
        default="slurm",
        help="where to run; local: in the background on this machine; debug: here, in one process; "
        "both use this Python and ignore setup and container (default %(default)s)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the script and create nothing"
    )
    parser.add_argument(
        "--sweep",
        metavar='"KEY=A,B KEY=C,D"',
        help="submit a run for each combination, as one job array, each with its own folder",
    )
    parser.add_argument(
        "--folder",
        metavar="DIR",
        help="folder for logs and copies of code and settings, which all nodes must see (default: "
        f"slurm in the run folder, or {_DEFAULT_FOLDER} for jobs without a run folder)",
    )
    add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Submit a job, or print its script; returns the exit code."""
    from hpm_video.slurm.launch import carry_out, show

    parser = Parser(prog="hpm-video submit JOB ...", allow_abbrev=False)
    _add_own_options(parser)
    before_job = vars(arguments)
    words = before_job.pop("words")
    arguments, rest = parser.parse_known_args(words, argparse.Namespace(**before_job))
    if "-h" in rest or "--help" in rest:
        parser.print_help()
        return 0
    command = read_command(rest)
    given = read_given(command.yaml, arguments)
    on_slurm = arguments.cluster == "slurm"
    named = environment.given_names(given, given.get("extra", []))
    wanted = environment.wishes(os.environ, command.job, named) if on_slurm else {}
    with _naming_variables(wanted):
        config = slurm_config({**{key: os.environ[name] for key, name in wanted.items()}, **given})
        if on_slurm:
            _check_array_size(arguments.sweep, config.array_size[0])
        order = _order(command, config, arguments)
    dropped = environment.dropped(os.environ, command.job, named) if on_slurm else []
    heard = [*wanted.values()]
    if on_slurm and "job_name" not in named and os.environ.get("SBATCH_JOB_NAME"):
        heard.append("SBATCH_JOB_NAME")
    if heard:
        values = " ".join(f"{name}={os.environ[name]}" for name in heard)
        _note(f"from the environment: {values}")
    if dropped:
        _note(f"ignores {', '.join(dropped)} from the environment: submit sets these options")
    if on_slurm:
        _warn_of_local_storage(order)
    elif config.container or config.python or config.setup or config.srun_extra:
        _note(
            f"--cluster {arguments.cluster} runs this Python on this machine and ignores "
            "container, python, setup and srun_extra"
        )
    order = replace(order, given=tuple(named | wanted.keys()), dropped=tuple(dropped))
    if arguments.dry_run:
        show(order, arguments.cluster)
        return 0
    return carry_out(order, arguments.cluster)


def _order(command: Command, config: SlurmConfig, arguments: argparse.Namespace) -> "Order":
    """The submission, after all checks that are possible in advance."""
    from hpm_video.slurm.launch import Order

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
            if most is not None:  # do not refuse a default that the user did not choose
                request = replace(request, cpus_per_task=min(most, request.cpus_per_task))
        check_request(request, partitions)
    elif request.nodes > 1:
        raise ValueError(
            f"slurm.nodes ({request.nodes}) must be 1 with --cluster {arguments.cluster}"
        )
    elif arguments.cluster == "local" and len(plan.tasks) > 1:
        raise ValueError(
            f"cluster (local) must be slurm or debug for {len(plan.tasks)} tasks; debug runs them "
            "one after another"
        )
    is_alone = arguments.cluster == "debug"
    check_steps(plan, 1 if is_alone else request.nodes * request.tasks_per_node)
    if arguments.cluster == "slurm" and not arguments.dry_run and shutil.which("sbatch") is None:
        raise ValueError(
            "cluster (slurm) needs sbatch, which this machine does not have: run the job here with "
            "--cluster local, or print its script with --dry-run"
        )
    if not arguments.dry_run and config.dependency is None:
        _check_free(folder, plan)
    container = None
    if config.container is not None and arguments.cluster == "slurm":
        outputs = (task.output for task in plan.tasks if task.output)
        needed = (os.getcwd(), str(folder), plan.run_folder, *outputs, *plan.inputs)
        container = make_container(
            config.container,
            config.container_mounts,
            [path for path in needed if path],
            must_exist=config.dependency is None,
        )
    return Order(plan, config, request, folder, Snapshot(folder, command.yaml), container)


@contextmanager
def _naming_variables(wanted: Mapping[str, str]) -> Iterator[None]:
    """Add the name of the environment variable to errors about settings taken from it."""
    try:
        yield
    except ValueError as error:
        name = next((name for name in wanted if f"slurm.{name} (" in str(error)), None)
        if name is None:
            raise
        option = "--" + name.replace("_", "-")
        raise ValueError(
            f"{error} (from the environment variable {wanted[name]}: unset it, or give {option})"
        ) from error


def _check_array_size(sweep: str | None, num_parts: int | None) -> None:
    """Raise ValueError for an array that is too large for the cluster, before the settings of all
    its tasks are read."""
    if (sweep is None and num_parts is None) or (largest := largest_array()) is None:
        return
    most, limit = largest
    if sweep is not None:
        check_size(sweep, most, limit)
    if num_parts is not None and num_parts > most:
        raise ValueError(
            f"slurm.array ({num_parts:,}) must be at most {most:,}, the largest array that this "
            f"cluster allows ({limit})"
        )


def _warn_of_local_storage(order: "Order") -> None:
    places = {"run folder": order.plan.run_folder, "log folder": str(order.folder)}
    for name, place in places.items():
        kind = None if place is None else local_storage(Path(place))
        if kind is not None:
            _note(
                f"warning: the {name} ({place}) is on local storage of {os.uname().nodename} "
                f"({kind}), which other nodes may not see: choose a folder that all nodes share"
            )
            return


def _note(text: str) -> None:
    """Print one line to standard error, as a dry run prints the script to standard output."""
    print(f"hpm-video submit: {printable(text)}", file=sys.stderr)


def _request(plan: Plan, config: SlurmConfig) -> Request:
    """The resources to request, with defaults that depend on the job."""
    default = 0 if plan.command.job == "data" else 1
    gpus = default if config.num_gpus is None else config.num_gpus
    cpus = config.cpus_per_task
    if cpus is None and plan.loader_workers is not None:
        cpus = plan.loader_workers + 1
    tasks = config.tasks_per_node or max(gpus, 1)
    if plan.command.job in ("data", "bench") and tasks * config.nodes > 1:
        raise ValueError(
            f"slurm.nodes ({config.nodes}) x {tasks} tasks must be 1 for {plan.command.name}, "
            "which is one process with workers: use --nodes 1 --tasks-per-node 1"
        )
    return Request(config.nodes, gpus, tasks, cpus, minutes_of(config.time))


def _folder(given: str | None, plan: Plan) -> Path:
    """The folder for logs, copies and records."""
    folder = given or (f"{plan.run_folder}/slurm" if plan.run_folder else _DEFAULT_FOLDER)
    if "%" in folder:
        raise ValueError(f"folder ({folder}) must not contain %, which SLURM replaces")
    check_line("folder", folder)
    path = Path(os.path.abspath(folder))
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"folder ({folder}) must be a folder: {place} is a file")
    return path


def _check_free(folder: Path, plan: Plan) -> None:
    """Raise ValueError for a run that is already queued or running."""
    folders = {task.run_folder for task in plan.tasks} - {None}
    records = read_records([*folders_of_user(), folder])
    ours = [one for one in records if any(task.run_folder in folders for task in one.tasks)]
    states = read_states(ours)
    for task in (task for one in ours for task in one.tasks):
        if task.run_folder in folders and states[task.id].is_active:
            raise ValueError(
                f"run.output_dir ({task.run_folder}) is used by job {task.id} "
                f"({states[task.id].name}): wait until it ends, or end it with "
                f"`hpm-video jobs cancel {task.id}`"
            )
