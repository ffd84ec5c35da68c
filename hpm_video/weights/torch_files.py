"""Files of torch.save that anybody may have made: read without executing anything, in bounds.

A zip archive can hold a thousand times its size, one part of a file can stand for many, and the
strides of a tensor can make many numbers of one. None of this is what torch.save writes.
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

# What torch.load raises for files that are damaged, foreign, or would need to run code.
UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, AttributeError,
    KeyError, IndexError, AssertionError, OSError, struct.error, zlib.error, MemoryError,
    zipfile.BadZipFile, OverflowError, NotImplementedError,
)  # fmt: skip

ZIP = b"PK\x03\x04"
_MOST_PICKLED = 1 << 26  # bytes of what is no tensor; objects take many times as much
_MOST_SHARED = 4  # tensors that a number is part of, on average: tied weights are part of two
_SLACK = 1 << 20  # bytes; some models expand small buffers


class ClaimError(ValueError):
    """A file that would take more memory than it has bytes."""


def read_torch(path: Path, *, classes: tuple[type, ...] = ()) -> Any:
    """What torch.save wrote to a file, on the CPU.

    ``classes``: holders of values that may be in it besides tensors and plain values. Raises one of
    UNREADABLE; a `ClaimError` says in what the file is a bomb.
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
    """Raise ClaimError where a zip archive of so many bytes unpacks to more than that, BadZipFile
    where it is none; nothing for files that do not begin as one. Leaves the file at its start."""
    start = file.read(len(ZIP))
    file.seek(0)
    if start != ZIP:
        return
    claimed = 0
    with zipfile.ZipFile(file) as archive:
        for part in archive.infolist():
            if part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size:
                raise ClaimError(f"its part {part.filename!r} is compressed, and must not be")
            claimed += part.file_size
            if part.filename.endswith("data.pkl") and part.file_size > _MOST_PICKLED:
                raise ClaimError(f"its part {part.filename!r} has {part.file_size} bytes")
    if claimed > num_bytes:
        raise ClaimError(f"its parts claim {claimed} bytes, the file has {num_bytes}")
    file.seek(0)


def check_tensors(found: Any, num_bytes: int) -> None:
    """Raise ClaimError where the tensors in containers claim more memory than a file can hold."""
    stored: dict[int, int] = {}
    claimed = 0
    for tensor in _tensors(found):
        if tensor.layout != torch.strided or tensor.is_meta:
            continue  # refused where weights are needed
        storage = tensor.untyped_storage()
        stored[storage.data_ptr()] = max(stored.get(storage.data_ptr(), 0), storage.nbytes())
        claimed += tensor.numel() * tensor.element_size()
    held = sum(stored.values())
    if held > num_bytes or claimed > _MOST_SHARED * held + _SLACK:
        least = min(held, num_bytes)
        raise ClaimError(f"its tensors claim {max(claimed, held)} bytes, it holds {least}")


def _tensors(found: Any) -> Iterator[Tensor]:
    """All tensors in nested containers; of a container that is there many times only once."""
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
