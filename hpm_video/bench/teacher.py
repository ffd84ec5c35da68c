"""Compares sparse teachers, and scores without a teacher, with the full teacher, which sees every
token: quality and cost."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Subset

from hpm_video.bench.flops import multiply_adds
from hpm_video.bench.report import Cell, Report, machine_facts
from hpm_video.bench.timing import median_seconds
from hpm_video.config import DataConfig, MaskingConfig
from hpm_video.config.limits import at_least
from hpm_video.config.values import MaskSource, View
from hpm_video.data.lists.manifest import Manifest, check_some_exist, read_manifest
from hpm_video.data.loading.loader import to_clips, view_loader
from hpm_video.data.samples.views import ViewDataset
from hpm_video.evaluate.mining_quality import hardest_tokens, measured_loss, source_scores
from hpm_video.evaluate.pretrained import Pretrained, load_pretrained, require_scorer
from hpm_video.method.diagnostics import rank_correlation
from hpm_video.method.masking import unit_scores
from hpm_video.method.teacher import score_tokens
from hpm_video.method.teacher_views import num_seen
from hpm_video.models.precision import autocast
from hpm_video.models.tokens import TokenGrid
from hpm_video.runtime.distributed import pick_device

_SEED = 0


@dataclass(frozen=True)
class Candidate:
    """A way to score tokens: the teacher with a view, or another source, which sees all tokens.
    The full teacher has token_ratio 1 and any view."""

    view: View
    token_ratio: float
    draws: int
    source: MaskSource = "predicted"


def bench_teacher(
    *,
    checkpoints: Sequence[str | Path],
    manifest: str | Path | Sequence[str | Path],
    root: str | None,
    num_clips: int,
    num_masks: int,
    views: Sequence[View],
    token_ratios: Sequence[float],
    draws: Sequence[int],
    batch_size: int,
    rounds: int,
    device: str,
    num_workers: int = 1,
    sources: Sequence[MaskSource] = (),
) -> Report:
    """Compare candidates with the full teacher, and all of them with the measured loss.

    The rows of a checkpoint start with its full teacher and end with other sources of masks, such
    as motion. Clips are centre crops from the middle of ``num_clips`` readable videos, drawn at
    random from the list. They are equal for all candidates, and for checkpoints with the same data
    settings. ``num_masks`` random masks measure the loss. Times are medians over ``rounds`` rounds,
    in which all candidates score the same batch in turn. Progress and unreadable videos go to
    stderr.

    Columns:

    - num_tokens: tokens of a clip that all draws together see;
    - spearman_full, spearman_measured: rank correlation over mining units with the full teacher,
      and with the mean reconstruction loss over random masks (1: perfect, 0: chance);
    - overlap: share of the full teacher's hardest units that are also the candidate's hardest; a
      mask at the end of the run determines their number;
    - chance: overlap of random scores;
    - time, multiply_adds: of scoring, relative to the full teacher.

    Raises ValueError before any work for a checkpoint without a predictor, or for too few videos.
    """
    numbers = {"clips": num_clips, "masks": num_masks, "rounds": rounds, "batch-size": batch_size}
    for name, value in numbers.items():
        at_least(f"--{name}", value, 1)
    place = pick_device(device, setting="--device")
    videos = read_manifest(manifest, root=root, labels=False)
    check_some_exist(videos, option="--root ")
    if num_clips > len(videos):
        raise ValueError(f"--clips ({num_clips}) must be at most the {len(videos)} videos listed")
    for checkpoint in checkpoints:
        try:
            require_scorer(load_pretrained(checkpoint))
        except ValueError as error:
            raise ValueError(f"{checkpoint}: {error}") from error
    rows: list[dict[str, Cell]] = []
    for checkpoint in checkpoints:
        pretrained = load_pretrained(checkpoint, device=place)
        sys.stderr.write(f"{checkpoint}: step {pretrained.step}\n")
        asked = candidates(pretrained.grid, views, token_ratios, draws)
        asked += [Candidate("tokens", 1.0, 1, each) for each in sources if each != "none"]
        data = pretrained.config.data
        batches = list(_batches(videos, data, num_clips, batch_size, num_workers))
        quality = _quality(pretrained, asked, batches, num_masks=num_masks)
        seconds, work = _costs(pretrained, asked, to_clips(batches[0], place), rounds=rounds)
        found = zip(asked, quality, seconds, work, strict=True)
        for candidate, (full, measured, overlap, chance), time, products in found:
            seen = num_seen(pretrained.grid, token_ratio=candidate.token_ratio, view=candidate.view)
            # The settings name a single checkpoint
            named = {"checkpoint": str(checkpoint)} if len(checkpoints) > 1 else {}
            how = asdict(candidate)
            source = how.pop("source")
            row: dict[str, Cell] = {
                **named,
                "step": pretrained.step,
                "predictor_input": (
                    pretrained.config.model.predictor_input if source == "predicted" else source
                ),
                **how,
                "num_tokens": min(seen * candidate.draws, pretrained.grid.num_tokens),
                "spearman_full": full,
                "spearman_measured": measured,
                "overlap": overlap,
                "chance": chance,
                "time": time / seconds[0],
                "multiply_adds": products / work[0],
            }
            rows.append(row)
    return Report(
        "teacher",
        machine_facts(place),
        {"checkpoints": list(map(str, checkpoints)), "clips": num_clips, "masks": num_masks},
        rows,
        [
            "overlap: of the hardest tubes; chance: overlap of random scores; spearman_full, "
            "overlap, time and multiply_adds of scoring are relative to the same teacher seeing "
            "all tokens (token_ratio 1)"
        ],
    )


def candidates(
    grid: TokenGrid, views: Sequence[View], token_ratios: Sequence[float], draws: Sequence[int]
) -> list[Candidate]:
    """The full teacher, then all combinations whose draws together leave some tokens unseen.

    Others are pointless: two draws of half the tokens cost more than the full teacher. Combinations
    are also left out if a view gives the same number of tokens as at a higher ratio, for example
    whole time steps of short clips.
    """
    found = {("tokens", grid.num_tokens, 1): Candidate("tokens", 1.0, 1)}
    for view, ratio, number in product(views, sorted(token_ratios, reverse=True), draws):
        seen = num_seen(grid, token_ratio=ratio, view=view)
        if number * ratio < 1 and number * seen < grid.num_tokens:
            found.setdefault((view, seen, number), Candidate(view, ratio, number))
    return list(found.values())


def _batches(
    videos: Manifest, data: DataConfig, num_clips: int, batch_size: int, num_workers: int
) -> Iterator[Tensor]:
    """Batches with one clip of each of ``num_clips`` readable videos: (B, T, S, S, 3) uint8."""
    dataset = ViewDataset(videos, data, num_clips=1, num_crops=1)
    order = torch.randperm(len(videos), generator=torch.Generator().manual_seed(_SEED)).tolist()
    loader = view_loader(
        Subset(dataset, order), batch_size=batch_size, num_workers=num_workers, rank=0, world_size=1
    )
    missing = num_clips
    for batch in loader:
        for index, error in zip(batch.indices.tolist(), batch.errors, strict=True):
            if error is not None:
                sys.stderr.write(f"unreadable, left out: {videos.path(index)}: {error}\n")
        readable = torch.tensor([error is None for error in batch.errors])
        frames = batch.views[:, 0][readable][:missing]
        missing -= len(frames)
        if len(frames):
            yield frames
        if missing == 0:
            return
    readable_count = num_clips - missing
    raise ValueError(f"--clips ({num_clips}) must be at most the {readable_count} readable videos")


@torch.no_grad()
def _score(
    pretrained: Pretrained, candidate: Candidate, clips: Tensor, generator: torch.Generator
) -> Tensor:
    """Clips (B, 3, T, H, W) -> scores of all tokens (B, N); the teacher has the run's precision."""
    how = asdict(candidate)
    if (source := how.pop("source")) != "predicted":
        scores = source_scores(pretrained, clips, source)
        assert scores is not None
        return scores
    with autocast(clips.device, pretrained.config.run.precision):
        return score_tokens(require_scorer(pretrained), clips, **how, generator=generator)


