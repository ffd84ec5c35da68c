"""Refusals of run folders name what to give instead, or the command that helps."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hpm_video.cli.main import main
from hpm_video.runtime.lock import lock_folder, unlock_folder
from hpm_video.weights.checkpoint import find_checkpoint, run_checkpoints

Arguments = Callable[..., list[str]]
SETTINGS = ["device=cpu", "precision=float32", "num_workers=0"]


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, pretrained: Path, finetune_arguments: Arguments
) -> Path:
    """A folder with a pre-training and a fine-tuning from it."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(pretrained, folder / "pretrained", symlinks=True)
    init = f"model.init={folder / 'pretrained'}"
    assert main(finetune_arguments(folder / "finetuned", init, "optim.epochs=1")) == 0
    return folder


@pytest.fixture
def place(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of these runs; the working folder is the one above."""
    shutil.copytree(runs, tmp_path / "w", symlinks=True)
    monkeypatch.chdir(tmp_path)
    return Path("w")


def _refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main(list(map(str, words))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def _clip(toy: Path) -> Path:
    return next((toy.parent / "videos" / "up").glob("*.mp4"))


def test_a_run_without_a_checkpoint_is_continued_by_the_command_that_is_named(
    place: Path, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = place / "finetuned"
    shutil.rmtree(run / "checkpoints")
    commands = set()
    for words in (["evaluate", run], ["evaluate", run, "--manifest", toy], ["probe", run]):
        line = _refusal(capsys, *words)
        assert f"checkpoint ({run}): the run has not saved a checkpoint yet; " in line
        commands.add(line.partition("to continue it: hpm-video ")[2])
    (command,) = commands
    assert main(shlex.split(command)) == 0  # the copy, not the run that it was copied from
    assert find_checkpoint(run).is_file()


def test_a_run_that_still_runs_is_said_to(place: Path) -> None:
    run = place / "finetuned"
    shutil.rmtree(run / "checkpoints")
    for find in (find_checkpoint, run_checkpoints):
        lock_folder(run)
        try:
            with pytest.raises(FileNotFoundError, match=r"is running \(process \d+ on .+ tail w/f"):
                find(run)
        finally:
            unlock_folder(run)
        with pytest.raises(FileNotFoundError, match="to continue it: hpm-video finetune w/fine"):
            find(run)


def test_the_checkpoint_that_is_there_is_named(
    place: Path, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = place / "finetuned" / "checkpoints"
    (folder / "last").resolve().rename(folder.absolute() / "best.pt")
    line = _refusal(capsys, "evaluate", place / "finetuned", "--manifest", toy, *SETTINGS)
    assert line.endswith(f"holds no checkpoints/last; give {folder / 'best.pt'}")
    given = line.split()[-1]
    assert main(["evaluate", given, "--manifest", str(toy), *SETTINGS]) == 0


def test_runs_in_or_beside_a_folder_are_named(
    place: Path, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "pictures").mkdir()
    for folder, where in ((place, "in"), (place / "pictures", "beside")):
        line = _refusal(capsys, "predict", folder, _clip(toy))
        assert line.endswith(f"give a run {where} it: w/finetuned")
        line = _refusal(capsys, "visualize", folder, _clip(toy), "-o", "p")
        assert line.endswith(f"give a run {where} it: w/pretrained")


def test_a_run_of_the_other_kind_is_named(
    place: Path, runs: Path, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one that belongs to the given run; here the init is that of the runs copied from."""
    clip, yaml = _clip(toy), place / "finetuned" / "config.yaml"
    line = _refusal(capsys, "visualize", place / "finetuned", clip, "-o", "p")
    assert f"give {runs / 'pretrained'}, from which it was fine-tuned; " in line
    yaml.write_text(yaml.read_text().replace(str(runs), str(place.absolute())))
    shutil.copytree(place / "finetuned", place / "another", symlinks=True)
    other = place / "another" / "config.yaml"
    other.write_text(re.sub(r"init: .*", "init: null", other.read_text()))
    for model in (place / "pretrained", place / "pretrained" / "checkpoints" / "last"):
        for job in (["evaluate", model], ["evaluate", model, "--manifest", toy]):
            line = _refusal(capsys, *job)
            assert "must be of kind finetune, not pretrain; give w/finetuned, which was" in line
        assert "give w/finetuned, which was" in _refusal(capsys, "predict", model, clip)
    line = _refusal(capsys, "visualize", place / "another", clip, "-o", "p")
    assert "give w/pretrained (the pre-training beside it)" in line

    line = _refusal(capsys, "visualize", place / "finetuned", clip, "-o", "p")
    model, classifier = re.findall(r"give (\S+), .* add (--classifier \S+)$", line)[0]
    words = [model, str(clip), *classifier.split(), "-o", "p", "--device", "cpu", "--formats"]
    assert main(["visualize", *words]) == 0


def test_a_command_makes_a_run_where_there_is_none(
    place: Path, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(place / "finetuned")
    line = _refusal(capsys, "predict", place / "pretrained", _clip(toy))
    assert line.endswith(
        "make one: hpm-video finetune own_videos model.init=w/pretrained "
        f"data.manifest={toy} run.output_dir=w/finetuned"
    )
    # What `hpm-video start` has prepared for this run, not for another one
    for init, is_prepared in ((place / "other", False), (place / "pretrained", True)):
        (place / "finetune.yaml").write_text(f"model:\n  init: {init.absolute()}\n")
        line = _refusal(capsys, "predict", place / "pretrained", _clip(toy))
        assert line.endswith("make one: hpm-video finetune w/finetune.yaml") == is_prepared


def test_settings_are_refused_without_what_reads_lists() -> None:
    """A mistyped setting would wait for it."""
    code = "import sys, hpm_video.train.output_folder; print('hpm_video.data.lists' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
