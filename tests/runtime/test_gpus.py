"""Why a process sees no GPU, on simulated machines: what is said, and when a CPU is taken."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hpm_video.cli.main import main
from hpm_video.runtime import distributed
from hpm_video.runtime.distributed import pick_device
from hpm_video.runtime.gpus import GpuFacts, driver_version, gpu_facts, without_gpu

NODE = GpuFacts(
    signs=("/dev/nvidia0", "SLURM_JOB_GPUS=0"),
    files=("/dev/nvidia0",),
    driver="535.104.05",
    pytorch="2.11.0+cu130",
    cuda="13.0",
    said="No CUDA GPUs are available",
)
TOO_OLD = "The NVIDIA driver on your system is too old (found version 12020)"
CPU_BUILD = replace(
    NODE, pytorch="2.11.0+cpu", cuda=None, said="Torch not compiled with CUDA enabled"
)
WHYS = {
    "a build for CPUs": (
        CPU_BUILD,
        ["2.11.0+cpu is built without CUDA", "pip install --force-reinstall torch==2.11.0"],
    ),
    "an old driver": (
        replace(NODE, said=TOO_OLD),
        ["driver (535.104.05) is too old", "CUDA 13.0", "found version 12020", "update the driver"],
    ),
    "no permission": (
        replace(NODE, forbidden="/dev/nvidia0"),
        ["no permission to open /dev/nvidia0", "--gpus-per-node"],
    ),
    "no driver": (
        replace(NODE, signs=("SLURM_GPUS_ON_NODE=4",), files=(), driver=None),
        ["no NVIDIA driver is loaded", "SLURM_GPUS_ON_NODE=4", "apptainer --nv"],
    ),
    "a container without them": (replace(NODE, files=()), ["no device files", "docker --gpus all"]),
    "a wrong number": (replace(NODE, visible="7"), ["CUDA_VISIBLE_DEVICES (7)", "nvidia-smi"]),
    "something else": (NODE, ["No CUDA GPUs are available", "nvidia-smi works"]),
}


def _simulate(monkeypatch: pytest.MonkeyPatch, facts: GpuFacts) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(distributed, "gpu_facts", lambda: facts)
    distributed._say_hidden.cache_clear()


@pytest.mark.parametrize("why", WHYS)
def test_a_cpu_in_the_place_of_gpus_is_an_error_that_says_why(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, words = WHYS[why]
    _simulate(monkeypatch, facts)
    for value in ("auto", "cuda"):
        with pytest.raises(ValueError, match=rf"^run.device \({value}\) finds no GPU") as caught:
            pick_device(value, setting="run.device")
        message = str(caught.value)
        assert "\n" not in message
        for word in (*words, facts.signs[0], facts.said, "run.device=cpu"):
            assert word in message
    assert pick_device("cpu", setting="run.device").type == "cpu"


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles"])
def test_gpus_that_are_hidden_are_not_missed(
    hidden: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _simulate(monkeypatch, replace(CPU_BUILD, visible=hidden))
    for _ in range(2):
        assert pick_device("auto", setting="run.device").type == "cpu"
    said = "device: cpu, because CUDA_VISIBLE_DEVICES hides the GPUs\n"
    assert capsys.readouterr().err == said  # once
    with pytest.raises(ValueError, match=f"CUDA_VISIBLE_DEVICES \\('{hidden}'\\) hides them"):
        pick_device("cuda", setting="run.device")


def test_a_machine_without_gpus_is_a_cpu_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for facts in (GpuFacts(), GpuFacts(visible="")):
        _simulate(monkeypatch, facts)
        assert pick_device("auto", setting="run.device").type == "cpu"
        with pytest.raises(ValueError, match="this machine has none: use cpu"):
            pick_device("cuda", setting="run.device")
    assert capsys.readouterr() == ("", "")


def test_an_option_is_named_as_one_types_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "choose --device cpu" in without_gpu(NODE, setting="--device", value="cuda")
    _simulate(monkeypatch, NODE)
    assert main(["bench", "step", "--size=tiny"]) == 2


def test_a_variable_that_is_left_over_shows_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = replace(NODE, signs=("CUDA_VISIBLE_DEVICES=0",), files=(), visible="0", driver=None)
    message = without_gpu(facts, setting="run.device", value="auto")
    assert "the machine has some" not in message
    assert "although the environment names some (CUDA_VISIBLE_DEVICES=0)" in message
    assert "if there are none, unset CUDA_VISIBLE_DEVICES" in message
    assert "the machine has some (/dev/nvidia0" in without_gpu(NODE, setting="x", value="auto")


def test_every_command_refuses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pretrained: Path,
    toy: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Those that take a device, before they do anything."""
    _simulate(monkeypatch, CPU_BUILD)
    run, videos = str(pretrained), str(toy)
    video = str(next(toy.parent.rglob("*.mp4"), toy))
    commands = [
        ["demo", "-o", str(tmp_path / "demo"), "--quick"],
        ["pretrain", "configs/demo/pretrain.yaml", f"data.manifest={videos}", f"-o={tmp_path}/run"],
        ["probe", run, "--train", videos, "--val", videos],
        ["features", run, "--manifest", videos, "-o", str(tmp_path / "features.npz")],
        ["visualize", run, video, "-o", str(tmp_path / "pictures")],
        ["bench", "memory", "--size=tiny"],
    ]
    for command in commands:
        assert main(command) == 2, command
        said = capsys.readouterr().err
        assert "built without CUDA" in said
        own = command[0] in ("demo", "visualize", "bench")  # these have the option, no settings
        assert ("--device cpu" in said) == own and ("device=cpu" in said) != own, said
    assert not (tmp_path / "demo").exists()
    assert not (tmp_path / "run").exists()


