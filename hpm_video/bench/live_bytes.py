"""Memory of a step by counting tensors that are alive, with or without computing anything."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from hpm_video.bench.gpu_forms import fake_tensors
from hpm_video.bench.steps import build_student, random_frames, step_on
from hpm_video.config import PretrainConfig


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made within it for as long as they live.

    ``live``: now. ``peak``: the most so far. What an operator needs for itself while it works, and
    what an allocator rounds up or cannot reuse, is not in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = WeakIdKeyDictionary(ref_type=weakref.ref)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.count(value)
        return result

    def count(self, tensor: Tensor) -> None:
        """Count a tensor made before; views of what is known add nothing."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.live -= size


def modelled_bytes(config: PretrainConfig, *, as_on_gpu: bool) -> int:
    """Most bytes alive in a step of a training under way, inputs and state included.

    Tensors have shapes but no contents, so that no memory is taken and nothing computed: the size
    of the machine does not matter. ``as_on_gpu``: in the forms that CUDA takes, else the CPU's.
    """
    with torch.device("meta"):
        student = build_student(config)
    live = LiveBytes()
    with fake_tensors(as_on_gpu=as_on_gpu), live:
        student.to_empty(device="cpu")
        frames = random_frames(config)
        for tensor in (*student.parameters(), *student.buffers(), frames):
            live.count(tensor)
        step = step_on(config, frames, student=student)
        step()  # makes the optimizer's state
        live.peak = live.live
        step()
    return live.peak
