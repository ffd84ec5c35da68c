"""Evaluations of a fine-tuning in progress, and its best checkpoint by their top-1."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hpm_video.config import EvaluateConfig, FinetuneConfig
from hpm_video.data.lists.manifest import Manifest, check_fits_model, read_manifest
from hpm_video.data.lists.overlap import find_shared
from hpm_video.evaluate.classification import evaluate_classifier
from hpm_video.models.build import Baseline, Classifier
from hpm_video.models.parallel import gathered, whole_weights
from hpm_video.runtime.distributed import World, share_from_main
from hpm_video.train.optim import Steps
from hpm_video.train.run.logs import RunLog
from hpm_video.train.run.steps import running_means
from hpm_video.weights.checkpoint import BEST, TRAINING_WEIGHTS, load_checkpoint, write_checkpoint


class RunEvaluation:
    """Evaluates a fine-tuning every ``evaluation.every_epochs`` epochs and at its end, and keeps
    the best of its weights.

    The list ``data.val_manifest`` is read, or refused, when it is made; without one nothing is ever
    due.
    """

    def __init__(
        self, config: FinetuneConfig, manifest: Manifest, *, num_classes: int, world: World
    ) -> None:
        data = config.data
        self._config, self._world, self._videos = config, world, None
        self._best: BestCheckpoint | None = None
        self.warnings: tuple[str, ...] = ()  # about the list; the main process's
        if data.val_manifest:
            self._videos = read_manifest(
                data.val_manifest,
                root=data.root,
                classes=manifest.classes,
                numbers_only=manifest.classes is None,
            )
            check_fits_model(self._videos, num_classes)
            self.warnings = self._videos.notes
            if world.is_main and (overlap := find_shared(manifest, self._videos)).num_shared:
                both = f"{overlap} of data.val_manifest are in data.manifest too"
                self.warnings = (*self.warnings, both)

    def __len__(self) -> int:
        return 0 if self._videos is None else len(self._videos)

    def keep_best(self, checkpoints: Path, *, is_new: bool) -> None:
        """Keep the best weights in this folder from now on, if there is more than one evaluation
        to choose from."""
        if self._world.is_main and self._config.evaluation.every_epochs:
            self._best = BestCheckpoint(checkpoints, is_new=is_new)

    def is_due(self, steps_done: int, steps: Steps) -> bool:
        """Whether to evaluate after so many steps."""
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
        """Evaluate the model as it is, append a record, and keep the ``checkpoint`` with its
        weights if it is the best so far. All processes call."""
        assert self._videos is not None
        config, data = self._config, self._config.data
        share_from_main(running_means(model), self._world)
        with gathered(model):  # processes have different numbers of batches
            asked = EvaluateConfig(
                precision=config.run.precision,
                num_workers=data.num_workers,
                decode_timeout_s=data.decode_timeout_s,
                evaluation=config.evaluation,
            )
            result = evaluate_classifier(model, self._videos, data, asked, self._world)
        for index, reason in result.bad:
            log.line(f"unreadable, counts as wrong: {self._videos.path(index)}: {reason}")
        record = {"step": step, "epoch": round(epoch, 4), **result.figures()}
        log.record(record, prefix="evaluation")
        if not config.evaluation.every_epochs:
            return
        to_keep = {**checkpoint(), "model": whole_weights(model)}
        if self._best and self._best.offer(to_keep, step=step, top1=result.top(1)):
            log.line(f"the best so far, kept: checkpoints/{BEST}")


class BestCheckpoint:
    """Keeps the weights with the highest top-1; of equals those of the earlier step.

    The file itself is the record of what is best, so that a run that goes on, from whichever step,
    knows it. It is there to be used, not to be continued: it has no state of the optimizer, and of
    averaged weights nothing but the average.
    """

    def __init__(self, folder: Path, *, is_new: bool) -> None:
        """`folder`: of the checkpoints; a new run forgets what an earlier start left there."""
        self._file = folder / BEST
        self._rank: tuple[float, int] | None = None  # (top-1, minus the step): higher is better
        if is_new:
            self._file.unlink(missing_ok=True)
        elif self._file.is_file():
            state = load_checkpoint(self._file, kind="finetune")
            self._rank = state["top1"], -state["step"]

    def offer(self, checkpoint: Mapping[str, Any], *, step: int, top1: float) -> bool:
        """Keep this checkpoint if it is the best so far, and say whether it is."""
        if self._rank is not None and self._rank >= (top1, -step):
            return False
        state = {n: value for n, value in checkpoint.items() if n not in TRAINING_WEIGHTS}
        write_checkpoint(self._file, {**state, "step": step, "top1": top1})
        self._rank = top1, -step
        return True
