"""Stop and checkpoint requests, which reach all ranks at the same step at no extra cost."""

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hpm_video.runtime.distributed import World, mean_over_processes

_Sent = tuple[Tensor, "torch.cuda.Event | None"]


class RankRequests:
    """Shares stop and checkpoint requests between ranks inside each step's all-reduce.

    All ranks receive a request at the same step, so none waits for a rank that has already left. On
    a GPU they receive it one step later, so that the host stays a step ahead of the device.
    ``requests`` returns this rank's own requests, which stay until granted.
    """

    def __init__(self, world: World, requests: Callable[[], Sequence[bool]]) -> None:
        self._world, self._own_requests = world, requests
        self._delay = 1 if world.device.type == "cuda" else 0  # steps
        self._sent: deque[_Sent] = deque(maxlen=self._delay + 1)

    def exchange(self, numbers: Tensor) -> Tensor:
        """Average numbers over ranks, with the requests in the same all-reduce; no sync."""
        if self._world.size == 1:
            return numbers
        # `full` passes its value with the kernel; a copy from the host would synchronise
        flags = [numbers.new_full((1,), float(request)) for request in self._own_requests()]
        values = mean_over_processes(torch.cat([numbers.flatten(), *flags]), self._world)
        self._sent.append(_on_its_way(values[numbers.numel() :]))
        return values[: numbers.numel()].view_as(numbers)

    def heard(self) -> list[bool]:
        """Whether any rank had each request at the last exchange (on a GPU, the one before)."""
        if self._world.size == 1:
            return list(self._own_requests())
        if len(self._sent) <= self._delay:
            return [False for _ in self._own_requests()]
        values, arrived = self._sent[0]
        if arrived is not None:
            arrived.synchronize()
        return [value > 0 for value in values.tolist()]

    def forget(self) -> None:
        """Drop sent requests on all ranks after granting one; open ones are sent again."""
        self._sent.clear()


def _on_its_way(values: Tensor) -> _Sent:
    """Start copying values to the host; they are valid once the event, if any, has completed."""
    if values.device.type != "cuda":
        return values, None
    on_host = torch.empty(values.shape, pin_memory=True)
    on_host.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return on_host, arrived
