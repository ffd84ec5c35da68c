"""The commands of ``hpm-video``, one module each: ``add_arguments(parser)``, ``run(arguments)``.

``run`` returns the exit code. It imports what a command needs beyond its arguments, so that --help
and error messages for mistyped words appear at once.
"""

from hpm_video.runtime.moved import names_moved

# Entry point of console scripts that earlier versions installed
__getattr__ = names_moved("hpm_video.cli", {"entry": "hpm_video.cli.main"})
