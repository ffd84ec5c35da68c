"""`hpm-video submit`: what it asks of the cluster, what it refuses, and what it leaves."""

import os
import pickle
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import fake_slurm
import pytest
import submitit
import yaml

import hpm_video
from hpm_video.cli.main import main
from hpm_video.config import PretrainConfig
from hpm_video.config.settings import load_config
from hpm_video.runtime.job_secret import VARIABLE
from hpm_video.slurm import submit
from hpm_video.slurm.launch import _WITHOUT_HERE
from hpm_video.slurm.options import SlurmConfig
from hpm_video.slurm.snapshot import Snapshot
from hpm_video.slurm.storage import local_storage
from hpm_video.slurm.sweep import check_size, combinations
from hpm_video.slurm.times import UNLIMITED, duration, minutes_of
from hpm_video.train.run.logs import read_records

Arguments = Callable[..., list[str]]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fake_slurm.FakeSlurm:
    """A faked SLURM, and a working directory ``here`` with a list of videos and a YAML."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "list.csv").write_text("path\n" + "".join(f"{k}.mp4\n" for k in range(2048)))
    (here / "run.yaml").write_text("optim:\n  epochs: 100\n")
    monkeypatch.chdir(here)
    return fake_slurm.install(tmp_path, monkeypatch)


@pytest.fixture
def quiet_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """No warning of the storage that the tests use, which is this machine's."""
    monkeypatch.setattr(submit, "local_storage", lambda path: None)


JOB = ("pretrain", "run.yaml", "data.manifest=list.csv", "run.output_dir=runs/one")


