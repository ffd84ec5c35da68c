"""The commands of ``hpm-video``, a module each: ``add_arguments(parser)`` and ``run(arguments)``.

``run`` returns the exit code. What a command needs beyond its arguments is imported when it runs,
so that --help and typing errors answer at once.
"""

from hpm_video.runtime.moved import names_moved

# What a console script of an earlier installation calls
__getattr__ = names_moved("hpm_video.cli", {"entry": "hpm_video.cli.main"})
