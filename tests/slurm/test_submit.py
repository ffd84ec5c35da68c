"""Submission to a real SLURM cluster: what `hpm-video submit` says is what happens there."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import hpm_video
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.train.run.logs import read_records

Arguments = Callable[..., list[str]]
Run = Callable[..., subprocess.CompletedProcess[str]]
LIMIT_S = 240  # for what must happen: long, so that a slow machine fails no test
ON_CPU = ("--gpus-per-node", "0", "--time", "60")
PROGRAM = "import sys; from hpm_video.cli.main import main; sys.exit(main())"


@pytest.fixture
def run(cluster: Mapping[str, str], tmp_path: Path) -> Run:
    """A function (words..., environment) that runs `hpm-video` where the cluster is."""

    def run_words(*words: str, code: int = 0, **changes: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **cluster, "XDG_STATE_HOME": str(tmp_path / "state")}
        environment["PYTHONSAFEPATH"] = "1"  # not from the working directory
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *words],
            env={**environment, **changes},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run_words


def _slurm(cluster: Mapping[str, str], *command: str) -> str:
    environment = {**os.environ, **cluster}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout


def _submit(run: Run, *words: str, **changes: str) -> str:
    """The id of a new job."""
    told = run("submit", *words, **changes).stdout
    found = re.search(r"^job +(\d+): ", told, re.MULTILINE)
    assert found is not None, told
    return found[1]


def _jobs(run: Run) -> dict[str, dict[str, object]]:
    """What `hpm-video jobs` lists, by ids."""
    lines = run("jobs", "--json").stdout.splitlines()
    return {one["id"]: one for one in map(json.loads, lines)}


def _wait_for(run: Run, state: str, *ids: str) -> dict[str, dict[str, object]]:
    end = time.monotonic() + LIMIT_S
    while True:
        jobs = _jobs(run)
        states = [jobs[name]["state"] for name in ids]
        if states == [state] * len(ids):
            return jobs
        logs = [Path(str(jobs[name]["log"])) for name in ids]
        texts = [log.read_text() for log in logs if log.exists()]
        assert time.monotonic() < end, f"{states}, not {state}:\n" + "\n".join(texts)
        time.sleep(1)


def test_a_queued_job_runs_what_was_submitted(
    run: Run, cluster: Mapping[str, str], tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    """On two nodes, while code and YAML are changed before it starts, and paths are relative."""
    sources = tmp_path / "hpm_video"
    shutil.copytree(Path(hpm_video.__file__).parent, sources)
    _, _, *settings = pretrain_arguments(Path("runs/one"), "optim.epochs=1")
    (tmp_path / "run.yaml").write_text("slurm: {nodes: 2}\n")
    words = ("pretrain", "run.yaml", *settings, *ON_CPU, "--extra", "hold")
    job = _submit(run, *words, PYTHONPATH=str(tmp_path), PYTHONSAFEPATH="")
    (sources / "__init__.py").write_text("raise SystemExit('the sources of today')\n")
    (tmp_path / "run.yaml").write_text("optim: {epoch: 3}\n")
    assert _jobs(run)[job]["state"] == "PENDING"
    _slurm(cluster, "scontrol", "release", job)
    listed = _wait_for(run, "COMPLETED", job)[job]
    records = read_records(tmp_path / "runs" / "one")
    assert [record["step"] for record in records] == [2, 3]  # 24 videos, two processes with four
    assert (listed["epoch"], listed["loss"]) == (1.0, records[-1]["loss"])
    text = run("jobs", "follow", job).stdout
    assert text == Path(str(listed["log"])).read_text()
    assert "3 steps in all" in text


def test_a_sweep_is_one_array_of_runs(
    run: Run, cluster: Mapping[str, str], tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    arguments = pretrain_arguments(Path("sweep"), "optim.epochs=1")
    sweep = "optim.base_lr=0.01,0.02 masking.hard_ratio_end=0.5,1.0"
    job = _submit(run, *arguments, *ON_CPU, "--sweep", sweep)
    tasks = [f"{job}_{task}" for task in range(4)]
    info = _slurm(cluster, "scontrol", "-o", "show", "job", job)
    assert len(re.findall(rf"ArrayJobId={job} ", info)) >= 1
    jobs = _wait_for(run, "COMPLETED", *tasks)
    assert list(jobs) == tasks
    losses = set()
    combinations = [(lr, ratio) for lr in ("0.01", "0.02") for ratio in ("0.5", "1.0")]
    for task, (lr, ratio) in zip(tasks, combinations, strict=True):
        folder = tmp_path / "sweep" / f"base_lr={lr},hard_ratio_end={ratio}"
        assert jobs[task]["run_folder"] == str(folder)
        *_, last = read_records(folder)
        assert last["step"] == 6
        assert last["hard_ratio"] == float(ratio)
        assert jobs[task]["loss"] == last["loss"]
        losses.add(last["loss"])
    assert len(losses) == 4


def test_a_job_is_requeued_and_cancelled(
    run: Run, cluster: Mapping[str, str], tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    arguments = pretrain_arguments(Path("long"), "optim.epochs=100000", "run.log_every=1")
    job = _submit(run, *arguments, *ON_CPU)
    _wait_for(run, "RUNNING", job)
    again = run("submit", *arguments, *ON_CPU, code=2).stderr
    assert f"is that of job {job} (RUNNING)" in again
    assert run("jobs", "requeue", job).stdout == f"{job}: requeued\n"
    end = time.monotonic() + LIMIT_S
    while "Restarts=1 " not in (info := _slurm(cluster, "scontrol", "-o", "show", "job", job)):
        assert time.monotonic() < end, info
        time.sleep(1)
    assert run("jobs", "cancel", job).stdout == f"{job}: cancelled\n"
    _wait_for(run, "CANCELLED", job)


def test_parts_of_a_transcoding(run: Run, tmp_path: Path, toy: Path) -> None:
    words = ("data", "transcode", str(toy), "-o", "small", "--workers", "1", "--short-side", "16")
    told = run("submit", *words, "--array", "2", "--time", "60").stdout
    job = re.search(r"^job +(\d+): ", told, re.MULTILINE)[1]
    _wait_for(run, "COMPLETED", f"{job}_0", f"{job}_1")
    afterwards = re.search(r"^afterwards +hpm-video (.*)$", told, re.MULTILINE)[1]
    assert "24 videos were there" in run(*afterwards.split()).stdout
    assert len(read_manifest([str(tmp_path / "small" / toy.name)], root=None, labels=True)) == 24


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--nodes", "3"], ["slurm.nodes (3)", "at most 2"]),
        (["--gpus-per-node", "9"], ["slurm.gpus_per_node (9)", "at most 8"]),
        (["--partition", "nowhere"], ["slurm.partition (nowhere)", "high, low"]),
        (["--constraint", "none"], ["sbatch refused the job: ", "Invalid feature"]),
        (["--dependency", "nothing:1"], ["sbatch refused the job: ", "dependency"]),
    ],
)
def test_what_the_cluster_cannot_do(
    run: Run, tmp_path: Path, pretrain_arguments: Arguments, words: list[str], parts: list[str]
) -> None:
    before = sorted(tmp_path.iterdir())
    done = run("submit", *pretrain_arguments(Path("runs/one")), *ON_CPU, *words, code=2)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_what_a_dry_run_prints_sbatch_takes(
    run: Run, cluster: Mapping[str, str], tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    options = ("--nodes", "2", "--gpus-per-node", "4", "--mem", "1G", "--partition", "high")
    arguments = pretrain_arguments(Path("runs/one"))
    script = run("submit", "--dry-run", *arguments, *options, "--extra", "exclusive").stdout
    (tmp_path / "script.sh").write_text(script)
    _slurm(cluster, "sbatch", "--test-only", str(tmp_path / "script.sh"))
    assert not (tmp_path / "runs").exists()
