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


def _field(cluster: Mapping[str, str], job: str, name: str) -> str:
    """What SLURM knows of a job."""
    shown = _slurm(cluster, "scontrol", "-o", "show", "job", job)
    return dict(word.split("=", 1) for word in shown.split() if "=" in word)[name]


def _until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.5)


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


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
    assert f"is used by job {job} (RUNNING)" in again
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
    assert "24 videos were already done" in run(*afterwards.split()).stdout
    assert len(read_manifest([str(tmp_path / "small" / toy.name)], root=None, labels=True)) == 24


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--nodes", "3"], ["slurm.nodes (3)", "at most 2"]),
        (["--gpus-per-node", "9"], ["slurm.gpus_per_node (9)", "at most 8"]),
        (["--partition", "nowhere"], ["slurm.partition (nowhere)", "high, low"]),
        (["--constraint", "none"], ["sbatch: error: ", "Invalid feature", "sbatch refused"]),
        (["--dependency", "nothing:1"], ["sbatch: error: ", "dependency", "sbatch refused"]),
        (["--extra", "nonsense=1"], ["sbatch: unrecognized option", "Try", "sbatch refused"]),
        (
            ["--sweep", f"run.seed={','.join(map(str, range(2000)))}"],
            ["sweep (2,000 runs)", "at most 1,001", "MaxArraySize", "2 sweeps"],
        ),
    ],
)
def test_what_the_cluster_cannot_do(
    run: Run, tmp_path: Path, pretrain_arguments: Arguments, words: list[str], parts: list[str]
) -> None:
    before = sorted(tmp_path.iterdir())
    done = run("submit", *pretrain_arguments(Path("runs/one")), *ON_CPU, *words, code=2)
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if "warning: " not in line]
    *of_sbatch, last = lines
    assert last.startswith("hpm-video submit: ")
    assert bool(of_sbatch) == ("sbatch refused" in parts), done.stderr
    for part in parts:
        assert part in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_what_a_dry_run_prints_sbatch_takes(
    run: Run, cluster: Mapping[str, str], tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    options = ("--nodes", "2", "--gpus-per-node", "2", "--mem", "1G", "--partition", "high")
    arguments = pretrain_arguments(Path("runs/one"))
    script = run("submit", "--dry-run", *arguments, *options, "--extra", "exclusive").stdout
    (tmp_path / "script.sh").write_text(script)
    _slurm(cluster, "sbatch", "--test-only", str(tmp_path / "script.sh"))
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------- the user's environment


def test_variables_of_sbatch_are_heard_and_options_beat_them(
    run: Run, cluster: Mapping[str, str], pretrain_arguments: Arguments
) -> None:
    variables = {
        "SBATCH_PARTITION": "high",
        "SBATCH_TIMELIMIT": "47",
        "SBATCH_ACCOUNT": "lab",
        "SBATCH_JOB_NAME": "mine",
        "SBATCH_GPUS_PER_NODE": "4",
    }
    cpu = ("--gpus-per-node", "0", "--extra", "hold")
    of_job = {"Partition": "high", "TimeLimit": "00:47:00", "Account": "lab", "JobName": "mine"}
    job = _submit(run, *pretrain_arguments(Path("runs/one")), *cpu, **variables)
    assert {name: _field(cluster, job, name) for name in of_job} == of_job
    options = ("--partition", "low", "--time", "33", "--account", "other")
    again = _submit(run, *pretrain_arguments(Path("runs/two")), *cpu, *options, **variables)
    of_job |= {"Partition": "low", "TimeLimit": "00:33:00", "Account": "other"}
    assert {name: _field(cluster, again, name) for name in of_job} == of_job
    for one in (job, again):
        assert "gpu" not in _slurm(cluster, "scontrol", "-o", "show", "job", one)
    _slurm(cluster, "scancel", job, again)


def test_a_job_submitted_from_a_job_is_its_own(
    run: Run, cluster: Mapping[str, str], tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    arguments = pretrain_arguments(Path("runs/one"), "data.num_workers=0")
    inner = [sys.executable, "-c", PROGRAM, "submit", *arguments, *ON_CPU, "--extra", "hold"]
    outer = ("salloc", "--quiet", "--nodes=2", "--ntasks=4", "--time=7", "--cpus-per-task=2")
    done = subprocess.run(
        [*outer, *inner],
        env={**os.environ, **cluster, "XDG_STATE_HOME": str(tmp_path / "state")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    found = re.search(r"^job +(\d+): ", done.stdout, re.MULTILINE)
    assert found is not None, done.stdout + done.stderr
    of_job = {"NumNodes": "1-1", "NumTasks": "1", "CPUs/Task": "1", "TimeLimit": "01:00:00"}
    assert {name: _field(cluster, found[1], name) for name in of_job} == of_job
    assert Path(_field(cluster, found[1], "StdOut")).parent == tmp_path / "runs/one/slurm"
    _slurm(cluster, "scancel", found[1])


AGAINST_US = {
    "SBATCH_SIGNAL": "INT@1",
    "SBATCH_NO_REQUEUE": "1",
    "SBATCH_EXPORT": "NONE",
    "SBATCH_WAIT": "1",
    "SBATCH_OPEN_MODE": "truncate",
    "SBATCH_OUTPUT": "/dev/null",
    "SBATCH_ARRAY_INX": "0-1",
}


@pytest.mark.parametrize("by", ["scancel", pytest.param("time limit", marks=pytest.mark.slow)])
def test_a_run_resumes_whatever_the_environment_says(
    run: Run, cluster: Mapping[str, str], tmp_path: Path, pretrain_arguments: Arguments, by: str
) -> None:
    """SLURM looks at time limits every half a minute."""
    arguments = pretrain_arguments(Path("long"), "optim.epochs=100000", "run.log_every=1")
    limit = ("--time", "2", "--signal-delay-s", "60") if by == "time limit" else ("--time", "60")
    words = (*arguments, "--gpus-per-node", "0", *limit)
    done = run("submit", *words, **AGAINST_US)
    (line,) = (line for line in done.stderr.splitlines() if " ignores " in line)
    assert all(name in line for name in AGAINST_US)
    job = re.search(r"^job +(\d+): ", done.stdout, re.MULTILINE)[1]
    _until((tmp_path / "long" / "metrics.jsonl").exists, "a record")
    if by == "scancel":
        _slurm(cluster, "scancel", "--signal=USR2", job)
    log = Path(str(_jobs(run)[job]["log"]))
    _until(lambda: "continues after step" in _text(log), _text(log))
    assert (_field(cluster, job, "Requeue"), _field(cluster, job, "Restarts")) == ("1", "1")
    assert "SIGUSR2: stopped and saved" in _text(log)
    run("jobs", "cancel", job)


# ---------------------------------------------------------------- programs of the job


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--setup", "echo one", "--setup", "cat none.txt", "--setup", "echo two"),
            "one\ncat: none.txt: No such file or directory\n"
            "hpm-video: setup failed, the job ends: cat none.txt\n",
        ),
        (("--srun-extra", "nonsense=1"), "srun: unrecognized option '--nonsense=1'\n"),
    ],
)
def test_a_job_whose_start_fails_has_failed_and_says_why(
    run: Run,
    cluster: Mapping[str, str],
    tmp_path: Path,
    pretrain_arguments: Arguments,
    words: tuple[str, ...],
    said: str,
) -> None:
    job = _submit(run, *pretrain_arguments(Path("runs/one")), *ON_CPU, *words)
    listed = _wait_for(run, "FAILED", job)[job]
    assert _text(Path(str(listed["log"]))).startswith(said)
    assert not (tmp_path / "runs" / "one" / "metrics.jsonl").exists()


def test_a_run_in_a_container_resumes(
    run: Run, cluster: Mapping[str, str], tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    """The stand-in for apptainer notes its arguments and hides SLURM's programs, as an image does:
    the script requeues the job instead."""
    programs, inside = tmp_path / "programs", tmp_path / "inside"
    programs.mkdir()
    inside.mkdir()
    (inside / "env").symlink_to("/usr/bin/env")
    (programs / "apptainer").write_text(
        f'#!/bin/bash\necho "$@" >>{tmp_path}/calls\n'
        f'while [ "$1" != {tmp_path}/image.sif ]; do shift; done\nshift\n'
        f'PATH={inside} exec "$@"\n'
    )
    (programs / "apptainer").chmod(0o755)
    (tmp_path / "image.sif").touch()
    arguments = pretrain_arguments(Path("long"), "optim.epochs=100000", "run.log_every=1")
    options = ("--container", "image.sif", "--python", sys.executable)
    path = f"{programs}:{cluster['PATH']}"
    job = _submit(run, *arguments, *ON_CPU, *options, PATH=path)
    _until((tmp_path / "long" / "metrics.jsonl").exists, "a record")
    call = _text(tmp_path / "calls").split()
    assert call[:3] == ["exec", "--nv", "--bind"], call
    assert f"{tmp_path}:{tmp_path}" in call[3].split(",")
    assert call[4:7] == ["--pwd", str(tmp_path), f"{tmp_path}/image.sif"], call
    _slurm(cluster, "scancel", "--signal=USR2", job)
    log = Path(str(_jobs(run)[job]["log"]))
    _until(lambda: "continues after step" in _text(log), _text(log))
    assert "the job's script requeues it" in _text(log)
    assert _field(cluster, job, "Restarts") == "1"
    run("jobs", "cancel", job)


def test_a_run_in_a_container_of_pyxis(
    run: Run, cluster: Mapping[str, str], tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    """The stand-in for an srun with pyxis notes the options of the container, and leaves them out
    for the real one."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "srun").write_text(
        "#!/bin/bash\n"
        'if [ "$1" = --help ]; then echo " --container-image=IMAGE"; exit; fi\n'
        "for word; do case $word in\n"
        f'--container-*) echo "$word" >>{tmp_path}/calls ;;\n*) words+=("$word") ;;\nesac; done\n'
        f'exec {shutil.which("srun")} "${{words[@]}}"\n'
    )
    (programs / "srun").chmod(0o755)
    arguments = pretrain_arguments(Path("runs/one"), "optim.epochs=1")
    options = ("--container", "lab#torch", "--python", sys.executable)
    job = _submit(run, *arguments, *ON_CPU, *options, PATH=f"{programs}:{cluster['PATH']}")
    _wait_for(run, "COMPLETED", job)
    image, mounts, folder = _text(tmp_path / "calls").splitlines()
    assert (image, folder) == ("--container-image=lab#torch", f"--container-workdir={tmp_path}")
    assert f"{tmp_path}:{tmp_path}" in mounts.partition("=")[2].split(",")
    assert read_records(tmp_path / "runs" / "one")[-1]["step"] == 6
