import re
from pathlib import Path

import pytest

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
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: must be a record with a step"):
        RunLog(tmp_path, is_main=True, start_step=2, total_steps=4)
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: must be a record with a step"):
        read_records(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_a_file_in_place_of_tensorboards_folder_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").touch()
    with RunLog(tmp_path, is_main=True, start_step=0, total_steps=1) as log:
        log.record({"step": 1, "loss": 0.5}, prefix="train")
    text = (tmp_path / "log.txt").read_text()
    assert text.count("warning: run.loggers: tensorboard failed") == 1
    assert len(read_records(tmp_path)) == 1
