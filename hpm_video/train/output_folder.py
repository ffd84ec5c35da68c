"""What a folder may hold before a run begins there, and runs that are there. Needs no PyTorch."""

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from hpm_video.config.settings import config_to_dict, read_stored
from hpm_video.runtime.files import check_can_be_folder, free_place

# Files that an interrupted start or a submission to a cluster may leave in a free folder.
_LEFTOVERS = re.compile(r"run\.lock|slurm|\.config\.yaml\..*")
_MOST_FOLDERS = 1000  # in a folder where runs are looked for
_MOST_RUNS = 3  # that a refusal names


def check_is_run(config: Any) -> Mapping[str, Any] | None:
    """The stored settings of the run in run.output_dir; None if the folder is free.

    Raises ValueError if it is no folder, has other content, or holds a run of another kind.
    """
    folder = Path(config.run.output_dir)
    file = folder / "config.yaml"
    check_can_be_folder(folder, name="run.output_dir")
    if file.is_file():
        there = read_stored(file)
        ours, theirs = kind_of(config_to_dict(config)), kind_of(there)
        if ours != theirs:
            raise ValueError(
                f"run.output_dir ({folder}) holds a {theirs} run: must be empty or hold a {ours} "
                f"run; set {free_folder(folder)}"
            )
        return there
    if folder.is_dir() and not all(_LEFTOVERS.fullmatch(name) for name in os.listdir(folder)):
        raise ValueError(
            f"run.output_dir ({folder}) holds other files: must be empty or a run; "
            f"set {free_folder(folder)}"
        )
    return None


def kind_of(settings: Mapping[str, Any]) -> str:
    """The command of a run with these settings."""
    return "pretrain" if "masking" in settings else "finetune"


def runs_near(path: str | Path, *kinds: str) -> list[str]:
    """Folders of runs of some kinds, with a checkpoint, near a path that does not exist: in the
    first folder above it or in that one's folders, else beside these. Newest first; not all."""
    folder = next((one for one in Path(path).parents if one.is_dir()), Path())
    for start in (folder, folder.parent):
        inside = list(_folders(start))
        for places in (inside, [one for place in inside for one in _folders(place)]):
            found = [place for place in places if _kind_at(place) in kinds]
            if found:
                found.sort(key=lambda place: os.path.getmtime(place / "config.yaml"), reverse=True)
                return list(map(str, found[:_MOST_RUNS]))
    return []


def _folders(folder: Path) -> Iterator[Path]:
    """The folders in a folder. Nothing in the root, where a look may ask other hosts."""
    if os.path.abspath(folder) != os.path.abspath(os.sep):
        with suppress(OSError), os.scandir(folder) as entries:
            few = islice(entries, _MOST_FOLDERS)
            yield from (folder / entry.name for entry in few if entry.is_dir())


def _kind_at(folder: Path) -> str | None:
    with suppress(OSError, ValueError):
        if (folder / "checkpoints" / "last").exists():
            return kind_of(read_stored(folder / "config.yaml"))
    return None


def free_folder(folder: Path) -> str:
    """The setting of a folder beside this one that does not exist: its name with a number."""
    if not os.path.basename(os.path.abspath(folder)):
        return "run.output_dir=outputs/first"
    return f"run.output_dir={shlex.quote(str(free_place(folder)))}"
