"""Checks a request against the limits of the cluster's partitions and job arrays before submission.
If SLURM does not answer, nothing is refused."""

import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from hpm_video.slurm.times import UNLIMITED, duration, minutes_of

# GPUs in a node's list of resources, for example gpu:a100:4(S:0-1),shard:8
_GPUS = re.compile(r"\bgpu(?::[^:,()]+)?:(\d+)")


@dataclass(frozen=True)
class Nodes:
    """``count`` identical nodes, with cores and GPUs per node."""

    count: int
    cpus: int
    gpus: int


@dataclass(frozen=True)
class Partition:
    """A partition of the cluster. max_minutes, max_nodes: limits per job; None if unlimited."""

    name: str
    is_default: bool
    max_minutes: int | None
    max_nodes: int | None
    nodes: tuple[Nodes, ...]


@dataclass(frozen=True)
class Request:
    """The resources that a job requests."""

    nodes: int
    gpus_per_node: int
    tasks_per_node: int
    cpus_per_task: int | None
    minutes: int


def read_partitions(wanted: str | None) -> list[Partition]:
    """The partitions in which a job may run; empty if sinfo is missing or does not answer.

    wanted: names separated by commas, or None for the default partition. Raises ValueError if one
    does not exist.
    """
    command = ["sinfo", "--noheader", "--all", "--exact", "--format", "%P|%l|%s|%D|%c|%G"]
    try:
        answer = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    found: dict[str, Partition] = {}
    for line in answer.splitlines():
        if "|" not in line:  # "CLUSTER: name", printed if SLURM_CLUSTERS is set
            continue
        name, limit, size, count, cpus, gres = line.split("|", 5)
        minutes = None
        with suppress(ValueError):  # infinite, n/a
            minutes = minutes_of(limit)
        max_nodes = size.rpartition("-")[2]
        before = found[name].nodes if name in found else ()
        found[name] = Partition(
            name.rstrip("*"),
            name.endswith("*"),
            minutes,
            int(max_nodes) if max_nodes.isdigit() else None,
            (*before, Nodes(int(count), int(cpus), sum(map(int, _GPUS.findall(gres))))),
        )
    known = {partition.name: partition for partition in found.values()}
    if wanted is None or not known:
        return [partition for partition in known.values() if partition.is_default]
    for name in wanted.split(","):
        if name not in known:
            raise ValueError(f"slurm.partition ({name}) must be one of {', '.join(sorted(known))}")
    return [known[name] for name in wanted.split(",")]


def check_request(request: Request, partitions: Sequence[Partition]) -> None:
    """Raise ValueError, one line, if none of the partitions can ever run the job."""
    refusals = [_refusal(request, partition) for partition in partitions]
    if refusals and None not in refusals:
        raise ValueError(refusals[0])


def most_cpus_per_task(request: Request, partitions: Sequence[Partition]) -> int | None:
    """The maximum number of cores per process of the job; None if unknown."""
    nodes = [node for partition in partitions for node in partition.nodes]
    cores = [node.cpus for node in nodes if node.gpus >= request.gpus_per_node]
    return max(1, max(cores) // request.tasks_per_node) if cores else None


def _refusal(request: Request, partition: Partition) -> str | None:
    """Why a partition can never run a job; None if it can."""
    where = f"partition {partition.name}"

    def at_most(name: str, value: object, most: object, why: str) -> str:
        return f"slurm.{name} ({value}) must be at most {most}{why}"

    if partition.max_minutes is not None and request.minutes > partition.max_minutes:
        limit = duration(partition.max_minutes * 60)
        is_endless = request.minutes == UNLIMITED
        asked = "infinite" if is_endless else duration(request.minutes * 60)
        return at_most("time", asked, limit, f", the limit of {where}")
    most_gpus = max(node.gpus for node in partition.nodes)
    if request.gpus_per_node > most_gpus:
        why = f": nodes of {where} have {most_gpus} GPUs"
        return at_most("gpus_per_node", request.gpus_per_node, most_gpus, why)
    with_gpus = [node for node in partition.nodes if node.gpus >= request.gpus_per_node]
    tasks, cpus_per_task = request.tasks_per_node, request.cpus_per_task or 1
    most_cpus = max(node.cpus for node in with_gpus)
    if tasks * cpus_per_task > most_cpus:
        why = f": {tasks} tasks share the {most_cpus} cores of a node of {where}"
        return at_most("cpus_per_task", cpus_per_task, most_cpus // tasks, why)
    fitting = sum(node.count for node in with_gpus if node.cpus >= tasks * cpus_per_task)
    if request.nodes > fitting:
        return at_most(
            "nodes", request.nodes, fitting, f": no other nodes of {where} are large enough"
        )
    if partition.max_nodes is not None and request.nodes > partition.max_nodes:
        return at_most("nodes", request.nodes, partition.max_nodes, f", the limit of {where}")
    return None


def largest_array() -> tuple[int, str] | None:
    """The maximum number of tasks in a job array, and the name of SLURM's limit; None if scontrol
    is missing or does not say."""
    command = ["scontrol", "show", "config"]
    try:
        answer = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    # MaxArraySize is the highest index plus one. SLURM refuses a job that makes the queue as long
    # as MaxJobCount.
    limits = [
        (int(number) - less, name)
        for name, less in (("MaxArraySize", 0), ("MaxJobCount", 1), ("max_array_tasks", 0))
        for number in re.findall(rf"\b{name} *= *(\d+)", answer)
    ]
    return min(limits, default=None)
