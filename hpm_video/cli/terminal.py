"""Output of a job: survive a terminal or pipe that goes away, and report failures."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from hpm_video.runtime.files import printable

_GONE = (errno.EPIPE, errno.EIO)  # closed pipe, closed terminal


@contextmanager
def lasting_output() -> Iterator[None]:
    """Let print and progress bars continue silently once the reader of the output is gone.

    A run must not end because `| head` has seen enough. Other failures, such as a full disk behind
    a redirect, remain errors.
    """
    # The next opened file would get the number of a closed descriptor, and native code would
    # write its messages into that file
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", _Lasting(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout, sys.stderr = before


class _Lasting:
    """A text stream that discards text once its reader is gone."""

    def __init__(self, stream: TextIO | None) -> None:
        # sys.stdout is None if its descriptor was closed at the start
        self._stream = stream if stream is not None else open(os.devnull, "w")  # noqa: SIM115

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._let_go(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._let_go(error)

    def _let_go(self, error: OSError) -> None:
        """Redirect buffered and future output to devnull."""
        if error.errno not in _GONE:
            raise error
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._stream.fileno())
        os.close(nothing)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def say_failure(job: str, words: Exception | str) -> None:
    """Print an error on one line, or one line per fault if there are several."""
    lines = [str(words)]
    if len(faults := getattr(words, "faults", ())) > 1:
        lines = [f"{len(faults)} errors:", *faults]
    first, *others = map(printable, lines)
    sys.stderr.write("\n  ".join([f"hpm-video {job}: {first}", *others]) + "\n")
    sys.stderr.flush()


@contextmanager
def tell_torchrun() -> Iterator[None]:
    """Pass errors to `torchrun`, if it started this process.

    It then names the first error at the end of its own report, where it is easy to find.
    """
    try:
        yield
    except Exception as error:
        if "TORCHELASTIC_ERROR_FILE" in os.environ:
            from torch.distributed.elastic.multiprocessing.errors import get_error_handler

            handler = get_error_handler()
            handler.initialize()
            handler.record_exception(error)
        raise
