"""How a submission is carried out: by SLURM, in the background of this machine, or here and now.
All three go through submitit."""

import io
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string

from hpm_video.slurm.command import Plan
from hpm_video.slurm.job import Job
from hpm_video.slurm.options import SlurmConfig
from hpm_video.slurm.partition import Request
from hpm_video.slurm.records import Submission, TaskRecord, add_record, shown
from hpm_video.slurm.snapshot import Snapshot

# Of another job that this one may be submitted from: its own SLURM and torchrun set them anew.
_OF_A_JOB = re.compile(
    r"SLURM_(?!CONF$)|SBATCH_|SRUN_|PMI|SUBMITIT_|((LOCAL_|GROUP_)?(RANK|WORLD_SIZE)|LOCAL_RANK"
    r"|MASTER_ADDR|MASTER_PORT)$"
)


@dataclass(frozen=True)
class Order:
    """What is to be done, all of it checked. folder: of logs, copies and records."""

    plan: Plan
    config: SlurmConfig
    request: Request
    folder: Path
    snapshot: Snapshot

    @property
    def words(self) -> list[list[str]]:
        """What each task runs: with the copy of the YAML in its place."""
        yaml = self.plan.command.yaml
        tasks = [list(task.arguments) for task in self.plan.tasks]
        if yaml is not None:
            for words in tasks:
                words[words.index(yaml, 1)] = str(self.snapshot.config)
        return tasks


def show(order: Order, cluster: str) -> None:
    """Print the script, where there is one, and what each task would run; make nothing."""
    if cluster == "slurm":
        executor = _slurm_executor(order)
        print(
            _make_sbatch_string(
                command=executor._submitit_command_str,
                folder=executor.folder,
                map_count=len(order.plan.tasks) if len(order.plan.tasks) > 1 else None,
                **executor.parameters,
            )
        )
    for number, words in enumerate(order.words):
        print(f"# task {number}: hpm-video {shlex.join(words)}")


def carry_out(order: Order, cluster: str) -> int:
    """Submit an order, or run it here (debug); returns the exit code.

    Raises ValueError when there is no SLURM, it refuses the job, or the folder cannot be used.
    """
    if cluster == "debug":
        # One task after the other, with the code and settings that are here: nothing waits
        return max([_run_here(order.folder, task.arguments) for task in order.plan.tasks])
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise ValueError(
            "slurm is not on this machine (no sbatch): --cluster local runs the job here, "
            "--dry-run prints its script"
        )
    with _undone_on_failure(order.folder):
        order.snapshot.write()
        submit = {"slurm": _to_slurm, "local": _in_background}[cluster]
        jobs = submit(order, [Job(words) for words in order.words])
    _record(order, jobs, cluster)
    return 0


def _to_slurm(order: Order, jobs: list[Job]) -> list[submitit.Job[int]]:
    """Hand jobs over, several as one array; ValueError with sbatch's own words if it refuses."""
    executor = _slurm_executor(order)
    said = io.StringIO()  # what sbatch says, submitit prints
    with _plain_environment(), redirect_stderr(said):
        try:
            return executor.submit_array(jobs)
        except (FailedJobError, FailedSubmissionError) as error:
            lines = said.getvalue().strip().splitlines() or str(error).strip().splitlines()
            reason = lines[-1].removeprefix("sbatch: ").removeprefix("error: ")
            raise ValueError(f"sbatch refused the job: {reason}") from error


def _in_background(order: Order, jobs: list[Job]) -> list[submitit.Job[int]]:
    """Start the one job on this machine, with as many processes as it asks for."""
    (job,) = jobs
    config, request = order.config, order.request
    executor = submitit.LocalExecutor(order.folder, max_num_timeout=config.max_timeouts)
    executor.update_parameters(
        timeout_min=request.minutes,
        gpus_per_node=request.gpus_per_node,
        tasks_per_node=request.tasks_per_node,
        nodes=request.nodes,
        signal_delay_s=config.signal_delay_s,
        stderr_to_stdout=True,
    )
    path = os.pathsep.join(filter(None, [str(order.snapshot.code), os.environ.get("PYTHONPATH")]))
    with _plain_environment(PYTHONPATH=path, PYTHONSAFEPATH="1"):
        return [executor.submit(job)]


def _run_here(folder: Path, arguments: tuple[str, ...]) -> int:
    """Run a task in this process, with a debugger where it fails; returns its exit code."""
    os.environ["SUBMITIT_FOLDER"] = str(folder)
    (code,) = submitit.DebugExecutor(folder).submit(Job(list(arguments))).results()
    return int(code)


class _Slurm(SlurmExecutor):
    """Can also be made where there is no SLURM, to show the script."""

    @classmethod
    def affinity(cls) -> int:
        return 2


