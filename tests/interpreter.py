"""Runs tests of Triton kernels on a CPU: under Triton's interpreter, in a process of their own.

The interpreter is chosen when Triton is imported, which other tests of the same process may have
done already.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


def run_interpreted(file: Path) -> None:
    """Run a file of tests with ``TRITON_INTERPRET=1``; fails with their output."""
    if not find_spec("triton"):
        pytest.skip("Triton is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
