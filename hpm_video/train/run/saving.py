"""Checkpoints written beside the training: only their copy stops it."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from hpm_video.config import RunConfig
from hpm_video.runtime.distributed import World
from hpm_video.weights.checkpoint import save_checkpoint, save_sharded


class Saver:
    """Writes a run's checkpoints, one at a time, in the format that belongs to run.parallel.

    With run.save_in_background a checkpoint is copied to the host's memory, and a thread writes it
    while training goes on. Every process calls every method; under DDP only the main one writes.
    """

    def __init__(self, folder: Path, run: RunConfig, world: World) -> None:
        self._is_sharded = run.parallel == "fsdp"
        self._is_idle = not (world.is_main or self._is_sharded)
        self._background = run.save_in_background
        self._pending: Future[Path] | None = None
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        if self._is_sharded:
            # The thread's own, lest its messages get mixed up with those of the training
            group: Any = dist.new_group(backend="gloo") if world.size > 1 else None
            self._write = partial(save_sharded, folder, keep=run.keep_checkpoints, group=group)
        else:
            self._write = partial(save_checkpoint, folder, keep=run.keep_checkpoints)

    def save(self, state: Mapping[str, Any]) -> None:
        """Save, or begin to; waits for the save before, if that is still under way."""
        self.wait()
        if self._is_idle:
            return
        if self._background:
            self._pending = self._pool.submit(self._write, copy_to_host(state))
        else:
            self._write(state)

    def check(self) -> None:
        """Raise what a save that has ended meanwhile failed of."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until what was saved is on disk, or raise what the save failed of."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """As `wait`, and the end."""
        with self._pool:
            self.wait()


def copy_to_host(value: Any) -> Any:
    """Nested dicts, lists and tuples with tensors, or parts of cut ones, copied to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: copy_to_host(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copy_to_host(entry) for entry in value)
    return value
