"""What was submitted: a line for each submission, in a file beside its logs; and where such files
are, in a file of the user's."""

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
    """One task of a submission, which is the whole job unless it is an array.

    id: JOB or JOB_TASK, as SLURM has it. label: what sets it apart from its siblings. output: where
    a job without a run folder writes, if that is known.
    """

    id: str
    run_folder: str | None
    label: str
    log: str
    output: str | None = None


@dataclass(frozen=True)
class Submission:
    """id: of the job. cluster: slurm or local. command: words after `hpm-video`, from ``cwd``."""

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
    """Append a submission to the records of a folder, and the folder to those of the user."""
    new = {folder / _FILE: json.dumps(asdict(submission))}
    if str(folder) not in _lines(_index()):
        new[_index()] = str(folder)
    for file, line in new.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        # One write, so that lines of several at once do not mix
        with open(file, "a", encoding="utf-8", errors="surrogateescape", opener=own_file) as stream:
            stream.write(line + "\n")


def has_records(folder: Path) -> bool:
    """Whether submissions are recorded in a folder."""
    return (folder / _FILE).is_file()


def folders_of_user() -> list[Path]:
    """All folders in which the user has records, of this machine or others that share the home."""
    return [Path(line) for line in _lines(_index())]


def folders_below(root: str | Path) -> list[Path]:
    """All folders with records below one."""
    return sorted(file.parent.absolute() for file in Path(root).rglob(_FILE))


def read_records(folders: Iterable[Path]) -> list[Submission]:
    """All submissions recorded in some folders, of those that exist; oldest first."""
    found = []
    for line in (line for folder in dict.fromkeys(folders) for line in _lines(folder / _FILE)):
        # Half a line, or one of another version, hides no other
        with suppress(ValueError, TypeError, KeyError, AttributeError):
            values: dict[str, Any] = parse_json(line)
            values["tasks"] = [TaskRecord(**task) for task in values["tasks"]]
            found.append(_checked(Submission(**values)))
    return sorted(found, key=lambda submission: submission.submitted)


def _checked(one: Submission) -> Submission:
    """A submission, unless its values are of other kinds; ValueError then. Ids are numbers: they
    reach the names of files and commands of SLURM."""
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
    """A path from here where it lies below, else whole."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def _index() -> Path:
    """Where the user's folders with records are noted, one a line."""
    return state_folder() / "slurm_folders"


def _lines(file: Path) -> list[str]:
    try:
        return read_text(file, errors="surrogateescape").splitlines()
    except OSError:
        return []
