"""Videos per optimizer step, and advice if a list has too few. Needs no PyTorch."""

import shlex

from hpm_video.config import (
    DataConfig,
    FinetuneConfig,
    FinetuneDataConfig,
    OptimConfig,
    PretrainConfig,
)
from hpm_video.config.recipe import find_named
from hpm_video.config.settings import load_config


def step_videos(
    data: DataConfig, optim: OptimConfig, *, num_videos: int, num_processes: int
) -> tuple[int, int]:
    """Videos per step over all ranks, and micro-batches per step.

    Raises ValueError if the list has fewer videos, or if they do not divide evenly.
    """
    # data.batch_size=auto only divides a step later; its videos do not change
    at_once = 1 if data.batch_size == "auto" else data.videos_at_once
    asked = optim.total_batch or at_once * optim.accumulation * num_processes
    if asked > num_videos:
        advice = _advice(data, optim, num_videos=num_videos, num_processes=num_processes)
        raise ValueError(
            f"videos per step ({asked}) must be at most the number of videos ({num_videos}): "
            f"{advice}"
        )
    accumulation = micro_batches(optim, batch_size=at_once, num_processes=num_processes)
    return at_once * accumulation * num_processes, accumulation


def micro_batches(optim: OptimConfig, *, batch_size: int, num_processes: int) -> int:
    """Micro-batches per optimizer step, from optim.accumulation or optim.total_batch.

    ``batch_size``: videos per rank and micro-batch. Raises ValueError if it does not divide evenly.
    """
    if optim.total_batch is None:
        return optim.accumulation
    at_once = batch_size * num_processes
    if optim.total_batch % at_once:
        below = optim.total_batch // at_once * at_once
        nearest = f"{below} or {below + at_once}" if below else str(at_once)
        share, rest = divmod(optim.total_batch, num_processes)
        unit = 2 - batch_size % 2  # keep even numbers even: videos may be mixed in pairs
        fitting = [size for size in range(unit, batch_size, unit) if rest + share % size == 0]
        same_step = f"; to keep the steps, set data.batch_size={fitting[-1]}" if fitting else ""
        raise ValueError(
            f"optim.total_batch ({optim.total_batch}) must be a multiple of data.batch_size x "
            f"processes ({batch_size} x {num_processes} = {at_once}), such as {nearest}{same_step}"
        )
    return optim.total_batch // at_once


def fitting(
    data: DataConfig, optim: OptimConfig, *, num_videos: int, num_processes: int
) -> list[str]:
    """Settings ``group.key=value`` for a short list: four steps per epoch, or what is possible."""
    most = num_videos // num_processes  # per rank and step
    # Even, as mixing takes pairs
    asked = most if data.batch_size == "auto" else data.videos_at_once
    batch_size = min(asked, max(most // 4 // 2 * 2, min(most, 2)))
    accumulation = max(1, most // (4 * batch_size))
    settings = []
    if data.batch_size != "auto" and batch_size != asked:
        settings.append(f"data.batch_size={batch_size}")
    if optim.total_batch is not None:
        settings.append(f"optim.total_batch={batch_size * accumulation * num_processes}")
    elif optim.accumulation != 1:
        settings.append(f"optim.accumulation={min(accumulation, optim.accumulation)}")
    return settings


def _advice(data: DataConfig, optim: OptimConfig, *, num_videos: int, num_processes: int) -> str:
    """Advice if a list has fewer videos than one step takes."""
    if num_videos < num_processes:
        return f"start at most {num_videos} processes"
    settings = fitting(data, optim, num_videos=num_videos, num_processes=num_processes)
    addition = f"add {' '.join(settings)} to the command"
    is_finetuning = isinstance(data, FinetuneDataConfig)
    if not _takes(num_videos, num_processes, is_finetuning=is_finetuning):
        return addition
    if is_finetuning:
        return f"{addition}, or pre-train and fine-tune with the own_videos recipes"
    lists = data.manifest[0] if len(data.manifest) == 1 else f"[{','.join(data.manifest)}]"
    words = shlex.join([f"data.manifest={lists}", "run.output_dir=outputs/own_videos"])
    return f"{addition}, or use the recipe for few videos: hpm-video pretrain own_videos {words}"


def _takes(num_videos: int, num_processes: int, *, is_finetuning: bool) -> bool:
    """Whether the recipe own_videos can make a step of this many videos."""
    recipe: PretrainConfig | FinetuneConfig
    if is_finetuning:
        recipe = load_config(FinetuneConfig, find_named("finetune/own_videos"))
    else:
        recipe = load_config(PretrainConfig, find_named("pretrain/own_videos"))
    data, optim = recipe.data, recipe.optim
    at_once = 1 if data.batch_size == "auto" else data.videos_at_once
    try:
        accumulation = micro_batches(optim, batch_size=at_once, num_processes=num_processes)
    except ValueError:
        return False
    return at_once * accumulation * num_processes <= num_videos
