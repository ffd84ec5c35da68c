"""A training step as a config asks for it: what benches and calibrated studies time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hpm_video.config import PretrainConfig
from hpm_video.method.masking import hard_ratio_at
from hpm_video.method.step import configured_step
from hpm_video.method.teacher import Teacher, update_teacher
from hpm_video.models.build import HPM, build_model, token_grid
from hpm_video.models.parallel import spread
from hpm_video.runtime.distributed import World
from hpm_video.train.optim import micro_batches, pretrain_optimizer


def config_step(
    config: PretrainConfig,
    clips: Callable[[], Tensor],
    world: World,
    student: HPM | None = None,
) -> Callable[[], Tensor]:
    """A function that does what the loop of pre-training does in an optimizer step, halfway
    through a run, and returns the loss of its last micro-batch, a scalar, for which nobody waits.

    ``clips`` gives those of a micro-batch, on the device. ``student``: where it is there
    already, trained as it is.
    """
    grid = token_grid(
        config.model, num_frames=config.data.num_frames, crop_size=config.data.crop_size
    )
    torch.manual_seed(0)
    called: nn.Module
    if student is None:
        student = build_model(config.model, grid, predict_loss=config.loss.prediction != "none")
        called = spread(student, world, config.run)  # compiled where the run is
    else:
        called = student
    teacher = Teacher(student) if config.masking.mines else None
    optimizer = pretrain_optimizer(student, config.optim)
    compute = configured_step(config, grid)
    generator = torch.Generator(world.device).manual_seed(0)
    masking = config.masking
    hard_ratio = hard_ratio_at(0.5, masking.hard_ratio_start, masking.hard_ratio_end)
    accumulation = micro_batches(
        config.optim, batch_size=config.data.batch_size, num_processes=world.size
    )

    def step() -> Tensor:
        for _ in range(accumulation):
            result = compute(called, teacher, clips(), hard_ratio=hard_ratio, generator=generator)
            (result.loss / accumulation).backward()
        nn.utils.clip_grad_norm_(student.parameters(), config.optim.clip_grad or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        if teacher is not None:
            update_teacher(teacher, student, config.teacher.momentum_start)
        return result.loss.detach()

    return step
