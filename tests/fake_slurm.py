"""SLURM's commands as small scripts: each notes how it was called, and says what it was told to."""

import os
import sys
from pathlib import Path

import pytest

# name|limit|job size|nodes|cores|GPUs; low is the default, of two kinds of nodes
SINFO = """\
low*|2-00:00:00|1-3|4|16|gpu:8
low*|2-00:00:00|1-3|2|64|gpu:a100:4(S:0-1),shard:9
high|infinite|1-infinite|2|16|(null)
"""


class FakeSlurm:
    """The commands in ``folder``, which is first on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("sinfo", "squeue", "sacct", "sbatch", "scontrol", "scancel", "srun"):
            self.say(name, "")
        self.say("sinfo", SINFO)
        self.say("sbatch", "Submitted batch job 42\n")

    def say(self, name: str, text: str, *, error: str = "", code: int = 0) -> None:
        """Let a command print this from now on."""
        (self.folder / f"{name}.out").write_text(text)
        (self.folder / f"{name}.err").write_text(error)
        script = self.folder / name
        here = f"{self.folder}/{name}"
        script.write_text(
            f'#!/bin/sh\necho "$@" >>{here}.calls\n/bin/cat {here}.out\n'
            f"/bin/cat {here}.err >&2\nexit {code}\n"
        )
        script.chmod(0o755)

    def remove(self, *names: str) -> None:
        for name in names:
            (self.folder / name).unlink()

    def calls(self, name: str) -> list[str]:
        """The arguments of each call so far."""
        file = self.folder / f"{name}.calls"
        return file.read_text().splitlines() if file.exists() else []


def install(folder: Path, patch: pytest.MonkeyPatch) -> FakeSlurm:
    """The fakes, with nothing else on PATH but what our own jobs need."""
    fake = FakeSlurm(folder / "bin")
    patch.setenv("PATH", os.pathsep.join([str(fake.folder), os.path.dirname(sys.executable)]))
    patch.setenv("XDG_STATE_HOME", str(folder / "state"))
    return fake
