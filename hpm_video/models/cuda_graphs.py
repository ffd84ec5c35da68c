"""CUDA graphs: what the host has once started kernel by kernel, the GPU repeats by itself.

A step starts about a thousand kernels. With few clips at once a GPU is done with each before the
host has started the next, and waits for most of the step.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from hpm_video.config.values import Switch
from hpm_video.runtime.distributed import World

Result = TypeVar("Result")

# Calls that set up what a capture must not: they compile kernels, choose algorithms, reserve memory
_WARMUP_CALLS = 3


def choose_cuda_graphs(asked: Switch, world: World, *, compiled: bool) -> tuple[Switch, str | None]:
    """What run.cuda_graphs means here, true or false, and why, in words; None: it was asked for.

    ``auto`` leaves them out of a compiled run: both together were not tried on a GPU yet. Raises
    ValueError for true where there can be none.
    """
    reason = ""
    if world.device.type != "cuda":
        reason = "on a CPU"
    elif not world.is_alone:  # whose gradients are averaged while the backward pass goes on
        reason = f"{world.size} processes"
    if asked == "true" and reason:
        raise ValueError(
            f"run.cuda_graphs (true) needs one process and a CUDA device, not {reason}: use auto"
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
    """A function of tensors; with ``capture``, from its fourth call on, as a CUDA graph.

    The function is called with the tensors and the named arguments. It must do the same at every
    call with the same ``form`` and ``part``, whatever the numbers in tensors: it waits for nothing,
    draws from ``generator`` or the device's own, and what it makes is its result, or is added to
    tensors that stay where they are. The next call of the part overwrites its result. A
    capture that fails is told to ``say``; from then on the function is called as it is.
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
        """``form``: what changes now and then, and ends all earlier captures. ``part``: what takes
        turns, each with a capture of its own."""
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
                    "run.cuda_graphs: steps run without, as capturing one failed: "
                    f"{type(error).__name__}: {said[0]}"
                )
                return self._function(*given, **named)
        captured = self._captured[part]
        for own, new in zip(captured.given, given, strict=True):
            own.copy_(new)
        captured.graph.replay()
        return captured.result

    def _beside(self, *given: Tensor, **named: Any) -> Result:
        """Call it on another stream than the default one, which no capture may meet."""
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
        pool = others[0].pool() if others else None  # parts take turns in the same memory
        # Other threads may go on: they copy batches to the device, and checkpoints from it
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = self._function(*own, **named)
        return _Capture(graph, own, result)
