"""``hpm-video jobs``: lists submitted jobs and their progress, follows logs, cancels, requeues."""

import argparse
import codecs
import json
import os
import re
import shlex
import signal
import time
from contextlib import suppress
from pathlib import Path

from hpm_video.runtime.files import printable
from hpm_video.runtime.reading import open_regular
from hpm_video.slurm.queue import State, control, local_process, read_states
from hpm_video.slurm.records import (
    Submission,
    TaskRecord,
    folders_below,
    folders_of_user,
    read_records,
    shown,
)
from hpm_video.slurm.run_progress import Progress, read_progress
from hpm_video.slurm.times import duration

_COLUMNS: tuple[str, ...] = ("ID", "JOB", "STATE", "EPOCH", "LOSS", "CLIPS/S", "ETA", "OUTPUT")
_ACTIONS = ("list", "follow", "cancel", "requeue")
_RECENT = 20  # submissions listed without --all
_AT_ONCE = 1 << 20  # bytes of a log to read at once
_POLL_S = 0.5  # interval between reads of a log
_ASK_S = 10.0  # interval between queries to SLURM while a log does not grow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `jobs`."""
    parser.add_argument(
        "action",
        nargs="?",
        choices=_ACTIONS,
        default="list",
        help="what to do (default %(default)s)",
    )
    parser.add_argument(
        "ids", nargs="*", metavar="ID", help="job to act on, or JOB_TASK of an array"
    )
    parser.add_argument(
        "--root",
        action="append",
        metavar="DIR",
        help="search below this folder for records of submissions (default: those of this user)",
    )
    parser.add_argument("--all", action="store_true", help="also list jobs that ended long ago")
    parser.add_argument(
        "--json", action="store_true", help="print the list as one JSON object per line"
    )


def run(arguments: argparse.Namespace) -> int:
    """Perform one action; returns the exit code."""
    for root in arguments.root or []:
        if not Path(root).is_dir():
            raise ValueError(f"root ({root}) must be a folder")
    folders = [folder for root in arguments.root or [] for folder in folders_below(root)]
    submissions = read_records(folders_of_user() if arguments.root is None else folders)
    found = [_find(name, submissions) for name in arguments.ids]
    if arguments.action == "list":
        chosen = {one.id for one, _ in found}
        if chosen:
            submissions = [one for one in submissions if one.id in chosen]
        _list(submissions, everything=arguments.all or bool(chosen), as_json=arguments.json)
        return 0
    if not found:
        action = f"jobs {arguments.action}"
        raise ValueError(f"{action} needs the ID of a job; list them with `hpm-video jobs`")
    if arguments.action == "follow":
        if len(found) > 1:
            raise ValueError(f"jobs follow ({' '.join(arguments.ids)}) must have a single ID")
        submission, task = found[0]
        _follow(submission, task or submission.tasks[0])
        return 0
    for name, (submission, _) in zip(arguments.ids, found, strict=True):
        _ACT[arguments.action](name, submission)
        print(f"{name}: {'cancelled' if arguments.action == 'cancel' else 'requeued'}")
    return 0


def _find(name: str, submissions: list[Submission]) -> tuple[Submission, TaskRecord | None]:
    """The submission with an ID, and the task if the ID is that of a task."""
    if not re.fullmatch(r"\d+(_\d+)?", name):
        raise ValueError(
            f"ID ({name}) must be that of a job, such as 123, or of an array task, such as 123_4"
        )
    for one in reversed(submissions):  # newest first: local IDs are process IDs, which recur
        task = next((task for task in one.tasks if task.id == name), None)
        if task is not None or name == one.id:
            return one, task
    raise ValueError(
        f"ID ({name}) must belong to a job submitted with hpm-video submit; list them with "
        "`hpm-video jobs --all`"
    )


