"""What machine this is, how fast it multiplies and copies, and the tests that need a GPU."""

import os
import platform
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from gpu_stages.stage import Stage
from gpu_stages.timing import product_rate, seconds_of
from hpm_video.bench.report import machine_facts
from hpm_video.runtime.gpu_kernels import runs_triton
from hpm_video.runtime.gpus import driver_version

ROOT = Path(__file__).resolve().parents[2]


def run(stage: Stage) -> None:
    facts = machine_facts(stage.device)
    stage.row(str(facts["device"]), **versions(stage))
    stage.row("host", processor=facts["processor"], cores=os.cpu_count())
    with stage.measuring("product"):
        precisions = stage.either(("bfloat16", "float32"), ("float32",))
        rates = {name: 2 * product_rate(stage, name) / 1e12 for name in precisions}
        stage.row("matrix product, TFLOP/s", **rates)
    with stage.measuring("copies"):
        copies(stage)
    with stage.measuring("pytest -m gpu"):
        gpu_tests(stage)


def versions(stage: Stage) -> dict[str, str | float | None]:
    found: dict[str, str | float | None] = {}
    if stage.on_gpu:
        properties = torch.cuda.get_device_properties(stage.device)
        found["gb"] = round(properties.total_memory / 1e9, 1)
        found["capability"] = f"{properties.major}.{properties.minor}"
        found["driver"] = driver_version()
        found["Triton"] = "runs" if runs_triton(stage.device) else "does not run: see the log"
    return {
        **found,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def copies(stage: Stage) -> None:
    """Rates of copies on the device (read and written bytes both count), and from the host."""
    count = stage.either(2**30, 2**24)
    one, target = (torch.zeros(count, dtype=torch.uint8, device=stage.device) for _ in range(2))
    pageable = torch.ones(count // 4, dtype=torch.uint8)
    hosts = {"from pageable memory": pageable}
    if stage.on_gpu:
        hosts["from pinned memory"] = pageable.pin_memory()
    rates = {"on the device": 2 * count / seconds_of(stage, lambda: target.copy_(one)) / 1e9}
    for name, host in hosts.items():
        to = target[: len(host)]
        seconds = seconds_of(stage, partial(to.copy_, host, non_blocking=True))
        rates[name] = len(host) / seconds / 1e9
    stage.row("copies, GB/s", **rates)


def gpu_tests(stage: Stage) -> None:
    """Run the tests marked gpu, of the files that have any."""
    what = "pytest -m gpu"
    tests = ROOT / "tests"
    files = sorted(str(f) for f in tests.rglob("test_*.py") if "mark.gpu" in f.read_text())
    reasons = {
        "needs CUDA": not stage.on_gpu,
        "this clone has no tests": not files,
        "pytest is not installed": find_spec("pytest") is None,
    }
    if why := next((reason for reason, holds in reasons.items() if holds), ""):
        stage.row(what, note=f"not run: {why}")
        return
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False,
            timeout=max(1, stage.seconds_left),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        stage.row(what, note="not finished: no time left")
        return
    sys.stdout.write(done.stdout + done.stderr)
    last = done.stdout.strip().splitlines()[-1:] or ["no output"]
    stage.row(what, ok=done.returncode == 0, note=last[0].strip("= "))
