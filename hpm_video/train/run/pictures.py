"""TensorBoard pictures during pre-training, always of the same few clips.

They are the middle clips of the list's first videos, decoded once. The run is not affected: models
are copies, and random numbers come from generators with fixed seeds.
"""

import copy
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from hpm_video.config import PretrainConfig
from hpm_video.data.lists.manifest import Manifest
from hpm_video.data.loading.clip import read_codec_scores
from hpm_video.data.samples.scores import scored_tubelet
from hpm_video.data.video.frames import VideoReadError
from hpm_video.evaluate import mining_quality
from hpm_video.evaluate.pretrained import Pretrained, reconstruct, scorer_of
from hpm_video.method.masking import make_mask, unit_scores
from hpm_video.method.targets import FrozenModel
from hpm_video.method.teacher import Teacher, teacher_of
from hpm_video.models.build import build
from hpm_video.models.hpm import HPM
from hpm_video.models.parallel import load_whole
from hpm_video.models.tokens import TokenGrid
from hpm_video.train.run.logs import RunLog
from hpm_video.visualize import (
    GREY,
    Floats,
    Row,
    enlarge,
    figure,
    frame_names,
    heat,
    read_clip,
    shares,
)

NUM_CLIPS = 4
NUM_MASKS = 8  # random masks behind a measured loss
NUM_VIEWS = 4  # draws of a sparse teacher's tokens behind a predicted loss
_COLUMNS = 4
_DPI = 100  # most of a figure's cost is rendering and compressing pixels
_MAX_UNREADABLE = 20  # after which there are fewer clips


class Pictures:
    """Draws the fixed clips of a run, on rank 0."""

    def __init__(
        self,
        config: PretrainConfig,
        manifest: Manifest,
        grid: TokenGrid,
        frozen: FrozenModel | None = None,
    ) -> None:
        self._config, self._manifest, self._grid, self._frozen = config, manifest, grid, frozen
        self._clips: Tensor | None = None  # (B, 3, T, S, S), read when first needed
        self._given: Tensor | None = None  # (B, N), their scores for masking.source=codec
        self._frames: list[npt.NDArray[np.int64]] = []
        self._names: list[str] = []

    def are_due(self, *, steps_done: int, total_steps: int) -> bool:
        """Whether to draw after this many steps: every ``run.picture_every``, and at the end."""
        every = self._config.run.pictures_every(total_steps)
        return every > 0 and (steps_done % every == 0 or steps_done == total_steps)

    def draw(
        self, student: HPM, teacher: Teacher | None, *, hard_ratio: float, step: int, log: RunLog
    ) -> None:
        """Write a picture per clip and histograms of tube losses to TensorBoard.

        ``hard_ratio``: of the mask shown. All ranks call, since models may be sharded.
        """
        if isinstance(student, FSDPModule):
            student, teacher = self._put_together(student, teacher)
        if not log.is_main:
            return
        if self._clips is None:
            self._read(log)
        if self._clips is None:
            return
        # Copies, in eval mode and not compiled, leave the training models untouched
        asked = copy.deepcopy(student).requires_grad_(False).eval()
        average = copy.deepcopy(teacher)
        scorer = scorer_of(asked, average)
        pretrained = Pretrained(
            *(asked, scorer, self._config, self._grid, step), average=average, frozen=self._frozen
        )
        clips = self._clips.to(asked.encoder.mean.device)
        measured = mining_quality.measured_loss(pretrained, clips, num_masks=NUM_MASKS, seed=0)
        losses, scores, source = {"measured": measured}, None, self._config.masking.source
        given = None if self._given is None else self._given.to(clips.device)
        ask = partial(
            mining_quality.source_scores, pretrained, clips, num_views=NUM_VIEWS, given=given
        )
        if (predicted := ask("predicted")) is not None:
            losses["predicted"] = predicted
        if self._config.masking.mines:
            scores = losses[source] if source in losses else ask(source)
        drawn = draw_clips(
            pretrained,
            clips,
            predicted=predicted,
            measured=measured,
            scores=scores,
            hard_ratio=0.0 if scores is None else hard_ratio,
            titles=self._names,
            frames=self._frames,
        )
        log.pictures({f"clips/{i}": image for i, image in enumerate(drawn, start=1)}, step=step)
        tubes = {
            f"tubes/{name}_loss": unit_scores(values, self._grid, pretrained.tube_length)
            for name, values in losses.items()
        }
        # TensorBoard raises for histograms of values that are not finite
        log.histograms({tag: v for tag, v in tubes.items() if v.isfinite().all()}, step=step)

    def _put_together(self, student: HPM, teacher: Teacher | None) -> tuple[HPM, Teacher | None]:
        """Local models with the weights of sharded ones."""
        with torch.random.fork_rng(devices=[]):
            whole = build(self._config, trained_grid=student.trained_grid)
        load_whole(whole.to(student.encoder.mean.device), student)
        if teacher is None:
            return whole, None
        own = teacher_of(whole, self._config)
        assert own is not None
        return whole, load_whole(own, teacher)

    def _read(self, log: RunLog) -> None:
        clips: list[Tensor] = []
        given: list[Tensor] = []
        for index in range(min(len(self._manifest), NUM_CLIPS + _MAX_UNREADABLE)):
            if len(clips) == NUM_CLIPS:
                break
            path = self._manifest.path(index)
            try:
                table = self._manifest.table(index)
                clip, frames = read_clip(path, self._config, table=table)
                if scored_tubelet(self._config) is not None:
                    given.append(read_codec_scores(path, self._config, table=table)[0])
            except VideoReadError as error:
                log.line(f"unreadable, left out of the pictures: {path}: {error.reason}")
                continue
            clips.append(clip)
            self._frames.append(frames)
            self._names.append(Path(path).name[:60])
        if clips:
            self._clips = torch.cat(clips)
            self._given = torch.stack(given) if given else None


