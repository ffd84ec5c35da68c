"""What runs in each task of a submitted job."""

from __future__ import annotations

import submitit
from submitit.helpers import DelayedSubmission, TorchDistributedEnvironment


class Job:
    """A command of ``hpm-video``, as submitit pickles it; requeued as it is."""

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = list(arguments)

    def __call__(self) -> int:
        """Run the command with its processes joined; returns its exit code."""
        from hpm_video.cli import main

        if submitit.JobEnvironment().num_tasks > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        return main(self.arguments)

    def checkpoint(self) -> DelayedSubmission:
        """The job to go on with after a time limit or preemption."""
        return DelayedSubmission(self)
