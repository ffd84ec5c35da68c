"""CUDA graphs: record the kernels of a step once, then replay them with one launch.

A step launches about a thousand kernels. With few clips per batch, the GPU finishes each before the
host launches the next, and waits for most of the step.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from hpm_video.config.values import Switch
from hpm_video.runtime.distributed import World

Result = TypeVar("Result")

# Calls before a capture, which compile kernels, choose algorithms and reserve memory
_WARMUP_CALLS = 3


def choose_cuda_graphs(asked: Switch, world: World, *, compiled: bool) -> tuple[Switch, str | None]:
    """Resolve run.cuda_graphs to true or false, with the reason, or None if it was requested.

    ``auto`` is false for compiled runs: the combination has not been tried on a GPU yet. Raises
    ValueError for true where CUDA graphs are impossible.
    """
    reason = ""
    if world.device.type != "cuda":
        reason = "on a CPU"
    elif not world.is_alone:  # gradients are averaged during the backward pass
        reason = f"{world.size} processes"
    if asked == "true" and reason:
        raise ValueError(
            f"run.cuda_graphs (true) needs one process and a CUDA device (this run: {reason}); "
            "use run.cuda_graphs=auto"
        )
    if asked != "auto":
        return asked, None
    if reason or compiled:
        return "false", reason or "compiled"
    return "true", "one process on CUDA"


@dataclass(frozen=True)  # a NamedTuple cannot be generic in Python 3.10
class _Capture(Generic[Result]):
    graph: torch.cuda.CUDAGraph
    given: list[Tensor]
    result: Result


class Replayed(Generic[Result]):
    """A function of tensors that, with ``capture``, runs as a CUDA graph from its fourth call on.

    For the same ``form`` and ``part`` the function must launch the same kernels, whatever the
    tensors hold: it must not synchronise, may draw random numbers only from ``generator`` or the
    device's own generator, and may write only to its result and to tensors that stay in place. The
    next call of the same part overwrites the result. If a capture fails, ``say`` gets one line and
    the function runs without graphs from then on.
    """

    def __init__(
        self,
        function: Callable[..., Result],
        generator: torch.Generator | None = None,
        *,
        capture: bool,
        say: Callable[[str], None],
    ) -> None:
        self._function, self._generator, self._say = function, generator, say
        self._captures = capture
        self._calls = 0
        self._form: Hashable = None
        self._captured: dict[Hashable, _Capture[Result]] = {}

    def __call__(
        self, *given: Tensor, form: Hashable = None, part: Hashable = None, **named: Any
    ) -> Result:
        """Call the function. A new ``form`` discards all captures; each ``part`` has its own."""
        self._calls += 1
        if not self._captures:
            return self._function(*given, **named)
        if self._calls <= _WARMUP_CALLS:
            return self._beside(*given, **named)
        if form != self._form:
            self._captured.clear()
            self._form = form
        if part not in self._captured:
            try:
                self._captured[part] = self._capture(*given, **named)
            except RuntimeError as error:
                self._captures = False
                self._captured.clear()
                said = str(error).strip().splitlines() or ["no reason given"]
                self._say(
                    "run.cuda_graphs: steps run without CUDA graphs, as capturing one failed: "
                    f"{type(error).__name__}: {said[0]}"
                )
                return self._function(*given, **named)
        captured = self._captured[part]
        for own, new in zip(captured.given, given, strict=True):
            own.copy_(new)
        captured.graph.replay()
        return captured.result

    def _beside(self, *given: Tensor, **named: Any) -> Result:
        """Call the function on a side stream; captures must not run on the default stream."""
        stream, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(stream)
        with torch.cuda.stream(side):
            result = self._function(*given, **named)
        stream.wait_stream(side)
        return result

    def _capture(self, *given: Tensor, **named: Any) -> _Capture[Result]:
        graph, own = torch.cuda.CUDAGraph(), [torch.empty_like(each) for each in given]
        if self._generator is not None:
            graph.register_generator_state(self._generator)
        others = [captured.graph for captured in self._captured.values()]
        pool = others[0].pool() if others else None  # parts never run at once: share memory
        # Let other threads copy batches to the device and checkpoints from it meanwhile
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = self._function(*own, **named)
        return _Capture(graph, own, result)
