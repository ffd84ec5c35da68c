"""``hpm-video evaluate``: see `python tools/evaluate.py --help`."""

import sys

from hpm_video.cli.main import main

sys.exit(main(["evaluate", *sys.argv[1:]]))
