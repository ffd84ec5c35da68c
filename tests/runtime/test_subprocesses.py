"""Processes that a bench starts: what is said when they fail, and that none is left running."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import LIMIT_S, is_gone

from hpm_video.cli.main import main
from hpm_video.runtime.subprocesses import apart, output_of

_HEAD = "import os, sys, time\nfrom hpm_video.runtime.subprocesses import *\n"
_STARTS_ONE = f"""{_HEAD}
from hpm_video.runtime.subprocesses import output_of
output_of("waits", {{"file": sys.argv[1]}})
"""
_WAITS = f"""{_HEAD}
file = given_settings()["file"]
open(file + ".part", "w").write(str(os.getpid()))
os.rename(file + ".part", file)
time.sleep(600)
"""

Module = Callable[[str, str], str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """Writes a module that other processes can import; returns its name."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    def write(name: str, code: str) -> str:
        (tmp_path / f"{name}.py").write_text(code)
        return name

    return write


def test_output_and_settings(module: Module) -> None:
    name = module("prints", f"{_HEAD}print(given_settings()['a'] + 1)")
    assert output_of(name, {"a": 2}) == "3\n"


def test_calls_are_answered_one_by_one(module: Module, tmp_path: Path) -> None:
    code = f"{_HEAD}answer_calls(lambda: open(given_settings()['file'], 'a').write('x'))"
    file = tmp_path / "calls"
    with apart(module("answers", code), {"file": str(file)}) as call:
        for count in (1, 2, 3):
            call()
            assert file.read_text() == "x" * count


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("sys.exit('no room')", r"subprocess failed \(exit code 1\): no room"),
        ("os.kill(os.getpid(), 9)", r"subprocess was killed \(SIGKILL\), probably out of memory"),
    ],
)
def test_how_a_process_ended_is_said(module: Module, code: str, said: str) -> None:
    name = module("fails", _HEAD + code)
    with pytest.raises(RuntimeError, match=said):
        output_of(name, {})
    with pytest.raises(RuntimeError, match=said), apart(name, {}) as call:
        call()


def test_a_killed_process_is_one_line_of_the_command(
    module: Module, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = module("dies", f"{_HEAD}os.kill(os.getpid(), 9)")
    monkeypatch.setattr("hpm_video.cli.bench.run", lambda _: output_of(name, {}))
    assert main(["bench", "flops"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("hpm-video bench: ") and "was killed" in said and said.count("\n") == 1


def test_a_call_of_a_process_that_has_long_ended(module: Module, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    code = f"{_HEAD}open({str(file)!r}, 'w').write(str(os.getpid()))\nsys.exit('no room')"
    with (
        pytest.raises(RuntimeError, match=r"subprocess failed \(exit code 1\): no room"),
        apart(module("fails", code), {}) as call,
    ):
        _wait_for(lambda: file.exists() and is_gone(int(file.read_text() or os.getpid())))
        call()


def test_a_process_ends_with_its_parent(module: Module, tmp_path: Path) -> None:
    module("waits", _WAITS)
    file = tmp_path / "pid"
    with subprocess.Popen([sys.executable, "-c", _STARTS_ONE, str(file)]) as parent:
        _wait_for(file.exists)
        child = int(file.read_text())
        parent.kill()
    try:
        _wait_for(lambda: is_gone(child))
    finally:
        if not is_gone(child):
            os.kill(child, signal.SIGKILL)


def test_a_process_whose_parent_has_gone_ends_at_once(module: Module, tmp_path: Path) -> None:
    words = ["-m", module("waits", _WAITS), '{"file": "none"}', "1"]  # we are not process 1
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=tmp_path, timeout=LIMIT_S, check=False)
    assert done.returncode == 1


def _wait_for(happened: Callable[[], bool]) -> None:
    give_up = time.monotonic() + LIMIT_S
    while not happened():
        assert time.monotonic() < give_up
        time.sleep(0.05)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="older Pythons always look there")
def test_nothing_is_imported_from_where_the_user_stands(
    module: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a folder of strangers' videos."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "colorsys.py").write_text("")
    monkeypatch.chdir(here)
    name = module("looks", "import colorsys\nprint(colorsys.__file__)")
    assert str(here) not in output_of(name, {})