def _list(submissions: list[Submission], *, everything: bool, as_json: bool) -> None:
    states = read_states(submissions)
    recent = {one.id for one in submissions[-_RECENT:]}
    tasks = [
        (one, task)
        for one in submissions
        for task in one.tasks
        if everything or one.id in recent or states[task.id].is_active
    ]
    rows = [_COLUMNS]
    for one, task in tasks:
        state, progress = states[task.id], _progress(task)
        if as_json:
            known = {"state": state.name, "reason": state.reason, "start": state.start}
            print(json.dumps({**vars(task), "job": one.job, **known, **vars(progress)}))
        rows.append(_row(one, task, state, progress))
    if as_json:
        return
    if not tasks:
        print("no jobs: submit one with `hpm-video submit JOB ...`, or search with --root DIR")
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        print(printable("  ".join(cells).rstrip()))
    if len(states) > len(tasks):
        print(f"and {len(states) - len(tasks)} older; --all lists them")


def _progress(task: TaskRecord) -> Progress:
    if task.run_folder is None:
        return Progress()
    # Each process has its own log
    logs = Path(task.log).parent.glob(f"{task.id}_*_log.out")
    return read_progress(Path(task.run_folder), processes=len(list(logs)))


def _row(one: Submission, task: TaskRecord, state: State, progress: Progress) -> tuple[str, ...]:
    name = f"{state.name} ({state.reason})" if state.reason else state.name
    epoch = "-" if progress.epoch is None else f"{progress.epoch:.2f}"
    if progress.epochs is not None:
        epoch += f"/{progress.epochs}"
    figures = (progress.loss, progress.clips_per_second)
    loss, rate = ("-" if value is None else f"{value:.4g}" for value in figures)
    eta = "-"
    if state.name == "RUNNING" and progress.remaining_s is not None:
        eta = duration(progress.remaining_s)
    elif state.name == "PENDING" and state.start:
        eta = f"starts {state.start}"
    return (task.id, one.job, name, epoch, loss, rate, eta, _place(task))


def _place(task: TaskRecord) -> str:
    """Where a task writes; for one that only prints, its label or else its log."""
    if (place := task.run_folder or task.output) is not None:
        return shown(place)
    return task.label or shown(task.log)


def _follow(submission: Submission, task: TaskRecord) -> None:
    """Print a log, and what is appended to it until the job has ended."""
    position, asked_s, is_over = 0, -_ASK_S, False
    file, decoder = Path(task.log), codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        new = b""
        with suppress(FileNotFoundError), open_regular(file) as stream:  # no log while it is queued
            stream.seek(position)
            new = stream.read(_AT_ONCE)
        if new:
            position += len(new)
            print(_for_terminal(decoder.decode(new)), end="", flush=True)
            asked_s = time.monotonic()
        elif is_over:
            return
        elif time.monotonic() - asked_s >= _ASK_S:
            asked_s = time.monotonic()
            is_over = not read_states([submission])[task.id].is_active
        else:
            time.sleep(_POLL_S)


def _for_terminal(text: str) -> str:
    """A part of a log without control characters, which foreign file names may contain."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"[^\n\t]+", lambda found: printable(found[0]), lines)


def _cancel(name: str, submission: Submission) -> None:
    if submission.cluster == "slurm":
        control(["scancel", name], what=f"job {name} cannot be cancelled")
        return
    if (process := local_process(submission)) is None:
        raise ValueError(f"job {name} cannot be cancelled: it is not running on this machine")
    os.kill(process, signal.SIGTERM)


def _requeue(name: str, submission: Submission) -> None:
    again = f"cd {shlex.quote(submission.cwd)} && hpm-video submit {shlex.join(submission.command)}"
    what = f"job {name} cannot be requeued (to submit it again: {again})"
    if submission.cluster != "slurm":
        raise ValueError(f"{what}: it ran without SLURM")
    control(["scontrol", "requeue", name], what=what)


_ACT = {"cancel": _cancel, "requeue": _requeue}