def _dry_run(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    capsys.readouterr()
    assert main(["submit", "--dry-run", *words]) == 0
    return capsys.readouterr().out.splitlines()


def _refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a refusal, which leaves nothing."""
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert main(["submit", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("hpm-video submit: ")
    assert sorted(Path().rglob("*")) == before
    return captured.err


def _check(command: str) -> str:
    """The line after a setup command, without which the script would go on after a failure."""
    said = f"'hpm-video: setup failed, the job ends: {command}'"
    return f"code=$?; [ $code = 0 ] || {{ echo {said} >&2; exit $code; }}"


def _submitted_arguments(folder: Path) -> dict[str, list[str]]:
    """What the jobs of a folder are to run, by their ids: what submitit wrote is ours."""
    return {
        file.name.removesuffix("_submitted.pkl"): pickle.loads(file.read_bytes()).function.arguments
        for file in sorted(folder.glob("*_submitted.pkl"))
    }


# ---------------------------------------------------------------- the script


def test_every_line_of_the_script_is_that_of_an_option(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        *("--nodes", "2", "--gpus-per-node", "4", "--cpus-per-task", "10", "--mem", "400G"),
        *("--time", "1-12:30", "--partition", "low", "--account", "lab", "--qos", "fast"),
        *("--constraint", "a100", "--dependency", "afterok:7", "--comment", "mine"),
        *("--signal-delay-s", "300", "--extra", "mail-user=me@lab", "--extra", "exclusive"),
    ]
    lines = _dry_run(capsys, *JOB, *options, "--setup", "module load a", "--setup", "echo $HOME")
    folder = f"{os.getcwd()}/runs/one/slurm"
    code = re.search(rf"{folder}/code/[0-9a-f]{{12}}", "\n".join(lines))[0]
    config = re.search(rf"{folder}/configs/run-[0-9a-f]{{12}}.yaml", lines[-1])[0]
    assert lines == [
        "#!/bin/bash",
        "",
        "# Parameters",
        "#SBATCH --account=lab",
        "#SBATCH --comment=mine",
        "#SBATCH --constraint=a100",
        "#SBATCH --cpus-per-task=10",
        "#SBATCH --dependency=afterok:7",
        "#SBATCH --exclusive",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --job-name=pretrain-one",
        "#SBATCH --mail-user=me@lab",
        "#SBATCH --mem=400G",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --open-mode=append",
        f"#SBATCH --output={folder}/%j_0_log.out",
        "#SBATCH --partition=low",
        "#SBATCH --qos=fast",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR2@300",
        "#SBATCH --time=2190",
        "",
        "# setup",
        "eval 'module load a'",
        _check("module load a"),
        "eval 'echo $HOME'",
        _check("echo $HOME"),
        f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}",
        "export PYTHONSAFEPATH=1",
        "",
        "# command",
        "export SUBMITIT_EXECUTOR=slurm",
        f"srun --unbuffered --output {folder}/%j_%t_log.out --cpus-per-task=10 "
        f"--chdir={os.getcwd()} --kill-on-bad-exit=1 "
        f"{shlex.join([sys.executable, *_WITHOUT_HERE])} -u -m submitit.core._submit {folder}",
        "",
        f"# task 0: hpm-video pretrain {config} data.manifest=list.csv run.output_dir=runs/one",
    ]
    assert not Path("runs").exists()
    assert slurm.calls("sbatch") == []


@pytest.mark.parametrize(
    ("words", "there", "absent"),
    [
        ([], ["--nodes=1", "--gpus-per-node=1", "--ntasks-per-node=1", "--time=1440"], "--mem="),
        (["--gpus-per-node", "0"], ["--ntasks-per-node=1"], "gpus"),
        (["--gpus-per-node", "4"], ["--gpus-per-node=4", "--ntasks-per-node=4"], "--array"),
        (["--gpus-per-node=4", "--tasks-per-node=1"], ["--ntasks-per-node=1"], "--array"),
        (["data.num_workers=3"], ["--cpus-per-task=4"], "--partition"),
        (["--mem", "0"], ["--mem=0"], "--wckey"),
        (["--extra", "job-name=mine"], ["--job-name=mine"], "pretrain-one"),
        (["--sweep", "run.seed=1,2,3"], ["--array=0-2%3", "%A_%a_0_log.out"], "%j"),
        (["--sweep", "run.seed=1,2,3", "--array", "%2"], ["--array=0-2%2"], "%j"),
    ],
)
def test_defaults_and_what_follows_from_an_option(
    slurm: fake_slurm.FakeSlurm,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    there: list[str],
    absent: str,
) -> None:
    head = [line for line in _dry_run(capsys, *JOB, *words) if line.startswith("#SBATCH ")]
    for text in there:
        assert sum(text in line for line in head) == 1, (text, head)
    assert not [line for line in head if absent in line]


def test_cores_by_default_are_no_more_than_a_node_has(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (*JOB, "data.num_workers=8")
    assert "#SBATCH --cpus-per-task=9" in _dry_run(capsys, *settings, "--gpus-per-node", "1")
    assert "#SBATCH --cpus-per-task=2" in _dry_run(capsys, *settings, "--gpus-per-node", "8")


def test_options_may_stand_before_and_after_the_job(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = _dry_run(capsys, *JOB, "--nodes", "2", "--setup", "a", "--setup", "b")
    assert _dry_run(capsys, "--nodes", "2", "--setup", "a", *JOB, "--setup", "b") == expected


def test_a_dry_run_needs_no_slurm(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.remove("sinfo", "sbatch", "srun", "squeue", "sacct")
    assert "#SBATCH --nodes=500" in _dry_run(capsys, *JOB, "data.batch_size=1", "--nodes", "500")


def test_a_transcoding_is_an_array_of_its_parts(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("data", "transcode", "list.csv", "-o", "small", "--timeout", "9", "--array", "3%2")
    lines = _dry_run(capsys, *words)
    assert "#SBATCH --array=0-2%2" in lines
    assert not [line for line in lines if "gpus" in line or "cpus" in line]
    assert "#SBATCH --cpus-per-task=8" in _dry_run(capsys, *words, "--workers", "7")
    whole = "hpm-video data transcode list.csv -o small --timeout 9"
    assert lines[-3:] == [f"# task {k}: {whole} --part {k + 1}/3" for k in range(3)]
    main(["submit", *words])
    told = capsys.readouterr().out
    assert f"afterwards  {whole}\n" in told
    assert list(_submitted_arguments(Path("outputs/slurm"))) == ["42_0", "42_1", "42_2"]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("90:00", 90),
        ("1:01", 2),
        ("00:30", 1),
        ("12:30:00", 750),
        ("2:00:01", 121),
        ("3-0", 4320),
        ("1-12", 2160),
        ("1-12:30", 2190),
        ("2-00:00:30", 2881),
        ("infinite", UNLIMITED),
        ("UNLIMITED", UNLIMITED),
    ],
)
def test_times_are_read_as_slurm_does(text: str, minutes: int) -> None:
    assert minutes_of(text) == minutes


@pytest.mark.parametrize(
    "text",
    ["", "soon", "1h", "1:2:3:4", "1-", "-1", "1-1:2:3:4", "0", "0:00", "1:60", "1-24", "1.5", "٣"],
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"^slurm\.time \(.*\) must be ") as caught:
        minutes_of(text, name="slurm.time")
    assert "\n" not in str(caught.value)


def test_durations() -> None:
    shown = [duration(seconds) for seconds in (-1, 42.4, 61, 3600, 11225, 86400, 1047600)]
    assert shown == ["0:00", "0:42", "1:01", "1:00:00", "3:07:05", "1d 00h", "12d 03h"]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--time", "soon"], ["slurm.time (soon)", "HH:MM:SS"]),
        (["--time", "3-00:00:00"], ["slurm.time (3d 00h)", "2d 00h", "partition low"]),
        (["--time", "1", "--signal-delay-s", "60"], ["slurm.signal_delay_s (60)", "(1)"]),
        (["--gpus-per-node", "9"], ["slurm.gpus_per_node (9)", "8", "partition low"]),
        (["--gpus-per-node", "1", "--partition", "high"], ["slurm.gpus_per_node (1)", "high"]),
        (["--nodes", "4"], ["slurm.nodes (4)", "3", "partition low"]),
        (["--nodes", "3", "--cpus-per-task", "30"], ["slurm.nodes (3)", "at most 2"]),
        (["--gpus-per-node", "8", "--cpus-per-task", "3"], ["slurm.cpus_per_task (3)", "most 2"]),
        (["--partition", "nowhere"], ["slurm.partition (nowhere)", "high, low"]),
        (["--nodes", "two"], ["slurm.nodes (two)", "a whole number"]),
        (["--nodes", "0"], ["slurm.nodes (0)", "at least 1"]),
        (["--gpus-per-node", "a100:9"], ["slurm.gpus_per_node (9)", "8", "partition low"]),
        (["--gpus-per-node", "-1"], ["slurm.gpus_per_node (-1)", "at least 0"]),
        (["--mem", "much"], ["slurm.mem (much)", "400G"]),
        (["--array", "x"], ["slurm.array (x)", "N%M"]),
        (["--array", "4"], ["slurm.array (4)", "data transcode"]),
        (["--extra", "nodes=4"], ["slurm.extra (nodes=4)", "slurm.nodes"]),
        (["--extra", "ntasks-per-node=4"], ["slurm.tasks_per_node"]),
        (["--extra", "array=0-3"], ["slurm.extra (array=0-3)"]),
        (["--extra", "two words"], ["slurm.extra (two words)", "key=value"]),
        (["--setup", "echo a \\"], ["slurm.setup (echo a \\)", "backslash"]),
        (["--comment", "a\nb"], ["slurm.comment", "one line"]),
        (["--cluster", "cloud"], ["cloud", "slurm", "local"]),
        (["--cluster", "local", "--nodes", "2"], ["slurm.nodes (2)", "local"]),
        (["--cluster", "local", "--sweep", "run.seed=1,2"], ["2 tasks", "debug"]),
        (["--node", "2"], ["pretrain: ", "--node 2"]),
        (["optim.epoch=3"], ["optim.epoch ", "optim.epochs"]),
        (["masking.mask_ratio=2"], ["masking.mask_ratio (2"]),
        (["run.output_dir=null"], ["run.output_dir (null)"]),
        (["run.output_dir=a%b"], ["run.output_dir (a%b)"]),
        (["run.output_dir=list.csv"], ["run.output_dir (list.csv)", "is a file"]),
        (["data.manifest=none.csv"], ["data.manifest (none.csv)", "does not exist"]),
        (["data.manifest=[]"], ["data.manifest ([])"]),
        (["model.init=none.pt"], ["model.init (none.pt)", "does not exist"]),
        (
            ["loss.target=frozen", "loss.target_model=none.pt"],
            ["loss.target_model (none.pt)", "does not exist"],
        ),
        (
            ["loss.target=frozen", "loss.target_model=timm:x", "loss.target_weights=none.pt"],
            ["loss.target_weights (none.pt)", "does not exist"],
        ),
        (["--folder", "list.csv/x"], ["folder (list.csv/x)", "is a file"]),
        (["--sweep", "optim.bas_lr=1,2"], ["optim.bas_lr", "optim.base_lr"]),
        (["--sweep", "masking.hard_ratio_end=.5,2"], ["masking.hard_ratio_end (2"]),
        (["--sweep", "run.seed"], ["sweep (run.seed)", "group.key=value"]),
        (["--sweep", "run.seed=1,"], ["sweep (run.seed=1,)"]),
        (["--sweep", "run.seed=1,1"], ["each value only once"]),
        (["--sweep", "run.seed=1 run.seed=2"], ["run.seed only once"]),
        (["--sweep", "run.output_dir=a,b"], ["run.output_dir"]),
        (["--sweep", " "], ["sweep ()"]),
    ],
)
def test_mistakes_are_one_line_before_anything_is_made(
    slurm: fake_slurm.FakeSlurm,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    parts: list[str],
) -> None:
    line = _refusal(capsys, *JOB, *words)
    for part in parts:
        assert part in line
    assert slurm.calls("sbatch") == []


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["job ()", "pretrain, finetune, evaluate", "data"]),
        (["demo"], ["job (demo)"]),
        (["data", "toy", "-o", "x"], ["job (data toy)", "check or transcode"]),
        (["data", "check", "none.csv"], ["manifest (none.csv) does not exist"]),
        (["data", "check", "list.csv", "--nodes", "2"], ["slurm.nodes (2)", "data check"]),
        (["data", "check", "list.csv", "--array", "2"], ["slurm.array (2)", "data check"]),
        (["data", "check", "list.csv", "--sweep", "a=1,2"], ["sweep (a=1,2)", "data check"]),
        (["data", "transcode", "list.csv"], ["data: ", "-o"]),
        (["data", "transcode", "list.csv", "-o", "x", "--part=1/2", "--array=2"], ["part (1/2)"]),
        (["evaluate", "none", "--manifest", "list.csv"], ["checkpoint (none) does not exist"]),
        (["evaluate", "run.yaml", "--manifest", "list.csv", "device=gpu"], ["device (gpu)"]),
        (["evaluate", "run.yaml", "--manifest", "x.csv"], ["manifest (x.csv) does not exist"]),
        (
            ["evaluate", "run.yaml", "--manifest", "list.csv", "--sweep", "precision=float32"],
            ["sweep (precision=float32)", "-o DIR"],
        ),
        (["probe", "run.yaml", "--train", "list.csv", "--val", "x.csv"], ["val (x.csv) does not"]),
        (["probe", "run.yaml", "--train", "x.csv", "--val", "list.csv"], ["train (x.csv) does"]),
        (["features", "run.yaml", "--video", "x.mp4", "-o", "f.npz"], ["video (x.mp4) does not"]),
        (
            ["features", "run.yaml", "--video", "list.csv", "-o", "f.npz", "--sweep", "root=a,b"],
            ["sweep (root=a,b)", "features"],
        ),
        (["features", "run.yaml", "--video", "list.csv", "-o", "f.npz", "--gpu=1"], ["--gpu=1"]),
        (["pretrain"], ["pretrain: ", "RECIPE"]),
        (["pretrain", "none.yaml"], ["config (none.yaml) does not exist"]),
    ],
)
def test_other_jobs_are_checked_too(
    slurm: fake_slurm.FakeSlurm,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    parts: list[str],
) -> None:
    line = _refusal(capsys, *words)
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    "words",
    [
        ("finetune", "run.yaml", "data.manifest=list.csv", "run.output_dir=runs/fine"),
        ("evaluate", "run.yaml", "--manifest", "list.csv", "-o", "out", "num_workers=2"),
        ("probe", "run.yaml", "--train", "list.csv", "--val", "list.csv", "num_workers=2"),
        ("features", "run.yaml", "--manifest", "list.csv", "-o", "f.npz", "num_workers=2"),
        ("data", "check", "list.csv", "--workers", "2"),
        ("data", "transcode", "list.csv", "-o", "small", "--workers", "2"),
    ],
)
def test_every_job_can_be_submitted_as_it_is_called(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    """Settings stand behind options too, as in the job's own command line."""
    lines = _dry_run(capsys, *words)
    (task,) = (line for line in lines if line.startswith("# task 0: "))
    assert task.startswith(f"# task 0: hpm-video {words[0]} ")
    assert ("#SBATCH --cpus-per-task=3" in lines) == (words[0] != "finetune")


def test_without_slurm_there_is_a_way_out(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.remove("sinfo", "sbatch")
    line = _refusal(capsys, *JOB)
    for word in ("sbatch", "--cluster local", "--dry-run"):
        assert word in line


def test_what_sbatch_refuses_leaves_nothing(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str], quiet_storage: None
) -> None:
    """All that sbatch says is shown, before our own line."""
    words = "sbatch: error: invalid account\nsbatch: error: Batch job submission failed: x\n"
    slurm.say("sbatch", "", error=words, code=1)
    before = sorted(Path().rglob("*"))
    assert main(["submit", *JOB]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err[: len(words)]) == ("", words)
    assert said.err[len(words) :].startswith("hpm-video submit: sbatch refused the job")
    assert said.err.count("\n") == 3
    assert sorted(Path().rglob("*")) == before
    folder = Path("runs/one/slurm")
    folder.mkdir(parents=True)
    (folder / "jobs.jsonl").write_text("")
    assert main(["submit", *JOB]) == 2
    assert sorted(folder.iterdir()) == [folder / "jobs.jsonl"]


def test_what_sbatch_says_of_a_job_that_it_takes_is_shown(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str], quiet_storage: None
) -> None:
    slurm.say("sbatch", "Submitted batch job 42\n", error="sbatch: info: 3 % of your share\n")
    assert main(["submit", *JOB]) == 0
    assert capsys.readouterr().err == "sbatch: info: 3 % of your share\n"


