"""Which processes there are, asked by tests that start and end some."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

LIMIT_S = 60  # for what must happen: long, so that a slow machine fails no test


def is_gone(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status.rsplit(")", 1)[1].split()[0] == "Z"


def children_of(parent: int) -> list[int]:
    """All living processes below one."""
    found, parents = [], {parent}
    while parents:
        below = set()
        for folder in Path("/proc").iterdir():
            try:
                stat = (folder / "stat").read_text() if folder.name.isdigit() else ""
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
            if stat and int(stat.rsplit(")", 1)[1].split()[1]) in parents:
                below.add(int(folder.name))
        parents = {pid for pid in below if not is_gone(pid)}
        found += parents
    return found


def until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


# Several commands one after the other, as process RANK of some that know of each other.
_JOBS = """
import json, os, sys
BEFORE
from hpm_video.cli import main

codes = []
for port, arguments in json.loads(os.environ["JOBS"]):
    os.environ["MASTER_PORT"] = str(port)
    codes.append(main(arguments))
sys.exit(max(codes))
"""


def run_together(
    number: int, jobs: list[list[str]], *, before: str = "", timeout_s: float = 240
) -> list[subprocess.CompletedProcess[str]]:
    """The arguments of commands, run one after the other in so many processes; their results.

    ``before``: lines of Python that they execute first.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "JOBS": json.dumps(list(zip(_free_ports(len(jobs)), jobs, strict=True))),
    }
    command = [sys.executable, "-c", _JOBS.replace("BEFORE", before)]
    running = [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(number)
    ]
    results = []
    try:
        for process in running:
            said, complained = process.communicate(timeout=timeout_s)
            results.append(
                subprocess.CompletedProcess(command, process.returncode, said, complained)
            )
    finally:
        for process in running:
            process.kill()
    return results


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
