"""Pre-training on a real SLURM cluster: whatever happens to a job, what comes out in the end is
what a run leaves that nothing happened to."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path

import pytest
import submitit
from paced import PacedJob
from runs import assert_same_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parents[2]
COMMAND = [
    sys.executable,
    "-c",
    "import sys; from hpm_video.cli.main import main; sys.exit(main())",
]
Arguments = Callable[..., list[str]]
LIMIT_S = 240  # for what must happen: long, so that a slow machine fails no test
NUM_STEPS = 60  # of two processes with four clips each, of 24 videos: three an epoch
PACE_S = 0.15

# Nothing but signals saves, and mostly not where a record is due
SETTINGS = (
    *("optim.epochs=20", "run.log_every=7", "model.drop_path=0.2", "teacher.token_ratio=0.5"),
    "run.checkpoint_every_minutes=1000",
)
# In a process of its own, which SLURM tells to end too. It takes as long to start as the task.
WITH_WORKER = "data.num_workers=1"


@pytest.fixture(autouse=True)
def _in_cluster(cluster: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in cluster.items():
        monkeypatch.setenv(name, value)
    yield
    # One test's jobs are not the next one's
    jobs = subprocess.run(
        ["squeue", "-h", "-o", "%A"], capture_output=True, text=True, check=True
    ).stdout.split()
    if jobs:
        subprocess.run(["scancel", "--signal=KILL", "--full", *jobs], check=False)
        subprocess.run(["scancel", *jobs], check=False)


def _submit(
    folder: Path,
    arguments: list[str],
    *,
    pace_s: float = PACE_S,
    max_timeouts: int = 3,
    **changes: object,
) -> submitit.Job[int]:
    """A job of two nodes with one task each, whose logs lie beside the run folder."""
    executor = submitit.SlurmExecutor(folder.with_name("jobs"), max_num_timeout=max_timeouts)
    # SLURM sends the warning of a time limit this long before. Not within 10 minutes of it, lest
    # submitit takes whatever comes for a time-out.
    wanted = {"time": 60, "signal_delay_s": 90, "nodes": 2, "ntasks_per_node": 1}
    executor.update_parameters(
        **{**wanted, "partition": "low", "srun_args": ["--kill-on-bad-exit=1"], **changes}
    )
    return executor.submit(PacedJob(arguments, pace_s))


def _field(job: submitit.Job[int], name: str) -> str:
    """What SLURM knows of a job."""
    shown = subprocess.run(
        ["scontrol", "-o", "show", "job", job.job_id], capture_output=True, text=True, check=True
    ).stdout
    return dict(word.split("=", 1) for word in shown.split() if "=" in word)[name]


def _logs(job: submitit.Job[int]) -> str:
    """All that its tasks wrote."""
    files = sorted(Path(job.paths.folder).glob(f"{job.job_id}_*_log.*"))
    return "\n".join(file.read_text(errors="replace") for file in files)


def _until(
    condition: Callable[[], bool], what: str, job: submitit.Job[int], *, limit_s: int = LIMIT_S
) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {limit_s} s\n{_logs(job)}"
        time.sleep(0.1)


def _num_records(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _until_under_way(folder: Path, job: submitit.Job[int]) -> None:
    """Until two records are there, with most of the run to come."""
    _until(lambda: _num_records(folder) >= 2, "two records", job)
    assert _num_records(folder) < 7, "too late to interfere"


def _until_ended(job: submitit.Job[int], *states: str) -> None:
    over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    _until(lambda: _field(job, "JobState") in over, "its end", job)
    assert _field(job, "JobState") in states, _logs(job)


def _tasks(job: submitit.Job[int]) -> dict[int, int]:
    """Process ids of a job's tasks by their ranks."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "environ").read_bytes().split(b"\0") if folder.name.isdigit() else []
            command = (folder / "cmdline").read_bytes() if words else b""
        except OSError:
            continue
        of_job = f"SLURM_JOB_ID={job.job_id}".encode() in words
        if of_job and b"submitit.core._submit" in command and b"python" in command.split(b"\0")[0]:
            (rank,) = [int(word[13:]) for word in words if word.startswith(b"SLURM_PROCID=")]
            found[rank] = int(folder.name)
    return found


def _restarts(folder: Path) -> list[int]:
    """Steps after which the run was continued."""
    file = folder / "log.txt"
    text = file.read_text() if file.exists() else ""
    return [int(step) for step in re.findall(r"continues after step (\d+) of", text)]


