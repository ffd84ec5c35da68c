"""Output whose reader goes away, in processes of their own: they lose their real stdout."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import LIMIT_S

from hpm_video.train.run.logs import read_records

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path
from rich.console import Console
from rich.progress import track
from hpm_video.cli.terminal import lasting_output
with lasting_output():
    for stream in (sys.stdout, sys.stderr):
        print("first line", file=stream, flush=True)
    sys.stdin.read()  # until the test has closed the other ends
    for stream in (sys.stdout, sys.stderr):
        for _ in track(range(3), console=Console(file=stream, force_terminal=True)):
            print("x" * 100_000, file=stream)
            print("flushed", file=stream, flush=True)
    with open(sys.argv[1], "w") as file:
        file.write(str(file.fileno() > 2))
    print("left in the buffer", end="")
"""


def _run(way: str, mark: Path) -> int:
    """Exit code of the script; ``way``: shell redirections, or "pipe" for one without a reader."""
    redirections = "" if way == "pipe" else way
    process = subprocess.Popen(
        ["sh", "-c", f'exec "$0" -c "$1" "$2" {redirections}', sys.executable, SCRIPT, str(mark)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdin and process.stdout and process.stderr
    try:
        for stream in (process.stdout, process.stderr):
            if way == "pipe":
                assert stream.readline() == b"first line\n"
            stream.close()
        process.stdin.close()
        return process.wait(timeout=LIMIT_S)
    finally:
        process.kill()


@pytest.mark.parametrize("way", ["pipe", ">&- 2>&-"])
def test_a_job_goes_on_without_a_reader(way: str, tmp_path: Path) -> None:
    assert _run(way, tmp_path / "mark") == 0
    assert (tmp_path / "mark").read_text() == "True"  # no file of ours became stdout or stderr


def test_a_full_disk_remains_an_error(tmp_path: Path) -> None:
    assert _run(">/dev/full", tmp_path / "mark") != 0
    assert not (tmp_path / "mark").exists()


def test_a_run_outlives_head(pretrain_arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    arguments = pretrain_arguments(tmp_path / "run", "optim.epochs=4", "run.log_every=1")
    tool = str(ROOT / "tools" / f"{arguments[0]}.py")
    with subprocess.Popen(
        [sys.executable, tool, *arguments[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"starts from scratch\n"
        process.stdout.close()
        assert process.wait(timeout=LIMIT_S) == 0
    assert read_records(tmp_path / "run")[-1]["epoch"] == 4


def test_matplotlib_says_nothing_of_its_cache_folder() -> None:
    script = """
import sys, types
from hpm_video.cli import main

def run(arguments):
    import matplotlib
    return 0

main.command_of = lambda job: types.SimpleNamespace(add_arguments=lambda parser: None, run=run)
sys.exit(main.main(["recipes"]))
"""
    gone = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), "/proc/nowhere")
    environment = {name: value for name, value in os.environ.items() if name != "MPLCONFIGDIR"}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**environment, **gone}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
