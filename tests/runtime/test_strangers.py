"""A stranger's process beside a run of two processes: it gets nowhere, and the run goes on."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from processes import LIMIT_S, run_together

HERE = Path(__file__).parent

# What the processes execute first: they are those of a job of submitit's, and wait for the stranger
BEFORE = """
import os, time
from pathlib import Path
import torch.distributed as dist

folder, rank = Path({folder!r}), os.environ["RANK"]
os.environ |= {{"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": {job!r}}}
os.environ |= {{"SUBMITIT_LOCAL_NTASKS": "2"}}
os.environ |= {{"SUBMITIT_LOCAL_GLOBALID": rank, "SUBMITIT_LOCAL_LOCALID": rank}}

def wait_for(name):
    end = time.monotonic() + {limit}
    while not (folder / name).exists():
        assert time.monotonic() < end, name
        time.sleep(0.05)

def say(name, text):
    (folder / "new").write_text(str(text))
    (folder / "new").rename(folder / name)

init = dist.init_process_group
def init_late(*arguments, store, **named):
    if rank == "0":
        say("store", getattr(store, "underlying_store", store).port)
    wait_for("store is spoilt")
    init(*arguments, store=store, **named)

dist.init_process_group = init_late
wait_for("stranger listens")
if rank == "0":
    say("rank 0", os.getpid())
else:
    wait_for("stranger talks")
"""


def test_a_stranger_neither_runs_code_nor_ends_a_run(
    tmp_path: Path, pretrain_arguments: Callable[..., list[str]]
) -> None:
    """It answers before rank 0, crowds around its port, and writes to the store that it finds."""
    job, folder = str(os.getpid()), tmp_path / "run"
    stranger = subprocess.Popen(
        [sys.executable, str(HERE / "stranger.py"), f"local {job} 0", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [HERE.parent, HERE.parents[1]]))},
        stdin=subprocess.PIPE,
    )
    try:
        before = BEFORE.format(folder=str(tmp_path), job=job, limit=LIMIT_S)
        settings = ("data.batch_size=4", "optim.epochs=1", "run.collective_timeout_s=30")
        ended = run_together(2, [pretrain_arguments(folder, *settings)], before=before)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.communicate()
    assert not (tmp_path / "code has run").exists()
    assert [done.returncode for done in ended] == [0, 0], [done.stderr for done in ended]
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()][-1] == 3
