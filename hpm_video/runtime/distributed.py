"""Ranks: this process's place among them, the collectives that the loops need, and shared seeds.

`torchrun` or `srun` set the environment. Without them there is one process, and every call is
local.
"""

import inspect
import itertools
import os
import re
import socket
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import Store  # type: ignore[attr-defined]
from torch.distributed.fsdp import FSDPModule
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from hpm_video.runtime.gpus import gpu_facts, without_gpu
from hpm_video.runtime.job_secret import job_secret
from hpm_video.runtime.meeting import meet
from hpm_video.runtime.messages import read_message, write_message
from hpm_video.runtime.rendezvous import LOOPBACK, CommunicationError, Place, find_place

Module = TypeVar("Module", bound=nn.Module)

# DDP's name for the option, from PyTorch 2.15 on and before
_OF_DDP = inspect.signature(DistributedDataParallel).parameters
_SYNC_BUFFERS = next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in _OF_DDP)

_MEETING_S = 3600.0  # time limit for all ranks to connect, unless the job has its own
_PATIENT_S = 30 * 24 * 3600.0  # practically no limit
_LOOKS_S = 0.5  # polling interval of ranks that wait for rank 0
_worlds = itertools.count()  # worlds joined by this process; equal on all ranks
_turns = itertools.count()  # calls of `others_wait`; equal on all ranks


@dataclass(frozen=True)
class World:
    """This process's rank, the number of ranks, and its device.

    store: key-value store shared by all ranks, if there are several.
    """

    rank: int
    size: int
    device: torch.device
    store: Store | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is only one rank, so that models need no wrapper."""
        return self.size == 1


def pick_device(name: str, *, setting: str) -> torch.device:
    """The device by name; ``auto`` takes CUDA if it is available.

    Raises ValueError, naming the setting, for cuda without a GPU, and for auto if the machine or
    job has GPUs that PyTorch cannot use, unless CUDA_VISIBLE_DEVICES hides them.
    """
    if name == "cpu":
        return torch.device("cpu")
    with warnings.catch_warnings():  # PyTorch's reason is part of the error below
        warnings.simplefilter("ignore")
        if torch.cuda.is_available():
            keep_float32()
            return torch.device("cuda")
    facts = gpu_facts()
    if facts.signs and (name == "cuda" or not facts.are_hidden):
        raise ValueError(without_gpu(facts, setting=setting, value=name))
    if name == "cuda":
        raise ValueError(
            f"{setting} (cuda) needs a CUDA device, but this machine has none: use cpu"
        )
    if facts.are_hidden:
        _say_hidden()
    return torch.device("cpu")


def keep_float32() -> None:
    """Make CUDA compute float32 matrix products and convolutions in float32, in this process.

    By default PyTorch uses TF32 for convolutions, whose 10-bit mantissa makes features differ from
    a CPU's in the third digit. Use bfloat16 for speed.
    """
    # Not `fp32_precision`, its replacement since PyTorch 2.9: setting it breaks torch.compile of
    # 2.9 and 2.10 (pytorch/pytorch#166387)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


@cache
def _say_hidden() -> None:
    """Print the message once per process, on rank 0."""
    if find_place().rank == 0:
        sys.stderr.write("device: cpu, because CUDA_VISIBLE_DEVICES hides the GPUs\n")


@contextmanager
def join_world(
    device: str, *, setting: str = "run.device", timeout_s: float | None = None
) -> Iterator[World]:
    """Join the process group that the environment describes, and leave it at the end.

    Args:
        device, setting: see `pick_device`.
        timeout_s: seconds a rank waits for the others in a collective (run.collective_timeout_s).
            None: no limit, for jobs that split videos and exchange results on the host, where some
            ranks finish hours before the others.

    Raises:
        ValueError: cuda without a device.
        CommunicationError: another rank ends or never connects. With NCCL, PyTorch ends this
            process instead.
    """
    own_device = pick_device(device, setting=setting)
    use_cuda = own_device.type == "cuda"
    place = find_place()
    if use_cuda:
        own_device = _own_gpu(place)
        torch.cuda.set_device(own_device)
    if place.size == 1:
        yield World(place.rank, place.size, own_device)
        return
    # Not NCCL without a limit: its waiting kernels would block the GPU
    backend = "nccl" if use_cuda and timeout_s is not None else "gloo"
    limit = "an hour" if timeout_s is None else f"run.collective_timeout_s ({timeout_s:g})"
    meeting_s = _MEETING_S if timeout_s is None else timeout_s
    try:
        if place.host is None:
            store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=meeting_s)))
        else:
            # A new name, so that nobody answers for an earlier world of this process
            this = replace(place, name=f"{place.name} {next(_worlds)}")
            store = meet(this, job_secret(), timeout_s=meeting_s, limit=limit)
            if place.host == LOOPBACK and "lo" in (name for _, name in socket.if_nameindex()):
                os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # unreachable from elsewhere
        dist.init_process_group(
            backend,
            timeout=timedelta(seconds=timeout_s or _PATIENT_S),
            store=store,
            rank=place.rank,
            world_size=place.size,
        )
        yield World(place.rank, place.size, own_device, store)
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise CommunicationError(_what_happened(error, place, limit)) from error
        raise
    finally:
        # During an exception NCCL might wait here for data that the others never send
        if dist.is_initialized() and (sys.exc_info()[0] is None or backend == "gloo"):
            dist.destroy_process_group()


def _own_gpu(place: Place) -> torch.device:
    """This rank's GPU: the only visible one if SLURM shows each process just its own."""
    count = torch.cuda.device_count()
    index = 0 if count == 1 else place.local_rank
    if index >= count:
        raise ValueError(
            f"process {index} on {socket.gethostname()} has no GPU: start at most {count} "
            "processes there, one per GPU"
        )
    return torch.device("cuda", index)


