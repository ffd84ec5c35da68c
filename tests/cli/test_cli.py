"""The command line: exit codes, and one clear line for every mistake."""

import csv
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hpm_video.cli.main import JOBS, main
from hpm_video.data.lists import manifest as manifest_module
from hpm_video.data.loading import loader
from hpm_video.data.samples.clips import ClipReader, Request
from hpm_video.train.run.logs import read_records

Arguments = Callable[..., list[str]]
ROOT = Path(__file__).parents[2]


def _refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that ends with exit code 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.endswith("\n")
    assert captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.out + captured.err
    return captured.err


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("masking.mask_ration=0.9", ["mask_ration", "mask_ratio"]),
        ("optim.epochs=many", ["optim.epochs", "many"]),
        ("masking.mask_ratio=1.5", ["masking.mask_ratio (1.5)"]),
        ("data.crop_size=30", ["data.crop_size (30)", "model.patch_size (8)"]),
        ("data.num_frames=5", ["data.num_frames (5)", "model.tubelet_size (2)"]),
        ("masking.tube_length=3", ["masking.tube_length (3)", "2 time steps"]),
        ("masking.mask_ratio=0.01", ["masking.mask_ratio (0.01)", "0 of 16 units"]),
        ("masking.mask_ratio=0.999999999999", ["masking.mask_ratio (0.99", "16 of 16 units"]),
        ("masking.hard_ratio_end=1.1", ["masking.hard_ratio_end (1.1)", "[0, 1]"]),
        ("masking.decoder_mask_ratio=1", ["masking.decoder_mask_ratio (1.0)", "[0, 1)"]),
        (
            "masking.decoder_mask_ratio=0.99",
            ["masking.decoder_mask_ratio (0.99)", "one of 24 masked tokens"],
        ),
        ("teacher.token_ratio=0", ["teacher.token_ratio (0.0)", "(0, 1]"]),
        ("data.batch_size=25", ["data.batch_size", "(25)", "(24)"]),
        ("optim.accumulation=7", ["optim.accumulation", "(28)", "(24)"]),
        ("data.manifest=nowhere.csv", ["nowhere.csv"]),
        ("data.manifest=[]", ["data.manifest"]),
        ("model.heads=5", ["(32)", "(5)", "heads"]),
        ("model.init=nowhere.pt", ["nowhere.pt"]),
        ("run.resume=nowhere.pt", ["nowhere.pt"]),
        ("run.output_dir=null", ["run.output_dir (null)"]),
        ("loss.prediction=none", ["loss.prediction (none)", "hard_ratio_end"]),
    ],
)
def test_a_wrong_setting_is_one_line_and_leaves_nothing(
    tmp_path: Path,
    pretrain_arguments: Arguments,
    setting: str,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = _refusal(pretrain_arguments(tmp_path / "run", setting), capsys)
    assert line.startswith("hpm-video pretrain: ")
    for word in words:
        assert word in line
    assert not (tmp_path / "run").exists()


def test_a_config_that_does_not_exist(
    tmp_path: Path, pretrain_arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = pretrain_arguments(tmp_path / "run")
    arguments[1] = str(tmp_path / "nowhere.yaml")
    assert "nowhere.yaml" in _refusal(arguments, capsys)


@pytest.mark.parametrize("text", ["- a list", "optim: {epochs: 3", "just words", "\xff\xfe\x9c"])
def test_a_config_that_is_none(
    tmp_path: Path,
    pretrain_arguments: Arguments,
    text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = pretrain_arguments(tmp_path / "run")
    arguments[1] = str(tmp_path / "some.yaml")
    (tmp_path / "some.yaml").write_bytes(text.encode("latin-1"))
    assert "some.yaml" in _refusal(arguments, capsys)


@pytest.mark.parametrize("text", ["", "path,label\n", "path,status\nx.mp4,broken\n"])
def test_an_empty_list(
    tmp_path: Path, pretrain_arguments: Arguments, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.csv").write_text(text)
    settings = f"data.manifest={tmp_path / 'empty.csv'}"
    assert "empty.csv" in _refusal(pretrain_arguments(tmp_path / "run", settings), capsys)


def test_the_folder_of_another_run(
    tmp_path: Path,
    pretrained: Path,
    pretrain_arguments: Arguments,
    finetune_arguments: Arguments,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(pretrained, folder, symlinks=True)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for settings in (
        ("masking.mask_ratio=0.8",),
        ("optim.epochs=3", "run.seed=2"),
        ("model.width=64",),
        ("loss.prediction=none", "masking.hard_ratio_end=0"),
    ):
        line = _refusal(pretrain_arguments(folder, *settings), capsys)
        assert "belongs to a run with other settings" in line
        for setting in settings:
            named = setting.split("=")[0]
            assert (named in line) == (named != "optim.epochs")  # of which there may be more
    assert str(folder) in _refusal(finetune_arguments(folder), capsys)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert before == after


def test_a_run_may_go_on_with_other_logging(
    tmp_path: Path, pretrained: Path, pretrain_arguments: Arguments
) -> None:
    shutil.copytree(pretrained, tmp_path / "run", symlinks=True)
    settings = ("run.log_every=3", "run.keep_checkpoints=5", "data.max_bad_fraction=0.5")
    assert main(pretrain_arguments(tmp_path / "run", *settings)) == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("model.width=64",), ["does not fit", "(32, 384)", "(64, 384)"]),
        (("model.predictor_depth=2",), ["does not fit", "predictor.blocks.1"]),
        (("optim.epochs=1",), ["is from step 12", "only 6 steps"]),
        (("optim.epochs=2",), ["is from step 12", "only 12 steps"]),  # nothing is left to train
    ],
)
def test_a_checkpoint_that_does_not_fit(
    tmp_path: Path,
    pretrained: Path,
    pretrain_arguments: Arguments,
    settings: tuple[str, ...],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    resume = ("optim.epochs=3", f"run.resume={pretrained}")
    arguments = pretrain_arguments(tmp_path / "run", *resume, *settings)
    line = _refusal(arguments, capsys)
    for word in words:
        assert word in line
    assert not (tmp_path / "run").exists()


def test_mining_cannot_resume_a_run_without_teacher(
    tmp_path: Path, pretrain_arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("masking.hard_ratio_end=0", "optim.epochs=1")
    plain = tmp_path / "plain"
    assert main(pretrain_arguments(plain, *settings)) == 0
    line = _refusal(pretrain_arguments(tmp_path / "run", f"run.resume={plain}"), capsys)
    assert f"checkpoint ({plain}) has no teacher, but this run mines" in line
    assert not (tmp_path / "run").exists()
    # What it says helps
    assert f"set model.init={plain} instead of run.resume" in line
    settings = (f"model.init={plain}", "optim.epochs=1")
    assert main(pretrain_arguments(tmp_path / "run", *settings)) == 0


@pytest.mark.parametrize(
    ("setting", "grid"),
    [
        ("data.num_frames=8", "4 x 4 x 4 tokens"),
        ("data.crop_size=64", "2 x 8 x 8 tokens"),
        ("model.tubelet_size=4", "1 x 4 x 4 tokens"),
    ],
)
def test_a_resumed_pre_training_has_its_own_grid_only(
    tmp_path: Path,
    pretrained: Path,
    pretrain_arguments: Arguments,
    setting: str,
    grid: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Their weights may fit, but they were trained with other positions."""
    settings = ("optim.epochs=3", f"run.resume={pretrained}", setting)
    line = _refusal(pretrain_arguments(tmp_path / "run", *settings), capsys)
    assert f"({pretrained})" in line
    assert "2 x 4 x 4 tokens" in line
    assert grid in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("where", ["data.manifest", "data.val_manifest"])
def test_a_label_out_of_range(
    tmp_path: Path,
    finetune_arguments: Arguments,
    toy: Path,
    where: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In training there are as many classes as the largest label says, or classes.txt."""
    video = next((toy.parent / "videos").rglob("*.mp4"))
    rows = ["path,label", *(f"{video},{label}" for label in (0, 1, 2, 8))]
    (tmp_path / "bad.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "good.csv").write_text("\n".join(rows[:4]) + "\n")
    shutil.copy(toy.parent / "classes.txt", tmp_path)
    settings = {"data.manifest": "good.csv", "data.val_manifest": "good.csv", where: "bad.csv"}
    given = [f"{key}={tmp_path / name}" for key, name in settings.items()]
    line = _refusal(finetune_arguments(tmp_path / "run", "data.batch_size=1", *given), capsys)
    assert "label (8)" in line
    assert "bad.csv" in line or video.name in line


def test_fine_tuning_needs_labels(
    tmp_path: Path, finetune_arguments: Arguments, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = next((toy.parent / "videos").rglob("*.mp4"))
    (tmp_path / "list.csv").write_text("path\n" + f"{video}\n" * 4)
    settings = f"data.manifest={tmp_path / 'list.csv'}"
    assert "label" in _refusal(finetune_arguments(tmp_path / "run", settings), capsys)


def _with_bad_videos(folder: Path, toy: Path, num_bad: int) -> Path:
    """24 videos of which the last few cannot be read."""
    lines = toy.read_text().splitlines()
    for row in range(1, 25):
        name, rest = lines[row].split(",", 1)
        lines[row] = f"{toy.parent / name},{rest}"
    for row in range(25 - num_bad, 25):
        lines[row] = re.sub(r"^[^,]*", f"broken_{row}.mp4", lines[row])
        (folder / f"broken_{row}.mp4").write_bytes(b"no video")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "list.csv"


def _named_in(folder: Path) -> list[str]:
    with (folder / "bad_videos.csv").open(newline="") as file:
        return [os.path.basename(row["path"]) for row in csv.DictReader(file)]


def test_bad_videos_are_replaced_and_each_is_named_once(
    tmp_path: Path,
    toy: Path,
    pretrain_arguments: Arguments,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Over three epochs, which meet each of them three times or more."""
    settings = (
        *(f"data.manifest={_with_bad_videos(tmp_path, toy, 3)}", "data.max_bad_fraction=0.125"),
        "optim.epochs=3",
    )
    assert main(pretrain_arguments(tmp_path / "run", *settings)) == 0
    names = [f"broken_{row}.mp4" for row in (22, 23, 24)]
    assert sorted(_named_in(tmp_path / "run")) == names
    printed = capsys.readouterr().out
    for name in names:
        assert printed.count(f"{name}: ") == 1
        assert (tmp_path / "run" / "log.txt").read_text().count(f"{name}: ") == 1
    assert len(read_records(tmp_path / "run")) == 9


class HangingReader(ClipReader):
    """Never comes back from one of the bad files, nor lets anybody interrupt it."""

    def read(self, request: Request, out: torch.Tensor) -> None:
        if request.path.endswith("broken_22.mp4"):
            ctypes.PyDLL(None).sleep(1000)  # which keeps the interpreter's lock
        super().read(request, out)


def test_a_video_that_hangs_is_a_bad_video(
    tmp_path: Path,
    toy: Path,
    pretrain_arguments: Arguments,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loader, "ClipReader", HangingReader)
    manifest = _with_bad_videos(tmp_path, toy, 5)
    settings = ("data.max_bad_fraction=0.25", "data.num_workers=2", "data.decode_timeout_s=2")
    arguments = pretrain_arguments(tmp_path / "run", f"data.manifest={manifest}", *settings)
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert sorted(_named_in(tmp_path / "run")) == [f"broken_{row}.mp4" for row in range(20, 25)]
    reason = "given up: reading took longer than data.decode_timeout_s (2)"
    assert printed.count(reason) == 1 and f"broken_22.mp4: {reason}" in printed

    # Another start knows it, and does not wait for it again
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert main([*arguments, "data.decode_timeout_s=0"]) == 0


def _failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr, the decoder's own aside, of a command that ends with exit code 1."""
    capsys.readouterr()
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hpm-video ")
    return line


def test_a_list_that_names_videos_again_is_noticed(
    pretrain_arguments: Arguments, toy: Path, tmp_path: Path
) -> None:
    positions = toy.with_name("positions.csv")
    settings = (f"data.manifest=[{toy},{positions}]", "data.batch_size=256")
    assert main(pretrain_arguments(tmp_path / "run", *settings, "optim.epochs=1")) == 0
    again = len(positions.read_text().splitlines()) - 1
    head = (tmp_path / "run" / "log.txt").read_text().splitlines()[:2]
    assert f"warning: {again} rows of data.manifest name a video of an earlier row" in head[1]
    assert "unused columns: frame, y, x, radius" in head[0]  # of the second list


def test_too_many_bad_videos_stop_the_run(
    tmp_path: Path,
    toy: Path,
    pretrain_arguments: Arguments,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest = _with_bad_videos(tmp_path, toy, 3)
    settings = (f"data.manifest={manifest}", "data.max_bad_fraction=0.1", "optim.epochs=9")
    arguments = pretrain_arguments(tmp_path / "run", *settings)
    for _ in range(2):  # and the run that continues stops again, and names none twice
        line = _failure(arguments, capsys)
        assert line.startswith("hpm-video pretrain: 3 of 24 videos are unreadable (12.5%): ")
        assert line.endswith(str(tmp_path / "run" / "bad_videos.csv"))
        assert len(_named_in(tmp_path / "run")) == len(set(_named_in(tmp_path / "run"))) == 3
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "more than data.max_bad_fraction (0.1) allows" in log
    assert len(read_records(tmp_path / "run")) < 9 * 3


@pytest.mark.parametrize("num_workers", [0, 1])
def test_data_that_are_not_there_stop_the_run(
    tmp_path: Path, toy: Path, pretrain_arguments: Arguments, num_workers: int
) -> None:
    """In one line, whichever process found out, and with no process left: hence a new one."""
    names = ["there.mp4", *(f"gone_{k}.mp4" for k in range(99))]
    (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in names))
    (tmp_path / "wrong").mkdir()
    shutil.copy(next(toy.parent.rglob("*.mp4")), tmp_path / "wrong" / "there.mp4")
    settings = (
        f"data.manifest={tmp_path / 'list.txt'}",
        f"data.num_workers={num_workers}",
        f"data.root={tmp_path / 'wrong'}",
    )
    arguments = pretrain_arguments(tmp_path / "run", *settings)[1:]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "tools/pretrain.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=40,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.search(
        r"^hpm-video pretrain: 20 videos in a row are unreadable, the last .*gone_\d+.mp4: "
        r"no such file; no file was found: check data.root \(.*wrong\)$",
        line,
    )
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "stopped: UnreadableDataError: 20 videos in a row" in log.splitlines()[-1]
    assert "20 videos in a row" not in done.stdout  # the user reads it once
    named = _named_in(tmp_path / "run")
    assert 1 < len(named) == len(set(named)) and all(name.startswith("gone_") for name in named)


def test_a_run_goes_on_once_the_data_are_there(
    tmp_path: Path,
    toy: Path,
    pretrain_arguments: Arguments,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Videos that were missing only because of a wrong root are not held against the right one."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:  # as where the storage is lost once the run has begun
        patch.setattr(manifest_module, "check_some_exist", lambda *_, **__: None)
        line = _failure(pretrain_arguments(folder, "data.root=nowhere"), capsys)
    assert "data.root (nowhere)" in line
    assert len(_named_in(folder)) > 1
    assert main(pretrain_arguments(folder)) == 0
    assert _named_in(folder) == []


def test_videos_that_are_no_videos_say_nothing_of_the_root(
    tmp_path: Path, toy: Path, pretrain_arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = _with_bad_videos(tmp_path, toy, 24)
    arguments = pretrain_arguments(tmp_path / "run", f"data.manifest={manifest}")
    line = _failure(arguments, capsys)
    assert "20 videos in a row are unreadable, the last" in line and "data.root" not in line
    assert Path(line.split("the last ")[1].split(": ")[0]).name in _named_in(tmp_path / "run")


def test_help_names_every_job_and_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(job in text for job in JOBS)
    for job, keys in [
        ("pretrain", ["masking.mask_ratio", "teacher.token_ratio", "run.output_dir"]),
        ("finetune", ["optim.layer_decay", "data.val_manifest"]),
        ("evaluate", ["evaluation.num_clips", "precision"]),
        ("probe", ["probe.knn_neighbours", "--train", "--kind"]),
        ("features", ["batch_size", "--stride", "--per-step"]),
    ]:
        with pytest.raises(SystemExit) as caught:
            main([job, "--help"])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        for key in keys:
            assert key in text
        # Wherever the terminal's width breaks lines
        assert "(auto | float32 | bfloat16 | float16; default" in " ".join(text.split())


@pytest.mark.parametrize("arguments", [[], ["pretraim"], ["pretrain"], ["visualize", "x"]])
def test_a_wrong_command_is_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_our_own_bugs_keep_their_traceback(
    tmp_path: Path, pretrain_arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ValueError from inside a library says nothing about the user's settings."""

    monkeypatch.setattr("hpm_video.train.pretrain.pretrain", lambda config, **how: json.loads("{"))
    with pytest.raises(json.JSONDecodeError):
        main(pretrain_arguments(tmp_path / "run"))


def test_toy_videos_where_nothing_can_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    line = _refusal(["data", "toy", "-o", "/proc/x", "--num-videos", "1"], capsys)
    assert "output_dir (/proc/x) cannot be written" in line


def test_toy_videos_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--num-videos", "3", "--size", "32", "--num-frames", "4"]
    assert main(["data", "toy", "-o", str(tmp_path / "toy"), *sizes]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed == str(tmp_path / "toy" / "manifest.csv")
    assert len(Path(printed).read_text().splitlines()) == 4
    assert "size (33)" in _refusal(
        ["data", "toy", "-o", str(tmp_path / "other"), "--size", "33"], capsys
    )


@pytest.mark.parametrize(
    "job", ["pretrain", "finetune", "evaluate", "probe", "features", "data", "bench"]
)
def test_tools_pass_their_arguments_on(job: str) -> None:
    """Each is the command of its name: compared as text, starting each would take seconds."""
    text = (ROOT / "tools" / f"{job}.py").read_text()
    assert f'main(["{job}", *sys.argv[1:]])' in text


def test_a_mistake_from_a_shell_is_exit_code_2(tmp_path: Path) -> None:
    """In a process of its own, with nothing but the line on stderr."""
    done = subprocess.run(
        [sys.executable, "tools/pretrain.py", str(tmp_path / "nowhere.yaml")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"hpm-video pretrain: config ({tmp_path / 'nowhere.yaml'}) does not exist, as a file"
    )
    assert done.stdout == ""


@pytest.mark.parametrize(
    "module", ["argparse", "hpm_video.cli.terminal", "hpm_video.cli.pretrain", "omegaconf", "numpy"]
)
def test_an_interrupt_while_modules_are_imported_is_one_line(toy: Path, module: str) -> None:
    program = """
import signal, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from hpm_video.cli.main import main
sys.exit(main(sys.argv[2:]))
"""
    words = ["pretrain", "own_videos", f"data.manifest={toy}", "run.output_dir=/proc/no"]
    done = subprocess.run(
        [sys.executable, "-c", program, module, *words], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "hpm-video pretrain: interrupted\n")
