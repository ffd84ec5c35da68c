"""Copies to a GPU beside its work, with streams that only write down what they are asked for."""

import gc
import mmap
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import until
from test_batches import Videos, _keys

from hpm_video.data.loading import batches
from hpm_video.data.loading.batches import read_batches
from hpm_video.data.loading.device_copy import Copied, Copier, copier_to, on_device, page_lock
from hpm_video.data.loading.loader import ClipBatch, ViewBatch, to_clips

pytestmark = pytest.mark.usefixtures("readers_may_write")
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


class Event:
    def __init__(self, diary: list[str], name: str) -> None:
        self.diary, self.name, self.is_over = diary, name, False

    def query(self) -> bool:
        return self.is_over


class Stream:
    def __init__(self, diary: list[str], name: str) -> None:
        self.diary, self.name, self.events = diary, name, [Event(diary, "")][:0]

    def record_event(self) -> Event:
        self.events.append(Event(self.diary, f"copy {len(self.events)}"))
        self.diary.append(f"{self.name}: {self.events[-1].name} ends")
        return self.events[-1]

    def wait_event(self, event: Event) -> None:
        self.diary.append(f"{self.name}: waits for {event.name}")


@pytest.fixture
def diary(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the two streams of a GPU that is not there are asked for."""
    lines: list[str] = []
    compute, side = Stream(lines, "compute"), Stream(lines, "side")
    current = [compute]

    @contextmanager
    def using(stream: Stream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    def to(tensor: torch.Tensor, device: Any, non_blocking: bool = False) -> torch.Tensor:
        lines.append(f"{current[-1].name}: copies{' beside' if non_blocking else ''}")
        return tensor.clone()

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "stream", using)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current[-1])
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(
        torch.Tensor,
        "record_stream",
        lambda tensor, stream: lines.append(f"kept for {stream.name}"),
    )
    return lines


def test_a_copy_is_made_beside_and_waited_for_by_what_needs_it(diary: list[str]) -> None:
    rows = torch.arange(6).view(2, 3)
    copied = Copier(CUDA).start(rows)
    assert diary == ["side: copies beside", "side: copy 0 ends"]
    assert copied.ready().equal(rows)
    assert diary[2:] == ["compute: waits for copy 0", "kept for compute"]


def test_the_host_keeps_what_is_being_copied(diary: list[str]) -> None:
    copier, rows = Copier(CUDA), torch.zeros(3)
    alive = weakref.ref(rows)
    copied = copier.start(rows)
    del rows
    copier.start(torch.zeros(3))
    gc.collect()
    assert alive() is not None
    copied.done.is_over = True
    copier.start(torch.zeros(3))
    gc.collect()
    assert alive() is None


def test_only_gpus_have_one() -> None:
    assert copier_to(None) is None and copier_to(CPU) is None
    rows = torch.arange(4)
    assert on_device(rows, None, "cpu") is rows
    elsewhere = Copied(torch.zeros(4, device="meta"), None)
    assert on_device(rows, elsewhere, "cpu") is rows  # somebody wants it on the host all the same


def test_batches_take_the_copy_that_is_there() -> None:
    class Ready(Copied):
        def ready(self) -> torch.Tensor:
            return self.tensor

    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 256, (2, 3, 2, 4, 4, 3), dtype=torch.uint8, generator=generator)
    other = 255 - rows
    nothing = torch.zeros(6, dtype=torch.int64)
    clips = ClipBatch(rows.flatten(0, 1), nothing, nothing, [], [], None, Ready(other, None))
    assert clips.on("cpu").equal(to_clips(other.flatten(0, 1), "cpu"))
    views = ViewBatch(rows, nothing[:2], nothing[:2], [None] * 2, Ready(other, None))
    assert views.on("cpu").equal(clips.on("cpu"))
    filled = views.on("cpu", num_videos=3)
    assert filled[:6].equal(views.on("cpu")) and len(filled) == 9 and not filled[6:].any()


class FakeCopier:
    """Notes which batches it was given, by their first number."""

    def __init__(self) -> None:
        self.started: list[int] = []

    def start(self, rows: torch.Tensor) -> Copied:
        self.started.append(int(rows[0, 0, 0]))
        return Copied(rows.clone(), None)


@pytest.fixture
def copier(monkeypatch: pytest.MonkeyPatch) -> FakeCopier:
    fake = FakeCopier()
    monkeypatch.setattr(batches, "copier_to", lambda device: fake)
    monkeypatch.setattr(batches, "page_lock", lambda memory: True)
    for name in ("current_device", "set_device"):
        monkeypatch.setattr(torch.cuda, name, lambda *device: 0)
    return fake


def test_one_batch_is_copied_ahead_and_none_out_of_turn(tmp_path: Path, copier: FakeCopier) -> None:
    videos = Videos(tmp_path / "diary", [f"good {k}" for k in range(40)])
    found, diary = [], tmp_path / "diary"
    loader = read_batches(videos, _keys(40), num_workers=2, timeout_s=None, device=CUDA)
    for number, (rows, readings, copied) in enumerate(loader):
        assert copied is not None and copied.tensor.equal(rows)
        assert copier.started[: number + 1] == [4 * k for k in range(number + 1)]
        assert len(copier.started) <= number + 2
        found += [reading.index for reading in readings]
        if number == 0:  # what comes next is read while this one is worked on
            assert until(lambda: diary.read_text().count("\n") >= 12)
    assert found == list(range(40))
    assert len(copier.started) == 10


def test_a_mistake_comes_in_its_turn(tmp_path: Path, copier: FakeCopier) -> None:
    paths = [f"{'bug' if k == 9 else 'good'} {k}" for k in range(12)]
    videos = Videos(tmp_path / "diary", paths)
    loader = read_batches(videos, _keys(12), num_workers=1, timeout_s=None, device=CUDA)
    assert [r.index for r in next(loader).readings] == [0, 1, 2, 3]
    assert until(lambda: "bug" in (tmp_path / "diary").read_text())
    assert [r.index for r in next(loader).readings] == [4, 5, 6, 7]
    readings = next(loader).readings
    assert [r.index for r in readings] == [8, 10, 10, 11]
    assert [r.bad for r in readings if r.bad] == [((9, "KeyError: 'by intention'"),)]


def test_what_is_not_taken_ends_with_the_loop(tmp_path: Path, copier: FakeCopier) -> None:
    videos = Videos(tmp_path / "diary", [f"good {k}" for k in range(80)])
    loader = read_batches(videos, _keys(80), num_workers=2, timeout_s=None, device=CUDA)
    next(loader)
    loader.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("agrees", [True, False])
def test_memory_is_locked_for_as_long_as_it_is_used(
    monkeypatch: pytest.MonkeyPatch, agrees: bool
) -> None:
    calls: list[tuple[str, int]] = []

    class Cudart:
        class cudaError:  # noqa: N801 - CUDA's
            success, refused = 0, 1

        def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
            calls.append(("lock", address))
            assert (size, flags) == (100, 0)
            return 0 if agrees else 1

        def cudaHostUnregister(self, address: int) -> None:
            calls.append(("unlock", address))

    monkeypatch.setattr(torch.cuda, "cudart", Cudart)
    memory = np.frombuffer(mmap.mmap(-1, 100), dtype=np.uint8)
    address = memory.ctypes.data
    assert page_lock(memory) == agrees
    assert calls == [("lock", address)]
    part = torch.from_numpy(memory.reshape(10, 10)[1:3])[1:]
    del memory
    assert len(calls) == 1  # a part of it is still there
    del part
    gc.collect()
    assert calls == [("lock", address), *([("unlock", address)] if agrees else [])]


def test_batches_are_handed_over_without_a_copy(tmp_path: Path) -> None:
    """And their memory is read into again once nobody has it."""
    videos = Videos(tmp_path / "diary", [f"good {k}" for k in range(200)])
    places, kept = set(), []
    for number, (rows, *_) in enumerate(
        read_batches(videos, _keys(200), num_workers=2, timeout_s=None)
    ):
        places.add(rows.data_ptr())
        if number == 3:
            kept.append(rows[1:].flatten(1))  # a part keeps the whole
        assert not kept or (kept[0][0] == 13).all()
        assert rows[:, 0, 0].tolist() == list(range(4 * number, 4 * number + 4))
    assert len(places) < 20 < number
