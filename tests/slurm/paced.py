"""A job that leaves time to interfere with it."""

import time
from collections.abc import Callable
from typing import Any

from hpm_video.slurm.job import Job


class PacedJob(Job):
    """A job each of whose steps takes so many seconds longer."""

    def __init__(self, arguments: list[str], pace_s: float) -> None:
        super().__init__(arguments)
        self.pace_s = pace_s

    def __call__(self) -> int:
        from hpm_video.train.run.loop import Run

        end_step = Run.end_step

        def end_step_late(run: Run, checkpoint: Callable[[], dict[str, Any]]) -> None:
            time.sleep(self.pace_s)
            end_step(run, checkpoint)

        Run.end_step = end_step_late  # type: ignore[method-assign]
        return super().__call__()
