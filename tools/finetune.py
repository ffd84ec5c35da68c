"""``hpm-video finetune``: see `python tools/finetune.py --help`."""

import sys

from hpm_video.cli.main import main

sys.exit(main(["finetune", *sys.argv[1:]]))
