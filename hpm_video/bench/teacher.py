"""How well sparse teachers stand in for the full one, which sees everything, and at what cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from torch.utils.data import Subset
from torch.utils.flop_counter import FlopCounterMode

from hpm_video.bench.report import Report, machine_facts
from hpm_video.bench.timing import median_seconds
from hpm_video.config import DataConfig, MaskingConfig
from hpm_video.config.values import View
from hpm_video.data.lists.manifest import Manifest, read_manifest
from hpm_video.data.loading.loader import to_clips, view_loader
from hpm_video.data.samples.views import ViewDataset
from hpm_video.evaluate.mining_quality import hardest_tokens, measured_loss
from hpm_video.evaluate.pretrained import Pretrained, load_pretrained, require_scorer
from hpm_video.method.diagnostics import rank_correlation
from hpm_video.method.masking import unit_scores
from hpm_video.method.teacher import score_tokens
from hpm_video.method.teacher_views import num_seen
from hpm_video.models.precision import autocast

TOKEN_RATIOS = (0.5, 0.25, 0.1)
DRAWS = (1, 2)


@dataclass(frozen=True)
class Candidate:
    """A way to ask the teacher; the full one is token_ratio 1, with any view."""

    view: View
    token_ratio: float
    draws: int


@dataclass(frozen=True)
class TeacherRow:
    """What a candidate's scores of mining units are worth: means over ``num_clips`` clips.

    checkpoint, step: where the teacher is from; predictor_input: what its predictor looks at.
    view, token_ratio, draws: the candidate; its draws together see ``num_tokens`` of a clip.
    spearman_full, spearman_measured: rank correlation with the scores of the full teacher, and
        with the mean reconstruction loss over random masks. 1 is perfect, 0 is chance.
    overlap: share of the full teacher's hardest units, as many as a mask at the end of the run
        has, that are also the candidate's. ``chance`` is what random scores would get.
    time, multiply_adds: of scoring, relative to the full teacher.
    """

    checkpoint: str
    step: int
    predictor_input: str
    view: str
    token_ratio: float
    draws: int
    num_tokens: int
    num_clips: int
    spearman_full: float
    spearman_measured: float
    overlap: float
    chance: float
    time: float
    multiply_adds: float


def study_teachers(
    checkpoints: Sequence[str | Path],
    manifest: str | Path | Sequence[str | Path],
    *,
    num_clips: int = 200,
    num_masks: int = 32,
    views: Sequence[View] = get_args(View),
    token_ratios: Sequence[float] = TOKEN_RATIOS,
    draws: Sequence[int] = DRAWS,
    batch_size: int = 20,
    num_rounds: int = 5,
    num_workers: int = 1,
    root: str | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> list[TeacherRow]:
    """Compare candidates with the full teacher, and all with what is hard -> rows, per
    checkpoint the full teacher first.

    The clips are the middle ones, cropped to the centre, of ``num_clips`` readable videos of the
    list, drawn by ``seed``: the same for every candidate and checkpoint of the same data settings.
    ``num_masks`` random masks measure the loss; times are medians over ``num_rounds`` rounds in
    which all candidates score the same batch in turn. Progress and unreadable videos go to ``say``.
    Raises ValueError for a checkpoint without a predictor, before any work, or too few videos.
    """
    for name, value in (
        ("num_clips", num_clips),
        ("num_masks", num_masks),
        ("num_rounds", num_rounds),
        ("batch_size", batch_size),
    ):
        if value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1")
    videos = read_manifest(manifest, root=root, labels=False)
    if num_clips > len(videos):
        raise ValueError(f"num_clips ({num_clips}) must be at most the {len(videos)} videos listed")
    for checkpoint in checkpoints:
        try:
            require_scorer(load_pretrained(checkpoint))
        except ValueError as error:
            raise ValueError(f"{checkpoint}: {error}") from error
    rows: list[TeacherRow] = []
    for checkpoint in checkpoints:
        pretrained = load_pretrained(checkpoint, device=device)
        say(f"{checkpoint}: step {pretrained.step}")
        asked = candidates(pretrained, views=views, token_ratios=token_ratios, draws=draws)
        batches = list(
            _batches(
                videos,
                pretrained.config.data,
                num_clips=num_clips,
                batch_size=batch_size,
                num_workers=num_workers,
                seed=seed,
                say=say,
            )
        )
        quality = _quality(pretrained, asked, batches, num_masks=num_masks, seed=seed)
        clips = to_clips(batches[0], device)
        times = _relative_times(pretrained, asked, clips, num_rounds=num_rounds)
        work = [_multiply_adds(pretrained, candidate, clips[:1]) for candidate in asked]
        for candidate, (full, measured, overlap, chance), seconds, flops in zip(
            asked, quality.tolist(), times, work, strict=True
        ):
            seen = num_seen(pretrained.grid, token_ratio=candidate.token_ratio, view=candidate.view)
            rows.append(
                TeacherRow(
                    checkpoint=str(checkpoint),
                    step=pretrained.step,
                    predictor_input=pretrained.config.model.predictor_input,
                    view=candidate.view,
                    token_ratio=candidate.token_ratio,
                    draws=candidate.draws,
                    num_tokens=min(seen * candidate.draws, pretrained.grid.num_tokens),
                    num_clips=num_clips,
                    spearman_full=full,
                    spearman_measured=measured,
                    overlap=overlap,
                    chance=chance,
                    time=seconds,
                    multiply_adds=flops / work[0],
                )
            )
    return rows


def candidates(
    pretrained: Pretrained,
    *,
    views: Sequence[View],
    token_ratios: Sequence[float],
    draws: Sequence[int],
) -> list[Candidate]:
    """The full teacher, then every combination whose draws would leave tokens unseen: two
    draws of half the tokens cost more than the full teacher.

    Where a view can only give the same number of tokens as at a higher ratio, as whole time steps
    of short clips, the combination is left out.
    """
    grid, found = pretrained.grid, [Candidate("tokens", 1.0, 1)]
    known: set[tuple[View, int, int]] = set()
    for view in views:
        for ratio in sorted(token_ratios, reverse=True):
            for number in draws:
                seen = num_seen(grid, token_ratio=ratio, view=view)
                is_part = number * ratio < 1 and number * seen < grid.num_tokens
                if is_part and (view, seen, number) not in known:
                    known.add((view, seen, number))
                    found.append(Candidate(view, ratio, number))
    return found


def report_teachers(rows: Sequence[TeacherRow], *, device: torch.device, num_masks: int) -> Report:
    """The rows of a study as a report."""
    hidden = ["num_clips"]  # in the settings, as a single checkpoint is
    if len({row.checkpoint for row in rows}) == 1:
        hidden.append("checkpoint")
    shown = [item.name for item in fields(TeacherRow) if item.name not in hidden]
    return Report(
        "teacher",
        machine_facts(device),
        {
            "checkpoints": list(dict.fromkeys(row.checkpoint for row in rows)),
            "clips": rows[0].num_clips,
            "masks": num_masks,
        },
        [{name: getattr(row, name) for name in shown} for row in rows],
        [
            "overlap of the hardest tubes, and what it is by chance; spearman_full and overlap are "
            "with the same teacher seeing everything (token_ratio 1), to which time and "
            "multiply-adds of scoring are relative"
        ],
    )


def _batches(
    videos: Manifest,
    data: DataConfig,
    *,
    num_clips: int,
    batch_size: int,
    num_workers: int,
    seed: int,
    say: Callable[[str], None],
) -> Iterator[Tensor]:
    """One clip of each of ``num_clips`` readable videos: frames (B, T, S, S, 3) uint8."""
    dataset = ViewDataset(videos, data, num_clips=1, num_crops=1)
    order = torch.randperm(len(videos), generator=torch.Generator().manual_seed(seed)).tolist()
    loader = view_loader(
        Subset(dataset, order),
        batch_size=batch_size,
        num_workers=num_workers,
        rank=0,
        world_size=1,
    )
    missing = num_clips
    for batch in loader:
        for index, error in zip(batch.indices.tolist(), batch.errors, strict=True):
            if error is not None:
                say(f"unreadable, left out: {videos.path(index)}: {error}")
        readable = torch.tensor([error is None for error in batch.errors])
        frames = batch.views[:, 0][readable][:missing]
        missing -= len(frames)
        if len(frames):
            yield frames
        if missing == 0:
            return
    raise ValueError(f"num_clips ({num_clips}): only {num_clips - missing} videos are readable")


@torch.no_grad()
def _score(
    pretrained: Pretrained, candidate: Candidate, clips: Tensor, generator: torch.Generator
) -> Tensor:
    """Clips (B, 3, T, H, W) -> predicted loss of every token (B, N), in the run's precision."""
    with autocast(clips.device, pretrained.config.run.precision):
        return score_tokens(
            require_scorer(pretrained),
            clips,
            token_ratio=candidate.token_ratio,
            view=candidate.view,
            draws=candidate.draws,
            generator=generator,
        )


