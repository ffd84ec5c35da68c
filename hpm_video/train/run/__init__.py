"""A run's life around its steps: start, logs, checkpoints, stops, and what goes wrong.

What the loops use is here; what asks a run folder from outside imports `folder` and `logs`.
"""

from hpm_video.train.run.evaluation import RunEvaluation
from hpm_video.train.run.folder import claim_run_folder, run_folder
from hpm_video.train.run.loop import Run
from hpm_video.train.run.optimizer_state import optimizer_state
from hpm_video.train.run.pictures import Pictures
from hpm_video.train.run.probes import RunProbe
from hpm_video.train.run.starting_point import describe_data, find_start
from hpm_video.train.run.steps import restore_if, running_means, step_unless

__all__ = [
    "Pictures",
    "Run",
    "RunEvaluation",
    "RunProbe",
    "claim_run_folder",
    "describe_data",
    "find_start",
    "optimizer_state",
    "restore_if",
    "run_folder",
    "running_means",
    "step_unless",
]
