"""The best checkpoint of a fine-tuning: checkpoints/best.pt, by the top-1 of its evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpm_video.weights.checkpoint import BEST, TRAINING_WEIGHTS, load_checkpoint, write_checkpoint


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