@pytest.fixture(scope="module")
def arguments(pretrain_arguments: Arguments) -> Arguments:
    return lambda folder, *settings: pretrain_arguments(folder, *SETTINGS, *settings)


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, arguments: Arguments, cluster: Mapping[str, str]
) -> Path:
    """The folder of a run by `torchrun`, without SLURM, that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    launch = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--no-python"),
    ]
    subprocess.run([*launch, *COMMAND, *arguments(folder)], env=cluster, timeout=300, check=True)
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]
    assert steps == [7, 14, 21, 28, 35, 42, 49, 56, NUM_STEPS]
    return folder


def _assert_same_as(undisturbed: Path, folder: Path, job: submitit.Job[int]) -> None:
    _until_ended(job, "COMPLETED")
    assert job.results() == [0, 0]
    assert_same_run(folder, undisturbed)


def test_submitit(tmp_path: Path, arguments: Arguments, undisturbed: Path) -> None:
    folder = tmp_path / "run"
    job = _submit(folder, arguments(folder), pace_s=0)
    _assert_same_as(undisturbed, folder, job)
    assert _restarts(folder) == []


def test_srun(
    tmp_path: Path, arguments: Arguments, undisturbed: Path, cluster: Mapping[str, str]
) -> None:
    """As it is, and though the shell it is called from believes to be part of another run."""
    folder = tmp_path / "run"
    other = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "nowhere", "MASTER_PORT": "1"}
    done = subprocess.run(
        ["srun", "--nodes=2", "--ntasks=2", "--kill-on-bad-exit=1", *COMMAND, *arguments(folder)],
        env={**cluster, **other},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("starts from scratch") == 1
    assert_same_run(folder, undisturbed)


@pytest.mark.parametrize("whom", ["all and their children", "one"])
def test_usr2_saves_requeues_and_goes_on(
    tmp_path: Path, arguments: Arguments, undisturbed: Path, whom: str
) -> None:
    """As at a time limit; and as if only the task that is not the first one heard of it."""
    folder = tmp_path / "run"
    workers = [] if whom == "one" else [WITH_WORKER]
    job = _submit(folder, arguments(folder, *workers))
    _until_under_way(folder, job)
    if whom == "one":
        os.kill(_tasks(job)[1], signal.SIGUSR2)
    else:
        subprocess.run(["scancel", "--signal=USR2", job.job_id], check=True)
    _assert_same_as(undisturbed, folder, job)
    assert _field(job, "Restarts") == "1"
    (step,) = _restarts(folder)
    assert 14 <= step < NUM_STEPS
    assert f"SIGUSR2: stopped and saved after step {step} of {NUM_STEPS}" in _logs(job)
    assert f"Requeued job {job.job_id} (3 remaining timeouts)" in _logs(job)


def test_requeued_from_outside(tmp_path: Path, arguments: Arguments, undisturbed: Path) -> None:
    """And meanwhile, a second start is refused, though it has the same settings."""
    folder = tmp_path / "run"
    job = _submit(folder, arguments(folder), pace_s=1.0)
    _until_under_way(folder, job)
    second = subprocess.run(
        ["srun", "--nodes=2", "--ntasks=2", *COMMAND, *arguments(folder)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert second.returncode == 2
    (line, also) = [line for line in second.stderr.splitlines() if "hpm-video" in line]
    assert f"run.output_dir ({folder}) is in use by another process (process " in line
    assert f"SLURM job {job.job_id}): stop it first" in line
    assert line == also
    subprocess.run(["scontrol", "requeue", job.job_id], check=True)
    _assert_same_as(undisturbed, folder, job)
    assert _field(job, "Restarts") == "1"
    assert "SIGTERM: the job is being ended, so it does not requeue itself" in _logs(job)
    assert len(_restarts(folder)) == 1


def test_preempted(tmp_path: Path, arguments: Arguments, undisturbed: Path) -> None:
    folder = tmp_path / "run"
    job = _submit(folder, arguments(folder, WITH_WORKER), exclusive=True)
    _until_under_way(folder, job)
    prior = subprocess.run(
        ["srun", "--partition=high", "--nodes=2", "--exclusive", "true"],
        timeout=LIMIT_S,
        check=False,
    )
    assert prior.returncode == 0
    _assert_same_as(undisturbed, folder, job)
    assert _field(job, "Restarts") == "1"
    assert len(_restarts(folder)) == 1


def test_a_killed_task_ends_the_job_and_a_new_one_continues(
    tmp_path: Path, arguments: Arguments, undisturbed: Path
) -> None:
    folder = tmp_path / "run"
    often = arguments(folder, "run.checkpoint_every_minutes=0")
    job = _submit(folder, often)
    _until_under_way(folder, job)
    os.kill(_tasks(job)[1], signal.SIGKILL)
    _until_ended(job, "FAILED")
    assert re.search(r"task 1: Killed|lost another process, which has ended", _logs(job))
    assert _field(job, "Restarts") == "0"
    again = _submit(folder, often, pace_s=0)
    _assert_same_as(undisturbed, folder, again)
    (step,) = _restarts(folder)
    assert 13 <= step < NUM_STEPS  # the second record is written just before step 14 is saved


def _logged(folder: Path) -> list[tuple[int, float]]:
    """Steps and losses in MLflow's database of a run, in the order they came."""
    database = folder / "mlflow.db"
    if not database.exists():
        return []
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        words = "SELECT step, value FROM metrics WHERE key = 'pretrain/loss' ORDER BY timestamp"
        with suppress(sqlite3.OperationalError):  # its tables are being made
            return connection.execute(words).fetchall()
    return []


