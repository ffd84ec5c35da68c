"""How an order is carried out: on the cluster, in the background of this machine, or here."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hpm_video.slurm.command import Plan
from hpm_video.slurm.options import SlurmConfig
from hpm_video.slurm.partition import Request
from hpm_video.slurm.records import Submission, TaskRecord, add_record, now
from hpm_video.slurm.snapshot import Snapshot

Say = Callable[[str], None]


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
        return [task.with_config(yaml, self.snapshot.config) for task in self.plan.tasks]

    @property
    def name(self) -> str:
        """As squeue shows the job."""
        name = self.plan.command.name.replace(" ", "-")
        return f"{name}-{self.plan.run_folder.name}" if self.plan.run_folder else name


def _show_script(order: Order, say: Say) -> int:
    from hpm_video.slurm import executors

    executor = executors.slurm_executor(
        order.folder, order.config, order.request, name=order.name, code=order.snapshot.code
    )
    say(executors.script(executor, num_tasks=len(order.plan.tasks)))
    return _show(order, say)


def _show(order: Order, say: Say) -> int:
    for number, words in enumerate(order.words):
        say(f"# task {number}: hpm-video {shlex.join(words)}")
    return 0


def _on_slurm(order: Order, say: Say) -> int:
    from hpm_video.slurm import executors
    from hpm_video.slurm.job import Job

    if shutil.which("sbatch") is None:
        raise ValueError(
            "slurm is not on this machine (no sbatch): --cluster local runs the job here, "
            "--dry-run prints its script"
        )
    with _undone_on_failure(order.folder):
        executor = executors.slurm_executor(
            order.folder, order.config, order.request, name=order.name, code=order.snapshot.code
        )
        order.snapshot.write()
        jobs = executors.submit(executor, [Job(words) for words in order.words])
    request = order.request
    size = f"{request.nodes} nodes" if request.nodes > 1 else "1 node"
    size += f" x {request.tasks_per_node} processes" if request.tasks_per_node > 1 else ""
    _note(order, [(job.job_id, job.paths.stdout) for job in jobs], "slurm", size, say)
    return 0


def _in_background(order: Order, say: Say) -> int:
    from hpm_video.slurm import executors
    from hpm_video.slurm.job import Job

    (words,) = order.words
    with _undone_on_failure(order.folder):
        order.snapshot.write()
        job = executors.submit_local(
            order.folder, order.config, order.request, Job(words), code=order.snapshot.code
        )
    size = f"this machine x {order.request.tasks_per_node} processes"
    _note(order, [(job.job_id, job.paths.stdout)], "local", size, say)
    return 0


def _here(order: Order, say: Say) -> int:
    """One task after the other, with the code and settings that are here: nothing waits."""
    from hpm_video.slurm import executors
    from hpm_video.slurm.job import Job

    tasks = [list(task.arguments) for task in order.plan.tasks]
    return max([executors.run_here(order.folder, Job(words)) for words in tasks])


CARRY_OUT = {"slurm": _on_slurm, "local": _in_background, "debug": _here}
SHOW = {"slurm": _show_script, "local": _show, "debug": _show}


def _note(order: Order, jobs: list[tuple[str, Path]], cluster: str, size: str, say: Say) -> None:
    """Write the record of what is on its way, and tell about it."""
    plan = order.plan
    tasks = [
        TaskRecord(
            name,
            str(task.run_folder) if task.run_folder else None,
            task.label,
            str(log),
            str(task.output) if task.output else None,
        )
        for (name, log), task in zip(jobs, plan.tasks, strict=True)
    ]
    number = tasks[0].id.partition("_")[0]
    record = Submission(
        id=number,
        job=plan.command.name,
        cluster=cluster,
        submitted=now(),
        host=os.uname().nodename,
        cwd=os.getcwd(),
        command=list(plan.command.words),
        code=str(order.snapshot.code),
        tasks=tasks,
    )
    try:
        add_record(order.folder, record)
    except OSError as error:
        say(f"hpm-video jobs may not show it: {error.filename}: {error.strerror}")
    count = f", {len(tasks)} tasks" if len(tasks) > 1 else ""
    say(f"job         {number}: {plan.command.name}, {size}{count}")
    if plan.run_folder is not None:
        say(f"run folder  {shown(str(plan.run_folder))}")
    elif len(tasks) == 1 and tasks[0].output:
        say(f"output      {shown(tasks[0].output)}")
    if plan.videos_per_step is not None:
        processes = order.request.nodes * order.request.tasks_per_node
        say(f"videos      {plan.videos_per_step * processes:,} per step of the optimizer")
    say(f"code        {shown(record.code)}")
    if len(tasks) > 1:
        width = max(len(task.id) for task in tasks)
        for task in tasks:
            place = f"{shown(task.run_folder)}  " if task.run_folder else ""
            say(f"  {task.id:<{width}}  {place}{task.label}")
    say(f"log         {shown(tasks[0].log)}")
    say(f"follow      hpm-video jobs follow {tasks[0].id}")
    if plan.command.job == "data" and len(tasks) > 1:
        say(f"afterwards  hpm-video {shlex.join(plan.command.words)}")


def shown(path: str) -> str:
    """A path from here where it lies below, else whole."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


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
