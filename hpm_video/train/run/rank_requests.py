"""Stop and checkpoint requests that all ranks hear of at the same step, at no extra cost."""

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hpm_video.runtime.distributed import World, mean_over_processes

_Sent = tuple[Tensor, "torch.cuda.Event | None"]


class RankRequests:
    """Shares stop and checkpoint requests between ranks inside each step's all-reduce.

    All ranks hear of a request at the same step, so none waits for a rank that has already left. On
    a GPU they hear of it one step later: the host then reads what the device finished long ago and
    stays a step ahead of it. ``requests`` returns this rank's own, which last until granted.
    """

    def __init__(self, world: World, requests: Callable[[], Sequence[bool]]) -> None:
        self._world, self._own_requests = world, requests
        self._delay = 1 if world.device.type == "cuda" else 0  # steps
        self._sent: deque[_Sent] = deque(maxlen=self._delay + 1)

    def exchange(self, numbers: Tensor) -> Tensor:
        """Mean of some numbers over ranks; their requests travel with them. Nothing waits."""
        if self._world.size == 1:
            return numbers
        # `full` brings its value along with its kernel; a copy from the host would wait for it
        flags = [numbers.new_full((1,), float(request)) for request in self._own_requests()]
        values = mean_over_processes(torch.cat([numbers.flatten(), *flags]), self._world)
        self._sent.append(_on_its_way(values[numbers.numel() :]))
        return values[: numbers.numel()].view_as(numbers)

    def heard(self) -> list[bool]:
        """For each request, whether a rank had it at the latest exchange, on a GPU one before."""
        if self._world.size == 1:
            return list(self._own_requests())
        if len(self._sent) <= self._delay:
            return [False for _ in self._own_requests()]
        values, arrived = self._sent[0]
        if arrived is not None:
            arrived.synchronize()
        return [value > 0 for value in values.tolist()]

    def forget(self) -> None:
        """Forget what was sent, on all ranks, as a request has been granted; others come again."""
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
