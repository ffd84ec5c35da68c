"""A real SLURM cluster of two nodes on this machine, for the tests of this folder."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "squeue")
INSTALL = "apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Mapping[str, str]]:
    """The environment in which commands find the cluster, and jobs this checkout's package.

    It signals what tasks have forked too, as not all clusters do, and is the harder on us for it.
    """
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no SLURM on this machine (no {', '.join(missing)}): {INSTALL}")
    tool = str(HERE / "mini-slurm")
    proctrack = os.environ.get("MINI_SLURM_PROCTRACK", "linuxproc")
    started = subprocess.run(
        # Time to say why, on machines that are busy, between SIGTERM and SIGKILL
        [tool, "start", "--nodes", "2", "--proctrack", proctrack, "--kill-wait", "20"],
        stdout=subprocess.PIPE,
        text=True,
        timeout=180,
        check=False,
    )
    if started.returncode:
        pytest.fail("mini-slurm could not start a cluster, see above", pytrace=False)
    environment = {
        **os.environ,
        **dict(line.split("=", 1) for line in started.stdout.splitlines()),
        "PYTHONPATH": f"{ROOT}:{HERE}",
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
    }
    try:
        yield environment
    finally:
        stop = [tool, "stop", "--rm"]
        subprocess.run(stop, env=environment, timeout=180, check=False)
