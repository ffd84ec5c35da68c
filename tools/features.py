"""``hpm-video features``: see `python tools/features.py --help`."""

import sys

from hpm_video.cli.main import main

sys.exit(main(["features", *sys.argv[1:]]))
