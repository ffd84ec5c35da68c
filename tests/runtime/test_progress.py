"""Bars on a terminal of its own, whole lines above them, and plain output elsewhere."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import LIMIT_S

from hpm_video.runtime import progress
from hpm_video.runtime.progress import in_words

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys, time, warnings
from hpm_video.runtime.progress import Progress
from hpm_video.runtime.screen import Relay
import subprocess
with Progress("checked", total=4) as progress:
    relay = Relay("stderr")
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; print('of a worker', file=sys.stderr)"],
        stderr=relay.child_end,
    )
    relay.are_started()
    for number in range(4):
        progress.step(bad=number == 1)
        print(f"line {number}", flush=True)
        time.sleep(0.2)
    child.wait()
    relay.wait()
    warnings.warn("a warning")
"""
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _on_a_terminal(script: str, **environment: str) -> str:
    """What a script writes to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    inherited = {n: v for n, v in os.environ.items() if n not in ("CI", "JPY_PARENT_PID")}
    about = {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **environment}
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**inherited, **about},
    )  # fmt: skip
    os.close(theirs)
    written = b""
    try:
        while data := os.read(ours, 65536):
            written += data
    except OSError:  # EIO: the other end is closed
        pass
    assert process.wait(timeout=LIMIT_S) == 0
    os.close(ours)
    return written.decode()


def test_lines_of_anybody_stand_whole_above_the_bar() -> None:
    written = _on_a_terminal(SCRIPT)
    assert "\x1b[" in written
    assert "checked" in written and "4/4" in written and "1 bad" in written
    # Every line begins where the bar was wiped away
    lines = re.split(r"[\r\n]+", ESCAPES.sub("", written))
    assert {"of a worker", *(f"line {number}" for number in range(4))} <= set(lines)
    assert any(line.endswith("UserWarning: a warning") for line in lines)
    # A killed process could not show the cursor again
    assert written.rfind("\x1b[?25h") > written.rfind("\x1b[?25l")
    assert written.index("\x1b[?25h") < written.index("line 0")


def test_no_color_is_no_color() -> None:
    written = _on_a_terminal(SCRIPT, NO_COLOR="1")
    assert "4/4" in written
    assert not re.search(r"\x1b\[[0-9;]*(?:3[0-8]|9[0-7])[0-9;]*m", written)


@pytest.mark.parametrize("variable", ["TERM=dumb", "TERM=", "CI=true", "JPY_PARENT_PID=7"])
def test_nothing_is_redrawn_where_nobody_could_see_it(variable: str) -> None:
    name, _, value = variable.partition("=")
    written = _on_a_terminal(SCRIPT, **{name: value})
    assert "\x1b" not in written and "4/4" not in written
    assert "line 0" in written and "of a worker" in written


def test_plain_lines_tell_a_speed_once_there_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first item takes 51 s, most of it to start processes; each of the others takes one."""
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.Progress("asked about", total=60) as counted:
        for number in range(60):
            now += 1 if number else 51
            counted.step(bad=False)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "asked about 1 of 60 (0 bad)"
    assert second == "asked about 32 of 60 (0 bad), 1.0/s, 00:00:28 left"


def test_slow_items_have_a_speed_that_is_not_zero(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.Progress("encoded", total=10, done=3) as counted:
        for _ in range(6):
            now += 40
            counted.step(bad=True)
    *early, last = capsys.readouterr().err.splitlines()
    assert len(early) == 5 and not any("left" in line for line in early)
    assert last == "encoded 9 of 10 (6 bad), 1.5/min, 00:00:40 left"


def test_times_in_words() -> None:
    assert in_words(59) == "00:00:59"
    assert in_words(3 * 86400 + 3661) == "3 d 01:01:01"
