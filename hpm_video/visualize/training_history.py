"""One set of clips measured at the checkpoints of a run: when does the model learn what is hard,
and what becomes easy?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpm_video.config import PretrainConfig
from hpm_video.evaluate.mining_quality import measure_mining, measured_loss
from hpm_video.evaluate.pretrained import Pretrained, load_pretrained, scorer_of
from hpm_video.method.teacher import teacher_of
from hpm_video.models.build import build
from hpm_video.models.tokens import TokenGrid

FEW = 4  # fewer checkpoints do not show the course of a training


@dataclass(frozen=True)
class Moment:
    """Losses of V clips after ``step`` steps of a run.

    predicted, measured (V, N) float32; rank_accuracy, spearman (V,), see `MiningReport`. All but
    the measured losses are None for plain VideoMAE. is_remade: initial model from `untrained`, not
    a checkpoint.
    """

    step: int
    measured: npt.NDArray[np.float32]
    predicted: npt.NDArray[np.float32] | None = None
    rank_accuracy: npt.NDArray[np.float64] | None = None
    spearman: npt.NDArray[np.float64] | None = None
    is_remade: bool = False


@dataclass(frozen=True)
class WatchedClip:
    """A clip: name of its video, frames (T, S, S, 3) uint8, their numbers in the video (T,)."""

    name: str
    frames: npt.NDArray[np.uint8]
    numbers: npt.NDArray[np.int64]


@dataclass(frozen=True)
class History:
    """Losses of clips over a run, one moment per checkpoint.

    num_there: checkpoints in the run folder, some of which may not be measured. skipped:
    (checkpoint, reason) of unreadable ones. bad: (video, reason). records: of metrics.jsonl.
    """

    config: PretrainConfig
    grid: TokenGrid
    clips: tuple[WatchedClip, ...]
    moments: tuple[Moment, ...]
    num_there: int
    skipped: tuple[tuple[str, str], ...]
    bad: tuple[tuple[str, str], ...]
    records: tuple[dict[str, float], ...]

    @property
    def num_asked(self) -> int:
        """Number of measured checkpoints."""
        return sum(not moment.is_remade for moment in self.moments)

    @property
    def is_short(self) -> bool:
        """Whether these are too few to show a training."""
        return self.num_asked < FEW


def evenly(checkpoints: Sequence[Path], most: int) -> list[Path]:
    """At most ``most`` checkpoints, evenly spaced, always with the last."""
    last = len(checkpoints) - 1
    places = np.linspace(0 if most > 1 else last, last, min(most, last + 1))
    return [checkpoints[place] for place in places.round().astype(int)]


def untrained(config: PretrainConfig, device: torch.device | str) -> Pretrained | None:
    """The initial model of a run with these settings, weight for weight, rebuilt from run.seed.

    None if the run starts from other weights, or from those of earlier versions, which drew them in
    another order.
    """
    if config.model.init is not None or config.run.resume is not None:
        return None
    if config.model.first_weights == "former":
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        student = build(config)
    student.requires_grad_(False).eval().to(device)
    teacher = teacher_of(student, config)
    scorer = scorer_of(student, teacher)
    return Pretrained(student, scorer, config, student.grid, step=0, average=teacher)


def read_checkpoints(
    checkpoints: Sequence[Path], device: torch.device | str, unreadable: list[tuple[str, str]]
) -> Iterator[Pretrained]:
    """Load the checkpoints one after the other.

    Adds (name, reason) to ``unreadable`` for those that cannot be loaded, or whose clips differ in
    size from those of the first.
    """
    first: PretrainConfig | None = None
    for path in checkpoints:
        try:
            pretrained = load_pretrained(path, device=device)
        except (ValueError, FileNotFoundError) as error:
            unreadable.append((path.name, str(error)))
            continue
        first = first or pretrained.config
        if _clips(pretrained.config) != _clips(first):
            unreadable.append(
                (path.name, "its clip settings differ from those of earlier checkpoints")
            )
            continue
        yield pretrained


def _clips(config: PretrainConfig) -> tuple[object, ...]:
    """Settings that must be equal for two checkpoints to see the same tokens of the clips."""
    data, model = config.data, config.model
    unit_length = config.masking.unit_length(data.num_frames // model.tubelet_size)
    return (
        *(
            data.num_frames,
            data.fps,
            data.frame_stride,
            data.sampling,
            data.crop_size,
            data.antialias,
        ),
        *(model.patch_size, model.tubelet_size, unit_length),
    )


def moment_of(
    pretrained: Pretrained, clips: Tensor, *, num_masks: int, num_views: int, seed: int
) -> Moment:
    """Measure and predict the losses of clips (V, 3, T, H, W) in [0, 1].

    Each clip is a batch of its own and gets the same masks at every checkpoint, so only the model
    differs.
    """
    each = clips.to(pretrained.student.encoder.mean.device).split(1)
    if pretrained.scorer is None:
        losses = [measured_loss(pretrained, clip, num_masks=num_masks, seed=seed) for clip in each]
        return Moment(pretrained.step, torch.cat(losses).cpu().numpy())
    measure = partial(measure_mining, num_masks=num_masks, num_views=num_views)
    reports = [measure(pretrained, clip, seed=seed) for clip in each]
    predicted = [report.predicted for report in reports if report.predicted is not None]
    return Moment(
        pretrained.step,
        torch.cat([report.measured for report in reports]).cpu().numpy(),
        torch.cat(predicted).cpu().numpy(),
        np.array([report.rank_accuracy for report in reports]),
        np.array([report.spearman for report in reports]),
    )
