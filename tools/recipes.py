"""``hpm-video recipes``: see `python tools/recipes.py --help`."""

import sys

from hpm_video.cli.main import main

sys.exit(main(["recipes", *sys.argv[1:]]))
