"""``hpm-video predict``: see `python tools/predict.py --help`."""

import sys

from hpm_video.cli.main import main

sys.exit(main(["predict", *sys.argv[1:]]))
