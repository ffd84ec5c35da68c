"""Videos per optimizer step, and advice if a list has too few. Needs no PyTorch."""

from pathlib import Path

from hpm_video.config import (
    DataConfig,
    FinetuneConfig,
    FinetuneDataConfig,
    OptimConfig,
    PretrainConfig,
)
from hpm_video.config.recipe import find_named
from hpm_video.config.settings import load_config

_FOR_FEW = "own_videos"  # recipe for few videos


def step_videos(
    data: DataConfig,
    optim: OptimConfig,
    *,
    num_videos: int,
    num_processes: int,
    recipe: str | Path | None = None,
) -> tuple[int, int]:
    """Videos per step over all ranks, and micro-batches per step.

    Raises ValueError if the list has fewer videos, or if they do not divide evenly. The message
    proposes the recipe for few videos in place of ``recipe``, if that is another one.
    """
    # data.batch_size=auto only divides a step later; its videos do not change
    at_once = 1 if data.batch_size == "auto" else data.videos_at_once
    asked = optim.total_batch or at_once * optim.accumulation * num_processes
    if asked > num_videos:
        advice = _advice(data, optim, num_videos, num_processes, recipe)
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
        nearest = f"optim.total_batch={nearest}"
        share, rest = divmod(optim.total_batch, num_processes)
        unit = 2 - batch_size % 2  # keep even numbers even: videos may be mixed in pairs
        fitting = [size for size in range(unit, batch_size, unit) if rest + share % size == 0]
        same_step = f"; to keep the steps, set data.batch_size={fitting[-1]}" if fitting else ""
        raise ValueError(
            f"optim.total_batch ({optim.total_batch}) must be a multiple of data.batch_size x "
            f"processes ({batch_size} x {num_processes} = {at_once}), such as {nearest}{same_step}"
        )
    return optim.total_batch // at_once


def check_shares(config: PretrainConfig | FinetuneConfig, num_processes: int) -> int:
    """Raise ValueError if ranks cannot share optim.total_batch evenly; with mixing, in pairs.

    Returns the number of videos that a rank takes together: 2 with mixing, else 1.
    """
    total = config.optim.total_batch
    assert total is not None, "the settings refuse it"
    unit = 2 if isinstance(config, FinetuneConfig) and config.mixing.is_on else 1  # pairs are mixed
    if total % (all_ranks := unit * num_processes):
        pairs = " pairs of" if unit == 2 else ""
        nearest = max(1, round(total / all_ranks)) * all_ranks
        raise ValueError(
            f"optim.total_batch ({total}) must be a multiple of {all_ranks}, so that "
            f"{num_processes} processes get the same number of{pairs} videos; "
            f"try optim.total_batch={nearest}"
        )
    return unit


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


def _advice(
    data: DataConfig,
    optim: OptimConfig,
    num_videos: int,
    num_processes: int,
    recipe: str | Path | None,
) -> str:
    """Advice if a list has fewer videos than one step takes. ``recipe``: as for `step_videos`."""
    if num_videos < num_processes:
        return f"start at most {num_videos} processes"
    settings = fitting(data, optim, num_videos=num_videos, num_processes=num_processes)
    advice = f"add {' '.join(settings)} to the command"
    is_finetuning = isinstance(data, FinetuneDataConfig)
    name = None if recipe is None else Path(recipe).stem
    is_other = name is not None and not name.startswith(_FOR_FEW)
    if is_other and _takes(num_videos, num_processes, is_finetuning=is_finetuning):
        few = f"{_FOR_FEW} (without a GPU {_FOR_FEW}_cpu)"
        advice += f", or use the recipe for few videos in place of {name}: {few}"
    return advice


def _takes(num_videos: int, num_processes: int, *, is_finetuning: bool) -> bool:
    """Whether the recipe own_videos can make a step of this many videos."""
    recipe: PretrainConfig | FinetuneConfig
    if is_finetuning:
        recipe = load_config(FinetuneConfig, find_named(f"finetune/{_FOR_FEW}"))
    else:
        recipe = load_config(PretrainConfig, find_named(f"pretrain/{_FOR_FEW}"))
    data, optim = recipe.data, recipe.optim
    at_once = 1 if data.batch_size == "auto" else data.videos_at_once
    try:
        accumulation = micro_batches(optim, batch_size=at_once, num_processes=num_processes)
    except ValueError:
        return False
    return at_once * accumulation * num_processes <= num_videos
