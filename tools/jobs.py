"""``hpm-video jobs``: see `python tools/jobs.py --help`."""

import sys

from hpm_video.cli.main import main

sys.exit(main(["jobs", *sys.argv[1:]]))
