"""Models the memory of a step by counting live tensors, without computing anything."""

import torch

from hpm_video.bench.steps import build_student, random_frames, step_on
from hpm_video.config import PretrainConfig
from hpm_video.train.gpu_forms import fake_tensors
from hpm_video.train.live_bytes import LiveBytes


def modelled_bytes(config: PretrainConfig, *, as_on_gpu: bool) -> int:
    """Peak bytes of live tensors in a step after the first, including inputs and state.

    Tensors have shapes but no contents, so this needs little memory and no computation.
    ``as_on_gpu``: follow CUDA's code path instead of the CPU's.
    """
    with torch.device("meta"):
        student = build_student(config)
    live = LiveBytes()
    with fake_tensors(as_on_gpu=as_on_gpu), live:
        student.to_empty(device="cpu")
        frames = random_frames(config)
        for tensor in (*student.parameters(), *student.buffers(), frames):
            live.count(tensor)
        step = step_on(config, frames, student=student)
        step()  # creates the optimizer state
        live.peak = live.live
        step()
    return live.peak
