"""Export the measurements of a study into one file, and import them again.

``python docs/study_rows.py FOLDER FILE.json`` collects the rows of finished cells, and the time per
step that equal-time comparisons depend on. ``python docs/study_rows.py FILE.json FOLDER`` restores
them. ``hpm-video bench ablation STUDY.yaml -o FOLDER`` then runs what is missing.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hpm_video.runtime.files import write_atomically

_CALIBRATION = "calibration_*.json"


def gather(folder: Path, file: Path) -> int:
    """Write the rows and calibration of a study; returns the number of rows."""
    if file.exists():
        _measured(file)  # refuse to overwrite anything but an earlier export
    rows = [_read(path) for path in sorted((folder / "cells").rglob("row.json"))]
    if not rows:
        raise SystemExit(f"source ({folder}) must be the folder of a study with finished cells")
    steps = {path.name: _read(path) for path in (folder / "preparation").glob(_CALIBRATION)}
    _write(file, {"preparation": steps, "rows": rows})
    return len(rows)


def lay_out(file: Path, folder: Path) -> int:
    """Write rows and calibration where a study looks for them; returns the number of rows."""
    if folder.exists():
        raise SystemExit(f"target ({folder}) must not exist yet: name a new folder")
    measured = _measured(file)
    for name, steps in measured["preparation"].items():
        _write(folder / "preparation" / name, steps)
    for row in measured["rows"]:
        _write(folder / "cells" / row["folder"] / "row.json", row)
    (folder / "study.yaml").touch()  # marks a study's folder; the next start fills the file
    return len(measured["rows"])


def _measured(file: Path) -> Any:
    """Contents of an export; SystemExit if invalid, or if it names paths outside the study."""
    try:
        measured = _read(file)
        names = list(measured["preparation"])
        folders = [row["folder"] for row in measured["rows"]]
        are_inside = all(fnmatch(name, _CALIBRATION) and "/" not in name for name in names)
        are_inside &= all(re.fullmatch(r"(\w[\w.+-]*/){3}seed\d+", name) for name in folders)
    except (TypeError, KeyError, AttributeError):
        are_inside = False
    if not are_inside:
        raise SystemExit(f"{file} must be a file of rows and calibrations that this script wrote")
    return measured


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SystemExit(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SystemExit(f"{path} must be JSON: {error}") from error


def _write(path: Path, value: object) -> None:
    try:
        write_atomically(path, [json.dumps(value, indent=1) + "\n"])
    except ValueError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder of a study, or file of its rows")
    parser.add_argument("target", type=Path, help="file of rows to write, or new folder of a study")
    arguments = parser.parse_args()
    work = gather if arguments.source.is_dir() else lay_out
    count = work(arguments.source, arguments.target)
    sys.stdout.write(f"{count} rows: {arguments.target}\n")
