import re
from pathlib import Path

import pytest

from hpm_video.train.run.logs import RunLog


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