def _quality(
    pretrained: Pretrained,
    asked: Sequence[Candidate],
    batches: Sequence[Tensor],
    *,
    num_masks: int,
    seed: int,
) -> Tensor:
    """Means over clips for each candidate, the first being the full teacher: (candidates, 4)
    of Spearman with the full teacher, with the measured loss, overlap, and its chance level."""
    grid, tube_length = pretrained.grid, pretrained.tube_length
    ratio = pretrained.config.masking.hard_ratio_end or MaskingConfig().hard_ratio_end
    device = pretrained.student.encoder.mean.device
    generator = torch.Generator(device).manual_seed(seed)
    found: list[Tensor] = []
    for number, frames in enumerate(batches):
        clips = to_clips(frames, device)
        loss = measured_loss(pretrained, clips, num_masks=num_masks, seed=seed + number)
        scores = [_score(pretrained, candidate, clips, generator) for candidate in asked]
        hard = [hardest_tokens(pretrained, one, hard_ratio=ratio) for one in scores]
        units = [unit_scores(one, grid, tube_length) for one in scores]
        measured = unit_scores(loss, grid, tube_length)
        num_hard = hard[0].sum(dim=1).double()
        columns = [
            torch.stack(
                [
                    rank_correlation(mine, units[0]),
                    rank_correlation(mine, measured),
                    (chosen & hard[0]).sum(dim=1) / num_hard,
                    num_hard / grid.num_tokens,
                ]
            )
            for mine, chosen in zip(units, hard, strict=True)
        ]
        found.append(torch.stack(columns))  # (candidates, 4, B)
    return torch.cat(found, dim=2).mean(dim=2)


def _relative_times(
    pretrained: Pretrained, asked: Sequence[Candidate], clips: Tensor, *, num_rounds: int
) -> list[float]:
    """Median time of each candidate, relative to that of the first."""
    generator = torch.Generator(clips.device).manual_seed(0)
    sides = {
        str(place): partial(_score, pretrained, candidate, clips, generator)
        for place, candidate in enumerate(asked)
    }
    seconds = list(median_seconds(sides, rounds=num_rounds, device=clips.device).values())
    return [value / seconds[0] for value in seconds]


def _multiply_adds(pretrained: Pretrained, candidate: Candidate, clips: Tensor) -> float:
    """Multiply-adds of scoring these clips, attention included."""
    # fvcore, which counts elsewhere, has to trace, which scoring does not allow.
    with FlopCounterMode(display=False) as counter:
        _score(pretrained, candidate, clips, torch.Generator(clips.device))
    return counter.get_total_flops() / 2
