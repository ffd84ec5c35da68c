"""Which processes there are, asked by tests that start and end some."""

import time
from collections.abc import Callable
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
