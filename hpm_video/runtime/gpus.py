"""Finds out why a process sees no GPU although its machine or job has some."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

# SLURM's variables with the numbers and names of a job's GPUs
_GPU_COUNTS = ("SLURM_GPUS", "SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE", "SLURM_GPUS_PER_TASK")
_GPU_NAMES = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS")
_HIDING = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES; the last is SLURM's


@dataclass(frozen=True)
class GpuFacts:
    """Facts on GPUs that PyTorch cannot use.

    signs: evidence of GPUs in the machine or job; empty if there is none. files: /dev/nvidia0 etc.;
    forbidden: the first of them, if this process may open none. visible: CUDA_VISIBLE_DEVICES, if
    set. driver: its version. pytorch, cuda: version of PyTorch and of the CUDA that it was built
    for, if any. said: PyTorch's own reason.
    """

    signs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    forbidden: str | None = None
    visible: str | None = None
    driver: str | None = None
    pytorch: str = torch.__version__
    cuda: str | None = torch.version.cuda
    said: str = ""

    @property
    def are_hidden(self) -> bool:
        """Whether existing GPUs are hidden from this process on purpose."""
        return bool(self.signs) and self.visible in _HIDING


def gpu_facts(environment: Mapping[str, str] = os.environ, *, root: Path = Path("/")) -> GpuFacts:
    """Look for GPUs in the environment and in files below ``root``, without using them."""
    files = [path for path in sorted(root.glob("dev/nvidia*")) if path.name[6:].isdigit()]
    names = [f"/{path.relative_to(root)}" for path in files]
    signs = names or [
        f"/{path.relative_to(root)}" for path in root.glob("proc/driver/nvidia/gpus/*")
    ]
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    for variable in (*_GPU_COUNTS, *_GPU_NAMES, "CUDA_VISIBLE_DEVICES"):
        value = environment.get(variable, "")
        is_none = variable in _GPU_COUNTS and value.rpartition(":")[2] == "0"
        if value not in _HIDING and not is_none:
            signs.append(f"{variable}={value}")
    return GpuFacts(
        signs=tuple(signs),
        files=tuple(names),
        forbidden=names[0] if files and not any(map(_opens, files)) else None,
        visible=visible,
        driver=driver_version(root),
        said=_words_of_torch(),
    )


def without_gpu(facts: GpuFacts, *, setting: str, value: str) -> str:
    """An error message: why the device ``value`` (auto or cuda) cannot be a GPU despite the signs
    of one, and what to do."""
    reason, remedy = _reason(facts)
    signs = ", ".join(facts.signs[:3]) + (", ..." if len(facts.signs) > 3 else "")
    said = f" (PyTorch says: {facts.said})" if facts.said else ""
    cpu = f"{setting} cpu" if setting.startswith("-") else f"{setting}=cpu"
    if value == "auto":  # not every command has the setting
        cpu += " or CUDA_VISIBLE_DEVICES=''"
    # Not enough evidence: the variable may be left over from elsewhere
    are_there = any(sign.startswith("/") for sign in facts.signs)
    claim = (
        f"the machine has some ({signs})" if are_there else f"the environment names some ({signs})"
    )
    if not are_there:
        names = " ".join(sign.partition("=")[0] for sign in facts.signs)
        remedy += f", or, if there are none, unset {names}"
    return (
        f"{setting} ({value}) finds no GPU that PyTorch can use, although {claim}: "
        f"{reason}{said}; {remedy}, or choose {cpu}"
    )


def _reason(facts: GpuFacts) -> tuple[str, str]:
    """The first reason that applies, and its remedy."""
    containers = "start the container with GPUs (docker --gpus all, apptainer --nv)"
    reasons = [
        (facts.are_hidden, f"CUDA_VISIBLE_DEVICES ({facts.visible!r}) hides them", "unset it"),
        (
            facts.cuda is None,
            f"PyTorch {facts.pytorch} is built without CUDA",
            "install a build with CUDA (pip install --force-reinstall "
            f"torch=={facts.pytorch.partition('+')[0]})",
        ),
        (
            "too old" in facts.said,
            f"the NVIDIA driver ({facts.driver}) is too old for PyTorch {facts.pytorch}, which is "
            f"built for CUDA {facts.cuda}",
            "update the driver, or install a PyTorch for an older CUDA (pytorch.org/get-started)",
        ),
        (
            facts.forbidden is not None,
            f"this process has no permission to open {facts.forbidden}",
            "ask SLURM for GPUs (--gpus-per-node), or join the group that owns the file",
        ),
        (
            facts.driver is None,
            "no NVIDIA driver is loaded",
            f"load it on a machine with GPUs, {containers}",
        ),
        (not facts.files, "there are no device files such as /dev/nvidia0", containers),
        (
            facts.visible is not None,
            f"CUDA_VISIBLE_DEVICES ({facts.visible}) may name none of them",
            "set it to GPUs that nvidia-smi lists",
        ),
        (True, "CUDA does not start", "check that nvidia-smi works"),
    ]
    return next((reason, remedy) for holds, reason, remedy in reasons if holds)


def driver_version(root: Path = Path("/")) -> str | None:
    """Version of the loaded NVIDIA driver, such as 535.104.05."""
    with suppress(OSError):
        text = (root / "proc/driver/nvidia/version").read_text(encoding="utf-8")
        if found := re.search(r"NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)\s", text):
            return found[1]
    return None


def _opens(path: Path) -> bool:
    """Whether a device file can be opened; a job's cgroup may forbid it despite its mode."""
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError:
        return False
    return True


def _words_of_torch() -> str:
    """The first sentence of PyTorch's reason for not starting CUDA; empty if it can."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().split("\n")[0].split(". ")[0].rstrip(".")
    return ""
