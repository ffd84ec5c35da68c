"""``python -m hpm_video JOB …`` is ``hpm-video JOB …``."""

from hpm_video.cli.main import entry

entry()
