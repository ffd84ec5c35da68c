"""Sharded tensors in one folder, to which each rank writes its own parts.

The format is that of torch.distributed.checkpoint: ``.metadata`` lists the tensors and where their
parts lie in ``__<rank>_0.distcp``. Any number of processes can read it. Unlike PyTorch, we read the
metadata, a pickle, without executing it, and refuse parts that unpack to more than their size.
"""

import errno
import os
import warnings
from collections import defaultdict
from collections.abc import Mapping
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.futures import Future

from hpm_video.runtime.reading import open_regular
from hpm_video.weights.shard_metadata import read_metadata
from hpm_video.weights.torch_files import check_archive


def write_shards(
    folder: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None
) -> None:
    """Write this rank's parts of ``tensors`` to a folder; all ranks of ``group`` must call this.

    Without a group this process writes everything. Returns once the parts of all ranks are on disk.
    """
    writer = FileSystemWriter(folder, sync_files=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about saving in a single process
            save(dict(tensors), storage_writer=writer, process_group=group, no_dist=group is None)
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error


def stored_shapes(folder: Path) -> dict[str, torch.Size]:
    """Name -> shape of every tensor in a folder. Raises OSError, or ValueError if damaged."""
    return {name: entry.size for name, entry in _stored(folder).items()}


def read_shards(folder: Path, names: set[str]) -> dict[str, Tensor]:
    """Read the named tensors of a folder, unsharded, onto the CPU.

    Raises OSError, or ValueError if something is damaged.
    """
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in _stored(folder).items()
        if name in names
    }
    read_shards_into(folder, tensors)
    return tensors


def read_shards_into(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors in place: whole ones, or this rank's part of sharded ones.

    Each rank reads what it needs, without communication. Raises OSError, or ValueError if something
    is damaged or has another shape.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about loading in a single process
            load(dict(tensors), storage_reader=_Reader(folder), no_dist=True)
    except CheckpointException as error:
        failure, _ = next(iter(error.failures.values()))
        if isinstance(failure, OSError):
            raise failure from error
        raise ValueError(str(failure) or type(failure).__name__) from error


def _stored(folder: Path) -> dict[str, TensorStorageMetadata]:
    stored = _Reader(folder).read_metadata().state_dict_metadata
    # `read_metadata` refuses the other kind of entry, which PyTorch's reader would unpickle
    return {name: cast(TensorStorageMetadata, entry) for name, entry in stored.items()}


class _Reader(FileSystemReader):
    def read_metadata(self, *arguments: Any, **named: Any) -> Metadata:
        metadata = read_metadata(Path(self.path))
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        places = defaultdict(list)
        for item in plan.items:
            place = self.storage_data[item.storage_index]
            places[place.relative_path].append(place)
        for name, of_file in places.items():
            with open_regular(Path(self.path) / name) as file:
                for place in of_file:
                    part = BufferedReader(_Part(file, place.offset, place.length))
                    check_archive(part, place.length)
        return super().read_data(plan, planner)


class _Part(RawIOBase):
    """A byte range of a file as a file. zipfile finds no end in PyTorch's own view."""

    def __init__(self, file: BufferedReader, start: int, length: int) -> None:
        self._file, self._start, self._length, self._position = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        most = max(0, min(len(buffer), self._length - self._position))
        data = os.pread(self._file.fileno(), most, self._start + self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
