"""Who runs in a folder: certainly alive, certainly dead, or to be looked at for a while."""

import errno
import fcntl
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpm_video.runtime import lock as run_lock
from hpm_video.runtime.lock import FolderInUse, lock_folder, unlock_folder

HERE = socket.gethostname()
ELSEWHERE = "process 5 on elsewhere"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(run_lock, "_BEAT_S", 0.05)
    monkeypatch.setattr(run_lock, "_PATIENCE_S", 0.5)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    yield
    unlock_folder(tmp_path)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The holders at which one had to look for a while, to see whether they live."""
    found: list[str] = []
    look = run_lock._wait_for_a_beat

    def noting(file: Path, holder: str) -> None:
        found.append(holder)
        look(file, holder)

    monkeypatch.setattr(run_lock, "_wait_for_a_beat", noting)
    return found


def _without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)


def _squeue(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a stand-in for squeue first on PATH."""
    file = folder / "bin" / "squeue"
    file.parent.mkdir()
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{file.parent}:{os.environ['PATH']}")


def test_a_holder_says_who_it_is_and_that_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    lock_folder(tmp_path)
    file = tmp_path / "run.lock"
    seen = set()
    end = time.monotonic() + 60
    while len(seen) < 3 and time.monotonic() < end:
        seen.add(file.open().read())  # closed by nobody before the end: that would end the lock
    pattern = rf"process {os.getpid()} on {re.escape(HERE)}, SLURM job 77, beat \d+\n"
    assert len(seen) == 3
    assert all(re.fullmatch(pattern, line) for line in seen)
    unlock_folder(tmp_path)
    assert file.read_text() == ""
    time.sleep(0.2)
    assert file.read_text() == ""  # no beat comes after it


@pytest.mark.parametrize("locks", [True, False])
def test_a_live_process_elsewhere_is_respected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    """Where locks do not reach it, its signs of life do."""
    if not locks:
        _without_locks(monkeypatch)
    file = tmp_path / "run.lock"
    file.write_text(f"{ELSEWHERE}, SLURM job 4, beat 000000001\n")
    threading.Timer(0.2, file.write_text, [f"{ELSEWHERE}, SLURM job 4, beat 000000002\n"]).start()
    with pytest.raises(FolderInUse) as caught:
        lock_folder(tmp_path)
    assert str(caught.value) == f"{ELSEWHERE}, SLURM job 4"
    assert file.read_text().startswith(ELSEWHERE)


def test_a_dead_process_elsewhere_is_found_out(tmp_path: Path, looks: list[str]) -> None:
    (tmp_path / "run.lock").write_text(f"{ELSEWHERE}, beat 000000001\n")
    lock_folder(tmp_path)
    assert len(looks) == 1
    assert (tmp_path / "run.lock").open().read().startswith(f"process {os.getpid()} on {HERE}")


def test_who_comes_first_meanwhile_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.lock"
    file.write_text(f"{ELSEWHERE}, beat 000000001\n")
    now = "process 6 on third, beat 000000000\n"
    monkeypatch.setattr(run_lock, "_wait_for_a_beat", lambda file, holder: file.write_text(now))
    with pytest.raises(FolderInUse, match=r"^process 6 on third$"):
        lock_folder(tmp_path)
    assert file.read_text() == now


def test_its_own_former_start_holds_up_no_requeued_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: list[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4")
    (tmp_path / "run.lock").write_text(f"{ELSEWHERE}, SLURM job 4, beat 000000001\n")
    lock_folder(tmp_path)
    assert looks == []


@pytest.mark.parametrize(
    ("script", "is_dead"),
    [
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", True),
        ("exit 0", True),
        ('[ "$3" = 4 ] && echo RUNNING', False),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", False),
    ],
)
def test_slurm_knows_whether_another_job_is_over(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    looks: list[str],
    script: str,
    is_dead: bool,
) -> None:
    _squeue(tmp_path, monkeypatch, script)
    (tmp_path / "run.lock").write_text(f"{ELSEWHERE}, SLURM job 4, beat 000000001\n")
    lock_folder(tmp_path)
    assert (looks == []) == is_dead


def test_without_locks_a_dead_process_here_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: list[str]
) -> None:
    _without_locks(monkeypatch)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for pid, num_looks in [(gone.pid, 0), (os.getpid(), 1)]:
        (tmp_path / "run.lock").write_text(f"process {pid} on {HERE}, beat 000000001\n")
        lock_folder(tmp_path)
        unlock_folder(tmp_path)
        assert len(looks) == num_looks


def test_with_locks_what_is_written_here_holds_nobody_up(tmp_path: Path, looks: list[str]) -> None:
    """The kernel knows better than a process number, which another process may have by now."""
    (tmp_path / "run.lock").write_text(f"process {os.getppid()} on {HERE}, beat 000000001\n")
    lock_folder(tmp_path)
    assert looks == []


def test_what_strangers_write_reaches_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_lock, "_PATIENCE_S", 0.0)
    (tmp_path / "run.lock").write_text("process 1 on \x1b]0;evil\x07, beat 000000001\n")
    lock_folder(tmp_path)
    unlock_folder(tmp_path)
    said = capsys.readouterr().err
    assert "\\x1b]0;evil" in said and said.replace("\n", "").isprintable()


def test_a_process_number_that_none_can_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: list[str]
) -> None:
    _without_locks(monkeypatch)
    (tmp_path / "run.lock").write_text(f"process {'9' * 99} on {HERE}, beat 000000001\n")
    lock_folder(tmp_path)
    unlock_folder(tmp_path)
    assert looks == []
