"""The cost model of scale, against numbers worked out by hand and its own limits."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpm_video.bench.cost_model import Job, Machine, predict
from hpm_video.bench.variants import variant_name
from hpm_video.cli.main import main
from hpm_video.config import PretrainConfig

CONFIG = "configs/pretrain/ssv2_base.yaml"
DEFAULT = variant_name(PretrainConfig())

JOB = Job(
    num_videos=102_400,
    epochs=10,
    repeats=2,
    batch_size=16,
    accumulation=1,
    total_batch=1024,
    gradient_bytes=400e6,
    checkpoint_bytes=1.2e9,
    checkpoint_minutes=10,
    saves_in_background=True,
)
MACHINE = Machine(
    clips_per_s=1000,
    gpus_per_node=8,
    node_gb_s=100,
    network_gb_s=10,
    overlap=0.5,
    launch_ms=5,
    cores_per_gpu=20,
    clips_per_core=100,
    video_kb=200,
    copy_gb_s=2,
    storage_gb_s=1,
)
INFINITE = replace(
    MACHINE, node_gb_s=1e12, network_gb_s=1e12, launch_ms=0, clips_per_core=1e12, copy_gb_s=1e12
)
COUNTS = [2**power for power in range(10)]


def test_one_gpu_by_hand() -> None:
    found = predict(JOB, MACHINE, 1)
    # 2048 clips at 1000 a second; no gradients to send; the loader reads 2000 a second
    assert (found.compute_ms / 1e3, found.all_reduce_ms / 1e3, found.waited_ms / 1e3) == (
        2.048,
        0,
        0,
    )
    assert found.loader_ms / 1e3 == pytest.approx(1.024) and found.step_ms / 1e3 == 2.048
    # 1000 steps, and 0.6 s of copying every 600 s
    assert found.hours == pytest.approx(1000 * 2.048 * 1.001 / 3600)
    assert found.clips_per_s == pytest.approx(1000 / 1.001)
    assert found.bottleneck == "compute"
    assert found.cores_per_gpu_needed == pytest.approx(10)
    assert found.gb_s_read == pytest.approx(500 * 200e3 / 1e9)


def test_64_gpus_by_hand() -> None:
    found = predict(JOB, MACHINE, 64)
    # 16 videos, 32 clips each; between nodes 2 * 63/64 * 0.4 GB at 10 GB/s
    assert found.compute_ms / 1e3 == pytest.approx(0.032)
    assert found.all_reduce_ms / 1e3 == pytest.approx(0.07875)
    # of which half of the backward pass hides: 0.5 * 2/3 * 32 ms
    assert found.waited_ms / 1e3 == pytest.approx(0.07875 - 0.032 / 3)
    assert found.step_ms / 1e3 == pytest.approx(0.032 + found.waited_ms / 1e3)
    assert found.bottleneck == "gradients"
    assert found.gb_s_per_gpu_needed == pytest.approx(0.7875 / (0.032 / 3))
    assert found.cores_per_gpu_needed == pytest.approx(32 / (found.step_ms / 1e3) / 100)
    assert found.clips_per_s == pytest.approx(2048 / (found.step_ms / 1e3) / 1.001)
    within_a_node = predict(JOB, MACHINE, 8)
    assert within_a_node.all_reduce_ms / 1e3 == pytest.approx(2 * 7 / 8 * 0.4 / 100)


def test_micro_batches_hide_less_and_start_more() -> None:
    # 128 videos each: 8 micro-batches of 16, the last of which hides its share only
    found = predict(JOB, replace(MACHINE, node_gb_s=5), 8)
    assert found.compute_ms / 1e3 == pytest.approx(0.256)
    assert found.waited_ms / 1e3 == pytest.approx(2 * 7 / 8 * 0.4 / 5 - 0.256 / 8 / 3)
    slow_host = predict(JOB, replace(MACHINE, launch_ms=50), 8)
    assert slow_host.compute_ms / 1e3 == pytest.approx(0.4)
    assert slow_host.bottleneck == "kernel launches"


def test_without_limits_it_scales_linearly() -> None:
    one = predict(JOB, INFINITE, 1)
    for count in COUNTS:
        found = predict(JOB, INFINITE, count)
        assert found.bottleneck == "compute"
        assert found.clips_per_s == pytest.approx(count * one.clips_per_s)
        assert found.efficiency == pytest.approx(1) and found.hours == pytest.approx(
            one.hours / count
        )


@pytest.mark.parametrize(
    "job", [JOB, replace(JOB, total_batch=None), replace(JOB, is_sharded=True)]
)
def test_more_gpus_are_never_slower_within_a_kind_of_link(job: Job) -> None:
    # Nor is a checkpoint, whose copy FSDP shares out
    machine = replace(MACHINE, network_gb_s=MACHINE.node_gb_s, copy_gb_s=1e12)
    rates = [predict(job, machine, count).clips_per_s for count in COUNTS]
    assert rates == sorted(rates)
    shares = [round(predict(job, machine, count).efficiency, 9) for count in COUNTS]
    assert shares == sorted(shares, reverse=True) and shares[0] <= 1


@pytest.mark.parametrize(
    ("changed", "bottleneck"),
    [
        ({"clips_per_core": 10}, "loader"),
        ({"cores_per_gpu": 2}, "loader"),
        ({"network_gb_s": 0.1, "cores_per_gpu": 100}, "gradients"),
        ({"launch_ms": 1000}, "kernel launches"),
        ({"copy_gb_s": 1e-3}, "checkpoints"),
    ],
)
def test_what_is_slow_is_named(changed: dict[str, float], bottleneck: str) -> None:
    slow = predict(JOB, replace(MACHINE, **changed), 64)
    assert slow.bottleneck == bottleneck
    assert slow.clips_per_s < predict(JOB, INFINITE, 64).clips_per_s / 2


def test_a_slow_loader_sets_the_pace_and_says_what_it_needs() -> None:
    slow = predict(JOB, replace(MACHINE, clips_per_core=10), 1)
    assert slow.step_ms / 1e3 == pytest.approx(2048 / 200)
    enough = replace(MACHINE, clips_per_core=10, cores_per_gpu=slow.cores_per_gpu_needed)
    assert predict(JOB, enough, 1).step_ms / 1e3 == pytest.approx(2.048)


def test_checkpoints_that_are_not_hidden() -> None:
    before = predict(replace(JOB, saves_in_background=False), MACHINE, 1)
    assert before.hours == pytest.approx(1000 * 2.048 * (1 + 1.2 / 600) / 3600)
    # 2000 s to write, 600 s apart
    huge = predict(replace(JOB, checkpoint_bytes=2e12), MACHINE, 1)
    assert huge.hours == pytest.approx(1000 * 2.048 * (1 + (1000 + 1400) / 600) / 3600)


def _plan(tmp_path: Path, *words: str) -> dict:
    file = tmp_path / "plan.json"
    assert main(["bench", "plan", CONFIG, *words, f"--json={file}"]) == 0
    return json.loads(file.read_text())


def test_bench_plan_of_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = _plan(tmp_path, "--gpus", "64", "--videos=168913", "--cores-per-gpu=30")
    (row,) = plan["rows"]
    # As in docs/scale.md: 164 steps an epoch; 134.0 x 10^9 multiply-adds of docs/performance.md
    rate = 989e12 * 0.2 / (2 * 134.0e9)
    assert row["compute_ms"] == pytest.approx(16 / rate * 1e3, rel=1e-3)
    assert row["hours"] == pytest.approx(800 * 164 * row["step_ms"] / 3.6e6, rel=1e-3)
    assert plan["settings"]["gradient_bytes"] == pytest.approx(4 * 96e6, rel=0.01)
    printed = capsys.readouterr().out
    for name, value in plan["settings"].items():
        assert f"{name} {value}" in printed
    assert [row["gpus"] for row in _plan(tmp_path, "--videos=168913")["rows"]] == COUNTS


def test_gpus_that_cannot_share_a_step_are_left_out(tmp_path: Path) -> None:
    rows = _plan(tmp_path, "--videos=9537", "optim.total_batch=192")["rows"]
    assert [(row["gpus"], row["videos_per_step"]) for row in rows] == [
        (2**power, 192) for power in range(7)
    ]
    rows = _plan(tmp_path, "--videos=9537", "optim.total_batch=null", "data.batch_size=4")["rows"]
    assert [(row["gpus"], row["videos_per_step"]) for row in rows] == [
        (count, 4 * count) for count in COUNTS
    ]
    rows = _plan(tmp_path, "--videos=99", "optim.total_batch=null", "data.batch_size=4")["rows"]
    assert [row["gpus"] for row in rows] == [1, 2, 4, 8, 16]  # of more, not one step is full


def test_bench_plan_takes_measured_figures(tmp_path: Path) -> None:
    step, loader = tmp_path / "step.json", tmp_path / "loader.json"
    settings = {"size": "base", "frames": 16, "crop_size": 224}
    rows = [
        {"step": "VideoMAE", "clips_per_s": 500.0},
        {"step": DEFAULT, "clips_per_s": 400.0},
    ]
    step.write_text(json.dumps({"bench": "step", "settings": settings, "rows": rows}))
    of_core = {"videos": "k400", "files": "raw", "loader": "ours", "decoder": "pyav", "repeats": 1}
    rows = [{**of_core, "repeats": 4, "clips_per_s": 90.0}, {**of_core, "clips_per_s": 20.0}]
    loader.write_text(json.dumps({"bench": "loader", "settings": {}, "rows": rows}))
    words = [f"--step-json={step}", f"--loader-json={loader}", "--like=k400", "--videos=100000"]
    found = _plan(tmp_path, *words)["settings"]
    assert (found["clips_per_s"], found["clips_per_core"]) == (400, 20)
    plain = ["loss.prediction=none", "masking.hard_ratio_end=0"]
    found = _plan(tmp_path, *words, "data.repeats=4", *plain)
    assert (found["settings"]["clips_per_s"], found["settings"]["clips_per_core"]) == (500, 90)


@pytest.mark.parametrize(
    "setting", ["masking.hard_ratio_end=0", "masking.decoder_mask_ratio=0.5", "teacher.draws=2"]
)
def test_a_step_that_bench_step_does_not_time_is_refused(
    setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = tmp_path / "step.json"
    settings = {"size": "base", "frames": 16, "crop_size": 224}
    rows = [{"step": DEFAULT, "clips_per_s": 400.0}]
    step.write_text(json.dumps({"bench": "step", "settings": settings, "rows": rows}))
    words = [CONFIG, f"--step-json={step}", "--videos=100000", setting]
    assert main(["bench", "plan", *words]) == 2
    name = setting.partition("=")[0]
    line = capsys.readouterr().err
    assert f"must come from bench train: bench step does not time the config's {name}\n" in line


@pytest.mark.parametrize("option", ["--step-json", "--loader-json"])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"settings": None}, "lacks settings or rows: must be a file that bench"),
        ({"rows": [None]}, "lacks settings or rows: must be a file that bench"),
        ({"settings": {}, "rows": [{}]}, ""),
        ({"rate": None}, "has clips_per_s None: must be a number above 0"),
        ({"rate": 0}, "has clips_per_s 0: must be a number above 0"),
    ],
)
def test_damaged_figures_are_refused(
    option: str,
    changed: dict[str, Any],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    others = dict(changed)
    rate = others.pop("rate", 20)
    of_core = {"videos": "ssv2", "files": "raw", "loader": "ours", "decoder": "pyav", "repeats": 1}
    row = {"step": DEFAULT, **of_core, "clips_per_s": rate}
    settings = {"size": "base", "frames": 16, "crop_size": 224}
    bench = option.removeprefix("--").removesuffix("-json")
    report = {"bench": bench, "settings": settings, "rows": [row], **others}
    file = tmp_path / "figures.json"
    file.write_text(json.dumps(report))
    assert main(["bench", "plan", CONFIG, "--videos=9999", f"{option}={file}"]) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith(f"hpm-video bench: {option} ({file})") and said in complaint
    assert complaint.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--videos (none) must be the number of videos"),
        (["--videos=9"], "--videos (9) must be at least 1024"),
        (["--videos=9999", "--gpus", "0"], "--gpus (0) must be at least 1"),
        (["--videos=9999", "--gpus", "2048"], "--gpus (2048) must divide optim.total_batch (1024)"),
        (["--videos=9999", "--overlap=2"], "--overlap (2.0) must be in [0, 1]"),
        (["--videos=9999", "--network-gb-s=0"], "--network-gb-s (0.0) must be above 0"),
        (["--videos=9999", "--step-json=nowhere"], "--step-json (nowhere) does not exist"),
        (["--videos=9999", f"--step-json={CONFIG}"], "is not JSON: must be a file that bench step"),
        (["--videos=9999", "--clips-per-s=inf"], "--clips-per-s (inf) must be above 0, and finite"),
        (["--videos=9999", "--launch-ms=inf"], "--launch-ms (inf) must be at least 0, and finite"),
        (["--videos=9999", "--teraflops=inf"], "--teraflops (inf) must be above 0, and finite"),
        (["--videos=9999", "--utilisation=1.5"], "--utilisation (1.5) must be in (0, 1]"),
        (
            ["--videos=99", "optim.total_batch=null", "data.batch_size=8", "--gpus", "8", "16"],
            "--videos (99) must be at least 128, the videos of one step on 16 GPUs",
        ),
        (
            ["--videos=9", "optim.total_batch=null", "data.batch_size=16"],
            "must be at least 16",
        ),
    ],
)
def test_bench_plan_refuses(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "plan", CONFIG, *words]) == 2
    assert said in capsys.readouterr().err


def test_this_machine_is_measured(
    tmp_path: Path, pretrain_arguments: Callable[..., list[str]]
) -> None:
    """Its steps, its reading of the list's videos, and its cores."""
    out = tmp_path / "plan.json"
    words = pretrain_arguments(tmp_path / "run", "data.num_workers=64")[1:]
    assert main(["bench", "plan", *words, "--here", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    settings = report["settings"]
    assert [row["gpus"] for row in report["rows"]] == [1]
    assert "measured here, " in report["notes"][0]
    assert "clips_per_core: videos of data.manifest" in report["notes"][0]
    assert 0 < settings["cores_per_gpu"] <= os.cpu_count() and settings["clips_per_core"] != 37.4
    # A model of two small blocks is far from what is assumed of an H100 and its base model
    assert 1 < settings["clips_per_s"] < 5000


def test_what_is_assumed_is_said_with_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "plan", CONFIG, "--videos", "4096", "--gpus", "1"]) == 0
    text = capsys.readouterr().out
    assert "assumed, not measured: 20% of 989 TFLOP/s; --here measures this machine (" in text
