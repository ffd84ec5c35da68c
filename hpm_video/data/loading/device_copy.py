"""Copies batches to a GPU on a separate stream while the GPU computes.

    host:    next batch is ready -> start its copy -> launch the kernels of this batch -> ...
    copies:  | next batch |
    compute: | this batch                         | next batch (waits for its copy only)

Frames must be in page-locked memory: for other memory the host waits for the copy.
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
    """A tensor whose copy to a GPU has started; ``done`` is the event at its end."""

    tensor: Tensor
    done: Any  # torch.cuda.Event

    def ready(self) -> Tensor:
        """The copy; kernels launched from now on wait for it, the host does not."""
        stream = torch.cuda.current_stream(self.tensor.device)
        stream.wait_event(self.done)
        # Allocated on the copy stream, which must not reuse the memory too early
        self.tensor.record_stream(stream)
        return self.tensor


class Copier:
    """Starts copies to one GPU, in order, in parallel with its kernels."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)
        self._under_way: deque[tuple[Any, Tensor]] = deque()

    def start(self, rows: Tensor) -> Copied:
        """Start to copy a host tensor, and keep a reference to it until the copy is done.

        Otherwise the loader would reuse its memory.
        """
        while self._under_way and self._under_way[0][0].query():
            self._under_way.popleft()
        with torch.cuda.stream(self._stream):
            copy = rows.to(self._device, non_blocking=True)
            done = self._stream.record_event()
        self._under_way.append((done, rows))
        return Copied(copy, done)


def copier_to(device: torch.device | None) -> Copier | None:
    """A copier for a device, or None if it is not a GPU."""
    return Copier(device) if device is not None and device.type == "cuda" else None


def on_device(rows: Tensor, copied: Copied | None, device: torch.device | str) -> Tensor:
    """The rows of a batch on a device: the copy under way if there is one."""
    if copied is not None and _is_same(copied.tensor.device, torch.device(device)):
        return copied.ready().view(rows.shape)
    return rows.to(device, non_blocking=True)


def page_lock(memory: npt.NDArray[np.uint8]) -> bool:
    """Page-lock this memory for the current device; returns whether CUDA agreed.

    The lock ends with the array.
    """
    cudart: Any = torch.cuda.cudart()
    address = memory.ctypes.data
    if cudart.cudaHostRegister(address, memory.nbytes, 0) != cudart.cudaError.success:
        with suppress(RuntimeError):  # clears the error, which the next kernel would report
            torch.zeros(1, device="cuda")
        return False
    end = weakref.finalize(memory, cudart.cudaHostUnregister, address)
    end.atexit = False  # CUDA has shut down by then
    return True


def _is_same(known: torch.device, asked: torch.device) -> bool:
    return known.type == asked.type and asked.index in (None, known.index)
