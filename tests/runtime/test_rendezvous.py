"""Which process of a job this one is, whoever started it."""

import pytest

from hpm_video.runtime.rendezvous import Place, find_place, first_host

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
        ({**SRUN, "SLURM_STEP_NODELIST": "b1"}, Place(3, 6, 1, "127.0.0.1", "lab 77 1 0")),
        (LOCAL, Place(1, 2, 1, "127.0.0.1", "local 5")),
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