def _slurm_executor(order: Order) -> SlurmExecutor:
    """An executor whose logs, scripts and pickled jobs go to the order's folder."""
    config, request, plan = order.config, order.request, order.plan
    name = plan.command.name.replace(" ", "-")
    # Since SLURM 22.05, srun takes neither from sbatch; without the second, a task that died leaves
    # the others waiting for it.
    srun = ["--kill-on-bad-exit=1"]
    if request.cpus_per_task is not None:
        srun.insert(0, f"--cpus-per-task={request.cpus_per_task}")
    as_given = ("mem", "partition", "account", "qos", "constraint", "dependency", "comment")
    wanted: dict[str, Any] = {
        **{setting: getattr(config, setting) for setting in as_given},
        "job_name": f"{name}-{Path(plan.run_folder).name}" if plan.run_folder else name,
        "time": request.minutes,
        "nodes": request.nodes,
        "ntasks_per_node": request.tasks_per_node,
        "cpus_per_task": request.cpus_per_task,
        "gpus_per_node": request.gpus_per_node or None,
        "signal_delay_s": config.signal_delay_s,
        "array_parallelism": config.array_size[1] or 1_000_000,
        "stderr_to_stdout": True,
        "srun_args": srun,
        # After the user's commands, which may set PYTHONPATH themselves. Without PYTHONSAFEPATH the
        # working directory, often the sources themselves, would come before it.
        "setup": [
            *config.setup,
            f"export PYTHONPATH={shlex.quote(str(order.snapshot.code))}"
            "${PYTHONPATH:+:$PYTHONPATH}",
            "export PYTHONSAFEPATH=1",
        ],
        "additional_parameters": {"requeue": True, **config.extras()},
    }
    executor = _Slurm(order.folder, max_num_timeout=config.max_timeouts)
    executor.update_parameters(wckey=None)  # submitit's own, which clusters may not know
    executor.update_parameters(**{key: value for key, value in wanted.items() if value is not None})
    return executor


@contextmanager
def _plain_environment(**changes: str) -> Iterator[None]:
    """The environment, which jobs inherit, without what belongs to a job that we may be in."""
    before = dict(os.environ)
    for name in before:
        if _OF_A_JOB.match(name):
            del os.environ[name]
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _undone_on_failure(folder: Path) -> Iterator[None]:
    """Remove what an attempt has made in a folder, and the folder if it made that too."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    before = set(folder.rglob("*")) if folder.exists() else set()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        if made:
            shutil.rmtree(made[-1], ignore_errors=True)
        else:
            for path in sorted(set(folder.rglob("*")) - before, reverse=True):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise ValueError(f"folder ({folder}) cannot be used: {error.strerror}") from error
        raise


def _record(order: Order, jobs: list[submitit.Job[int]], cluster: str) -> None:
    """Write the record of what is on its way, and print what it is and how to follow it."""
    plan, request = order.plan, order.request
    tasks = [
        TaskRecord(job.job_id, task.run_folder, task.label, str(job.paths.stdout), task.output)
        for job, task in zip(jobs, plan.tasks, strict=True)
    ]
    record = Submission(
        id=tasks[0].id.partition("_")[0],
        job=plan.command.name,
        cluster=cluster,
        submitted=datetime.now().isoformat(timespec="seconds"),
        host=os.uname().nodename,
        cwd=os.getcwd(),
        command=list(plan.command.words),
        code=str(order.snapshot.code),
        tasks=tasks,
    )
    try:
        add_record(order.folder, record)
    except OSError as error:
        print(f"hpm-video jobs may not show it: {error.filename}: {error.strerror}")
    nodes = f"{request.nodes} nodes" if request.nodes > 1 else "1 node"
    size = "this machine" if cluster == "local" else nodes
    if cluster == "local" or request.tasks_per_node > 1:
        size += f" x {request.tasks_per_node} processes"
    count = f", {len(tasks)} tasks" if len(tasks) > 1 else ""
    print(f"job         {record.id}: {record.job}, {size}{count}")
    if plan.run_folder is not None:
        print(f"run folder  {shown(plan.run_folder)}")
    elif len(tasks) == 1 and tasks[0].output:
        print(f"output      {shown(tasks[0].output)}")
    if plan.videos_per_step is not None:
        videos = plan.videos_per_step * request.nodes * request.tasks_per_node
        print(f"videos      {videos:,} per step of the optimizer")
    print(f"code        {shown(record.code)}")
    if len(tasks) > 1:
        width = max(len(task.id) for task in tasks)
        for task in tasks:
            place = f"{shown(task.run_folder)}  " if task.run_folder else ""
            print(f"  {task.id:<{width}}  {place}{task.label}")
    print(f"log         {shown(tasks[0].log)}")
    print(f"follow      hpm-video jobs follow {tasks[0].id}")
    if plan.command.job == "data" and len(tasks) > 1:
        print(f"afterwards  hpm-video {shlex.join(plan.command.words)}")
