"""``hpm-video demo``: see `python tools/demo.py --help`."""

import sys

from hpm_video.cli.main import main

sys.exit(main(["demo", *sys.argv[1:]]))
