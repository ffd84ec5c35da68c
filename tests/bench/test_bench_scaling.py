"""The cost model beside real processes: what it is fed with, and that they run."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpm_video.bench import scaling
from hpm_video.cli.main import main

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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--processes=1"], "--processes (1) must be at least 2"),
        (["--frames=0"], "--frames (0) must be at least 1"),
        (["--frames=3"], "num_frames (3) must be a multiple of model.tubelet_size (2)"),
        (["--crop-size=65"], "crop_size (65) must be a multiple of model.patch_size (16)"),
    ],
)
def test_it_refuses_before_it_starts_anything(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(scaling, "_together")
    assert main(["bench", "scaling", *SMALL, *words]) == 2
    assert said in capsys.readouterr().err


def test_the_others_end_with_one_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Noted(subprocess.Popen[str]):
        def __init__(self, **how: Any) -> None:
            super().__init__(**how)
            started.append(self)

    def waits_or_fails(module: str, settings: object, *, RANK: str, **_: str) -> dict[str, Any]:
        code = ["import time; time.sleep(600)", "raise SystemExit('no room')"][int(RANK)]
        return {"args": [sys.executable, "-c", code], "text": True}

    monkeypatch.setattr(scaling.subprocess, "Popen", Noted)
    monkeypatch.setattr(scaling, "python", waits_or_fails)
    with pytest.raises(RuntimeError, match=r"\(exit code 1\): no room"):
        scaling._together(2)
    assert [process.returncode for process in started] == [-signal.SIGKILL, 1]
