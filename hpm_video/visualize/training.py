"""What becomes hard and easy through a training: the job over the checkpoints of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from hpm_video.config import PretrainConfig
from hpm_video.data.loading.bad_videos import UnreadableDataError
from hpm_video.data.loading.clip import read_clip
from hpm_video.data.video.frames import VideoReadError
from hpm_video.evaluate.pretrained import Pretrained
from hpm_video.models.tokens import TokenGrid
from hpm_video.runtime.distributed import join_world
from hpm_video.runtime.files import (
    check_can_be_folder,
    check_is_ours,
    make_folder,
    printable,
    write_atomically,
)
from hpm_video.visualize.history import (
    History,
    Moment,
    WatchedClip,
    ask,
    evenly,
    read_moments,
    untrained,
)
from hpm_video.visualize.tables import check_table, csv_lines
from hpm_video.visualize.training_page import training_page
from hpm_video.weights.checkpoint import run_checkpoints

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
    """Ask at most so many checkpoints of a run about clips; writes training.html and training.csv.

    Raises ValueError (or FileNotFoundError) for a folder without checkpoints, or none that can be
    read, no videos or one that does not exist, a number out of range, no place to write, or other
    files of the same names there; UnreadableDataError where no video can be read.
    """
    if not videos:
        raise ValueError("videos (none) must name at least one file")
    for video in videos:
        if not os.path.exists(video):
            raise FileNotFoundError(f"video ({printable(str(video))}) does not exist")
    numbers = {"num_checkpoints": num_checkpoints, "num_masks": num_masks, "num_views": num_views}
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed ({seed}) must be in [0, {2**63 - 1}]")
    folder = Path(output_dir)
    check_can_be_folder(folder, name="output_dir")
    check_is_ours(folder / PAGE, name="output_dir")
    check_table(folder / TABLE, COLUMNS, name="output_dir")
    there = list(run_checkpoints(run).values())
    with join_world(device, setting="device") as world:
        make_folder(output_dir, name="output_dir")
        history = _watch(
            there, videos, world.device,
            num_checkpoints=num_checkpoints, num_masks=num_masks, num_views=num_views, seed=seed,
        )  # fmt: skip
    text = training_page(history, run=printable(str(run)), num_masks=num_masks)
    write_atomically(folder / TABLE, csv_lines(COLUMNS, _rows(history)))
    write_atomically(folder / PAGE, [text])
    return folder / PAGE, history


def _watch(
    there: Sequence[Path],
    videos: Sequence[str | Path],
    device: torch.device,
    *,
    num_checkpoints: int,
    num_masks: int,
    num_views: int,
    seed: int,
) -> History:
    skipped: list[tuple[Path, str]] = []
    bad: list[tuple[str, str]] = []
    clips: list[WatchedClip] = []
    moments: list[Moment] = []
    config: PretrainConfig | None = None
    grid: TokenGrid | None = None
    batch = torch.empty(0)

    def asked(pretrained: Pretrained) -> Moment:
        return ask(pretrained, batch, num_masks=num_masks, num_views=num_views, seed=seed)

    for pretrained in read_moments(evenly(there, num_checkpoints), device, skipped):
        if config is None:
            config, grid = pretrained.config, pretrained.grid
            batch = _read_clips(videos, config, clips, bad)
            start = untrained(config, device)
            if start is not None:
                moments.append(replace(asked(start), is_remade=True))
        moments.append(asked(pretrained))
    if config is None or grid is None:
        raise ValueError(
            f"none of {len(skipped)} checkpoints of the run can be used, e.g. {skipped[0][1]}"
        )
    return History(
        config,
        grid,
        tuple(clips),
        tuple(moments),
        len(there),
        tuple((printable(path.name), printable(reason)) for path, reason in skipped),
        tuple(bad),
        _records(there[0].parent.parent),
    )


def _read_clips(
    videos: Sequence[str | Path],
    config: PretrainConfig,
    clips: list[WatchedClip],
    bad: list[tuple[str, str]],
) -> torch.Tensor:
    """Add what can be read to ``clips``, and the others, with the reason, to ``bad`` -> clips
    (V, 3, T, S, S) in [0, 1]."""
    read = []
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
        raise UnreadableDataError(
            f"none of {len(bad)} videos can be read, e.g. {bad[0][0]}: {bad[0][1]}"
        )
    return torch.cat(read)


def _records(folder: Path) -> tuple[dict[str, float], ...]:
    """The records of a run; of one that goes on the last may be half written, and is left out."""
    records: list[dict[str, float]] = []
    try:
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            records.append(json.loads(line))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        pass
    return tuple(record for record in records if isinstance(record, dict) and "step" in record)


def _rows(history: History) -> Iterator[Sequence[object]]:
    for moment in history.moments:
        for place, clip in enumerate(history.clips):
            predicted = None if moment.predicted is None else moment.predicted[place].mean()
            spearman = None if moment.spearman is None else moment.spearman[place]
            accuracy = None if moment.rank_accuracy is None else moment.rank_accuracy[place]
            values = (moment.measured[place].mean(), predicted, spearman, accuracy)
            numbers = (None if value is None else f"{value:.9g}" for value in values)
            yield (moment.step, clip.name, *numbers)
