"""Readers that hang, crash or fail, on purpose: what the batches are then, and what remains."""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from processes import LIMIT_S, children_of, is_gone, until

from hpm_video.data.loading.batches import GIVEN_UP, ReadBatch, read_batches
from hpm_video.data.samples.clips import Reading, Request
from hpm_video.data.video.frames import VideoReadError

SHAPE = (2, 3)
pytestmark = pytest.mark.usefixtures("readers_may_write")


@dataclass(frozen=True)
class DoubleReader:
    """Reads its index from a "path", which may say what happens meanwhile: `hang 3`.

    Of what happened it leaves a line in `diary`.
    """

    diary: str
    shape: tuple[int, ...] = SHAPE

    def read(self, request: Request, out: torch.Tensor) -> None:
        with open(self.diary, "a", encoding="utf-8") as file:
            file.write(f"{request.path}\n")
        kind = request.path.split()[0]
        if kind == "hang":
            ctypes.PyDLL(None).sleep(1000)  # which, unlike CDLL, keeps the interpreter's lock
        elif kind == "segfault":
            ctypes.string_at(0)
        elif kind == "unreadable":
            out.fill_(77)  # half of it
            raise VideoReadError(request.path, "is broken")
        elif kind == "slow":
            time.sleep(0.3)
        elif kind == "bug":
            raise KeyError("by intention")
        elif kind == "memory":
            raise MemoryError
        elif kind == "deep":
            self.read(request, out)
        elif kind == "error":
            torch.ones(2) @ torch.ones(3)
        elif kind == "flaky" and _is_first(Path(f"{self.diary} {request.path}")):
            os.kill(os.getpid(), signal.SIGKILL)
        out.fill_((request.seed[0] * 100 + request.index) % 256)


def _is_first(mark: Path) -> bool:
    if mark.exists():
        return False
    mark.touch()
    return True


class Videos:
    """Keys are (epoch, index); what is unreadable is replaced by the next video, once."""

    def __init__(self, diary: Path, paths: Sequence[str]) -> None:
        self.paths = paths
        self.reader = DoubleReader(str(diary))

    def requests(self, key: tuple[int, int]) -> Iterator[Request]:
        epoch, index = key
        for other in (index, (index + 1) % len(self.paths)):
            yield Request(other, self.paths[other], 0, (epoch,))


def _keys(num_videos: int, num_epochs: int = 1, size: int = 4) -> list[list[tuple[int, int]]]:
    order = [(epoch, index) for epoch in range(num_epochs) for index in range(num_videos)]
    return [order[start : start + size] for start in range(0, len(order), size)]


Batches = list[ReadBatch]


def _read(videos: Videos, num_workers: int, num_epochs: int = 1, **settings: object) -> Batches:
    keys = _keys(len(videos.paths), num_epochs)
    settings = {"timeout_s": 1.0, **settings}
    return list(read_batches(videos, keys, num_workers=num_workers, **settings))  # type: ignore[arg-type]


def _readings(batches: Batches) -> list[Reading]:
    return [reading for _, readings, _ in batches for reading in readings]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_batches_are_exactly_those_asked_for(tmp_path: Path, num_workers: int) -> None:
    kinds = {0: "slow", 5: "unreadable", 9: "slow"}
    paths = [f"{kinds.get(k, 'good')} {k}" for k in range(50)]
    batches = _read(Videos(tmp_path / "diary", paths), num_workers, num_epochs=2, timeout_s=None)
    assert [len(out) for out, *_ in batches] == [4] * 25
    rows = torch.cat([out for out, *_ in batches])
    expected = [k if k != 5 else 6 for k in range(50)]
    assert rows.flatten(1).unique(dim=1).flatten().tolist() == [
        (100 * epoch + k) % 256 for epoch in range(2) for k in expected
    ]
    bad = {k: reading.bad for k, reading in enumerate(_readings(batches)) if reading.bad}
    assert bad == dict.fromkeys((5, 55), ((5, "is broken"),))
    assert [reading.index for reading in _readings(batches)] == expected * 2


