"""``hpm-video bench``: see `python tools/bench.py --help`."""

import sys

from hpm_video.cli.main import main

sys.exit(main(["bench", *sys.argv[1:]]))
