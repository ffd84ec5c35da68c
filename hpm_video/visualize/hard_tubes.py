"""What a checkpoint finds hard in one clip: scores, masks and reconstructions."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpm_video.config import MaskingConfig
from hpm_video.data.loading.loader import to_clips
from hpm_video.evaluate import mining_quality
from hpm_video.evaluate.pretrained import Pretrained, reconstruct, run_student
from hpm_video.evaluate.relevance import Onlooker
from hpm_video.method.diagnostics import rank_correlation
from hpm_video.method.masking import Masked, make_mask, unit_scores, units_to_tokens
from hpm_video.models.tokens import TokenGrid
from hpm_video.runtime.pages import Frames
from hpm_video.visualize.geometry import Place
from hpm_video.visualize.windows import Window

Scores = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

# Names of `HardTubes.kinds` as figures and pages show them
KINDS = {
    "predicted": "predicted loss",
    "motion": "frame differences",
    "codec": "codec motion vectors",
    "rollout": "attention rollout of the classifier",
    "relevance": "evidence for the class",
    "measured": "measured loss",
}
NUM_MASKS = 8  # random masks behind a measured loss
NUM_VIEWS = 4  # draws of a sparse teacher's tokens behind a predicted loss


@dataclass(frozen=True)
class HardTubes:
    """What a checkpoint finds hard in one clip. Token arrays are (time, rows, columns).

    Attributes:
        frames: the clip in full frames, (T, H, W, 3) uint8.
        place: the square of these frames that the model sees.
        crop: the pixels of that square, (T, S, S, 3) uint8.
        indices: frame numbers of the clip in the video, (T,).
        grid: number of tokens in time, height and width.
        predicted: predicted loss of every token; only its order matters. None for plain VideoMAE.
        measured: reconstruction loss of every token, averaged over the random masks that hide it.
        random_mask: the mask of both reconstructions.
        honest: the reconstruction by the model alone, (T, S, S, 3) uint8. None if the model
            reconstructs features instead of pixels.
        flattering: the reconstruction with the true mean and variance of every masked token, which
            no model can know. None if ``honest`` is, or if the model predicts raw pixels.
        spearman: rank correlation of predicted and measured loss over tubes; 0 is chance. None for
            plain VideoMAE.
        rank_accuracy: share of pairs of masked tokens that the student ranks right; 0.5 is chance.
            None for plain VideoMAE.
        masking: the run's mask settings.
        hard_ratio: the run's final hard ratio.
        seed: seed of ``mask``.
        others: token scores of other mask sources, such as motion, and of a classifier's relevance.
            Keys are those of `KINDS`.
        seen_as: the classifier's class and score for the clip.
    """

    frames: Frames
    place: Place
    crop: Frames
    indices: npt.NDArray[np.int64]
    grid: TokenGrid
    predicted: Scores | None
    measured: Scores
    random_mask: Mask
    honest: Frames | None
    flattering: Frames | None
    spearman: float | None
    rank_accuracy: float | None
    masking: MaskingConfig
    hard_ratio: float
    seed: int = 0
    others: Mapping[str, Scores] = field(default_factory=dict)
    seen_as: tuple[str, float] | None = None

    @property
    def mask_ratio(self) -> float:
        return self.masking.mask_ratio

    @property
    def tube_length(self) -> int:
        """Length of a tube in tokens."""
        return self.masking.unit_length(self.grid.time)

    @property
    def kinds(self) -> dict[str, Scores]:
        """All scores of the clip by name, from the predicted to the measured loss."""
        predicted = {} if self.predicted is None else {"predicted": self.predicted}
        return {**predicted, **self.others, "measured": self.measured}

    @cached_property
    def agreement(self) -> dict[str, float]:
        """Rank correlation over tubes of each other kind with the measured loss."""
        measured = torch.from_numpy(self.per_tube(self.measured))[None]
        return {
            kind: rank_correlation(torch.from_numpy(self.per_tube(scores))[None], measured).item()
            for kind, scores in self.kinds.items()
            if kind != "measured"
        }

    @property
    def scored_by(self) -> str:
        """The kind of score that defines hard tubes.

        It is the run's ``masking.source``, else the predicted loss, else the measured loss.
        """
        source: str = self.masking.source
        if source in self.kinds:
            return source
        return "measured" if self.predicted is None else "predicted"

    @property
    def scores(self) -> Scores:
        """The scores that define hard tubes, see `scored_by`."""
        return self.kinds[self.scored_by]

    @property
    def hard(self) -> Mask:
        """The hard tubes at the end of the run: `hardest` at the run's own ratios."""
        return self.hardest()

    @cached_property
    def mask(self) -> Mask:
        """A mask as at the end of the run: hard tubes and random others."""
        return self._masked(self.masking, self.hard_ratio).mask.reshape(self.measured.shape).numpy()

    def hardest(self, *, mask_ratio: float | None = None, hard_ratio: float | None = None) -> Mask:
        """Return the hard tokens, which every mask of these ratios hides.

        They are the floor(hard_ratio * masked) tubes with the highest mean score, where masked is
        floor(mask_ratio * tubes); ties go to the first tube. With ``masking.pattern=blocks`` they
        belong to the best-scored blocks that this mask draws. See
        `hpm_video.method.masking.make_mask`.
        """
        ratio = self.mask_ratio if mask_ratio is None else mask_ratio
        masking = replace(self.masking, mask_ratio=ratio)
        chosen = self._masked(masking, self.hard_ratio if hard_ratio is None else hard_ratio)
        return chosen.hard.reshape(self.measured.shape).numpy()

    def _masked(self, masking: MaskingConfig, hard_ratio: float) -> Masked:
        scores = torch.from_numpy(self.per_tube(self.scores))[None]
        if masking.pattern != "blocks":
            # Break ties by order, because the page draws other random numbers and must select the
            # same tubes. Scores become ranks, hardest 0
            scores = -(-scores).argsort(stable=True).argsort().float()
        return make_mask(
            units_to_tokens(scores, self.grid, self.tube_length),
            self.grid,
            masking,
            hard_ratio=hard_ratio,
            batch_size=1,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def per_tube(self, values: Scores) -> Scores:
        """Return the mean token value of every tube, (U,), in the order time, row, column."""
        tokens = torch.from_numpy(values).reshape(1, -1)
        return unit_scores(tokens, self.grid, self.tube_length)[0].numpy()

    def covered(self, chosen: Mask) -> float:
        """Return the share of the measured loss in the selected tokens, in [0, 1]."""
        total = float(self.measured.sum(dtype=np.float64))
        return float(self.measured[chosen].sum(dtype=np.float64)) / total if total > 0 else 0.0


@torch.no_grad()
def ask(
    pretrained: Pretrained,
    window: Window,
    *,
    crop: int = 0,
    seed: int = 0,
    num_masks: int = NUM_MASKS,
    onlooker: Onlooker | None = None,
) -> HardTubes:
    """Apply a checkpoint, and optionally a classifier, to a crop of a window.

    Raises ValueError if a loss is not finite.
    """
    config, grid = pretrained.config, pretrained.grid
    pixels = window.crops[crop]
    clips = to_clips(torch.from_numpy(pixels)[None], pretrained.student.encoder.mean.device)
    given = None if window.codec is None else torch.from_numpy(window.codec[crop])[None].to(clips)
    report = mining_quality.measure_mining(
        pretrained, clips, num_masks=num_masks, num_views=NUM_VIEWS, seed=seed, given=given
    )
    predicted, measured = report.predicted, report.measured
    for name, losses in (("predicted", predicted), ("measured", measured)):
        if losses is not None and not bool(losses.isfinite().all()):
            raise ValueError(f"the checkpoint's {name} losses must be finite, but some are not")
    mask = next(mining_quality.even_masks(pretrained, clips, num_masks=1, seed=seed))
    honest = flattering = None
    if config.loss.has_pixels:
        output = run_student(pretrained, clips, mask)
        complete = partial(reconstruct, pretrained, clips, mask, output=output)
        honest = _pixels(complete())
        if config.loss.normalize_targets:
            flattering = _pixels(complete(true_statistics=True))

    def cells(scores: Tensor) -> Scores:
        """(1, N) -> (time, rows, columns)."""
        return scores.float().reshape(grid.time, grid.height, grid.width).cpu().numpy()

    looks = None if onlooker is None else onlooker(clips)
    others: dict[str, Tensor] = {
        name: found.scores for name, found in report.sources.items() if name != "predicted"
    }
    if looks is not None:
        others |= {"rollout": looks.rollout, "relevance": looks.relevance}
    return HardTubes(
        frames=window.frames,
        place=window.places[crop],
        crop=pixels,
        indices=window.indices,
        grid=grid,
        predicted=None if predicted is None else cells(predicted),
        measured=cells(measured),
        random_mask=cells(mask) > 0,
        honest=honest,
        flattering=flattering,
        spearman=report.spearman,
        rank_accuracy=report.rank_accuracy,
        masking=config.masking,
        hard_ratio=hard_ratio_of(pretrained),
        seed=seed,
        others={name: cells(scores) for name, scores in others.items()},
        seen_as=None if looks is None else (looks.name, looks.score),
    )


def hard_ratio_of(pretrained: Pretrained) -> float:
    """The run's final hard ratio; the default if it masked at random."""
    masking = pretrained.config.masking
    return (masking.mines and masking.hard_ratio_end) or MaskingConfig().hard_ratio_end


def _pixels(clips: Tensor) -> Frames:
    """(1, 3, T, S, S) in [0, 1] -> (T, S, S, 3) uint8."""
    pixels = (clips[0].float().clamp(0, 1) * 255).round().byte()
    return pixels.permute(1, 2, 3, 0).contiguous().cpu().numpy()
