"""What SLURM knows of jobs: squeue while it remembers them, sacct where there is one, and else what
their logs say."""

from __future__ import annotations

import getpass
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hpm_video.slurm.records import Submission, TaskRecord

_TIMEOUT_S = 30
# Reasons of squeue that say nothing
_NO_REASON = {"None", "(null)", ""}
# While a job has one of these, it may still run.
ACTIVE = {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD",
          "REQUEUE_FED", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED",
          "SPECIAL_EXIT"}  # fmt: skip
# What submitit writes at the end of a log
_ENDINGS = {"Exiting after successful completion": "COMPLETED", "triggered an exception": "FAILED"}


@dataclass(frozen=True)
class State:
    """name: SLURM's word. reason: why it waits. start: when it is expected to start, if known."""

    name: str
    reason: str = ""
    start: str = ""

    @property
    def is_active(self) -> bool:
        return self.name in ACTIVE


def read_states(submissions: Iterable[Submission]) -> dict[str, State]:
    """States of all tasks, by their ids; ValueError when squeue is there but does not answer."""
    states: dict[str, State] = {}
    tasks = [(one, task) for one in submissions for task in one.tasks]
    in_slurm = {task.id for one, task in tasks if one.cluster == "slurm"}
    if in_slurm:
        queue = parse_squeue(_squeue())
        states |= {name: queue[name] for name in in_slurm & queue.keys()}
        if gone := in_slurm - states.keys():
            accounted = parse_sacct(_sacct(gone))
            states |= {name: accounted[name] for name in gone & accounted.keys()}
    for submission, task in tasks:
        if submission.cluster == "local" and local_process(submission) is not None:
            states[task.id] = State("RUNNING")
        elif task.id not in states:
            states[task.id] = State(_ending(task))
    return states


def parse_squeue(text: str) -> dict[str, State]:
    """States by task out of squeue's lines ``id|state|reason|start``."""
    states = {}
    for line in text.splitlines():
        name, state, reason, start = (line.split("|") + [""] * 4)[:4]
        reason = "" if reason in _NO_REASON else reason
        start = "" if start in ("N/A", "NULL") else start
        states[name.strip()] = State(state, reason, start)
    return states


def parse_sacct(text: str) -> dict[str, State]:
    """States by task out of sacct's lines ``id|state``; of a requeued job, the latest."""
    states = {}
    for line in text.splitlines():
        name, _, state = line.partition("|")
        if name and state.strip():
            states[name] = State(state.split()[0].strip("|"))  # CANCELLED by 1000
    return states


def local_process(submission: Submission) -> int | None:
    """The process of a job on this machine, while it goes on."""
    if submission.host != os.uname().nodename:
        return None
    try:
        words = Path(f"/proc/{submission.id}/cmdline").read_bytes()
    except OSError:
        return None
    return int(submission.id) if b"submitit" in words else None


def control(command: list[str], *, what: str) -> None:
    """Run scancel or scontrol; ValueError with its own words if it refuses."""
    try:
        answer = _run(command)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"{what}: {command[0]} does not answer on this machine") from error
    if answer.returncode:
        lines = (answer.stderr or answer.stdout).strip().splitlines() or ["no reason given"]
        raise ValueError(f"{what}: {lines[-1]}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)


def _squeue() -> str:
    """Of all the user's jobs, each task of an array on a line of its own."""
    command = ["squeue", "--noheader", "--array", "--all", "--states=all"]
    command += [f"--user={getpass.getuser()}", "--format=%i|%T|%r|%S"]
    try:
        answer = _run(command)
    except FileNotFoundError:
        return ""  # a machine without SLURM, which sees the folders
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"squeue does not answer within {_TIMEOUT_S} s") from error
    if answer.returncode:
        lines = answer.stderr.strip().splitlines() or ["no reason given"]
        raise ValueError(f"squeue does not answer: {lines[-1]}")
    return answer.stdout


def _sacct(ids: Iterable[str]) -> str:
    """Where accounting is off or missing, nothing."""
    jobs = ",".join(sorted({name.partition("_")[0] for name in ids}))
    command = ["sacct", "-n", "-P", "-X", "-o", "JobID,State", "-j", jobs]
    try:
        answer = _run(command)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return "" if answer.returncode else answer.stdout


def _ending(task: TaskRecord) -> str:
    """How a job ended that SLURM has forgotten, as far as its log says."""
    end = tail(Path(task.log), 4096)
    return next((state for words, state in _ENDINGS.items() if words in end), "ENDED")


def tail(file: Path, num_bytes: int) -> str:
    """The last part of a text; empty where there is none."""
    try:
        with file.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(stream.tell() - num_bytes, 0))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
