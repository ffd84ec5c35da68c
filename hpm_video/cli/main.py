"""Entry point: ``hpm-video JOB ...``, the same as ``python tools/JOB.py ...``.

Exit code 0: done. 1: failed or stopped early. 2: wrong input, explained in one line.
"""

# Only what is there already: an interrupt during these imports would end in a traceback
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

JOBS = {
    "start": "prepare a folder of your videos: lists, a check, suitable settings, next commands",
    "pretrain": "pre-train a model on unlabelled videos",
    "finetune": "fine-tune a classifier on labelled videos",
    "evaluate": "evaluate a fine-tuned classifier: figures, predictions, a page",
    "predict": "predict the classes of videos without labels, or along long videos",
    "probe": "measure features: simple classifiers on a frozen encoder",
    "features": "write features of videos, or of windows along them, to files",
    "visualize": "show what a pre-trained model finds hard, as pages and pictures",
    "weights": "inspect, import, export and average weights",
    "push": "upload an exported model to the Hugging Face Hub",
    "demo": "show in seconds what a small model finds hard; --train trains one in minutes",
    "bench": "measure time, memory and loading, plan runs, compare variants",
    "data": "list, check and transcode videos, and make toy videos",
    "submit": "submit a job to a SLURM cluster",
    "jobs": "list, follow, cancel and requeue submitted jobs",
    "recipes": "list the recipes: hardware, hours, expected result",
}
_ON_CLUSTERS = ("submit", "jobs")  # commands whose modules are in `hpm_video.slurm`


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job; returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    try:
        from hpm_video.cli.terminal import lasting_output

        with lasting_output():
            return _run(words)
    except KeyboardInterrupt:
        from hpm_video.cli.terminal import lasting_output, say_failure

        with lasting_output():
            say_failure(words[0] if words else "", "interrupted")
        return 1


def _run(words: Sequence[str]) -> int:
    import argparse

    from hpm_video.cli.options import Parser, check_there, parse, unquoted
    from hpm_video.cli.terminal import say_failure, tell_torchrun
    from hpm_video.cli.version import ShowVersion
    from hpm_video.runtime.host_memory import keep_freed_memory

    # OpenMP threads of PyTorch spin while they wait for each other. If loader workers share their
    # cores, a training step becomes several times slower. OpenMP reads this when it is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    parser = Parser(
        prog="hpm-video",
        description="Self-supervised video pre-training by masked autoencoding. The model learns "
        "which parts of a video are hard, and masks these.",
    )
    text = "show the versions of hpm-video, Python, PyTorch, CUDA and the decoders"
    parser.add_argument("--version", action=ShowVersion, help=text)
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB")
    layout = argparse.RawDescriptionHelpFormatter
    for name, what in JOBS.items():
        of_job = jobs.add_parser(name, help=what, description=what, formatter_class=layout)
        if name in words:  # adding the arguments of other jobs would only take time
            command_of(name).add_arguments(of_job)
    try:
        arguments = parse(parser, words)
        check_there(arguments)
        keep_freed_memory()
        import logging

        # Matplotlib's only advice is on its cache folder, which the user did not ask about
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
        with tell_torchrun():
            return command_of(arguments.job).run(arguments)
    except (ValueError, FileNotFoundError) as error:
        if not _is_ours(error.__traceback__):
            raise
        say_failure(words[0], unquoted(words) or error)
        return 2
    except (FloatingPointError, RuntimeError) as error:
        from hpm_video.data.loading.bad_videos import UnreadableDataError
        from hpm_video.runtime.rendezvous import CommunicationError
        from hpm_video.runtime.subprocesses import KilledError
        from hpm_video.train.run.loop import OutOfGpuMemory

        told = (
            FloatingPointError, UnreadableDataError, CommunicationError, KilledError,
            OutOfGpuMemory,
        )  # fmt: skip
        if not isinstance(error, told):
            raise
        say_failure(words[0], error)
        return 1


def command_of(job: str) -> Any:
    """The module of a job, with ``add_arguments(parser)`` and ``run(arguments) -> exit code``."""
    return import_module(f"hpm_video.{'slurm' if job in _ON_CLUSTERS else 'cli'}.{job}")


def _is_ours(trace: "TracebackType | None") -> bool:
    """True if a line of this package raised the error: the user can correct it.

    An error raised inside a library is a bug of ours and keeps its traceback.
    """
    module = ""
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
    return module.split(".")[0] == "hpm_video"


def entry() -> None:
    """The console script."""
    sys.exit(main())