def _quality(
    pretrained: Pretrained, asked: Sequence[Candidate], batches: Sequence[Tensor], *, num_masks: int
) -> list[list[float]]:
    """Means over clips for each candidate: Spearman with the full teacher, Spearman with the
    measured loss, overlap, and its chance level. The first candidate is the full teacher."""
    ratio = pretrained.config.masking.hard_ratio_end or MaskingConfig().hard_ratio_end
    device = pretrained.student.encoder.mean.device
    generator = torch.Generator(device).manual_seed(_SEED)
    to_units = partial(unit_scores, grid=pretrained.grid, tube_length=pretrained.tube_length)
    found: list[Tensor] = []
    for number, frames in enumerate(batches):
        clips = to_clips(frames, device)
        loss = measured_loss(pretrained, clips, num_masks=num_masks, seed=_SEED + number)
        scores = [_score(pretrained, candidate, clips, generator) for candidate in asked]
        hard = [hardest_tokens(pretrained, one, hard_ratio=ratio) for one in scores]
        full, num_hard = to_units(scores[0]), hard[0].sum(dim=1).double()
        columns = [
            (
                rank_correlation(to_units(mine), full),
                rank_correlation(to_units(mine), to_units(loss)),
                (chosen & hard[0]).sum(dim=1) / num_hard,
                num_hard / pretrained.grid.num_tokens,
            )
            for mine, chosen in zip(scores, hard, strict=True)
        ]
        found.append(torch.stack([torch.stack(of_one) for of_one in columns]))
    means: list[list[float]] = torch.cat(found, dim=2).mean(dim=2).tolist()  # (candidates, 4, B)
    return means


def _costs(
    pretrained: Pretrained, asked: Sequence[Candidate], clips: Tensor, *, rounds: int
) -> tuple[list[float], list[float]]:
    """For each candidate, median seconds to score the clips, and multiply-adds per clip."""
    generator = torch.Generator(clips.device).manual_seed(_SEED)
    score = partial(_score, pretrained, generator=generator)
    calls = {candidate: partial(score, candidate, clips) for candidate in asked}
    seconds = median_seconds(calls, rounds=rounds, device=clips.device)
    work = [multiply_adds(partial(score, candidate, clips[:1])) for candidate in asked]
    return list(seconds.values()), work
