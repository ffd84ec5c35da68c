"""States of jobs: from squeue while it remembers them, then from sacct if there is one, and else
from their logs."""

import getpass
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hpm_video.runtime.reading import open_regular
from hpm_video.slurm.records import Submission

_TIMEOUT_S = 30
# Empty values of squeue's reason
_NO_REASON = {"None", "(null)", ""}
# States of jobs that may still run
_ACTIVE = {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD",
           "REQUEUE_FED", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED",
           "SPECIAL_EXIT"}  # fmt: skip
# Last words of submitit in a log -> state
_ENDINGS = {"Exiting after successful completion": "COMPLETED", "triggered an exception": "FAILED"}


@dataclass(frozen=True)
class State:
    """State of a job. name: SLURM's word. reason: why it waits. start: expected start, if known."""

    name: str
    reason: str = ""
    start: str = ""

    @property
    def is_active(self) -> bool:
        return self.name in _ACTIVE


def read_states(submissions: Iterable[Submission]) -> dict[str, State]:
    """Task ID -> state; raises ValueError if squeue exists but does not answer."""
    tasks = [(one, task) for one in submissions for task in one.tasks]
    in_slurm = {task.id for one, task in tasks if one.cluster == "slurm"}
    states = _squeue(in_slurm) if in_slurm else {}
    if gone := in_slurm - states.keys():
        states |= _sacct(gone)
    for submission, task in tasks:
        if submission.cluster == "local" and local_process(submission) is not None:
            states[task.id] = State("RUNNING")
        elif task.id not in states:  # SLURM has forgotten it, so read its log
            end = tail(Path(task.log), 4096)
            names = (state for words, state in _ENDINGS.items() if words in end)
            states[task.id] = State(next(names, "ENDED"))
    return states


def local_process(submission: Submission) -> int | None:
    """The process ID of a local job if it runs on this machine, else None."""
    if submission.host != os.uname().nodename:
        return None
    try:
        words = Path(f"/proc/{submission.id}/cmdline").read_bytes()
    except OSError:
        return None
    return int(submission.id) if b"submitit" in words else None


def control(command: list[str], *, what: str) -> None:
    """Run scancel or scontrol; raises ValueError with its message if it refuses."""
    try:
        answer = _run(command)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"{what}: {command[0]} does not answer on this machine") from error
    _check(answer, answer.stderr or answer.stdout, what)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)


def _check(answer: subprocess.CompletedProcess[str], said: str, what: str) -> None:
    if answer.returncode:
        words = "; ".join(line for line in said.splitlines() if line.strip())
        raise ValueError(f"{what}: {words or 'no reason given'}")


def _squeue(ids: set[str]) -> dict[str, State]:
    """States of the tasks that are in the queue; tasks of an array are listed separately."""
    command = ["squeue", "--noheader", "--array", "--all", "--states=all"]
    try:
        answer = _run([*command, f"--user={getpass.getuser()}", "--format=%i|%T|%r|%S"])
    except FileNotFoundError:
        return {}  # a machine without SLURM that shares the folders
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"squeue does not answer within {_TIMEOUT_S} s") from error
    _check(answer, answer.stderr, "squeue does not answer")
    states = {}
    for line in answer.stdout.splitlines():
        name, state, reason, start = (line.split("|") + [""] * 4)[:4]
        if name.strip() in ids:
            reason = "" if reason in _NO_REASON else reason
            start = "" if start in ("N/A", "NULL") else start
            states[name.strip()] = State(state, reason, start)
    return states


def _sacct(ids: set[str]) -> dict[str, State]:
    """States from accounting; the latest for a requeued job. Empty if accounting is off."""
    jobs = ",".join(sorted({name.partition("_")[0] for name in ids}))
    try:
        answer = _run(["sacct", "-n", "-P", "-X", "-o", "JobID,State", "-j", jobs])
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return {}
    states = {}
    for line in answer.stdout.splitlines() if answer.returncode == 0 else ():
        name, _, state = line.partition("|")
        if name in ids and state.strip():
            states[name] = State(state.split()[0].strip("|"))  # CANCELLED by 1000
    return states


def tail(file: Path, num_bytes: int) -> str:
    """The last ``num_bytes`` of a text file; empty if it cannot be read."""
    try:
        with open_regular(file) as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(stream.tell() - num_bytes, 0))
            return stream.read().decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""
