"""Reads untrusted torch.save files without executing code and within bounds of memory.

A zip archive can unpack to a thousand times its size, entries can share one part of the file, and
strides can expand one value to many. torch.save writes none of this.
"""

import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from hpm_video.runtime.reading import open_regular

# Exceptions of torch.load for files that are damaged, foreign, or would need to run code
UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, AttributeError,
    KeyError, IndexError, AssertionError, OSError, struct.error, zlib.error, MemoryError,
    zipfile.BadZipFile, OverflowError, NotImplementedError,
)  # fmt: skip

ZIP = b"PK\x03\x04"
_MOST_PICKLED = 1 << 26  # bytes besides tensors; unpickled objects take many times as much
_MOST_SHARED = 4  # tensors per stored value, on average; tied weights give 2
_SLACK = 1 << 20  # bytes; some models expand small buffers


class ClaimError(ValueError):
    """Raised for a file that would need more memory than it has bytes."""


def read_torch(path: Path, *, classes: tuple[type, ...] = ()) -> Any:
    """Load a torch.save file onto the CPU.

    ``classes``: classes that may occur in it besides tensors and plain values. Raises one of
    UNREADABLE; `ClaimError` is raised for files that would exhaust memory.
    """
    with ExitStack() as stack:
        file = stack.enter_context(open_regular(path))
        num_bytes = os.fstat(file.fileno()).st_size
        check_archive(file, num_bytes)
        if classes:
            stack.enter_context(torch.serialization.safe_globals(list(classes)))
        found = torch.load(file, map_location="cpu", weights_only=True)
    check_tensors(found, num_bytes)
    return found


def check_archive(file: IO[bytes], num_bytes: int) -> None:
    """Raise ClaimError if a zip archive of ``num_bytes`` unpacks to more, BadZipFile if damaged.

    Files that do not start like a zip archive pass. The file position is reset to the start.
    """
    start = file.read(len(ZIP))
    file.seek(0)
    if start != ZIP:
        return
    claimed = 0
    with zipfile.ZipFile(file) as archive:
        for part in archive.infolist():
            if part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size:
                raise ClaimError(f"its part {part.filename!r} must not be compressed")
            claimed += part.file_size
            if part.filename.endswith("data.pkl") and part.file_size > _MOST_PICKLED:
                raise ClaimError(
                    f"its part {part.filename!r} must have at most {_MOST_PICKLED} bytes, but has "
                    f"{part.file_size}"
                )
    if claimed > num_bytes:
        raise ClaimError(f"its parts claim {claimed} bytes, but the file has {num_bytes}")
    file.seek(0)


def check_tensors(found: Any, num_bytes: int) -> None:
    """Raise ClaimError if the tensors in ``found`` claim more memory than a file can hold."""
    stored: dict[int, int] = {}
    claimed = 0
    for tensor in _tensors(found):
        if tensor.layout != torch.strided or tensor.is_meta:
            continue  # refused later, by `misfits`
        storage = tensor.untyped_storage()
        stored[storage.data_ptr()] = max(stored.get(storage.data_ptr(), 0), storage.nbytes())
        claimed += tensor.numel() * tensor.element_size()
    held = sum(stored.values())
    if held > num_bytes or claimed > _MOST_SHARED * held + _SLACK:
        least = min(held, num_bytes)
        raise ClaimError(
            f"its tensors claim {max(claimed, held)} bytes, but the file holds {least}"
        )


def _tensors(found: Any) -> Iterator[Tensor]:
    """All tensors in nested containers; a container that occurs repeatedly is visited once."""
    left, seen = [found], set()
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping | list | tuple | set | frozenset):
            if id(value) not in seen:
                seen.add(id(value))
                left += value.values() if isinstance(value, Mapping) else value
        elif (inside := getattr(value, "__dict__", None)) and id(value) not in seen:
            seen.add(id(value))
            left += inside.values()
