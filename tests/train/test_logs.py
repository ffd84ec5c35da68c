import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hpm_video.cli.main import main
from hpm_video.train.run import logs
from hpm_video.train.run.logs import RunLog, read_records


def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    rule = re.escape(f"{tmp_path} cannot be written: No space left on device")
    log = RunLog(tmp_path, is_main=True, start_step=0, total_steps=1)
    with pytest.raises(ValueError, match=rule), log:
        log.record({"step": 1, "loss": 0.5}, prefix="train")


def test_a_full_disk_does_not_hide_what_failed(tmp_path: Path) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    log = RunLog(tmp_path, is_main=True, start_step=0, total_steps=1)
    with pytest.raises(RuntimeError, match="the first"), log:
        raise RuntimeError("the first")


@pytest.mark.parametrize("line", ["[1]", "null", "5", '"a"', "{}", '{"step": "1"}', '{"step": []}'])
def test_what_is_no_record_is_said_in_one_line(tmp_path: Path, line: str) -> None:
    """Of a run that goes on in a folder of others; nothing of the file is lost."""
    text = f'{{"step": 1, "loss": 1.0}}\n{line}\n{{"step": 2}}\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: must be a record whose step"):
        RunLog(tmp_path, is_main=True, start_step=2, total_steps=4)
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: must be a record whose step"):
        read_records(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_a_file_in_place_of_tensorboards_folder_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").touch()
    with RunLog(tmp_path, is_main=True, start_step=0, total_steps=1) as log:
        log.record({"step": 1, "loss": 0.5}, prefix="train")
    text = (tmp_path / "log.txt").read_text()
    assert text.count("warning: run.loggers: tensorboard failed") == 1
    assert len(read_records(tmp_path)) == 1


def _record(step: int) -> dict[str, float | None]:
    return {
        "step": step, "epoch": step / 8, "loss": 0.75, "rank_accuracy": None if step > 30 else 0.5,
        "grad_norm": 1.0, "lr": 1e-4, "clips_per_second": 12.25, "data_wait_fraction": 0.25,
    }  # fmt: skip


def test_people_see_a_table_and_log_txt_has_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(logs, "is_for_people", lambda stream: True)
    with RunLog(tmp_path, is_main=True, start_step=0, total_steps=40, loggers=()) as log:
        for step in range(1, 41):
            log.progress(0.75)
            log.record(_record(step), prefix="pretrain")
        log.record({"step": 40, "epoch": 5.0, "top1": 0.5}, prefix="probe")
    seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert len(re.findall(r"step +epoch +loss +rank acc\. +lr +clips/s +waiting", seen)) == 2
    assert re.search(r"[\r\n] *7 +0\.88 +0\.7500 +0\.500 +1\.00e-04 +12\.2 +25%", seen)
    assert re.search(r"[\r\n] *31 +3\.88 +0\.7500 +- +1\.00e-04", seen)
    assert "top1 0.5" in seen and "grad_norm" not in seen and "40/40" in seen
    text = (tmp_path / "log.txt").read_text()
    assert text.count("grad_norm 1") == 40 and "rank acc." not in text
    assert len(read_records(tmp_path)) == 41


@pytest.mark.parametrize("job", ["pretrain", "finetune"])
def test_first_figures_come_after_three_steps_on_screen_alone(
    job: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = request.getfixturevalue(f"{job}_arguments")
    assert main(arguments(tmp_path, "run.log_every=5", "optim.epochs=1")) == 0
    lines = capsys.readouterr().out.splitlines()
    (place,) = (number for number, line in enumerate(lines) if line.startswith("after 3 steps: "))
    assert re.fullmatch(
        r"after 3 steps: loss [\d.]+, [\d.e-]+ s per step, about 00:0\d:\d\d left", lines[place]
    )
    assert lines[place + 1].startswith("step 5  epoch")
    assert "after 3 steps" not in (tmp_path / "log.txt").read_text()


def test_records_that_come_as_soon_are_enough(
    tmp_path: Path, pretrain_arguments: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(pretrain_arguments(tmp_path, "run.log_every=2", "optim.epochs=1")) == 0
    assert "after 3 steps" not in capsys.readouterr().out