def draw_clips(
    pretrained: Pretrained,
    clips: Tensor,
    *,
    predicted: Tensor | None,
    measured: Tensor,
    scores: Tensor | None,
    hard_ratio: float,
    titles: list[str],
    frames: list[npt.NDArray[np.int64]],
) -> list[Figure]:
    """One figure per clip of (B, 3, T, S, S) in [0, 1], given the losses (B, N) of its tokens.

    Rows: the frames; predicted loss (if any) and measured loss, by rank; the ``scores`` (B, N) that
    choose masks, if they are others; a mask with ``hard_ratio`` by these scores, hard tubes
    outlined; the reconstruction under it, for pixel targets. frames: frame numbers per clip.
    """
    grid, config = pretrained.grid, pretrained.config
    chosen = make_mask(
        scores if hard_ratio > 0 else None,
        grid,
        config.masking,
        hard_ratio=hard_ratio,
        batch_size=len(clips),
        generator=torch.Generator(clips.device).manual_seed(0),  # equal in every picture
    )
    reconstruction = None
    if config.loss.has_pixels:
        reconstruction = reconstruct(pretrained, clips, chosen.mask)
    steps = np.linspace(0, grid.time - 1, min(grid.time, _COLUMNS)).round().astype(int)
    shown = steps * config.model.tubelet_size

    def images(clip: Tensor) -> Floats:
        """(3, T, S, S) -> (K, S, S, 3)."""
        return clip.permute(1, 2, 3, 0).float().cpu().numpy()[shown]

    def cells(tokens: Tensor) -> npt.NDArray[np.generic]:
        """(N,) -> (K, rows, columns)."""
        return tokens.reshape(grid.time, grid.height, grid.width).cpu().numpy()[steps]

    figures = []
    for i, (title, numbers) in enumerate(zip(titles, frames, strict=True)):
        clip = images(clips[i])
        rows = [Row("frames", clip)]
        if predicted is not None:
            ranks = cells(shares(predicted)[i])
            rows.append(Row("predicted loss: dark = easiest, yellow = hardest", heat(clip, ranks)))
        rows.append(Row("measured loss, same colours", heat(clip, cells(shares(measured)[i]))))
        if scores is not None and config.masking.source not in ("predicted", "measured"):
            ranks = cells(shares(scores)[i])
            rows.append(Row(f"{config.masking.source}, which selects the masks", heat(clip, ranks)))
        hidden, outlined = cells(chosen.mask[i]), cells(chosen.hard[i]).astype(bool)
        masked = np.where(enlarge(hidden, clip), np.float32(GREY), clip)
        label = f"mask with hard ratio {hard_ratio:.2f}, hard tubes outlined"
        if reconstruction is None:
            label += "; the model reconstructs features, which cannot be shown"
        rows.append(Row(label, masked, outlined=outlined))
        if reconstruction is not None:
            label = "reconstruction under this mask, by the model alone"
            rows.append(Row(label, images(reconstruction[i])))
        names = frame_names(numbers[shown])
        drawn = figure(rows, title=f"{title}, step {pretrained.step}", columns=names)
        drawn.set_dpi(_DPI)
        figures.append(drawn)
    return figures
