"""What is said when a job fails, so that it is found: one line, or a traceback, of the process that
was the first."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hpm_video.runtime.files import printable


def say_failure(job: str, error: Exception) -> None:
    """Print the one line that an error is worth."""
    sys.stderr.write(f"hpm-video {job}: {printable(str(error))}\n")
    sys.stderr.flush()


@contextmanager
def tell_torchrun() -> Iterator[None]:
    """Hand errors to `torchrun`, if that started this process: it then names the first of them at
    the end of its own report, below which nobody would find what was printed before."""
    try:
        yield
    except Exception as error:
        if "TORCHELASTIC_ERROR_FILE" in os.environ:
            from torch.distributed.elastic.multiprocessing.errors import get_error_handler

            handler = get_error_handler()
            handler.initialize()
            handler.record_exception(error)
        raise
