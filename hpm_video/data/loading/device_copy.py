"""Batches on their way to a GPU: copied on a stream of their own, while the GPU still computes.

    host:    next batch is there -> start its copy -> launch the kernels of this one -> ...
    copies:  | next batch |
    compute: | this batch                         | next batch (waits for its copy only)

Frames must lie in page-locked memory; from other memory CUDA copies while the host waits.
"""

import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class Copied:
    """A tensor whose copy to a GPU has begun; ``done`` is the event that ends it."""

    tensor: Tensor
    done: Any  # torch.cuda.Event

    def ready(self) -> Tensor:
        """The copy, for which what is launched from now on waits, but not the host."""
        stream = torch.cuda.current_stream(self.tensor.device)
        stream.wait_event(self.done)
        # Its memory was taken for the other stream, which must not get it back too early
        self.tensor.record_stream(stream)
        return self.tensor


class Copier:
    """Starts copies to one GPU, in order, beside what it computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)
        self._under_way: deque[tuple[Any, Tensor]] = deque()

    def start(self, rows: Tensor) -> Copied:
        """Start to copy a tensor of the host, which is kept until the copy is done: its memory may
        be that of the loader, who reads into it again once nobody holds it."""
        while self._under_way and self._under_way[0][0].query():
            self._under_way.popleft()
        with torch.cuda.stream(self._stream):
            copy = rows.to(self._device, non_blocking=True)
            done = self._stream.record_event()
        self._under_way.append((done, rows))
        return Copied(copy, done)


def copier_to(device: torch.device | None) -> Copier | None:
    """What copies to a device, if that is a GPU."""
    return Copier(device) if device is not None and device.type == "cuda" else None


def on_device(rows: Tensor, copied: Copied | None, device: torch.device | str) -> Tensor:
    """The rows of a batch on a device: its copy that is under way, where it is there."""
    if copied is not None and _is_same(copied.tensor.device, torch.device(device)):
        return copied.ready().view(rows.shape)
    return rows.to(device, non_blocking=True)


def page_lock(memory: npt.NDArray[np.uint8]) -> bool:
    """Have CUDA copy from this memory without a detour, as long as there is an array of it; whether
    it agrees. For the current device."""
    cudart: Any = torch.cuda.cudart()
    address = memory.ctypes.data
    if cudart.cudaHostRegister(address, memory.nbytes, 0) != cudart.cudaError.success:
        with suppress(RuntimeError):  # else the next kernel would be blamed for it
            torch.zeros(1, device="cuda")
        return False
    end = weakref.finalize(memory, cudart.cudaHostUnregister, address)
    end.atexit = False  # CUDA has ended by then
    return True


def _is_same(known: torch.device, asked: torch.device) -> bool:
    return known.type == asked.type and asked.index in (None, known.index)
