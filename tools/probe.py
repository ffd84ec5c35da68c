"""``hpm-video probe``: see `python tools/probe.py --help`."""

import sys

from hpm_video.cli.main import main

sys.exit(main(["probe", *sys.argv[1:]]))