def test_what_another_job_is_to_make_need_not_be_there(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    _dry_run(capsys, *JOB, "model.init=runs/none", "--dependency", "afterok:7")


def test_a_run_is_not_queued_twice(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *JOB]) == 0
    slurm.say("squeue", "42|PENDING|Priority|N/A\n")
    line = _refusal(capsys, *JOB)
    assert "runs/one) is used by job 42 (PENDING)" in line
    assert main(["submit", *JOB, "--dependency", "afterany:42"]) == 0
    slurm.say("squeue", "42|TIMEOUT|None|N/A\n")
    assert main(["submit", *JOB]) == 0


# ---------------------------------------------------------------- the user's environment

OF_SBATCH = {
    "SBATCH_PARTITION": "high",
    "SBATCH_ACCOUNT": "lab",
    "SBATCH_QOS": "fast",
    "SBATCH_TIMELIMIT": "1:30:00",
    "SBATCH_CONSTRAINT": "a100",
    "SBATCH_RESERVATION": "course",
    "SBATCH_MEM_PER_NODE": "400G",
    "SBATCH_JOB_NAME": "mine",
}
AS_OPTIONS = ["partition=high", "account=lab", "qos=fast", "time=90", "constraint=a100",
              "reservation=course", "mem=400G", "job-name=mine"]  # fmt: skip


def _environment_of_sbatch(slurm: fake_slurm.FakeSlurm, *words: str) -> dict[str, str]:
    """What sbatch finds in its environment when a job is submitted."""
    dump = slurm.folder / "environment"
    sbatch = slurm.folder / "sbatch"
    sbatch.write_text(
        f"#!/bin/sh\n/usr/bin/env >{dump}\necho $@ >{dump}.words\necho Submitted batch job 42\n"
    )
    assert main(["submit", *words]) == 0
    return dict(line.split("=", 1) for line in dump.read_text().splitlines() if "=" in line)


def test_variables_of_sbatch_count_where_nothing_else_is_said(
    slurm: fake_slurm.FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    quiet_storage: None,
) -> None:
    """They stand in the script. A variable beats a script, so sbatch sees none of them."""
    for name, value in OF_SBATCH.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SBATCH_WCKEY", "kept")
    cpu = (*JOB, "--gpus-per-node", "0")
    lines = _dry_run(capsys, *cpu)
    assert {f"#SBATCH --{option}" for option in AS_OPTIONS} <= set(lines)
    (note,) = _notes(capsys, *cpu)
    assert note.startswith("hpm-video submit: from the environment: SBATCH_PARTITION=high ")
    options = ["--partition", "low", "--account", "other", "--time", "60", "--qos=q", "--mem=1G"]
    of_pyxis = ("--extra", "container-image=x", "--extra", "container-mounts=/a:/a")
    extra = ("--constraint=c", "--extra", "reservation=r", *of_pyxis)
    lines = _dry_run(capsys, *cpu, *options, *extra)
    for option in ("partition=low", "account=other", "time=60", "qos=q", "mem=1G", "constraint=c"):
        assert f"#SBATCH --{option}" in lines
    assert [line for line in lines if "reservation" in line] == ["#SBATCH --reservation=r"]
    assert "#SBATCH --container-mounts=/a:/a" in lines
    Path("run.yaml").write_text("slurm: {partition: low, account: yaml, qos: null}\n")
    lines = _dry_run(capsys, *cpu)
    for option in ("partition=low", "account=yaml", "qos=fast"):
        assert f"#SBATCH --{option}" in lines
    there = _environment_of_sbatch(slurm, *cpu)
    assert not OF_SBATCH.keys() & there.keys()
    assert there["SBATCH_WCKEY"] == "kept"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("GPUS_PER_NODE", ["--gpus-per-node", "0"]),
        ("GPUS_PER_NODE", ["--extra", "gres=gpu:2", "--gpus-per-node=0", "--tasks-per-node=2"]),
        ("GPUS_PER_NODE", ["--extra", "gres=nvme:1,gpu:a100:2", "--gpus-per-node=0"]),
        ("CONTAINER", ["--container", "image.sif"]),
    ],
)
def test_an_option_hides_its_variable_whatever_line_the_script_has_for_it(
    slurm: fake_slurm.FakeSlurm, monkeypatch: pytest.MonkeyPatch, name: str, words: list[str]
) -> None:
    slurm.say("apptainer", "")
    Path("image.sif").touch()
    monkeypatch.setenv(f"SBATCH_{name}", "4")
    assert f"SBATCH_{name}" not in _environment_of_sbatch(slurm, *JOB, *words)


