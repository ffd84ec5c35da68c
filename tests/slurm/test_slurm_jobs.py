"""`hpm-video jobs`: what it says of runs, from SLURM's answers and the run folders."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fake_slurm
import pytest

from hpm_video.cli.main import main
from hpm_video.slurm.run_progress import read_progress

JOB = ("pretrain", "run.yaml", "data.manifest=list.csv")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fake_slurm.FakeSlurm:
    """A faked SLURM in which job 42 is one run, ``runs/one``, and job 43 a sweep of two."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "list.csv").write_text("path\n" + "".join(f"{n}.mp4\n" for n in range(64)))
    (here / "run.yaml").write_text("{}\n")
    monkeypatch.chdir(here)
    fake = fake_slurm.install(tmp_path, monkeypatch)
    assert main(["submit", *JOB, "run.output_dir=runs/one"]) == 0
    fake.say("sbatch", "Submitted batch job 43\n")
    assert main(["submit", *JOB, "run.output_dir=runs/two", "--sweep", "run.seed=1,2"]) == 0
    return fake


def _rows(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, list[str]]:
    """The list, by ids, its columns two or more spaces apart."""
    capsys.readouterr()
    assert main(["jobs", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    assert cells[0] == ["ID", "JOB", "STATE", "EPOCH", "LOSS", "CLIPS/S", "ETA", "OUTPUT"]
    return {row[0]: row[1:] for row in cells[1:]}


def _refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["jobs", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def _write_run(folder: Path, *, last_s: float, epochs: int, steps: list[int]) -> None:
    """A run of 100 steps an epoch with records of these, the last of them at ``last_s``.

    Of each step a process has 2 x 2 videos, each with 4 clips.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(
        f"optim:\n  epochs: {epochs}\n  accumulation: 2\ndata:\n  batch_size: 2\n  repeats: 4\n"
    )
    records = [
        {"step": step, "epoch": step / 100, "loss": step / 1000, "clips_per_second": 64.0}
        for step in steps
    ]
    lines = ['0.5, "loss": 3}', *map(json.dumps, records), '{"step": 9']
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    os.utime(folder / "metrics.jsonl", (last_s, last_s))


def test_the_list_joins_the_queue_and_the_run_folders(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.say(
        "squeue",
        "42|RUNNING|None|2026-01-01T00:00:00\n43_0|PENDING|Resources|2030-02-03T04:05:06\n"
        "43_1|PENDING|Dependency|N/A\n9|RUNNING|None|N/A\n",
    )
    _write_run(Path("runs/one"), last_s=time.time(), epochs=20, steps=[200, 210, 240])
    for rank in range(4):
        Path(f"runs/one/slurm/42_{rank}_log.out").touch()
    rows = _rows(capsys)
    assert list(rows) == ["42", "43_0", "43_1"]
    # 1760 steps to go, one a second; the test may take some of them
    *figures, eta, folder = rows["42"]
    assert figures == ["pretrain", "RUNNING", "2.40/20", "0.24", "64"]
    assert eta in {f"29:{second}" for second in range(10, 21)}
    assert folder == "runs/one"
    *figures, folder = rows["43_0"]
    assert figures[1:] == ["PENDING (Resources)", "-", "-", "-", "starts 2030-02-03T04:05:06"]
    assert folder == "runs/two/seed=1"
    assert rows["43_1"][1:] == ["PENDING (Dependency)", "-", "-", "-", "-", "runs/two/seed=2"]
    assert list(_rows(capsys, "list", "43_1", "42")) == ["42", "43_0", "43_1"]
    assert list(_rows(capsys, "list", "42")) == ["42"]


def test_jobs_without_a_run_folder_show_where_they_write(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    """An evaluation's default, what -o says, the log of what is only printed."""
    Path("runs/one/checkpoints").mkdir(parents=True, exist_ok=True)
    Path("runs/one/checkpoints/last").write_bytes(b"")
    lists = ("--manifest", "list.csv")
    for number, job, place in (
        (50, ("evaluate", "runs/one", *lists), "runs/one/evaluation/list"),
        (51, ("evaluate", "runs/one", *lists, "-o", "there"), "there"),
        (52, ("features", "runs/one", *lists, "-o", "f.npz"), "f.npz"),
        (53, ("probe", "runs/one", "--train", "list.csv", "--val", "list.csv"), None),
    ):
        slurm.say("sbatch", f"Submitted batch job {number}\n")
        capsys.readouterr()
        assert main(["submit", *job]) == 0
        said = capsys.readouterr().out
        row = _rows(capsys)[str(number)]
        if place is None:
            assert "output  " not in said and row[-1].endswith(f"{number}_0_log.out")
        else:
            assert f"output      {place}\n" in said and row[-1] == place


def test_time_to_go_is_that_of_the_records(tmp_path: Path) -> None:
    """At the mean time for a clip; what has passed since the last one counts, and where nobody
    knows how many processes there are, nothing is said."""
    _write_run(tmp_path, last_s=1e9, epochs=10, steps=[100, 200, 300])
    assert read_progress(tmp_path, processes=4, now_s=1e9 + 50).remaining_s == 700 - 50
    assert read_progress(tmp_path, processes=8, now_s=1e9 + 50).remaining_s == 1400 - 50
    assert read_progress(tmp_path, processes=4, now_s=2e9).remaining_s == 0
    assert read_progress(tmp_path, now_s=1e9).remaining_s is None
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('\n{"step": 400, "epoch": 4.0, "loss": 0.5, "clips_per_second": 16}\n')
    os.utime(tmp_path / "metrics.jsonl", (1e9, 1e9))
    progress = read_progress(tmp_path, processes=4, now_s=1e9)
    assert (progress.epoch, progress.clips_per_second) == (4.0, 16)
    assert progress.remaining_s == 600 * (3 * 1 + 4) / 4
    config = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(config.replace("optim:", "optim:\n  total_batch: 4"))
    assert read_progress(tmp_path, now_s=1e9).remaining_s == 600 * (3 * 1 + 4) / 4 / 4


def test_a_run_that_has_nothing_yet(tmp_path: Path) -> None:
    assert read_progress(tmp_path / "nowhere").epoch is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "top1": 0.5}\n')
    (tmp_path / "config.yaml").write_text("[]")
    assert read_progress(tmp_path).loss is None


def test_what_the_queue_has_forgotten(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    """sacct knows it, where there is one; else the log."""
    slurm.say("sacct", "42|CANCELLED by 1000\n42.batch|FAILED\n43_0|COMPLETED\n")
    log = Path("runs/two/slurm/43_1_0_log.out")
    log.write_text("... Submitted job triggered an exception\n")
    states = {name: row[1] for name, row in _rows(capsys).items()}
    assert states == {"42": "CANCELLED", "43_0": "COMPLETED", "43_1": "FAILED"}
    slurm.say("sacct", "", error="Slurm accounting storage is disabled", code=1)
    assert _rows(capsys)["42"][1] == "ENDED"
    slurm.remove("sacct", "squeue")
    log.write_text("... Exiting after successful completion\n")
    assert _rows(capsys)["43_1"][1] == "COMPLETED"


def test_a_queue_that_does_not_answer_is_no_empty_one(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.say("squeue", "", error="slurm_load_jobs error: no contact\n", code=1)
    assert "squeue does not answer: slurm_load_jobs error: no contact" in _refusal(capsys)


def test_jobs_of_a_folder_and_of_nobody(
    slurm: fake_slurm.FakeSlurm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    capsys.readouterr()
    assert main(["jobs"]) == 0
    assert capsys.readouterr().out.startswith("no jobs: ")
    assert list(_rows(capsys, "--root", "runs/two")) == ["43_0", "43_1"]
    assert list(_rows(capsys, "--root", "runs")) == ["42", "43_0", "43_1"]
    assert "root (none) must be a folder" in _refusal(capsys, "--root", "none")


def test_a_damaged_record_hides_no_other(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("runs/one/slurm/jobs.jsonl").open("a") as file:
        file.write('[]\n{"id": "7"}\n{"id": ')
    assert list(_rows(capsys)) == ["42", "43_0", "43_1"]


def test_old_jobs_are_listed_on_demand(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path("runs/one/slurm/jobs.jsonl")
    record = json.loads(file.read_text())
    lines = []
    for number in range(100, 130):
        task = {**record["tasks"][0], "id": str(number)}
        later = f"2100-01-01T00:00:{number - 100:02d}"
        lines.append(json.dumps({**record, "id": str(number), "submitted": later, "tasks": [task]}))
    with file.open("a") as stream:
        stream.write("\n".join(lines) + "\n")
    slurm.say("squeue", "42|RUNNING|None|N/A\n")  # old, but not over
    rows = list(_rows(capsys))
    assert rows == ["42", *map(str, range(110, 130)), "and 12 older; --all lists them"]
    assert len(_rows(capsys, "--all")) == 33


def test_json_is_the_list_for_programs(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.say("squeue", "42|RUNNING|None|N/A\n")
    capsys.readouterr()
    assert main(["jobs", "--json"]) == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["id"] for one in objects] == ["42", "43_0", "43_1"]
    assert objects[0]["state"] == "RUNNING"
    assert objects[0]["run_folder"] == f"{os.getcwd()}/runs/one"
    assert objects[2]["label"] == "run.seed=2"


@pytest.mark.parametrize(
    ("words", "called", "arguments"),
    [
        (["cancel", "42"], "scancel", ["42"]),
        (["cancel", "43"], "scancel", ["43"]),
        (["cancel", "43_1", "42"], "scancel", ["43_1", "42"]),
        (["requeue", "43_0"], "scontrol", ["requeue 43_0"]),
    ],
)
def test_acts_go_to_slurm(
    slurm: fake_slurm.FakeSlurm, words: list[str], called: str, arguments: list[str]
) -> None:
    before = len(slurm.calls(called))
    assert main(["jobs", *words]) == 0
    assert slurm.calls(called)[before:] == arguments


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["cancel", "44"], ["ID (44)", "submitted"]),
        (["cancel", "43_2"], ["ID (43_2)"]),
        (["cancel", "42; rm"], ["ID (42; rm)", "123_4"]),
        (["cancel"], ["jobs cancel needs the ID"]),
        (["follow", "42", "43"], ["jobs follow (42 43)"]),
    ],
)
def test_only_our_jobs_are_acted_on(
    slurm: fake_slurm.FakeSlurm,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    parts: list[str],
) -> None:
    line = _refusal(capsys, *words)
    for part in parts:
        assert part in line
    assert slurm.calls("scancel") == []


def test_a_job_that_is_gone_is_submitted_again(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.say("scontrol", "", error="Invalid job id specified\n", code=1)
    line = _refusal(capsys, "requeue", "43_1")
    assert "Invalid job id specified" in line
    words = "run.yaml data.manifest=list.csv run.output_dir=runs/two"
    assert f"cd {os.getcwd()} && hpm-video submit pretrain {words}" in line


def test_a_log_is_followed_from_before_its_start_to_its_end(slurm: fake_slurm.FakeSlurm) -> None:
    slurm.say("squeue", "42|RUNNING|None|N/A\n")
    program = (
        "from hpm_video.slurm import jobs; jobs._POLL_S = 0.01; jobs._ASK_S = 0.05\n"
        "import sys; from hpm_video.cli.main import main; sys.exit(main(['jobs', 'follow', '42']))"
    )
    log = Path("runs/one/slurm/42_0_log.out")
    package = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(package)},
    )
    assert process.stdout is not None
    try:
        time.sleep(0.2)
        log.write_bytes(b"one\n")
        assert process.stdout.readline() == b"one\n"
        with log.open("ab") as file:
            file.write("zw\xf6i\n".encode())
        assert process.stdout.readline() == "zw\xf6i\n".encode()
        assert process.poll() is None
        # What a name in a log could make a terminal do is shown; a progress bar's steps are lines
        with log.open("ab") as file:
            file.write(b"10 %\r20 %\r\nunreadable: \x1b]0;title\x07\x1b[2Ja.mp4\t\xff\n")
        slurm.say("squeue", "42|COMPLETED|None|N/A\n")
        rest, _ = process.communicate(timeout=60)
        named = "unreadable: \\x1b]0;title\\x07\\x1b[2Ja.mp4\t\ufffd\n".encode()
        assert rest == b"10 %\n20 %\n" + named and process.returncode == 0
    finally:
        process.kill()
        process.stdout.close()


_RECORD: dict[str, Any] = {
    "id": "7", "job": "pretrain", "cluster": "local", "submitted": "2026", "host": "h",
    "cwd": "/", "command": ["pretrain"], "code": "/c",
    "tasks": [{"id": "7", "run_folder": None, "label": "", "log": "/l", "output": None}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "of_task"),
    [
        ({"job": [1]}, {}),
        ({"id": 7}, {}),
        ({"id": "--me"}, {}),
        ({"command": [1]}, {}),
        ({"tasks": []}, {}),
        ({}, {"id": 7}),
        ({}, {"id": "**/*"}),  # which names logs, by a pattern
        ({}, {"log": []}),
        ({}, {"label": [1]}),
        ({}, {"run_folder": 7}),
        ({}, {"output": {}}),
    ],
)
def test_records_that_others_made_hide_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: Any, of_task: Any
) -> None:
    odd = {**_RECORD, "tasks": [{**_RECORD["tasks"][0], **of_task}], **changed}
    lines = (json.dumps(record) + "\n" for record in (odd, {**_RECORD, "submitted": "2027"}))
    (tmp_path / "jobs.jsonl").write_text("".join(lines))
    assert list(_rows(capsys, "--root", str(tmp_path), "--all")) == ["7"]


@pytest.mark.parametrize(
    ("settings", "record"),
    [
        ("optim: {epochs: 5, accumulation: 10000000000000}\ndata: {batch_size: aaaaaaaa}", {}),
        ("optim: {epochs: .inf}\ndata: {batch_size: 2}", {"clips_per_second": 1.0}),
        ("optim: {epochs: 5}\ndata: {batch_size: 2}", {"clips_per_second": "fast"}),
        ("optim: {epochs: 5}\ndata: {batch_size: 2}", {"clips_per_second": 5e-324}),
        ("optim: {epochs: 5}\ndata: {batch_size: 2}", {"epoch": 5e-324}),
    ],
)
def test_progress_of_a_run_that_others_made(tmp_path: Path, settings: str, record: Any) -> None:
    """A text times a large number would be a text of terabytes."""
    (tmp_path / "config.yaml").write_text(settings)
    line = {"step": 1, "epoch": 1.0, "loss": 1.0, "clips_per_second": 1.0, **record}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    progress = read_progress(tmp_path, processes=3)
    assert progress.remaining_s is None
    assert progress.clips_per_second is None or isinstance(progress.clips_per_second, float)
