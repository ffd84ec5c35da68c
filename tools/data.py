"""``hpm-video data``: see `python tools/data.py --help`."""

import sys

from hpm_video.cli.main import main

sys.exit(main(["data", *sys.argv[1:]]))
