"""One process or several: who am I, and the few collectives the loops need.

`torchrun` sets the environment; without it there is one process and every call is local.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class World:
    """The processes of this run, and this one's place and device among them."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


@contextmanager
def join_world(device: str, *, setting: str = "run.device") -> Iterator[World]:
    """Join the process group that the environment describes; leave it at the end.

    ``device``: ``auto`` takes CUDA where there is one. ``setting``: what the user calls it. Raises
    ValueError for cuda without one.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{setting} (cuda) needs a CUDA device; there is none here: use cpu")
    use_cuda = device != "cpu" and torch.cuda.is_available()
    rank = int(os.environ.get("RANK", "0"))
    size = int(os.environ.get("WORLD_SIZE", "1"))
    place = torch.device("cpu")
    if use_cuda:
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    if size == 1:
        yield World(0, 1, place)
        return
    dist.init_process_group("nccl" if use_cuda else "gloo")
    try:
        yield World(rank, size, place)
    finally:
        dist.destroy_process_group()


def replicate(module: Module, world: World) -> Module | DistributedDataParallel:
    """The module itself, or its wrapper that averages gradients over processes."""
    if world.size == 1:
        return module
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices)


def sync_gradients(module: nn.Module, sync: bool) -> AbstractContextManager[None]:
    """Context of a backward pass that averages gradients over processes only if ``sync``."""
    if isinstance(module, DistributedDataParallel) and not sync:
        return module.no_sync()
    return nullcontext()


def mean_over_processes(values: Tensor, world: World) -> Tensor:
    """Mean of a tensor over all processes, on each of them."""
    if world.size > 1:
        dist.all_reduce(values)
        values = values / world.size
    return values


def gather_objects(value: Any, world: World) -> list[Any]:
    """One picklable value per process, in rank order, on each of them."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def gather_to_main(value: Any, world: World) -> list[Any]:
    """One picklable value per process, in rank order, on the main process; nothing on others."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size if world.is_main else []
    dist.gather_object(value, values if world.is_main else None)
    return values


def barrier(world: World) -> None:
    """Wait for all processes."""
    if world.size > 1:
        dist.barrier()
