"""PyTorch's deterministic algorithms, for runs that repeat bit for bit on a GPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic(is_on: bool) -> Iterator[None]:
    """A context for run.deterministic: operations are deterministic or raise RuntimeError.

    Enter it before anything is computed on a GPU.
    """
    if not is_on:
        yield
        return
    # cuBLAS reads this when a process first multiplies on a GPU
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False  # benchmark may choose differently each time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]