def test_what_cannot_be_replaced_is_zeros(tmp_path: Path) -> None:
    paths = ["good 0", "unreadable 1", "unreadable 2", "good 3"]
    for num_workers in (0, 2):
        ((out, readings, _),) = _read(Videos(tmp_path / "diary", paths), num_workers)
        assert readings[1] == Reading(None, ((1, "is broken"), (2, "is broken")))
        assert not out[1].any() and (out[2] == 3).all()


@pytest.mark.parametrize(
    ("kind", "reason", "num_tries"),
    [
        ("hang", "reading took longer than data.decode_timeout_s (1)", 1),
        ("segfault", "its reader crashed (SIGSEGV)", 2),
    ],
)
def test_a_reader_that_hangs_or_crashes_costs_its_video_only(
    tmp_path: Path, kind: str, reason: str, num_tries: int
) -> None:
    paths = [f"{kind if k == 6 else 'good'} {k}" for k in range(80)]
    batches = _read(Videos(tmp_path / "diary", paths), 2, num_epochs=2)
    assert [r.index for r in _readings(batches)] == [*range(6), 7, *range(7, 80)] * 2
    bad = [entry for reading in _readings(batches) for entry in reading.bad]
    assert bad == [(6, GIVEN_UP + reason)] * 2
    # not tried again in the second epoch: each time would take the whole limit
    assert (tmp_path / "diary").read_text().count(kind) == num_tries


def test_a_reader_killed_by_something_else_costs_nothing(tmp_path: Path) -> None:
    paths = [f"{'flaky' if k == 2 else 'good'} {k}" for k in range(8)]
    batches = _read(Videos(tmp_path / "diary", paths), 2)
    assert _readings(batches) == [Reading(k, ()) for k in range(8)]


def test_what_an_earlier_start_gave_up_is_not_tried(tmp_path: Path) -> None:
    paths = [f"{'hang' if k == 2 else 'good'} {k}" for k in range(8)]
    given_up = {"hang 2": "given up: known"}
    batches = _read(Videos(tmp_path / "diary", paths), 2, timeout_s=None, given_up=given_up)
    assert _readings(batches)[2] == Reading(3, ((2, "given up: known"),))
    assert "hang" not in (tmp_path / "diary").read_text()
    assert given_up == {"hang 2": "given up: known"}


def test_many_hanging_readers(tmp_path: Path) -> None:
    """A fifth of all: every other video still comes, in its place."""
    paths = [f"{'hang' if k % 5 == 1 else 'good'} {k}" for k in range(30)]
    batches = _read(Videos(tmp_path / "diary", paths), 4, timeout_s=0.5)
    assert [r.index for r in _readings(batches)] == [k + (k % 5 == 1) for k in range(30)]
    assert [len(r.bad) for r in _readings(batches)] == [int(k % 5 == 1) for k in range(30)]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("bug", "KeyError: 'by intention'"),
        ("memory", "MemoryError: reading it takes more memory than a reader may use"),
        ("deep", "RecursionError: maximum recursion depth exceeded"),
        ("error of torch", "RuntimeError: "),
    ],
)
def test_any_error_is_that_of_its_video(
    tmp_path: Path, kind: str, reason: str, num_workers: int
) -> None:
    """With its type and text: it might be a mistake of ours."""
    (batch,) = _read(Videos(tmp_path / "diary", ["good 0", f"{kind} 1"]), num_workers)
    assert [reading.index for reading in batch.readings] == [0, 0]
    ((index, said),) = batch.readings[1].bad
    assert index == 1 and said.startswith(reason) and "\n" not in said


