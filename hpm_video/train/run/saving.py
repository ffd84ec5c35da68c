"""Checkpoints written in the background; training stops only while they are copied."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from hpm_video.config import PretrainRunConfig, RunConfig
from hpm_video.runtime.distributed import World
from hpm_video.weights.checkpoint import HISTORY, save_checkpoint, save_sharded


class Saver:
    """Writes a run's checkpoints, one at a time, in the format of run.parallel.

    With run.save_in_background a checkpoint is copied to host memory and written by a thread while
    training goes on. All ranks call all methods; under DDP only rank 0 writes.
    """

    def __init__(self, folder: Path, run: RunConfig, world: World) -> None:
        self._is_sharded = run.parallel == "fsdp"
        self._folder, self._keep = folder, run.keep_checkpoints
        self._is_idle = not (world.is_main or self._is_sharded)
        self._background = run.save_in_background
        self._pending: Future[Path] | None = None
        self._write: Callable[..., Path]
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        if self._is_sharded:
            # A group of the thread's own, so that its messages do not mix with training's
            group: Any = dist.new_group(backend="gloo") if world.size > 1 else None
            self._write = partial(save_sharded, group=group)
        else:
            self._write = save_checkpoint

    def save(self, state: Mapping[str, Any]) -> None:
        """Save, or start saving; waits for a previous save that has not finished."""
        self._save(self._folder, state, keep=self._keep)

    def save_to_look_at(self, state: Mapping[str, Any]) -> None:
        """Save a permanent checkpoint for evaluation, without the state needed to resume."""
        state = {name: value for name, value in state.items() if name != "optimizer"}
        self._save(self._folder / HISTORY, state, keep=0)

    def _save(self, folder: Path, state: Mapping[str, Any], *, keep: int) -> None:
        self.wait()
        if self._is_idle:
            return
        if self._background:
            self._pending = self._pool.submit(self._write, folder, copy_to_host(state), keep=keep)
        else:
            self._write(folder, state, keep=keep)

    def check(self) -> None:
        """Raise the error of a background save that has failed meanwhile."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint is on disk, or raise the error of its save."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait as `wait` does, then stop the thread."""
        with self._pool:
            self.wait()


def describe_checkpoints(
    run: PretrainRunConfig, total_steps: int, student: nn.Module, teacher: nn.Module | None
) -> str:
    """One log line on the disk space of a run's checkpoints."""
    weights = sum(p.numel() * p.element_size() for p in student.parameters())
    averaged = sum(p.numel() * p.element_size() for p in teacher.parameters()) if teacher else 0
    whole, shown, spread = (
        3 * weights + averaged,
        weights + averaged,
        run.history_steps(total_steps),
    )
    kept = run.keep_checkpoints
    newest = f"the newest {kept} are kept to resume from" if kept else "all are kept to resume from"
    text = f"checkpoints: {newest}, {_size(whole)} each"
    if spread:
        text += (
            f"; {len(spread)} spread over the run are kept to evaluate, {_size(shown)} each "
            "(run.history_checkpoints=0: none)"
        )
    # One more exists while it is being written
    return text + (f"; {_size((kept + 1) * whole + len(spread) * shown)} in all" if kept else "")


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def copy_to_host(value: Any) -> Any:
    """Copy nested dicts, lists and tuples of tensors (of sharded ones the shard) to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: copy_to_host(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copy_to_host(entry) for entry in value)
    return value
