"""``hpm-video start``: see `python tools/start.py --help`."""

import sys

from hpm_video.cli.main import main

sys.exit(main(["start", *sys.argv[1:]]))
