"""A process of somebody else, who wants to run code in a job of ours, or to end it.

It gets what everybody on the machine can know: the job's name and its processes' ids, from which
follows where they listen. Its steps and theirs follow each other by files in a folder.
"""

import contextlib
import random
import socket
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from processes import until
from torch.distributed import TCPStore

_PATIENT = timedelta(seconds=1000)


class Code:
    """What runs where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.file, "w")


def be_rank_0(name: str, folder: Path) -> None:
    """Answer first, as rank 0 once did, and send the others code."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=_PATIENT)

    def answer(listener: socket.socket) -> None:
        while True:
            guest, _ = listener.accept()
            with guest, contextlib.suppress(OSError):
                guest.sendall(f"hpm-video {name}: {store.port}\n".encode())

    for port in random.Random(name).sample(range(20000, 32000), 16)[:8]:
        with contextlib.suppress(OSError):
            listener = socket.create_server(("", port))
            threading.Thread(target=answer, args=(listener,), daemon=True).start()

    def send_code() -> None:
        dist.init_process_group("gloo", store=store, rank=0, world_size=2, timeout=_PATIENT)
        dist.all_gather_object([None, None], Code(folder / "code has run"))

    threading.Thread(target=send_code, daemon=True).start()


def ports_of(process: int) -> list[int]:
    """Where a process listens."""
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_, inode = line.split()[:10]
        if state == "0A":
            found.append((int(local.rpartition(":")[2], 16), f"socket:[{inode}]"))
    own = set()
    for link in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            own.add(str(link.readlink()))
    return [port for port, name in found if name in own]


def crowd_around(port: int) -> list[socket.socket]:
    """Connections that stay: silent ones, one that talks rubbish and one that lies."""
    crowd = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(400)]
    for connection, words in [(crowd[-1], b"\0" * 5000), (crowd[-2], f"1 {'0' * 64} {'0' * 64}\n")]:
        connection.recv(1000)
        with contextlib.suppress(ConnectionError):
            connection.sendall(words if isinstance(words, bytes) else words.encode())
    return crowd


def spoil_store(port: int) -> None:
    store = TCPStore("127.0.0.1", port, timeout=_PATIENT)
    for key in ("0", "1", "default_pg/0//0", "hpm-video: the main process is done 0"):
        store.set(key, "lie")
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"\xff" * 5000)


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    be_rank_0(name, folder)
    (folder / "stranger listens").touch()
    assert until((folder / "rank 0").exists)
    leader = int((folder / "rank 0").read_text())
    assert until(lambda: bool(ports_of(leader)))
    crowd = [connection for port in ports_of(leader) for connection in crowd_around(port)]
    (folder / "stranger talks").touch()
    assert until((folder / "store").exists)
    spoil_store(int((folder / "store").read_text()))
    (folder / "store is spoilt").touch()
    sys.stdin.read()
    del crowd


if __name__ == "__main__":
    main()
