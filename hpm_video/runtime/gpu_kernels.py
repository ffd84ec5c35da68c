"""Whether to use our GPU implementations: Triton kernels and multi-tensor operators."""

import warnings
from functools import cache
from subprocess import SubprocessError

import torch

# Programs that share a sum over tokens: enough to fill a GPU, few enough that adding up their
# partial sums costs nothing.
PARTS = 256


def is_eager_gpu(device: torch.device) -> bool:
    """Whether each operator launches a kernel: on CUDA, unless compiled."""
    return device.type == "cuda" and not torch.compiler.is_compiling()


def runs_triton(device: torch.device) -> bool:
    """Whether to run our Triton kernels on a device; on a GPU without them, prints why, once."""
    return is_eager_gpu(device) and _is_able(device)


@cache
def _is_able(device: torch.device) -> bool:
    try:
        from hpm_video.runtime import triton_trial  # noqa: PLC0415  # Triton is optional

        triton_trial.run(device)
    # Triton builds its launchers with the system's C compiler, which may be missing or fail
    except (ImportError, RuntimeError, OSError, SubprocessError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(
            f"Triton cannot run on {device} ({reason}), so PyTorch's own operators compute the "
            "losses and norms: the same results, more slowly. Usually a C compiler (gcc) or the "
            "Python headers (python3-dev) are missing: install them",
            RuntimeWarning,
            stacklevel=3,
        )
        return False
    return True
