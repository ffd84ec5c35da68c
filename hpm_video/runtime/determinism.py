"""PyTorch's deterministic algorithms, for runs that repeat bit by bit on a GPU too."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic(is_on: bool) -> Iterator[None]:
    """Within it, operations give the same result each time, or raise RuntimeError where they
    cannot; for run.deterministic. Begins before anything is computed on a GPU."""
    if not is_on:
        yield
        return
    # Read when a process first multiplies on a GPU: buffers of its own for each stream
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False  # the fastest of several may change
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]
