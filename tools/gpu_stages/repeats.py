"""Which operation of a step gives something else when the step is repeated."""

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Operations(TorchDispatchMode):
    """Notes every operation with a sum over the bits of each of its results, on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.sums: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func.__name__:  # what is empty may hold anything
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor) and leaf.numel() and not leaf.is_complex():
                    self.names.append(str(func))
                    self.sums.append(bit_sum(leaf))
        return result


def bit_sum(tensor: Tensor) -> Tensor:
    """A sum over the bits of a tensor, scalar int64: places count, so that no two swaps hide."""
    values = tensor.detach().contiguous().flatten()
    bits = values.view(_BITS[values.element_size()]).long()
    return (bits * (torch.arange(len(bits), device=bits.device) % 65_521 + 1)).sum()


def first_difference(make: Callable[[], Callable[[], Any]]) -> str:
    """The first operation whose result differs between two equal steps: ``make`` builds the model
    and returns the step, three times, as the first step of a process does more than others."""
    make()()
    runs = []
    for _ in range(2):
        step = make()
        with Operations() as operations:
            step()
        runs.append((operations.names, torch.stack([s.cpu() for s in operations.sums]).tolist()))
        del step
    for place, (one, other) in enumerate(zip_longest(*(zip(*run, strict=True) for run in runs))):
        if one != other:
            name = (one or other)[0]
            return f"{name}, operation {place + 1} of {len(runs[0][0])}"
    return f"none in one step of {len(runs[0][0])} operations"
