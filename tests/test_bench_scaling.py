"""The cost model beside real processes: what it is fed with, and that they run."""

import json
from pathlib import Path

import pytest

from hpm_video.bench import scaling
from hpm_video.cli import main

SMALL = ["--size=tiny", "--frames=2", "--crop-size=32", "--batch-size=1", "--device=cpu"]


def test_two_processes_are_measured(tmp_path: Path) -> None:
    file = tmp_path / "scaling.json"
    assert main(["bench", "scaling", *SMALL, "--rounds=1", f"--json={file}"]) == 0
    result = json.loads(file.read_text())
    nothing_hides, all_hides = result["rows"]
    for row in (nothing_hides, all_hides):
        assert min(row["alone_s"], row["all_reduce_s"], row["measured_s"]) > 0
    assert nothing_hides["predicted_s"] == pytest.approx(
        nothing_hides["alone_s"] + nothing_hides["all_reduce_s"]
    )
    assert all_hides["predicted_s"] <= nothing_hides["predicted_s"]
    # Two processes send each half of the bytes, twice
    settings = result["settings"]
    seconds = settings["all_reduce_mb"] / 1e3 / settings["all_reduce_gb_s"]
    assert seconds == pytest.approx(nothing_hides["all_reduce_s"])


def test_what_hides_is_worked_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measured = {"alone": 0.3, "all_reduce": 0.5, "together": 0.7, "gradient_bytes": 1e8}
    monkeypatch.setattr(scaling, "_together", lambda processes, **_: measured)
    file = tmp_path / "scaling.json"
    assert main(["bench", "scaling", *SMALL, f"--json={file}"]) == 0
    rows = json.loads(file.read_text())["rows"]
    # Behind two thirds of 0.3 s
    assert [row["predicted_s"] for row in rows] == pytest.approx([0.8, 0.6])
    assert [row["measured_over_predicted"] for row in rows] == pytest.approx([0.7 / 0.8, 0.7 / 0.6])


def test_it_takes_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "scaling", "--processes=1"]) == 2
    assert "--processes (1) must be at least 2" in capsys.readouterr().err