def test_loggers_show_one_run_through_a_requeue_and_a_kill(
    tmp_path: Path, arguments: Arguments, undisturbed: Path
) -> None:
    """TensorBoard and MLflow, which had records of steps that the kill took and are done again."""
    for package in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(package)
    folder = tmp_path / "run"
    command = arguments(folder, "run.loggers=[tensorboard,mlflow]")
    job = _submit(folder, command, pace_s=0.7)
    _until_under_way(folder, job)
    subprocess.run(["scancel", "--signal=USR2", job.job_id], check=True)
    _until(lambda: len(_restarts(folder)) == 1, "its requeue", job)
    (saved,) = _restarts(folder)
    _until(lambda: any(step > saved for step, _ in _logged(folder)), "a new record", job)
    os.kill(_tasks(job)[0], signal.SIGKILL)
    _until_ended(job, "FAILED")
    assert len(before := _logged(folder)) < 9, "too late to interfere"
    again = _submit(folder, command, pace_s=0)
    _assert_same_as(undisturbed, folder, again)
    assert _restarts(folder) == [saved, saved]
    records = [json.loads(line) for line in (undisturbed / "metrics.jsonl").open()]
    truth = [(record["step"], record["loss"]) for record in records]
    assert _logged(folder) == truth and before == truth[: len(before)]
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("pretrain/loss")]
    assert shown == [(step, pytest.approx(loss)) for step, loss in truth]
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        assert connection.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]
    assert "run.loggers" not in (folder / "log.txt").read_text()


def test_a_task_that_hangs_is_reported(tmp_path: Path, arguments: Arguments) -> None:
    folder = tmp_path / "run"
    job = _submit(folder, arguments(folder, "run.collective_timeout_s=5"))
    _until_under_way(folder, job)
    os.kill(_tasks(job)[1], signal.SIGSTOP)
    _until_ended(job, "FAILED")
    assert "got no answer from the other ranks within run.collective_timeout_s (5)" in _logs(job)
    assert "Traceback" not in _logs(job)


def test_a_mistake_is_one_line_and_ends_the_job(tmp_path: Path, arguments: Arguments) -> None:
    folder = tmp_path / "run"
    job = _submit(folder, arguments(folder, "masking.mask_ratio=1.5"))
    _until_ended(job, "FAILED")
    assert "hpm-video pretrain: masking.mask_ratio (1.5) must be in (0, 1)" in _logs(job)
    assert "Traceback" not in _logs(job)


# SLURM looks at time limits every half a minute, and sends the warning up to as much too early
TWO_MINUTES = {"time": 2, "signal_delay_s": 60}


@pytest.mark.slow
def test_time_limit(tmp_path: Path, arguments: Arguments, undisturbed: Path) -> None:
    """A real one, again and again."""
    folder = tmp_path / "run"
    job = _submit(folder, arguments(folder), pace_s=1.5, max_timeouts=20, **TWO_MINUTES)
    _until(lambda: _num_records(folder) == 9, "all records", job, limit_s=5 * LIMIT_S)
    _assert_same_as(undisturbed, folder, job)
    assert len(_restarts(folder)) >= 1
    assert "Job has timed out" in _logs(job)


@pytest.mark.slow
def test_time_limits_are_limited(tmp_path: Path, arguments: Arguments) -> None:
    folder = tmp_path / "run"
    job = _submit(folder, arguments(folder), pace_s=2, max_timeouts=0, **TWO_MINUTES)
    _until_ended(job, "FAILED", "TIMEOUT")
    assert "Job not requeued because: timed-out too many times" in _logs(job)
    assert "submit the same command again to continue" in _logs(job)
    (step,) = re.findall(r"SIGUSR2: stopped and saved after step (\d+) of 60", _logs(job))
    assert (folder / "checkpoints" / "last").resolve().name == f"step_{int(step):08d}.pt"
