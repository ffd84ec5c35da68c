"""Wishes of any process that all of them hear of at the same step, at no cost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hpm_video.runtime.distributed import World, mean_over_processes

_Sent = tuple[Tensor, "torch.cuda.Event | None"]


class Agreement:
    """Sends wishes (say, to stop) along with a number that is averaged at every step anyway.

    What one process wishes for, all hear, and all at the same step: none waits for one that has
    already left. On a GPU that is one step late, so that the host reads what the device has done
    long ago, and stays a step ahead of it.

    Args:
        world: the processes.
        wishes: gives this process's own, which last until they are granted.
    """

    def __init__(self, world: World, wishes: Callable[[], Sequence[bool]]) -> None:
        self._world, self._wishes = world, wishes
        self._delay = 1 if world.device.type == "cuda" else 0  # steps
        self._sent: deque[_Sent] = deque(maxlen=self._delay + 1)

    def exchange(self, number: Tensor) -> Tensor:
        """Mean of a scalar over processes; their wishes are on the way with it. No waiting."""
        if self._world.size == 1:
            return number
        # `full` brings its value along with its kernel; a copy from the host would wait for it
        flags = [torch.full_like(number, float(wish)) for wish in self._wishes()]
        values = mean_over_processes(torch.stack([number, *flags]), self._world)
        self._sent.append(_on_its_way(values[1:]))
        return values[0]

    def heard(self) -> list[bool]:
        """For each wish, whether a process had it at the latest exchange, on a GPU one before."""
        if self._world.size == 1:
            return list(self._wishes())
        if len(self._sent) <= self._delay:
            return [False for _ in self._wishes()]
        values, arrived = self._sent[0]
        if arrived is not None:
            arrived.synchronize()
        return [value > 0 for value in values.tolist()]

    def forget(self) -> None:
        """Forget what was sent, on all processes, as a wish has been granted; others come again."""
        self._sent.clear()


def _on_its_way(values: Tensor) -> _Sent:
    """Values on the host, there as soon as the event, if any, has come."""
    if values.device.type != "cuda":
        return values, None
    on_host = torch.empty(values.shape, pin_memory=True)
    on_host.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return on_host, arrived
