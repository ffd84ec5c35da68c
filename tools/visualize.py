"""``hpm-video visualize``: see `python tools/visualize.py --help`."""

import sys

from hpm_video.cli.main import main

sys.exit(main(["visualize", *sys.argv[1:]]))
