"""What a run says of its machine."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hpm_video.cli.main import main
from hpm_video.runtime import machine
from hpm_video.runtime.machine import describe_machine, device_words

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    about = SimpleNamespace(name="NVIDIA H200", total_memory=150_110_011_392, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 3))
    monkeypatch.setattr(machine, "driver_version", lambda: "570.86.15")


@pytest.mark.parametrize(("number", "version"), [(91002, "9.10.2"), (8902, "8.9.2")])
def test_gpus_are_named_with_all_that_tells_them_apart(
    gpu: None, monkeypatch: pytest.MonkeyPatch, number: int, version: str
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: number)
    words = device_words(CUDA)
    assert words == "NVIDIA H200 (140 GiB, compute capability 9.0, driver 570.86.15)"
    ranks = [(f"node{rank // 8}", words) for rank in range(16)]
    first, second = describe_machine(ranks, CUDA)
    assert first == f"machine: 16 ranks on 2 nodes: 16 x {words}"
    for part in (f"torch {torch.__version__}", "CUDA 12.8", f"cuDNN {version}", "NCCL 2.27.3"):
        assert part in second
    assert "TF32 off in matrix products, on in convolutions" in second


def test_unlike_devices_are_all_named() -> None:
    first, _ = describe_machine([("a", "A100"), ("a", "A100"), ("b", "V100")], CPU)
    assert first == "machine: 3 ranks on 2 nodes: 2 x A100; 1 x V100"


def test_the_log_begins_with_the_machine(
    tmp_path: Path, pretrain_arguments: Callable[..., list[str]]
) -> None:
    assert main(pretrain_arguments(tmp_path / "run", "optim.epochs=1")) == 0
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    cores = len(os.sched_getaffinity(0))
    assert "machine: 1 rank on 1 node: " in lines[1]
    assert f"({cores} core" in lines[1] and f"{torch.get_num_threads()} thread" in lines[1]
    assert f"software: torch {torch.__version__}" in lines[2]
