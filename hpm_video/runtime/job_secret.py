"""The secret by which the processes of a job authenticate each other.

`hpm-video submit` creates one per job and passes it in the job's environment. Processes started
otherwise share the user's secret, in a file that only the user can read.
"""

import os
import secrets
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from hpm_video.runtime.files import state_folder

VARIABLE = "HPM_VIDEO_JOB_SECRET"
_LEAST_CHARACTERS = 32
_HOW_TO_SET = f'export {VARIABLE}="$(openssl rand -hex 32)" before srun'
_WRITING_S = 5.0  # time for another process to write a file that it has just created


def new_secret() -> str:
    return secrets.token_hex(32)


def job_secret(environment: Mapping[str, str] = os.environ) -> str:
    """The secret of this process's job. Raises ValueError if there is none, or it is unusable."""
    secret = environment.get(VARIABLE)
    if secret is None:
        return _of_user(secret_file())
    if len(secret) < _LEAST_CHARACTERS:
        raise ValueError(
            f"{VARIABLE} ({len(secret)} characters) must have at least {_LEAST_CHARACTERS} "
            f"characters: {_HOW_TO_SET}"
        )
    return secret


def secret_file() -> Path:
    """The file with the user's secret, for jobs without their own."""
    return state_folder() / "secret"


def _of_user(file: Path) -> str:
    """The secret in a file, which the first process creates."""
    try:
        if not file.is_symlink() and not file.exists():
            _make(file)
        return _read(file)
    except OSError as error:
        raise ValueError(
            f"the secret of this user's jobs ({file}) cannot be used: {error.strerror}; "
            f"{_HOW_TO_SET}"
        ) from error


def _make(file: Path) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):  # another process was quicker
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="ascii") as opened:
            opened.write(f"{new_secret()}\n")
            opened.flush()
            os.fsync(descriptor)


def _read(file: Path) -> str:
    give_up = time.monotonic() + _WRITING_S
    while True:
        # Reopen each time, so that a network drive asks its server
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, encoding="ascii", errors="replace") as opened:
            status = os.fstat(descriptor)
            is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
            if not is_ours or status.st_mode & 0o077:
                raise ValueError(
                    f"the secret of this user's jobs ({file}) must be a file that you own and "
                    "nobody else can read: remove it, and the next start makes a new one"
                )
            line = opened.readline(1000)
        if line.endswith("\n") and len(line) > _LEAST_CHARACTERS:
            return line.strip()
        if time.monotonic() > give_up:
            raise ValueError(
                f"the secret of this user's jobs ({file}) must be a line of at least "
                f"{_LEAST_CHARACTERS} characters: remove it, and the next start makes a new one"
            )
        time.sleep(0.1)
