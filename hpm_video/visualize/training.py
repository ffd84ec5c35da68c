"""How hardness changes during training: measure the checkpoints of a run."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeGuard

import torch

from hpm_video.config import PretrainConfig
from hpm_video.config.limits import between
from hpm_video.data.loading.bad_videos import none_readable
from hpm_video.data.loading.clip import read_clip
from hpm_video.data.video.frames import VideoReadError
from hpm_video.runtime import files
from hpm_video.runtime.distributed import join_world
from hpm_video.runtime.files import printable
from hpm_video.runtime.reading import parse_json, read_text
from hpm_video.visualize.training_history import (
    History,
    Moment,
    WatchedClip,
    evenly,
    moment_of,
    read_checkpoints,
    untrained,
)
from hpm_video.visualize.training_page import training_page
from hpm_video.visualize.windows import check_videos
from hpm_video.weights.checkpoint import HISTORY, run_checkpoints

PAGE, TABLE = "training.html", "training.csv"
COLUMNS = ("step", "video", "measured_loss", "predicted_loss", "spearman", "rank_accuracy")


def visualize_training(
    run: str | Path,
    videos: Sequence[str | Path],
    output_dir: str | Path,
    *,
    num_checkpoints: int = 12,
    num_masks: int = 8,
    num_views: int = 4,
    seed: int = 0,
    device: str = "auto",
) -> tuple[Path, History]:
    """Measure evenly spaced checkpoints of a run on clips; write training.html and training.csv.

    Raises ValueError (or FileNotFoundError) for a folder without readable checkpoints, missing
    videos, a number out of range, a folder that cannot be written, or files there that are not
    ours; UnreadableDataError if no video is readable.
    """
    check_videos(videos)
    numbers = {"num_checkpoints": num_checkpoints, "num_masks": num_masks, "num_views": num_views}
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1")
    between("seed", seed, 0, 2**63 - 1)
    folder = Path(output_dir)
    files.check_can_be_folder(folder, name="output_dir")
    files.check_is_ours(folder / PAGE, name="output_dir", folder=folder)
    files.check_is_ours(folder / TABLE, columns=COLUMNS, name="output_dir", folder=folder)
    there = list(run_checkpoints(run, history=True).values())
    ask = partial(moment_of, num_masks=num_masks, num_views=num_views, seed=seed)
    skipped: list[tuple[str, str]] = []
    moments: list[Moment] = []
    config: PretrainConfig | None = None
    with join_world(device, setting="--device") as world:
        files.make_folder(output_dir, name="output_dir")
        for pretrained in read_checkpoints(evenly(there, num_checkpoints), world.device, skipped):
            if config is None:
                config, grid = pretrained.config, pretrained.grid
                clips, bad, batch = _read_clips(videos, config)
                if (start := untrained(config, world.device)) is not None:
                    moments.append(replace(ask(start, batch), is_remade=True))
            moments.append(ask(pretrained, batch))
    if config is None:
        raise ValueError(
            f"none of {len(skipped)} checkpoints of the run can be used, e.g. {skipped[0][1]}"
        )
    told = tuple((printable(name), printable(reason)) for name, reason in skipped)
    place = there[0].parent
    records = _records((place.parent if place.name == HISTORY else place).parent)
    history = History(
        config, grid, tuple(clips), tuple(moments), len(there), told, tuple(bad), records
    )
    text = training_page(history, run=str(run), num_masks=num_masks)
    files.write_csv(folder / TABLE, COLUMNS, _rows(history))
    files.write_atomically(folder / PAGE, [text])
    return folder / PAGE, history


def _read_clips(
    videos: Sequence[str | Path], config: PretrainConfig
) -> tuple[list[WatchedClip], list[tuple[str, str]], torch.Tensor]:
    """Readable videos, (video, reason) of the others, and the clips (V, 3, T, S, S) in [0, 1]."""
    clips, bad, read = [], [], []
    for video in videos:
        name = printable(str(video))
        try:
            clip, numbers = read_clip(video, config)
        except VideoReadError as error:
            bad.append((name, printable(error.reason)))
            continue
        frames = (clip[0].permute(1, 2, 3, 0) * 255).round().to(torch.uint8).numpy()
        clips.append(WatchedClip(name, frames, numbers))
        read.append(clip)
    if not read:
        raise none_readable(bad)
    return clips, bad, torch.cat(read)


def _records(folder: Path) -> tuple[dict[str, float], ...]:
    """The records of a run; an incomplete last line of a running one is left out."""
    records: list[dict[str, object]] = []
    with suppress(OSError, UnicodeDecodeError, json.JSONDecodeError):
        for line in read_text(folder / "metrics.jsonl").splitlines():
            records.append(parse_json(line))
    numbers = (
        {name: value for name, value in record.items() if _is_number(value)}
        for record in records
        if isinstance(record, dict)
    )
    return tuple(record for record in numbers if "step" in record)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and abs(value) < 2**63


def _rows(history: History) -> Iterator[Sequence[object]]:
    for moment in history.moments:
        for place, clip in enumerate(history.clips):
            known = (moment.measured, moment.predicted, moment.spearman, moment.rank_accuracy)
            numbers = (None if of is None else f"{of[place].mean():.9g}" for of in known)
            yield (moment.step, clip.name, *numbers)
