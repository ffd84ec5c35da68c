"""Carries out a submission: with SLURM, in the background of this machine, or in this process.
All three run the job through submitit."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import submitit
from submitit.helpers import DelayedSubmission
from submitit.slurm.slurm import _make_sbatch_string

from hpm_video.runtime.files import owner_of_new_files, printable
from hpm_video.runtime.job_secret import VARIABLE, new_secret
from hpm_video.slurm.command import Plan
from hpm_video.slurm.container import Container
from hpm_video.slurm.environment import job_environment, plain_environment
from hpm_video.slurm.job import REQUEUE_FILE, Job
from hpm_video.slurm.options import SlurmConfig, check_line
from hpm_video.slurm.partition import Request
from hpm_video.slurm.records import Submission, TaskRecord, add_record, has_records, shown
from hpm_video.slurm.snapshot import Snapshot
from hpm_video.slurm.times import UNLIMITED

# Replaces PYTHONSAFEPATH on Python 3.10: removes the working directory from sys.path
_SKIP_HERE = (
    "import runpy, sys; del sys.path[0], sys.argv[1:-1]; "
    "runpy.run_module('submitit.core._submit', run_name='__main__', alter_sys=True)"
)
_WITHOUT_HERE = [] if sys.version_info >= (3, 11) else ["-u", "-c", _SKIP_HERE]


@dataclass(frozen=True)
class Order:
    """A checked submission.

    folder: for logs, copies and records. given: names of settings and options of sbatch that the
    user gave. dropped: environment variables to hide from sbatch.
    """

    plan: Plan
    config: SlurmConfig
    request: Request
    folder: Path
    snapshot: Snapshot
    container: Container | None = None
    given: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def words(self) -> list[list[str]]:
        """The command line of each task, with the YAML replaced by its copy."""
        place = self.plan.command.place
        tasks = [list(task.arguments) for task in self.plan.tasks]
        if place is not None:
            for words in tasks:
                words[place] = str(self.snapshot.config)
        return tasks


def show(order: Order, cluster: str) -> None:
    """Print the script, if any, and the command of each task; create nothing."""
    if cluster == "slurm":
        print(_script(order))
    for number, words in enumerate(order.words):
        print(printable(f"# task {number}: hpm-video {shlex.join(words)}"))


def carry_out(order: Order, cluster: str) -> int:
    """Submit an order, or run it in this process (debug); returns the exit code.

    Raises ValueError if SLURM refuses the job or the folder cannot be used.
    """
    if cluster == "debug":
        # Tasks run at once, one after another, so that no copies of code and settings are needed
        return max([_run_here(order.folder, task.arguments) for task in order.plan.tasks])
    with _undone_on_failure(order.folder):
        order.snapshot.write()
        submit = {"slurm": _to_slurm, "local": _in_background}[cluster]
        jobs = submit(order, [Job(words) for words in order.words])
    _record(order, jobs, cluster)
    return 0


def _to_slurm(order: Order, jobs: list[Job]) -> list[submitit.Job[int]]:
    """Submit jobs with sbatch, several as one array; raises ValueError if it refuses. Its standard
    error is passed on to ours."""
    token = uuid.uuid4().hex
    script = order.folder / f".submission_file_{token}.sh"
    text = _script(order)
    with script.open("x", encoding="utf-8", errors="surrogateescape") as new:
        new.write(text)
    pickles = [order.folder / f"{token}_{task}.pkl" for task in range(len(jobs))]
    for job, file in zip(jobs, pickles, strict=True):
        delayed = DelayedSubmission(job)
        delayed.set_timeout(order.request.minutes, order.config.max_timeouts)
        delayed.dump(file)
    stated = re.findall(r"^#SBATCH --([a-z-]+)", text, re.MULTILINE)
    answer = subprocess.run(
        ["sbatch", str(script)],
        env={
            **job_environment(os.environ, [*stated, *order.given], order.dropped),
            VARIABLE: new_secret(),
        },
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    number = re.search(r"\bjob (\d+)", answer.stdout)
    if answer.returncode or number is None:
        sys.stderr.write(answer.stdout + answer.stderr)
        raise ValueError(
            "sbatch refused the job for the reason above: change the option that it names; "
            "--dry-run prints the script"
        )
    sys.stderr.write(answer.stderr)
    ids = [number[1]] if len(jobs) == 1 else [f"{number[1]}_{task}" for task in range(len(jobs))]
    ranks = list(range(order.request.nodes * order.request.tasks_per_node))
    submitted: list[submitit.Job[int]] = [
        submitit.SlurmJob(order.folder, name, tasks=ranks) for name in ids
    ]
    for job_of_slurm, file in zip(submitted, pickles, strict=True):
        job_of_slurm.paths.move_temporary_file(file, "submitted_pickle")
    submitted[0].paths.move_temporary_file(script, "submission_file")
    return submitted


def _in_background(order: Order, jobs: list[Job]) -> list[submitit.Job[int]]:
    """Start the one job on this machine, with the number of processes that it requests."""
    (job,) = jobs
    config, request = order.config, order.request
    python = shlex.join([sys.executable, *_WITHOUT_HERE])
    executor = submitit.LocalExecutor(
        order.folder, max_num_timeout=config.max_timeouts, python=python
    )
    executor.update_parameters(
        timeout_min=request.minutes,
        gpus_per_node=request.gpus_per_node,
        tasks_per_node=request.tasks_per_node,
        nodes=request.nodes,
        signal_delay_s=config.signal_delay_s,
        stderr_to_stdout=True,
    )
    path = os.pathsep.join(filter(None, [str(order.snapshot.code), os.environ.get("PYTHONPATH")]))
    changes = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", VARIABLE: new_secret()}
    with _plain_environment(**changes):
        return [executor.submit(job)]


def _run_here(folder: Path, arguments: tuple[str, ...]) -> int:
    """Run a task in this process, with a debugger if it fails; returns its exit code."""
    os.environ["SUBMITIT_FOLDER"] = str(folder)
    (code,) = submitit.DebugExecutor(folder).submit(Job(list(arguments))).results()
    return int(code)


def _script(order: Order) -> str:
    """The script for sbatch."""
    config, request, plan = order.config, order.request, order.plan
    folder, code = str(order.folder), str(order.snapshot.code)
    name = plan.command.name.replace(" ", "-")
    default_name = f"{name}-{Path(plan.run_folder).name}" if plan.run_folder else name
    # --chdir: relative paths start here, even if the user's commands change the folder.
    # --kill-on-bad-exit: otherwise the other tasks would wait for one that died.
    # --cpus-per-task: since SLURM 22.05, srun does not inherit it from sbatch.
    srun = [f"--chdir={os.getcwd()}", "--kill-on-bad-exit=1", *config.srun_options()]
    if request.cpus_per_task is not None:
        srun.insert(0, f"--cpus-per-task={request.cpus_per_task}")
    python = [config.interpreter() or ("python3" if order.container else sys.executable)]
    teardown = None
    # After the user's commands, which may set PYTHONPATH. Without PYTHONSAFEPATH the working
    # directory, often the source tree, would take precedence.
    setup = [
        *_stopping_on_failure(config.setup),
        f"export PYTHONPATH={shlex.quote(code)}${{PYTHONPATH:+:$PYTHONPATH}}",
        "export PYTHONSAFEPATH=1",
    ]
    if order.container is not None:
        here = os.getcwd()
        srun += order.container.srun_options(here)
        # Not exported: images may set PYTHONPATH, and this machine's packages do not fit there
        inside = ["env", f"PYTHONPATH={code}", "PYTHONSAFEPATH=1"]
        python = [*order.container.command(here), *inside, *python]
        # Containers have no scontrol, with which a job requeues itself
        setup = [
            *_stopping_on_failure(config.setup),
            f"export {REQUEUE_FILE}={shlex.quote(folder)}/$SLURM_JOB_ID.requeue",
            f'rm -f "${REQUEUE_FILE}"',
        ]
        teardown = [
            "code=$?",
            f'if [ -e "${REQUEUE_FILE}" ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
            "exit $code",
        ]
    as_given = ("mem", "partition", "account", "qos", "constraint", "dependency", "comment")
    extra = {"requeue": True, "reservation": config.reservation, **config.extras()}
    wanted: dict[str, Any] = {
        **{setting: getattr(config, setting) for setting in as_given},
        "job_name": os.environ.get("SBATCH_JOB_NAME") or default_name,
        "time": "infinite" if request.minutes == UNLIMITED else request.minutes,
        "nodes": request.nodes,
        "ntasks_per_node": request.tasks_per_node,
        "cpus_per_task": request.cpus_per_task,
        "gpus_per_node": (config.gpus_per_node or request.gpus_per_node)
        if request.gpus_per_node
        else None,
        "signal_delay_s": config.signal_delay_s,
        "array_parallelism": config.array_size[1] or 1_000_000,
        "stderr_to_stdout": True,
        "srun_args": srun,
        "setup": setup,
        "teardown": teardown,
        "additional_parameters": {key: value for key, value in extra.items() if value is not None},
        "wckey": None,  # submitit's default, which clusters may not know
    }
    # Values in the script that do not come from checked settings
    for what, text in (
        ("job name", wanted["job_name"]),
        ("working directory", os.getcwd()),
        ("Python", sys.executable),
    ):
        check_line(what, text)
    program = [*python, *_WITHOUT_HERE, "-u", "-m", "submitit.core._submit", folder]
    count = len(plan.tasks)
    return _make_sbatch_string(
        shlex.join(program), folder, map_count=count if count > 1 else None, **wanted
    )


def _stopping_on_failure(commands: list[str]) -> list[str]:
    """Shell commands, each followed by a line that ends the script if the command failed.

    `set -e` would also end it within functions such as `module` and `conda`, which handle failures.
    `eval` confines an incomplete command, such as an open quote or ``<<END``, which would otherwise
    swallow the rest of the script.
    """
    lines = []
    for command in commands:
        said = shlex.quote(f"hpm-video: setup failed, the job ends: {command}")
        lines += [
            f"eval {shlex.quote(command)}",
            f"code=$?; [ $code = 0 ] || {{ echo {said} >&2; exit $code; }}",
        ]
    return lines


@contextmanager
def _plain_environment(**changes: str) -> Iterator[None]:
    """Temporarily remove the variables of another job from this process's environment, which jobs
    inherit, and apply ``changes``."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update({**plain_environment(before), **changes})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _undone_on_failure(folder: Path) -> Iterator[None]:
    """On failure, remove what the block has created in a folder, and the folder if it is new."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    before = set(folder.rglob("*")) if folder.exists() else set()
    try:
        _make_private(folder)
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


def _make_private(folder: Path) -> None:
    """Create the folder for code that a job executes, writable by this user only.

    Raises ValueError if it belongs to another user, or is writable by others and not one of ours.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = folder.stat()
    if about.st_uid != owner_of_new_files(folder):
        raise ValueError(
            f"folder ({folder}) belongs to another user ({about.st_uid}), who could change what "
            "the job executes: give a folder of your own with --folder DIR"
        )
    if about.st_mode & 0o022:
        if any(folder.iterdir()) and not has_records(folder):
            raise ValueError(
                f"folder ({folder}) is writable by others, who could change what the job executes: "
                f"run `chmod go-w {shlex.quote(str(folder))}`, or give a new --folder DIR"
            )
        folder.chmod(0o700)  # earlier versions followed the umask


def _record(order: Order, jobs: list[submitit.Job[int]], cluster: str) -> None:
    """Record a submission, and print a summary and how to follow it."""
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
        print(f"hpm-video jobs may not list this job: {error.filename}: {error.strerror}")
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
    videos = plan.total_batch
    if plan.videos_per_step is not None and videos is None:
        videos = plan.videos_per_step * request.nodes * request.tasks_per_node
    if videos is not None:
        print(f"videos      {videos:,} per optimizer step")
    print(f"code        {shown(record.code)}")
    if len(tasks) > 1:
        width = max(len(task.id) for task in tasks)
        for task in tasks:
            place = f"{shown(task.run_folder)}  " if task.run_folder else ""
            print(printable(f"  {task.id:<{width}}  {place}{task.label}"))
    print(f"log         {shown(tasks[0].log)}")
    print(f"follow      hpm-video jobs follow {tasks[0].id}")
    if plan.command.job == "data" and len(tasks) > 1:
        print(printable(f"afterwards  hpm-video {shlex.join(plan.command.words)}"))
