"""Steps of a run, learning rate schedule, and optimizers with the recipes' parameter groups."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from hpm_video.config import (
    DataConfig,
    FinetuneOptimConfig,
    OptimConfig,
)
from hpm_video.data.loading.loader import steps_per_epoch
from hpm_video.train.step_videos import step_videos

LAYER_DECAY = 0.75  # default of optim.layer_decay for VideoMAE's encoder


@dataclass(frozen=True)
class Steps:
    """Steps of a run and their learning rates.

    accumulation: micro-batches per step. videos, clips: per step, over all ranks. per_epoch, total:
    numbers of steps. lr_at: step 0, 1, ... -> learning rate.
    """

    accumulation: int
    videos: int
    clips: int
    per_epoch: int
    total: int
    lr_at: Callable[[int], float]

    def are_due(self, steps_done: int, *, every_epochs: int) -> bool:
        """Whether a task with this period in epochs is due; it is also due at the end. 0: never."""
        every = every_epochs * self.per_epoch
        return every > 0 and (steps_done % every == 0 or steps_done == self.total)


def plan_steps(
    data: DataConfig, optim: OptimConfig, *, num_videos: int, num_processes: int
) -> Steps:
    """Steps of a run on this many videos; raises ValueError if there is not even one step."""
    videos, accumulation = step_videos(
        data, optim, num_videos=num_videos, num_processes=num_processes
    )
    return divided(data, optim, videos=videos, num_videos=num_videos, accumulation=accumulation)


def divided(
    data: DataConfig, optim: OptimConfig, *, videos: int, num_videos: int, accumulation: int = 1
) -> Steps:
    """Steps of ``videos`` videos each on ``num_videos`` videos."""
    clips, per_epoch = videos * data.repeats, steps_per_epoch(num_videos, videos)
    lr_at = lr_schedule(optim, videos=videos, clips=clips, steps_per_epoch=per_epoch)
    return Steps(accumulation, videos, clips, per_epoch, optim.epochs * per_epoch, lr_at)


def scaled(base: float, batch_size: int) -> float:
    """Learning rate by the papers' linear scaling rule: base * batch_size / 256."""
    return base * batch_size / 256


def describe_lr(optim: OptimConfig, *, videos: int, clips: int) -> str:
    """One log line with videos and clips per step and the resulting peak learning rate."""
    batch = clips if optim.count_repeats else videos
    return (
        f"{videos} videos, {clips} clips per step: lr {optim.base_lr:g} * {batch} / 256 = "
        f"{scaled(optim.base_lr, batch):.3g}"
    )


def describe_learning(model: nn.Module) -> str | None:
    """One log line with the number of trained parameters; None if all are trained."""
    sizes = [(each.numel(), each.requires_grad) for each in model.parameters()]
    learning, total = sum(n for n, learns in sizes if learns), sum(n for n, _ in sizes)
    if learning == total:
        return None
    return f"{learning:,} of {total:,} parameters are trained ({learning / total:.2%})"


def lr_schedule(
    optim: OptimConfig, *, videos: int, clips: int, steps_per_epoch: int
) -> Callable[[int], float]:
    """Learning rate before step s = 0, 1, ...: linear warm-up, then half a cosine.

    ``videos``, ``clips``: per optimizer step. Base, minimum and warm-up rates are all scaled.
    """
    batch_size = clips if optim.count_repeats else videos
    peak = scaled(optim.base_lr, batch_size)
    schedule: ParamScheduler = CosineParamScheduler(peak, scaled(optim.min_lr, batch_size))
    warmup = optim.warmup / optim.epochs
    if warmup > 0:
        rise = LinearParamScheduler(scaled(optim.warmup_lr, batch_size), peak)
        schedule = CompositeParamScheduler(
            [rise, schedule],
            lengths=[warmup, 1 - warmup],
            interval_scaling=["rescaled", "rescaled"],
        )
    total_steps = optim.epochs * steps_per_epoch
    return lambda step: float(schedule(step / total_steps))


def pretrain_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW; no weight decay on biases, norms and the mask token."""
    groups = param_groups_weight_decay(
        model, optim.weight_decay, no_weight_decay_list=("decoder_input.mask_token",)
    )
    return _adamw(groups, optim)


def finetune_optimizer(model: nn.Module, optim: FinetuneOptimConfig) -> torch.optim.AdamW:
    """AdamW with layer-wise learning-rate decay.

    Of L blocks, block l (from 0) has layer_decay^(L - l) of the rate, the embedding
    layer_decay^(L + 1), the head 1. Models without `group_matcher` have 1 everywhere.
    """
    if hasattr(model, "group_matcher"):
        decay = LAYER_DECAY if optim.layer_decay is None else optim.layer_decay
        groups = param_groups_layer_decay(model, weight_decay=optim.weight_decay, layer_decay=decay)
    else:
        groups = param_groups_weight_decay(model, optim.weight_decay)
    return _adamw(groups, optim)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group ``lr`` times its own ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def _adamw(groups: list[dict[str, object]], optim: OptimConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=optim.base_lr, betas=optim.betas, fused=True)
