"""The cost model of `bench plan` against real processes on this machine."""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from hpm_video.bench.compared_steps import build_student, make_setting, our_step
from hpm_video.bench.cost_model import Job, Machine, predict
from hpm_video.bench.flops import default_variant
from hpm_video.bench.report import Report, machine_facts
from hpm_video.bench.timing import at_least, round_seconds
from hpm_video.config import ModelConfig
from hpm_video.models.build import token_grid
from hpm_video.runtime.distributed import World, join_world, pick_device
from hpm_video.runtime.host_memory import keep_freed_memory
from hpm_video.runtime.subprocesses import failure_of, given_settings, python

_MUCH = 1e12  # of what is not asked here: loader, checkpoints


def bench_scaling(
    *,
    size: str,
    batch_size: int,
    num_frames: int,
    crop_size: int,
    precision: str,
    processes: int,
    rounds: int,
    device: str,
) -> Report:
    """Time steps of default HPM that ``processes`` do each by itself, an all-reduce as large as
    their gradients, and steps under DDP; from the first two `predict` foretells the third.

    On a CPU gloo, one thread for each process and batch_size clips each; on CUDA NCCL, one GPU.
    """
    for name, value, lowest in (
        ("processes", processes, 2),
        ("rounds", rounds, 1),
        ("batch-size", batch_size, 1),
        ("frames", num_frames, 1),
        ("crop-size", crop_size, 1),
    ):
        at_least(name, value, lowest)
    token_grid(ModelConfig(), num_frames=num_frames, crop_size=crop_size)  # or refuse
    place = pick_device(device, setting="--device")
    measured = _together(
        processes,
        size=size,
        batch_size=batch_size,
        num_frames=num_frames,
        crop_size=crop_size,
        precision=precision,
        rounds=rounds,
        device=place.type,
    )
    num_bytes = measured["gradient_bytes"]
    sent = 2 * (processes - 1) / processes * num_bytes
    machine = Machine(
        clips_per_s=batch_size / measured["alone"],
        gpus_per_node=processes,
        node_gb_s=sent / measured["all_reduce"] / 1e9,
        network_gb_s=_MUCH,
        overlap=0,
        launch_ms=0,
        cores_per_gpu=_MUCH,
        clips_per_core=_MUCH,
        video_kb=0,
        copy_gb_s=_MUCH,
        storage_gb_s=_MUCH,
    )
    job = Job(
        num_videos=batch_size * processes,
        epochs=1,
        repeats=1,
        batch_size=batch_size,
        accumulation=1,
        total_batch=None,
        gradient_bytes=num_bytes,
        checkpoint_bytes=0,
        checkpoint_minutes=1,
        saves_in_background=True,
    )
    foretold = {
        overlap: predict(job, replace(machine, overlap=overlap), processes) for overlap in (0, 1)
    }
    return Report(
        "scaling",
        machine_facts(place),
        {
            "size": size,
            "processes": processes,
            "batch_size": batch_size,
            "frames": num_frames,
            "crop_size": crop_size,
            "precision": precision,
            "rounds": rounds,
            "all_reduce_mb": num_bytes / 1e6,
            "all_reduce_gb_s": machine.node_gb_s,
        },
        [
            {
                "overlap": overlap,
                "alone_s": measured["alone"],
                "all_reduce_s": measured["all_reduce"],
                "predicted_s": found.step_s,
                "measured_s": measured["together"],
                "measured_over_predicted": measured["together"] / found.step_s,
            }
            for overlap, found in foretold.items()
        ],
        [
            "seconds of a step; overlap 0: nothing of the all-reduce hides behind the backward "
            "pass, 1: all that can; on a CPU both want the same cores, so that little hides"
        ],
    )


def _together(processes: int, **settings: Any) -> dict[str, float]:
    """What the main one of so many processes measured. As soon as one fails, all end: RuntimeError
    says what that one complained about."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with ExitStack() as stack:
        running: list[subprocess.Popen[str]] = []
        complaints = []
        for rank in range(processes):
            complaints.append(stack.enter_context(tempfile.TemporaryFile("w+")))
            process = subprocess.Popen(
                **python(__name__, settings, **environment, RANK=str(rank), LOCAL_RANK=str(rank)),
                stdout=subprocess.PIPE,
                stderr=complaints[-1],
            )
            running.append(stack.enter_context(process))
            stack.callback(process.kill)
        while None in (codes := [process.poll() for process in running]) and not any(codes):
            time.sleep(0.1)
        for code, complaint in zip(codes, complaints, strict=True):
            if code:
                complaint.seek(0)
                raise failure_of(code, complaint.read())
        answer = running[0].stdout
        assert answer is not None
        found: dict[str, float] = json.loads(answer.read().splitlines()[-1])
    return found


def _measure(world: World, *, rounds: int, device: str, **settings: Any) -> dict[str, float]:
    """Median seconds of each call, of this process, and the bytes of the gradients."""
    assert world.device.type == device
    setting = make_setting(device=world.device, **settings)
    variant = default_variant()
    weights = sum(p.numel() for p in build_student(setting, variant).parameters())
    gradients = torch.zeros(weights, device=world.device)
    step, together = our_step(setting, variant), our_step(setting, variant, world=world)

    def alone() -> None:
        dist.barrier()  # at the same time as the others
        step()

    calls = {"alone": alone, "all_reduce": lambda: dist.all_reduce(gradients), "together": together}
    times = round_seconds(calls, rounds=rounds, warmup=2, device=world.device)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {**medians, "gradient_bytes": 4 * weights}


def _own_process() -> None:
    settings = given_settings()
    keep_freed_memory()
    with join_world(settings["device"], timeout_s=600) as world:
        if world.device.type == "cpu":
            torch.set_num_threads(1)
        found = _measure(world, **settings)
        if world.is_main:
            sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    _own_process()
