"""Memory that a process keeps is not cleared by the system again."""

import subprocess
import sys

import pytest

# Pages that are touched for the first time, per call: 64 MB are 16,384 pages of 4 KB.
_SCRIPT = """
import resource, sys
import torch
from hpm_video.runtime.host_memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(12):  # until what is kept has found its places
    torch.ones(16, 2**20)
before = faults()
for _ in range(10):
    torch.ones(16, 2**20)
print((faults() - before) / 10)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of the GNU C library")
@pytest.mark.parametrize(("how", "low", "high"), [("keep", 0, 20), ("give back", 1000, 1e6)])
def test_freed_memory(how: str, low: float, high: float) -> None:
    command = [sys.executable, "-c", _SCRIPT, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert low <= float(done.stdout) <= high
