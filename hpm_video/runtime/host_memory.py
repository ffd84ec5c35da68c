"""Memory of the host, for steps that a CPU computes."""

import ctypes

# Of malloc.h: what mallopt(3) sets, and the values that mean "never".
_TRIM_THRESHOLD, _NEVER = -1, -1
_MMAP_MAX, _NONE = -4, 0


def keep_freed_memory() -> None:
    """Let this process keep the memory that its tensors free, for the next ones.

    The GNU C library gives large blocks back to the system at once and asks for them again in the
    next step; the system then clears every page when it is first touched, which takes longer than
    most of what a step does with it (measured: docs/performance.md). Memory in use stays at its
    peak from then on, so this is for processes of our own: the commands call it, functions that
    others import do not. Does nothing with other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, _NONE)
        mallopt(_TRIM_THRESHOLD, _NEVER)
