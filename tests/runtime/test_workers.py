import ctypes
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from processes import LIMIT_S, is_gone, until

from hpm_video.runtime.workers import (
    ForkServer,
    ItemTimeout,
    KillableWorker,
    WorkerDied,
    run_killable,
    wait_for_workers,
)


class OddError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} {two}")


def work(item: str) -> tuple[str, int]:
    """Run in the worker. PyDLL, unlike CDLL, keeps the interpreter's lock during the call."""
    native = ctypes.PyDLL(None)
    if item == "hang":
        native.pause()
        native.sleep(1000)
    elif item == "a second":
        print("begun", flush=True)
        for _ in range(10):  # one sleep would go on while it is stopped
            time.sleep(0.1)
    elif item == "segfault":
        ctypes.string_at(0)
    elif item == "exit":
        os._exit(7)
    elif item == "raise":
        raise ValueError("size (3) must be even")
    elif item == "odd error":
        raise OddError(1, 2)
    elif item == "end of file":
        raise EOFError("the file ends")
    elif item.startswith("die once"):
        mark = Path(item.removeprefix("die once "))
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return item, os.getpid()


def read_file(item: int, file: int) -> bytes:
    return os.pread(file, 3, item)


def test_items_are_worked_on_in_order_by_one_process() -> None:
    worker = KillableWorker(work)
    for item in "abc":
        worker.submit(item)
    assert len(worker) == 3
    results = [worker.result() for _ in range(3)]
    assert [item for item, _ in results] == ["a", "b", "c"]
    assert {pid for _, pid in results} == {worker.pid} and worker.pid != os.getpid()
    pid = results[0][1]
    worker.kill()
    assert is_gone(pid) and worker.pid is None
    worker.submit("d")  # goes on with a new one
    assert worker.result() == ("d", worker.pid) and worker.pid != pid
    worker.kill()


def test_a_hang_with_the_interpreter_locked_is_ended() -> None:
    worker = KillableWorker(work)
    worker.submit("a", LIMIT_S)
    worker.submit("hang", 0.5)
    worker.submit("b", LIMIT_S)
    _, pid = worker.result()
    with pytest.raises(ItemTimeout, match=r"no result within 0\.5 s"):
        worker.result()
    assert is_gone(pid)
    item, other = worker.result()  # what waited behind it is not lost
    assert item == "b" and other != pid
    worker.kill()


@pytest.mark.parametrize(
    ("item", "exitcode", "text"),
    [("segfault", -signal.SIGSEGV, "SIGSEGV"), ("exit", 7, "exit code 7")],
)
def test_a_crash_is_an_outcome(item: str, exitcode: int, text: str) -> None:
    worker = KillableWorker(work)
    worker.submit(item)
    worker.submit("b")
    with pytest.raises(WorkerDied, match=text) as caught:
        worker.result()
    assert caught.value.exitcode == exitcode
    assert worker.result()[0] == "b"
    worker.kill()


def test_errors_travel() -> None:
    worker = KillableWorker(work)
    worker.submit("raise")
    with pytest.raises(ValueError, match=r"^size \(3\) must be even") as caught:
        worker.result()
    assert "in work" in str(caught.value.__cause__)  # where it was raised
    pid = worker.pid
    worker.submit("odd error")
    with pytest.raises(RuntimeError, match="OddError: 1 2"):
        worker.result()
    worker.submit("end of file")
    with pytest.raises(EOFError, match="the file ends"):  # which is not the end of the process
        worker.result()
    worker.submit("a")
    assert worker.result() == ("a", pid)  # an error ends no process
    worker.kill()


