"""Mining quality: what a pre-training checkpoint predicts to be hard against what is hard.

Mask sources (the predictor and others) are compared with the reconstruction loss measured under
random masks. Do they rank the tokens of a clip like the student's own losses, and do the tubes they
would mask contain the motion?
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpm_video.config.values import MaskSource
from hpm_video.data.lists.manifest import check_some_exist, read_manifest
from hpm_video.data.loading.bad_videos import none_readable
from hpm_video.data.loading.clip import read_clip, read_codec_scores
from hpm_video.data.prepare.toy import object_mask, read_positions
from hpm_video.data.video.frames import VideoReadError
from hpm_video.evaluate.pretrained import Pretrained, load_pretrained, require_scorer, run_student
from hpm_video.method.diagnostics import rank_correlation
from hpm_video.method.losses import rank_accuracy
from hpm_video.method.masking import make_mask, unit_scores
from hpm_video.method.sources import motion_scores
from hpm_video.method.targets import token_losses
from hpm_video.method.teacher import score_tokens
from hpm_video.method.unit_counts import num_masked_units, num_units
from hpm_video.models.precision import autocast
from hpm_video.models.tokens import patchify
from hpm_video.runtime.reading import read_json

_NUM_MASKS = 8  # for `measure_videos`: random masks that measure the loss of a clip
_NUM_VIEWS = 4  # and draws of a teacher that sees a share of the tokens
# Sources compared with the measured loss
JUDGED: tuple[MaskSource, ...] = ("predicted", "motion", "codec")


@dataclass(frozen=True)
class Agreement:
    """How well a mask source predicts what is hard, over B clips.

    scores (B, N): one per token; only their order within a clip matters. Clips without scores are
        all NaN and do not count below.
    spearman: rank correlation of scores and measured losses over mining units, per clip, averaged
        over clips; 0 is chance.
    coverage: share of the moving object in the hardest quarter of the units, relative to all units;
        1 is chance. None if the object's place is not known.
    """

    scores: Tensor
    spearman: float
    coverage: float | None


@dataclass(frozen=True)
class MiningReport:
    """How well a checkpoint and other mask sources predict what is hard for its student.

    rank_accuracy: share of pairs of masked tokens of a clip that the student ranks right; 0.5 is
        chance. None without a predictor.
    sources: agreement by masking.source: the scorer's prediction if there is one, motion, and
        scores that came with the clips. predicted, spearman and coverage are those of the scorer.
    measured (B, N): loss of every token, see `measured_loss`.
    """

    rank_accuracy: float | None
    sources: Mapping[MaskSource, Agreement]
    measured: Tensor

    @property
    def predicted(self) -> Tensor | None:
        """Predicted loss of every token (B, N), see `predicted_loss`."""
        found = self.sources.get("predicted")
        return None if found is None else found.scores

    @property
    def spearman(self) -> float | None:
        found = self.sources.get("predicted")
        return None if found is None else found.spearman

    @property
    def coverage(self) -> float | None:
        found = self.sources.get("predicted")
        return None if found is None else found.coverage


@torch.no_grad()
def predicted_loss(
    pretrained: Pretrained, clips: Tensor, *, seed: int = 0, num_views: int = 1
) -> Tensor:
    """The scorer's prediction for every token: clips (B, 3, T, H, W) in [0, 1] -> (B, N) float32.

    The scorer sees what the run's teacher saw: all tokens, or the share ``teacher.token_ratio``. In
    the latter case the result is the mean of ``num_views`` draws. Only the order within a clip
    matters. Raises ValueError for a checkpoint without a predictor.
    """
    if num_views < 1:
        raise ValueError(f"num_views ({num_views}) must be at least 1")
    scorer = require_scorer(pretrained)
    teacher = pretrained.config.teacher
    generator = torch.Generator(clips.device).manual_seed(seed)
    ratio, view, draws = teacher.token_ratio, teacher.view, teacher.draws
    score = partial(score_tokens, token_ratio=ratio, view=view, draws=draws, generator=generator)
    views = num_views if ratio < 1 else 1  # without random tokens all draws are equal
    scores = torch.zeros(len(clips), pretrained.grid.num_tokens, device=clips.device)
    with autocast(clips.device, pretrained.config.run.precision):
        for _ in range(views):
            scores += score(scorer, clips)
    return scores / views


def source_scores(
    pretrained: Pretrained,
    clips: Tensor,
    source: MaskSource,
    *,
    seed: int = 0,
    num_views: int = 1,
    num_masks: int = _NUM_MASKS,
    given: Tensor | None = None,
) -> Tensor | None:
    """Token scores by a masking.source: clips (B, 3, T, H, W) in [0, 1] -> (B, N) float32.

    See `predicted_loss` and `measured_loss`. ``given`` (B, N): codec scores that came with the
    clips. None for source none, for predicted without a predictor, and for codec without ``given``.
    """
    if source == "motion":
        patches, size = patchify(clips, pretrained.grid), pretrained.config.model.tubelet_size
        return motion_scores(patches, pretrained.grid, tubelet_size=size)
    if source == "measured":
        return measured_loss(pretrained, clips, num_masks=num_masks, seed=seed)
    if source == "predicted" and pretrained.scorer is not None:
        return predicted_loss(pretrained, clips, seed=seed, num_views=num_views)
    return given if source == "codec" else None


def measured_loss(pretrained: Pretrained, clips: Tensor, *, num_masks: int, seed: int) -> Tensor:
    """Mean reconstruction loss of every token over the random masks that hide it.

    Clips (B, 3, T, H, W) in [0, 1] -> (B, N) float32. Masks and targets follow the checkpoint's
    settings. There are ``num_masks`` masks, or more if it takes more to mask every token once.
    """
    return _measure(pretrained, clips, num_masks=num_masks, seed=seed)[0]


def measure_mining(
    pretrained: Pretrained,
    clips: Tensor,
    *,
    num_masks: int,
    seed: int,
    num_views: int = 1,
    moving: Tensor | None = None,
    given: Tensor | None = None,
) -> MiningReport:
    """Compare mask sources with the measured losses of clips (B, 3, T, H, W) in [0, 1].

    moving (B, N): share of each token that the moving object covers, if known. given (B, N): scores
    that came with the clips. Raises ValueError if ``moving`` does not fit.
    """
    measured, accuracy = _measure(pretrained, clips, num_masks=num_masks, seed=seed)
    grid, tube_length = pretrained.grid, pretrained.tube_length
    losses = unit_scores(measured, grid, tube_length)  # (B, U)
    covered = None
    if moving is not None:
        if moving.shape != measured.shape:
            raise ValueError(
                f"moving must have shape {tuple(measured.shape)}, not {tuple(moving.shape)}"
            )
        covered = unit_scores(moving.to(losses), grid, tube_length)
        if not bool(covered.any()):
            raise ValueError("moving must cover part of at least one token: it is all 0")
    ask = partial(source_scores, pretrained, clips, seed=seed, num_views=num_views, given=given)
    sources: dict[MaskSource, Agreement] = {}
    for source in JUDGED:
        scores = ask(source)
        if scores is None:
            continue
        known = ~scores.isnan().all(dim=1)
        if not bool(known.any()):
            continue
        units, coverage = unit_scores(scores[known], grid, tube_length), None
        if covered is not None:
            hardest = units.nan_to_num(nan=-torch.inf).topk(max(1, units.shape[1] // 4), dim=1)
            theirs = covered[known]
            coverage = (theirs.gather(1, hardest.indices).mean() / theirs.mean()).item()
        correlation = rank_correlation(units, losses[known]).mean().item()
        sources[source] = Agreement(scores, correlation, coverage)
    return MiningReport(accuracy, sources, measured)


def measure_videos(
    checkpoint: str | Path,
    manifests: Sequence[str],
    *,
    root: str | None = None,
    most: int | None = None,
) -> MiningReport:
    """Run `measure_mining` on the middle clips of an even selection of videos from lists.

    If the only list is that of a toy set, the true place of the moving object is used. Clips with
    motion vectors get codec scores. Unreadable videos are left out: the report has one row per
    video that counts. Raises UnreadableDataError if no video is readable.
    """
    pretrained = load_pretrained(checkpoint)
    manifest = read_manifest(list(manifests), root=root, labels=False)
    check_some_exist(manifest)
    folder = Path(manifests[0]).parent
    places, side = {}, 0
    if len(manifests) == 1 and (folder / "positions.csv").is_file():
        places = read_positions(folder / "positions.csv")
        side = read_json(folder / "toy.json")["size"]
    count = min(len(manifest), most or len(manifest))
    clips, moving, given, bad = [], [], [], []
    for index in np.linspace(0, len(manifest) - 1, count).round().astype(int).tolist():
        try:
            path, table = manifest.path(index), manifest.table(index)
            clip, frames = read_clip(path, pretrained.config, table=table)
            scores, has_vectors = read_codec_scores(path, pretrained.config, table=table)
        except VideoReadError as error:
            bad.append((error.path, error.reason))
            continue
        clips.append(clip)
        given.append(scores if has_vectors else torch.full_like(scores, torch.nan))
        if places:
            moving.append(_covered(places[manifest.name(index)][frames], side, pretrained))
    if not clips:
        raise none_readable(bad)
    return measure_mining(
        pretrained,
        torch.cat(clips),
        num_masks=_NUM_MASKS,
        num_views=_NUM_VIEWS,
        seed=0,
        moving=torch.stack(moving) if moving else None,
        given=torch.stack(given),
    )


def _covered(place: np.ndarray, side: int, pretrained: Pretrained) -> Tensor:
    """Share (N,) of each token that an object covers, from its place (T, 3) in full frames."""
    grid, crop_size = pretrained.grid, pretrained.config.data.crop_size
    scale = crop_size / side  # the clip is the full frame, resized
    place = place.astype(np.float64)
    place[:, :2] = (place[:, :2] + 0.5) * scale - 0.5
    place[:, 2] *= scale
    sizes = {"grid_time": grid.time, "grid_height": grid.height, "grid_width": grid.width}
    mask = object_mask(place.astype(np.float32), crop_size, **sizes)
    return torch.from_numpy(mask).flatten()


def hardest_tokens(pretrained: Pretrained, scores: Tensor, *, hard_ratio: float) -> Tensor:
    """Tokens that a mask with this ``hard_ratio`` takes first: (B, N) -> (B, N) bool.

    These are the floor(hard_ratio * masked units) units with the highest mean score.
    """
    return make_mask(
        scores,
        pretrained.grid,
        pretrained.config.masking,
        hard_ratio=hard_ratio,
        batch_size=len(scores),
        generator=torch.Generator(scores.device).manual_seed(0),
    ).hard


@torch.no_grad()
def _measure(
    pretrained: Pretrained, clips: Tensor, *, num_masks: int, seed: int
) -> tuple[Tensor, float | None]:
    """`measured_loss`, and the student's mean rank accuracy if it has a predictor."""
    total = torch.zeros(len(clips), pretrained.grid.num_tokens, device=clips.device)
    count = torch.zeros_like(total)
    patches = patchify(clips, pretrained.grid)
    features = pretrained.features(clips, patches)
    accuracies: list[Tensor] = []
    for mask in even_masks(pretrained, clips, num_masks=num_masks, seed=seed):
        output = run_student(pretrained, clips, mask)
        losses = token_losses(pretrained.config.loss, output, patches, features)  # (B, M)
        total.scatter_add_(1, output.masked, losses)
        count += mask
        if output.predicted_loss is not None:
            predicted = output.predicted_loss.gather(1, output.masked)
            accuracies.append(rank_accuracy(predicted, losses))
    accuracy = torch.stack(accuracies).nanmean().item() if accuracies else None
    return total / count, accuracy


def even_masks(
    pretrained: Pretrained, clips: Tensor, *, num_masks: int, seed: int
) -> Iterator[Tensor]:
    """Random masks (B, N) that mask every unit equally often (within 1) and at least once.

    Each takes the units masked least often so far, ties at random. By symmetry each single mask has
    the distribution of a random mask of units (not of blocks).
    """
    if num_masks < 1:
        raise ValueError(f"num_masks ({num_masks}) must be at least 1")
    grid, tube_length = pretrained.grid, pretrained.tube_length
    masking, size = pretrained.config.masking, len(clips)
    masked = num_masked_units(grid, mask_ratio=masking.mask_ratio, tube_length=tube_length)
    generator = torch.Generator(clips.device).manual_seed(seed)
    count = torch.zeros(size, grid.num_tokens, device=clips.device)
    for _ in range(max(num_masks, math.ceil(num_units(grid, tube_length) / masked))):
        made = make_mask(
            -count, grid, masking.by_units, hard_ratio=1.0, batch_size=size, generator=generator
        )
        count += made.mask
        yield made.mask
