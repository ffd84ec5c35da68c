"""What a study has measured: out of its folder into one file, and back.

``python docs/study_rows.py FOLDER FILE.json`` gathers the rows of finished cells, and how long
steps take, on which equal time depends. ``python docs/study_rows.py FILE.json FOLDER`` lays them
out, so that ``hpm-video bench ablation STUDY.yaml -o FOLDER`` goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

_CALIBRATION = "calibration_*.json"


def gather(folder: Path, file: Path) -> int:
    """Write the rows of a study and its calibration; returns how many rows."""
    rows = [_read(path) for path in sorted((folder / "cells").rglob("row.json"))]
    if not rows:
        raise SystemExit(f"source ({folder}) must be a study with finished cells")
    steps = {path.name: _read(path) for path in (folder / "preparation").glob(_CALIBRATION)}
    _write(file, {"preparation": steps, "rows": rows})
    return len(rows)


def lay_out(file: Path, folder: Path) -> int:
    """Write rows and calibration where a study looks for them; returns how many rows."""
    if folder.exists():
        raise SystemExit(f"target ({folder}) must not exist yet")
    measured = _read(file)
    for name, steps in measured["preparation"].items():
        _write(folder / "preparation" / name, steps)
    for row in measured["rows"]:
        _write(folder / "cells" / row["folder"] / "row.json", row)
    (folder / "study.yaml").touch()  # makes it a study's folder; the next start fills it
    return len(measured["rows"])


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder of a study, or file of rows")
    parser.add_argument("target", type=Path, help="file of rows, or folder of a study")
    arguments = parser.parse_args()
    work = gather if arguments.source.is_dir() else lay_out
    count = work(arguments.source, arguments.target)
    sys.stdout.write(f"{count} rows: {arguments.target}\n")
