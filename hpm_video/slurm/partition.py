"""What the cluster's partitions have, asked before submission; where it cannot be asked, anything
may be asked for."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from hpm_video.slurm.times import duration, limit_of

_TIMEOUT_S = 30


@dataclass(frozen=True)
class Nodes:
    """So many machines with so many cores and GPUs each."""

    count: int
    cpus: int
    gpus: int


@dataclass(frozen=True)
class Partition:
    """max_minutes, max_nodes: limits of a job, None where there are none."""

    name: str
    is_default: bool
    max_minutes: int | None
    max_nodes: int | None
    nodes: tuple[Nodes, ...]


@dataclass(frozen=True)
class Request:
    """What a job needs; cpus: of a node, for all its tasks."""

    nodes: int
    gpus_per_node: int
    tasks_per_node: int
    cpus_per_task: int | None
    minutes: int


def read_partitions() -> list[Partition]:
    """All partitions; none where sinfo is missing or does not answer."""
    command = ["sinfo", "--noheader", "--all", "--exact", "--format", "%P|%l|%s|%D|%c|%G"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_partitions(answer.stdout)


def parse_partitions(text: str) -> list[Partition]:
    """Partitions out of sinfo's lines ``name|limit|job size|nodes|cpus|gres``."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        name, limit, size, count, cpus, gres = line.split("|", 5)
        max_nodes = size.rpartition("-")[2]
        before = found.get(name)
        found[name] = Partition(
            name.rstrip("*"),
            name.endswith("*"),
            limit_of(limit),
            int(max_nodes) if max_nodes.isdigit() else None,
            (*(before.nodes if before else ()), Nodes(int(count), int(cpus), _num_gpus(gres))),
        )
    return list(found.values())


def check_request(request: Request, partitions: Sequence[Partition], *, wanted: str | None) -> None:
    """Raise ValueError, one line, when none of the wanted partitions can ever run the job.

    wanted: names with commas between them, or None for the default one.
    """
    refusals = [_refusal(request, partition) for partition in _chosen(partitions, wanted)]
    if refusals and None not in refusals:
        raise ValueError(refusals[0])


def most_cpus_per_task(
    request: Request, partitions: Sequence[Partition], *, wanted: str | None
) -> int | None:
    """The cores that a process of the job can have at most; None where SLURM does not tell.

    wanted: as in `check_request`.
    """
    cores = [
        node.cpus // request.tasks_per_node
        for partition in _chosen(partitions, wanted)
        for node in partition.nodes
        if node.gpus >= request.gpus_per_node
    ]
    return max(1, *cores) if cores else None


def _chosen(partitions: Sequence[Partition], wanted: str | None) -> list[Partition]:
    """The partitions that a job may run in; ValueError where one does not exist."""
    if wanted is None or not partitions:
        return [partition for partition in partitions if partition.is_default]
    known = {partition.name: partition for partition in partitions}
    for name in wanted.split(","):
        if name not in known:
            raise ValueError(f"slurm.partition ({name}) must be one of {', '.join(sorted(known))}")
    return [known[name] for name in wanted.split(",")]


def _refusal(request: Request, partition: Partition) -> str | None:
    """Why a partition can never run a job, if it cannot."""
    where = f"partition {partition.name}"
    if partition.max_minutes is not None and request.minutes > partition.max_minutes:
        return (
            f"slurm.time ({duration(request.minutes * 60)}) must be at most "
            f"{duration(partition.max_minutes * 60)}, the limit of {where}"
        )
    most_gpus = max(node.gpus for node in partition.nodes)
    if request.gpus_per_node > most_gpus:
        return (
            f"slurm.gpus_per_node ({request.gpus_per_node}) must be at most {most_gpus}: so many "
            f"GPUs has a node of {where}"
        )
    with_gpus = [node for node in partition.nodes if node.gpus >= request.gpus_per_node]
    cpus = request.tasks_per_node * (request.cpus_per_task or 1)
    most_cpus = max(node.cpus for node in with_gpus)
    if cpus > most_cpus:
        return (
            f"slurm.cpus_per_task ({request.cpus_per_task or 1}) must be at most "
            f"{most_cpus // request.tasks_per_node}: {request.tasks_per_node} tasks share the "
            f"{most_cpus} cores of a node of {where}"
        )
    fitting = sum(node.count for node in with_gpus if node.cpus >= cpus)
    if request.nodes > fitting:
        return f"slurm.nodes ({request.nodes}) must be at most {fitting}: so many fit in {where}"
    if partition.max_nodes is not None and request.nodes > partition.max_nodes:
        return (
            f"slurm.nodes ({request.nodes}) must be at most {partition.max_nodes}, the limit of "
            f"{where}"
        )
    return None


def _num_gpus(gres: str) -> int:
    """GPUs out of a node's list of resources, as ``gpu:a100:4(S:0-1),shard:8``."""
    return sum(int(number) for number in re.findall(r"\bgpu(?::[^:,()]+)?:(\d+)", gres))
