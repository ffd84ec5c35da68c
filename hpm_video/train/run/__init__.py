"""Everything around a run's steps: start, logs, checkpoints, stops and errors.

The training loops use the names below. Readers of run folders import `folder` and `logs`.
"""

from hpm_video.train.run.changes import describe_changes as describe_changes
from hpm_video.train.run.collapse import CollapseWatch as CollapseWatch
from hpm_video.train.run.evaluation import RunEvaluation as RunEvaluation
from hpm_video.train.run.folder import claim_run_folder as claim_run_folder
from hpm_video.train.run.folder import join_run as join_run
from hpm_video.train.run.loop import Run as Run
from hpm_video.train.run.machine_choices import choose_for_machine as choose_for_machine
from hpm_video.train.run.optimizer_state import optimizer_state as optimizer_state
from hpm_video.train.run.pictures import Pictures as Pictures
from hpm_video.train.run.probes import RunProbe as RunProbe
from hpm_video.train.run.saving import describe_checkpoints as describe_checkpoints
from hpm_video.train.run.starting_point import describe_data as describe_data
from hpm_video.train.run.starting_point import find_start as find_start
from hpm_video.train.run.steps import restore_if as restore_if
from hpm_video.train.run.steps import running_means as running_means
from hpm_video.train.run.steps import step_unless as step_unless
from hpm_video.train.run.vector_count import check_vectors as check_vectors
