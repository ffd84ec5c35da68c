"""Benches that need a Python process of their own, which ends with the one that started it."""

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

# From Python 3.11 on: nothing is imported from the folder in which the user stands
_SAFE_PATH = {"PYTHONSAFEPATH": "1"}


def python(module: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `subprocess` is to start: ``python -m module``, with this package and this process's
    environment. The module gets the settings from `given_settings`."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {
        "args": [sys.executable, "-m", module, json.dumps(settings), str(os.getpid())],
        "env": {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **_SAFE_PATH},
        "text": True,
    }


def given_settings() -> dict[str, Any]:
    """The settings with which `python` started this process, which ends with its parent from now
    on, however that ends; at once if the parent has gone already."""
    settings: dict[str, Any] = json.loads(sys.argv[1])
    end_with(int(sys.argv[2]))
    return settings


def output_of(module: str, settings: Mapping[str, Any]) -> str:
    """What a module, started with ``settings`` in a process of its own, prints. RuntimeError, with
    how the process ended and what it complained about, if it failed."""
    done = subprocess.run(**python(module, settings), capture_output=True, check=False)
    if done.returncode:
        raise failure_of(done.returncode, done.stderr)
    return done.stdout


class KilledError(RuntimeError):
    """The system killed a process of its own, as it does where memory runs out: no bug of ours."""


def failure_of(returncode: int, complaints: str) -> RuntimeError:
    """What to raise of a process of its own that failed."""
    if returncode == -signal.SIGKILL:
        return KilledError(
            "a process of its own was killed (SIGKILL), as where memory runs out: choose a smaller "
            "batch, model or clip"
        )
    how = signal.Signals(-returncode).name if returncode < 0 else f"exit code {returncode}"
    return RuntimeError(f"a process of its own ended ({how}): {complaints[-2000:]}".rstrip(": "))


@contextmanager
def apart(module: str, settings: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
    """Calls of a function that lives in a process of its own, one at a time.

    The module, started with ``settings``, is to hand its function to `answer_calls`. A call raises
    RuntimeError, with how the process ended and what it complained about, when it has.
    """
    # A file: a pipe of complaints that nobody reads fills up.
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
            with suppress(BrokenPipeError):  # past the stream, which would try again at its end
                os.write(questions.fileno(), b"\n")
            if not answers.readline():
                complaints.seek(0)
                raise failure_of(process.wait(), complaints.read())

        try:
            yield call
        finally:
            process.kill()


def answer_calls(function: Callable[[], object]) -> None:
    """Call the function for every line that comes, and answer with one; until there are no more."""
    for _ in sys.stdin:
        function()
        sys.stdout.write("done\n")
        sys.stdout.flush()
