"""What a job says: on a terminal or pipe, which may go away before it ends, and where it fails."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from hpm_video.runtime.files import printable

_GONE = (errno.EPIPE, errno.EIO)  # the reader of a pipe has ended, a terminal was closed


@contextmanager
def lasting_output() -> Iterator[None]:
    """Let print and progress bars go on, to nothing, once nobody reads what this process writes.

    A run must not end because `| head` has seen enough. Other failures, as a full disk below a
    redirected output, remain errors.
    """
    # A descriptor that was closed would be given to the next file that is opened, into which
    # native code then writes its messages
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
    """A text stream in all but what becomes of text for which there is no reader any more."""

    def __init__(self, stream: TextIO | None) -> None:
        # Python has no stream for a descriptor that was closed when it started
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
        """Send what is still in buffers, and all that is to come, to nothing."""
        if error.errno not in _GONE:
            raise error
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._stream.fileno())
        os.close(nothing)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def say_failure(job: str, words: Exception | str) -> None:
    """Print the one line that an error is worth, or one for each of several faults."""
    lines = [str(words)]
    if len(faults := getattr(words, "faults", ())) > 1:
        lines = [f"{len(faults)} things are wrong:", *faults]
    first, *others = map(printable, lines)
    sys.stderr.write("\n  ".join([f"hpm-video {job}: {first}", *others]) + "\n")
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
