"""Records of submissions: one line each in a file beside the logs, and an index of these folders in
the user's state folder."""

import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpm_video.runtime.files import own_file, state_folder
from hpm_video.runtime.reading import parse_json, read_text

_FILE = "jobs.jsonl"


@dataclass(frozen=True)
class TaskRecord:
    """One task of a submission; the only one unless it is an array.

    id: SLURM's JOB or JOB_TASK. label: how it differs from the other tasks. output: where a job
    without a run folder writes, if known.
    """

    id: str
    run_folder: str | None
    label: str
    log: str
    output: str | None = None


@dataclass(frozen=True)
class Submission:
    """A submission. id: of the job. cluster: slurm or local. command: words of the job after
    `hpm-video`, to run in ``cwd``."""

    id: str
    job: str
    cluster: str
    submitted: str
    host: str
    cwd: str
    command: list[str]
    code: str
    tasks: list[TaskRecord]


def add_record(folder: Path, submission: Submission) -> None:
    """Append a submission to a folder's records, and the folder to the user's index."""
    new = {folder / _FILE: json.dumps(asdict(submission))}
    if str(folder) not in _lines(_index()):
        new[_index()] = str(folder)
    for file, line in new.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        # A single write, so that lines of concurrent processes do not mix
        with open(file, "a", encoding="utf-8", errors="surrogateescape", opener=own_file) as stream:
            stream.write(line + "\n")


def has_records(folder: Path) -> bool:
    """Whether a folder has records of submissions."""
    return (folder / _FILE).is_file()


def folders_of_user() -> list[Path]:
    """All folders with records of this user, from any machine that shares the home folder."""
    return [Path(line) for line in _lines(_index())]


def folders_below(root: str | Path) -> list[Path]:
    """All folders with records below ``root``."""
    return sorted(file.parent.absolute() for file in Path(root).rglob(_FILE))


def read_records(folders: Iterable[Path]) -> list[Submission]:
    """All submissions recorded in the folders that exist, oldest first."""
    found = []
    for line in (line for folder in dict.fromkeys(folders) for line in _lines(folder / _FILE)):
        # Skip half-written lines and those of other versions
        with suppress(ValueError, TypeError, KeyError, AttributeError):
            values: dict[str, Any] = parse_json(line)
            values["tasks"] = [TaskRecord(**task) for task in values["tasks"]]
            found.append(_checked(Submission(**values)))
    return sorted(found, key=lambda submission: submission.submitted)


def _checked(one: Submission) -> Submission:
    """The submission itself; raises ValueError if its values have wrong types. IDs must be numbers,
    as they are used in file names and SLURM commands."""
    texts = [value for name, value in vars(one).items() if name not in ("command", "tasks")]
    texts += [*one.command, *(text for task in one.tasks for text in (task.label, task.log))]
    places = [place for task in one.tasks for place in (task.run_folder, task.output)]
    texts += [place for place in places if place is not None]
    ids = [one.id, *(task.id for task in one.tasks)]
    are_ids = all(isinstance(id_, str) and re.fullmatch(r"\d+(_\d+)?", id_) for id_ in ids)
    if not (are_ids and one.tasks and all(isinstance(text, str) for text in texts)):
        raise ValueError("no record of a submission")
    return one


def shown(path: str) -> str:
    """A path, relative to the working directory if it lies below it."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def _index() -> Path:
    """The file that lists the user's folders with records, one per line."""
    return state_folder() / "slurm_folders"


def _lines(file: Path) -> list[str]:
    try:
        return read_text(file, errors="surrogateescape").splitlines()
    except OSError:
        return []