def test_batches_are_read_ahead_but_not_without_end(tmp_path: Path) -> None:
    paths = [f"good {k}" for k in range(400)]
    diary = tmp_path / "diary"
    batches = read_batches(Videos(diary, paths), _keys(400), num_workers=2, timeout_s=None)
    next(batches)
    ahead = 0
    while (count := diary.read_text().count("\n")) > ahead:
        ahead = count
        time.sleep(0.5)
    assert 12 <= ahead <= 4 + 8 + 4 + 16 + 4
    rest = list(batches)  # and a late consumer loses nothing
    assert [reading.index for reading in _readings(rest)] == list(range(4, 400))


def test_batches_are_the_callers_own(tmp_path: Path) -> None:
    batches = _read(Videos(tmp_path / "diary", [f"good {k}" for k in range(100)]), 2)
    assert [int(out[0, 0, 0]) for out, *_ in batches] == list(range(0, 100, 4))


def test_nothing_to_read(tmp_path: Path) -> None:
    for num_workers in (0, 2):
        assert not list(
            read_batches(
                Videos(tmp_path / "diary", []), [], num_workers=num_workers, timeout_s=None
            )
        )


def test_leaving_the_loop_ends_the_readers(tmp_path: Path) -> None:
    paths = [f"{'hang' if k > 3 else 'good'} {k}" for k in range(40)]
    files = set(os.listdir("/proc/self/fd"))
    before = set(children_of(os.getpid()))
    batches = read_batches(
        Videos(tmp_path / "diary", paths), _keys(40), num_workers=3, timeout_s=None
    )
    next(batches)
    assert len(set(children_of(os.getpid())) - before) >= 3
    batches.close()  # type: ignore[attr-defined]
    after = children_of(os.getpid())
    assert len(set(after) - before) <= 1  # the fork server, which may have been there before
    assert len(set(os.listdir("/proc/self/fd")) - files) <= 2  # its connection


SCRIPT = """
import os, sys
from pathlib import Path
from hpm_video.data.loading.batches import read_batches
from test_batches import Videos, _keys
from processes import children_of
paths = [f"{'hang' if k > 3 else 'good'} {k}" for k in range(40)]
videos = Videos(Path(sys.argv[1]), paths)
def main():
    batches = read_batches(videos, _keys(40), num_workers=3, timeout_s=None)
    next(batches)
    print(*children_of(os.getpid()), flush=True)
    if sys.argv[2] == "raise":
        raise RuntimeError("by intention")
    if sys.argv[2] == "wait":
        next(batches)
    sys.modules["__main__"].kept = batches  # as an error's traceback keeps it
main()
"""


@pytest.mark.parametrize(
    ("way", "number"),
    [
        ("raise", None),
        ("wait", signal.SIGINT),
        ("wait", signal.SIGKILL),
    ],
)
def test_nothing_is_left_behind(tmp_path: Path, way: str, number: signal.Signals | None) -> None:
    """Readers that hang, however their parent ends."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "diary"), way],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
    )
    try:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 4
        if number is not None:
            # What is shared has no name that could outlive the processes, or fill up /dev/shm
            maps = Path(f"/proc/{process.pid}/maps").read_text()
            assert "/memfd:hpm-video" in maps and "/dev/shm" not in maps
            os.kill(process.pid, number)
        process.wait(timeout=LIMIT_S)
        assert until(lambda: all(is_gone(pid) for pid in pids))
    finally:
        process.kill()
        process.communicate()


def test_memory_stays_where_it_is(tmp_path: Path) -> None:
    """Of this process: a batch that is not freed would be 20 x 24 MB."""
    videos = Videos(tmp_path / "diary", [f"good {k}" for k in range(200)])
    videos.reader = DoubleReader(str(tmp_path / "diary"), shape=(1000, 6000))
    peaks = []
    for _ in read_batches(videos, _keys(200, size=4), num_workers=2, timeout_s=None):
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert len(peaks) == 50 and peaks[-1] - peaks[9] < 50_000  # KiB