def test_a_number_of_gpus_as_a_resource_is_not_added_to_that_of_the_variable(
    slurm: fake_slurm.FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SBATCH_GPUS_PER_NODE", "4")
    lines = _dry_run(capsys, *JOB, "--extra", "gres=nvme:1")
    assert "#SBATCH --gpus-per-node=4" in lines
    lines = _dry_run(capsys, *JOB, "--extra", "gres=gpu:2")
    assert "#SBATCH --gpus-per-node=4" not in lines


def test_an_empty_variable_says_nothing(
    slurm: fake_slurm.FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    quiet_storage: None,
) -> None:
    for name in ("PARTITION", "WCKEY", "SIGNAL", "GPUS_PER_NODE"):
        monkeypatch.setenv(f"SBATCH_{name}", "")
    assert _notes(capsys, *JOB) == []
    there = _environment_of_sbatch(slurm, *JOB)
    assert not [name for name in there if name.startswith("SBATCH_")]


def test_the_note_names_every_variable_that_counts(
    slurm: fake_slurm.FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    quiet_storage: None,
) -> None:
    monkeypatch.setenv("SBATCH_QOS", "fast")
    monkeypatch.setenv("SBATCH_JOB_NAME", "mine")
    (note,) = _notes(capsys, *JOB)
    assert note.endswith(": from the environment: SBATCH_QOS=fast SBATCH_JOB_NAME=mine")
    (note,) = _notes(capsys, *JOB, "--extra", "job-name=other")
    assert "SBATCH_JOB_NAME" not in note


def test_no_time_limit_is_asked_for_where_the_partition_has_none(
    slurm: fake_slurm.FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SBATCH_TIMELIMIT", "infinite")
    words = ("--partition", "high", "--gpus-per-node", "0")
    assert "#SBATCH --time=infinite" in _dry_run(capsys, *JOB, *words)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["optim.total_batch=4096"], "videos per step (4096) must be at most the number of videos"),
        (["data.batch_size=1024", "--nodes", "3", "--tasks-per-node=1"], "videos per step (3072)"),
        (
            ["optim.total_batch=9", "data.batch_size=1", "--nodes", "2", "--tasks-per-node", "2"],
            "optim.total_batch (9) must be a multiple of data.batch_size x processes (1 x 4 = 4)",
        ),
        (["--sweep", "optim.total_batch=1024,4096"], "videos per step (4096)"),
    ],
)
def test_a_run_whose_steps_cannot_be_made_is_refused(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str], words: list[str], part: str
) -> None:
    """By the processes that it would have there."""
    assert part in _refusal(capsys, *JOB, "data.batch_size=64", "--gpus-per-node=1", *words)


def _notes(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """What a dry run says beside the script."""
    capsys.readouterr()
    assert main(["submit", "--dry-run", *words]) == 0
    return capsys.readouterr().err.splitlines()


def test_variables_that_would_break_a_run_are_dropped_by_name(
    slurm: fake_slurm.FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    quiet_storage: None,
) -> None:
    names = ("ARRAY_INX", "CLUSTERS", "CPUS_PER_GPU", "ERROR", "EXPORT", "GPUS", "GRES",
             "NO_KILL", "NO_REQUEUE", "OPEN_MODE", "OUTPUT", "SIGNAL", "WAIT")  # fmt: skip
    dropped = {f"SBATCH_{name}": "1" for name in names} | {"SBATCH_GRES": "gpu:a100:8"}
    for name, value in {**dropped, "SBATCH_EXCLUSIVE": "user"}.items():
        monkeypatch.setenv(name, value)
    (note,) = _notes(capsys, *JOB)
    listed = re.fullmatch("hpm-video submit: ignores (.*) from the environment: .*", note)[1]
    assert listed.split(", ") == sorted(dropped)
    there = _environment_of_sbatch(slurm, *JOB)
    assert not dropped.keys() & there.keys()
    assert there["SBATCH_EXCLUSIVE"] == "user"
    # An option that says it anew is no reason to speak of the variable
    (note,) = _notes(capsys, *JOB, "--extra", "gres=nvme:1")
    assert "SBATCH_GRES" not in note


def test_a_number_of_gpus_is_taken_by_jobs_that_have_some(
    slurm: fake_slurm.FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SBATCH_GPUS_PER_NODE", "4")
    lines = _dry_run(capsys, *JOB)
    assert {"#SBATCH --gpus-per-node=4", "#SBATCH --ntasks-per-node=4"} <= set(lines)
    lines = _dry_run(capsys, "data", "check", "list.csv")
    assert "#SBATCH --ntasks-per-node=1" in lines
    assert not [line for line in lines if "--gpu" in line]
    assert "SBATCH_GPUS_PER_NODE" not in _environment_of_sbatch(slurm, "data", "check", "list.csv")
    monkeypatch.setenv("SBATCH_GPUS_PER_NODE", "a100:4")
    lines = _dry_run(capsys, *JOB)
    assert {"#SBATCH --gpus-per-node=a100:4", "#SBATCH --ntasks-per-node=4"} <= set(lines)
    monkeypatch.setenv("SBATCH_GPUS_PER_NODE", "a100")
    line = _refusal(capsys, *JOB)
    for part in ("slurm.gpus_per_node (a100)", "SBATCH_GPUS_PER_NODE", "--gpus-per-node"):
        assert part in line


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("SBATCH_PARTITION", "nowhere", ["slurm.partition (nowhere)", "high, low"]),
        ("SBATCH_TIMELIMIT", "3-00:00:00", ["slurm.time (3d 00h)", "partition low"]),
        ("SBATCH_TIMELIMIT", "UNLIMITED", ["slurm.time (infinite)", "partition low"]),
        ("SBATCH_MEM_PER_NODE", "much", ["slurm.mem (much)", "--mem"]),
    ],
)
def test_a_mistake_in_a_variable_names_it(
    slurm: fake_slurm.FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
    parts: list[str],
) -> None:
    monkeypatch.setenv(name, value)
    line = _refusal(capsys, *JOB)
    for part in [*parts, name]:
        assert part in line


# ---------------------------------------------------------------- programs of the job


def _commands(lines: list[str]) -> list[str]:
    """The words of the script's srun line."""
    (line,) = (line for line in lines if line.startswith("srun "))
    return shlex.split(line)