def _what_happened(error: RuntimeError, place: Place, limit: str) -> str:
    me = f"rank {place.rank} of {place.size} on {socket.gethostname()}"
    if re.search("time[d -]*out", str(error), re.IGNORECASE):
        return (
            f"{me} got no answer from the other ranks within {limit}: "
            'one of them hangs; see their logs, and "When it hangs" in docs/slurm.md'
        )
    reason = str(error).strip().splitlines()[0]
    return f"{me} lost another process, which has ended: see the logs of the other ranks ({reason})"


class _Replicated(nn.Module):
    """Wraps a module; called without arguments, it returns the sum of all trained parameters."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any, **named: Any) -> Any:
        if arguments or named:
            return self.module(*arguments, **named)
        return sum(p.sum() for p in self.module.parameters() if p.requires_grad)


def replicate(module: Module, world: World) -> Module | DistributedDataParallel:
    """The module itself, or its DDP wrapper, which averages gradients over ranks."""
    if world.is_alone:
        return module
    has_statistics = any(isinstance(part, _NormBase) for part in module.modules())
    # Sync buffers only for batch norms; position tables never change
    options: dict[str, Any] = {_SYNC_BUFFERS: has_statistics}
    options["gradient_as_bucket_view"] = True  # saves a copy of all gradients
    # Not static_graph: the pass below has another graph than a step. Not device_ids: DDP would then
    # expect arguments to move to the device
    replica = DistributedDataParallel(_Replicated(module), **options)
    # DDP rebuilds its gradient buckets after the first backward pass, which changes the order of
    # summation. Do that now: otherwise a resumed run would differ in rounding from one that was not
    # interrupted.
    replica().backward()
    module.zero_grad()
    return replica


def sync_gradients(module: nn.Module, sync: bool) -> AbstractContextManager[None]:
    """A context for a micro-batch, which averages gradients over ranks only if ``sync``."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(sync)
    if isinstance(module, DistributedDataParallel) and not sync:
        return module.no_sync()
    return nullcontext()


def mean_over_processes(values: Tensor, world: World) -> Tensor:
    """Mean of a tensor over all ranks, on every rank."""
    if world.size > 1:
        dist.all_reduce(values)
        values = values / world.size
    return values


def gather_objects(value: Any, world: World) -> list[Any]:
    """The values of all ranks in rank order, on every rank; for types see `write_message`."""
    if world.size == 1:
        return [value]
    mine, sizes = _padded(value, world)
    parts = [torch.empty_like(mine) for _ in range(world.size)]
    dist.all_gather(parts, mine)
    return _values(parts, sizes)


def gather_to_main(value: Any, world: World) -> list[Any]:
    """The values of all ranks on rank 0, an empty list on the others; see `gather_objects`."""
    if world.size == 1:
        return [value]
    mine, sizes = _padded(value, world)
    parts = [torch.empty_like(mine) for _ in range(world.size)] if world.is_main else None
    dist.gather(mine, parts)
    return _values(parts or [], sizes)


def _padded(value: Any, world: World) -> tuple[Tensor, list[int]]:
    """A value as bytes, padded to the longest of all ranks, and the lengths of all.

    PyTorch's collectives for objects are not safe: they unpickle, and so run, what a peer sends.
    """
    device = world.device if dist.get_backend() == "nccl" else torch.device("cpu")
    message = torch.frombuffer(bytearray(write_message(value)), dtype=torch.uint8)
    size = torch.tensor([len(message)], device=device)
    sizes = [torch.empty_like(size) for _ in range(world.size)]
    dist.all_gather(sizes, size)
    lengths = torch.cat(sizes).tolist()
    padded = torch.zeros(max(lengths), dtype=torch.uint8, device=device)
    padded[: len(message)] = message
    return padded, lengths


def _values(parts: list[Tensor], sizes: list[int]) -> list[Any]:
    values = []
    for rank, part in enumerate(parts):
        try:
            values.append(read_message(part[: sizes[rank]].cpu().numpy().tobytes()))
        except ValueError as error:
            raise CommunicationError(f"rank {rank} sent unexpected data: {error}") from error
    return values


def share_from_main(values: Iterable[Tensor], world: World) -> None:
    """Broadcast rank 0's tensors in place."""
    if world.size > 1:
        for value in values:
            dist.broadcast(value, 0)


def barrier(world: World) -> None:
    """Wait for all ranks."""
    if world.size > 1:
        dist.barrier()


def seed_of(*parts: int) -> int:
    """A 63-bit seed that depends on every part, e.g. (seed, step). It is equal on all ranks and
    needs no saved state."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]) >> 1


@contextmanager
def others_wait(world: World) -> Iterator[None]:
    """Runs a block on rank 0 while the other ranks wait without a time limit. If rank 0 fails, the
    others fail as in any collective."""
    turn = f"hpm-video: the main process is done {next(_turns)}"
    try:
        yield
    finally:
        if world.store is not None and world.is_main:
            world.store.set(turn, "")
    while not (world.store is None or world.is_main or world.store.check([turn])):
        time.sleep(_LOOKS_S)
    barrier(world)  # rank 0's exit may end the store, so wait until all have read it
