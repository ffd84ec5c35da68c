"""How the processes of a job find each other, whoever started them."""

import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from hpm_video.runtime import rendezvous
from hpm_video.runtime.rendezvous import CommunicationError, Place, find_place, first_host, meet

SRUN = {
    **{
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_ID": "1",
        "SLURM_CLUSTER_NAME": "lab",
        "SLURM_NTASKS": "9",
    },
    **{"SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NODELIST": "gpu[07-08],b1"},
    **{"SLURM_PROCID": "3", "SLURM_LOCALID": "1"},
}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}
OTHERS = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "nowhere"}
BATCH = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "6", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
LOCAL = {
    **{"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "5", "SUBMITIT_LOCAL_NTASKS": "2"},
    **{"SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_LOCALID": "1"},
}
OF_STEP = Place(3, 6, 1, "gpu07", "lab 77 1 0")


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, Place()),
        (TORCHRUN, Place(2, 4, 0)),
        (SRUN, OF_STEP),
        ({**SRUN, "SLURM_RESTART_COUNT": "2"}, Place(3, 6, 1, "gpu07", "lab 77 1 2")),
        ({**SRUN, **OTHERS}, OF_STEP),  # of the shell that srun was called from
        ({**SRUN, **TORCHRUN}, Place(2, 4, 0)),  # srun starts torchrun, one a node
        ({**SRUN, "SUBMITIT_EXECUTOR": "slurm"}, OF_STEP),
        (BATCH, Place()),  # a batch script that calls no srun is one process
        ({**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}, Place()),
        ({"RANK": "1", "WORLD_SIZE": "3"}, Place(1, 3, 0)),  # Kubernetes
        (LOCAL, Place(1, 2, 1, "localhost", "local 5")),
    ],
)
def test_what_was_started_last_counts(environment: dict[str, str], place: Place) -> None:
    assert find_place(environment) == place


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node1", "node1"),
        ("b,a", "b"),
        ("gpu[007-009,12],login1", "gpu007"),
        ("gpu[3,5-7]", "gpu3"),
        ("rack[1-2]n[03,05],x", "rack1n03"),
        ("a-b[1-2].lab.org,c", "a-b1.lab.org"),
    ],
)
def test_first_host_of_a_node_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def _ports(name: str) -> list[int]:
    return random.Random(name).sample(range(20000, 32000), 16)


@pytest.fixture
def free_name() -> Iterator[str]:
    """The name of a job the first four of whose ports are free here."""
    for number in range(1000):
        name = f"job {number} {random.random()}"
        try:
            for port in _ports(name)[:4]:
                with socket.socket() as probe:
                    probe.bind(("", port))
        except OSError:
            continue
        yield name
        return


def test_processes_meet_though_others_have_their_ports(
    free_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that never says a word, another job, and one that says something else."""
    monkeypatch.setattr(rendezvous, "_ASKING_S", 1.0)
    first, second, third, fourth = _ports(free_name)[:4]
    places = [Place(rank, 3, rank, "localhost", free_name) for rank in range(3)]
    with contextlib.ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor())
        stack.enter_context(socket.create_server(("", first)))
        for port, words in [(second, b"hpm-video job: 7\n"), (third, b"\xff")]:
            listener = socket.create_server(("", port))  # as long as this process lives
            arguments = (listener, words)
            threading.Thread(target=rendezvous._answer, args=arguments, daemon=True).start()
        early = threads.submit(
            meet, places[2], timeout_s=60, limit="60 s"
        )  # before there is anybody to meet
        main = meet(places[0], timeout_s=60, limit="60 s")
        late = meet(places[1], timeout_s=60, limit="60 s")
        main.set("word", "yes")
        for found in (late, early.result()):
            assert found.get("word") == b"yes"
            assert found.timeout == timedelta(seconds=60)
        with socket.create_connection(("localhost", fourth)) as connection:
            assert connection.recv(1000) == f"hpm-video {free_name}: {main.port}\n".encode()


def test_nobody_to_meet_is_said(free_name: str) -> None:
    place = Place(1, 2, 0, "localhost", free_name)
    with pytest.raises(
        CommunicationError,
        match=r"rank 1 on .* did not reach rank 0 on localhost within a moment: ",
    ):
        meet(place, timeout_s=0.5, limit="a moment")


TWICE = """
from hpm_video.runtime.distributed import gather_objects, join_world

for number in range(2):
    with join_world("cpu", timeout_s=60) as world:
        print(gather_objects((number, world.rank), world), flush=True)
"""


def test_one_process_may_join_worlds_one_after_another() -> None:
    """With processes that nothing but submitit's numbers tell of each other."""
    of_job = {
        **{name: value for name, value in os.environ.items() if name != "RANK"},
        **{"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_NTASKS": "2"},
        "SUBMITIT_LOCAL_JOB_ID": str(os.getpid()),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWICE],
            env={
                **of_job,
                **{"SUBMITIT_LOCAL_GLOBALID": str(rank), "SUBMITIT_LOCAL_LOCALID": str(rank)},
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        said, _ = process.communicate(timeout=180)
        assert said.splitlines() == [f"[({number}, 0), ({number}, 1)]" for number in range(2)]
