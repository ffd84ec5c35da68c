"""Host memory settings for training on a CPU."""

import ctypes

# From malloc.h: options of mallopt(3), and values that mean "never"
_TRIM_THRESHOLD, _NEVER = -1, -1
_MMAP_MAX, _NONE = -4, 0


def keep_freed_memory() -> None:
    """Keep freed memory in this process for the next tensors.

    The GNU C library returns large blocks to the system at once. In the next step the system clears
    every page again, which takes longer than most of a step's use of it (measured:
    docs/performance.md). The process then stays at its peak memory, so only commands call this, not
    functions that others import. No effect with other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, _NONE)
        mallopt(_TRIM_THRESHOLD, _NEVER)
