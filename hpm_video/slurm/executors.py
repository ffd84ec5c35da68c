"""submitit's executors with what our jobs need: the script of a job, and its submission."""

from __future__ import annotations

import io
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string

from hpm_video.slurm.job import Job
from hpm_video.slurm.options import SlurmConfig
from hpm_video.slurm.partition import Request

# Of another job that this one may be submitted from: its own SLURM and torchrun set them anew.
_OF_A_JOB = re.compile(
    r"SLURM_(?!CONF$)|SBATCH_|SRUN_|PMI|SUBMITIT_|((LOCAL_|GROUP_)?(RANK|WORLD_SIZE)|LOCAL_RANK"
    r"|MASTER_ADDR|MASTER_PORT)$"
)


class _Slurm(SlurmExecutor):
    """Can also be made where there is no SLURM, to show the script."""

    @classmethod
    def affinity(cls) -> int:
        return 2


def slurm_executor(
    folder: Path, config: SlurmConfig, request: Request, *, name: str, code: Path
) -> SlurmExecutor:
    """An executor whose logs, scripts and pickled jobs go to ``folder``.

    code: folder with the package that the job is to import.
    """
    # Since SLURM 22.05, srun takes neither from sbatch; without the second, a task that died leaves
    # the others waiting for it.
    srun = ["--kill-on-bad-exit=1"]
    if request.cpus_per_task is not None:
        srun.insert(0, f"--cpus-per-task={request.cpus_per_task}")
    wanted: dict[str, Any] = {
        "job_name": name,
        "time": request.minutes,
        "nodes": request.nodes,
        "ntasks_per_node": request.tasks_per_node,
        "cpus_per_task": request.cpus_per_task,
        "gpus_per_node": request.gpus_per_node or None,
        "mem": config.mem,
        "partition": config.partition,
        "account": config.account,
        "qos": config.qos,
        "constraint": config.constraint,
        "dependency": config.dependency,
        "comment": config.comment,
        "signal_delay_s": config.signal_delay_s,
        "array_parallelism": config.num_at_once or 1_000_000,
        "stderr_to_stdout": True,
        "srun_args": srun,
        # After the user's commands, which may set PYTHONPATH themselves. Without PYTHONSAFEPATH the
        # working directory, often the sources themselves, would come before it.
        "setup": [
            *config.setup,
            f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
            "export PYTHONSAFEPATH=1",
        ],
        "additional_parameters": {"requeue": True, **config.extras()},
    }
    executor = _Slurm(folder, max_num_timeout=config.max_timeouts)
    executor.update_parameters(wckey=None)  # submitit's own, which clusters may not know
    executor.update_parameters(**{key: value for key, value in wanted.items() if value is not None})
    return executor


def script(executor: SlurmExecutor, *, num_tasks: int) -> str:
    """The sbatch script of one job or, for several tasks, of an array."""
    return _make_sbatch_string(
        command=executor._submitit_command_str,
        folder=executor.folder,
        map_count=num_tasks if num_tasks > 1 else None,
        **executor.parameters,
    )


def submit(executor: SlurmExecutor, jobs: Sequence[Job]) -> list[submitit.Job[int]]:
    """Hand jobs over, several as one array; ValueError with sbatch's own words if it refuses."""
    said = io.StringIO()  # what sbatch says, submitit prints
    with _plain_environment(), redirect_stderr(said):
        try:
            return executor.submit_array(list(jobs))
        except (FailedJobError, FailedSubmissionError) as error:
            lines = said.getvalue().strip().splitlines() or str(error).strip().splitlines()
            reason = lines[-1].removeprefix("sbatch: ").removeprefix("error: ")
            raise ValueError(f"sbatch refused the job: {reason}") from error


def submit_local(
    folder: Path, config: SlurmConfig, request: Request, job: Job, *, code: Path
) -> submitit.Job[int]:
    """Start a job on this machine, in the background, with as many processes as it asks for."""
    executor = submitit.LocalExecutor(folder, max_num_timeout=config.max_timeouts)
    executor.update_parameters(
        timeout_min=request.minutes,
        gpus_per_node=request.gpus_per_node,
        tasks_per_node=request.tasks_per_node,
        nodes=request.nodes,
        signal_delay_s=config.signal_delay_s,
        stderr_to_stdout=True,
    )
    path = os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH")]))
    with _plain_environment(PYTHONPATH=path, PYTHONSAFEPATH="1"):
        return executor.submit(job)


def run_here(folder: Path, job: Job) -> int:
    """Run a job in this process, with a debugger where it fails; returns its exit code."""
    os.environ["SUBMITIT_FOLDER"] = str(folder)
    (code,) = submitit.DebugExecutor(folder).submit(job).results()
    return int(code)


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
