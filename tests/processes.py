"""Which processes there are, asked by tests that start and end some."""

import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
import warnings
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


# Processes begin as copies of one that has imported what takes seconds.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["torch._dynamo", "hpm_video.train.pretrain", "hpm_video.train.finetune"]
)


def run_together(
    number: int, jobs: list[list[str]], *, before: str = "", timeout_s: float = 240
) -> list[subprocess.CompletedProcess[str]]:
    """The arguments of commands, run one after the other in so many processes that know of each
    other, without a launcher; their results.

    ``before``: lines of Python that they execute first.
    """
    ports = _free_ports(len(jobs))
    with tempfile.TemporaryDirectory() as folder:
        files = [(f"{folder}/{rank}.out", f"{folder}/{rank}.err") for rank in range(number)]
        running = []
        end = time.monotonic() + timeout_s
        try:
            for rank in range(number):
                arguments = (rank, number, ports, jobs, before, files[rank])
                process = _FORKS.Process(target=_be_one_of, args=arguments)
                process.start()
                running.append(process)
            for process in running:
                process.join(max(0, end - time.monotonic()))
        finally:
            for process in running:
                process.kill()
                process.join()
        said = [[Path(file).read_text() for file in pair] for pair in files]
    assert time.monotonic() < end, f"not within {timeout_s} s: {said}"
    return [
        subprocess.CompletedProcess(jobs[-1], code, out, error)
        for code, (out, error) in zip([p.exitcode or 0 for p in running], said, strict=True)
    ]


def _be_one_of(
    rank: int,
    number: int,
    ports: list[int],
    jobs: list[list[str]],
    before: str,
    files: tuple[str, str],
) -> None:
    """What a process of `run_together` does."""
    import torch  # which others who ask for processes do without

    for descriptor, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND), descriptor)
    os.environ |= {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    exec(before, {})
    from hpm_video.cli.main import main

    codes = []
    for port, arguments in zip(ports, jobs, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        codes.append(main(arguments))
    sys.exit(max(codes))


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
