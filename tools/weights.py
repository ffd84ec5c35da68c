"""``hpm-video weights``: see `python tools/weights.py --help`."""

import sys

from hpm_video.cli.main import main

sys.exit(main(["weights", *sys.argv[1:]]))
