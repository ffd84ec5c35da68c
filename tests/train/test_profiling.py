"""Traces of steps: what is in them, and that a run does not change by being watched."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import assert_same_run

from hpm_video.cli.main import main
from hpm_video.train.run.profiling import StepProfile

Arguments = Callable[..., list[str]]


def test_a_run_that_is_traced_is_the_same_run(
    pretrained: Path,
    pretrain_arguments: Arguments,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(pretrain_arguments(tmp_path / "run", "run.profile_steps=2")) == 0
    assert_same_run(pretrained, tmp_path / "run")
    files = sorted((tmp_path / "run" / "profile").iterdir())
    assert [file.name for file in files] == ["steps_4-5.json.gz", "steps_4-5.txt"]
    with gzip.open(files[0]) as file:
        events = json.load(file)["traceEvents"]
    names = [event.get("name", "") for event in events if event.get("ph") == "X"]
    assert {name for name in names if name.startswith("ProfilerStep")} == {
        "ProfilerStep#3",
        "ProfilerStep#4",
    }
    assert names.count("wait for videos") == 2
    assert any(name.startswith("aten::") for name in names)
    assert any("Backward" in name for name in names)
    table = files[1].read_text()
    shares = re.findall(r"^ +(\S.*?)  +([\d.]+)% ", table, re.M)
    assert 10 < len(shares) <= 30
    assert [float(share) for _, share in shares] == sorted(
        (float(share) for _, share in shares), reverse=True
    )
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "steps 4" in line]
    assert line.startswith("steps 4 to 5 traced: ") and str(files[0]) in line


def _profiled(folder: Path, *, num_steps: int, steps: int) -> list[str]:
    """What is said of so many steps of another run, which goes on after 10."""
    said: list[str] = []
    profile = StepProfile(
        folder, num_steps=num_steps, steps_done=10, device=torch.device("cpu"), say=said.append
    )
    profile.start()
    for _ in range(steps):
        torch.ones(3).sum()
        profile.end_step()
    profile.close()
    return said


@pytest.mark.parametrize(
    ("steps", "files", "line"),
    [
        (3, [], "run.profile_steps: no trace, as the run ended before step 14"),
        (5, ["steps_14-15.json.gz", "steps_14-15.txt"], "steps 14 to 15 traced"),
        (9, ["steps_14-17.json.gz", "steps_14-17.txt"], "steps 14 to 17 traced"),
    ],
)
def test_a_trace_goes_as_far_as_the_run(
    tmp_path: Path, steps: int, files: list[str], line: str
) -> None:
    folder = tmp_path / "profile"
    said = _profiled(folder, num_steps=4, steps=steps)
    assert len(said) == 1 and said[0].startswith(line)
    assert sorted(path.name for path in folder.glob("*")) == files


def test_nothing_is_traced_by_default(tmp_path: Path) -> None:
    assert _profiled(tmp_path / "profile", num_steps=0, steps=5) == []
    assert not list(tmp_path.iterdir())
