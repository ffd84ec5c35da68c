"""``hpm-video push``: see `python tools/push.py --help`."""

import sys

from hpm_video.cli.main import main

sys.exit(main(["push", *sys.argv[1:]]))
