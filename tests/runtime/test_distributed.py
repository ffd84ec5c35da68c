"""Waiting for another process, be it for hours."""

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import LIMIT_S, until
from torch.distributed import FileStore

from hpm_video.runtime import distributed
from hpm_video.runtime.distributed import World, gather_objects, others_wait, pick_device
from hpm_video.runtime.rendezvous import CommunicationError

_OTHER = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch.distributed import FileStore
from hpm_video.runtime.distributed import World, others_wait

folder = Path(sys.argv[1])
store = FileStore(str(folder / "store"), 2)
dist.init_process_group("gloo", store=store, rank=1, world_size=2)
world = World(1, 2, torch.device("cpu"), store)
for turn in range(2):
    with others_wait(world):
        (folder / f"inside{turn}").touch()
    (folder / f"after{turn}").touch()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", _OTHER, str(tmp_path)])
    yield process
    process.kill()
    process.wait()


def test_others_wait_for_the_main_process_and_its_errors(
    other: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "_turns", itertools.count())
    store = FileStore(str(tmp_path / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=0, world_size=2)
    try:
        world = World(0, 2, torch.device("cpu"), store)
        with others_wait(world):
            assert until((tmp_path / "inside0").exists)
            time.sleep(2 * distributed._LOOKS_S)  # it looks whether we are done meanwhile
            assert not (tmp_path / "after0").exists()
        assert until((tmp_path / "after0").exists)
        with pytest.raises(KeyError), others_wait(world):
            assert until((tmp_path / "inside1").exists)
            raise KeyError
    finally:
        dist.destroy_process_group()  # as a process that fails does
    assert other.wait(LIMIT_S) != 0
    assert not (tmp_path / "after1").exists()


_LIAR = """
import sys
import torch.distributed as dist
from torch.distributed import FileStore

class Code:
    def __reduce__(self):
        return open, (sys.argv[1] + "/code has run", "w")

store = FileStore(sys.argv[1] + "/store", 2)
dist.init_process_group("gloo", store=store, rank=1, world_size=2)
dist.all_gather_object([None, None], Code())
"""


def test_what_a_peer_sends_runs_no_code(tmp_path: Path) -> None:
    liar = subprocess.Popen([sys.executable, "-c", _LIAR, str(tmp_path)], stderr=subprocess.DEVNULL)
    store = FileStore(str(tmp_path / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=0, world_size=2)
    try:
        world = World(0, 2, torch.device("cpu"), store)
        with pytest.raises(CommunicationError, match="rank 1 sent unexpected data"):
            gather_objects("some words", world)
    finally:
        dist.destroy_process_group()
        liar.wait(LIMIT_S)
    assert not (tmp_path / "code has run").exists()


def test_float32_on_cuda_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither products nor convolutions are left to TF32; a CPU is not concerned."""

    def settings() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = settings()
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        assert pick_device("cpu", setting="device").type == "cpu"
        assert settings() == ("high", True)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert pick_device("auto", setting="device").type == "cuda"
        assert settings() == ("highest", False)
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