def test_files_are_handed_over(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abcdef")
    with (tmp_path / "a").open("rb") as file:
        worker = KillableWorker(read_file, files=[file.fileno()])
        worker.submit(2)
        assert worker.result() == b"cde"
        worker.kill()


def test_waiting_finds_those_that_are_ready() -> None:
    hanging, quick, idle = (KillableWorker(work) for _ in range(3))
    hanging.submit("hang", 1)
    quick.submit("a")
    assert wait_for_workers([hanging, quick, idle]) == [quick]
    quick.result()
    assert wait_for_workers([hanging, quick, idle]) == [hanging]
    with pytest.raises(ItemTimeout):
        hanging.result()
    for worker in (hanging, quick):
        worker.kill()


def test_many_items_over_several_processes(tmp_path: Path) -> None:
    flaky = f"die once {tmp_path / 'mark'}"
    items = [*map(str, range(30)), "hang", "segfault", flaky, *map(str, range(30, 60))]
    outcomes = dict(run_killable(work, iter(items), num_workers=3, timeout_s=2))
    assert sorted(outcomes) == sorted(items)
    assert isinstance(outcomes.pop("hang"), ItemTimeout)
    assert isinstance(outcomes.pop("segfault"), WorkerDied)
    assert all(outcomes[item][0] == item for item in outcomes)  # type: ignore[index]
    assert len({pid for _, pid in outcomes.values()}) >= 3  # type: ignore[union-attr, misc]
    assert not list(run_killable(work, [], num_workers=2, timeout_s=None))


def test_leaving_early_ends_the_processes() -> None:
    pids = set()
    outcomes = run_killable(work, ["a", "b", "hang", "hang"], num_workers=2, timeout_s=None)
    for _ in range(2):
        _, outcome = next(outcomes)
        pids.add(outcome[1])  # type: ignore[index]
    outcomes.close()  # type: ignore[attr-defined]
    assert all(is_gone(pid) for pid in pids)


def test_items_outlive_the_fork_server() -> None:
    """Something, perhaps the kernel for want of memory, killed the process that starts others."""
    worker, other = KillableWorker(work), KillableWorker(work)
    other.submit("a")
    other.result()
    worker.submit("a")
    _, pid = worker.result()
    server = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(server, signal.SIGKILL)
    assert until(lambda: is_gone(pid))  # its workers end with it
    worker.submit("b")
    worker.submit("c")
    with pytest.raises(WorkerDied):
        worker.result()
    assert worker.result()[0] == "c"
    other.submit("d")
    with pytest.raises(WorkerDied):
        other.result()  # the new server knows nothing of it
    for each in (worker, other):
        each.kill()


@pytest.mark.parametrize("timeout_s", [1e7, 1e300, math.inf])  # more than poll(2) takes
def test_any_time_limit_can_be_waited_for(timeout_s: float) -> None:
    assert [item for item, _ in run_killable(work, ["a"], num_workers=1, timeout_s=timeout_s)]
    worker = KillableWorker(work)
    worker.submit("a", timeout_s)
    assert worker.result()[0] == "a"
    worker.kill()


STOPPED_SCRIPT = """
from hpm_video.runtime.workers import run_killable
from test_workers import work
((_, outcome),) = run_killable(work, ["a second"], num_workers=1, timeout_s=3)
print(outcome[0])
"""


def test_time_in_which_all_were_stopped_does_not_count() -> None:
    """A job suspended by Ctrl-Z or its scheduler: no item is to blame for the gap."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED_SCRIPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.3)  # on a loaded machine it may not wait for the item yet
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(4)  # longer than the limit
        os.killpg(process.pid, signal.SIGCONT)
        assert process.communicate(timeout=LIMIT_S) == ("a second\n", "")
    finally:
        process.kill()
        process.communicate()


SCRIPT = """
import os, signal, sys, threading, time
from hpm_video.runtime.workers import KillableWorker
from test_workers import work
workers = [KillableWorker(work) for _ in range(2)]
for worker in workers:
    worker.submit("a")
pids = [worker.result()[1] for worker in workers]
pids.append(int(open(f"/proc/{pids[0]}/stat").read().rsplit(")", 1)[1].split()[1]))
for worker in workers:
    worker.submit("hang")
if sys.argv[1] == "fork" and os.fork() == 0:  # somebody else's child, which inherits our files
    pids = [os.getpid()]
    time.sleep(1000)
print(*pids, flush=True)
if sys.argv[1] == "raise":
    raise RuntimeError("by intention")
if sys.argv[1] in ("wait", "fork"):
    workers[0].result()
"""


@pytest.mark.parametrize(
    ("way", "number"),
    [
        ("end", None),
        ("raise", None),
        ("wait", signal.SIGINT),
        ("wait", signal.SIGTERM),
        ("wait", signal.SIGHUP),
        ("wait", signal.SIGKILL),
        ("fork", signal.SIGKILL),
    ],
)
def test_nothing_is_left_behind(way: str, number: signal.Signals | None) -> None:
    """Workers that hang, however their parent ends."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, way],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 3
        if number is not None:
            assert not any(is_gone(pid) for pid in pids)
            os.kill(process.pid, number)
        process.wait(timeout=LIMIT_S)
        assert until(lambda: all(is_gone(pid) for pid in pids))
    finally:
        process.kill()
        if way == "fork":
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_signals_for_the_whole_group_end_no_worker() -> None:
    """Ctrl-C and SLURM's warning: what to do about them is the parent's business."""
    worker = KillableWorker(work)
    worker.submit("a")
    _, pid = worker.result()
    server = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP):
        os.kill(pid, number)
        os.kill(server, number)
    worker.submit("b")
    assert worker.result() == ("b", pid)
    other = KillableWorker(work)
    other.submit("c")
    assert other.result()[0] == "c"
    for each in (worker, other):
        each.kill()


def test_signals_before_it_is_up_end_no_fork_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python takes a while until it can ignore them."""
    popen = subprocess.Popen

    def signalled(*arguments: Any, **named: Any) -> subprocess.Popen[bytes]:
        process = popen(*arguments, **named)
        for number in (signal.SIGTERM, signal.SIGUSR2):
            process.send_signal(number)
        return process

    monkeypatch.setattr(subprocess, "Popen", signalled)
    server = ForkServer()
    _, pid = server.start(pickle.dumps(work), ())
    assert server.end(pid) == -signal.SIGKILL
    server.close()
