"""What a checkpoint finds hard in one clip of one video: scores, masks and reconstructions."""

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

# What ranks tokens, by the names of `HardTubes.kinds`, as figures and pages call it
KINDS = {
    "predicted": "the loss predicted",
    "motion": "frame differences",
    "codec": "the codec's motion vectors",
    "rollout": "attention rollout of the classifier",
    "relevance": "what speaks for the class",
    "measured": "the loss measured",
}
NUM_MASKS = 8  # random masks behind a measured loss
NUM_VIEWS = 4  # draws of a sparse teacher's tokens behind a predicted loss


@dataclass(frozen=True)
class HardTubes:
    """What a checkpoint finds hard in one clip. Arrays of tokens are (time, rows, columns).

    Attributes:
        frames: the clip as the video shows it, (T, H, W, 3) uint8.
        place: the square in these frames that the model sees.
        crop: the pixels of that square, (T, S, S, 3) uint8.
        indices: numbers of the clip's frames in the video, (T,).
        grid: numbers of tokens in time, height and width.
        predicted: predicted loss of every token; only its order has a meaning. None for plain
            VideoMAE.
        measured: reconstruction loss of every token, averaged over the random masks that hide it.
        random_mask: the mask under which both reconstructions are made.
        honest: the reconstruction, (T, S, S, 3) uint8, made by the model alone. None where the
            model reconstructs features instead of pixels.
        flattering: the same with the true mean and variance of every hidden token, which no model
            can know. None where ``honest`` is, or where the model predicts pixels as they are.
        spearman: rank correlation over tubes of predicted with measured loss; chance is 0. None for
            plain VideoMAE.
        rank_accuracy: share of pairs of masked tokens that the student orders right; chance is .5.
            None for plain VideoMAE.
        masking: the run's mask settings.
        hard_ratio: the run's hard ratio at its end.
        seed: seed of ``mask``.
        others: scores of every token by other sources of masks, such as motion, and by what a
            classifier looks at. Keys are those of `KINDS`.
        seen_as: class and score that the classifier gives the clip.
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
        """Length of a tube in time, in tokens."""
        return self.masking.unit_length(self.grid.time)

    @property
    def kinds(self) -> dict[str, Scores]:
        """Every score of the clip by name, from the predicted to the measured loss."""
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
        """The kind that decides what is hard.

        It is the run's ``masking.source``, else the predicted loss, else the measured loss.
        """
        source: str = self.masking.source
        if source in self.kinds:
            return source
        return "measured" if self.predicted is None else "predicted"

    @property
    def scores(self) -> Scores:
        """The scores that decide what is hard, see `scored_by`."""
        return self.kinds[self.scored_by]

    @property
    def hard(self) -> Mask:
        """The hard tubes at the end of the run, which are `hardest` at its own ratios."""
        return self.hardest()

    @cached_property
    def mask(self) -> Mask:
        """A mask as at the end of the run, of the hard tubes and random others."""
        return self._masked(self.masking, self.hard_ratio).mask.reshape(self.measured.shape).numpy()

    def hardest(self, *, mask_ratio: float | None = None, hard_ratio: float | None = None) -> Mask:
        """Return the tokens that every mask of these ratios hides.

        They belong to the floor(hard_ratio * masked) tubes of highest mean score, where masked is
        floor(mask_ratio * tubes). Of equal tubes the first count. With ``masking.pattern=blocks``
        they belong to the highest of the blocks that this mask draws. See
        `hpm_video.method.masking.make_mask`.
        """
        ratio = self.mask_ratio if mask_ratio is None else mask_ratio
        masking = replace(self.masking, mask_ratio=ratio)
        chosen = self._masked(masking, self.hard_ratio if hard_ratio is None else hard_ratio)
        return chosen.hard.reshape(self.measured.shape).numpy()

    def _masked(self, masking: MaskingConfig, hard_ratio: float) -> Masked:
        scores = torch.from_numpy(self.per_tube(self.scores))[None]
        if masking.pattern != "blocks":
            # Equals in an order, so that the page, whose random numbers are others, chooses the
            # same. By rank: the hardest is 0
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
        """Return the mean of tokens' values in every tube, (U,), in the order time, row, column."""
        tokens = torch.from_numpy(values).reshape(1, -1)
        return unit_scores(tokens, self.grid, self.tube_length)[0].numpy()

    def covered(self, chosen: Mask) -> float:
        """Return the share of the measured loss that the chosen tokens hold, in [0, 1]."""
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
    """Ask a checkpoint, and a classifier beside it, about a crop of a window; ValueError if a loss
    is not finite."""
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
            raise ValueError(f"checkpoint's {name} losses must be finite: some are not")
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
    """The hard ratio of the run's masks at its end; the default where it masked at random."""
    masking = pretrained.config.masking
    return (masking.mines and masking.hard_ratio_end) or MaskingConfig().hard_ratio_end


def _pixels(clips: Tensor) -> Frames:
    """(1, 3, T, S, S) in [0, 1] -> (T, S, S, 3) uint8."""
    pixels = (clips[0].float().clamp(0, 1) * 255).round().byte()
    return pixels.permute(1, 2, 3, 0).contiguous().cpu().numpy()
