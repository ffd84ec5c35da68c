"""``hpm-video export``: see `python tools/export.py --help`."""

import sys

from hpm_video.cli import main

sys.exit(main(["export", *sys.argv[1:]]))
