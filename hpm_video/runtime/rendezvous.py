"""Where this process stands among those of its job, and how they find each other: started by
`torchrun`, by `srun` (SLURM, also through submitit), by submitit on one machine, or alone."""

import contextlib
import os
import random
import re
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

# Below those that systems hand out to outgoing connections, and where few services listen. The
# first free one of so many is taken.
_PORTS = range(20000, 32000)
_NUM_PORTS = 16
_ASKING_S = 5.0


class CommunicationError(RuntimeError):
    """The processes of a run cannot reach each other, or one of them does not answer any more."""


@dataclass(frozen=True)
class Place:
    """A process among the ``size`` of its job.

    local_rank: among the processes on this machine. host: of rank 0; None: the environment says all
    that PyTorch needs, or there is one process. name: identifies this start of the job.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    host: str | None = None
    name: str = ""


def find_place(environment: Mapping[str, str] = os.environ) -> Place:
    """Read this process's place from its environment.

    What was started last counts: `torchrun` may run inside of `srun`, and sbatch hands everything
    down that was set where it was called.
    """

    def numbers(rank: str, size: str, local_rank: str) -> tuple[int, int, int]:
        return int(environment[rank]), int(environment[size]), int(environment[local_rank])

    if "TORCHELASTIC_RUN_ID" in environment:
        return Place(*numbers("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    # Of the job as a whole there is SLURM_NTASKS, which a batch script that is one process has too
    if "SLURM_PROCID" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        start = ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        return Place(
            *numbers("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
            first_host(environment["SLURM_STEP_NODELIST"]),
            " ".join(environment.get(name, "0") for name in start),
        )
    if environment.get("SUBMITIT_EXECUTOR") == "local":
        names = (f"SUBMITIT_LOCAL_{name}" for name in ("GLOBALID", "NTASKS", "LOCALID"))
        name = f"local {environment['SUBMITIT_LOCAL_JOB_ID']}"
        return Place(*numbers(*names), "localhost", name)
    if "RANK" in environment and "WORLD_SIZE" in environment:
        environment = {"LOCAL_RANK": "0", **environment}
        return Place(*numbers("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Place()


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list such as ``gpu[007-009,12],login1``: ``gpu007``."""
    found = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert found
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", found[0])


def meet(place: Place, *, timeout_s: float, limit: str) -> Store:
    """The store through which the processes of a job exchange addresses; rank 0 serves it on a
    free port.

    The other ranks ask for that port at ports that follow from the name of this start of the job:
    neither another job nor the remains of an earlier start have the same name. ``limit``: what the
    user calls ``timeout_s``. Raises CommunicationError.
    """
    assert place.host is not None
    ports = random.Random(place.name).sample(_PORTS, _NUM_PORTS)
    timeout = timedelta(seconds=timeout_s)
    if place.rank == 0:
        store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timeout)
        for port in ports:
            try:
                listener = socket.create_server(("", port), backlog=place.size)
            except OSError:
                continue  # it is taken
            answer = f"{_greeting(place)}{store.port}\n".encode()
            threading.Thread(target=_answer, args=(listener, answer), daemon=True).start()
            return store
        raise CommunicationError(f"none of the ports {sorted(ports)} is free on {place.host}")
    give_up = time.monotonic() + timeout_s
    while time.monotonic() < give_up:
        for port in ports:
            if (found := _ask(place, port)) is not None:
                return TCPStore(place.host, found, timeout=timeout)
        time.sleep(0.2)
    raise CommunicationError(
        f"rank {place.rank} on {socket.gethostname()} did not reach rank 0 on {place.host} within "
        f"{limit}: see the log of rank 0"
    )


def _greeting(place: Place) -> str:
    return f"hpm-video {place.name}: "


def _answer(listener: socket.socket, answer: bytes) -> None:
    """Tell everybody the same, as long as this process lives."""
    while True:
        guest, _ = listener.accept()
        with guest, contextlib.suppress(OSError):
            guest.sendall(answer)


def _ask(place: Place, port: int) -> int | None:
    """The port of the store of this place's job, if that is what answers at another port."""
    assert place.host is not None
    try:
        with (
            socket.create_connection((place.host, port), timeout=_ASKING_S) as connection,
            connection.makefile("rb") as file,
        ):
            answer = file.readline(1000).decode(errors="replace")
    except OSError:  # nobody there, or somebody who waits for us to speak
        return None
    greeting = _greeting(place)
    return int(answer[len(greeting) :]) if answer.startswith(greeting) else None
