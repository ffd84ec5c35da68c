"""Memory of a step by counting tensors that are alive, without computing anything."""

import torch

from hpm_video.bench.steps import build_student, random_frames, step_on
from hpm_video.config import PretrainConfig
from hpm_video.train.gpu_forms import fake_tensors
from hpm_video.train.live_bytes import LiveBytes


def modelled_bytes(config: PretrainConfig, *, as_on_gpu: bool) -> int:
    """Most bytes alive in a step of a training under way, inputs and state included.

    Tensors have shapes but no contents, so that no memory is taken and nothing computed: the size
    of the machine does not matter. ``as_on_gpu``: in the forms that CUDA takes, else the CPU's.
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
        step()  # makes the optimizer's state
        live.peak = live.live
        step()
    return live.peak
