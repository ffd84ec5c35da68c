"""What a folder may hold before a run begins there. Needs no PyTorch."""

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpm_video.config.settings import config_to_dict, read_stored
from hpm_video.runtime.files import check_can_be_folder, free_place
from hpm_video.weights.run_folders import kind_of

# Files that an interrupted start or a submission to a cluster may leave in a free folder.
_LEFTOVERS = re.compile(r"run\.lock|slurm|\.config\.yaml\..*")


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


def free_folder(folder: Path) -> str:
    """The setting of a folder beside this one that does not exist: its name with a number."""
    if not os.path.basename(os.path.abspath(folder)):
        return "run.output_dir=outputs/first"
    return f"run.output_dir={shlex.quote(str(free_place(folder)))}"
