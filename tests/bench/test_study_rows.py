"""``docs/study_rows.py``: rows of a study in one file, and back, and nothing else touched."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "study_rows.py"
ROW = {"folder": "toy/epochs/hpm/seed0", "variant": "hpm", "seed": 0, "epochs": 2, "top1": 0.5}
MEASURED = {"preparation": {"calibration_toy.json": {"hpm": {"clock": "wall"}}}, "rows": [ROW]}


def _run(*arguments: object) -> tuple[int, str]:
    """Exit code, and what was complained about."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def _rows(path: Path, value: Any = MEASURED) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_rows_are_laid_out_and_gathered_again(tmp_path: Path) -> None:
    study, file = tmp_path / "study", tmp_path / "again.json"
    assert _run(_rows(tmp_path / "rows.json"), study) == (0, "")
    assert json.loads((study / "cells" / ROW["folder"] / "row.json").read_text()) == ROW
    assert (study / "study.yaml").is_file()
    for _ in range(2):  # a file of rows may be replaced
        assert _run(study, file) == (0, "")
        assert json.loads(file.read_text()) == MEASURED


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {**MEASURED, "rows": [{**ROW, "folder": "../../escape/seed0"}]},
        {**MEASURED, "rows": [{**ROW, "folder": "/toy/epochs/hpm/seed0"}]},
        {**MEASURED, "preparation": {"calibration_../../x.json": {}}},
        {**MEASURED, "preparation": {"study.yaml": {}}},
    ],
)
def test_nothing_is_laid_out_of_another_file(value: Any, tmp_path: Path) -> None:
    file = _rows(tmp_path / "rows.json", value)
    code, complaint = _run(file, tmp_path / "study")
    assert code == 1 and complaint.count("\n") == 1
    assert f"{file} must be a file of rows" in complaint
    assert list(tmp_path.iterdir()) == [file]


def test_no_other_file_is_replaced(tmp_path: Path) -> None:
    study, other = tmp_path / "study", tmp_path / "other.txt"
    assert _run(_rows(tmp_path / "rows.json"), study) == (0, "")
    other.write_text("precious")
    code, complaint = _run(study, other)
    assert code == 1 and f"{other} must be JSON" in complaint and complaint.count("\n") == 1
    assert other.read_text() == "precious"
    assert _run(tmp_path / "rows.json", study)[0] == 1  # a folder that is there already


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    code, complaint = _run(tmp_path / "none", tmp_path / "rows.json")
    assert code == 1 and f"{tmp_path / 'none'} cannot be read" in complaint
    assert complaint.count("\n") == 1
