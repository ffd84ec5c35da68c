"""Tensors of all processes in one folder, each process writing its own parts.

The format is that of torch.distributed.checkpoint: ``.metadata`` says which tensors there are, and
where in ``__<rank>_0.distcp`` their parts lie. It may be read by any number of processes. Beside
what PyTorch does, the metadata, a pickle, is read as data, and no part may unpack to more than it
is.
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
    """Write this process's parts of ``tensors`` to a folder; every process of ``group`` calls.

    Without a group this process writes all. Returns once everything, of all processes, is on disk.
    """
    writer = FileSystemWriter(folder, sync_files=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is alone, where it is
            save(dict(tensors), storage_writer=writer, process_group=group, no_dist=group is None)
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error


def stored_shapes(folder: Path) -> dict[str, torch.Size]:
    """Name -> shape of every tensor in a folder. Raises OSError, or ValueError for damage."""
    return {name: entry.size for name, entry in _stored(folder).items()}


def read_shards(folder: Path, names: set[str]) -> dict[str, Tensor]:
    """The whole tensors of these names in a folder, on the CPU.

    Raises OSError, or ValueError when something is damaged.
    """
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in _stored(folder).items()
        if name in names
    }
    read_shards_into(folder, tensors)
    return tensors


def read_shards_into(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors in place, whole ones or this process's parts of cut ones.

    Each process reads what it needs on its own. Raises OSError, or ValueError when something is
    damaged or of another shape.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it reads alone
            load(dict(tensors), storage_reader=_Reader(folder), no_dist=True)
    except CheckpointException as error:
        failure, _ = next(iter(error.failures.values()))
        if isinstance(failure, OSError):
            raise failure from error
        raise ValueError(str(failure) or type(failure).__name__) from error


def _stored(folder: Path) -> dict[str, TensorStorageMetadata]:
    stored = _Reader(folder).read_metadata().state_dict_metadata
    # The other kind is refused: what it stands for PyTorch's reader would unpickle
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
    """Some bytes of a file as a file of their own; PyTorch's has no end that zipfile finds."""

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
