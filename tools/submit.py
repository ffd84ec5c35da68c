"""``hpm-video submit``: see `python tools/submit.py --help`."""

import sys

from hpm_video.cli.main import main

sys.exit(main(["submit", *sys.argv[1:]]))
