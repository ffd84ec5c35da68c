"""What a worker with limits cannot do, tried by one that wants to."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hpm_video.runtime.sandbox import Limits, describe, landlock_version
from hpm_video.runtime.workers import KillableWorker, fork_server

GIB = 2**30
READING, WRITING = Limits(GIB), Limits(GIB, may_write=True)
Worker = Callable[[Limits | None], KillableWorker]

needs_landlock = pytest.mark.skipif(landlock_version() < 1, reason="this kernel has no Landlock")


def attempt(item: tuple[str, str], *files: int) -> str:
    """Run in the worker: what came of trying something."""
    kind, what = item
    try:
        match kind:
            case "allocate":
                np.empty(int(what), np.uint8)
            case "write":
                Path(what).write_text("x")
            case "delete":
                os.unlink(what)
            case "truncate":
                os.truncate(what, 0)
            case "make":
                os.mkdir(what)
            case "read":
                Path(what).read_bytes()
            case "write to what was handed over":
                os.pwrite(files[0], b"y", 0)
            case "run":
                subprocess.run([what], check=True)
            case "connect":
                socket.create_connection(("127.0.0.1", int(what)), timeout=5).close()
            case "signal":
                os.kill(int(what), signal.SIGWINCH)
    except (OSError, MemoryError) as error:
        return type(error).__name__
    return "done"


@pytest.fixture
def worker() -> Iterator[Worker]:
    made: list[KillableWorker] = []

    def make(limits: Limits | None) -> KillableWorker:
        made.append(KillableWorker(attempt, limits=limits))
        return made[-1]

    yield make
    for each in made:
        each.kill()


def _tried(worker: KillableWorker, kind: str, what: object = "") -> str:
    worker.submit((kind, str(what)), 60)
    return str(worker.result())


def test_memory_is_bounded_beside_what_a_worker_begins_with(worker: Worker) -> None:
    limited = worker(READING)
    assert _tried(limited, "allocate", GIB // 2) == "done"
    assert _tried(limited, "allocate", 2 * GIB) == "MemoryError"
    assert _tried(limited, "allocate", GIB // 2) == "done"  # and it goes on
    assert _tried(worker(None), "allocate", 2 * GIB) == "done"


def test_files_that_are_handed_over_come_on_top(tmp_path: Path) -> None:
    """They are memory that a worker shares, as large as a loader's batches."""
    with (tmp_path / "large").open("w+b") as file:
        file.truncate(4 * GIB)
        worker = KillableWorker(attempt, files=[file.fileno()], limits=READING)
        try:
            assert _tried(worker, "allocate", 2 * GIB) == "done"
            assert _tried(worker, "write to what was handed over") == "done"
        finally:
            worker.kill()


@needs_landlock
def test_nothing_is_written_and_nothing_started(worker: Worker, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    limited = worker(READING)
    for kind, what in (
        ("write", file), ("write", tmp_path / "new"), ("delete", file), ("make", tmp_path / "new"),
    ):  # fmt: skip
        assert _tried(limited, kind, what) == "PermissionError", kind
    if landlock_version() >= 3:
        assert _tried(limited, "truncate", file) == "PermissionError"
    assert _tried(limited, "run", "/bin/true") == "PermissionError"
    assert _tried(limited, "read", file) == _tried(limited, "write", os.devnull) == "done"
    assert file.read_text() == "kept" and [path.name for path in tmp_path.iterdir()] == ["file"]


@needs_landlock
def test_who_may_write_may_still_start_nothing(worker: Worker, tmp_path: Path) -> None:
    limited = worker(WRITING)
    assert _tried(limited, "write", tmp_path / "new") == "done"
    assert _tried(limited, "delete", tmp_path / "new") == "done"
    assert _tried(limited, "run", "/bin/true") == "PermissionError"


@pytest.mark.skipif(landlock_version() < 6, reason="this kernel's Landlock knows no signals")
def test_other_processes_get_no_signals(worker: Worker) -> None:
    assert _tried(worker(READING), "signal", os.getpid()) == "PermissionError"


@pytest.mark.parametrize("limits", [None, READING])
def test_there_is_no_network(worker: Worker, limits: Limits | None) -> None:
    if not fork_server().is_offline():
        pytest.skip("this kernel or container allows no network of one's own")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), timeout=5).close()  # this process has one
        assert _tried(worker(limits), "connect", port) in ("OSError", "PermissionError")


def test_it_is_said_in_words() -> None:
    text = describe(READING, is_offline=True)
    assert text.startswith("1 GiB of memory each, no network, ")
    if landlock_version() >= 1:
        assert text.endswith("no file writes, no other programs")
        assert ", file writes, " in describe(WRITING, is_offline=True)
