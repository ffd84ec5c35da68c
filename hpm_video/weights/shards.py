"""Tensors of all processes in one folder, each process writing its own parts.

The format is that of torch.distributed.checkpoint: ``.metadata`` says which tensors there are, and
where in ``__<rank>_0.distcp`` their parts lie. It may be read by any number of processes. Beside
what PyTorch does, the metadata, a pickle, is read without executing anything.
"""

import pickle
import warnings
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

METADATA = ".metadata"

# The classes that such a pickle is made of. BytesStorageMetadata is left out: what it stands for is
# an object that PyTorch's reader would unpickle.
_ALLOWED = {
    "torch": {"Size", *(str(kind).removeprefix("torch.") for kind in (
        torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool,
    ))},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "TensorProperties",
        "ChunkStorageMetadata", "StorageMeta", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "pathlib": {"PosixPath"},
}  # fmt: skip


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
    # The other kind is none of the allowed classes
    return {name: cast(TensorStorageMetadata, entry) for name, entry in stored.items()}


class _Reader(FileSystemReader):
    def read_metadata(self, *arguments: Any, **named: Any) -> Metadata:
        with (Path(self.path) / METADATA).open("rb") as file:
            metadata: Metadata = _Unpickler(file).load()
        for place in metadata.storage_data.values():
            if Path(place.relative_path).name != place.relative_path:
                raise ValueError(f"{METADATA} points to another folder: {place.relative_path}")
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):  # how Python 3.11.0 to 3.11.3 write an enum
            return _enum_member
        if module == "pathlib._local":  # where Python 3.13 alone has the classes of pathlib
            module = "pathlib"
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"{METADATA} names {module}.{name}")
        return super().find_class(module, name)


def _enum_member(owner: Any, name: str) -> Enum:
    """The member of an enum: all that ``getattr`` is needed for."""
    if isinstance(owner, type) and issubclass(owner, Enum):
        return owner[name]
    raise pickle.UnpicklingError(f"{METADATA} asks for the {name} of {owner}")
