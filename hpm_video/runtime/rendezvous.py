"""The rank of this process in its job, started by `torchrun`, `srun` (SLURM, also through
submitit), submitit on one machine, or alone."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"  # not "localhost", which may also be ::1, where another program listens


class CommunicationError(RuntimeError):
    """The ranks of a run cannot reach each other, or one of them no longer answers."""


@dataclass(frozen=True)
class Place:
    """A process among the ``size`` ranks of its job.

    local_rank: rank among the processes on this machine. host: host of rank 0, LOOPBACK if all
    ranks are on one machine; None if the environment has all that PyTorch needs, or if there is one
    rank. name: identifies this start of the job.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    host: str | None = None
    name: str = ""


def find_place(environment: Mapping[str, str] = os.environ) -> Place:
    """Read this process's place from its environment.

    The innermost launcher counts: `torchrun` may run inside `srun`, and sbatch passes on the
    variables of its caller.
    """

    def numbers(rank: str, size: str, local_rank: str) -> tuple[int, int, int]:
        return int(environment[rank]), int(environment[size]), int(environment[local_rank])

    if "TORCHELASTIC_RUN_ID" in environment:
        return Place(*numbers("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    # Not SLURM_NTASKS: a batch script, which is one process, has it too
    if "SLURM_PROCID" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        start = ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        nodes = environment["SLURM_STEP_NODELIST"]
        host = first_host(nodes)
        return Place(
            *numbers("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
            LOOPBACK if host == nodes else host,
            " ".join(environment.get(name, "0") for name in start),
        )
    if environment.get("SUBMITIT_EXECUTOR") == "local":
        names = (f"SUBMITIT_LOCAL_{name}" for name in ("GLOBALID", "NTASKS", "LOCALID"))
        name = f"local {environment['SUBMITIT_LOCAL_JOB_ID']}"
        return Place(*numbers(*names), LOOPBACK, name)
    if "RANK" in environment and "WORLD_SIZE" in environment:
        environment = {"LOCAL_RANK": "0", **environment}
        return Place(*numbers("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Place()


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list such as ``gpu[007-009,12],login1``: ``gpu007``."""
    found = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert found
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", found[0])
