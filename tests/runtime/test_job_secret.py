"""The secret of a job: of its environment, else the user's, which nobody else can read."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hpm_video.runtime.job_secret import VARIABLE, job_secret, new_secret, secret_file


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return secret_file()


def test_the_secret_of_the_environment_counts(file: Path) -> None:
    secret = new_secret()
    assert secret != new_secret()
    assert job_secret({VARIABLE: secret}) == secret
    assert not file.exists()


def test_a_short_secret_is_refused_and_not_shown() -> None:
    with pytest.raises(
        ValueError, match=rf"{VARIABLE} \(6 characters\) must have at least 32"
    ) as e:
        job_secret({VARIABLE: "hunter"})
    assert "hunter" not in str(e.value)


def test_whoever_comes_first_makes_the_users_secret(file: Path) -> None:
    with ThreadPoolExecutor(16) as threads:
        found = set(threads.map(lambda _: job_secret({}), range(64)))
    assert len(found) == 1
    assert len(found.pop()) == 64
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_secret_that_others_may_know_is_refused(file: Path) -> None:
    secret = job_secret({})
    file.chmod(0o640)
    with pytest.raises(ValueError, match="must be a file that you own and nobody else can read"):
        job_secret({})
    file.chmod(0o600)
    assert job_secret({}) == secret
    moved = file.rename(file.with_name("moved"))
    file.symlink_to(moved)
    with pytest.raises(ValueError, match=f"export {VARIABLE}="):
        job_secret({})
    file.unlink()
    os.mkfifo(file, 0o600)
    with pytest.raises(ValueError, match="must be a file that you own"):
        job_secret({})


def test_a_folder_that_cannot_be_written_to_is_said(file: Path) -> None:
    file.parent.parent.touch()  # a file where the folder should be
    with pytest.raises(ValueError, match=f"cannot be used: .*export {VARIABLE}="):
        job_secret({})
