"""``hpm-video pretrain``: see `python tools/pretrain.py --help`."""

import sys

from hpm_video.cli.main import main

sys.exit(main(["pretrain", *sys.argv[1:]]))
