"""Subprocesses of benchmarks, which end with the process that started them."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hpm_video.runtime.signals import end_with

# From Python 3.11 on, import nothing from the current folder
_SAFE_PATH = {"PYTHONSAFEPATH": "1"}


def python(module: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for `subprocess` to run ``python -m module`` with this package and environment. The
    module reads the settings with `given_settings`."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {
        "args": [sys.executable, "-m", module, json.dumps(settings), str(os.getpid())],
        "env": {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **_SAFE_PATH},
        "text": True,
    }


def given_settings() -> dict[str, Any]:
    """The settings passed by `python`. From now on this process ends with its parent, at once if
    the parent has already ended."""
    settings: dict[str, Any] = json.loads(sys.argv[1])
    end_with(int(sys.argv[2]))
    return settings


def output_of(module: str, settings: Mapping[str, Any]) -> str:
    """The output of a module run with ``settings`` in a subprocess. Raises RuntimeError with its
    exit status and error output if it fails."""
    done = subprocess.run(**python(module, settings), capture_output=True, check=False)
    if done.returncode:
        raise failure_of(done.returncode, done.stderr)
    return done.stdout


class KilledError(RuntimeError):
    """The system killed the subprocess, usually out of memory; not a bug."""


def failure_of(returncode: int, complaints: str) -> RuntimeError:
    """The error to raise for a failed subprocess."""
    if returncode == -signal.SIGKILL:
        return KilledError(
            "the benchmark subprocess was killed (SIGKILL), probably out of memory: choose a "
            "smaller batch, model or clip"
        )
    how = signal.Signals(-returncode).name if returncode < 0 else f"exit code {returncode}"
    said = f"the benchmark subprocess failed ({how}): {complaints[-2000:]}"
    return RuntimeError(said.rstrip(": "))


@contextmanager
def apart(module: str, settings: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
    """Yield a function that calls another one in a subprocess, one call at a time.

    The module, run with ``settings``, must pass its function to `answer_calls`. A call raises
    RuntimeError with exit status and error output if the subprocess has ended.
    """
    # A file, since a pipe that nobody reads fills up
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(
            **python(module, settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
        ) as process,
    ):
        questions, answers = process.stdin, process.stdout
        assert questions is not None and answers is not None

        def call() -> None:
            with suppress(BrokenPipeError):  # bypasses the stream, which would retry on close
                os.write(questions.fileno(), b"\n")
            if not answers.readline():
                complaints.seek(0)
                raise failure_of(process.wait(), complaints.read())

        try:
            yield call
        finally:
            process.kill()


def answer_calls(function: Callable[[], object]) -> None:
    """Call the function for every line on stdin and answer with a line, until end of file."""
    for _ in sys.stdin:
        function()
        sys.stdout.write("done\n")
        sys.stdout.flush()
