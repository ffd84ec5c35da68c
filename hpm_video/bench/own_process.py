"""Benches that need a Python process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def python(module: str, settings: Mapping[str, Any], **environment: str) -> dict[str, Any]:
    """What `subprocess` is to start: ``python -m module SETTINGS`` (JSON), with this package and
    this process's environment, some of it replaced."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {
        "args": [sys.executable, "-m", module, json.dumps(settings)],
        "env": {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            **environment,
        },
        "text": True,
    }


@contextmanager
def apart(module: str, settings: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
    """Calls of a function that lives in a process of its own, one at a time.

    The module, started with ``settings``, is to hand its function to `answer_calls`. A call raises
    RuntimeError, with what the process complained about, when it has ended.
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
        assert questions is not None
        assert answers is not None

        def call() -> None:
            with suppress(BrokenPipeError):
                questions.write("\n")
                questions.flush()
            if not answers.readline():
                complaints.seek(0)
                raise RuntimeError(f"a process of its own ended: {complaints.read()[-2000:]}")

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