def _machine(root: Path, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


DRIVERS = {
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 2023": "535.104.05",
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release": "580.82.07",
}


@pytest.mark.parametrize("line", DRIVERS)
def test_the_facts_of_a_machine(tmp_path: Path, line: str) -> None:
    root = _machine(tmp_path, "dev/nvidia1", "dev/nvidia0", "dev/nvidiactl", "dev/nvidia-uvm")
    _machine(root, "proc/driver/nvidia/gpus/0000:17:00.0/information")
    (root / "proc/driver/nvidia/version").write_text(f"{line}\nGCC version:  gcc 12.3.0\n")
    facts = gpu_facts({}, root=root)
    assert facts.signs == facts.files == ("/dev/nvidia0", "/dev/nvidia1")
    assert facts.driver == driver_version(root) == DRIVERS[line]
    assert facts.forbidden is None and facts.visible is None
    for name in ("nvidia0", "nvidia1"):  # root may open what nobody may: a folder it may not write
        (root / "dev" / name).unlink()
        (root / "dev" / name).mkdir()
    assert gpu_facts({}, root=root).forbidden == "/dev/nvidia0"


def test_a_host_tells_of_gpus_that_a_container_does_not_have(tmp_path: Path) -> None:
    root = _machine(tmp_path, "proc/driver/nvidia/gpus/0000:17:00.0/information")
    facts = gpu_facts({}, root=root)
    assert facts.signs == ("/proc/driver/nvidia/gpus/0000:17:00.0",) and not facts.files


@pytest.mark.parametrize(
    ("variable", "is_sign"),
    [
        ("SLURM_JOB_GPUS=0", True),  # its number
        ("SLURM_GPUS_ON_NODE=4", True),
        ("SLURM_GPUS_PER_NODE=a100:2", True),
        ("CUDA_VISIBLE_DEVICES=1,2", True),
        ("SLURM_GPUS_ON_NODE=0", False),
        ("SLURM_GPUS_PER_NODE=a100:0", False),
        ("SLURM_JOB_GPUS=", False),
        ("CUDA_VISIBLE_DEVICES=", False),
        ("SLURM_JOB_ID=7", False),
    ],
)
def test_the_signs_of_a_job(tmp_path: Path, variable: str, is_sign: bool) -> None:
    name, _, value = variable.partition("=")
    assert gpu_facts({name: value}, root=tmp_path).signs == ((variable,) if is_sign else ())


def test_pytorchs_own_words_are_those_of_its_error(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises((RuntimeError, AssertionError)) as caught:
        torch.cuda.init()
    said = gpu_facts(os.environ, root=tmp_path).said
    assert said and str(caught.value).startswith(said)
