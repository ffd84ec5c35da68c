"""Waiting for other processes without a collective: there is not even a process group here."""

import itertools
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import until
from torch.distributed import FileStore

from hpm_video import distributed
from hpm_video.distributed import World, others_wait

_OTHER = """
import sys
from pathlib import Path
import torch
from torch.distributed import FileStore
from hpm_video.distributed import World, others_wait

folder = Path(sys.argv[1])
world = World(1, 2, torch.device("cpu"), FileStore(str(folder / "store"), 2))
for turn in range(2):
    with others_wait(world):
        (folder / f"inside{turn}").touch()
    (folder / f"after{turn}").touch()
"""


def test_others_wait_for_the_main_process_and_its_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "_turns", itertools.count())
    other = subprocess.Popen([sys.executable, "-c", _OTHER, str(tmp_path)])
    try:
        world = World(0, 2, torch.device("cpu"), FileStore(str(tmp_path / "store"), 2))
        with others_wait(world):
            assert until((tmp_path / "inside0").exists)
            time.sleep(2 * distributed._LOOKS_S)  # it looks whether we are done meanwhile
            assert not (tmp_path / "after0").exists()
        assert until((tmp_path / "after0").exists)
        with pytest.raises(KeyError), others_wait(world):
            assert until((tmp_path / "inside1").exists)
            assert not (tmp_path / "after1").exists()
            raise KeyError
        assert until((tmp_path / "after1").exists)
    finally:
        other.kill()
        other.wait()
