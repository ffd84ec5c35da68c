"""Where this process stands among those of its job, and how they find each other: started by
`torchrun`, by `srun` (SLURM, also through submitit), by submitit on one machine, or alone."""

from __future__ import annotations

import os
import random
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed import DistNetworkError, Store, TCPStore  # type: ignore[attr-defined]

# Below those that systems hand out to outgoing connections, and where few services listen. The
# first free one of so many is taken.
_PORTS = range(20000, 32000)
_NUM_PORTS = 16
_KNOCK_S = 10.0


class CommunicationError(RuntimeError):
    """The processes of a run cannot reach each other, or one of them does not answer any more."""


@dataclass(frozen=True)
class Place:
    """A process among those of its job.

    Attributes:
        rank: of ``size`` processes.
        size: how many there are.
        local_rank: among the processes on this machine.
        host: where rank 0 is; None: the environment says all that PyTorch needs, or it is alone.
        name: of this start of the job, the same on all its processes and on no others.
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

    def number(name: str) -> int:
        return int(environment[name])

    if "TORCHELASTIC_RUN_ID" in environment:
        return Place(number("RANK"), number("WORLD_SIZE"), number("LOCAL_RANK"))
    # Of the job as a whole there is SLURM_NTASKS, which a batch script that is one process has too
    if "SLURM_PROCID" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        start = ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        return Place(
            number("SLURM_PROCID"),
            number("SLURM_STEP_NUM_TASKS"),
            number("SLURM_LOCALID"),
            first_host(environment["SLURM_STEP_NODELIST"]),
            " ".join(environment.get(name, "0") for name in start),
        )
    if environment.get("SUBMITIT_EXECUTOR") == "local":
        return Place(
            number("SUBMITIT_LOCAL_GLOBALID"),
            number("SUBMITIT_LOCAL_NTASKS"),
            number("SUBMITIT_LOCAL_LOCALID"),
            "localhost",
            f"local {environment['SUBMITIT_LOCAL_JOB_ID']}",
        )
    if "RANK" in environment and "WORLD_SIZE" in environment:
        local_rank = int(environment.get("LOCAL_RANK", "0"))
        return Place(number("RANK"), number("WORLD_SIZE"), local_rank)
    return Place()


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list such as ``gpu[007-009,12],login1``: ``gpu007``."""
    found = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert found
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", found[0])


def meet(place: Place, *, timeout_s: float) -> Store:
    """Return what the processes of a job exchange addresses through: served by rank 0, on a port
    that is free there.

    The others try the same ports, whose order follows the name of this start of the job: one that
    was requeued does not meet what is left of its former start. Raises CommunicationError.
    """
    assert place.host is not None
    ports = random.Random(place.name).sample(_PORTS, _NUM_PORTS)
    if place.rank == 0:
        for port in ports:
            try:
                store = TCPStore(
                    "localhost", port, is_master=True, wait_for_workers=False,
                    timeout=timedelta(seconds=timeout_s),
                )  # fmt: skip
            except DistNetworkError:
                continue  # it is taken
            store.set("name", place.name)
            return store
        raise CommunicationError(f"none of the ports {sorted(ports)} is free on {place.host}")
    give_up = time.monotonic() + timeout_s
    while time.monotonic() < give_up:
        for port in ports:
            found = _knock(place, port, timeout_s=timeout_s)
            if found is not None:
                return found
        time.sleep(0.2)
    raise CommunicationError(
        f"rank {place.rank} on {socket.gethostname()} did not reach rank 0 on {place.host} within "
        f"run.collective_timeout_s ({timeout_s:g}): see the log of rank 0"
    )


def _knock(place: Place, port: int, *, timeout_s: float) -> Store | None:
    """The store at a port of rank 0's host, if it is that of our own job."""
    assert place.host is not None
    try:
        socket.create_connection((place.host, port), timeout=_KNOCK_S).close()
        store = TCPStore(place.host, port, timeout=timedelta(seconds=_KNOCK_S))
        if store.get("name") != place.name.encode():
            return None
    except (OSError, RuntimeError):  # nobody there, no store, or one of others without a name
        return None
    store.set_timeout(timedelta(seconds=timeout_s))
    return store
