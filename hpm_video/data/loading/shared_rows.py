"""Memory that a process and its workers share: rows of uint8, one for each video."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import torch

from hpm_video.data.samples.clips import Reader, Request
from hpm_video.data.video.frames import VideoReadError


class RowReader:
    """What workers run: reads a video into a row of the shared memory."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.rows: torch.Tensor | None = None

    def __call__(self, item: tuple[Request, int], file: int) -> tuple[str | None, str | None]:
        """Return why the video is unreadable, if it is, and `Video.note`."""
        if self.rows is None:
            torch.set_num_threads(1)
            self.rows = rows_of(file, self.reader.shape)
        request, place = item
        try:
            return None, self.reader.read(request, self.rows[place])
        except VideoReadError as error:
            return error.reason, None


def shared_file(size: int) -> Any:
    """A file in memory without a name, which thus ends with the last process that has it open.

    It is no part of /dev/shm either, which containers often keep too small for a batch.
    """
    if hasattr(os, "memfd_create"):
        file = os.fdopen(os.memfd_create("hpm-video batches"), "r+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.truncate(size)
    return file


def rows_of(file: int, shape: Sequence[int]) -> torch.Tensor:
    """The memory of a file as rows (number of rows, *shape), uint8."""
    return torch.frombuffer(mmap.mmap(file, 0), dtype=torch.uint8).view(-1, *shape)
