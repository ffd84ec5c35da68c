"""Evaluation during fine-tuning: best checkpoint and early stopping."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hpm_video.config import EvaluateConfig, FinetuneConfig
from hpm_video.config.values import BestBy
from hpm_video.data.lists.manifest import (
    Manifest,
    check_fits_model,
    check_some_exist,
    read_manifest,
)
from hpm_video.data.lists.overlap import find_shared
from hpm_video.evaluate.classification import evaluate_classifier
from hpm_video.evaluate.predictions import Evaluation, SeveralLabels, best_thresholds
from hpm_video.models.build import Baseline, Classifier
from hpm_video.models.parallel import gathered, whole_weights
from hpm_video.runtime.distributed import World, gather_objects, share_from_main
from hpm_video.train.optim import Steps
from hpm_video.train.run.logs import RunLog
from hpm_video.train.run.steps import running_means
from hpm_video.weights.checkpoint import BEST, TRAINING_WEIGHTS, load_checkpoint, write_checkpoint

_NO_LIST = (
    "no evaluation, as data.val_manifest names no list: to evaluate during training, add "
    "data.val_manifest=LIST"
)
_TIE = "equals the best so far: the later one is kept, saved"


class RunEvaluation:
    """Evaluates every ``evaluation.every_epochs`` epochs and at the end; keeps the best weights.

    The constructor reads ``data.val_manifest`` and raises its errors; without one, no evaluation is
    ever due.
    """

    def __init__(
        self, config: FinetuneConfig, manifest: Manifest, *, num_classes: int, world: World
    ) -> None:
        data = config.data
        self._config, self._world, self._videos = config, world, None
        self._best: BestCheckpoint | None = None
        self._best_so_far: float | None = None
        self._best_step: int | None = None  # of equals, the one that is kept
        self._since_best = 0  # evaluations
        self._last_warning: str | None = None
        self._thresholds: tuple[float, ...] | None = None  # from the last evaluation
        self.warnings: tuple[str, ...] = ()  # about the list, on rank 0
        self.lines: tuple[str, ...] = (_NO_LIST,)  # log lines on the plan
        if data.val_manifest:
            self.lines = ()
            self._videos = read_manifest(
                data.val_manifest,
                root=data.root,
                classes=manifest.class_names,
                numbers_only=manifest.classes is None,
                several=data.labels,
            )
            check_some_exist(self._videos, option="data.root=")
            check_fits_model(self._videos, num_classes)
            self.warnings = self._videos.notes
            if world.is_main and (overlap := find_shared(manifest, self._videos)).num_shared:
                both = f"{overlap} of data.val_manifest are also in data.manifest"
                self.warnings = (*self.warnings, both)

    def __len__(self) -> int:
        return 0 if self._videos is None else len(self._videos)

    def keep_best(self, checkpoints: Path, *, state: Mapping[str, Any] | None) -> None:
        """Keep the best weights in this folder if the run has more than one evaluation.

        ``state``: the checkpoint that the run continues.
        """
        if state is not None:
            self._best_so_far = state.get("best_so_far")
            self._best_step = state.get("best_step")
            self._since_best = state.get("since_best", 0)
            self._thresholds = state.get("thresholds")
        settings = self._config.evaluation
        if self._world.is_main and settings.every_epochs:
            best_by = settings.best_by
            self._best = BestCheckpoint(checkpoints, best_by=best_by, is_new=state is None)

    def state(self) -> dict[str, Any]:
        """State for a checkpoint, to resume counting."""
        counted = {
            "best_so_far": self._best_so_far,
            "best_step": self._best_step,
            "since_best": self._since_best,
        }
        if not self._config.data.labels.are_several:
            return counted
        return {**counted, "thresholds": self._thresholds and list(self._thresholds)}

    @property
    def is_over(self) -> bool:
        """Whether early stopping ends the run; equal on all ranks."""
        return 0 < self._config.evaluation.patience <= self._since_best

    def why_over(self) -> str:
        """Reason for early stopping, for the log."""
        settings = self._config.evaluation
        return (
            f"stopped early: no better {settings.best_by} in {self._since_best} evaluations in a "
            f"row (evaluation.patience={settings.patience}); to continue, set evaluation.patience=0"
        )

    def is_due(self, steps_done: int, steps: Steps) -> bool:
        """Whether to evaluate after this many steps."""
        every = self._config.evaluation.every_epochs
        is_time = steps_done == steps.total or steps.are_due(steps_done, every_epochs=every)
        return self._videos is not None and is_time

    def run(
        self,
        model: Classifier | Baseline,
        checkpoint: Callable[[], dict[str, Any]],
        *,
        step: int,
        epoch: float,
        log: RunLog,
    ) -> None:
        """Evaluate the model, append a record, and keep the ``checkpoint`` if it is the best so
        far. All ranks call."""
        assert self._videos is not None
        config, data = self._config, self._config.data
        share_from_main(running_means(model), self._world)
        with gathered(model):  # ranks have different numbers of batches
            asked = EvaluateConfig(
                precision=config.run.precision,
                num_workers=data.num_workers,
                decode_timeout_s=data.decode_timeout_s,
                evaluation=config.evaluation,
            )
            result = evaluate_classifier(model, self._videos, data, asked, self._world)
        if isinstance(result, SeveralLabels):
            if config.evaluation.threshold is None:
                result = replace(result, thresholds=best_thresholds(result))
            # Machines may round differently, so use rank 0's figures
            self._thresholds = gather_objects(result.thresholds, self._world)[0]
        for index, reason in result.bad:
            log.line(f"unreadable, counts as wrong: {self._videos.path(index)}: {reason}")
        figures = result.figures()
        figures["val_loss"] = figures.pop("loss")  # "loss" is the training loss
        record = {"step": step, "epoch": round(epoch, 4), **figures}
        log.record(record, prefix="evaluation")
        warning = at_chance(result)
        if warning != self._last_warning and warning is not None:
            log.warning(warning, tag="evaluation", step=step)
        self._last_warning = warning
        settings = config.evaluation
        if not settings.every_epochs:
            return
        # Machines may round differently, so rank 0 decides which is better
        value = gather_objects(_worth(result, settings.best_by), self._world)[0]
        is_better = self._best_so_far is None or value > self._best_so_far
        if is_better or (value == self._best_so_far and settings.best_by != "first_top1"):
            self._best_step = step
        self._since_best = 0 if is_better else self._since_best + 1
        self._best_so_far = value if is_better else self._best_so_far
        to_keep = {**checkpoint(), "model": whole_weights(model)}
        top1 = None if isinstance(result, SeveralLabels) else result.top(1)
        if self._best and self._best.offer(to_keep, step=step, value=value, top1=top1):
            words = "best so far, saved" if is_better else _TIE
            log.line(f"{words} as checkpoints/{BEST}")


def at_chance(result: Evaluation | SeveralLabels) -> str | None:
    """Why an evaluation is no better than chance; None if it is better.

    It is not if one class is predicted for all videos, or if balanced accuracy is at most one
    standard error of guessing above chance. With several labels, mean average precision must exceed
    the mean share of videos per class.
    """
    if isinstance(result, SeveralLabels):
        shares = result.labels.mean(axis=0)
        mean_ap, chance = result.mean_ap(), float(shares[shares > 0].mean()) if shares.any() else 0
        if mean_ap is None or mean_ap > chance:
            return None
        return (
            f"mean_ap ({mean_ap:.3f}) is at chance ({chance:.3f}, the mean share of videos with a "
            "class): check optim.base_lr and labels"
        )
    videos = np.bincount(result.labels)
    videos = videos[videos > 0]
    called = np.unique(result.predicted[result.predicted >= 0])
    if len(videos) < 2 or not len(called):
        return None
    advice = "check optim.base_lr and labels; for rare classes set optim.class_balance=weights"
    if len(called) == 1:
        return f"every video is predicted as {result.class_name(int(called[0]))}: {advice}"
    chance = 1 / len(videos)
    error = float(np.sqrt((chance * (1 - chance) / videos).sum()) / len(videos))
    if (accuracy := result.balanced_accuracy()) > chance + error:
        return None
    return (
        f"balanced_accuracy ({accuracy:.3f}) is at chance ({chance:.3f}, 1 of {len(videos)} "
        f"classes with videos; standard error {error:.3f}): {advice}"
    )


def _worth(result: Evaluation | SeveralLabels, best_by: BestBy) -> float:
    """Value of the metric `evaluation.best_by`; higher is better."""
    if best_by == "loss":
        loss = result.loss()
        return -sys.float_info.max if loss is None else -loss
    if isinstance(result, SeveralLabels):
        return result.mean_ap() or 0.0
    if best_by == "balanced_accuracy":
        return result.balanced_accuracy()
    return result.top(1)


class BestCheckpoint:
    """Keeps the weights with the highest value; of equals the later step, or the earlier one with
    ``first_top1``.

    The file itself records the best value, so resumed runs know it. Use it for evaluation; training
    cannot resume from it: it has no optimizer state and, with an EMA, only the average.
    """

    def __init__(self, folder: Path, *, best_by: BestBy, is_new: bool) -> None:
        """`folder`: of the checkpoints. A new run removes the file of an earlier start."""
        self._file, self._best_by = folder / BEST, best_by
        self._rank: tuple[float, int] | None = None
        if is_new:
            self._file.unlink(missing_ok=True)
        elif self._file.is_file():
            state = load_checkpoint(self._file, kind="finetune")
            # Runs from before the setting existed used top-1
            self._rank = self._rank_of(state.get("best_value", state["top1"]), state["step"])

    def offer(
        self, checkpoint: Mapping[str, Any], *, step: int, value: float, top1: float | None
    ) -> bool:
        """Keep this checkpoint if it is the best so far; returns whether it is."""
        rank = self._rank_of(value, step)
        if self._rank is not None and self._rank >= rank:
            return False
        state = {n: entry for n, entry in checkpoint.items() if n not in TRAINING_WEIGHTS}
        values = {"best_by": self._best_by, "best_value": value, "top1": top1}
        write_checkpoint(self._file, {**state, **values, "step": step})
        self._rank = rank
        return True

    def _rank_of(self, value: float, step: int) -> tuple[float, int]:
        """Sort key; higher is better."""
        return value, -step if self._best_by == "first_top1" else step