def test_the_interpreter_and_options_of_srun(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("python").symlink_to(sys.executable)
    options = ("--srun-extra", "cpu-bind=none", "--srun-extra=--exact")
    words = _commands(_dry_run(capsys, *JOB, "--python", "./python", *options))
    assert words[words.index("-u") - 1] == f"{os.getcwd()}/python"
    assert {"--cpu-bind=none", "--exact"} <= set(words[: words.index("-u") - 1])
    words = _commands(_dry_run(capsys, *JOB, "--python", "python3.11"))
    assert words[words.index("-u") - 1] == "python3.11"  # to be found by the job
    for option, value in (("python", "./nothing"), ("srun-extra", "output=x"), ("srun-extra", "-")):
        assert f"slurm.{option.replace('-', '_')} ({value})" in _refusal(
            capsys, *JOB, f"--{option}={value}"
        )


def _mounts(text: str) -> set[str]:
    return set(text.split(","))


def test_a_container_by_pyxis(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    slurm.say("srun", "Usage\n      --container-image=[USER@][REGISTRY#]IMAGE\n")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "a.csv").write_text("path\nv.mp4\n")
    (tmp_path / "videos").mkdir()
    mounts = ("--container-mounts", "/data", "--container-mounts", "../b:/c:ro,/d:/e")
    lines = _dry_run(
        capsys,
        *("pretrain", "run.yaml", f"data.manifest={tmp_path}/lists/a.csv", "data.batch_size=1"),
        *(f"data.root={tmp_path}/videos", f"run.output_dir={tmp_path}/runs/one"),
        *("--container", "lab#torch:2", *mounts),
    )
    words = _commands(lines)
    start = words.index("env")
    options = dict(word.split("=", 1) for word in words if word.startswith("--container-"))
    assert options["--container-image"] == "lab#torch:2"
    assert options["--container-workdir"] == os.getcwd()
    own = {"/data:/data", f"{tmp_path}/b:/c:ro", "/d:/e"}
    assert _mounts(options["--container-mounts"]) == own | {f"{tmp_path}:{tmp_path}"}
    code = re.search(rf"{tmp_path}/runs/one/slurm/code/[0-9a-f]{{12}}", "\n".join(lines))[0]
    inside = [
        "env",
        f"PYTHONPATH={code}",
        "PYTHONSAFEPATH=1",
        "python3",
        *_WITHOUT_HERE,
        "-u",
        "-m",
    ]
    assert words[start : start + len(inside)] == inside
    assert not [line for line in lines if line.startswith("export PYTHON")]


def test_a_container_by_apptainer(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Or by singularity, where there is only that; with the folders of what it reads and writes."""
    slurm.say("singularity", "")
    for name in ("lists", "real", "runs"):
        (tmp_path / name).mkdir()
    (tmp_path / "real" / "a.csv").write_text("path\nv.mp4\n")
    (tmp_path / "lists" / "a.csv").symlink_to(tmp_path / "real" / "a.csv")
    Path("image.sif").write_bytes(b"")
    lists = f"data.manifest={tmp_path}/lists/a.csv"
    arguments = ("pretrain", "run.yaml", lists, "data.batch_size=1")
    output = f"run.output_dir={tmp_path}/runs/one"
    options = ("--container", "image.sif", "--python", "/opt/python")
    words = _commands(_dry_run(capsys, *arguments, output, *options))
    program, image = words.index("singularity"), words.index(f"{os.getcwd()}/image.sif")
    exec_words = words[program:image]
    assert exec_words[:4] == ["singularity", "exec", "--nv", "--bind"]
    places = [os.getcwd(), *(f"{tmp_path}/{name}" for name in ("lists", "real", "runs"))]
    assert _mounts(exec_words[4]) == {f"{place}:{place}" for place in places}
    assert exec_words[5:] == ["--pwd", os.getcwd()]
    assert words[image + 1] == "env" and words[image + 4] == "/opt/python"
    slurm.say("apptainer", "")
    assert "apptainer" in _commands(_dry_run(capsys, *arguments, output, *options))


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--container", "none.sif"], ["slurm.container (none.sif)", "does not exist"]),
        (["--container", "lab#x"], ["slurm.container (lab#x)", "pyxis", "apptainer", "module"]),
        (["--container-mounts", "/a"], ["slurm.container_mounts (/a)", "slurm.container"]),
        (["--container", "x", "--container-mounts", ":/b"], ["slurm.container_mounts (:/b)"]),
        (["--container", "x", "--srun-extra", "container-name=y"], ["slurm.srun_extra (conta"]),
    ],
)
def test_what_is_wrong_with_a_container(
    slurm: fake_slurm.FakeSlurm,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    parts: list[str],
) -> None:
    line = _refusal(capsys, *JOB, *words)
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("export A=1", 0),
        ("false || true", 0),
        ("# nothing", 0),
        ("(exit 3)", 3),
        ('echo "a', None),
        ("for a in 1; do", None),
        ("echo two \\\\", 0),
    ],
)
def test_the_script_goes_on_after_a_whole_command_that_succeeds(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str], command: str, code: int | None
) -> None:
    slurm.say("srun", "trained\n")
    (script := Path("script.sh")).write_text("\n".join(_dry_run(capsys, *JOB, "--setup", command)))
    done = subprocess.run(["/bin/bash", script], capture_output=True, text=True, check=False)
    assert ("trained" in done.stdout) == (code == 0), done
    assert done.returncode == code if code is not None else done.returncode > 0
    assert ("setup failed, the job ends: " + command in done.stderr) == (code != 0), done


def test_an_open_here_document_does_not_take_the_rest_of_the_script(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.say("srun", "trained\n")
    (script := Path("script.sh")).write_text("\n".join(_dry_run(capsys, *JOB, "--setup", ": <<E")))
    done = subprocess.run(["/bin/bash", script], capture_output=True, text=True, check=False)
    assert "trained" in done.stdout, done


def test_tasks_start_in_the_current_folder_whatever_setup_does(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"--chdir={os.getcwd()}" in _commands(_dry_run(capsys, *JOB, "--setup", "cd /"))


@pytest.mark.parametrize(
    "words",
    [
        ("-o", "own_videos", "own_videos", "data.manifest=list.csv"),
        ("own_videos", "data.manifest=list.csv", "--output-dir", "own_videos"),
    ],
)
def test_a_run_folder_may_be_named_like_its_recipe(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    task = shlex.split(_dry_run(capsys, "pretrain", *words)[-1])
    copy = f"{os.getcwd()}/own_videos/slurm/configs/own_videos-"
    ours = task[task.index("pretrain") + 1 :]
    given = [
        word if word == mine else word[: len(copy)] for word, mine in zip(ours, words, strict=True)
    ]
    place = 2 if words[0] == "-o" else 0
    assert given == [*words[:place], copy, *words[place + 1 :]]


# ---------------------------------------------------------------- limits and storage


CONFIG = "MaxArraySize            = {array}\nMaxJobCount             = {jobs}\n{more}"


@pytest.mark.parametrize(
    ("limits", "limit", "most"),
    [
        ({"array": 1001, "jobs": 10000}, "MaxArraySize", "1,001"),
        ({"array": 9999, "jobs": 1500}, "MaxJobCount", "1,499"),
        (
            {"array": 9999, "jobs": 9999, "more": "SchedulerParameters = a=1,max_array_tasks=50\n"},
            "max_array_tasks",
            "50",
        ),
    ],
)
def test_an_array_above_the_clusters_limit_is_refused(
    slurm: fake_slurm.FakeSlurm,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    limits: dict[str, object],
    limit: str,
    most: str,
) -> None:
    """Before any of its tasks' settings are read, of which there may be thousands."""
    slurm.say("scontrol", CONFIG.format(**{"more": "", **limits}))
    monkeypatch.setattr(submit, "make_plan", None)
    seeds = ",".join(map(str, range(1000)))
    sweep = f"run.seed={seeds} optim.base_lr=1e-4,3e-4"
    line = _refusal(capsys, *JOB, "--sweep", sweep)
    for part in ("sweep (2,000 runs)", f"at most {most}", limit, "of run.seed each"):
        assert part in line
    words = ("data", "transcode", "list.csv", "-o", "small", "--array", "2000")
    line = _refusal(capsys, *words)
    for part in ("slurm.array (2,000)", f"at most {most}", limit):
        assert part in line


def test_how_to_split_a_sweep() -> None:
    sweep = "a.b=1,2,3,4,5,6,7 a.c=1,2"
    check_size(sweep, 14, "MaxArraySize")
    with pytest.raises(ValueError, match=r"submit 3 sweeps with at most 3 values of a\.b each"):
        check_size(sweep, 7, "MaxArraySize")
    with pytest.raises(ValueError, match=r"submit several sweeps with fewer values of a\.b each"):
        check_size(sweep, 1, "MaxArraySize")


MOUNTS = """\
1 1 8:1 / / rw - ext4 /dev/root rw
2 1 0:1 / /dev/shm rw shared:1 - tmpfs tmpfs rw
3 1 0:2 / /home rw shared:1 master:2 - nfs4 server:/home rw
4 1 0:3 / /tmp/shared\\040one rw - lustre lustre rw
5 3 0:4 / /home/me/ram rw - tmpfs tmpfs rw
6 1 0:5 / /scratch rw - beegfs_nodev beegfs rw
7 1 8:2 / /export rw - xfs /dev/sdb rw
8 1 8:3 / /local rw - xfs /dev/sdc rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/tmp/run", "ext4"),
        ("/var/tmp/run", "ext4"),
        ("/dev/shm/run", "tmpfs"),
        ("/home/me/run", None),
        ("/home/me/ram/run", "tmpfs"),
        ("/tmp/shared one/run", None),
        ("/scratch/run", None),
        ("/export/run", None),  # by NFS
        ("/local/run", "xfs"),
    ],
)
def test_storage_of_one_machine(tmp_path: Path, path: str, kind: str | None) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    (tmp_path / "exports").write_text("# shared\n/export *(rw)\n")
    files = {"mounts": tmp_path / "mounts", "exports": tmp_path / "exports"}
    assert local_storage(Path(path), **files) == kind


def test_a_run_folder_that_other_nodes_do_not_see_is_warned_of(
    slurm: fake_slurm.FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(submit, "local_storage", lambda path: "tmpfs")
    (note,) = _notes(capsys, *JOB)
    for part in ("warning: ", f"{os.getcwd()}/runs/one", "tmpfs", os.uname().nodename):
        assert part in note


# ---------------------------------------------------------------- the YAML


def test_the_yaml_may_say_what_the_command_line_does(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    """12:30:00 is a time, though YAML 1.1 would read a number of base 60; the rest as typed."""
    Path("run.yaml").write_text(
        "optim: {epochs: 100}\n"
        "slurm:\n  nodes: 3\n  gpus_per_node: 4\n  time: 12:30:00\n  mem: null\n  partition:\n"
        "  setup: [module load a, 'echo ${HOME}']\n  extra: mail-user=me\n"
    )
    lines = _dry_run(capsys, *JOB, "--nodes", "2")
    for line in ("--nodes=2", "--gpus-per-node=4", "--time=750", "--mail-user=me"):
        assert f"#SBATCH {line}" in lines
    assert "eval 'echo ${HOME}'" in lines
    assert not [line for line in lines if "--mem" in line or "--partition" in line]


@pytest.mark.parametrize(
    ("section", "parts"),
    [
        ("{nods: 2}", ["slurm.nods", "slurm.nodes"]),
        ("{nodes: [1]}", ["slurm.nodes", "a whole number"]),
        ("{time: soon}", ["slurm.time (soon)"]),
        ("[nodes]", ["slurm ([nodes]) must be a group"]),
        ("{setup: {a: b}}", ["slurm.setup", "a list"]),
    ],
)
def test_mistakes_in_the_section(
    slurm: fake_slurm.FakeSlurm,
    capsys: pytest.CaptureFixture[str],
    section: str,
    parts: list[str],
) -> None:
    Path("run.yaml").write_text(f"slurm: {section}\n")
    line = _refusal(capsys, *JOB)
    for part in parts:
        assert part in line


def test_the_section_is_none_of_the_jobs_settings(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("slurm: {nodes: 3, time: 1:00}\noptim: {epochs: 100}\n")
    (tmp_path / "b.yaml").write_text("optim: {epochs: 100}\n")
    one, other = (load_config(PretrainConfig, tmp_path / name) for name in ("a.yaml", "b.yaml"))
    assert one == other
    with pytest.raises(ValueError, match="setting slurm is unknown"):
        load_config(PretrainConfig, None, ["slurm.nodes=3"])


@pytest.mark.parametrize("name", ["ssv2_base", "kinetics400_base"])
def test_the_recipes_have_1024_videos_a_step(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    slurm.remove("sinfo")
    file = Path(__file__).parents[2] / "configs" / "pretrain" / f"{name}.yaml"
    assert main(["submit", "pretrain", str(file), *JOB[2:]]) == 0
    told = capsys.readouterr().out
    assert "8 nodes x 8 processes" in told
    assert re.search(r"^videos +1,024 per optimizer step$", told, re.MULTILINE)


def test_every_option_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    """In the documentation, and where one asks for help, before or after the job."""
    text = (Path(__file__).parents[2] / "docs" / "slurm.md").read_text()
    options = ["--" + item.name.replace("_", "-") for item in fields(SlurmConfig)]
    for words in (["--help"], ["pretrain", "--help"]):
        with suppress(SystemExit):
            main(["submit", *words])
        said = capsys.readouterr().out
        for option in [*options, "--sweep", "--folder", "--cluster", "--dry-run"]:
            assert option in text
            assert option in said


# ---------------------------------------------------------------- sweeps


def test_a_sweep_is_all_combinations() -> None:
    runs = combinations("optim.base_lr=1e-4,3e-4 optim.betas=[0.9,0.95],[0.8,0.9]")
    assert list(runs.values()) == [
        ("optim.base_lr=1e-4", "optim.betas=[0.9,0.95]"),
        ("optim.base_lr=1e-4", "optim.betas=[0.8,0.9]"),
        ("optim.base_lr=3e-4", "optim.betas=[0.9,0.95]"),
        ("optim.base_lr=3e-4", "optim.betas=[0.8,0.9]"),
    ]
    assert list(runs)[:2] == [
        "base_lr=1e-4,betas=_0.9_0.95_",
        "base_lr=1e-4,betas=_0.8_0.9_",
    ]


def test_names_of_folders_tell_runs_apart() -> None:
    runs = combinations("data.root=a/b,a_b,'a b' optim.min_lr=1 model.init=x optim.warmup_lr=2")
    assert len(runs) == 3
    assert all("/" not in name and " " not in name for name in runs)
    assert list(combinations("data.batch_size=2 evaluation.batch_size=3")) == [
        "data.batch_size=2,evaluation.batch_size=3"
    ]


def test_each_run_of_a_sweep_has_a_folder_of_its_own(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *JOB, "--sweep", "optim.base_lr=1e-4,3e-4 run.seed=1,2"]) == 0
    told = capsys.readouterr().out
    arguments = _submitted_arguments(Path("runs/one/slurm"))
    rows = [("1e-4", "1"), ("1e-4", "2"), ("3e-4", "1"), ("3e-4", "2")]
    for task, (lr, seed) in enumerate(rows):
        name = f"runs/one/base_lr={lr},seed={seed}"
        assert re.search(rf"^ +42_{task} +{name} +optim.base_lr={lr} run.seed={seed}$", told, re.M)
        config = load_config(PretrainConfig, *_config_of(arguments[f"42_{task}"]))
        assert config.run.output_dir == name
        assert (config.optim.base_lr, config.run.seed) == (float(lr), int(seed))
        assert config.optim.epochs == 100
    (script,) = Path("runs/one/slurm").glob("42_submission.sh")
    assert "#SBATCH --array=0-3%4\n" in script.read_text()
    assert len(slurm.calls("sbatch")) == 1


def _config_of(arguments: list[str]) -> tuple[str, list[str]]:
    job, config, *settings = arguments
    assert job == "pretrain"
    return config, settings


def test_each_evaluation_of_a_sweep_has_results_of_its_own(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("evaluate", "run.yaml", "--manifest", "list.csv", "-o", "out")
    lines = _dry_run(capsys, *words, "--sweep", "evaluation.num_clips=1,2")
    for task in (0, 1):
        (line,) = (line for line in lines if line.startswith(f"# task {task}: "))
        number = f"num_clips={task + 1}"
        assert line.endswith(f" evaluation.{number} --output-dir=out/{number}")


# ---------------------------------------------------------------- the snapshot


def test_the_job_imports_the_copy_wherever_it_starts(
    slurm: fake_slurm.FakeSlurm, tmp_path: Path
) -> None:
    """The working directory and PYTHONPATH may hold other versions of the package."""
    assert main(["submit", *JOB]) == 0
    other = Path("hpm_video")
    other.mkdir()
    (other / "__init__.py").write_text("raise SystemExit('the sources of today')")
    srun = slurm.folder / "srun"
    # The script's own command, with a module in submitit's place that says what is imported
    stand_in = tmp_path / "stand_in" / "submitit" / "core"
    stand_in.mkdir(parents=True)
    (stand_in.parent / "__init__.py").touch()
    (stand_in / "__init__.py").touch()
    (stand_in / "_submit.py").write_text("import hpm_video; print(hpm_video.__file__)")
    srun.write_text(
        f"#!/bin/sh\nwhile [ $1 != {sys.executable} ]; do shift; done\n"
        f'export PYTHONPATH={tmp_path}/stand_in:$PYTHONPATH\nexec "$@"\n'
    )
    (script,) = Path("runs/one/slurm").glob("42_submission.sh")
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    answer = subprocess.run(
        ["/bin/bash", str(script)], env=environment, capture_output=True, text=True, check=True
    )
    assert Path(answer.stdout.strip()).is_relative_to(Path("runs/one/slurm/code").absolute())


def test_the_job_reads_a_copy_of_the_yaml(slurm: fake_slurm.FakeSlurm) -> None:
    assert main(["submit", *JOB]) == 0
    Path("run.yaml").write_text("optim: {epochs: 3}\n")
    ((_, config, *settings),) = _submitted_arguments(Path("runs/one/slurm")).values()
    assert load_config(PretrainConfig, config, settings).optim.epochs == 100
    # The same words as typed: relative paths start where they did
    assert settings == list(JOB[2:])


@pytest.mark.parametrize("change", ["content", "file", "mode", "link", "owner"])
def test_a_copy_that_others_may_have_changed_is_not_run(tmp_path: Path, change: str) -> None:
    first = Snapshot(tmp_path)
    first.write()
    planted = first.code
    init = planted / "hpm_video" / "__init__.py"
    if change == "content":
        init.write_text("raise SystemExit('planted')")
    elif change == "file":
        (planted / "sitecustomize.py").write_text("raise SystemExit('planted')")
    elif change == "mode":
        planted.chmod(0o777)
    elif change == "link":
        planted.rename(tmp_path / "elsewhere")
        planted.symlink_to(tmp_path / "elsewhere")
    elif os.geteuid() == 0:
        os.chown(init, 54321, 54321)
    else:
        pytest.skip("only root makes files of other users")
    second, third = Snapshot(tmp_path), Snapshot(tmp_path)
    second.write()
    assert second.code != planted and second.code.parent == planted.parent
    assert (second.code / "hpm_video/__init__.py").read_text() == Path(
        hpm_video.__file__
    ).read_text()
    (second.code / "hpm_video" / "__pycache__").mkdir()  # as jobs make it
    (second.code / "hpm_video" / "__pycache__" / "a.pyc").touch()
    third.write()
    assert third.code == second.code


def test_a_copy_of_the_yaml_that_was_changed_is_made_anew(slurm: fake_slurm.FakeSlurm) -> None:
    assert main(["submit", *JOB]) == 0
    (copy,) = Path("runs/one/slurm/configs").iterdir()
    copy.write_text("optim: {epochs: 3}")
    Snapshot(Path("runs/one/slurm"), "run.yaml").write()
    assert copy.read_text() == Path("run.yaml").read_text()


def _modes(folder: Path) -> set[str]:
    return {oct(stat.S_IMODE(path.stat().st_mode)) for path in (folder, *folder.glob("code/*"))}


def test_what_a_job_executes_lies_in_a_private_folder(slurm: fake_slurm.FakeSlurm) -> None:
    before = os.umask(0o002)
    try:
        assert main(["submit", *JOB]) == 0
    finally:
        os.umask(before)
    assert _modes(Path("runs/one/slurm")) == {"0o700"}
    assert stat.S_IMODE(Path("runs/one").stat().st_mode) == 0o775


def test_the_folder_of_an_earlier_version_is_closed(slurm: fake_slurm.FakeSlurm) -> None:
    folder = Path("runs/one/slurm")
    (folder / "code").mkdir(parents=True)
    for path in (folder, folder / "code"):
        path.chmod(0o775)
    (folder / "jobs.jsonl").touch()
    assert main(["submit", *JOB]) == 0
    assert _modes(folder) == {"0o700"} and not (folder / "code").stat().st_mode & 0o077


@pytest.mark.parametrize("of", ["everybody", "a stranger"])
def test_a_folder_that_others_can_write_to_is_refused(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str], quiet_storage: None, of: str
) -> None:
    folder = Path("shared")
    folder.mkdir()
    (folder / "notes").touch()
    if of == "everybody":
        folder.chmod(0o777)
    elif os.geteuid() == 0:
        os.chown(folder, 54321, 54321)
    else:
        pytest.skip("only root makes files of other users")
    line = _refusal(capsys, *JOB, "--folder", "shared")
    assert "shared) " in line and "who could change what the job executes" in line
    assert ("chmod go-w /" in line) == (of == "everybody")
    assert slurm.calls("sbatch") == []
    if of == "everybody":
        folder.chmod(0o755)
        assert main(["submit", *JOB, "--folder", "shared"]) == 0
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["run.output_dir=a\ntouch planted"], "run.output_dir (a\\ntouch planted)"),
        (["run.output_dir=a\x1b[2Jb"], "run.output_dir (a\\x1b[2Jb)"),
        (["--folder", "a\rb"], "folder (a\\rb)"),
        (["--partition", "low\r#SBATCH"], "slurm.partition (low\\r#SBATCH)"),
        (["--comment", "a\u2028b"], "slurm.comment (a\\u2028b)"),
        (["--comment", "a\tb"], "slurm.comment (a\\tb)"),
        (["--extra", "mail-user=me\rx"], "slurm.extra (mail-user=me\\rx)"),
        (["--srun-extra", "label=\x1bx"], "slurm.srun_extra (label=\\x1bx)"),
        (["--setup", "echo a\x1bb"], "slurm.setup (echo a\\x1bb)"),
        (["--python", "py\x7f"], "slurm.python (py\\x7f)"),
    ],
)
def test_control_characters_do_not_reach_the_script(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str], words: list[str], named: str
) -> None:
    for more in ([], ["--dry-run"]):
        line = _refusal(capsys, *JOB, *words, *more)
        assert named in line and "one line of text without control characters" in line
    assert slurm.calls("sbatch") == []


def test_a_job_name_of_the_environment_is_one_line(
    slurm: fake_slurm.FakeSlurm,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    quiet_storage: None,
) -> None:
    monkeypatch.setenv("SBATCH_JOB_NAME", "a\ntouch planted")
    assert main(["submit", "--dry-run", *JOB]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "job name (a\\ntouch planted)" in captured.err


def test_a_working_directory_is_one_line(
    slurm: fake_slurm.FakeSlurm,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    quiet_storage: None,
) -> None:
    here = Path("../a\ntouch planted").absolute()
    here.mkdir()
    for name in ("run.yaml", "list.csv"):
        (here / name).symlink_to(Path(name).absolute())
    top = os.getcwd()
    monkeypatch.chdir(here)
    places = [f"run.output_dir={top}/runs/one", "--folder", f"{top}/slurm"]
    assert "working directory (" in _refusal(capsys, *JOB, *places)
    # Of a container, which mounts what the job names
    monkeypatch.chdir(top)
    slurm.say("srun", "--container-image\n")
    job = ["pretrain", "run.yaml", f"data.manifest={here}/list.csv", "run.output_dir=runs/one"]
    assert "path to mount (" in _refusal(capsys, *job, "--container", "image")


def test_what_tasks_run_is_shown_on_lines_of_comments(
    slurm: fake_slurm.FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script of a dry run may be kept and submitted by hand."""
    lines = _dry_run(capsys, *JOB, "--sweep", "data.root='a\ntouch planted',b")
    assert [line for line in lines if line.startswith("touch")] == []


def test_a_copy_holds_contents_and_not_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "hpm_video"
    (package / "data" / "__pycache__").mkdir(parents=True)
    (package / "data" / "__pycache__" / "a.pyc").write_bytes(b"x")
    (package / "__init__.py").write_text("one")
    (tmp_path / "elsewhere.py").write_text("linked")
    (package / "data" / "a.py").symlink_to(tmp_path / "elsewhere.py")
    monkeypatch.setattr(hpm_video, "__file__", str(package / "__init__.py"))
    snapshot = Snapshot(tmp_path / "slurm")
    snapshot.write()
    (tmp_path / "elsewhere.py").write_text("changed")
    (package / "__init__.py").write_text("two")
    files = {str(p.relative_to(snapshot.code)) for p in snapshot.code.rglob("*") if p.is_file()}
    code = {name for name in files if not name.startswith("hpm_video/config/recipes/")}
    assert code == {"hpm_video/__init__.py", "hpm_video/data/a.py"}
    assert (snapshot.code / "hpm_video/data/a.py").read_text() == "linked"
    assert (snapshot.code / "hpm_video/__init__.py").read_text() == "one"
    assert not (snapshot.code / "hpm_video/data/a.py").is_symlink()
    assert Snapshot(tmp_path / "slurm").code != snapshot.code
    again = Snapshot(tmp_path / "slurm")
    again.write()
    assert Snapshot(tmp_path / "slurm").code == again.code
    assert len(list((tmp_path / "slurm" / "code").iterdir())) == 2


def test_jobs_get_nothing_of_the_job_they_are_submitted_from(
    slurm: fake_slurm.FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    inherited = {"RANK": "3", "MASTER_PORT": "1", "SLURM_NTASKS": "9", "SUBMITIT_EXECUTOR": "x"}
    kept = {"SLURM_CONF": "/etc/x", "RANKING": "1", "HOME": os.environ["HOME"]}
    for name, value in {**inherited, **kept}.items():
        monkeypatch.setenv(name, value)
    there = _environment_of_sbatch(slurm, *JOB)
    assert not inherited.keys() & there.keys()
    assert kept.items() <= there.items()
    assert os.environ["RANK"] == "3"


def test_each_job_has_a_secret_that_is_in_its_environment_alone(
    slurm: fake_slurm.FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is submitted from another job."""
    monkeypatch.setenv(VARIABLE, "of another job" * 4)
    secrets = {os.environ[VARIABLE]}
    for number in range(2):
        job = (*JOB, f"run.output_dir={tmp_path / str(number)}")
        secrets.add(_environment_of_sbatch(slurm, *job)[VARIABLE])
        (slurm.folder / "environment").unlink()
    assert len(secrets) == 3
    assert os.environ[VARIABLE] == "of another job" * 4
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"submitit.core._submit" in written  # the script is there
    assert not any(secret.encode() in written for secret in secrets)


# ---------------------------------------------------------------- without a cluster


def test_debug_runs_here_and_now(
    tmp_path: Path, pretrain_arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBMITIT_FOLDER", "")
    arguments = pretrain_arguments(tmp_path / "run", "optim.epochs=1")
    assert main(["submit", *arguments, "--cluster", "debug", "--gpus-per-node", "0"]) == 0
    assert read_records(tmp_path / "run")[-1]["step"] == 6
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["optim"]["epochs"] == 1


def test_a_job_in_the_background_has_a_secret_too(
    tmp_path: Path, pretrain_arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def submit(executor: submitit.LocalExecutor, job: object) -> None:
        found.append(os.environ[VARIABLE])
        raise RuntimeError("enough")

    monkeypatch.setattr(submitit.LocalExecutor, "submit", submit)
    monkeypatch.setenv(VARIABLE, "of another job" * 4)
    words = ["--cluster", "local", "--gpus-per-node", "0"]
    for name in ("one", "two"):
        with pytest.raises(RuntimeError, match="enough"):
            main(["submit", *pretrain_arguments(tmp_path / name), *words])
    assert len({*found, os.environ[VARIABLE]}) == 3


def test_local_runs_in_the_background(
    tmp_path: Path, pretrain_arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    """Followed to its end, and listed; a run folder that submission has touched is still free."""
    arguments = pretrain_arguments(tmp_path / "run", "optim.epochs=1")
    assert main(["submit", *arguments, "--cluster", "local", "--gpus-per-node", "0"]) == 0
    job = re.search(r"^follow +hpm-video jobs follow (\d+)$", capsys.readouterr().out, re.M)[1]
    root = ["--root", str(tmp_path)]
    assert main(["jobs", "follow", job, *root]) == 0
    assert "starts from scratch" in capsys.readouterr().out
    assert main(["jobs", *root]) == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row[:4] == [job, "pretrain", "COMPLETED", "1.00/1"]
    assert not shutil.which("sbatch") or main(["jobs", "cancel", job, *root]) == 2
