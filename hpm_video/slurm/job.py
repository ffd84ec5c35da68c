"""The code that runs in each task of a submitted job."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import submitit
from submitit.core.utils import UncompletedJobError
from submitit.helpers import DelayedSubmission

from hpm_video.runtime.signals import stopped_by

# Rank variables of a job from which this one may have been submitted: sbatch passes on the whole
# environment
_OF_ANOTHER_JOB = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE",
)  # fmt: skip
_ASKING_S = 60  # timeout for SLURM, which may be busy
# Variable with the path of a file that asks the job's script, outside the container, to requeue
REQUEUE_FILE = "HPM_VIDEO_REQUEUE_FILE"
_AGAIN = "submit the same command again to continue"


class Job:
    """A command of ``hpm-video`` that submitit pickles. It is requeued unchanged, as runs resume by
    themselves.

    submitit would requeue a job as soon as the signal arrives. During training the signal only sets
    a flag: all ranks finish their step and save, and only then the job is requeued.
    """

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = list(arguments)

    def __call__(self) -> int:
        """Run the command; returns 0, or exits this process with the command's exit code."""
        environment = submitit.JobEnvironment()
        for name in _OF_ANOTHER_JOB:
            os.environ.pop(name, None)
        # An earlier start of this job may have left its exception
        environment.paths.result_pickle.unlink(missing_ok=True)
        # A late import: unpickling must be quick and handle signals before PyTorch is loaded
        from hpm_video.cli.main import main

        code = main(self.arguments)
        stopped = stopped_by()
        if code and stopped is not None:
            if environment.global_rank != 0:
                return code  # not sys.exit: SLURM may kill rank 0 if another rank fails
            _requeue(stopped, environment)
        if code:
            sys.exit(code)
        return code

    def checkpoint(self) -> DelayedSubmission:
        """The job to requeue after a time limit or preemption."""
        return DelayedSubmission(self)


def _requeue(stopped: str, environment: submitit.JobEnvironment) -> None:
    """Let submitit requeue this job, which has saved and stopped, unless the user ended it.

    Requeueing ends this process; the function returns if the job is not requeued.
    """
    # SIGUSR2 announces the time limit. SIGTERM announces preemption, but also follows cancellation
    # or requeueing: only SLURM knows which.
    if stopped == "SIGINT" or (stopped == "SIGTERM" and not _is_running(environment.raw_job_id)):
        _say(f"{stopped}: the job is being ended, so it does not requeue itself")
        return
    on_time_limit = signal.getsignal(signal.SIGUSR2)  # submitit's
    assert callable(on_time_limit)
    try:
        on_time_limit(signal.SIGUSR2, None)
    except UncompletedJobError:
        _say(f"not requeued (see above); {_AGAIN}")
        raise
    except (OSError, subprocess.SubprocessError) as error:
        if isinstance(error, FileNotFoundError) and (file := os.environ.get(REQUEUE_FILE)):
            Path(file).touch()
            _say("saved; the container has no scontrol, so the job's script requeues it")
            return
        _say(f"cannot requeue this job from its node ({error}); the run is saved: {_AGAIN}")


def _say(message: str) -> None:
    print(f"hpm-video: {message}", flush=True)


def _is_running(job_id: str) -> bool:
    """Whether SLURM lists a job as running; False if SLURM does not answer."""
    command = ["scontrol", "--oneliner", "show", "job", job_id]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_ASKING_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return b"JobState=RUNNING" in done.stdout.split()
